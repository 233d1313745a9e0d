# SPDX-License-Identifier: Apache-2.0
"""Manifests for the CRD's rules: for each rule one that it lets pass and one that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sovereign_operator.api import API_VERSION, KIND

COMMIT = "41bd4c9e7e4fb318ca40e721131d4933966c2cc1"
DIGEST = "sha256:" + "1f" * 32
Manifest = dict[str, Any]
Change = Callable[[Manifest], None]


def a_model(*changes: Change) -> Manifest:
    """A manifest that every rule lets pass, with some changes to its spec."""
    manifest: Manifest = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "mixtral"},
        "spec": {
            "source": {"huggingFace": {"repo": "mistralai/Mixtral-8x7B-v0.1", "revision": COMMIT}},
            "serving": {"image": f"registry.example:5000/sovereign-serving@{DIGEST}"},
        },
    }
    for change in changes:
        change(manifest)
    return manifest


def put(path: str, value: Any) -> Change:
    """A change that sets one field, creating what is above it."""

    def apply(manifest: Manifest) -> None:
        *parents, last = path.split(".")
        target = manifest
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value

    return apply


def drop(path: str) -> Change:
    def apply(manifest: Manifest) -> None:
        *parents, last = path.split(".")
        target = manifest
        for parent in parents:
            target = target[parent]
        del target[last]

    return apply


HUB = "spec.source.huggingFace"
PARALLELISM = "spec.serving.parallelism"
REFERENCE = f"models/mistralai/mixtral-8x7b-v0.1@{DIGEST}"


def artifact(reference: str) -> Change:
    return put("spec.source", {"artifact": {"reference": reference}})


@dataclass(frozen=True)
class Case:
    """One rule: changes that it lets pass, changes that it refuses. `before` makes it an update."""

    rule: str
    good: tuple[Change, ...]
    bad: tuple[Change, ...]
    before: tuple[Change, ...] | None = None


CASES = (
    Case("name-is-short", (put("metadata.name", "m" * 40),), (put("metadata.name", "m" * 41),)),
    Case(
        "name-is-a-service-name",
        (put("metadata.name", "mistral-3-5"),),
        (put("metadata.name", "mistral-3.5"),),
    ),
    Case(
        "adapters-are-not-named-like-the-model",
        (put("spec.serving.adapters", [{"name": "support", "reference": REFERENCE}]),),
        (put("spec.serving.adapters", [{"name": "mixtral", "reference": REFERENCE}]),),
    ),
    Case("exactly-one-source", (), (put("spec.source.artifact", {"reference": REFERENCE}),)),
    Case("source-kind-is-immutable", (put(f"{HUB}.revision", "a" * 40),), (artifact(REFERENCE),), before=()),
    Case(
        "repo-is-owner-and-name", (put(f"{HUB}.repo", "Qwen/Qwen3-30B-A3B"),), (put(f"{HUB}.repo", "gpt2"),)
    ),
    Case(
        "repo-is-immutable", (put(f"{HUB}.revision", "b" * 40),), (put(f"{HUB}.repo", "a/other"),), before=()
    ),
    Case("revision-is-a-commit", (put(f"{HUB}.revision", "0" * 40),), (put(f"{HUB}.revision", "main"),)),
    Case("include-stays-inside", (put(f"{HUB}.include", ["*.json"]),), (put(f"{HUB}.include", ["../x"]),)),
    Case("exclude-stays-inside", (put(f"{HUB}.exclude", ["a/*"]),), (put(f"{HUB}.exclude", ["/etc/*"]),)),
    Case(
        "token-secret-has-a-name",
        (put(f"{HUB}.tokenSecretRef", {"name": "hub-token"}),),
        (put(f"{HUB}.tokenSecretRef", {"name": ""}),),
    ),
    Case("artifact-is-pinned", (artifact(REFERENCE),), (artifact("models/a/b:v1"),)),
    Case(
        "artifact-repository-is-immutable",
        (artifact(REFERENCE.replace("1f", "2e")),),
        (artifact(f"models/a/b@{DIGEST}"),),
        before=(artifact(REFERENCE),),
    ),
    Case(
        "keys-secret-has-a-name",
        (put("spec.verification", {"keysSecretRef": {"name": "vendor-keys"}}),),
        (put("spec.verification", {"keysSecretRef": {"name": "Vendor Keys"}}),),
    ),
    Case(
        "threshold-needs-keys",
        (put("spec.verification", {"threshold": 2, "keysSecretRef": {"name": "keys"}}),),
        (put("spec.verification", {"threshold": 2}),),
    ),
    Case(
        "image-is-versioned",
        (put("spec.serving.image", "registry.example/serving:1.2"),),
        (put("spec.serving.image", "registry.example/serving"),),
    ),
    Case(
        "expert-parallelism-needs-accelerators",
        (put(PARALLELISM, {"data": 2, "expert": True}),),
        (put(PARALLELISM, {"pipeline": 2, "expert": True}),),
    ),
    Case(
        "redundant-experts-need-expert",
        (put(PARALLELISM, {"tensor": 4, "expert": True, "redundantExperts": 8}),),
        (put(PARALLELISM, {"tensor": 4, "redundantExperts": 8}),),
    ),
    Case(
        "all-to-all-needs-expert",
        (put(PARALLELISM, {"data": 2, "expert": True, "allToAll": "deepep_low_latency"}),),
        (put(PARALLELISM, {"tensor": 2, "expert": True, "allToAll": "deepep_low_latency"}),),
    ),
    Case(
        "cpu-has-no-pipeline",
        (put("spec.serving.device", "cpu"), put(PARALLELISM, {"data": 2})),
        (put("spec.serving.device", "cpu"), put(PARALLELISM, {"pipeline": 2})),
    ),
    Case(
        "cpu-has-no-gpu-kernels",
        (
            put("spec.serving.device", "cpu"),
            put(PARALLELISM, {"data": 2, "expert": True, "allToAll": "allgather_reducescatter"}),
        ),
        (
            put("spec.serving.device", "cpu"),
            put(PARALLELISM, {"data": 2, "expert": True, "allToAll": "deepep_low_latency"}),
        ),
    ),
    Case(
        "engine-arguments-are-python-names",
        (put("spec.serving.engineArgs", {"max_num_seqs": "8"}),),
        (put("spec.serving.engineArgs", {"--max-num-seqs": "8"}),),
    ),
    Case(
        "reserved-engine-arguments-are-refused",
        (put("spec.serving.engineArgs", {"gpu_memory_utilization": "0.92"}),),
        (put("spec.serving.engineArgs", {"trust_remote_code": "true"}),),
    ),
    Case(
        "engine-arguments-are-scalars",
        (put("spec.serving.engineArgs", {"dtype": "bfloat16"}),),
        (put("spec.serving.engineArgs", {"dtype": "{a: 1}"}),),
    ),
    Case(
        "adapters-have-plain-names",
        (put("spec.serving.adapters", [{"name": "support", "reference": REFERENCE}]),),
        (put("spec.serving.adapters", [{"name": "Support Team", "reference": REFERENCE}]),),
    ),
    Case(
        "adapters-are-pinned",
        (put("spec.serving.adapters", [{"name": "support", "reference": REFERENCE}]),),
        (put("spec.serving.adapters", [{"name": "support", "reference": "models/a/b:latest"}]),),
    ),
    Case(
        "rdma-resource-is-qualified",
        (put("spec.serving.rdma", {"resource": "nvidia.com/mlnxnics", "perWorker": 8}),),
        (put("spec.serving.rdma", {"resource": "hca_shared_devices_a"}),),
    ),
    Case(
        "rdma-is-for-accelerators",
        (put("spec.serving.rdma", {"resource": "rdma/hca_shared_devices_a"}),),
        (
            put("spec.serving.device", "cpu"),
            put("spec.serving.rdma", {"resource": "rdma/hca_shared_devices_a"}),
        ),
    ),
    Case(
        "rdma-is-not-the-accelerator",
        (put("spec.serving.rdma", {"resource": "rdma/hca_shared_devices_a"}),),
        (put("spec.serving.rdma", {"resource": "nvidia.com/gpu"}),),
    ),
    Case(
        "tensor-parallelism-fits-a-node",
        (put(PARALLELISM, {"tensor": 8, "pipeline": 2}), put("spec.placement.accelerator.perNode", 8)),
        (put(PARALLELISM, {"tensor": 16}), put("spec.placement.accelerator.perNode", 8)),
    ),
    Case(
        "accelerator-resource-is-qualified",
        (put("spec.placement.accelerator.resource", "amd.com/gpu"),),
        (put("spec.placement.accelerator.resource", "gpu"),),
    ),
    Case(
        "toleration-compares-something",
        (put("spec.placement.tolerations", [{"operator": "Exists"}]),),
        (put("spec.placement.tolerations", [{"value": "inference"}]),),
    ),
    Case(
        "toleration-exists-has-no-value",
        (put("spec.placement.tolerations", [{"key": "a", "value": "b"}]),),
        (put("spec.placement.tolerations", [{"key": "a", "operator": "Exists", "value": "b"}]),),
    ),
    Case(
        "client-namespace-is-a-name",
        (put("spec.network.clients", [{"namespace": "chat"}, {"podLabels": {"app": "x"}}]),),
        (put("spec.network.clients", [{"namespace": "*"}]),),
    ),
)
