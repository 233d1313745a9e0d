# SPDX-License-Identifier: Apache-2.0
"""What is old on a node is hashed again: one node at a time, beside whatever serves, and repairs are told."""

from __future__ import annotations

import json

import pytest

from sovereign_operator import status
from sovereign_operator.world import Create, Delete, name_of
from tests.unit.operator.builders import a_caching_config
from tests.unit.operator.cached_worlds import (
    DONE,
    DOWN,
    CachedUniverse,
    a_distributed_universe,
    a_fetching_universe,
    nodes,
)

WEEK = 604800
REPAIRED = DONE | {"repaired": ["model-1.safetensors"], "message": "24 files are there. 1 file was damaged."}


def an_old_universe(seconds: float = WEEK + 1) -> CachedUniverse:
    """A model that has served for a week on the one node that there is."""
    universe = a_distributed_universe("gpu-a")
    universe.later(seconds)
    universe.settle()
    return universe


def scrubs(universe: CachedUniverse) -> list[str]:
    return [name_of(job) for job in universe.jobs(kind="scrub")]


def told(universe: CachedUniverse, before: dict[str, object]) -> list[str]:
    old, new = status.recorded({"status": before}), status.recorded(universe.body)
    return [each.reason for each in status.happenings(old, new, None, ())]


def test_what_a_week_ago_was_in_order_is_hashed_again_and_the_model_goes_on_serving() -> None:
    universe = an_old_universe(WEEK - 1)
    assert scrubs(universe) == []
    universe.later(2)
    universe.settle()
    (scrub,) = universe.jobs("gpu-a", "scrub")
    arguments = scrub["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--verify") + 1] == "always"
    assert universe.reason() == "AllChecksPassed"
    assert universe.jobs("gpu-a"), "the record stays"


def test_after_a_scrub_the_next_one_is_due_after_the_interval() -> None:
    universe = an_old_universe()
    universe.end_fetch("gpu-a", DONE, kind="scrub")
    universe.done.clear()
    assert universe.settle().rest == WEEK
    universe.later(WEEK - 1)
    universe.settle()
    assert universe.done == []
    universe.later(2)
    universe.settle()
    deleted, created = universe.actions_of(Delete, Create)
    assert isinstance(deleted, Delete)
    assert isinstance(created, Create)
    assert name_of(deleted.manifest) == name_of(created.manifest), "the name is the lock"


def test_what_was_damaged_is_said_once_and_the_node_is_ready() -> None:
    universe = an_old_universe()
    before = json.loads(json.dumps(universe.body["status"]))
    universe.end_fetch("gpu-a", REPAIRED, kind="scrub")
    universe.settle()
    assert universe.node_status("gpu-a")["reason"] == "CacheRepaired"
    assert "model-1.safetensors" in universe.node_status("gpu-a")["message"]
    assert told(universe, before) == ["CacheRepaired"]
    assert told(universe, universe.body["status"]) == []
    assert universe.reason() == "AllChecksPassed"


def test_a_scrub_that_fails_changes_nothing_and_is_not_repeated_at_the_pace_of_a_fetch() -> None:
    universe = an_old_universe()
    universe.end_fetch("gpu-a", DOWN, kind="scrub")
    universe.done.clear()
    assert universe.settle().rest == 3600
    assert universe.reason() == "AllChecksPassed"
    assert "scrub failed (RegistryUnavailable)" in universe.node_status("gpu-a")["message"]
    universe.later(3590)
    universe.settle()
    assert universe.done == []
    universe.later(20)
    universe.settle()
    assert [type(each) for each in universe.done] == [Delete, Create]


def test_one_node_of_a_model_is_scrubbed_at_a_time() -> None:
    universe = CachedUniverse(nodes=nodes("gpu-a", "gpu-b"))
    universe.body["spec"]["serving"]["replicas"] = 4
    universe.mirrored()
    universe.settle()
    universe.end_fetches()
    universe.settle()
    universe.start_cluster(on=["gpu-a", "gpu-a", "gpu-b", "gpu-b"])
    universe.later(WEEK + 1)
    universe.settle()
    (first,) = scrubs(universe)
    node = next(n for n in ("gpu-a", "gpu-b") if universe.jobs(n, "scrub"))
    universe.later(60)
    universe.end_fetch(node, DONE, kind="scrub")
    universe.settle()
    assert len(scrubs(universe)) == 2
    assert first in scrubs(universe)


@pytest.mark.parametrize("change", ["off", "suspended"])
def test_nothing_is_scrubbed_that_nobody_asks_for(change: str) -> None:
    universe = a_distributed_universe("gpu-a")
    if change == "off":
        universe.config = a_caching_config(nodeCache={"scrubIntervalSeconds": 0})
    else:
        universe.change(suspend=True)
        universe.settle()
    universe.done.clear()
    universe.later(10 * WEEK)
    assert universe.settle().rest is None
    assert universe.done == []


def test_a_fetch_does_not_start_while_a_scrub_writes_to_the_same_place() -> None:
    universe = an_old_universe()
    (scrub,) = universe.jobs("gpu-a", "scrub")
    del universe.children["Job", name_of(universe.job("gpu-a"))]
    universe.done.clear()
    universe.settle()
    assert universe.done == []
    assert universe.reason() == "AllChecksPassed"
    universe.end_fetch("gpu-a", DONE, kind="scrub")
    universe.settle()
    assert len(universe.jobs("gpu-a")) == 1
    assert name_of(scrub) in scrubs(universe)


def test_what_is_fetched_now_is_not_scrubbed() -> None:
    universe = a_fetching_universe()
    universe.later(10 * WEEK)
    universe.settle()
    assert scrubs(universe) == []
