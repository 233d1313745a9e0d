# SPDX-License-Identifier: Apache-2.0
"""What counts as in force: the comparison that keeps a steady state from sending requests."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovereign_operator.api import ANNOTATION_RENDERED
from sovereign_operator.desired.quantity import cores, parse_cores, parse_size, rounded_up, size
from sovereign_operator.desired.rendered import contains, defects, rendered_hash, with_hash

TREES = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=40)
@given(TREES)
def test_a_tree_contains_itself(tree: Any) -> None:
    assert contains(copy.deepcopy(tree), tree)


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=3), TREES, max_size=3), st.text(max_size=3), TREES)
def test_defaults_that_others_add_are_no_difference(tree: dict[str, Any], key: str, value: Any) -> None:
    live = {key: value} | copy.deepcopy(tree)
    assert contains({"spec": live}, {"spec": tree})


@pytest.mark.parametrize(
    ("live", "rendered"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"a": 1, "b": 1}),
        ({"a": [1, 2, 3]}, {"a": [1, 2]}),  # a list is replaced as a whole: one element more is a difference
        ({"a": [2, 1]}, {"a": [1, 2]}),
        ({"a": 1}, {"a": True}),
        ({"a": "1"}, {"a": 1}),
        ({"a": None}, {"a": {}}),
        ({}, {"a": False}),
    ],
)
def test_a_change_is_seen(live: Any, rendered: Any) -> None:
    assert not contains(live, rendered)


def test_the_hash_ignores_the_order_of_keys_and_its_own_mark() -> None:
    one = {"metadata": {"name": "a", "annotations": {"x": "y"}}, "spec": {"b": 1, "a": 2}}
    other = {"spec": {"a": 2, "b": 1}, "metadata": {"annotations": {"x": "y"}, "name": "a"}}
    assert rendered_hash(one) == rendered_hash(other) == rendered_hash(with_hash(one))
    assert with_hash(one)["metadata"]["annotations"][ANNOTATION_RENDERED] == rendered_hash(one)
    assert rendered_hash(one) != rendered_hash(one | {"spec": {"b": 1, "a": 3}})


def test_marking_leaves_the_original_alone() -> None:
    manifest = {"metadata": {"name": "a"}, "spec": {}}
    assert rendered_hash(with_hash(manifest)) == rendered_hash(manifest)
    assert manifest == {"metadata": {"name": "a"}, "spec": {}}


def test_what_does_not_survive_a_round_trip_is_found() -> None:
    tree: dict[str, Any] = {
        "a": None,
        "b": "",
        "c": [],
        "d": {},
        "e": 0,
        "f": [{"g": None}],
        "fine": [False, 1, "x"],
    }
    assert defects(tree) == [".a", ".b", ".c", ".d", ".e", ".f[0].g"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(1024, "1Ki"), (1024**3, "1Gi"), (1536 * 1024**2, "1536Mi"), (1000, "1000"), (3 * 1024**4, "3Ti")],
)
def test_sizes_are_spelt_as_the_api_server_spells_them(count: int, text: str) -> None:
    assert size(count) == text
    assert parse_size(text) == count


@pytest.mark.parametrize(("millis", "text"), [(1000, "1"), (500, "500m"), (1500, "1500m"), (64000, "64")])
def test_cores_are_spelt_as_the_api_server_spells_them(millis: int, text: str) -> None:
    assert cores(millis) == text
    assert parse_cores(text) == millis


@pytest.mark.parametrize(("text", "count"), [("1k", 1000), ("2M", 2_000_000), ("5G", 5 * 10**9), ("7", 7)])
def test_users_may_write_other_units(text: str, count: int) -> None:
    assert parse_size(text) == count


def test_sizes_are_rounded_up() -> None:
    assert [rounded_up(n, 64) for n in (1, 64, 65)] == [64, 64, 128]
