# SPDX-License-Identifier: Apache-2.0
"""Weights on their way to nodes: what is fetched where and when, and what is said about it."""

from __future__ import annotations

import json

from sovereign_operator.api import DeliveryStatus
from sovereign_operator.desired.fetch_job import Fetch
from sovereign_operator.job_tries import PERSISTENT
from sovereign_operator.world import name_of
from tests.unit.operator.builders import a_caching_config, a_node, an_artifact
from tests.unit.operator.cached_worlds import (
    DONE,
    NEXT_DIGEST,
    CachedUniverse,
    a_distributed_universe,
    a_fetching_universe,
    nodes,
)
from tests.unit.operator.worlds import a_body

# -- from the registry to the nodes -----------------------------------------------------------------------


def test_nothing_is_fetched_before_there_is_an_artifact_and_everything_at_once_then() -> None:
    universe = CachedUniverse()
    universe.settle()
    assert universe.jobs() == []
    assert universe.condition("Distributed")["status"] == "Unknown"
    universe.mirrored()
    universe.settle()
    assert len(universe.fetching()) == 1
    assert universe.reason() == universe.reason("Distributed") == "FetchPending"
    assert universe.settle().again == 10


def test_no_service_exists_before_the_chosen_node_has_the_weights() -> None:
    universe = a_fetching_universe()
    (node,) = universe.fetching()
    universe.run_fetch(node, 5, 10)
    universe.settle()
    assert not universe.of("RayService")
    universe.end_fetch(node)
    universe.settle()
    assert universe.chosen() == (node,)
    assert universe.condition("Distributed")["status"] == "True"
    assert universe.reason("Serving") == "Starting"


def test_every_worker_has_a_place_and_its_node_is_fetched_to() -> None:
    universe = CachedUniverse(body=a_body(delivery={"mode": "nodeCache"}, serving={"replicas": 4}))
    universe.nodes = nodes("gpu-a", "gpu-b", "gpu-c")
    universe.mirrored()
    universe.settle()
    assert len(universe.fetching()) == 2, "two workers with four accelerators each fit a node"
    first, second = universe.fetching()
    universe.end_fetch(first)
    universe.settle()
    assert not universe.of("RayService")
    assert "1 of 2 nodes" in universe.condition("Distributed")["message"]
    universe.end_fetch(second)
    universe.settle()
    assert universe.chosen() == (first, second)


def test_progress_is_said_in_bytes_and_per_second() -> None:
    universe = CachedUniverse(body=a_body(delivery={"mode": "nodeCache"}, serving={"replicas": 4}))
    universe.mirrored()
    universe.settle()
    first, second = universe.fetching()
    universe.run_fetch(first, 3 * 2**30, 0, 2**29)
    universe.run_fetch(second, 2**30, 0, 2**29)
    assert universe.settle().again == 10
    assert universe.reason("Distributed") == "Fetching"
    said = universe.condition("Distributed")["message"]
    assert said == "0 of 2 nodes have the weights; 4.0 GiB of 174.0 GiB on the others, 1.0 GiB/s."
    delivery = universe.delivery
    assert (delivery["bytesDone"], delivery["rate"]) == (2**32, 2**30)
    assert delivery["bytesTotal"] == 2 * an_artifact().bytes
    assert (delivery["nodesReady"], delivery["nodesWanted"]) == (0, 2)
    assert universe.node_status(first)["state"] == "Fetching"
    DeliveryStatus.model_validate(delivery)


def test_a_model_that_pulls_for_each_pod_has_no_such_stage_and_no_jobs() -> None:
    universe = CachedUniverse(body=a_body())
    universe.mirrored()
    universe.settle()
    assert not universe.condition("Distributed")
    assert "delivery" not in universe.body["status"]
    assert universe.jobs() == []
    assert universe.of("RayService")


def test_without_a_cache_in_the_configuration_the_mode_is_refused_and_says_which_value() -> None:
    universe = CachedUniverse(config=a_caching_config(nodeCache=None))
    universe.mirrored()
    universe.settle()
    assert universe.reason() == universe.reason("Stalled") == "DeliveryModeUnavailable"
    assert "nodeCache.enabled" in universe.condition("Ready")["message"]
    assert universe.jobs() == []


def test_nothing_is_fetched_that_is_not_verified() -> None:
    universe = CachedUniverse(
        body=a_body(delivery={"mode": "nodeCache"}, verification={"keysSecretRef": {"name": "keys"}})
    )
    universe.mirrored()
    universe.settle()
    assert universe.reason() == "KeysUnusable"
    assert universe.jobs() == []


def test_a_steady_state_asks_for_nothing_until_the_next_scrub() -> None:
    universe = a_distributed_universe()
    decision = universe.step()
    assert (decision.actions, decision.again, decision.unsettled) == ((), None, "")
    assert decision.rest == 604800
    universe.later(3600)
    assert universe.step().rest == 604800 - 3600


def test_an_operator_that_starts_anew_finds_what_it_had_begun() -> None:
    universe = a_fetching_universe()
    (node,) = universe.fetching()
    other = CachedUniverse(body=universe.body, children=universe.children, nodes=universe.nodes)
    other.mirrored()
    other.settle()
    assert other.fetching() == [node]
    assert other.done == []


# -- where pods land --------------------------------------------------------------------------------------


def test_a_pod_on_another_node_gets_its_weights_there() -> None:
    universe = a_distributed_universe()
    (chosen,) = universe.chosen()
    elsewhere = next(node.name for node in universe.nodes if node.name != chosen)
    universe.stop_cluster()
    universe.start_cluster(on=[chosen])
    universe.land_another("one-0", elsewhere)
    universe.settle()
    assert universe.fetching() == [elsewhere]
    assert universe.condition("Distributed")["status"] == "False"
    assert universe.reason() == "FetchPending"
    universe.end_fetch(elsewhere)
    universe.hold("one-0")
    universe.settle()
    assert universe.condition("Distributed")["status"] == "True"
    assert universe.chosen() == (chosen,), "the template keeps its preference, or pods would be replaced"


def test_the_heads_node_gets_the_small_files_and_the_service_does_not_wait_for_them() -> None:
    universe = a_distributed_universe()
    (chosen,) = universe.chosen()
    elsewhere = next(node.name for node in universe.nodes if node.name != chosen)
    universe.land_another("one-head", elsewhere, "head")
    universe.settle()
    job = universe.job(elsewhere)
    assert "--config-only" in job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert name_of(job) == Fetch("models", elsewhere, an_artifact().reference, config_only=True).name
    assert universe.reason("Distributed") == "FetchPending"
    universe.change(serving={**universe.body["spec"]["serving"], "engineArgs": {"seed": "1"}})
    universe.settle()
    assert "seed" in universe.service()["spec"]["serveConfigV2"]


def test_a_head_on_a_workers_node_needs_nothing_of_its_own() -> None:
    universe = a_distributed_universe()
    assert len(universe.jobs()) == 1
    assert universe.delivery["nodesWanted"] == 1


def test_what_a_pod_names_is_fetched_only_where_the_model_serves_it() -> None:
    universe = a_distributed_universe()
    universe.land_another("intruder", "gpu-c")
    marks = universe.children["Pod", "intruder"]["metadata"]["annotations"]
    marks["sovereign.dev/artifact"] = f"models/other/secret@{NEXT_DIGEST}"
    universe.settle()
    assert universe.fetching() == []


def test_a_dying_or_finished_pod_needs_nothing() -> None:
    universe = a_distributed_universe("gpu-a", "gpu-b")
    (chosen,) = universe.chosen()
    other = "gpu-b" if chosen == "gpu-a" else "gpu-a"
    universe.land_another("going", other)
    universe.children["Pod", "going"]["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    universe.land_another("ended", other)
    universe.children["Pod", "ended"]["status"] = {"phase": "Failed"}
    universe.settle()
    assert universe.fetching() == []


# -- bounds ------------------------------------------------------------------------------------------------


def test_a_cordoned_node_is_not_chosen() -> None:
    universe = CachedUniverse(nodes=(a_node("gpu-a", schedulable=False), a_node("gpu-b")))
    universe.mirrored()
    universe.settle()
    assert universe.fetching() == ["gpu-b"]


def test_the_status_has_a_bound_whatever_is_wanted_and_said() -> None:
    names = [f"{number:03}.{'n' * 240}" for number in range(100)]
    universe = CachedUniverse(nodes=nodes(*names, accelerators=4))
    universe.body = a_body(delivery={"mode": "nodeCache"}, serving={"replicas": 40})
    universe.body["spec"]["serving"]["parallelism"] = {"tensor": 4, "data": 2, "expert": False}
    universe.mirrored()
    universe.settle()
    assert len(universe.fetching()) > 64
    for node in universe.fetching()[:70]:
        universe.end_fetch(node, {"reason": "CacheFull", "message": "x" * 3000})
    universe.step()
    assert len(universe.delivery["nodes"]) == 64
    assert all(len(node["message"]) <= 256 for node in universe.delivery["nodes"])
    assert len(json.dumps(universe.body["status"])) < 64_000


def test_reasons_of_a_cache_that_go_away_by_themselves_do_not_stall() -> None:
    assert not {"CacheFull", "CacheMissing", "CacheBusy"} & PERSISTENT
    assert DONE["reason"] == "Fetched"
