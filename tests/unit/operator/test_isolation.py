# SPDX-License-Identifier: Apache-2.0
"""What a proven leak does to pods that run, who lets them run again, and what a tightened policy restarts."""

from __future__ import annotations

from typing import Any

import pytest

from sovereign_operator import status
from sovereign_operator.api import (
    ANNOTATION_ALLOWED,
    ANNOTATION_CLUSTER,
    ANNOTATION_RENDERED,
    ANNOTATION_TIGHTENED,
)
from sovereign_operator.world import annotation
from tests.unit.operator.probed_worlds import ProbedUniverse, a_proven_universe
from tests.unit.operator.worlds import a_serving_universe

INTERVAL = 21600.0
LEAK = {"outside-tcp-443": "reached"}
NOT_ENFORCED = {"canary-udp": "reached"}
FORWARDS = {"outside-dns-name": "reached"}


def is_suspended(universe: ProbedUniverse) -> bool:
    return bool(universe.service()["spec"].get("suspend"))


def probed_again(universe: ProbedUniverse, **answers: Any) -> list[str]:
    """The next run once it is due; answers the reasons of the events."""
    before = status.recorded(universe.body)
    universe.probe(**answers)
    after = status.recorded(universe.body)
    return [one.reason for one in status.happenings(before, after, None, ())]


def a_leaking_universe(paths: dict[str, str], **spec: Any) -> ProbedUniverse:
    """A model that served, and whose way out was found once."""
    universe = a_proven_universe(**spec)
    universe.later(INTERVAL)
    universe.probe(prober=paths)
    return universe


@pytest.mark.parametrize(("paths", "reason"), [(LEAK, "LeakDetected"), (NOT_ENFORCED, "PolicyNotEnforced")])
def test_a_leak_stops_the_pods_once_a_second_pod_confirmed_it(paths: dict[str, str], reason: str) -> None:
    universe = a_leaking_universe(paths)
    assert universe.sealed() == ("False", reason)
    assert not universe.egress["isolated"] and not is_suspended(universe)
    told = probed_again(universe, prober=paths)  # at once
    assert set(told) >= {reason, "Isolated"}
    universe.settle()
    assert universe.egress["isolated"] and is_suspended(universe)
    assert universe.reason() == universe.reason("Stalled") == universe.reason("Serving") == "Isolated"
    assert "release-isolation" in universe.condition("Ready")["message"]
    assert universe.body["status"]["readyReplicas"] == 0


def test_a_probe_that_says_nothing_takes_no_leak_away() -> None:
    universe = a_leaking_universe(LEAK)
    universe.probe(prober="killed")
    assert universe.sealed() == ("False", "LeakDetected")
    assert universe.egress["unanswered"] == 1
    assert universe.jobs_in_flight() == [], "not again at once"
    universe.later(29)
    universe.settle()
    assert universe.jobs_in_flight() == []
    universe.later(1)
    universe.probe(prober="killed again")
    universe.later(60)
    universe.probe(prober=LEAK)
    universe.settle()
    assert universe.egress["isolated"] and is_suspended(universe)
    assert universe.egress["unanswered"] == 0


def test_a_leak_of_one_kind_confirms_one_of_the_other() -> None:
    universe = a_leaking_universe(LEAK)
    universe.probe(prober=NOT_ENFORCED)
    universe.settle()
    assert universe.egress["isolated"]


def test_a_leak_that_the_second_pod_does_not_find_stops_nothing() -> None:
    universe = a_leaking_universe(LEAK)
    universe.probe()
    universe.settle()
    assert not universe.egress["isolated"] and not is_suspended(universe)
    assert universe.reason() == "AllChecksPassed"


@pytest.mark.parametrize(
    ("paths", "spec"),
    [(LEAK, {"network": {"onLeak": "Report"}}), (LEAK, {"seal": "Report"}), (FORWARDS, {})],
)
def test_what_is_only_reported_stops_nothing(paths: dict[str, str], spec: dict[str, Any]) -> None:
    universe = a_leaking_universe(paths, **spec)
    universe.later(600)
    universe.probe(prober=paths)
    universe.settle()
    assert not universe.egress["isolated"] and not is_suspended(universe)
    assert universe.sealed()[0] == "False"


def test_a_model_that_never_ran_is_gated_and_not_isolated() -> None:
    universe = ProbedUniverse()
    universe.mirrored()
    for _ in range(2):
        universe.probe(prober=LEAK)
    universe.settle()
    assert not universe.egress["isolated"]
    assert not universe.of("RayService")
    assert universe.reason() == universe.reason("Stalled") == "LeakDetected"


def an_isolated_universe() -> ProbedUniverse:
    universe = a_leaking_universe(LEAK)
    universe.probe(prober=LEAK)
    universe.settle()
    universe.stop_cluster()
    universe.settle()
    assert is_suspended(universe)
    return universe


def test_an_isolation_outlives_the_leak_until_somebody_releases_it() -> None:
    universe = an_isolated_universe()
    universe.later(600)
    universe.probe()
    universe.settle()
    assert universe.sealed() == ("True", "Sealed")
    assert universe.reason() == "Isolated"
    assert is_suspended(universe)
    told = release(universe, "ticket-1")
    assert "IsolationReleased" in told
    assert universe.sealed() == ("Unknown", "Probing"), "it has to be proven anew"
    assert is_suspended(universe)
    universe.probe()
    universe.settle()
    assert not is_suspended(universe)
    universe.start_cluster("two")
    universe.settle()
    assert universe.reason() == "AllChecksPassed"


def release(universe: ProbedUniverse, value: str) -> list[str]:
    universe.body["metadata"]["annotations"] = {"sovereign.dev/release-isolation": value}
    before = status.recorded(universe.body)
    universe.step()
    return [one.reason for one in status.happenings(before, status.recorded(universe.body), None, ())]


def test_a_release_while_it_still_leaks_starts_nothing() -> None:
    universe = an_isolated_universe()
    release(universe, "too-early")
    universe.probe(prober=LEAK)
    universe.probe(prober=LEAK)
    universe.settle()
    assert is_suspended(universe)
    assert universe.reason() == "LeakDetected"


def test_an_old_value_of_the_annotation_releases_nothing() -> None:
    universe = a_proven_universe()
    universe.body["metadata"]["annotations"] = {"sovereign.dev/release-isolation": "ticket-0"}
    universe.later(INTERVAL)
    universe.probe(prober=LEAK)
    universe.probe(prober=LEAK)
    universe.settle()
    assert universe.egress["isolated"]
    assert universe.egress["released"] == "ticket-0"
    assert release(universe, "ticket-1")
    assert not universe.egress["isolated"]


def test_pods_are_stopped_even_where_nothing_can_be_rendered() -> None:
    universe = a_leaking_universe(LEAK)
    universe.change(serving={**universe.body["spec"]["serving"], "engineArgs": {"dtype": "[a"}})
    universe.probe(prober=LEAK)
    universe.settle()
    assert is_suspended(universe)


def test_pods_are_stopped_even_while_a_policy_is_missing() -> None:
    universe = a_leaking_universe(LEAK)
    universe.settle()
    universe.end_jobs(prober=LEAK)
    universe.step()
    universe.service()["spec"].pop("suspend", None)  # somebody starts it by hand
    for policy in universe.of("NetworkPolicy"):
        del universe.children["NetworkPolicy", policy["metadata"]["name"]]
    universe.step()
    assert is_suspended(universe)


def test_a_mirror_job_opens_an_exception_that_is_told_and_goes_with_it() -> None:
    universe = ProbedUniverse()
    universe.settle()
    assert "huggingface.co" in universe.egress["mirrorException"]
    before = status.recorded(universe.body)
    universe.end_job("", condition="Complete")
    universe.mirrored()
    universe.settle()
    assert universe.egress["mirrorException"] == ""
    told = status.happenings(before, status.recorded(universe.body), None, ())
    assert "EgressExceptionClosed" in [one.reason for one in told]
    opened = status.happenings(status.recorded({}), before, None, ())
    assert "EgressExceptionOpened" in [one.reason for one in opened]


# -- policies that allow less -----------------------------------------------------------------------------


CLIENTS: dict[str, Any] = {"clients": [{"namespace": "chat"}, {"namespace": "search"}]}


def test_pods_restart_once_when_a_policy_was_tightened() -> None:
    universe = a_serving_universe(network=CLIENTS)
    before = annotation(universe.service(), ANNOTATION_CLUSTER)
    universe.change(network={"clients": [{"namespace": "chat"}]})
    universe.settle()
    assert universe.service()["spec"]["suspend"] is True
    universe.stop_cluster()
    universe.settle()
    assert "suspend" not in universe.service()["spec"]
    universe.start_cluster("two")
    universe.settle()
    assert universe.reason() == "AllChecksPassed"
    after = universe.service()
    assert annotation(after, ANNOTATION_CLUSTER) != before
    head = after["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert head[ANNOTATION_TIGHTENED] == annotation(after, ANNOTATION_TIGHTENED) != ""
    universe.done.clear()
    universe.settle()
    assert universe.done == []


def test_pods_stay_when_a_policy_was_widened() -> None:
    universe = a_serving_universe()
    before = annotation(universe.service(), ANNOTATION_CLUSTER)
    universe.change(network=CLIENTS)
    universe.settle()
    assert "suspend" not in universe.service()["spec"]
    assert annotation(universe.service(), ANNOTATION_CLUSTER) == before
    assert universe.reason() == "AllChecksPassed"
    universe.change(network={})
    universe.settle()
    assert universe.service()["spec"]["suspend"] is True, "what was allowed in between is remembered"


def test_a_service_of_an_older_operator_is_marked_and_its_pods_stay() -> None:
    universe = a_serving_universe()
    marks = universe.service()["metadata"]["annotations"]
    before = marks[ANNOTATION_CLUSTER]
    del marks[ANNOTATION_ALLOWED]
    marks[ANNOTATION_RENDERED] = "older"
    universe.settle()
    assert annotation(universe.service(), ANNOTATION_ALLOWED)
    assert annotation(universe.service(), ANNOTATION_CLUSTER) == before
    assert "suspend" not in universe.service()["spec"]


# -- pods that hold themselves back -----------------------------------------------------------------------


def test_a_pod_that_found_the_canary_answering_says_so() -> None:
    universe = a_proven_universe()
    universe.stop_cluster()
    words = '{"reason": "PolicyNotEnforced", "message": "The canary answers."}'
    ended = {"exitCode": 3, "message": words}
    waiting = {"name": "sealed", "state": {"waiting": {}}, "lastState": {"terminated": ended}}
    universe.start_pod("one-0", phase="Pending", initContainerStatuses=[waiting])
    universe.settle()
    assert universe.reason("Serving") == "PodNotSealed"
    assert "one-0: PolicyNotEnforced: The canary answers." in universe.condition("Serving")["message"]
