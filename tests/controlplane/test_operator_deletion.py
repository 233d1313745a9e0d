# SPDX-License-Identifier: Apache-2.0
"""How a model goes, on the real API server: policies outlive the last pod, whoever deletes what.

There is no kubelet and no KubeRay here: the test plays both, and so decides when the pods are gone. The
garbage collector and the namespace controller are the real ones.
"""

from __future__ import annotations

import pytest

from tests.cluster.audit import AuditLog
from tests.controlplane.api_server import eventually
from tests.controlplane.operator_site import REVISION, Site

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(600)]


def is_going(site: Site, name: str = "tiny") -> bool:
    return bool(site.model(name).get("metadata", {}).get("deletionTimestamp"))


def test_with_foreground_propagation_the_policies_outlive_the_last_pod(site: Site) -> None:
    with site.operator():
        site.serve()
        policies = {policy["metadata"]["name"] for policy in site.policies()}
        site.settle()  # a look from before the deletion may still ask
        registry_requests = len(site.registry.requests)
        site.api.delete("SovereignModel", site.models, "tiny", propagation="Foreground")
        eventually(lambda: not site.player().service(), "the RayService is gone")
        site.let_pass(2 * site.settings["resyncSeconds"])
        assert is_going(site)
        live = [policy for policy in site.policies() if not policy["metadata"].get("deletionTimestamp")]
        assert {policy["metadata"]["name"] for policy in live} == policies
        site.player().stop()
        eventually(lambda: not site.policies(), "the policies are gone")
        eventually(lambda: not site.model(), "the model is gone")
        assert len(site.registry.requests) == registry_requests, "a deletion asks the registry for nothing"
    assert not site.player().pods()
    site.await_events("Deleted")


def test_deleting_the_namespace_leaves_nothing_and_the_policies_go_last(site: Site) -> None:
    """This API server deletes a namespace's pods first and the rest once they are gone; an older one deletes
    in any order. Either way our finalizers keep the policies while a pod is left."""
    with site.operator():
        site.serve()
        for pod in site.player().pods():  # pods whose node takes its time to stop them
            site.hold("Pod", pod["metadata"]["name"])
        count = len(site.policies())
        site.api.delete("Namespace", None, site.models)
        eventually(
            lambda: all(pod["metadata"].get("deletionTimestamp") for pod in site.player().pods()),
            "the pods are being deleted",
        )
        policy = site.policies()[0]["metadata"]["name"]
        site.api.delete("NetworkPolicy", site.models, policy)
        site.let_pass(2 * site.settings["resyncSeconds"])
        assert len(site.player().pods()) == 3
        assert len(site.policies()) == count, (
            "one that is being deleted is not let go while it cannot come back"
        )
        for pod in site.player().pods():
            site.let_go("Pod", pod["metadata"]["name"])
        eventually(lambda: is_going(site) or not site.model(), "the model is being deleted")
        eventually(lambda: not site.api.get("Namespace", None, site.models), "the namespace is gone", 120)


def test_deleting_a_model_in_the_middle_of_its_mirror_leaves_no_job(site: Site) -> None:
    with site.operator():
        site.create_model()
        job = eventually(site.mirror_jobs, "there is a mirror Job")[0]["metadata"]["name"]
        eventually(lambda: site.job_pods(job), "the Job has a pod")
        site.api.delete("SovereignModel", site.models, "tiny")
        eventually(lambda: not site.model(), "the model is gone")
        assert not site.mirror_jobs()
        assert not site.job_pods(job)
        assert not site.policies()


def test_what_a_model_left_behind_is_swept(site: Site) -> None:
    with site.operator() as operator:
        site.serve()
        operator.end()
    site.let_go("SovereignModel", "tiny")  # somebody takes the finalizer off while nobody looks
    site.api.delete("SovereignModel", site.models, "tiny")
    eventually(lambda: not site.model(), "the model is gone")
    eventually(lambda: not site.player().service(), "the garbage collector took the RayService")
    with site.operator():
        site.let_pass(2 * site.settings["resyncSeconds"])
        assert site.policies(), "pods are left, so the policies are"
        site.player().stop()
        eventually(lambda: not site.policies(), "the policies are gone")


def test_a_deletion_that_takes_too_long_lets_the_model_go_and_keeps_the_policies(site: Site) -> None:
    site.settings["deletionSeconds"] = 5
    with site.operator():
        site.serve()
        site.api.delete("SovereignModel", site.models, "tiny")
        eventually(lambda: not site.model(), "the model is gone")
        assert len(site.policies()) >= 5
        assert len(site.player().pods()) == 3
        site.await_events("PodsRemain")
        site.player().stop()
        eventually(lambda: not site.policies(), "the sweep took the policies", 60)


def test_a_deletion_writes_in_order(site: Site) -> None:
    audit = AuditLog(site.cluster.audit_log)
    with site.operator():
        site.serve()
        audit.mark()
        site.api.delete("SovereignModel", site.models, "tiny")
        eventually(lambda: not site.player().service(), "the RayService is gone")
        site.player().stop()
        eventually(lambda: not site.model(), "the model is gone")
    writes = [(one.verb, one.resource) for one in audit.by(site.user) if one.writes]
    service = writes.index(("delete", "rayservices"))
    policies = [i for i, one in enumerate(writes) if one[1] == "networkpolicies"]
    released = max(i for i, one in enumerate(writes) if one == ("patch", "sovereignmodels"))
    assert service < min(policies) < max(policies) < released


def test_a_model_that_is_created_again_is_served_again(site: Site) -> None:
    with site.operator():
        site.serve()
        site.api.delete("SovereignModel", site.models, "tiny")
        eventually(lambda: not site.player().service(), "the RayService is gone")
        site.player().stop()
        eventually(lambda: not site.model(), "the model is gone")
        site.create_model()
        eventually(lambda: site.player().service(), "the RayService is there")
        site.player().start()
        assert site.until("Ready", "AllChecksPassed")["status"]["artifact"]["revision"] == REVISION
