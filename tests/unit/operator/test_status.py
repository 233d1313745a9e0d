# SPDX-License-Identifier: Apache-2.0
"""Status as one value, what is told about its changes, and what serving looks like from the outside."""

from __future__ import annotations

from typing import Any

import pytest

from sovereign_operator import status
from sovereign_operator.events import event
from sovereign_operator.plan import Plan
from sovereign_operator.world import condition_of, name_of
from tests.unit.operator.builders import COMMIT, DIGEST, a_node
from tests.unit.operator.worlds import START, Universe, a_body, a_serving_universe


def told(universe: Universe, before: dict[str, Any]) -> list[str]:
    old = status.recorded({"status": before})
    new = status.recorded(universe.body)
    return [one.reason for one in status.happenings(old, new, None, ())]


def test_a_served_model_says_everything_that_people_ask() -> None:
    said = a_serving_universe().body["status"]
    assert said["model"] == f"mistralai/Mixtral-8x7B-Instruct-v0.1@{COMMIT[:7]}"
    assert said["artifact"]["digest"] == said["servingArtifact"] == DIGEST
    assert said["artifact"]["files"] == 24
    assert said["endpoint"] == "http://mixtral-serve-svc.models.svc:8000/v1"
    assert said["selector"] == "sovereign.dev/model=mixtral"
    assert (said["replicas"], said["readyReplicas"]) == (1, 1)
    assert said["placement"]["tensor"] == 2
    assert said["egress"]["policyHash"]
    assert "mirror" not in said
    assert said["observedGeneration"] == 1


def test_an_artifact_source_is_named_by_its_digest() -> None:
    source = {"artifact": {"reference": f"models/org/tiny@{DIGEST}"}}
    universe = Universe(body=a_body(source=source))
    universe.mirrored()
    universe.settle()
    assert universe.body["status"]["model"] == f"org/tiny@{DIGEST[7:14]}"


def test_the_same_situation_is_the_same_status_later() -> None:
    universe = a_serving_universe()
    before = universe.body["status"]
    universe.later(3600)
    universe.step()
    assert universe.body["status"] == before
    assert not status.differs(universe.body, status.recorded(universe.body))


def test_a_status_that_nobody_can_read_counts_as_none() -> None:
    assert status.recorded({"status": {"conditions": "yes"}}).conditions == []


@pytest.mark.parametrize(
    ("app", "deployment", "ready", "reason"),
    [
        ("RUNNING", "HEALTHY", "True", "ReplicasReady"),
        ("RUNNING", "UPDATING", "True", "ReplicasMissing"),
        ("RUNNING", "UNHEALTHY", "True", "ReplicasMissing"),
        ("DEPLOYING", "UPDATING", "True", "ReplicasMissing"),
        ("RUNNING", "HEALTHY", "False", "ReplicasMissing"),
        ("DEPLOY_FAILED", "UNHEALTHY", "True", "ApplicationFailed"),
        ("UNHEALTHY", "UNHEALTHY", "True", "ApplicationFailed"),
    ],
)
def test_readiness_counts_serve_deployments(app: str, deployment: str, ready: str, reason: str) -> None:
    universe = a_serving_universe()
    universe.serving("one", app, deployment, ready)
    universe.settle()
    assert universe.reason("Serving") == reason
    assert universe.body["status"]["readyReplicas"] == (1 if reason == "ReplicasReady" else 0)


def test_a_model_that_never_answered_is_starting_and_not_missing() -> None:
    universe = Universe()
    universe.mirrored()
    universe.settle()
    universe.start_cluster()
    universe.serving("one", "DEPLOYING")
    universe.settle()
    assert universe.reason() == "Starting"


RAYS_WORDS = """The deployment failed to start 3 times in a row. See controller logs for details. Error:
\x1b[36mray::ServeReplica.initialize()\x1b[39m (pid=588, ip=10.0.0.1)
  File "/opt/replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "/opt/sovereign_serving/offline.py", line 3, in require
    raise NotOffline("...")
sovereign_serving.offline.NotOffline: HF_HUB_OFFLINE is not set.

The above exception was the direct cause of the following exception:

RuntimeError: and so on
"""


def test_an_application_that_fails_before_it_ever_served_is_quoted_without_its_stack() -> None:
    universe = Universe()
    universe.mirrored()
    universe.settle()
    universe.start_cluster()
    universe.serving("one", "DEPLOY_FAILED", "DEPLOY_FAILED", ready="False")
    live = universe.service()["status"]
    live["pendingServiceStatus"] = live.pop("activeServiceStatus")
    app = live["pendingServiceStatus"]["applicationStatuses"][name_of(universe.body)]
    app["message"] = "Failed to update the deployments ['LLM']."
    app["serveDeploymentStatuses"]["LLM"]["message"] = RAYS_WORDS
    universe.settle()
    assert universe.reason() == "ApplicationFailed"
    said = universe.condition("Serving")["message"]
    assert said == "LLM: sovereign_serving.offline.NotOffline: HF_HUB_OFFLINE is not set."


def test_a_worker_pod_that_is_gone_is_a_loss_before_serve_notices() -> None:
    universe = a_serving_universe()
    gone = next(key for key in universe.children if key[0] == "Pod")
    del universe.children[gone]
    universe.settle()
    assert universe.reason() == universe.reason("Serving") == "ReplicasMissing"
    universe.start_pod(gone[1])
    universe.settle()
    assert universe.reason() == "AllChecksPassed"


def test_a_worker_that_runs_and_does_not_answer_is_a_loss_although_serve_calls_it_healthy() -> None:
    universe = a_serving_universe()
    pod = next(child for key, child in universe.children.items() if key[0] == "Pod")
    pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}
    universe.settle()
    assert universe.reason() == universe.reason("Serving") == "ReplicasMissing"


def test_of_a_rank_that_spans_pods_only_the_one_with_its_replica_has_a_proxy() -> None:
    parallelism = {"tensor": 8, "pipeline": 2}
    universe = Universe(body=a_body(serving={"parallelism": parallelism}))
    universe.nodes = (a_node("a"), a_node("b"))
    universe.mirrored()
    universe.settle()
    universe.start_cluster()
    universe.start_pod("one-1", conditions=[{"type": "Ready", "status": "False"}])
    universe.settle()
    assert universe.reason() == "AllChecksPassed"


def test_a_cluster_that_carries_another_rendering_is_not_ready() -> None:
    universe = a_serving_universe(upgrade={"strategy": "newCluster"})
    marks = universe.of("RayCluster")[0]["metadata"]["annotations"]
    marks["sovereign.dev/cluster"] = "another"
    universe.settle()
    assert universe.reason() == "Upgrading"


def test_kuberay_has_to_have_looked_at_the_last_change() -> None:
    universe = a_serving_universe()
    universe.service()["metadata"]["generation"] += 1
    universe.settle()
    assert universe.reason() == "Upgrading"


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        (
            {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient gpu"}
            ]},
            "Unschedulable", "Insufficient gpu",
        ),
        (
            {"phase": "Pending", "containerStatuses": [
                {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
            ]},
            "ImagePullFailed", "no such image",
        ),
        (
            {"phase": "Pending", "initContainerStatuses": [
                {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {
                    "exitCode": 3, "message": '{"reason": "DigestMismatch", "message": "a, not b"}'
                }}}
            ]},
            "DeliveryFailed", "DigestMismatch: a, not b",
        ),
        (
            {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [
                {"name": "ray-worker", "restartCount": 4,
                 "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
            ]},
            "ContainerCrashing", "ray-worker has ended 4 times, the last time with exit code 137 (OOMKilled)",
        ),
    ],
)  # fmt: skip
def test_a_pod_that_says_why_it_does_not_run_is_quoted(
    fields: dict[str, Any], reason: str, words: str
) -> None:
    universe = a_serving_universe()
    universe.start_pod("one-0", **fields)
    universe.settle()
    assert universe.reason() == reason
    assert words in universe.condition("Serving")["message"]


def test_what_happened_is_told_once() -> None:
    universe = Universe()
    universe.mirrored()
    universe.step()
    before = universe.body["status"]
    universe.settle()
    universe.start_cluster()
    universe.settle()
    assert told(universe, before) == ["Mirrored", "Placed", "Ready"]
    assert told(universe, universe.body["status"]) == []


def test_a_loss_and_a_stall_are_warnings() -> None:
    universe = a_serving_universe()
    before = universe.body["status"]
    universe.change(serving={**universe.body["spec"]["serving"], "image": "registry.example/a:latest"})
    universe.settle()
    old, new = status.recorded({"status": before}), status.recorded(universe.body)
    found = {one.reason: one.kind for one in status.happenings(old, new, None, ("NetworkPolicy a",))}
    assert found == {"ChildRestored": "Warning", "NotReady": "Warning", "ImageNotPinned": "Warning"}


def test_an_upgrade_tells_its_start_and_its_end() -> None:
    universe = a_serving_universe()
    before = universe.body["status"]
    universe.change(serving={**universe.body["spec"]["serving"], "replicas": 2})
    plan: Plan = universe.planned()
    assert plan.upgrade_starts
    new = status.recorded({"status": before | {"servingArtifact": "sha256:new"}})
    reasons = [one.reason for one in status.happenings(status.recorded({"status": before}), new, plan, ())]
    assert reasons == ["UpgradeStarted", "Upgraded"]


def test_the_same_words_about_the_same_thing_are_the_same_event() -> None:
    universe = a_serving_universe()
    happened = status.happenings(status.recorded({}), status.recorded(universe.body), None, ())
    names = {event(universe.body, one, START)["metadata"]["name"] for one in happened}
    again = {event(universe.body, one, universe.now)["metadata"]["name"] for one in happened}
    assert names == again
    assert len(names) == len(happened)
    assert all(len(name) < 253 for name in names)


def test_a_condition_of_any_object_is_found_or_empty() -> None:
    assert (
        condition_of({"status": {"conditions": [{"type": "A", "status": "True"}]}}, "A")["status"] == "True"
    )
    assert condition_of({}, "A") == {}
