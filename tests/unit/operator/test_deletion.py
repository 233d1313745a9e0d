# SPDX-License-Identifier: Apache-2.0
"""Deletion and the sweep: the order, the wait, and what stays."""

from __future__ import annotations

import pytest

from sovereign_operator.world import Apply, Create, Delete, Release, Reseal, name_of
from tests.unit.operator.probed_worlds import a_proven_universe
from tests.unit.operator.worlds import Universe, a_serving_universe


def words(universe: Universe) -> list[str]:
    said = {Delete: "delete", Release: "release"}
    return [
        f"{said[type(action)]} {action.manifest['kind']}"
        for action in universe.done
        if isinstance(action, Delete | Release)
    ]


def test_the_ray_service_goes_first_and_the_policies_stay_with_the_pods() -> None:
    universe = a_serving_universe()
    universe.ask_to_delete()
    universe.step()
    assert words(universe) == ["delete RayService"]
    universe.step()
    assert words(universe) == ["delete RayService"]
    assert universe.reason() == "Deleting"
    assert "pods" in universe.condition("Ready")["message"]


@pytest.mark.parametrize("kind", ["Pod", "RayCluster", "RayService", "Job"])
def test_whatever_is_left_keeps_the_policies(kind: str) -> None:
    universe = a_serving_universe()
    left = {
        "kind": kind,
        "metadata": {"name": "left", "uid": "u", "deletionTimestamp": "2026-01-31T12:00:00Z"},
    }
    policies = {key: one for key, one in universe.children.items() if key[0] == "NetworkPolicy"}
    universe.children = policies | {(kind, "left"): left}
    universe.ask_to_delete()
    decision = universe.step()
    assert decision.actions == ()
    assert decision.again is not None
    del universe.children[kind, "left"]
    universe.step()
    assert universe.gone
    assert universe.children == {}


def test_policies_are_deleted_and_released_and_the_model_last() -> None:
    universe = a_serving_universe()
    universe.children = {k: one for k, one in universe.children.items() if k[0] == "NetworkPolicy"}
    universe.ask_to_delete()
    count = len(universe.children)
    universe.step()
    assert words(universe) == ["delete NetworkPolicy", "release NetworkPolicy"] * count + [
        "release SovereignModel"
    ]


def test_policies_that_the_namespace_controller_deleted_already_are_only_released() -> None:
    universe = a_serving_universe()
    universe.children = {k: one for k, one in universe.children.items() if k[0] == "NetworkPolicy"}
    for policy in universe.children.values():
        policy["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    universe.ask_to_delete()
    universe.step()
    assert set(words(universe)) == {"release NetworkPolicy", "release SovereignModel"}


def test_a_running_mirror_is_ended_first() -> None:
    universe = Universe()
    universe.settle()
    assert universe.of("Job")
    universe.done.clear()
    universe.ask_to_delete()
    universe.step()
    assert words(universe) == ["delete Job"]
    universe.step()
    assert universe.gone


def test_after_the_time_is_up_the_model_goes_and_the_policies_stay() -> None:
    universe = a_serving_universe()
    universe.ask_to_delete()
    universe.step()
    universe.later(universe.config.deletion_seconds - 1)
    assert universe.step().happening is None
    universe.later(1)
    decision = universe.step()
    assert decision.happening is not None
    assert (decision.happening.reason, decision.happening.kind) == ("PodsRemain", "Warning")
    assert universe.gone
    assert universe.of("NetworkPolicy")


def test_the_sweep_takes_policies_only_after_the_last_pod() -> None:
    universe = a_serving_universe()
    universe.gone = True
    decision = universe.step()
    assert decision.actions == ()
    assert decision.again is not None
    universe.children = {k: one for k, one in universe.children.items() if k[0] == "NetworkPolicy"}
    universe.step()
    assert universe.children == {}


def test_the_sweep_of_nothing_asks_for_no_second_look() -> None:
    universe = Universe(gone=True)
    decision = universe.step()
    assert (decision.actions, decision.again) == ((), None)


def test_nothing_is_created_or_applied_once_the_model_is_going() -> None:
    universe = a_serving_universe()
    policy = universe.of("NetworkPolicy")[0]
    del universe.children["NetworkPolicy", name_of(policy)]
    universe.ask_to_delete()
    universe.step()
    assert universe.actions_of(Apply, Create, Reseal) == []


def test_jobs_and_the_peer_of_a_probe_go_before_the_policies() -> None:
    universe = a_proven_universe()
    universe.later(21600)
    universe.settle()
    assert len(universe.jobs_in_flight()) == 2
    universe.ask_to_delete()
    universe.step()
    gone = [(one.manifest["kind"], name_of(one.manifest)) for one in universe.done if isinstance(one, Delete)]
    assert sorted(kind for kind, _ in gone[:-1]) == ["Job", "Job", "Job", "Job", "RayService"]
    assert gone[-1] == ("Pod", "mixtral-peer"), "last: in a namespace that goes too it may be refused"
    assert universe.of("NetworkPolicy")
    universe.stop_cluster()
    for pod in universe.of("Pod"):
        del universe.children["Pod", name_of(pod)]
    universe.step()
    assert not universe.of("NetworkPolicy")
    assert universe.gone
