# SPDX-License-Identifier: Apache-2.0
"""The peer of a probe: there before anything is tried, replaced when it is lost, gone with the last pod."""

from __future__ import annotations

import pytest

from sovereign_operator.world import name_of
from tests.unit.operator.probed_worlds import ProbedUniverse, a_proven_universe


def test_a_peer_that_cannot_start_is_told_and_nothing_is_tried() -> None:
    universe = ProbedUniverse()
    universe.settle()
    (pod,) = universe.of("Pod", only=("peer",))
    waiting = {"reason": "ErrImagePull", "message": "not found"}
    pod["status"] = {"phase": "Pending", "containerStatuses": [{"state": {"waiting": waiting}}]}
    universe.settle()
    assert universe.sealed() == ("Unknown", "ProbeInconclusive")
    assert "ErrImagePull" in universe.condition("EgressSealed")["message"]
    assert not universe.jobs_in_flight()


@pytest.mark.parametrize("status", [{"phase": "Failed"}, {"phase": "Succeeded"}])
def test_a_peer_that_ended_is_replaced(status: dict[str, str]) -> None:
    universe = a_proven_universe()
    (pod,) = universe.of("Pod", only=("peer",))
    pod["status"] = status
    universe.settle()
    (pod,) = universe.of("Pod", only=("peer",))
    assert "status" not in pod


def test_a_peer_that_is_lost_with_its_node_is_replaced_under_another_name() -> None:
    universe = a_proven_universe()
    (pod,) = universe.of("Pod", only=("peer",))
    pod["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    universe.step()
    assert [name_of(one) for one in universe.of("Pod", only=("peer",))] == ["mixtral-peer", "mixtral-peer-2"]
    assert universe.decision().actions == ()


def test_pods_of_the_probe_do_not_count_as_the_models() -> None:
    universe = a_proven_universe()
    universe.change(suspend=True)
    universe.settle()
    universe.stop_cluster()
    universe.settle()
    assert universe.reason() == "Suspended"
    assert not universe.of("Pod", only=("peer",)), "a suspended model runs no pod"
    assert not universe.condition("Reconciling")
    universe.change(suspend=False)
    universe.settle()
    assert universe.of("Pod", only=("peer",))


def test_a_drifted_service_of_the_peer_is_put_back() -> None:
    universe = a_proven_universe()
    universe.of("Service")[0]["spec"]["selector"] = {"app": "other"}
    universe.settle()
    assert universe.of("Service")[0]["spec"]["selector"]["sovereign.dev/component"] == "peer"


def test_services_of_others_are_never_taken_for_the_peers() -> None:
    universe = a_proven_universe()
    foreign = {**universe.of("Service")[0], "metadata": {"name": "mixtral-serve-svc", "uid": "other"}}
    universe.children["Service", "mixtral-serve-svc"] = foreign
    universe.change(suspend=True)
    universe.settle()
    assert universe.children["Service", "mixtral-serve-svc"] == foreign
