# SPDX-License-Identifier: Apache-2.0
"""Fetching into a node's cache: complete or not there, and repaired where it went bad."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from sovereign_airgap.cache.layout import IN_USE, RESERVED
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import (
    InvalidReference,
    RegistryBlobCorrupt,
    RegistryUnavailable,
    UnsafeFileName,
)
from sovereign_airgap.marker import encode_marker
from sovereign_airgap.reference import OciReference
from tests.unit.airgap.cache_entries import rot
from tests.unit.airgap.cache_node import (
    SHARD,
    Node,
    digest_of,
    inode,
    size_of,
    written,
)
from tests.unit.airgap.registry_double import status
from tests.unit.airgap.shelf import FILES


def test_an_artifact_becomes_a_complete_entry(node: Node) -> None:
    found = node.fetch()
    node.require_whole(node.entry())
    assert (found.files, found.size, found.fetched) == (4, size_of(FILES), size_of(FILES))
    assert (found.linked, found.kept, found.evicted, found.repaired) == (0, 0, (), ())
    assert found.folder == node.entry().folder
    assert node.entry().used == 1
    done = node.progress.snapshot()
    assert (done.phase, done.files_done, done.bytes_done) == ("done", 4, done.bytes_total)


def test_anybody_can_read_it_and_only_root_write_it(node: Node) -> None:
    before = os.umask(0o022)
    try:
        node.fetch()
    finally:
        os.umask(before)
    for place in (node.entry().folder, *node.entry().folder.rglob("*")):
        mode = place.stat().st_mode & 0o777
        assert mode == (0o755 if place.is_dir() else 0o644), place


def test_a_second_fetch_asks_the_registry_nothing(node: Node) -> None:
    node.fetch()
    before, lock = node.requests, inode(node.entry().folder / IN_USE)
    node.shelf.registry.next("GET base", *[status(503)] * 50)
    again = node.fetch()
    assert node.requests == before
    assert (again.kept, again.fetched, again.files) == (size_of(FILES), 0, 4)
    assert node.entry().used == 2
    assert inode(node.entry().folder / IN_USE) == lock, "a pod may hold it"
    done = node.progress.snapshot()
    assert (done.phase, done.files_done, done.bytes_done) == ("done", 4, done.bytes_total)


def test_a_fetch_that_broke_off_goes_on_with_what_is_missing(node: Node) -> None:
    node.shelf.registry.next("GET blobs", *[status(503)] * 50)
    with pytest.raises(RegistryUnavailable):
        node.fetch(parallel=1)
    assert not node.entry().complete
    assert not (node.entry().folder / RESERVED).exists()
    node.shelf.registry._faults.clear()
    blob = str(Digest.of(FILES["config.json"]))
    good, node.shelf.registry.blobs[blob] = node.shelf.registry.blobs[blob], b'{"a": 2}'
    with pytest.raises(RegistryBlobCorrupt):  # the shard, the largest, came before it
        node.fetch(parallel=1)
    assert not node.entry().config_only
    node.shelf.registry.blobs[blob] = good
    found = node.fetch()
    assert found.kept >= len(FILES[SHARD])
    assert found.repaired == ()
    node.require_whole(node.entry())


# -- damage -------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_when_everything_is_hashed_and_repaired(node: Node) -> None:
    node.fetch()
    shard = node.entry().folder / SHARD
    rot(shard)
    assert node.fetch().fetched == 0, "size and time are all that a marker tells"
    with shard.open("rb") as running:
        found = node.fetch(verify_always=True)
        assert (found.repaired, found.fetched) == ((SHARD,), len(FILES[SHARD]))
        assert os.fstat(running.fileno()).st_nlink == 0, "a pod that has it open keeps what it has"
    node.require_whole(node.entry())


def test_bytes_that_the_disk_does_not_give_back_are_fetched_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.fetch()
    bad, real = inode(node.entry().folder / SHARD), os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int, *rest: int) -> int:
        if os.fstat(descriptor).st_ino == bad:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, buffers, offset, *rest)

    monkeypatch.setattr(os, "preadv", preadv)
    assert node.fetch(verify_always=True).repaired == (SHARD,)
    node.require_whole(node.entry())


@pytest.mark.parametrize("damage", ["shortened", "emptied", "removed", "a link", "a folder", "rewritten"])
@pytest.mark.parametrize("path", [SHARD, "config.json"])
def test_damage_that_can_be_seen_is_repaired_without_being_asked_for(
    node: Node, tmp_path: Path, damage: str, path: str
) -> None:
    node.fetch()
    place = node.entry().folder / path
    content = place.read_bytes()
    if damage in ("removed", "a link", "a folder"):
        place.unlink()
    if damage == "a link":
        (tmp_path / "outside").write_bytes(content)
        place.symlink_to(tmp_path / "outside")
    if damage == "a folder":
        (place / "below").mkdir(parents=True)
        (place / "below" / "file").touch()
    changed = {"shortened": content[:-1], "emptied": b"", "rewritten": b"X" * len(content)}.get(damage)
    if changed is not None:
        place.write_bytes(changed)
    found = node.fetch()
    assert found.fetched == len(content)
    assert (path in found.repaired) == (damage != "removed")
    node.require_whole(node.entry())


def test_a_file_that_was_only_touched_is_hashed_and_kept(node: Node) -> None:
    node.fetch()
    for path in (SHARD, "config.json"):
        os.utime(node.entry().folder / path, (1, 1))
    found = node.fetch()
    assert (found.fetched, found.repaired) == (0, ())
    node.require_whole(node.entry())


def test_what_no_fetch_put_there_is_removed(node: Node, tmp_path: Path) -> None:
    """An engine loads every shard that it finds, and some other files by their names."""
    node.fetch()
    folder = node.entry().folder
    (folder / "model-00003-of-00002.safetensors").write_bytes(b"evil")
    (folder / "original" / "link").symlink_to(tmp_path)
    found = node.fetch()
    assert found.repaired == ("model-00003-of-00002.safetensors", "original/link")
    node.require_whole(node.entry())
    assert tmp_path.exists()
    assert node.fetch().repaired == ()


# -- only the configuration ---------------------------------------------------------------------------------


def test_the_configuration_alone_is_an_entry_that_grows(node: Node) -> None:
    found = node.fetch(config_only=True)
    assert found.size == size_of(FILES) - len(FILES[SHARD])
    assert node.entry().config_only
    assert not (node.entry().folder / SHARD).exists()
    assert node.fetch().fetched == len(FILES[SHARD])
    node.require_whole(node.entry())
    before = node.requests
    assert node.fetch(config_only=True).fetched == 0
    assert node.requests == before
    node.require_whole(node.entry())


def test_a_repair_of_the_configuration_does_not_leave_a_marker_that_is_wrong(node: Node) -> None:
    node.fetch()
    rot(node.entry().folder / "config.json")
    assert node.fetch(config_only=True, verify_always=True).repaired == ("config.json",)
    assert node.entry().config_only
    assert not node.entry().complete, "withdrawn, and nothing was told of the weights"
    assert node.fetch().fetched == 0
    node.require_whole(node.entry())


def test_a_configuration_that_was_only_touched_leaves_the_whole_complete(node: Node) -> None:
    node.fetch()
    os.utime(node.entry().folder / "config.json", (1, 1))
    node.fetch(config_only=True)
    node.require_whole(node.entry())


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["team-a", "team-a/sha256-{}"])
def test_a_folder_that_is_a_link_is_not_followed(node: Node, tmp_path: Path, where: str) -> None:
    place = node.cache.root / where.format(digest_of(node.one).hex)
    place.parent.mkdir(exist_ok=True)
    (tmp_path / "outside").mkdir()
    place.symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeFileName, match="link"):
        node.fetch()
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("name", [".in-use", ".reserved", ".used", ".complete", "a/.IN-USE"])
def test_an_artifact_with_a_file_of_ours_is_refused(node: Node, name: str) -> None:
    with pytest.raises(UnsafeFileName, match="keeps for itself"):
        node.fetch(node.shelf.put({name: b"7"}))


def test_a_tag_or_a_strange_tenant_is_refused(node: Node) -> None:
    with pytest.raises(InvalidReference):
        node.fetch(OciReference(node.shelf.registry.host, "models/org/name", tag="latest"))
    with pytest.raises(InvalidReference):
        node.fetch(tenant="../team-a")
    assert list(node.cache.root.iterdir()) == []


def test_a_marker_that_was_rewritten_with_its_files_is_not_believed(node: Node) -> None:
    node.fetch()
    entry = node.entry()
    (entry.folder / SHARD).write_bytes(b"evil")
    forged = {path: written(entry.folder / path) for path in FILES}
    (entry.folder / ".complete").write_bytes(encode_marker(str(entry.digest), forged))
    assert node.fetch().repaired == (SHARD,)
    node.require_whole(entry)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"another"])
def test_a_manifest_that_is_not_the_entrys_is_brought_again(node: Node, content: bytes | None) -> None:
    node.fetch()
    place = node.entry().folder / ".manifest"
    right = place.read_bytes()
    place.unlink() if content is None else place.write_bytes(content)
    assert node.entry().manifest() is None
    assert node.fetch().fetched == 0
    assert place.read_bytes() == right
    assert node.entry().manifest() is not None


def test_a_marker_file_is_json_that_the_next_release_reads(node: Node) -> None:
    node.fetch()
    document = json.loads((node.entry().folder / ".complete").read_bytes())
    assert (document["format"], document["manifest"]) == (1, str(node.one.digest))
    assert document["files"]["config.json"].keys() == {"digest", "mtimeNs", "size"}
