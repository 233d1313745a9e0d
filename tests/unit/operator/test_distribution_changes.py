# SPDX-License-Identifier: Apache-2.0
"""Weights on nodes when something changes: upgrades, suspension, other modes, neighbours, deletion."""

from __future__ import annotations

import copy
import itertools

import pytest

from sovereign_operator.api import ANNOTATION_RETRY
from sovereign_operator.values import NOT_THERE
from sovereign_operator.world import Apply, Create, Delete, annotation, name_of
from tests.unit.operator.builders import DIGEST, a_caching_config
from tests.unit.operator.cached_worlds import (
    DOWN,
    NEXT,
    NEXT_DIGEST,
    CachedUniverse,
    a_distributed_universe,
    a_fetching_universe,
    a_neighbour,
    digests_under_way,
    nodes,
    upgrade,
)
from tests.unit.operator.worlds import a_body

# -- upgrades, suspension, other modes --------------------------------------------------------------------


def test_an_upgrade_is_fetched_first_while_the_old_one_serves() -> None:
    universe = a_distributed_universe()
    (chosen,) = universe.chosen()
    before = universe.service()
    upgrade(universe)
    assert universe.fetching() == [chosen], "the places of the old workers are the new ones'"
    assert universe.reason() == "FetchPending"
    assert universe.condition("Serving")["status"] == "True"
    assert universe.service() == before
    assert digests_under_way(universe) == {DIGEST, NEXT_DIGEST}
    arguments = next(
        job["spec"]["template"]["spec"]["containers"][0]["args"]
        for job in universe.jobs(chosen)
        if NEXT_DIGEST in annotation(job, "sovereign.dev/artifact")
    )
    assert arguments[arguments.index("--keep") + 1] == DIGEST
    for job in universe.jobs():
        if "status" not in job:
            job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    universe.settle()
    assert universe.service()["spec"]["suspend"] is True
    universe.stop_cluster()
    universe.settle()
    assert digests_under_way(universe) == {NEXT_DIGEST}, "the old record is nobody's any more"
    universe.start_cluster("two", on=universe.chosen())
    universe.settle()
    assert universe.reason() == "AllChecksPassed"
    assert universe.body["status"]["servingArtifact"] == NEXT_DIGEST


def test_a_new_cluster_beside_the_old_one_needs_places_of_its_own() -> None:
    universe = a_distributed_universe("gpu-a", "gpu-b", upgrade={"strategy": "newCluster"})
    (chosen,) = universe.chosen()
    universe.nodes = nodes("gpu-a", "gpu-b", accelerators=4)
    upgrade(universe)
    (other,) = universe.fetching()
    assert other != chosen


def test_the_old_revision_is_still_fetched_where_its_pods_land_during_an_upgrade() -> None:
    universe = a_distributed_universe()
    (chosen,) = universe.chosen()
    upgrade(universe)
    elsewhere = next(node.name for node in universe.nodes if node.name != chosen)
    universe.land_another("one-0", elsewhere)
    universe.settle()
    (job,) = universe.jobs(elsewhere)
    assert DIGEST in annotation(job, "sovereign.dev/artifact")


def test_another_digest_while_the_first_is_fetched_replaces_its_jobs() -> None:
    universe = a_fetching_universe()
    upgrade(universe)
    assert digests_under_way(universe) == {NEXT_DIGEST}


def test_a_revision_that_is_being_mirrored_leaves_records_and_pods_alone() -> None:
    universe = a_distributed_universe()
    jobs = universe.jobs()
    repo = "mistralai/Mixtral-8x7B-Instruct-v0.1"
    universe.change(source={"huggingFace": {"repo": repo, "revision": NEXT}})
    universe.found = NOT_THERE
    universe.settle()
    assert universe.jobs() == jobs
    assert universe.reason() == "MirrorPending"
    assert universe.condition("Serving")["status"] == "True"


def test_a_suspended_model_fetches_nothing_and_keeps_its_records() -> None:
    universe = CachedUniverse(body=a_body(delivery={"mode": "nodeCache"}, suspend=True))
    universe.mirrored()
    decision = universe.settle()
    assert universe.jobs() == []
    assert decision.again is None
    assert universe.condition("Distributed")["status"] == "Unknown"
    universe.change(suspend=False)
    universe.settle()
    universe.end_fetches()
    universe.settle()
    universe.change(suspend=True)
    universe.settle()
    assert len(universe.jobs()) == 1
    assert universe.condition("Distributed")["status"] == "True"


def test_suspension_does_not_wait_for_weights() -> None:
    universe = a_distributed_universe()
    upgrade(universe)
    universe.change(suspend=True)
    universe.settle()
    assert universe.service()["spec"]["suspend"] is True


def test_a_model_can_be_suspended_when_its_cluster_has_no_cache_any_more() -> None:
    universe = a_distributed_universe()
    before = universe.service()
    universe.config = a_caching_config(nodeCache=None)
    universe.settle()
    assert universe.service() == before, "what serves is left alone"
    universe.change(suspend=True)
    universe.settle()
    assert universe.service()["spec"] == before["spec"] | {"suspend": True}
    universe.stop_cluster()
    universe.done.clear()
    universe.settle()
    assert universe.done == []
    assert "no pods run" in universe.condition("Serving")["message"]
    universe.config = a_caching_config()
    universe.settle()
    assert universe.actions_of(Apply) == [], "it is as it would have been rendered"


@pytest.mark.parametrize("mode", ["nodeCache", "ephemeral"])
def test_a_cache_that_is_switched_off_leaves_no_jobs(mode: str) -> None:
    universe = a_fetching_universe()
    (node,) = universe.fetching()
    dying = copy.deepcopy(universe.job(node))
    dying["metadata"] |= {"name": "fetch-dying", "deletionTimestamp": "2026-01-31T12:00:00Z"}
    universe.children["Job", "fetch-dying"] = dying
    universe.neighbours = [a_neighbour(digest=DIGEST)]
    universe.config = a_caching_config(nodeCache=None)
    universe.change(delivery={"mode": mode})
    universe.done.clear()
    universe.settle()
    assert universe.jobs() == [dying], "it goes already"
    (deleted,) = universe.actions_of(Delete)
    assert isinstance(deleted, Delete)
    assert deleted.foreground, "its pod goes with it"


def test_a_model_that_pulls_again_for_each_pod_leaves_no_jobs() -> None:
    universe = a_distributed_universe()
    universe.change(delivery={"mode": "ephemeral"})
    universe.settle()
    universe.stop_cluster()
    universe.settle()
    assert universe.jobs() == []
    template = universe.service()["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]
    assert "affinity" not in template["spec"]


def test_a_change_of_the_mode_is_fetched_before_the_old_pods_go() -> None:
    universe = CachedUniverse(body=a_body())
    universe.mirrored()
    universe.settle()
    universe.start_cluster(on=["gpu-b"])
    universe.settle()
    assert universe.reason() == "AllChecksPassed"
    universe.change(delivery={"mode": "nodeCache"})
    universe.settle()
    assert universe.fetching() == ["gpu-b"]
    assert "suspend" not in universe.service()["spec"]
    universe.end_fetches()
    universe.settle()
    assert universe.service()["spec"]["suspend"] is True
    assert universe.chosen() == ("gpu-b",)


def test_the_preference_of_a_template_never_changes_by_itself() -> None:
    universe = a_distributed_universe()
    before = universe.service()
    universe.stop_cluster()
    universe.nodes = nodes("gpu-x", "gpu-y")
    universe.settle()
    universe.nodes = nodes("gpu-a", "gpu-b", "gpu-c", "gpu-d")
    universe.settle()
    assert universe.service() == before


# -- neighbours -------------------------------------------------------------------------------------------


def test_a_job_that_another_model_started_is_ours_too() -> None:
    universe = a_fetching_universe()
    (node,) = universe.fetching()
    job = universe.job(node)
    job["metadata"]["annotations"]["sovereign.dev/model"] = "models/other"
    other = CachedUniverse(body=a_body("second", delivery={"mode": "nodeCache"}), nodes=universe.nodes)
    other.body["metadata"]["uid"] = universe.body["metadata"]["uid"]
    other.children["Job", name_of(job)] = job
    other.neighbours = [a_neighbour("other", nodes=[node], digest=DIGEST)]
    other.mirrored()
    other.settle()
    assert other.actions_of(Create, Delete) == []
    other.end_fetch(node)
    other.settle()
    assert other.of("RayService")


def test_what_another_model_of_the_namespace_serves_is_not_cleared_away() -> None:
    universe = a_fetching_universe()
    universe.neighbours = [a_neighbour(nodes=["gpu-b"], digest=DIGEST)]
    upgrade(universe)
    assert digests_under_way(universe) == {DIGEST, NEXT_DIGEST}


def test_only_what_is_on_the_node_is_kept_there() -> None:
    other, suspended, elsewhere = (f"sha256:{number:064x}" for number in range(3))
    universe = CachedUniverse(nodes=nodes("gpu-a"))
    universe.neighbours = [
        a_neighbour("one", nodes=["gpu-a"], digest=other),
        a_neighbour("two", nodes=["gpu-a"], digest=suspended, suspend=True),
        a_neighbour("three", nodes=["gpu-b"], digest=elsewhere),
        a_neighbour("four", nodes=[f"n{number}" for number in range(64)], digest="sha256:" + "9" * 64),
    ]
    universe.mirrored()
    universe.settle()
    arguments = universe.job("gpu-a")["spec"]["template"]["spec"]["containers"][0]["args"]
    kept = [each for before, each in itertools.pairwise(arguments) if before == "--keep"]
    assert kept == [other, "sha256:" + "9" * 64], "who lists as many as fit may have it anywhere"


def test_two_models_that_ask_for_another_try_do_not_ask_each_other_for_ever() -> None:
    mine, theirs = a_neighbour("mixtral", digest=DIGEST), a_neighbour("other", digest=DIGEST)
    for body, wish in ((mine, "x"), (theirs, "y")):
        body["metadata"]["annotations"] = {ANNOTATION_RETRY: wish}
    one = CachedUniverse(nodes=nodes("gpu-a"), neighbours=[theirs])
    one.body["metadata"]["annotations"] = {ANNOTATION_RETRY: "x"}
    one.mirrored()
    one.settle()
    two = CachedUniverse(body=a_body("other", delivery={"mode": "nodeCache"}), neighbours=[mine])
    two.nodes = one.nodes
    two.children["Job", name_of(one.job("gpu-a"))] = one.job("gpu-a")
    two.body["metadata"]["annotations"] = {ANNOTATION_RETRY: "y"}
    two.mirrored()
    two.settle()
    one.end_fetch("gpu-a", DOWN)
    two.fetch_pods = one.fetch_pods
    for universe in (one, two, one, two):
        universe.done.clear()
        universe.settle()
        assert universe.done == []
    theirs["metadata"]["annotations"] = {ANNOTATION_RETRY: "z"}
    two.body["metadata"]["annotations"] = {ANNOTATION_RETRY: "z"}
    two.step()
    assert [type(each) for each in two.done] == [Delete]
    two.settle()
    assert two.fetching() == ["gpu-a"]
    assert len(annotation(two.job("gpu-a"), ANNOTATION_RETRY).split(",")) == 2


def test_accelerators_that_others_have_are_respected_where_there_are_other_nodes() -> None:
    universe = CachedUniverse(nodes=nodes("gpu-a", "gpu-b"), taken={"gpu-a": 8})
    universe.mirrored()
    universe.settle()
    assert universe.fetching() == ["gpu-b"]
    waiting = CachedUniverse(nodes=nodes("gpu-a"), taken={"gpu-a": 8})
    waiting.mirrored()
    waiting.settle()
    assert waiting.fetching() == ["gpu-a"]


# -- deletion ---------------------------------------------------------------------------------------------


def test_a_model_that_goes_takes_its_jobs_with_it_and_waits_for_none() -> None:
    universe = a_distributed_universe()
    for key in [key for key in universe.children if key[0] not in ("NetworkPolicy", "Job")]:
        del universe.children[key]
    universe.ask_to_delete()
    universe.step()
    assert universe.jobs() == []
    assert universe.gone


def test_a_model_that_goes_leaves_what_another_one_serves() -> None:
    universe = a_distributed_universe()
    universe.neighbours = [a_neighbour(digest=DIGEST)]
    universe.ask_to_delete()
    universe.step()
    assert len(universe.jobs()) == 1
    going = a_neighbour(digest=DIGEST)
    going["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    universe.neighbours = [going]
    universe.step()
    assert universe.jobs() == []


def test_the_sweep_takes_the_jobs_that_were_left_behind() -> None:
    universe = a_fetching_universe()
    universe.gone = True
    universe.step()
    assert universe.jobs() == []
