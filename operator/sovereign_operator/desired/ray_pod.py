# SPDX-License-Identifier: Apache-2.0
"""The pod templates of a model's Ray cluster: the head, which computes nothing, and the workers.

Both have their weights before Ray starts (the head only the small files; `weights.py` says how), and run
under `restricted` pod security, but for the Ray container of workers with RDMA. KubeRay adds its own init
container, probes and the token; what it adds is never rendered here.
"""

from __future__ import annotations

import json
from typing import Final

from sovereign_operator.api import (
    COMPONENT_HEAD,
    COMPONENT_WORKER,
    GROUP,
    LABEL_COMPONENT,
    LABEL_MODEL,
    Device,
    SovereignModel,
)
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.network_policy import DASHBOARD_PORT, HTTP_PORT, METRICS_PORT
from sovereign_operator.desired.probe import waiting_container
from sovereign_operator.desired.quantity import cores, parse_cores, parse_size, size
from sovereign_operator.desired.sandbox import (
    HOME,
    pod_security,
    restricted,
    restricted_but_for_rdma,
    serving_environment,
)
from sovereign_operator.desired.surroundings import on_nodes, on_worker_nodes, preferring, resolver
from sovereign_operator.desired.weights import Weights, weights_of
from sovereign_operator.values import Artifact, Manifest, Placement

GIB: Final = 1024**3
# The tokens, or the words of a replica that refuses.
ANSWERED: Final = '"tokens":|"OpenAIHTTPException"'
GCS_PORT: Final = 6379
ANNOTATION_LAUNCHER: Final = f"{GROUP}/ray-launcher"
LAUNCHER_FILE: Final = "ray_bootstrap_config.yaml"

# Without a limit, what is written fills a node's disk.
SCRATCH_SIZE: Final = 32 * GIB
# What the processes need on top of the weights: CPU per accelerator, host memory per pod and accelerator.
CPU_PER_ACCELERATOR: Final = 4000
MEMORY_PER_POD: Final = 16 * GIB
MEMORY_PER_ACCELERATOR: Final = 24 * GIB
# On CPUs the engine is three processes of 1.3 GiB for each rank, and twice that while they start.
CPU_DEVICE_CPU: Final = 500
CPU_DEVICE_MEMORY: Final = 3 * GIB
SHARED_MEMORY: Final = {Device.CUDA: 16 * GIB, Device.CPU: GIB}
HEAD_CPU: Final = {Device.CUDA: 1000, Device.CPU: 200}
HEAD_MEMORY: Final = {Device.CUDA: (4 * GIB, 8 * GIB), Device.CPU: (2 * GIB, 4 * GIB)}


def head_template(
    model: SovereignModel, artifact: Artifact, placement: Placement, config: OperatorConfig
) -> Manifest:
    """The head: control plane of Ray, dashboard and HTTP proxy; it needs the model's configuration only."""
    device = model.spec.serving.device
    request, limit = HEAD_MEMORY[device]
    weights = weights_of(model, artifact, config, config_only=True)
    ray = _ray_container(model, "ray-head", weights)
    ray["ports"] = _ports(gcs=GCS_PORT, dashboard=DASHBOARD_PORT, metrics=METRICS_PORT, serve=HTTP_PORT)
    ray["resources"] = {
        "requests": {"cpu": cores(HEAD_CPU[device]), "memory": size(request)},
        "limits": {"memory": size(limit)},
    }
    template = _template(model, config, COMPONENT_HEAD, ray, weights, placement)
    _answer_where_ray_runs(template)
    return template


def _answer_where_ray_runs(head: Manifest) -> None:
    """Puts the file there in which Ray's own launcher says what it runs on; an empty one will do.

    Without it Ray 2.60's dashboard asks the metadata addresses of three clouds, whether or not anything is
    reported. The API server makes the file from an annotation, so no other object is needed.
    """
    head["metadata"].setdefault("annotations", {})[ANNOTATION_LAUNCHER] = "{}"
    field = {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{ANNOTATION_LAUNCHER}']"}
    item: Manifest = {"path": LAUNCHER_FILE, "fieldRef": field}
    head["spec"]["volumes"].append({"name": "launcher", "downwardAPI": {"items": [item]}})
    head["spec"]["containers"][0]["volumeMounts"].append(
        {
            "name": "launcher",
            "mountPath": f"{HOME}/{LAUNCHER_FILE}",
            "subPath": LAUNCHER_FILE,
            "readOnly": True,
        }
    )


def worker_template(
    model: SovereignModel, artifact: Artifact, placement: Placement, config: OperatorConfig
) -> Manifest:
    """A worker: its accelerators, the whole of the weights, and the engine's processes."""
    weights = weights_of(model, artifact, config, config_only=False)
    ray = _ray_container(model, "ray-worker", weights)
    ray["ports"] = _ports(metrics=METRICS_PORT, serve=HTTP_PORT)
    ray["resources"] = _worker_resources(model, artifact, placement)
    ray["readinessProbe"] = _answers(model)
    if model.spec.serving.rdma is not None:
        ray["securityContext"] = restricted_but_for_rdma()
    return _template(model, config, COMPONENT_WORKER, ray, weights, placement)


def _template(
    model: SovereignModel,
    config: OperatorConfig,
    component: str,
    ray: Manifest,
    weights: Weights,
    placement: Placement,
) -> Manifest:
    device = model.spec.serving.device
    volumes: list[Manifest] = [
        {"name": "home", "emptyDir": {"sizeLimit": size(SCRATCH_SIZE)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": size(SCRATCH_SIZE)}},
        {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": size(SHARED_MEMORY[device])}},
    ]
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "initContainers": [*_waiting(model, config), weights.container],
        "containers": [ray],
        "volumes": [weights.volumes[0], *volumes, *weights.volumes[1:]],
    }
    if model.spec.delivery.mode == "nodeCache":
        spec |= preferring(placement.chosen)
    spec |= on_worker_nodes(model, config) if component == COMPONENT_WORKER else on_nodes(model)
    spec |= resolver(model, config)
    metadata: Manifest = {"labels": {LABEL_MODEL: model.name, LABEL_COMPONENT: component}}
    if weights.annotations:
        metadata["annotations"] = dict(weights.annotations)
    return {"metadata": metadata, "spec": spec}


def _waiting(model: SovereignModel, config: OperatorConfig) -> list[Manifest]:
    """Nothing of a model starts before its own pod was seen to be sealed, where that is required."""
    return [waiting_container(model, config)] if config.seal == "Required" and config.probe.canary else []


def _answers(model: SovereignModel) -> Manifest:
    """Ready means that an engine answers: the question goes through this pod's proxy to a replica and back.

    KubeRay's own probe asks the proxy only, which is up minutes before the weights are loaded, and Serve
    calls a deployment healthy while its lost replicas are starting again: until one is there, this waits.
    No token is generated, so a full engine answers too. With Ray 2.60 and vLLM 0.32 the replica's answer is
    that it cannot tokenize; that is an answer, while a proxy without a route says 404 in other words.
    """
    question = json.dumps({"model": model.name, "prompt": "."})
    ask = (
        "wget --quiet --tries=1 --timeout=8 --content-on-error --output-document=- "
        f"--header='Content-Type: application/json' --post-data='{question}' http://127.0.0.1:{HTTP_PORT}/tokenize"
    )
    return {
        "exec": {"command": ["bash", "-c", f"{ask} | grep --quiet --extended-regexp '{ANSWERED}'"]},
        "periodSeconds": 10,
        "timeoutSeconds": 10,
        "failureThreshold": 3,
    }


def _ray_container(model: SovereignModel, name: str, weights: Weights) -> Manifest:
    return {
        "name": name,
        "image": model.spec.serving.image,
        "imagePullPolicy": "IfNotPresent",
        "env": serving_environment(cpu=model.spec.serving.device is Device.CPU, head=name == "ray-head"),
        "securityContext": restricted(),
        "volumeMounts": [
            weights.mount,
            {"name": "home", "mountPath": HOME},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  (a mount, not a file that others could guess)
            {"name": "shared-mem", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }


def _worker_resources(model: SovereignModel, artifact: Artifact, placement: Placement) -> Manifest:
    wish, count = model.spec.serving.resources, placement.accelerators_per_worker
    if model.spec.serving.device is Device.CPU:
        cpu = CPU_DEVICE_CPU
        request = (CPU_DEVICE_MEMORY + artifact.bytes // GIB * GIB) * max(placement.ranks_per_worker, 1)
        limit = 2 * request
    else:
        cpu = CPU_PER_ACCELERATOR * count
        request = limit = MEMORY_PER_POD + MEMORY_PER_ACCELERATOR * count
    if wish.cpu is not None:
        cpu = parse_cores(wish.cpu)
    if wish.memory is not None:
        request = limit = parse_size(wish.memory)
    devices = {model.spec.placement.accelerator.resource: str(count)}
    if (rdma := model.spec.serving.rdma) is not None:
        devices[rdma.resource] = str(rdma.per_worker)
    return {
        "requests": {"cpu": cores(cpu), "memory": size(request)},
        "limits": {"memory": size(limit)} | devices,
    }


def _ports(**ports: int) -> list[Manifest]:
    return [{"name": name, "containerPort": port} for name, port in ports.items()]
