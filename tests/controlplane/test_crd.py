# SPDX-License-Identifier: Apache-2.0
"""The CRD on the real API server: every rule with a manifest that it lets pass and one that it refuses.

A rule costs what the API server estimates, a message is what it prints: neither can be seen anywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev.cluster import Cluster
from dev.kubectl import Kubectl, KubectlFailed
from sovereign_operator.api import RESERVED_ENGINE_ARGS
from sovereign_operator.crd import CRD_NAME
from sovereign_operator.crd_rules import RULES
from tests.controlplane.crd_cases import (
    CASES,
    HUB,
    PARALLELISM,
    REFERENCE,
    Case,
    Change,
    Manifest,
    a_model,
    drop,
    put,
)
from tests.controlplane.definitions import serve

pytestmark = pytest.mark.controlplane

CRD = Path(__file__).parents[2] / "crds" / "sovereign.dev_sovereignmodels.yaml"
Store = Callable[[Manifest], None]


@pytest.fixture(scope="module")
def served(control_plane: Cluster) -> Iterator[Kubectl]:
    """kubectl on an API server that serves our CRD."""
    kubectl = Kubectl(tuple(control_plane.kubectl))
    serve(kubectl, CRD, CRD_NAME)
    yield kubectl


@pytest.fixture(scope="module")
def namespace(served: Kubectl) -> Iterator[str]:
    """One namespace for all: most of these tests store nothing."""
    served("create", "namespace", "crd-rules")
    yield "crd-rules"
    served("delete", "namespace", "crd-rules", "--wait=false")


@pytest.fixture
def stored(served: Kubectl, namespace: str) -> Iterator[Store]:
    """Stores a manifest until the test ends."""

    def store(manifest: Manifest) -> None:
        served("apply", "--server-side", "-n", namespace, "-f", "-", stdin=json.dumps(manifest))

    yield store
    served("delete", "smodel", "--all", "-n", namespace)


def refusal(kubectl: Kubectl, namespace: str, manifest: Manifest) -> str:
    """What the API server says against a manifest; empty where it takes it. Nothing is stored."""
    try:
        kubectl(
            "apply",
            "--server-side",
            "--dry-run=server",
            "-n",
            namespace,
            "-f",
            "-",
            stdin=json.dumps(manifest),
        )
    except KubectlFailed as failed:
        return str(failed)
    return ""


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.rule))
def test_a_rule_lets_the_good_manifest_pass_and_tells_the_bad_one_what_to_do(
    case: Case, served: Kubectl, namespace: str, request: pytest.FixtureRequest
) -> None:
    rule = next(rule for rule in RULES if rule.name == case.rule)
    if case.before is not None:
        request.getfixturevalue("stored")(a_model(*case.before))
    assert refusal(served, namespace, a_model(*case.good)) == ""
    said = " ".join(refusal(served, namespace, a_model(*case.bad)).split())
    # Where the message is computed it begins like the fixed one and then quotes what was found.
    assert rule.message.split(",")[0].split(";")[0] in said, said


def test_every_rule_has_a_case() -> None:
    assert sorted(case.rule for case in CASES) == sorted(rule.name for rule in RULES)


def test_a_refused_revision_is_quoted(served: Kubectl, namespace: str) -> None:
    said = refusal(served, namespace, a_model(put(f"{HUB}.revision", "refs/pr/7")))
    assert "found 'refs/pr/7'; branches and tags move, so look up the commit" in said


@pytest.mark.parametrize("name", [RESERVED_ENGINE_ARGS[0], RESERVED_ENGINE_ARGS[-1], "data_parallel_address"])
def test_reserved_engine_arguments_are_refused_by_name_and_by_prefix(
    name: str, served: Kubectl, namespace: str
) -> None:
    assert "engineArgs must not set" in refusal(
        served, namespace, a_model(put("spec.serving.engineArgs", {name: "x"}))
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (drop("spec.source"), "Required value"),
        (drop("spec.serving.image"), "Required value"),
        (put("spec.serving.device", "tpu"), 'supported values: "cuda", "cpu"'),
        (put(f"{PARALLELISM}.tensor", 0), "greater than or equal to 1"),
        (put(PARALLELISM, {"data": 2, "expert": True, "allToAll": "carrier-pigeon"}), "supported values"),
        (put("spec.delivery.mode", "usb"), 'supported values: "ephemeral", "nodeCache"'),
        (put("spec.delivery.verify", "never"), 'supported values: "changed", "always"'),
        (put(f"{HUB}.tokenSecretRef", {}), "tokenSecretRef.name: Required value"),
        (
            put("spec.serving.adapters", [{"name": "a", "reference": REFERENCE}] * 2),
            "duplicate entries for key",
        ),
        (put("spec.serving.resources.memory", "much"), "should match"),
        (put("spec.serving.rdma", {}), "rdma.resource: Required value"),
        (put("spec.serving.rdma", {"resource": "rdma/a", "perWorker": 0}), "greater than or equal to 1"),
        (put("spec.serving.rdma", {"resource": "rdma/a", "perWorker": 65}), "less than or equal to 64"),
    ],
    ids=[
        "source",
        "image",
        "device",
        "tensor",
        "all-to-all",
        "delivery",
        "delivery-check",
        "token-secret",
        "adapters",
        "memory",
        "rdma",
        "no-rdma-device",
        "too-many-rdma-devices",
    ],
)
def test_the_shape_is_checked_too(change: Change, word: str, served: Kubectl, namespace: str) -> None:
    assert word in refusal(served, namespace, a_model(change))


def test_defaults_appear_in_the_stored_object(stored: Store, served: Kubectl, namespace: str) -> None:
    stored(a_model(put(PARALLELISM, {"tensor": 2})))
    spec = served.get("smodel", "mixtral", "-n", namespace)["spec"]
    assert spec["serving"]["replicas"] == 1
    assert spec["serving"]["device"] == "cuda"
    assert spec["serving"]["parallelism"] == {
        "tensor": 2, "pipeline": 1, "data": 1, "expert": False, "redundantExperts": 0
    }  # fmt: skip
    assert spec["placement"] == {"accelerator": {"resource": "nvidia.com/gpu"}}
    assert spec["delivery"] == {"mode": "ephemeral", "verify": "changed"}
    assert spec["network"] == {"onLeak": "Isolate"}
    assert spec["upgrade"] == {"strategy": "recreate"}
    assert spec["verification"] == {"threshold": 1}
    assert spec["suspend"] is False


def test_parallelism_left_out_stays_out(stored: Store, served: Kubectl, namespace: str) -> None:
    stored(a_model())
    assert "parallelism" not in served.get("smodel", "mixtral", "-n", namespace)["spec"]["serving"]


def test_rdma_is_one_device_where_it_is_asked_for_and_absent_else(
    stored: Store, served: Kubectl, namespace: str
) -> None:
    stored(a_model())
    assert "rdma" not in served.get("smodel", "mixtral", "-n", namespace)["spec"]["serving"]
    stored(a_model(put("spec.serving.rdma", {"resource": "rdma/hca_shared_devices_a"})))
    asked = served.get("smodel", "mixtral", "-n", namespace)["spec"]["serving"]["rdma"]
    assert asked == {"resource": "rdma/hca_shared_devices_a", "perWorker": 1}


def test_explain_reads_well(served: Kubectl) -> None:
    text = " ".join(served("explain", "smodel.spec.serving.parallelism").split())
    assert "How one replica is spread over accelerators" in text
    assert "tensor <integer>" in text
    assert "It must divide the model's attention heads. Unit: accelerators. Default: 1. Example: 4" in text
    assert "allToAll <string> enum: allgather_reducescatter, deepep_high_throughput" in text


def test_status_is_a_subresource_and_fills_the_columns(
    stored: Store, served: Kubectl, namespace: str
) -> None:
    stored(a_model())
    conditions = [
        {
            "type": name,
            "status": "True",
            "reason": "AllChecksPassed",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for name in ("Ready", "Mirrored", "Distributed", "EgressSealed")
    ]
    status = {
        "model": "mistralai/Mixtral@41bd4c9", "conditions": conditions, "readyReplicas": 2,
        "endpoint": "http://mixtral-serve-svc.models.svc:8000/v1",
    }  # fmt: skip
    patch = json.dumps({"status": status, "spec": {"suspend": True}})
    served("patch", "smodel", "mixtral", "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)
    assert served.get("smodel", "mixtral", "-n", namespace)["spec"]["suspend"] is False
    header, row = served("get", "smodel", "-n", namespace, "-o", "wide").splitlines()
    assert header.split() == [
        "NAME",
        "MODEL",
        "READY",
        "REASON",
        "MIRRORED",
        "SEALED",
        "REPLICAS",
        "DISTRIBUTED",
        "URL",
        "AGE",
    ]
    assert row.split()[:9] == [
        "mixtral", "mistralai/Mixtral@41bd4c9", "True", "AllChecksPassed", "True", "True", "2", "True",
        "http://mixtral-serve-svc.models.svc:8000/v1",
    ]  # fmt: skip
    assert "URL" not in served("get", "sovereign", "-n", namespace).splitlines()[0]


def test_a_second_apply_of_the_same_manifest_changes_nothing(
    stored: Store, served: Kubectl, namespace: str
) -> None:
    manifest = a_model(put(PARALLELISM, {"data": 2, "expert": True}))
    stored(manifest)
    first = served.get("smodel", "mixtral", "-n", namespace)["metadata"]
    stored(manifest)
    again = served.get("smodel", "mixtral", "-n", namespace)["metadata"]
    assert (again["resourceVersion"], again["generation"]) == (first["resourceVersion"], first["generation"])
