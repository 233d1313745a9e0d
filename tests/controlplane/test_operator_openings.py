# SPDX-License-Identifier: Apache-2.0
"""Ways out that somebody opens, on the real API server: the operator for one mirror Job, and others for no
reason that it knows.

The API server, the Job controller and the garbage collector are the real ones; mirror and probe are played.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.audit import AuditLog
from tests.controlplane.api_server import Manifest, condition, eventually
from tests.controlplane.operator_site import NEXT_REVISION, REVISION, Site
from tests.controlplane.probe_player import SEALING, ProbePlayer

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(600)]


@pytest.fixture
def sealed(site: Site) -> Iterator[Site]:
    """A site with a model that serves behind a proven seal, and the operator running."""
    site.settings |= SEALING
    site.registry.publish("models/org/tiny", REVISION)
    with site.operator():
        site.create_model()
        probes(site).answer()
        eventually(lambda: site.player().service(), "the RayService is there")
        site.player().start()
        site.until("Ready", "AllChecksPassed")
        yield site


def probes(site: Site) -> ProbePlayer:
    return ProbePlayer(site.api, site.models, site.system)


def egress(site: Site) -> Manifest:
    return dict(site.model()["status"].get("egress") or {})


def exceptions(site: Site) -> list[Manifest]:
    return site.api.list("NetworkPolicy", site.system, "sovereign.dev/component=mirror")


def is_going(site: Site, job: Manifest) -> bool:
    metadata = job["metadata"]
    live = site.api.get("Job", metadata["namespace"], metadata["name"])
    return not live or "deletionTimestamp" in live["metadata"]


def opener(site: Site, name: str = "debug", **selector: object) -> Manifest:
    """What somebody writes who wants his pod to reach the internet for a moment."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": site.models},
        "spec": {"podSelector": selector, "policyTypes": ["Egress"], "egress": [{}]},
    }


def test_a_mirror_has_a_way_out_while_it_runs_and_not_longer(site: Site) -> None:
    audit = AuditLog(site.cluster.audit_log)
    audit.mark()
    with site.operator():
        site.create_model()
        [policy] = eventually(lambda: exceptions(site), "there is an exception")
        [job] = site.mirror_jobs()
        assert policy["metadata"]["name"] == job["metadata"]["name"]
        assert policy["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
        [pod] = eventually(lambda: site.job_pods(job["metadata"]["name"]), "the Job has a pod")
        wanted = policy["spec"]["podSelector"]["matchLabels"].items()
        assert wanted <= pod["metadata"]["labels"].items(), "it selects what the Job controller made"
        eventually(lambda: job["metadata"]["name"] in egress(site).get("mirrorException", ""), "it is said")
        site.api.delete("NetworkPolicy", site.system, policy["metadata"]["name"])
        eventually(
            lambda: [p for p in exceptions(site) if p["metadata"]["uid"] != policy["metadata"]["uid"]],
            "it is put back while the mirror runs",
        )
        site.mirror(REVISION)
        eventually(lambda: not exceptions(site), "it is closed")
        assert site.mirror_jobs(), "by the operator: the Job is kept to be read"
        eventually(lambda: not egress(site)["mirrorException"], "and that is said")
        site.await_events("EgressExceptionOpened", "EgressExceptionClosed")
        site.settle()
    requests = list(audit.by(site.user))
    assert not [one for one in requests if one.code == 403]
    here = {one.verb for one in requests if (one.resource, one.namespace) == ("networkpolicies", site.system)}
    assert here - {"list"} == {"watch", "patch", "delete"}


def test_the_way_out_goes_with_the_job_where_no_operator_runs(site: Site) -> None:
    with site.operator():
        site.create_model()
        eventually(lambda: exceptions(site), "there is an exception")
    [job] = site.mirror_jobs()
    site.api.delete("Job", site.system, job["metadata"]["name"])
    eventually(lambda: not exceptions(site), "the garbage collector took it")


def test_a_new_revision_closes_the_way_out_of_the_old_mirror(site: Site) -> None:
    with site.operator():
        site.create_model()
        [old] = eventually(lambda: exceptions(site), "there is an exception")
        source = {"huggingFace": {"repo": "org/tiny", "revision": NEXT_REVISION}}
        site.api.patch("SovereignModel", site.models, "tiny", {"spec": {"source": source}})

        def names() -> set[str]:
            return {policy["metadata"]["name"] for policy in exceptions(site)}

        eventually(
            lambda: len(names()) == 1 and old["metadata"]["name"] not in names(), "one for the new one"
        )
        site.api.delete("SovereignModel", site.models, "tiny")
        eventually(lambda: not exceptions(site), "and none for a model that goes")


def test_a_policy_that_somebody_adds_is_probed_at_once_and_what_serves_is_left_alone(sealed: Site) -> None:
    first = egress(sealed)["run"]
    sealed.api.create(opener(sealed))
    probes(sealed).both_jobs()
    assert condition(sealed.model(), "Ready")["status"] == "True", "the proof counts until the next"
    probes(sealed).answer(prober={"outside-tcp-443": "reached"})
    model = sealed.until("EgressSealed", "LeakDetected")
    assert "debug" in condition(model, "EgressSealed")["message"], "whose policy it may be"
    assert egress(sealed)["run"] != first
    confirming = {job["metadata"]["uid"]: job for job in probes(sealed).both_jobs()}
    sealed.api.delete("NetworkPolicy", sealed.models, "debug")
    for job in confirming.values():
        asked = f"the Job {job['metadata']['name']} is of no use any more"
        eventually(lambda job=job: is_going(sealed, job), asked)
        for pod in probes(sealed).pods_of(job):
            sealed.api.delete("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
    probes(sealed).answer()
    sealed.until("EgressSealed", "Sealed")
    sealed.until("Ready", "AllChecksPassed")
    assert not sealed.player().service()["spec"].get("suspend")


def test_policies_of_others_that_cannot_open_the_seal_cost_no_request(sealed: Site) -> None:
    sealed.settle()
    audit = AuditLog(sealed.cluster.audit_log)
    audit.mark()
    elsewhere = opener(sealed, "other-model", matchLabels={"sovereign.dev/model": "other"})
    sealed.api.create(elsewhere)
    inwards = opener(sealed, "inwards")
    inwards["spec"] = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}
    sealed.api.create(inwards)
    sealed.let_pass(2 * sealed.settings["resyncSeconds"])
    assert [one for one in audit.by(sealed.user) if one.verb not in ("watch", "list")] == []
    sealed.api.delete("NetworkPolicy", sealed.models, "inwards")
    sealed.api.delete("NetworkPolicy", sealed.models, "other-model")


def test_a_policy_that_claims_to_be_ours_is_taken_away(sealed: Site) -> None:
    """Whatever labels of ours it carries: as a neighbour's, or as a mirror's, it is not overlooked."""
    disguises = (
        {"sovereign.dev/owner": "tiny"},
        {"sovereign.dev/owner": "tiny", "sovereign.dev/owner-namespace": "elsewhere"},
    )
    for number, labels in enumerate(disguises):
        policy = opener(sealed, f"disguised-{number}")
        policy["metadata"]["labels"] = labels
        sealed.api.create(policy)
        eventually(
            lambda name=f"disguised-{number}": not sealed.api.get("NetworkPolicy", sealed.models, name),
            "it is taken away",
        )
    policy = opener(sealed, "disguised")
    policy["metadata"]["labels"] = {"sovereign.dev/owner": "tiny", "sovereign.dev/component": "mirror"}
    sealed.api.create(policy)
    probes(sealed).both_jobs()
