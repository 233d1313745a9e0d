# SPDX-License-Identifier: Apache-2.0
"""Workers with RDMA before the real API server: which pod security takes them, and that the seal's own
admission policies do and still refuse what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dev.cluster import Cluster
from sovereign_operator.api import SovereignModel
from sovereign_operator.desired.probe import peer_pod
from sovereign_operator.desired.ray_pod import head_template, worker_template
from sovereign_operator.desired.rendered import contains
from sovereign_operator.placement import plan
from sovereign_operator.values import Manifest, Placement
from tests.controlplane.admission_site import IMAGE, KUBERAY, OPERATOR, Gate, a_pod, guarded
from tests.controlplane.api_server import eventually
from tests.unit.operator.builders import (
    RDMA_RESOURCE,
    a_model,
    a_node,
    a_sealing_config,
    an_artifact,
    the_facts,
    with_rdma,
)

pytestmark = pytest.mark.controlplane

CONFIG = a_sealing_config(images={"airgap": IMAGE})
ENFORCE = "pod-security.kubernetes.io/enforce"
CAPABLE = {"capabilities": {"add": ["IPC_LOCK"]}}


@pytest.fixture(scope="module")
def gate(control_plane: Cluster) -> Iterator[Gate]:
    with guarded(control_plane) as gate:
        yield gate


def a_model_with_rdma() -> SovereignModel:
    return with_rdma(a_model(serving={"image": IMAGE}), per_worker=8)


def pod_of(template: Manifest) -> Manifest:
    """The pod that KubeRay makes of a template."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **template["metadata"]}} | {
        "spec": template["spec"]
    }


def a_placement(model: SovereignModel) -> Placement:
    placement = plan(model.spec, the_facts(), [a_node()], CONFIG)
    assert isinstance(placement, Placement), placement
    return placement


def a_worker() -> Manifest:
    model = a_model_with_rdma()
    return pod_of(worker_template(model, an_artifact(), a_placement(model), CONFIG))


def without_the_capability(worker: Manifest) -> Manifest:
    (ray,) = worker["spec"]["containers"]
    del ray["securityContext"]["capabilities"]["add"]
    return worker


@contextmanager
def enforcing(gate: Gate, level: str) -> Iterator[None]:
    """The sealed namespace with this level of pod security, once the API server goes by it."""
    violated = f'violates PodSecurity \\"{level}:latest\\"'

    def decides() -> bool:
        answer = gate.tries(a_pod(container={"securityContext": CAPABLE}))
        return answer.code == 201 if level == "privileged" else violated in answer.text

    gate.patch("Namespace", None, gate.sealed, {"metadata": {"labels": {ENFORCE: level}}})
    try:
        eventually(decides, f"pod security is {level}", 30)
        yield
    finally:
        gate.patch("Namespace", None, gate.sealed, {"metadata": {"labels": {ENFORCE: None}}})


def test_privileged_pod_security_and_the_policies_of_the_seal_take_a_worker_with_rdma(gate: Gate) -> None:
    with enforcing(gate, "privileged"):
        answer = gate.tries(a_worker(), KUBERAY)
    assert answer.code == 201, answer.text


@pytest.mark.parametrize("level", ["restricted", "baseline"])
def test_other_pod_security_refuses_the_worker_for_this_capability_alone(gate: Gate, level: str) -> None:
    with enforcing(gate, level):
        answer = gate.tries(a_worker(), KUBERAY)
        plain = gate.tries(without_the_capability(a_worker()), KUBERAY)
    assert answer.code == 403
    assert 'container \\"ray-worker\\" must not include \\"IPC_LOCK\\"' in answer.text, answer.text
    assert plain.code == 201, plain.text


def test_head_and_peer_of_the_same_model_stay_restricted(gate: Gate) -> None:
    model = a_model_with_rdma()
    head = pod_of(head_template(model, an_artifact(), a_placement(model), CONFIG))
    peer = peer_pod(model, CONFIG)
    with enforcing(gate, "restricted"):
        answers = [gate.tries(head, KUBERAY), gate.tries(peer, OPERATOR)]
    assert [answer.code for answer in answers] == [201, 201], answers


def test_what_shares_with_its_node_is_refused_under_privileged_pod_security_too(gate: Gate) -> None:
    worker = a_worker()
    worker["spec"]["hostNetwork"] = True
    privileged = a_pod(container={"securityContext": {"privileged": True}})
    with enforcing(gate, "privileged"):
        for pod in (worker, privileged):
            assert gate.tries(pod, KUBERAY).refused_by("sovereign-sealed-pods")


def test_the_devices_come_back_as_they_were_rendered(gate: Gate) -> None:
    with enforcing(gate, "privileged"):
        answer = gate.tries(a_worker(), KUBERAY)
    (ray,) = json.loads(answer.text)["spec"]["containers"]
    assert contains(ray, a_worker()["spec"]["containers"][0])
    assert ray["resources"]["limits"][RDMA_RESOURCE] == ray["resources"]["requests"][RDMA_RESOURCE] == "8"
