# SPDX-License-Identifier: Apache-2.0
"""The RayService that serves a model, for KubeRay 1.7 and later.

One head without CPUs of its own, so that no replica lands there, and one group of workers. A replica that
needs several pods is one multi-host group: where one of its pods is gone, KubeRay deletes the others and
starts all of them again, and the ranks in them live and die together anyway. What the application does with
its arguments is `sovereign_serving.app`.
"""

from __future__ import annotations

from typing import Final

import yaml

from sovereign_operator.api import LABEL_OWNER, Device, SovereignModel
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.network_policy import HTTP_PORT
from sovereign_operator.desired.ray_pod import head_template, worker_template
from sovereign_operator.desired.rendered import with_hash
from sovereign_operator.desired.weights import WEIGHTS
from sovereign_operator.values import Artifact, Manifest, Placement

IMPORT_PATH: Final = "sovereign_serving.app:build"
GROUP_NAME: Final = "workers"
# None: with recreate the operator suspends, applies and resumes, because KubeRay never applies a changed
# cluster.
UPGRADES: Final = {"recreate": "None", "newCluster": "NewCluster"}
# Bytes of Ray's object store in /dev/shm; its default is a third of the pod's memory, and little passes
# through.
OBJECT_STORE: Final = {Device.CUDA: "4294967296", Device.CPU: "100000000"}

# Chosen ports, because Ray gives an agent 15 s to say which it took and then ends the whole node: a busy host
# is slower than that.
AGENT_PORTS: Final = {"dashboard-agent-grpc-port": "52366", "runtime-env-agent-port": "52367"}

# The head computes nothing.
HEAD_START_PARAMS: Final = {"dashboard-host": "0.0.0.0", "num-cpus": "0", "num-gpus": "0"}  # noqa: S104

Scalar = bool | int | float | str


def ray_service(
    model: SovereignModel, artifact: Artifact, placement: Placement, config: OperatorConfig
) -> Manifest:
    """The RayService. Raises ValueError where an engine argument is no YAML scalar."""
    return with_hash(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": {
                "name": model.name,
                "namespace": model.namespace,
                "labels": {"app.kubernetes.io/managed-by": "sovereign-operator", LABEL_OWNER: model.name},
                "ownerReferences": [model.owner_reference()],
            },
            "spec": {
                "upgradeStrategy": {"type": UPGRADES[model.spec.upgrade.strategy]},
                "serveConfigV2": serve_config(model, placement),
                "rayClusterConfig": ray_cluster(model, artifact, placement, config),
            },
        }
    )


def ray_cluster(
    model: SovereignModel, artifact: Artifact, placement: Placement, config: OperatorConfig
) -> Manifest:
    """Head and workers. 8265 is remote code execution for whoever reaches it, hence the token."""
    node = AGENT_PORTS | {"object-store-memory": OBJECT_STORE[model.spec.serving.device]}
    group: Manifest = {
        "groupName": GROUP_NAME,
        "replicas": placement.replicas,
        "minReplicas": placement.replicas,
        "maxReplicas": placement.replicas,
        "rayStartParams": worker_start_params(model, placement) | node,
        "template": worker_template(model, artifact, placement, config),
    }
    if placement.workers > 1:
        group["numOfHosts"] = placement.workers
    return {
        "rayVersion": config.kuberay.ray_version,
        "enableInTreeAutoscaling": False,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": HEAD_START_PARAMS | node,
            "template": head_template(model, artifact, placement, config),
        },
        "workerGroupSpecs": [group],
    }


def worker_start_params(model: SovereignModel, placement: Placement) -> dict[str, str]:
    """What Ray believes a worker has, so that exactly the ranks of the plan fit into it.

    A rank takes one CPU for its replica, and without accelerators one more for each engine process; with
    them it takes two. The spare one is for the ingress: less than a rank, so no second rank slips in. The
    accelerators do not see to that: all but a rank's first one are bundles of their own, and Ray would pack
    replicas into one pod, their accelerators into another, and leave that without a replica and so without
    a proxy.
    """
    on_cpu = model.spec.serving.device is Device.CPU
    rank = 1 + placement.tensor * placement.pipeline if on_cpu else 2
    return {
        "num-cpus": str(max(placement.ranks_per_worker, 1) * rank + 1),
        "num-gpus": "0" if on_cpu else str(placement.accelerators_per_worker),
    }


def serve_config(model: SovereignModel, placement: Placement) -> str:
    """`serveConfigV2`: a change of this alone is applied by KubeRay in place."""
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": HTTP_PORT},  # noqa: S104  (inside the seal)
        "applications": [
            {
                "name": model.name,
                "import_path": IMPORT_PATH,
                "route_prefix": "/",
                "args": application_arguments(model, placement),
            }
        ],
    }
    return yaml.safe_dump(config, sort_keys=False, width=4096)


def application_arguments(model: SovereignModel, placement: Placement) -> Manifest:
    """What `sovereign_serving.app:build` gets; what is not asked for is absent, never null."""
    serving = model.spec.serving
    arguments: Manifest = {
        "model_id": model.name,
        "model_path": WEIGHTS,
        "device": serving.device.value,
        "replicas": placement.replicas,
        "tensor": placement.tensor,
        "pipeline": placement.pipeline,
        "data": placement.data,
        "expert": placement.expert,
    }
    if placement.redundant_experts:
        arguments["redundantExperts"] = placement.redundant_experts
    if placement.all_to_all:
        arguments["allToAll"] = placement.all_to_all
    if placement.ranks_per_worker == 0:
        arguments["ingresses"] = placement.pods
    if serving.max_model_len:
        arguments["maxModelLen"] = serving.max_model_len
    if serving.engine_args:
        arguments["engineArgs"] = {
            name: scalar(name, text) for name, text in sorted(serving.engine_args.items())
        }
    return arguments


def scalar(name: str, text: str) -> Scalar:
    """The YAML scalar in a string: 'true' is true, '8' is 8, '0.92' is a number, the rest is text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if isinstance(value, bool | int | float | str):
        return value
    if value is None or isinstance(value, list | dict):
        raise ValueError(
            f"Expected engineArgs.{name} to be one YAML scalar such as 'true', '8' or '0.92', found {text!r}."
        )
    return text  # a date, for example: no engine argument is one
