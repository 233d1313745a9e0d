# SPDX-License-Identifier: Apache-2.0
"""Which nodes are chosen for a model's weights: enough, the same ones again, and others' places last."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sovereign_operator.api import SovereignModel
from sovereign_operator.distribution_nodes import choose, landed, wanted
from sovereign_operator.fetches import Fetches
from sovereign_operator.placement import group_of
from sovereign_operator.rollout import Memo
from sovereign_operator.values import Manifest, NodeFacts, Placement
from sovereign_operator.world import World
from tests.unit.operator.builders import a_model, a_node, an_artifact
from tests.unit.operator.worlds import START

REFERENCE = an_artifact().reference
OLD = f"models/example/old@sha256:{'0' * 64}"
Nodes = tuple[NodeFacts, ...]

SOME_NODES = st.lists(
    st.builds(
        a_node,
        name=st.from_regex(r"gpu-[a-z]{1,3}", fullmatch=True),
        accelerators=st.integers(0, 8),
        ready=st.booleans(),
        schedulable=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda node: node.name,
).map(tuple)
STANDINGS = st.dictionaries(st.from_regex(r"gpu-[a-z]{1,3}", fullmatch=True), st.integers(0, 3))


def a_memo(pods: int = 1, accelerators: int = 2, chosen: tuple[str, ...] = ()) -> Memo:
    placement = Placement(
        tensor=accelerators,
        pipeline=1,
        data=1,
        expert=False,
        replicas=pods,
        accelerators_per_worker=accelerators,
        workers=1,
        ranks_per_worker=1,
        chosen=chosen,
    )
    return Memo("purpose", an_artifact(), placement)


def a_world(nodes: Nodes, taken: dict[str, int] | None = None, pods: tuple[Manifest, ...] = ()) -> World:
    return World(("models", "mixtral"), START, nodes=nodes, fetches=Fetches(taken=taken or {}), pods=pods)


def a_worker(node: str, reference: str = REFERENCE, name: str = "w", accelerators: int = 2) -> Manifest:
    limits = {"nvidia.com/gpu": str(accelerators)}
    return {
        "metadata": {
            "name": name,
            "labels": {"sovereign.dev/component": "worker"},
            "annotations": {"sovereign.dev/artifact": reference},
        },
        "spec": {"nodeName": node, "containers": [{"resources": {"limits": limits}}]},
        "status": {"phase": "Running"},
    }


def chosen(
    nodes: Nodes,
    memo: Memo | None = None,
    standings: dict[str, int] | None = None,
    model: SovereignModel | None = None,
    **world: Any,
) -> tuple[str, ...]:
    known = standings or {}
    return choose(
        a_world(nodes, **world), model or a_model(), memo or a_memo(), lambda node: known.get(node, 2)
    )


def places(nodes: Nodes, names: tuple[str, ...], accelerators: int = 2) -> int:
    return sum(
        node.allocatable.get("nvidia.com/gpu", 0) // accelerators for node in nodes if node.name in names
    )


@settings(max_examples=200, deadline=None)
@given(SOME_NODES, st.integers(1, 20), STANDINGS, st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)))
def test_there_are_places_for_all_workers_where_the_nodes_have_them(
    nodes: Nodes, pods: int, standings: dict[str, int], taken: dict[str, int]
) -> None:
    found = chosen(nodes, a_memo(pods), standings, taken={f"gpu-{name}": n for name, n in taken.items()})
    usable = [n for n in group_of(a_model().spec, nodes) if n.ready and n.schedulable]
    assert set(found) <= {node.name for node in usable}
    possible = places(tuple(usable), tuple(node.name for node in usable))
    assert places(nodes, found) >= min(pods, possible)
    assert len(found) <= pods


@settings(max_examples=200, deadline=None)
@given(SOME_NODES, st.integers(1, 20), STANDINGS, st.randoms())
def test_the_choice_stands_once_something_is_under_way(
    nodes: Nodes, pods: int, standings: dict[str, int], order: Any
) -> None:
    memo = a_memo(pods)
    found = chosen(nodes, memo, standings)
    shuffled = list(nodes)
    order.shuffle(shuffled)
    assert chosen(tuple(shuffled), memo, standings) == found
    begun = dict.fromkeys(standings, 2) | dict.fromkeys(found, 1)
    assert chosen(nodes, memo, begun) == found


@settings(max_examples=100, deadline=None)
@given(SOME_NODES, st.integers(1, 6))
def test_a_node_that_was_not_chosen_may_go(nodes: Nodes, pods: int) -> None:
    found = chosen(nodes, a_memo(pods))
    for node in nodes:
        if node.name not in found:
            assert chosen(tuple(n for n in nodes if n is not node), a_memo(pods)) == found


def test_models_spread_over_equal_nodes() -> None:
    nodes = tuple(a_node(f"gpu-{number}") for number in range(4))
    found = Counter(chosen(nodes, model=a_model(uid=f"uid-{number}"))[0] for number in range(400))
    assert len(found) == 4
    assert min(found.values()) > 60


def test_what_has_the_weights_comes_first_then_what_gets_them_and_a_full_cache_last() -> None:
    nodes = tuple(a_node(f"gpu-{name}") for name in "abcd")
    standings = {"gpu-a": 3, "gpu-b": 1, "gpu-c": 0, "gpu-d": 2}
    order = []
    while nodes:
        (found,) = chosen(nodes, standings=standings)
        order.append(found)
        nodes = tuple(node for node in nodes if node.name != found)
    assert order == ["gpu-c", "gpu-b", "gpu-d", "gpu-a"]


def test_among_equals_the_nodes_that_the_running_template_prefers() -> None:
    nodes = tuple(a_node(f"gpu-{number}") for number in range(9))
    for node in nodes:
        assert chosen(nodes, a_memo(chosen=(node.name,))) == (node.name,)


def test_a_worker_that_runs_has_its_place_whatever_the_node_is_like_now() -> None:
    nodes = (a_node("gpu-a", schedulable=False), a_node("gpu-b"))
    assert chosen(nodes, standings={"gpu-b": 0}, pods=(a_worker("gpu-a"),)) == ("gpu-a",)
    assert chosen(nodes, a_memo(2), pods=(a_worker("gpu-a"),)) == ("gpu-a", "gpu-b")
    lost = (a_node("gpu-a", ready=False), a_node("gpu-b"))
    assert chosen(lost, pods=(a_worker("gpu-a"),)) == ("gpu-b",)


def test_the_places_of_workers_that_go_first_are_the_new_ones() -> None:
    nodes = tuple(a_node(f"gpu-{name}", 2) for name in "abc")
    for node in nodes:
        world = a_world(nodes, pods=(a_worker(node.name, ""),))
        assert choose(world, a_model(), a_memo(), lambda _: 2) == (node.name,)


def test_workers_that_stay_until_the_new_ones_serve_keep_their_accelerators() -> None:
    nodes = (a_node("gpu-a", 3), a_node("gpu-b", 2))
    model = a_model(upgrade={"strategy": "newCluster"})
    assert chosen(nodes, model=model, pods=(a_worker("gpu-a", OLD),)) == ("gpu-b",)
    roomy = (a_node("gpu-a", 4),)
    assert chosen(roomy, model=model, pods=(a_worker("gpu-a", OLD),)) == ("gpu-a",)


def test_a_stranger_in_the_models_clothes_moves_nothing() -> None:
    nodes = (a_node("gpu-a"), a_node("gpu-b"))
    usual = chosen(nodes)
    other = next(node.name for node in nodes if node.name not in usual)
    assert chosen(nodes, pods=(a_worker(other, OLD),)) == usual


def test_whoever_has_all_of_an_artifact_has_the_heads_part_too() -> None:
    head = a_worker("gpu-a", name="head")
    head["metadata"]["labels"]["sovereign.dev/component"] = "head"
    elsewhere = a_worker("gpu-b", name="head-2")
    elsewhere["metadata"]["labels"]["sovereign.dev/component"] = "head"
    world = a_world((a_node("gpu-a"), a_node("gpu-b")), pods=(head, elsewhere))
    pods = landed(world, a_model(), a_memo())
    found = wanted(a_model(), ("gpu-a",), a_memo(), pods)
    assert [(each.node, each.config_only) for each in found] == [("gpu-a", False), ("gpu-b", True)]
