# SPDX-License-Identifier: Apache-2.0
"""What others do to the operator's objects, or keep it from doing, and what it could not watch: on the real
API server, whose rules of who owns a field are what matters here.

There is no kubelet here and no KubeRay: what they would write is played.
"""

from __future__ import annotations

import os
import signal

import pytest

from dev.cluster import up
from tests.controlplane.api_server import ApiServer, Manifest, condition, eventually
from tests.controlplane.operator_site import REVISION, Site

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(600)]


def test_a_rule_that_somebody_adds_to_a_policy_of_ours_is_taken_away(site: Site) -> None:
    with site.operator():
        site.serve()
        rendered = {one["metadata"]["name"]: one["spec"] for one in site.policies()}
        name = next(name for name, spec in rendered.items() if "egress" not in spec)
        site.api.patch("NetworkPolicy", site.models, name, {"spec": {"egress": [{}]}}, manager="intruder")
        eventually(lambda: policy(site, name)["spec"] == rendered[name], "nothing but ours is in it")
        site.until("Ready", "AllChecksPassed")
        site.await_events("ChildRestored")
        site.settle()
        assert {one["metadata"]["name"]: one["spec"] for one in site.policies()} == rendered


def policy(site: Site, name: str) -> Manifest:
    return site.api.get("NetworkPolicy", site.models, name)


def test_a_rayservice_that_somebody_suspends_is_resumed(site: Site) -> None:
    with site.operator():
        site.serve()
        site.api.patch("RayService", site.models, "tiny", {"spec": {"suspend": True}}, manager="intruder")
        site.player().stop()
        eventually(lambda: "suspend" not in site.player().service()["spec"], "it is resumed")


def test_what_a_quota_forbade_is_done_once_the_quota_is_gone(site: Site) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": site.models},
        "spec": {"hard": {"count/rayservices.ray.io": "0"}},
    }
    site.api.create(quota)
    eventually(
        lambda: (site.api.get("ResourceQuota", site.models, "none").get("status") or {}).get("hard"),
        "the quota counts",
    )
    with site.operator():
        site.registry.publish("models/org/tiny", REVISION)
        site.create_model()
        model = site.until("Ready", "ApplyRefused")
        assert "exceeded quota" in condition(model, "Ready")["message"]
        site.api.delete("ResourceQuota", site.models, "none")
        eventually(lambda: site.player().service(), "the RayService is there")
        site.player().start()
        site.until("Ready", "AllChecksPassed")


def test_what_went_while_no_watch_could_see_it_is_made_anew(site: Site) -> None:
    """An API server that was restarted knows no old versions: a watch has to begin with a list, and what went
    before that is in no event."""
    with site.operator() as operator:
        site.serve()
        site.settle()
        uid = site.player().service()["metadata"]["uid"]
        os.kill(operator.pid, signal.SIGSTOP)
        try:
            restart(site)  # the watches are broken, so that they do not keep the event for later
            site.api.delete("RayService", site.models, "tiny")
            eventually(lambda: not site.player().service(), "it is gone")
            restart(site)
        finally:
            os.kill(operator.pid, signal.SIGCONT)
        made = eventually(lambda: site.player().service(), "the RayService is there again", 120)
        assert made["metadata"]["uid"] != uid
        eventually(lambda: "watches are rebuilt" in operator.log.read_text(), "it begins anew", 60)
        assert operator.end() == 0, "a signal between two runs of the watches counts"


def restart(site: Site) -> None:
    site.api.close()
    site.cluster.processes.end("kube-apiserver")
    up(site.cluster.name)
    site.api = ApiServer(site.cluster.kubeconfig)
