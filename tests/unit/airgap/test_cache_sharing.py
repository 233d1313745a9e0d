# SPDX-License-Identifier: Apache-2.0
"""What entries of a node's cache share: bytes inside a tenant, and then also their damage."""

from __future__ import annotations

import errno
import os

import pytest

from sovereign_airgap.cache.damage import Damage, Rehash
from sovereign_airgap.cache.eviction import evict
from sovereign_airgap.cache.layout import inodes, usage
from sovereign_airgap.cache.siblings import Siblings
from sovereign_airgap.errors import (
    CacheBusy,
)
from sovereign_airgap.marker import encode_marker
from tests.unit.airgap.cache_entries import rot
from tests.unit.airgap.cache_node import (
    OTHER_FILES,
    SHARD,
    Node,
    inode,
    size_of,
)
from tests.unit.airgap.shelf import FILES


def test_what_two_artifacts_of_a_tenant_share_comes_once(node: Node) -> None:
    node.fetch()
    found = node.fetch(node.other)
    shared = [path for path in FILES if path != "config.json"]
    assert found.linked == sum(len(FILES[path]) for path in shared)
    assert found.fetched == len(b'{"b": 2}') + 200_000
    for path in shared:
        assert inode(node.entry().folder / path) == inode(node.entry(node.other).folder / path)
    node.require_whole(node.entry(node.other), OTHER_FILES)
    node.require_whole(node.entry())
    assert usage([node.entry(), node.entry(node.other)]) < 550_000


@pytest.mark.parametrize("verify_always", [True, False])
def test_tenants_share_nothing(node: Node, verify_always: bool) -> None:
    node.fetch()
    found = node.fetch(tenant="team-b", verify_always=verify_always)
    assert (found.linked, found.fetched) == (0, size_of(FILES))
    both = [inodes(node.entry(tenant=tenant).folder).keys() for tenant in ("team-a", "team-b")]
    assert both[0].isdisjoint(both[1])
    for tenant in ("team-a", "team-b"):
        node.require_whole(node.entry(tenant=tenant))


def test_what_no_marker_vouches_for_is_not_shared(node: Node) -> None:
    node.fetch()
    shard = node.entry().folder / SHARD
    shard.write_bytes(b"X" * len(FILES[SHARD]))
    assert node.fetch(node.other).linked == len(b"text"), "its time tells that it was written to"
    node.entry(node.other).withdraw()
    node.entry().withdraw()
    assert node.fetch(node.other).fetched == 0, "hashed, and kept"


def test_damage_that_the_marker_does_not_see_is_not_shared_where_everything_is_hashed(node: Node) -> None:
    node.fetch()
    rot(node.entry().folder / SHARD)
    found = node.fetch(node.other, verify_always=True)
    assert found.linked == len(b"text")
    node.require_whole(node.entry(node.other), OTHER_FILES)
    assert not node.entry().complete, "it was found damaged on the way"
    again = node.fetch()
    assert (again.repaired, again.fetched, again.linked) == ((SHARD,), 0, len(FILES[SHARD]))
    node.require_whole(node.entry())


def test_a_file_system_without_hard_links_has_copies(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    node.fetch()
    monkeypatch.setattr(os, "link", link)
    assert node.fetch(node.other).linked == 0
    node.require_whole(node.entry(node.other), OTHER_FILES)


@pytest.mark.parametrize("evicted", [True, False])
@pytest.mark.parametrize("damaged", [True, False])
def test_what_was_linked_from_a_sibling_that_no_longer_vouches_is_hashed(
    node: Node, monkeypatch: pytest.MonkeyPatch, damaged: bool, evicted: bool
) -> None:
    """A scrub in the middle of a fetch finds the bytes damaged, and somebody evicts the sibling then."""
    node.fetch()
    if damaged:
        rot(node.entry().folder / SHARD)
    real = Siblings.require_room

    def require_room(siblings: Siblings, *arguments: object) -> None:
        real(siblings, *arguments)  # type: ignore[arg-type]
        node.entry().withdraw()  # as a scrub does
        assert not evicted or evict(node.entry())

    monkeypatch.setattr(Siblings, "require_room", require_room)
    if damaged:
        with pytest.raises(CacheBusy, match=f"{SHARD}.*try again"):
            node.fetch(node.other)
        assert not node.entry(node.other).complete
        assert not node.entry(node.other).config_only
        monkeypatch.undo()
        assert node.fetch(node.other).repaired == (SHARD,)
    else:
        assert node.fetch(node.other).linked
    node.require_whole(node.entry(node.other), OTHER_FILES)


def test_while_what_was_linked_is_hashed_no_marker_vouches_for_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.fetch()
    hashing: list[bool] = []
    real_room, real_damages = Siblings.require_room, Rehash.damages

    def require_room(siblings: Siblings, *arguments: object) -> None:
        real_room(siblings, *arguments)  # type: ignore[arg-type]
        assert evict(node.entry())

    def damages(rehash: Rehash, *arguments: object) -> list[Damage]:
        other = node.entry(node.other)
        hashing.append(other.complete or other.config_only)
        return real_damages(rehash, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Siblings, "require_room", require_room)
    monkeypatch.setattr(Rehash, "damages", damages)
    node.fetch(node.other)
    assert hashing == [False]
    assert node.entry(node.other).complete


@pytest.mark.parametrize("verify_always", [True, False])
def test_damage_to_a_shared_file_withdraws_all_who_have_it(node: Node, verify_always: bool) -> None:
    node.fetch()
    node.fetch(node.other)
    rot(node.entry().folder / SHARD)
    if not verify_always:
        node.entry().withdraw()  # as a scrub does
    assert node.fetch(verify_always=verify_always).repaired == (SHARD,)
    node.require_whole(node.entry())
    assert not node.entry(node.other).complete
    assert not node.entry(node.other).config_only
    again = node.fetch(node.other)
    assert (again.repaired, again.fetched, again.linked) == ((SHARD,), 0, len(FILES[SHARD]))
    node.require_whole(node.entry(node.other), OTHER_FILES)


def test_a_sibling_whose_marker_was_rewritten_lends_nothing(node: Node) -> None:
    node.fetch()
    entry = node.entry()
    marked = entry.vouched(config_only=False)
    assert marked is not None
    forged = {**marked, "LICENSE": marked[SHARD]}
    del forged[SHARD]
    (entry.folder / SHARD).rename(entry.folder / "LICENSE")
    (entry.folder / ".complete").write_bytes(encode_marker(str(entry.digest), forged))
    assert node.fetch(node.other).linked == len(b"text")
