# SPDX-License-Identifier: Apache-2.0
"""Weights on nodes, on the real API server and under the chart's roles: before any pod, wherever pods land,
and again when something went wrong.

Job controller, scheduler and garbage collector are the real ones; kubelet and KubeRay are played.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dev.cluster import Cluster
from tests.cluster.audit import AuditLog
from tests.controlplane.api_server import Manifest, condition, eventually, reason
from tests.controlplane.fetch_player import (
    CACHE,
    CORRUPT,
    DONE,
    FULL,
    FetchPlayer,
    arguments_of,
    digest_of,
    node_of,
)
from tests.controlplane.operator_site import NEXT_REVISION, REVISION, Site

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(900)]

NODE_CACHE = {"delivery": {"mode": "nodeCache"}}


@pytest.fixture
def site(control_plane: Cluster, tmp_path: Path) -> Iterator[Site]:
    with Site.opened(control_plane, tmp_path) as one:
        one.settings["nodeCache"] = dict(CACHE)
        one.registry.publish("models/org/tiny", REVISION)
        yield one


@pytest.fixture
def served(site: Site) -> Iterator[Site]:
    """A site with a model that serves from the cache of one of two nodes, and the operator running."""
    site.add_node()
    site.add_node()
    with site.operator():
        serve(site)
        yield site


def fetches(site: Site) -> FetchPlayer:
    return FetchPlayer(site.api, site.models, site.system)


def serve(site: Site, name: str = "tiny") -> str:
    """A model on its whole way to Ready; the node that it is on."""
    site.create_model(name, **NODE_CACHE)
    job = fetches(site).the_job()
    fetches(site).end(job)
    start(site, name, node_of(job))
    return node_of(job)


def start(site: Site, name: str, node: str) -> None:
    player = site.player(name)
    service = eventually(player.service, "the RayService is there")
    cluster = player.create_cluster(service)["metadata"]["name"]
    workers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    pods = workers["replicas"] * workers.get("numOfHosts", 1)
    fetches(site).start(cluster, service, [node] * pods)
    player.report_serving(cluster)
    site.until("Ready", "AllChecksPassed", name)


def worker(site: Site, name: str = "tiny") -> Manifest:
    found = next(pod for pod in site.player(name).pods() if "worker" in pod["metadata"]["name"])
    return site.api.get("Pod", site.models, found["metadata"]["name"])


def other_node(site: Site, node: str) -> str:
    names = [each["metadata"]["name"] for each in site.api.list("Node", None)]
    return next(name for name in names if name != node and name in site.nodes)


def delivery(site: Site, name: str = "tiny") -> Manifest:
    return dict(site.model(name)["status"].get("delivery") or {})


def gone(site: Site, look: Callable[[], Any], what: str) -> None:
    """Until nothing is there any more; the pods of what goes are ended as a kubelet does."""

    def is_gone() -> bool:
        fetches(site).let_go()
        return not look()

    eventually(is_gone, what)


# -- the whole way ----------------------------------------------------------------------------------------


def test_weights_are_on_the_node_before_anything_is_served_from_it(site: Site) -> None:
    site.add_node()
    site.add_node()
    audit = AuditLog(site.cluster.audit_log)
    audit.mark()
    player = fetches(site)
    with site.operator():
        site.create_model(**NODE_CACHE)
        job = player.the_job()
        site.until("Distributed", "FetchPending")
        with site.mirror_pod_answers({"bytesDone": 2**30, "bytesTotal": 3 * 2**30, "phase": "pulling"}) as at:
            player.run(job, at)
            site.until("Ready", "Fetching")
            eventually(lambda: delivery(site).get("bytesDone") == 2**30, "its progress is in the status")
            assert "1.0 GiB of 3.0 GiB" in condition(site.model(), "Distributed")["message"]
        assert not site.player().service()
        assert player.pod_of(job)["spec"]["nodeName"] == node_of(job)
        player.end(job)
        site.until("Distributed", "Distributed")
        start(site, "tiny", node_of(job))
        model = site.model()
        assert {c["type"] for c in model["status"]["conditions"]} == {
            "Ready", "Verified", "Mirrored", "Placed", "Distributed", "EgressSealed", "Serving",
        }  # fmt: skip
        said = delivery(site)
        assert (said["nodesReady"], said["nodesWanted"]) == (1, 1)
        assert said["bytesDone"] == said["bytesTotal"] == model["status"]["artifact"]["bytes"]
        assert [(n["name"], n["state"]) for n in said["nodes"]] == [(node_of(job), "Ready")]
        site.await_events("FetchStarted", "Fetched", "Distributed", "Ready")
        policies = {policy["metadata"]["name"] for policy in site.policies()}
        assert "tiny-registry" not in policies
        site.settle()
        requests = list(audit.by(site.user))
        assert not [one for one in requests if one.code == 403]
        audit.mark()
        site.let_pass(3 * site.settings["resyncSeconds"])
        assert [one for one in audit.by(site.user) if one.verb not in ("watch", "list")] == []


def test_a_new_operator_goes_on_with_the_fetch_of_the_old_one(site: Site) -> None:
    site.add_node()
    player = fetches(site)
    with site.operator() as first:
        site.create_model(**NODE_CACHE)
        job = player.the_job()
        assert first.end() == 0
    player.end(job)
    with site.operator():
        eventually(lambda: site.player().service(), "the RayService is there")
        assert [each["metadata"]["uid"] for each in player.jobs()] == [job["metadata"]["uid"]]


# -- what goes wrong --------------------------------------------------------------------------------------


def test_a_full_cache_is_said_and_tried_again_when_somebody_asks(site: Site) -> None:
    site.add_node()
    player = fetches(site)
    with site.operator():
        site.create_model(**NODE_CACHE)
        first = player.the_job()
        player.end(first, FULL)
        model = site.until("Ready", "CacheFull")
        assert condition(model, "Reconciling")["status"] == "True"
        [node] = delivery(site)["nodes"]
        assert (node["state"], node["reason"], node["attempt"]) == ("Failed", "CacheFull", 1)
        assert node["nextAttempt"]
        assert not site.player().service()
        site.await_events("FetchFailed")
        retry = {"metadata": {"annotations": {"sovereign.dev/retry": "now"}}}
        site.api.patch("SovereignModel", site.models, "tiny", retry)
        second = player.the_job()
        assert second["metadata"]["name"] == first["metadata"]["name"]
        assert second["metadata"]["uid"] != first["metadata"]["uid"]
        player.end(second)
        eventually(lambda: site.player().service(), "the RayService is there")


def test_a_node_that_is_lost_while_it_fetches_is_replaced_by_another(site: Site) -> None:
    nodes = {site.add_node(), site.add_node()}
    player = fetches(site)
    with site.operator():
        site.create_model(**NODE_CACHE)
        first = player.the_job()
        player.run(first)
        site.until("Distributed", "Fetching")
        site.remove_node(node_of(first))
        second = player.the_job((nodes - {node_of(first)}).pop())
        site.await_events("NodeLost")
        gone(site, lambda: site.api.get("Job", site.system, first["metadata"]["name"]), "its Job is gone")
        player.end(second)
        site.until("Distributed", "Distributed")
        service = eventually(lambda: site.player().service(), "the RayService is there")
        template = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]
        assert node_of(second) in str(template["spec"]["affinity"])


def test_a_pod_on_another_node_gets_its_weights_there(served: Site) -> None:
    player, pod = fetches(served), worker(served)
    elsewhere = other_node(served, pod["spec"]["nodeName"])
    before = served.player().service()["metadata"]
    served.api.delete("Pod", served.models, pod["metadata"]["name"])
    template = served.player().service()["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]
    player.land("tiny-moved", template, elsewhere, held=False)
    job = player.the_job(elsewhere)
    served.until("Ready", "FetchPending")
    player.end(job)
    player.hold(served.api.get("Pod", served.models, "tiny-moved"))
    served.until("Ready", "AllChecksPassed")
    assert served.player().service()["metadata"]["resourceVersion"] == before["resourceVersion"]


def test_a_head_on_a_node_without_workers_gets_the_small_files(served: Site) -> None:
    player, pod = fetches(served), worker(served)
    elsewhere = other_node(served, pod["spec"]["nodeName"])
    template = served.player().service()["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    player.land("tiny-head-2", template, elsewhere, held=False)
    job = player.the_job(elsewhere)
    assert "--config-only" in arguments_of(job)
    player.end(job)
    served.until("Distributed", "Distributed")


def test_what_a_pod_finds_damaged_is_fetched_anew_with_every_byte_checked(served: Site) -> None:
    player, pod = fetches(served), worker(served)
    [record] = player.jobs()
    served.let_pass(1.1)  # the time stamps of Kubernetes are whole seconds
    # Where the record is old the next try is at hand: both reasons may have passed when somebody looks.
    with closing(served.api.changes("SovereignModel", served.models)) as changes:
        player.complain(pod, CORRUPT)
        model = next(body for body in changes if reason(body, "Distributed") == "CacheCorrupt")
        assert "model.safetensors has other bytes" in condition(model, "Distributed")["message"]
        assert not condition(model, "Stalled")
        if reason(model, "Serving") != "DeliveryFailed":
            next(body for body in changes if reason(body, "Serving") == "DeliveryFailed")
    retry = {"metadata": {"annotations": {"sovereign.dev/retry": "now"}}}  # or 30 s after the record
    served.api.patch("SovereignModel", served.models, "tiny", retry)
    job = player.the_job()
    assert job["metadata"]["uid"] != record["metadata"]["uid"]
    assert arguments_of(job)[arguments_of(job).index("--verify") + 1] == "always"
    served.let_pass(1.1)
    player.end(job, DONE | {"repaired": ["model.safetensors"], "message": "1 file was damaged."})
    player.hold(pod)
    served.until("Ready", "AllChecksPassed")
    assert delivery(served)["nodes"][0]["reason"] == "CacheRepaired"
    served.await_events("CacheRepaired")


def test_a_record_that_somebody_deletes_is_made_again_while_the_model_serves(served: Site) -> None:
    player = fetches(served)
    [record] = player.jobs()
    served.api.delete("Job", served.system, record["metadata"]["name"])
    job = player.the_job()
    assert condition(served.model(), "Ready")["status"] == "True"
    player.end(job)
    served.settle()
    assert condition(served.model(), "Ready")["status"] == "True"


# -- changes ----------------------------------------------------------------------------------------------


def test_a_new_revision_is_on_the_node_before_the_old_one_is_touched(served: Site) -> None:
    player, before = fetches(served), served.player().service()
    node, old = worker(served)["spec"]["nodeName"], served.model()["status"]["servingArtifact"]
    served.registry.publish("models/org/tiny", NEXT_REVISION)
    source = {"huggingFace": {"repo": "org/tiny", "revision": NEXT_REVISION}}
    served.api.patch("SovereignModel", served.models, "tiny", {"spec": {"source": source}})
    job = player.the_job(node)
    assert digest_of(job) != old
    assert arguments_of(job)[arguments_of(job).index("--keep") + 1] == old
    model = served.until("Ready", "FetchPending")
    assert condition(model, "Serving")["status"] == "True"
    assert served.player().service()["spec"] == before["spec"]
    player.end(job)
    eventually(lambda: served.player().service()["spec"].get("suspend"), "the old cluster is stopped")
    served.player().stop()
    eventually(lambda: not served.player().service()["spec"].get("suspend"), "the new one is started")
    start(served, "tiny", node)
    gone(served, lambda: [each for each in player.jobs() if digest_of(each) == old], "the old record is gone")


def test_two_models_share_a_fetch_and_the_last_one_takes_it_with_it(site: Site) -> None:
    site.add_node()
    player = fetches(site)
    with site.operator():
        node = serve(site)
        site.create_model("second", **NODE_CACHE)
        site.until("Distributed", "Distributed", "second")
        [job] = player.jobs()
        start(site, "second", node)
        for name, left in (("tiny", 1), ("second", 0)):
            site.api.delete("SovereignModel", site.models, name)
            eventually(lambda name=name: not site.player(name).service(), "the RayService is gone")
            site.player(name).stop()
            eventually(lambda name=name: not site.model(name), "the model is gone")
            if left:
                assert [each["metadata"]["uid"] for each in player.jobs()] == [job["metadata"]["uid"]]
        gone(site, player.jobs, "the Job is gone")


def test_a_model_that_goes_in_the_middle_of_a_fetch_leaves_none(site: Site) -> None:
    site.add_node()
    player = fetches(site)
    with site.operator():
        site.create_model(**NODE_CACHE)
        player.run(player.the_job())
        site.until("Distributed", "Fetching")
        site.api.delete("SovereignModel", site.models, "tiny")
        eventually(lambda: not site.model(), "the model is gone")
        gone(site, player.jobs, "the Job is gone")


def test_what_was_fetched_a_while_ago_is_scrubbed(site: Site) -> None:
    site.settings["nodeCache"] |= {"scrubIntervalSeconds": 20}
    site.add_node()
    player = fetches(site)
    with site.operator():
        serve(site)
        scrub = player.the_job()
        assert scrub["metadata"]["name"].startswith("scrub-")
        assert condition(site.model(), "Ready")["status"] == "True"
        player.end(scrub, DONE | {"repaired": ["model.safetensors"], "message": "1 file was damaged."})
        site.await_events("CacheRepaired")
        assert condition(site.model(), "Ready")["status"] == "True"
