# SPDX-License-Identifier: Apache-2.0
"""What a pod of a sealed namespace may be, decided by the real API server with the chart's policies."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cluster import Cluster
from sovereign_operator.desired import probe
from tests.controlplane.admission_site import (
    DIGEST,
    FIREMAN,
    IMAGE,
    JOB_CONTROLLER,
    KUBERAY,
    OPERATOR,
    POLICIES,
    SOMEBODY,
    Answer,
    Gate,
    a_pod,
    guarded,
)
from tests.controlplane.api_server import Manifest, eventually
from tests.controlplane.operator_site import ROOT

MODEL = {"sovereign.dev/model": "m", "sovereign.dev/component": "worker"}
CACHE = {"name": "cache", "persistentVolumeClaim": {"claimName": "sovereign-cache", "readOnly": True}}
WRITABLE = {"name": "cache", "persistentVolumeClaim": {"claimName": "sovereign-cache"}}
SCRATCH = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
PODS, SET = "sovereign-sealed-pods", "sovereign-sealed-set"


@pytest.fixture(scope="module")
def gate(control_plane: Cluster) -> Iterator[Gate]:
    with guarded(control_plane) as gate:
        yield gate


GOOD: dict[str, Manifest] = {
    "plain": a_pod(),
    "from the second registry": a_pod(container={"image": f"127.0.0.1:5000/a@{DIGEST}"}),
    "with a tag beside its digest": a_pod(container={"image": f"registry.example/llm/a:v1@{DIGEST}"}),
    "with volumes": a_pod(
        volumes=[
            {"name": "a", "emptyDir": {}},
            {"name": "b", "persistentVolumeClaim": {"claimName": "weights"}},
            {"name": "c", "image": {"reference": IMAGE}},
        ]
    ),
    "with a volume that makes its own claim": a_pod(
        volumes=[{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": SCRATCH}}}]
    ),
    "with a port": a_pod(container={"ports": [{"containerPort": 8000}]}),
    "with a security context": a_pod(container={"securityContext": {"allowPrivilegeEscalation": False}}),
    "with init containers": a_pod(initContainers=[{"name": "i", "image": IMAGE}]),
}
BAD: dict[str, tuple[Manifest, str]] = {
    "the node's network": (a_pod(hostNetwork=True), "hostNetwork"),
    "the node's processes": (a_pod(hostPID=True), "hostPID"),
    "the node's shared memory": (a_pod(hostIPC=True), "hostIPC"),
    "the node's files": (a_pod(volumes=[{"name": "v", "hostPath": {"path": "/"}}]), "hostPath"),
    "a port of the node": (
        a_pod(container={"ports": [{"containerPort": 80, "hostPort": 80}]}),
        "hostPort",
    ),
    "a port of the node, in an init container": (
        a_pod(
            initContainers=[{"name": "i", "image": IMAGE, "ports": [{"containerPort": 80, "hostPort": 80}]}]
        ),
        "hostPort",
    ),
    "all privileges": (a_pod(container={"securityContext": {"privileged": True}}), "privileged"),
    "a tag": (a_pod(container={"image": "registry.example/llm/a:v1"}), "registry.example/llm/a:v1"),
    "a digest that is none": (a_pod(container={"image": "registry.example/llm/a@sha256:77"}), "digest"),
    "no digest in an init container": (
        a_pod(initContainers=[{"name": "i", "image": "registry.example/llm/i"}]),
        "registry.example/llm/i",
    ),
    "another registry": (a_pod(container={"image": f"docker.example/a@{DIGEST}"}), "docker.example/a"),
    "a registry whose name only begins alike": (
        a_pod(container={"image": f"registry.example/llm-evil/a@{DIGEST}"}),
        "llm-evil",
    ),
    "an image volume from elsewhere": (
        a_pod(volumes=[{"name": "v", "image": {"reference": f"docker.example/v@{DIGEST}"}}]),
        "docker.example/v",
    ),
    "the node cache": (a_pod(volumes=[CACHE]), "sovereign.dev/model"),
    "the node cache, to write it": (a_pod(volumes=[WRITABLE]), "readOnly"),
    "a volume whose claim would be the node cache's": (
        a_pod(
            "sovereign",
            volumes=[{"name": "cache", "ephemeral": {"volumeClaimTemplate": {"spec": SCRATCH}}}],
        ),
        "ephemeral",
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_pod_that_keeps_to_itself_is_taken(gate: Gate, case: str) -> None:
    answer = gate.tries(GOOD[case])
    assert answer.code == 201, answer.text


@pytest.mark.parametrize("case", BAD)
def test_a_pod_that_shares_with_its_node_or_has_no_digest_is_refused(gate: Gate, case: str) -> None:
    pod, named = BAD[case]
    for who in (SOMEBODY, FIREMAN, OPERATOR):
        answer = gate.tries(pod, who)
        assert answer.refused_by(PODS), answer.text
        assert named in answer.text


@pytest.mark.parametrize("case", BAD)
def test_other_namespaces_are_left_alone(gate: Gate, case: str) -> None:
    assert not gate.tries(BAD[case][0], namespace=gate.open).refused


def test_kube_system_is_left_alone_even_when_somebody_labels_it(gate: Gate) -> None:
    gate.patch("Namespace", None, "kube-system", {"metadata": {"labels": {"sovereign.dev/sealed": "true"}}})
    try:
        eventually(
            lambda: gate.tries(a_pod(), namespace="kube-system").code == 201, "the cache has the label", 10
        )
        assert not gate.tries(a_pod(hostNetwork=True), namespace="kube-system").refused
    finally:
        gate.patch("Namespace", None, "kube-system", {"metadata": {"labels": {"sovereign.dev/sealed": None}}})


def test_a_changed_image_is_checked_and_a_finalizer_is_not(gate: Gate) -> None:
    name = gate.makes(a_pod("changed"), SOMEBODY)
    image = {"spec": {"containers": [{"name": "main", "image": "registry.example/llm/a:v2"}]}}
    path = gate.path("Pod", gate.sealed, name) + "?dryRun=All"
    answer = gate.ask(SOMEBODY, "PATCH", path, image, "application/strategic-merge-patch+json")
    assert answer.refused_by(PODS), answer.text
    assert gate.merges("Pod", name, {"metadata": {"annotations": {"a": "b"}}}).code == 200


def test_only_kuberay_the_job_controller_and_the_operator_make_pods_of_models(gate: Gate) -> None:
    for who in (KUBERAY, JOB_CONTROLLER, OPERATOR):
        assert gate.tries(a_pod(labels=MODEL), who).code == 201, who
    for who in (SOMEBODY, FIREMAN, "system:serviceaccount:kube-system:replicaset-controller"):
        answer = gate.tries(a_pod(labels=MODEL), who)
        assert answer.refused_by(SET) or answer.code == 403, answer.text
    assert who not in gate.tries(a_pod(labels=MODEL), SOMEBODY).text
    assert SOMEBODY in gate.tries(a_pod(labels=MODEL), SOMEBODY).text
    assert gate.tries(a_pod(labels={"app": "x"})).code == 201


@pytest.mark.parametrize("sub", ["", "status"])
@pytest.mark.parametrize(
    "labels",
    [
        {"sovereign.dev/model": None},
        {"sovereign.dev/model": "another"},
        {"sovereign.dev/component": None},
        {"sovereign.dev/component": "mirror"},
    ],
)
def test_a_pod_keeps_the_labels_that_seal_it(gate: Gate, labels: dict[str, Any], sub: str) -> None:
    name = "labelled"
    if not gate.get("Pod", gate.sealed, name):
        gate.makes(a_pod(name, MODEL), KUBERAY)
    change = {"metadata": {"labels": labels}}
    for who in (SOMEBODY, KUBERAY, OPERATOR):
        answer = gate.merges("Pod", name, change, who, sub)
        assert answer.refused_by(SET), answer.text
    assert "breakglass" in answer.text
    assert gate.merges("Pod", name, change, FIREMAN, sub).code == 200


def test_pods_of_models_see_the_node_cache_and_none_may_write_it(gate: Gate) -> None:
    written = {"name": "cache", "persistentVolumeClaim": {"claimName": "sovereign-cache", "readOnly": False}}
    for who in (KUBERAY, JOB_CONTROLLER, OPERATOR):
        assert gate.tries(a_pod(labels=MODEL, volumes=[CACHE]), who).code == 201, who
        for volume in (WRITABLE, written):
            answer = gate.tries(a_pod(labels=MODEL, volumes=[volume]), who)
            assert answer.refused_by(PODS), answer.text
            assert "to be readOnly" in answer.text
        # One that is right does not excuse another.
        again = {**WRITABLE, "name": "again"}
        assert gate.tries(a_pod(labels=MODEL, volumes=[CACHE, again]), who).refused_by(PODS)
    assert gate.tries(a_pod(labels={"sovereign.dev/model": ""}, volumes=[CACHE])).refused_by(PODS)


def test_other_labels_of_a_sealed_pod_are_its_controllers(gate: Gate) -> None:
    name = gate.makes(a_pod("other-labels", MODEL), KUBERAY)
    assert gate.merges("Pod", name, {"metadata": {"labels": {"ray.io/serve": "true"}}}, KUBERAY).code == 200
    assert gate.merges("Pod", name, {"status": {"message": "hello"}}, SOMEBODY, "status").code == 200


def test_a_pod_cannot_join_a_model_by_a_label(gate: Gate) -> None:
    name = gate.makes(a_pod("joining"), SOMEBODY)
    assert gate.merges("Pod", name, {"metadata": {"labels": MODEL}}).refused_by(SET)


@pytest.mark.parametrize("sub", ["", "binding"])
@pytest.mark.parametrize("labels", [MODEL, *({key: value} for key, value in MODEL.items())], ids=str)
def test_a_pod_cannot_join_a_model_by_being_bound(gate: Gate, labels: dict[str, str], sub: str) -> None:
    name = gate.makes(a_pod(f"bound-{uuid.uuid4().hex[:6]}"), SOMEBODY)
    path = gate.path("Pod", gate.sealed, name) + "/binding" if sub else gate.path("Binding", gate.sealed)

    def bound(given: dict[str, str], who: str, keep: str = "?dryRun=All") -> Answer:
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "labels": given},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "nowhere"},
        }
        return gate.ask(who, "POST", path + keep, binding)

    for who in (SOMEBODY, KUBERAY, OPERATOR, FIREMAN):
        answer = bound(labels, who)
        assert answer.refused_by(SET), answer.text
        assert name in answer.text
    # Others are written over the pod's, which is why these may not be.
    assert bound({"topology.kubernetes.io/zone": "a"}, SOMEBODY, "").code == 201
    pod = gate.get("Pod", gate.sealed, name)
    assert pod["metadata"]["labels"]["topology.kubernetes.io/zone"] == "a"


def test_the_largest_pods_stay_within_the_budget_of_the_rules(gate: Gate) -> None:
    """The API server refuses what is too expensive to decide, and with failurePolicy Fail that is a no."""
    containers = [
        {
            "name": f"c{n}",
            "image": f"registry.example/llm/{'a' * 150}@{DIGEST}",
            "ports": [{"containerPort": port} for port in range(1, 41)],
            "env": [{"name": f"E{i}", "value": "x" * 200} for i in range(100)],
        }
        for n in range(60)
    ]
    claims = [{"claimName": f"sovereign-cache-{'a' * 180}-{n}"} for n in range(100)]
    volumes: list[Manifest] = [{"name": f"v{n}", "persistentVolumeClaim": c} for n, c in enumerate(claims)]
    volumes += [
        {"name": f"e{n}", "ephemeral": {"volumeClaimTemplate": {"spec": SCRATCH}}} for n in range(100)
    ]
    pod = a_pod(initContainers=containers[30:], volumes=volumes)
    pod["spec"]["containers"] = containers[:30]
    answer = gate.tries(pod)
    assert answer.code == 201, answer.text


def test_every_expression_passes_the_api_servers_type_check(gate: Gate) -> None:
    for name in POLICIES:
        assert not gate.type_warnings(name), name


@pytest.mark.parametrize(
    "golden", sorted((ROOT / "tests/golden/rayservice").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_pods_that_kuberay_makes_of_a_model_are_taken(gate: Gate, golden: Path) -> None:
    service = yaml.safe_load(golden.read_text())
    config = service["spec"]["rayClusterConfig"]
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        template = group["template"]
        for container in (*template["spec"].get("initContainers", []), *template["spec"]["containers"]):
            container["image"] = IMAGE
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]}}
        answer = gate.tries({**pod, "spec": template["spec"]}, KUBERAY)
        assert answer.code == 201, answer.text


def test_what_the_operator_makes_for_a_probe_is_taken(gate: Gate) -> None:
    from tests.unit.operator.builders import a_model, a_sealing_config

    model, config = a_model("m"), a_sealing_config()
    config = config.model_copy(update={"images": config.images.model_copy(update={"airgap": IMAGE})})
    for made in (
        probe.peer_pod(model, config),
        probe.peer_service(model),
        probe.prober_job(model, config, "r1"),
    ):
        made["metadata"].pop("ownerReferences", None)
        answer = gate.tries(made, OPERATOR)
        assert answer.code == 201, answer.text
        if made["kind"] == "Job":
            template = made["spec"]["template"]
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]}}
            answer = gate.tries({**pod, "spec": template["spec"]}, JOB_CONTROLLER)
            assert answer.code == 201, answer.text
