# SPDX-License-Identifier: Apache-2.0
"""Fetches that fail, nodes that are lost, and pods that find something else than the record says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sovereign_operator.api import ANNOTATION_ATTEMPT, ANNOTATION_RETRY
from sovereign_operator.world import Create, Delete, annotation, name_of
from tests.unit.operator.builders import an_artifact
from tests.unit.operator.cached_worlds import (
    CORRUPT,
    DOWN,
    FULL,
    MISSING,
    REFUSED,
    CachedUniverse,
    a_distributed_universe,
    a_fetching_universe,
    nodes,
    upgrade,
)

# -- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["CacheFull", "DiskFailed"])
def test_a_full_or_broken_disk_has_another_node_taken_where_there_is_one(reason: str) -> None:
    universe = a_fetching_universe()
    (first,) = universe.fetching()
    universe.end_fetch(first, FULL | {"reason": reason})
    universe.settle()
    (second,) = universe.fetching()
    assert second != first
    universe.end_fetch(second)
    universe.settle()
    assert universe.chosen() == (second,)
    assert universe.jobs(first), "what failed there stays, so that it is not taken for better soon"


def test_what_is_no_nodes_own_fault_moves_nothing() -> None:
    universe = a_fetching_universe()
    (first,) = universe.fetching()
    universe.end_fetch(first, DOWN)
    universe.settle()
    assert universe.fetching() == []
    universe.later(31)
    universe.settle()
    assert universe.fetching() == [first]


def test_where_every_cache_is_full_the_condition_says_so_and_it_is_tried_again() -> None:
    universe = CachedUniverse(nodes=nodes("gpu-a"))
    universe.mirrored()
    universe.settle()
    universe.end_fetch("gpu-a", FULL)
    universe.settle()
    assert (
        universe.reason() == universe.reason("Distributed") == universe.reason("Reconciling") == "CacheFull"
    )
    assert "3 GB can be made free" in universe.condition("Distributed")["message"]
    assert universe.node_status("gpu-a") | {"message": ""} == {
        "name": "gpu-a",
        "state": "Failed",
        "reason": "CacheFull",
        "message": "",
        "bytesDone": 0,
        "bytesTotal": an_artifact().bytes,
        "attempt": 1,
        "nextAttempt": "2026-01-31T12:00:30Z",
    }
    universe.done.clear()
    universe.later(29)
    assert universe.settle().again == pytest.approx(1, abs=1.1)
    assert universe.done == []
    universe.later(2)
    universe.settle()
    deleted, created = universe.actions_of(Delete, Create)
    assert isinstance(deleted, Delete)
    assert deleted.foreground
    assert isinstance(created, Create)
    assert annotation(created.manifest, ANNOTATION_ATTEMPT) == "2"


def test_the_tries_are_counted_through_restarts_and_the_wait_grows() -> None:
    universe = CachedUniverse(nodes=nodes("gpu-a"))
    universe.mirrored()
    universe.settle()
    waits = []
    for attempt in range(1, 5):
        assert annotation(universe.job("gpu-a"), ANNOTATION_ATTEMPT) == str(attempt)
        universe.end_fetch("gpu-a", DOWN)
        universe.settle()
        began = universe.now
        universe.done.clear()
        while not universe.actions_of(Create):
            universe.later(5)
            universe.step()
        waits.append((universe.now - began).total_seconds())
    assert waits == pytest.approx([35, 65, 125, 245], abs=6)


@pytest.mark.parametrize(
    ("said", "reason", "companion"),
    [
        (DOWN, "RegistryUnavailable", "Reconciling"),
        (REFUSED, "DigestMismatch", "Stalled"),
        ("", "FetchFailed", "Reconciling"),
        ("{" * 5000, "FetchFailed", "Reconciling"),
        ("[" * 4096, "FetchFailed", "Reconciling"),
        (json.dumps({"reason": "no word", "message": "x"}), "FetchFailed", "Reconciling"),
    ],
)
def test_what_the_pod_said_last_is_the_reason(said: Any, reason: str, companion: str) -> None:
    universe = CachedUniverse(nodes=nodes("gpu-a"))
    universe.mirrored()
    universe.settle()
    universe.end_fetch("gpu-a", said)
    universe.settle()
    assert universe.reason() == universe.reason("Distributed") == universe.reason(companion) == reason
    assert not universe.of("RayService")


def test_the_annotation_tries_again_at_once_and_only_once() -> None:
    universe = CachedUniverse(nodes=nodes("gpu-a"))
    universe.mirrored()
    universe.settle()
    universe.end_fetch("gpu-a", DOWN)
    universe.settle()
    universe.body["metadata"]["annotations"] = {ANNOTATION_RETRY: "now"}
    universe.settle()
    assert universe.fetching() == ["gpu-a"]
    assert annotation(universe.job("gpu-a"), ANNOTATION_ATTEMPT) == "1"
    universe.end_fetch("gpu-a", DOWN)
    universe.done.clear()
    universe.settle()
    assert universe.done == []


def test_a_pod_that_cannot_start_says_why_and_one_that_nobody_may_make_says_what_is_missing() -> None:
    universe = CachedUniverse(nodes=nodes("gpu-a"))
    universe.mirrored()
    universe.settle()
    universe.run_fetch("gpu-a")
    waiting = {"reason": "ErrImagePull", "message": "no such image"}
    universe.fetch_pods[0]["status"] = {
        "phase": "Pending",
        "containerStatuses": [{"state": {"waiting": waiting}}],
    }
    universe.settle()
    assert "ErrImagePull: no such image" in universe.condition("Distributed")["message"]
    universe.fetch_pods[0]["status"] = {
        "phase": "Pending",
        "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}],
        "conditions": [{"type": "PodReadyToStartContainers", "status": "False"}],
    }
    universe.settle()
    said = universe.condition("Distributed")["message"]
    assert f"the events of pod {universe.fetch_pods[0]['metadata']['name']} say why" in said
    universe.fetch_pods = []
    universe.settle()
    assert "hostPath" not in universe.condition("Distributed")["message"]
    universe.later(11)
    universe.settle()
    assert "allow hostPath volumes" in universe.condition("Distributed")["message"]


def test_a_job_that_somebody_deleted_is_made_again_and_what_serves_stays_ready() -> None:
    universe = a_distributed_universe()
    (chosen,) = universe.chosen()
    del universe.children["Job", name_of(universe.job(chosen))]
    universe.settle()
    assert universe.fetching() == [chosen]
    assert universe.reason() == "AllChecksPassed", "its pods hold the weights"
    universe.end_fetch(chosen)
    universe.settle()
    assert universe.reason() == "AllChecksPassed"


# -- nodes that are lost ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [True, False])
def test_a_node_that_is_lost_while_it_fetches_is_replaced(gone: bool) -> None:
    universe = a_fetching_universe()
    (first,) = universe.fetching()
    universe.run_fetch(first, 5, 10)
    universe.settle()
    universe.lose(first, gone)
    decision = universe.step()
    assert universe.reason("Distributed") == "NodeLost"
    assert first in universe.condition("Distributed")["message"]
    assert decision.plan is not None
    assert [each.reason for each in decision.plan.told] == ["NodeLost"]
    universe.settle()
    (second,) = universe.fetching()
    assert second != first
    assert universe.jobs(first) == []
    universe.end_fetch(second)
    universe.settle()
    assert universe.chosen() == (second,)


def test_a_job_that_goes_slowly_with_its_node_keeps_nobody_waiting() -> None:
    universe = a_fetching_universe()
    (first,) = universe.fetching()
    universe.lose(first, gone=False)
    universe.job(first)["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    universe.settle()
    second = next(node for node in universe.fetching() if node != first)
    assert universe.reason("Distributed") == "NodeLost"
    universe.end_fetch(second)
    universe.settle()
    assert universe.condition("Distributed")["status"] == "True"


def test_a_record_goes_with_its_node_and_not_with_its_kubelet() -> None:
    universe = a_distributed_universe()
    (chosen,) = universe.chosen()
    universe.lose(chosen, gone=False)
    universe.settle()
    assert universe.jobs(chosen)
    assert universe.reason("Distributed") == "NodeLost"
    universe.lose(chosen)
    universe.settle()
    assert universe.jobs(chosen) == [], "a machine of that name that comes later has nothing"


def test_a_node_that_comes_back_is_fetched_to_again() -> None:
    universe = CachedUniverse(nodes=nodes("gpu-a"))
    universe.mirrored()
    universe.settle()
    there = universe.nodes
    universe.lose("gpu-a")
    universe.settle()
    assert universe.jobs() == []
    assert universe.reason() == "NoMatchingNodes"
    universe.nodes = there
    universe.settle()
    assert universe.fetching() == ["gpu-a"]


# -- pods that find something else than the record says ---------------------------------------------------


@pytest.mark.parametrize(("said", "verify"), [(MISSING, "changed"), (CORRUPT, "always")])
def test_a_pod_that_does_not_find_its_weights_has_them_fetched_again(said: Any, verify: str) -> None:
    universe = a_distributed_universe("gpu-a")
    universe.later(7200)
    universe.complain("one-0", said)
    universe.step()
    assert universe.reason("Distributed") == said["reason"]
    assert said["message"] in universe.condition("Distributed")["message"]
    assert not universe.condition("Stalled"), "it is being repaired"
    universe.settle()
    assert universe.fetching() == ["gpu-a"]
    arguments = universe.job("gpu-a")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--verify") + 1] == verify
    universe.later(60)
    universe.end_fetch("gpu-a")
    universe.settle()
    assert universe.condition("Distributed")["status"] == "True", "what the pod said is older"
    assert universe.fetching() == []


def test_who_holds_damaged_weights_does_not_speak_against_who_found_them_damaged() -> None:
    universe = a_distributed_universe("gpu-a", serving={"replicas": 2, "parallelism": {"tensor": 4}})
    universe.later(7200)
    universe.complain("one-1", CORRUPT)
    universe.step()
    assert universe.reason() == "CacheCorrupt"
    universe.settle()
    assert universe.fetching() == ["gpu-a"]
    assert universe.condition("Distributed")["status"] == "False"
    universe.later(60)
    universe.end_fetch("gpu-a")
    universe.settle()
    assert universe.condition("Distributed")["status"] == "True"


def test_repairs_that_do_not_help_have_their_backoff() -> None:
    universe = a_distributed_universe("gpu-a")
    began = universe.now
    repairs = []
    while (universe.now - began).total_seconds() < 3600:
        universe.later(20)
        universe.complain("one-0", CORRUPT)
        universe.step()
        universe.step()
        if universe.fetching():
            repairs.append((universe.now - began).total_seconds())
            universe.end_fetch("gpu-a")
    assert 4 <= len(repairs) <= 8, repairs
    assert repairs[-1] - repairs[-2] > 400


@pytest.mark.parametrize(
    ("sound_for", "attempt"),
    [
        pytest.param(1801, "10", id="the-slowest-repairs-are-still-counted"),
        pytest.param(3601, "1", id="what-was-right-for-long-is-repaired-at-once"),
    ],
)
def test_how_long_a_repair_is_counted(sound_for: int, attempt: str) -> None:
    universe = a_distributed_universe("gpu-a")
    universe.job("gpu-a")["metadata"]["annotations"][ANNOTATION_ATTEMPT] = "9"
    universe.later(sound_for)
    universe.complain("one-0", CORRUPT)
    universe.settle()
    assert annotation(universe.job("gpu-a"), ANNOTATION_ATTEMPT) == attempt


def test_the_tries_of_what_is_still_served_are_counted_during_an_upgrade() -> None:
    universe = a_distributed_universe()
    (chosen,) = universe.chosen()
    upgrade(universe)
    elsewhere = next(node.name for node in universe.nodes if node.name != chosen)
    universe.land_another("one-0", elsewhere)
    universe.settle()
    for attempt in range(1, 4):
        assert annotation(universe.job(elsewhere), ANNOTATION_ATTEMPT) == str(attempt)
        universe.end_fetch(elsewhere, DOWN)
        universe.settle()
        universe.later(300)
        universe.settle()


def test_of_two_artifacts_on_one_node_the_larger_count_of_tries_holds() -> None:
    universe = a_distributed_universe("gpu-a")
    upgrade(universe)
    for job in universe.jobs("gpu-a"):
        del universe.children["Job", name_of(job)]
    universe.complain("one-0", MISSING)
    entry = {"name": "gpu-a", "state": "Failed", "reason": "RegistryUnavailable", "message": ""}
    universe.body["status"]["delivery"]["nodes"] = [entry | {"attempt": 2}, entry | {"attempt": 7}]
    universe.settle()
    tries = [annotation(job, ANNOTATION_ATTEMPT) for job in universe.jobs("gpu-a")]
    assert tries == ["8", "8"], "status does not say which is which"


def test_a_pod_that_waits_longer_than_the_fetch_takes_starts_no_second_one() -> None:
    universe = a_distributed_universe()
    (chosen,) = universe.chosen()
    elsewhere = next(node.name for node in universe.nodes if node.name != chosen)
    universe.land_another("one-0", elsewhere)
    universe.settle()
    universe.later(120)
    universe.complain("one-0", MISSING)
    universe.settle()
    universe.later(300)
    universe.end_fetch(elsewhere)
    universe.done.clear()
    universe.settle()
    assert universe.done == []
    assert universe.condition("Distributed")["status"] == "True"


def test_a_pod_that_holds_its_weights_now_does_not_fail() -> None:
    universe = a_distributed_universe()
    universe.complain("one-0", MISSING)
    universe.serving("one", ready="False")
    universe.settle()
    assert universe.reason("Serving") == "DeliveryFailed"
    assert "one-0: CacheMissing: Nothing is there." in universe.condition("Serving")["message"]
    universe.hold("one-0")
    universe.settle()
    assert universe.reason("Serving") != "DeliveryFailed"
