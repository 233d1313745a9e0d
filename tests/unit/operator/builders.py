# SPDX-License-Identifier: Apache-2.0
"""Models, nodes, artifacts and a configuration for tests: each with what a test names, and sensible rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sovereign_airgap.facts import ModelFacts
from sovereign_operator.api import Delivery, SovereignModel
from sovereign_operator.api_serving import Rdma
from sovereign_operator.config import OperatorConfig, parse_config
from sovereign_operator.values import Artifact, NodeFacts, Taint

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
FACTS = ROOT / "tests" / "golden" / "facts"
COMMIT = "41bd4c9e7e4fb318ca40e721131d4933966c2cc1"
DIGEST = "sha256:" + "1f" * 32
IMAGE = f"registry.example/sovereign-serving@{DIGEST}"
PRODUCT = "NVIDIA-H100-80GB-HBM3"
RDMA_RESOURCE = "rdma/hca_shared_devices_a"

AIRGAP_IMAGE = "registry.example/sovereign-airgap@sha256:" + "2" * 64
CONFIG = {
    "registry": {
        "host": "sovereign-registry.sovereign-system.svc:5000",
        "writer": "sovereign-registry-writer.sovereign-system.svc:5001",
        "plainHttp": True,
    },
    "registryPods": {"namespace": "sovereign-system"},
    "images": {"airgap": AIRGAP_IMAGE},
    "seal": "Report",
}
CANARY = "sovereign-canary.sovereign-system.svc.cluster.local"
OUTSIDE = {"name": "outside-tcp-443", "protocol": "TCP", "address": "192.0.2.10", "port": 443}
NAME = {"name": "outside-dns-name", "protocol": "RESOLVE", "query": "probe.example"}


def a_config(**changes: Any) -> OperatorConfig:
    """The chart's configuration, with some keys of the file replaced."""
    return parse_config(yaml.safe_dump(CONFIG | changes))


def a_sealing_config(
    targets: Sequence[Mapping[str, Any]] = (OUTSIDE, NAME), **changes: Any
) -> OperatorConfig:
    """A configuration that serves nothing without a proof."""
    probe = {"canary": CANARY, "targets": [dict(target) for target in targets]}
    return a_config(**{"seal": "Required", "probe": probe} | changes)


def a_caching_config(**changes: Any) -> OperatorConfig:
    """A configuration in which every node keeps weights."""
    cache = {"budgetBytes": 10**12, "reserveBytes": 10**10, "scrubIntervalSeconds": 604800}
    return a_config(**{"nodeCache": cache, "externalSources": {"allowed": True}} | changes)


def with_node_cache(model: SovereignModel, verify: str = "changed") -> SovereignModel:
    """The same model with its weights in its nodes' caches."""
    delivery = Delivery.model_validate({"mode": "nodeCache", "verify": verify})
    return model.model_copy(update={"spec": model.spec.model_copy(update={"delivery": delivery})})


def a_model(name: str = "mixtral", uid: str = "6f1c", **spec: Any) -> SovereignModel:
    """A model from the hub; keywords replace members of `spec`, and `serving` is merged."""
    serving = {"image": IMAGE} | spec.pop("serving", {})
    source = {"huggingFace": {"repo": "mistralai/Mixtral-8x7B-Instruct-v0.1", "revision": COMMIT}}
    return SovereignModel.parse(
        {
            "metadata": {"name": name, "namespace": "models", "uid": uid, "generation": 1},
            "spec": {"source": source, "serving": serving} | spec,
        }
    )


def an_example(name: str) -> SovereignModel:
    """A file of examples/ as the API server would hand it out."""
    manifest = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    manifest["metadata"] |= {"uid": "00000000-0000-0000-0000-000000000000", "generation": 1}
    return SovereignModel.parse(manifest)


def with_rdma(model: SovereignModel, per_worker: int = 1) -> SovereignModel:
    """The same model with devices of a fabric for its workers."""
    wish = Rdma(resource=RDMA_RESOURCE, per_worker=per_worker)
    serving = model.spec.serving.model_copy(update={"rdma": wish})
    return model.model_copy(update={"spec": model.spec.model_copy(update={"serving": serving})})


def the_facts(name: str = "mixtral-8x7b", **changes: Any) -> ModelFacts:
    """The facts of an example's model, with some of them replaced."""
    return ModelFacts.parse((FACTS / f"{name}.json").read_bytes()).model_copy(update=changes)


def an_artifact(name: str = "mixtral-8x7b", reference: str = "") -> Artifact:
    facts = the_facts(name)
    return Artifact(
        reference=reference or f"models/example/{name}@{DIGEST}",
        digest=DIGEST,
        bytes=facts.bytes_total,
        files=24,
        revision=COMMIT,
        facts=facts,
    )


def a_node(
    name: str = "gpu-a",
    accelerators: int = 8,
    product: str | None = PRODUCT,
    resource: str = "nvidia.com/gpu",
    memory_mib: int | None = 81559,
    ready: bool = True,
    schedulable: bool = True,
    labels: dict[str, str] | None = None,
    taints: tuple[Taint, ...] = (),
) -> NodeFacts:
    all_labels = dict(labels or {})
    if memory_mib is not None:
        all_labels["nvidia.com/gpu.memory"] = str(memory_mib)
    return NodeFacts(
        name=name,
        ready=ready,
        schedulable=schedulable,
        labels=all_labels,
        taints=taints,
        allocatable={resource: accelerators} if accelerators else {},
        product=product,
    )


def a_gpu_taint(value: str = "") -> Taint:
    return Taint(key="nvidia.com/gpu", value=value, effect="NoSchedule")
