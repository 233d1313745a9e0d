# SPDX-License-Identifier: Apache-2.0
"""The seal on the real API server, under the chart's roles: proven before the first pod, renewed, acted on.

There is no kubelet here and no network: a player writes the results that the pods of a probe would leave. The
API server, the Job controller and the garbage collector are the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from dev.cluster import Cluster
from tests.cluster.audit import AuditLog
from tests.controlplane.api_server import Manifest, condition, eventually, reason
from tests.controlplane.operator_site import REVISION, Site
from tests.controlplane.probe_player import SEALING, ProbePlayer

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(600)]

LEAK = {"outside-tcp-443": "reached"}


@pytest.fixture
def site(control_plane: Cluster, tmp_path: Path) -> Iterator[Site]:
    with Site.opened(control_plane, tmp_path) as one:
        one.settings |= SEALING
        one.registry.publish("models/org/tiny", REVISION)
        one.add_node()
        yield one


def probes(site: Site) -> ProbePlayer:
    return ProbePlayer(site.api, site.models, site.system)


def egress(site: Site) -> Manifest:
    return dict(site.model()["status"].get("egress") or {})


def serve(site: Site, **spec: object) -> None:
    """A model on its whole way to Ready behind a proven seal."""
    site.create_model(**spec)
    probes(site).answer()
    eventually(lambda: site.player().service(), "the RayService is there")
    site.player().start()
    site.until("Ready", "AllChecksPassed")


def renew(site: Site) -> None:
    """A new proof is due: what somebody changes in the policies voids the old one."""
    policy = site.policies()[0]["metadata"]["name"]
    patch = {"spec": {"policyTypes": ["Ingress"], "egress": None}}
    site.api.patch("NetworkPolicy", site.models, policy, patch)


def test_nothing_is_served_before_the_seal_is_proven(site: Site) -> None:
    audit = AuditLog(site.cluster.audit_log)
    audit.mark()
    with site.operator():
        site.create_model()
        site.until("Mirrored", "Mirrored")
        model = site.until("EgressSealed", "Probing")
        assert reason(model, "Ready") == reason(model, "Reconciling") == "Probing"
        probes(site).peer_answers()
        probes(site).both_jobs()
        assert not site.player().service()
        run = probes(site).answer()
        service = eventually(lambda: site.player().service(), "the RayService is there")
        model = site.until("EgressSealed", "Sealed")
        site.player().start()
        site.until("Ready", "AllChecksPassed")
    said = model["status"]["egress"]
    assert (said["run"], said["verdict"], said["node"]) == (run, "Sealed", "node")
    assert (said["denied"], said["unprovable"], said["findings"]) == (6, [], ["own-node"])
    assert said["lastProbe"]
    for group in (
        service["spec"]["rayClusterConfig"]["headGroupSpec"],
        *service["spec"]["rayClusterConfig"]["workerGroupSpecs"],
    ):
        first = group["template"]["spec"]["initContainers"][0]
        assert (first["name"], first["args"][:2]) == ("sealed", ["probe", "wait"])
    site.await_events("Sealed", "Ready")
    requests = list(audit.by(site.user))
    assert not [one for one in requests if one.code == 403]
    made = [one.resource for one in requests if one.created]
    policies = max(i for i, kind in enumerate(made) if kind == "networkpolicies")
    assert policies < made.index("pods") < made.index("jobs") < made.index("rayservices")


def test_a_steady_sealed_state_sends_no_request_even_when_the_jobs_are_gone(site: Site) -> None:
    with site.operator():
        serve(site)
        for job in site.api.list("Job", site.models, "sovereign.dev/component=prober"):
            site.api.delete("Job", site.models, job["metadata"]["name"])  # as their time to live does
        for job in site.api.list("Job", site.system, "sovereign.dev/component=control"):
            site.api.delete("Job", site.system, job["metadata"]["name"])
        site.settle()
        audit = AuditLog(site.cluster.audit_log)
        audit.mark()
        before = site.model()["metadata"]["resourceVersion"]
        site.let_pass(3 * site.settings["resyncSeconds"] + 1)
        assert [one for one in audit.by(site.user) if one.verb not in ("watch", "list")] == []
        assert site.model()["metadata"]["resourceVersion"] == before
        assert reason(site.model(), "EgressSealed") == "Sealed"


def test_a_network_without_enforcement_serves_nothing_and_says_so(site: Site) -> None:
    with site.operator():
        site.create_model()
        probes(site).answer(prober=dict.fromkeys(("canary-tcp", "canary-udp", "canary-dns"), "reached"))
        model = site.until("Ready", "PolicyNotEnforced")
        assert condition(model, "EgressSealed")["status"] == "False"
        assert reason(model, "Stalled") == "PolicyNotEnforced"
        probes(site).answer(prober={"canary-tcp": "reached"})  # tried again at once
        eventually(lambda: egress(site).get("inARow") == 2, "it was confirmed")
        assert not site.player().service()
        assert not egress(site)["isolated"], "there is nothing to isolate"


def test_a_resolver_that_forwards_is_reported_and_serves_nothing(site: Site) -> None:
    with site.operator():
        site.create_model()
        probes(site).answer(prober={"outside-dns-name": "reached"})
        model = site.until("Ready", "DNSForwards")
        assert "outside-dns-name" in condition(model, "EgressSealed")["message"]
        assert not site.player().service()


def test_a_confirmed_leak_stops_the_pods_until_somebody_releases_them(site: Site) -> None:
    with site.operator():
        serve(site)
        renew(site)
        probes(site).answer(prober=LEAK)
        model = site.until("EgressSealed", "LeakDetected")
        assert "outside-tcp-443" in condition(model, "EgressSealed")["message"]
        assert not site.player().service()["spec"].get("suspend"), "one pod may be wrong"
        probes(site).answer(prober=LEAK)
        eventually(lambda: site.player().service()["spec"].get("suspend"), "the RayService is suspended")
        model = site.until("Ready", "Isolated")
        assert model["status"]["egress"]["isolated"] is True
        assert reason(model, "Stalled") == "Isolated"
        site.player().stop()
        site.await_events("LeakDetected", "Isolated")
        mark = {"metadata": {"annotations": {"sovereign.dev/release-isolation": "ticket-1"}}}
        site.api.patch("SovereignModel", site.models, "tiny", mark)
        site.until("Ready", "Probing")
        probes(site).answer()
        eventually(lambda: not site.player().service()["spec"].get("suspend"), "it is resumed")
        site.player().start()
        model = site.until("Ready", "AllChecksPassed")
        assert model["status"]["egress"]["isolated"] is False
        site.await_events("IsolationReleased")


def test_a_policy_deleted_while_serving_is_put_back_and_the_seal_is_proven_anew(site: Site) -> None:
    with site.operator():
        serve(site)
        first = egress(site)["run"]
        policy = site.policies()[0]["metadata"]
        site.api.delete("NetworkPolicy", site.models, policy["name"])
        eventually(lambda: site.policy_uid(policy["name"]) not in ("", policy["uid"]), "it is a new one")
        probes(site).answer()
        eventually(lambda: egress(site).get("run") != first, "another run was judged")
        site.until("Ready", "AllChecksPassed")
        assert not site.player().service()["spec"].get("suspend"), "what serves is left alone"


def test_a_proof_is_renewed_while_the_model_stays_ready(site: Site) -> None:
    site.settings["probe"] = SEALING["probe"] | {"intervalSeconds": 40}
    with site.operator():
        serve(site)
        first = egress(site)["run"]
        probes(site).both_jobs()
        assert reason(site.model(), "Ready") == "AllChecksPassed"
        probes(site).answer()
        eventually(lambda: egress(site)["run"] != first, "the second run was judged")
        assert reason(site.model(), "Ready") == "AllChecksPassed"
        assert egress(site)["inARow"] == 2


def test_a_canary_that_is_gone_proves_nothing_and_a_new_operator_remembers_when_to_try_again(
    site: Site,
) -> None:
    with site.operator() as operator:
        site.create_model()
        probes(site).answer(control=dict.fromkeys(("canary-tcp", "canary-udp", "canary-dns"), "unable"))
        model = site.until("Ready", "ProbeInconclusive")
        assert condition(model, "EgressSealed")["status"] == "Unknown"
        assert "canary" in condition(model, "EgressSealed")["message"]
        assert condition(model, "Reconciling")["status"] == "True"
        operator.end()
    with site.operator():
        for job in probes(site).both_jobs():
            made = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
            ended = datetime.fromisoformat(model["status"]["egress"]["lastProbe"])
            assert made - ended >= timedelta(seconds=30), "a restart does not hurry"
        probes(site).answer()
        site.until("EgressSealed", "Sealed")


def test_answers_that_came_while_no_operator_ran_are_read(site: Site) -> None:
    with site.operator() as operator:
        site.create_model()
        probes(site).peer_answers()
        jobs = {job["metadata"]["uid"] for job in probes(site).both_jobs()}
        operator.end()
    probes(site).answer()
    with site.operator():
        site.until("EgressSealed", "Sealed")
    found = (
        *site.api.list("Job", site.system, "sovereign.dev/component=control"),
        *site.api.list("Job", site.models, "sovereign.dev/component=prober"),
    )
    assert {job["metadata"]["uid"] for job in found} == jobs


def test_an_image_that_cannot_be_pulled_is_told_and_the_peer_is_enough_to_tell_it(site: Site) -> None:
    with site.operator():
        site.create_model()
        probes(site).peer_waits("ImagePullBackOff", "manifest unknown")
        model = site.until("Ready", "ProbeInconclusive")
        assert "manifest unknown" in condition(model, "EgressSealed")["message"]
        assert not probes(site).jobs()


def test_a_namespace_without_its_label_serves_nothing_until_it_has_it(site: Site) -> None:
    site.settings["admission"] = True
    with site.operator():
        site.create_model()
        probes(site).answer()
        model = site.until("Ready", "NamespaceNotSealed")
        assert reason(model, "Stalled") == "NamespaceNotSealed"
        assert not site.player().service()
        label = {"metadata": {"labels": {"sovereign.dev/sealed": "true"}}}
        site.api.patch("Namespace", None, site.models, label)
        eventually(lambda: site.player().service(), "the RayService is there", 60)


def test_a_deletion_takes_peer_and_jobs_and_then_the_policies(site: Site) -> None:
    audit = AuditLog(site.cluster.audit_log)
    with site.operator():
        serve(site)
        renew(site)
        jobs = probes(site).both_jobs()
        audit.mark()
        site.api.delete("SovereignModel", site.models, "tiny")
        eventually(lambda: not site.player().service(), "the RayService is gone")
        site.player().stop()
        for job in jobs:
            for pod in probes(site).pods_of(job):
                site.api.delete("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
        probes(site).peer_ends()
        eventually(lambda: not site.model(), "the model is gone")
    assert not site.policies()
    assert not probes(site).jobs()
    assert not site.api.list("Pod", site.models, "sovereign.dev/model=tiny")
    writes = [(one.verb, one.resource) for one in audit.by(site.user) if one.writes]
    assert max(writes.index(("delete", kind)) for kind in ("jobs", "pods", "rayservices")) < writes.index(
        ("delete", "networkpolicies")
    )
    eventually(lambda: not site.api.get("Service", site.models, "tiny-peer"), "its Service is gone")


def test_deleting_the_namespace_of_a_sealed_model_leaves_nothing(site: Site) -> None:
    with site.operator():
        serve(site)
        site.api.delete("Namespace", None, site.models)
        probes(site).peer_ends()
        eventually(lambda: not site.api.get("Namespace", None, site.models), "the namespace is gone", 120)
