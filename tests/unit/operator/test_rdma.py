# SPDX-License-Identifier: Apache-2.0
"""RDMA: what the workers get and nobody else does, and what is said about it beside the seal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sovereign_operator import rdma, reasons
from sovereign_operator.api import EgressStatus, SovereignModel
from sovereign_operator.desired.probe import control_job, peer_pod, prober_job
from sovereign_operator.desired.ray_pod import head_template, worker_template
from sovereign_operator.desired.sandbox import restricted
from sovereign_operator.placement import plan
from sovereign_operator.values import Manifest, Placement
from sovereign_operator.world import Stage
from tests.unit.operator.builders import (
    RDMA_RESOURCE,
    a_config,
    a_model,
    a_node,
    a_sealing_config,
    an_artifact,
    the_facts,
    with_rdma,
)
from tests.unit.operator.probed_worlds import ProbedUniverse, a_proven_universe
from tests.unit.operator.worlds import a_body

WISH = {"resource": RDMA_RESOURCE}
SEALED = Stage("True", reasons.SEALED, "9 paths denied, 0 unprovable.")
WORDS = (
    f"RdmaNotCovered: no NetworkPolicy sees the traffic of {RDMA_RESOURCE}, and the probe says "
    "nothing about it."
)


def worker_of(model: SovereignModel) -> Manifest:
    placement = plan(model.spec, the_facts(), [a_node()], a_config())
    assert isinstance(placement, Placement), placement
    return worker_template(model, an_artifact(), placement, a_sealing_config())


def a_universe(**wish: object) -> ProbedUniverse:
    """A model with these devices that serves behind a proven seal."""
    return a_proven_universe(serving={"image": a_model().spec.serving.image, "rdma": WISH | wish})


def test_the_ray_container_of_a_worker_may_lock_memory_and_nothing_else_more() -> None:
    before, after = worker_of(a_model()), worker_of(with_rdma(a_model()))
    (ray,) = after["spec"]["containers"]
    assert ray["securityContext"] == restricted() | {"capabilities": {"add": ["IPC_LOCK"], "drop": ["ALL"]}}
    (usual,) = before["spec"]["containers"]
    assert ray | {"securityContext": usual["securityContext"], "resources": usual["resources"]} == usual
    assert after["spec"] | {"containers": [usual]} == before["spec"]


def test_a_worker_takes_its_devices_beside_its_accelerators() -> None:
    (usual,) = worker_of(a_model())["spec"]["containers"]
    (ray,) = worker_of(with_rdma(a_model(), per_worker=8))["spec"]["containers"]
    assert ray["resources"]["limits"] == usual["resources"]["limits"] | {RDMA_RESOURCE: "8"}
    assert ray["resources"]["requests"] == usual["resources"]["requests"]


def test_head_prober_peer_and_control_are_what_they_are_without_rdma() -> None:
    config = a_sealing_config()
    one, other = a_model(), with_rdma(a_model())
    placement = plan(one.spec, the_facts(), [a_node()], config)
    assert isinstance(placement, Placement)
    heads = [head_template(each, an_artifact(), placement, config) for each in (one, other)]
    assert heads[0] == heads[1]
    assert peer_pod(one, config) == peer_pod(other, config)
    assert prober_job(one, config, "0" * 16) == prober_job(other, config, "0" * 16)
    assert control_job(one, config, "0" * 16) == control_job(other, config, "0" * 16)


def test_a_proof_about_packets_stays_one_and_says_what_it_is_not_about() -> None:
    universe = a_universe()
    sealed = universe.condition("EgressSealed")
    assert (sealed["status"], sealed["reason"]) == ("True", "Sealed")
    assert sealed["message"].endswith(WORDS)
    assert "NodeReachable" in sealed["message"]
    assert universe.egress["findings"] == ["own-node", "rdma"]
    assert universe.egress["verdict"] == "Sealed"


@pytest.mark.parametrize("path", ["outside-tcp-443", "canary-tcp", "outside-dns-name"])
def test_a_breach_keeps_its_verdict_and_its_paths(path: str) -> None:
    serving = {"image": a_model().spec.serving.image, "rdma": WISH}
    universe = ProbedUniverse(body=a_body(serving=serving))
    universe.mirrored()
    universe.probe(prober={path: "reached"})
    found = universe.condition("EgressSealed")
    assert found["status"] == "False" and path in found["message"] and found["message"].endswith(WORDS)
    assert universe.egress["findings"] == [path, "rdma"]


def test_the_finding_goes_with_the_devices_and_the_proof_stays() -> None:
    universe = a_universe()
    proven = universe.egress["run"]
    del universe.body["spec"]["serving"]["rdma"]
    universe.body["metadata"]["generation"] += 1
    universe.step()
    assert universe.egress["findings"] == ["own-node"]
    assert "Rdma" not in universe.condition("EgressSealed")["message"]
    assert universe.egress["run"] == proven


def test_the_same_situation_is_the_same_status_again() -> None:
    universe = a_universe()
    before = universe.body["status"]
    universe.step()
    assert universe.body["status"] == before


def test_without_devices_nothing_is_said() -> None:
    assert rdma.told(SEALED, a_model()) == SEALED
    egress = EgressStatus(findings=["own-node"])
    assert rdma.listed(egress, a_model()) == egress


def test_a_long_message_is_cut_and_not_what_is_outside_of_the_seal() -> None:
    told = rdma.told(replace(SEALED, message="x" * 5000), with_rdma(a_model()))
    assert len(told.message) == 1024 and told.message.endswith(WORDS)


def test_the_finding_stands_after_as_many_others_as_there_may_be() -> None:
    egress = EgressStatus(findings=[f"path-{number}" for number in range(48)])
    listed = rdma.listed(egress, with_rdma(a_model())).findings
    assert len(listed) == 48 and listed[-1] == "rdma"


def test_no_target_of_a_probe_has_the_name_of_the_finding() -> None:
    target = {"name": "rdma", "protocol": "TCP", "address": "192.0.2.10", "port": 443}
    with pytest.raises(ValueError, match="another name, found rdma"):
        a_sealing_config(targets=(target,))
