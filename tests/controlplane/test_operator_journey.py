# SPDX-License-Identifier: Apache-2.0
"""The operator on the real API server, under the chart's roles: from a manifest to Ready, and disturbances.

There is no kubelet and no KubeRay here: the test plays both by writing the status of Jobs' pods, pods and
RayServices.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dev.cluster import Cluster
from tests.cluster.audit import AuditLog
from tests.controlplane.api_server import condition, eventually, reason
from tests.controlplane.operator_site import (
    NEXT_REVISION,
    REVISION,
    Site,
)

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(600)]


@pytest.fixture
def site(control_plane: Cluster, tmp_path: Path) -> Iterator[Site]:
    with Site.opened(control_plane, tmp_path) as one:
        yield one


@pytest.fixture
def served(site: Site) -> Iterator[Site]:
    """A site with a model that serves, and the operator running."""
    site.add_node()
    with site.operator():
        site.serve()
        yield site


def test_a_manifest_becomes_a_served_model(site: Site) -> None:
    site.add_node()
    audit = AuditLog(site.cluster.audit_log)
    audit.mark()
    with site.operator():
        site.create_model()
        site.until("Mirrored", "MirrorPending")
        assert condition(site.model(), "Ready")["status"] == "False"
        site.mirror(REVISION)
        eventually(lambda: site.player().service(), "the RayService is there")
        site.until("Serving", "Starting")
        site.player().start()
        ready = site.until("Ready", "AllChecksPassed")
    status = ready["status"]
    assert {c["type"] for c in status["conditions"]} == {
        "Ready", "Mirrored", "Verified", "Placed", "EgressSealed", "Serving",
    }  # fmt: skip
    assert reason(ready, "EgressSealed") == "NotProbed"
    assert status["artifact"]["revision"] == REVISION
    assert (status["artifact"]["files"], status["artifact"]["bytes"]) == (2, status["artifact"]["bytes"])
    assert status["artifact"]["bytes"] > 5_000_000
    assert status["servingArtifact"] == status["artifact"]["digest"]
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)
    assert status["selector"] == "sovereign.dev/model=tiny"
    assert status["endpoint"] == f"http://tiny-serve-svc.{site.models}.svc:8000/v1"
    assert status["placement"]["data"] == 2
    assert status["placement"]["why"]
    site.await_events("MirrorStarted", "Mirrored", "Placed", "Ready")
    requests = list(audit.by(site.user))
    assert requests
    assert not [one for one in requests if one.code == 403]


def test_the_first_status_is_unknown_and_never_green(site: Site) -> None:
    with site.operator():
        site.registry.publish("models/org/tiny", REVISION)
        with closing(site.api.changes("SovereignModel", site.models)) as changes:
            site.create_model()
            first = next(body["status"] for body in changes if body.get("status"))
    assert {c["type"]: c["status"] for c in first["conditions"]} == {
        "Ready": "Unknown",
        "Reconciling": "True",
        "Mirrored": "Unknown",
        "Verified": "Unknown",
        "Placed": "Unknown",
        "EgressSealed": "Unknown",
        "Serving": "Unknown",
    }
    assert all(c["observedGeneration"] == 1 for c in first["conditions"])


def test_policies_are_in_force_before_the_ray_service_exists(site: Site) -> None:
    site.registry.publish("models/org/tiny", REVISION)
    site.add_node()
    audit = AuditLog(site.cluster.audit_log)
    audit.mark()
    with site.operator():
        site.create_model()
        eventually(lambda: site.player().service(), "the RayService is there")
    writes = [one for one in audit.by(site.user) if one.created]
    kinds = [one.resource for one in writes]
    assert kinds.count("networkpolicies") == len(site.policies()) >= 5
    assert kinds.index("rayservices") > max(i for i, kind in enumerate(kinds) if kind == "networkpolicies")
    assert all("sovereign.dev/seal" in policy["metadata"]["finalizers"] for policy in site.policies())
    assert not any(policy["metadata"].get("ownerReferences") for policy in site.policies())
    finalized = [one.verb for one in audit.by(site.user) if one.resource == "sovereignmodels"]
    assert "patch" in finalized


def test_a_steady_state_sends_no_request_and_neither_does_a_resync(served: Site) -> None:
    audit = AuditLog(served.cluster.audit_log)
    served.settle()
    audit.mark()
    before = len(served.registry.requests)
    resyncs = 3 * served.settings["resyncSeconds"]
    served.let_pass(resyncs + 1)
    watches = ("watch", "list")  # kopf takes its watches up again by itself
    assert [one for one in audit.by(served.user) if one.verb not in watches] == []
    assert len(served.registry.requests) == before


def test_what_others_delete_or_change_comes_back_and_ready_tells_the_truth(served: Site) -> None:
    api, player = served.api, served.player()
    worker = next(pod for pod in player.pods() if "worker" in pod["metadata"]["name"])
    api.delete("Pod", served.models, worker["metadata"]["name"])
    served.until("Ready", "ReplicasMissing")
    service = player.service()
    player.create_pod(
        worker["metadata"]["name"], service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]
    )
    served.until("Ready", "AllChecksPassed")

    policy = served.policies()[0]["metadata"]
    api.delete("NetworkPolicy", served.models, policy["name"])
    eventually(
        lambda: served.policy_uid(policy["name"]) not in ("", policy["uid"]), "the policy is a new one"
    )
    served.until("Ready", "AllChecksPassed")
    eventually(
        lambda: not [p for p in served.policies() if "stand-in" in p["metadata"]["name"]],
        "no stand-in is left",
    )

    rendered = api.get("NetworkPolicy", served.models, policy["name"])["spec"]
    api.patch(
        "NetworkPolicy", served.models, policy["name"], {"spec": {"policyTypes": ["Ingress"], "egress": None}}
    )
    eventually(
        lambda: api.get("NetworkPolicy", served.models, policy["name"])["spec"] == rendered,
        "it is as rendered",
    )

    uid = service["metadata"]["uid"]
    api.delete("RayService", served.models, "tiny")
    eventually(
        lambda: served.player().service().get("metadata", {}).get("uid", uid) != uid, "a new RayService"
    )
    player.stop()
    served.until("Ready", "Starting")
    player.start()
    served.until("Ready", "AllChecksPassed")
    served.await_events("ChildRestored")


def test_a_changed_revision_is_mirrored_first_while_the_old_one_serves(served: Site) -> None:
    player, old = served.player(), served.model()["status"]["servingArtifact"]
    before = player.service()["spec"]
    source = {"huggingFace": {"repo": "org/tiny", "revision": NEXT_REVISION}}
    served.api.patch("SovereignModel", served.models, "tiny", {"spec": {"source": source}})
    model = served.until("Ready", "MirrorPending")
    assert condition(model, "Serving")["status"] == "True"
    assert model["status"]["servingArtifact"] == old
    assert player.service()["spec"] == before
    served.mirror(NEXT_REVISION)
    eventually(lambda: player.service()["spec"].get("suspend"), "the old cluster is stopped")
    served.until("Ready", "Upgrading")
    assert len(player.pods()) == 3, "the pods of the old one are still there"
    player.stop()
    eventually(lambda: not player.service()["spec"].get("suspend"), "the new one is started")
    player.start()
    model = served.until("Ready", "AllChecksPassed")
    assert model["status"]["servingArtifact"] == model["status"]["artifact"]["digest"] != old
    served.await_events("UpgradeStarted", "Upgraded")


def test_a_change_of_the_serve_config_alone_is_applied_in_place(served: Site) -> None:
    player = served.player()
    clusters = [c["metadata"]["uid"] for c in player.clusters()]
    served.api.patch("SovereignModel", served.models, "tiny", {"spec": {"serving": {"maxModelLen": 128}}})
    eventually(
        lambda: "maxModelLen: 128" in player.service()["spec"]["serveConfigV2"], "the new config is there"
    )
    assert not player.service()["spec"].get("suspend")
    served.until("Ready", "Upgrading")  # KubeRay has not looked at it yet
    player.report_serving(player.clusters()[0]["metadata"]["name"])
    served.until("Ready", "AllChecksPassed")
    assert [c["metadata"]["uid"] for c in player.clusters()] == clusters


def test_suspend_stops_the_pods_and_resume_brings_them_back(served: Site) -> None:
    player = served.player()
    served.api.patch("SovereignModel", served.models, "tiny", {"spec": {"suspend": True}})
    eventually(lambda: player.service()["spec"].get("suspend"), "the RayService is suspended")
    model = served.until("Ready", "Suspended")
    player.stop()
    model = eventually(
        lambda: "no pods run" in condition(served.model(), "Ready")["message"] and served.model(),
        "all is stopped",
    )
    assert not condition(model, "Reconciling")
    assert not condition(model, "Stalled")
    assert len(served.policies()) >= 5
    served.api.patch("SovereignModel", served.models, "tiny", {"spec": {"suspend": False}})
    eventually(lambda: not player.service()["spec"].get("suspend"), "the RayService is resumed")
    player.start()
    served.until("Ready", "AllChecksPassed")


def test_a_new_operator_goes_on_where_the_old_one_stopped(site: Site) -> None:
    site.add_node()
    with site.operator() as first:
        site.create_model()
        eventually(site.mirror_jobs, "there is a mirror Job")
        assert first.end() == 0
    site.mirror(REVISION)
    with site.operator() as second:
        eventually(lambda: site.player().service(), "the RayService is there")
        assert second.end() == 0
    site.player().start()
    audit = AuditLog(site.cluster.audit_log)
    audit.mark()
    with site.operator():
        site.until("Ready", "AllChecksPassed")
    written = [one for one in audit.by(site.user) if one.writes and one.resource != "events"]
    assert {one.resource for one in written} == {"sovereignmodels/status"}


def test_no_node_has_the_product_until_one_appears(site: Site) -> None:
    site.registry.publish("models/org/tiny", REVISION)
    with site.operator():
        site.create_model()
        model = site.until("Placed", "NoMatchingNodes")
        assert site.product in condition(model, "Placed")["message"]
        assert condition(model, "Ready")["reason"] == "NoMatchingNodes"
        assert not site.player().service()
        site.add_node()
        site.until("Placed", "Placed")
        eventually(lambda: site.player().service(), "the RayService is there")


def test_a_running_model_is_not_moved_by_a_new_node(served: Site) -> None:
    before = served.player().service()["metadata"]
    served.settle()
    served.add_node()
    audit = AuditLog(served.cluster.audit_log)
    audit.mark()
    served.let_pass(1.5 * served.settings["resyncSeconds"])
    after = served.player().service()["metadata"]
    assert after["resourceVersion"] == before["resourceVersion"]
    assert not [one for one in audit.by(served.user) if one.writes]


def test_a_fight_over_a_field_is_given_up_and_named(served: Site) -> None:
    def fight() -> bool:
        service = copy.deepcopy(served.player().service())
        if served.model() and reason(served.model(), "Ready") == "FieldConflict":
            return True
        if service["spec"]["rayClusterConfig"]["rayVersion"] != "0.0.1":
            patch = {"spec": {"rayClusterConfig": {"rayVersion": "0.0.1"}}}
            served.api.patch("RayService", served.models, "tiny", patch, manager="rival")
        return False

    eventually(fight, "the operator gives up", 60)
    model = served.model()
    assert condition(model, "Stalled")["status"] == "True"
    assert not condition(model, "Reconciling")
    message = condition(model, "Stalled")["message"]
    assert "rival" in message
    assert "rayVersion" in message
    audit = AuditLog(served.cluster.audit_log)
    audit.mark()
    served.let_pass(2 * served.settings["resyncSeconds"])
    assert not [one for one in audit.by(served.user) if one.resource == "rayservices" and one.writes]


def test_metadata_that_users_put_on_a_model_stays(served: Site) -> None:
    marks = {"annotations": {"argocd.argoproj.io/tracking-id": "x"}, "labels": {"team": "a"}}
    served.api.patch("SovereignModel", served.models, "tiny", {"metadata": marks})
    served.let_pass(1)
    metadata = served.model()["metadata"]
    assert metadata["annotations"] == marks["annotations"]
    assert metadata["labels"] == marks["labels"]
    assert metadata["finalizers"] == ["sovereign.dev/seal"]
    managers = {entry["manager"]: json.dumps(entry["fieldsV1"]) for entry in metadata["managedFields"]}
    assert "f:spec" not in managers["sovereign-operator"]
