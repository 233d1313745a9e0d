# SPDX-License-Identifier: Apache-2.0
"""Pods that never were: what a user reads when the API server refuses them to KubeRay."""

from __future__ import annotations

import pytest

from sovereign_operator.reasons import PODS_REFUSED
from tests.unit.operator.worlds import Universe, a_serving_universe

SAID = (
    'pods is forbidden: violates PodSecurity "restricted:latest": unrestricted capabilities (container '
    '"ray-worker" must not include "IPC_LOCK" in securityContext.capabilities.add)'
)


def a_starting_universe() -> Universe:
    """KubeRay has made a cluster, and none of its workers."""
    universe = Universe()
    universe.mirrored()
    universe.settle()
    universe.start_cluster()
    universe.serving("one", "DEPLOYING", ready="False")
    for key in [key for key in universe.children if key[0] == "Pod"]:
        del universe.children[key]
    return universe


def fail(universe: Universe, reason: str, status: str = "True") -> None:
    failure = {"type": "ReplicaFailure", "status": status, "reason": reason, "message": SAID}
    universe.children["RayCluster", "one"].setdefault("status", {})["conditions"] = [failure]


@pytest.mark.parametrize("reason", ["FailedCreateHeadPod", "FailedCreateWorkerPod"])
def test_the_words_of_the_api_server_are_passed_on(reason: str) -> None:
    universe = a_starting_universe()
    fail(universe, reason)
    universe.settle()
    assert universe.reason() == universe.reason("Serving") == PODS_REFUSED
    assert universe.condition("Serving")["message"] == f"one: {SAID}"


@pytest.mark.parametrize(
    ("reason", "status"), [("FailedDeleteWorkerPod", "True"), ("FailedCreateWorkerPod", "False")]
)
def test_a_pod_that_cannot_be_deleted_or_was_made_after_all_is_no_refusal(reason: str, status: str) -> None:
    universe = a_starting_universe()
    fail(universe, reason, status)
    universe.settle()
    assert universe.reason("Serving") == "Starting"


def test_what_a_pod_says_itself_comes_first() -> None:
    universe = a_starting_universe()
    fail(universe, "FailedCreateWorkerPod")
    universe.start_pod("one-0")
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    universe.children["Pod", "one-0"]["status"] = {
        "phase": "Pending",
        "containerStatuses": [{"name": "ray-worker", "state": {"waiting": waiting}}],
    }
    universe.settle()
    assert universe.reason("Serving") == "ImagePullFailed"


def test_a_model_that_answers_is_not_said_to_be_refused() -> None:
    universe = a_serving_universe()
    fail(universe, "FailedCreateWorkerPod")
    universe.settle()
    assert universe.reason() == "AllChecksPassed"
