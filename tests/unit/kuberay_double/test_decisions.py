# SPDX-License-Identifier: Apache-2.0
"""What the KubeRay stand-in decides and reports: new clusters, suspension, conditions, readiness."""

import copy
from typing import Any

import pytest

from dev.kuberay import names, suspension
from dev.kuberay.cluster_spec import (
    as_typed_client_writes,
    invalid,
    is_extended_cluster,
    is_same_cluster,
    needs_new_cluster,
)
from dev.kuberay.conditions import is_true, reason_of, set_condition
from dev.kuberay.controller import Backoff
from dev.kuberay.ray_cluster import cluster_status, free_indices, is_finished, replicas_of
from dev.kuberay.ray_service import write_conditions
from dev.kuberay.serve import application_status, are_running
from dev.kuberay.suspension import Step
from tests.unit.kuberay_double.objects import Manifest, a_cluster, a_group, a_service

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def edited(edit: Any) -> Manifest:
    service = a_service()
    edit(service["spec"], service["spec"]["rayClusterConfig"])
    return service


IGNORED = {
    "replicas": lambda spec, config: config["workerGroupSpecs"][0].update(replicas=5, maxReplicas=5),
    "tolerations": lambda spec, config: config["workerGroupSpecs"][0]["template"]["spec"].update(
        tolerations=[{"operator": "Exists"}]
    ),
    "head tolerations": lambda spec, config: config["headGroupSpec"]["template"]["spec"].update(
        tolerations=[{}]
    ),
    "serve config": lambda spec, config: spec.update(serveConfigV2="applications: [{}]"),
    "empty maps": lambda spec, config: config["workerGroupSpecs"][0].update(scaleStrategy={}),
}
NOTICED = {
    "image": lambda spec, config: config["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(
        image="b"
    ),
    "head image": lambda spec, config: config["headGroupSpec"]["template"]["spec"]["containers"][0].update(
        image="b"
    ),
    "hosts": lambda spec, config: config["workerGroupSpecs"][0].update(numOfHosts=2),
    "a group less": lambda spec, config: config["workerGroupSpecs"].clear(),
}


@pytest.mark.parametrize("edit", IGNORED.values(), ids=IGNORED.keys())
def test_changes_that_kuberay_mutes_make_no_new_cluster(edit: Any) -> None:
    assert is_same_cluster(edited(edit), a_cluster())
    assert not needs_new_cluster(edited(edit), a_cluster(), None)


@pytest.mark.parametrize("edit", NOTICED.values(), ids=NOTICED.keys())
def test_other_changes_make_a_new_cluster_unless_upgrades_are_off(edit: Any) -> None:
    assert needs_new_cluster(edited(edit), a_cluster(), None)
    off = edited(edit)
    off["spec"]["upgradeStrategy"] = {"type": "None"}
    assert not needs_new_cluster(off, a_cluster(), None)


def test_a_group_added_at_the_end_is_added_in_place() -> None:
    service = edited(lambda spec, config: config["workerGroupSpecs"].append(a_group(groupName="more")))
    assert is_extended_cluster(service, a_cluster())
    assert not needs_new_cluster(service, a_cluster(), None)


def test_with_upgrades_off_the_first_cluster_is_made_all_the_same() -> None:
    service = a_service(upgradeStrategy={"type": "None"})
    assert needs_new_cluster(service, None, None)


def test_during_an_upgrade_the_pending_cluster_is_compared() -> None:
    service = edited(NOTICED["image"])
    assert not needs_new_cluster(service, a_cluster(), a_cluster(service))
    assert needs_new_cluster(a_service(), a_cluster(), a_cluster(service))


def test_a_cluster_carries_our_rendered_hash_and_its_creator() -> None:
    metadata = a_cluster()["metadata"]
    assert metadata["annotations"]["sovereign.dev/rendered"] == "abc"
    assert metadata["labels"][names.LABEL_CREATOR_KIND] == "RayService"


def test_an_update_of_the_whole_object_adds_empty_structs_and_canonical_quantities() -> None:
    service = a_service()
    limits = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
        "resources"
    ]
    limits["limits"] = {"memory": "4096Mi", "cpu": "2000m"}
    group = as_typed_client_writes(service)["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert group["scaleStrategy"] == {}
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"] == {"memory": "4Gi", "cpu": "2"}
    assert is_same_cluster(service, a_cluster(service))


def test_a_token_needs_a_ray_that_knows_it() -> None:
    old = a_service()
    old["spec"]["rayClusterConfig"]["rayVersion"] = "2.51.0"
    assert "2.52.0" in (invalid(old) or "")
    assert invalid(a_service()) is None


def with_condition(kind: str, *, suspend: bool) -> Manifest:
    service = a_service(suspend=suspend)
    service["status"] = {"conditions": [{"type": kind, "status": "True"}]}
    return service


@pytest.mark.parametrize(
    ("service", "step"),
    [
        (a_service(), Step.RUN),
        (a_service(suspend=True), Step.BEGIN),
        (with_condition("Suspending", suspend=True), Step.DELETE),
        (with_condition("Suspending", suspend=False), Step.DELETE),
        (with_condition("Suspended", suspend=True), Step.STAY),
        (with_condition("Suspended", suspend=False), Step.RESUME),
    ],
)
def test_a_suspension_once_begun_runs_to_its_end(service: Manifest, step: Step) -> None:
    assert suspension.next_step(service) is step


def test_a_suspension_says_in_the_status_where_it_stands() -> None:
    status: Manifest = {"activeServiceStatus": {"rayClusterName": "tiny-abcde"}, "numServeEndpoints": 2}
    suspension.begin(status, 4, NOW)
    assert (status["activeServiceStatus"], status["observedGeneration"]) == ({}, 4)
    assert reason_of(status, "Ready") == "SuspendInProgress"
    suspension.finish(status, NOW)
    assert is_true(status, "Suspended")
    assert not is_true(status, "Suspending")
    suspension.resume(status, 5, LATER)
    assert reason_of(status, "Ready") == "Initializing"
    assert next(c for c in status["conditions"] if c["type"] == "Ready")["lastTransitionTime"] == LATER


def test_ready_follows_the_endpoints() -> None:
    status: Manifest = {"activeServiceStatus": {}, "pendingServiceStatus": {}, "numServeEndpoints": 0}
    write_conditions(status, NOW)
    assert reason_of(status, "Ready") == "Initializing"
    status |= {"numServeEndpoints": 1, "activeServiceStatus": {"rayClusterName": "a"}}
    write_conditions(status, NOW)
    assert reason_of(status, "Ready") == "NonZeroServeEndpoints"
    assert reason_of(status, "UpgradeInProgress") == "NoPendingCluster"
    status |= {"numServeEndpoints": 0, "pendingServiceStatus": {"rayClusterName": "b"}}
    write_conditions(status, NOW)
    assert reason_of(status, "Ready") == "ZeroServeEndpoints"
    assert is_true(status, "UpgradeInProgress")


def test_a_condition_that_does_not_change_keeps_its_time() -> None:
    status: Manifest = {}
    set_condition(status, "Ready", False, "A", "", now=NOW)
    set_condition(status, "Ready", False, "B", "", now=LATER)
    assert status["conditions"][0]["lastTransitionTime"] == NOW
    set_condition(status, "Ready", True, "C", "", now=LATER)
    assert status["conditions"][0]["lastTransitionTime"] == LATER


def a_pod(role: str, *, ready: bool, phase: str = "Running", **labels: str) -> Manifest:
    return {
        "metadata": {"name": f"{role}-{id(labels)}", "labels": {names.LABEL_NODE_TYPE: role, **labels}},
        "spec": {"containers": [{"name": "ray"}]},
        "status": {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "podIP": "10.0.0.1",
        },
    }


def test_a_cluster_is_ready_when_the_head_and_all_workers_are() -> None:
    cluster = a_cluster()
    head, worker = a_pod("head", ready=True), a_pod("worker", ready=True)
    waiting = cluster_status(cluster, [head, worker], NOW)
    assert "state" not in waiting
    status = cluster_status(cluster, [head, worker, copy.deepcopy(worker)], NOW)
    assert status["state"] == "ready"
    assert status["readyWorkerReplicas"] == status["desiredWorkerReplicas"] == 2
    assert is_true(status, "HeadPodReady")
    lost = cluster_status({**cluster, "status": status}, [worker], LATER)
    assert not is_true(lost, "HeadPodReady")
    assert is_true(lost, "RayClusterProvisioned")


def test_a_pod_is_finished_by_its_phase_or_when_its_container_may_not_restart() -> None:
    assert is_finished(a_pod("worker", ready=False, phase="Failed"))
    ended = a_pod("worker", ready=False)
    ended["status"]["containerStatuses"] = [{"name": "ray", "state": {"terminated": {}}}]
    assert not is_finished(ended)
    ended["spec"]["restartPolicy"] = "Never"
    assert is_finished(ended)


def test_replicas_over_several_hosts_are_grouped_and_free_indices_found() -> None:
    pods = [
        a_pod("worker", ready=True, **{names.LABEL_REPLICA_NAME: name, names.LABEL_REPLICA_INDEX: index})
        for name, index in (("a", "0"), ("a", "0"), ("b", "2"))
    ]
    assert {name: len(members) for name, members in replicas_of(pods, 2).items()} == {"a": 2, "b": 1}
    assert free_indices(pods, 2) == [1, 3]


def test_applications_are_mirrored_and_all_must_run() -> None:
    answer = {
        "status": "DEPLOYING",
        "message": "",
        "deployments": {"Ingress": {"status": "UPDATING", "message": "waits"}},
    }
    assert application_status(answer) == {
        "status": "DEPLOYING",
        "serveDeploymentStatuses": {"Ingress": {"status": "UPDATING", "message": "waits"}},
    }
    assert not are_running({})
    assert not are_running({"a": {"status": "RUNNING"}, "b": {"status": "DEPLOYING"}})
    assert are_running({"a": {"status": "RUNNING"}})


def test_what_fails_is_tried_again_later_and_later(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    backoff = Backoff(clock=lambda: now)
    pauses = []
    for _ in range(8):
        backoff.failed("x", OSError("away"))
        pauses.append(backoff.failures["x"][1])
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert len(caplog.records) == 1
    assert not backoff.is_due("x")
    backoff.succeeded("x")
    assert backoff.is_due("x")
