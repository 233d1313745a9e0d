# SPDX-License-Identifier: Apache-2.0
"""Holding an entry of the node's cache: only what is whole is held, and what is held stays."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sovereign_airgap.cache import hold as holding
from sovereign_airgap.cache.eviction import evict
from sovereign_airgap.cache.hold import Held
from sovereign_airgap.cache.layout import IN_USE, Entry
from sovereign_airgap.cache.locks import alone
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import CacheCorrupt, CacheMissing, DiskFailed, Interrupted
from tests.unit.airgap.cache_entries import (
    FILES,
    ONE,
    OTHER,
    SHARD,
    mark,
    rot,
    without_weights,
)
from tests.unit.airgap.holding import Node, Script


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_what_is_complete_is_held_until_the_signal(node: Node) -> None:
    entry = node.put()
    seen: list[bool] = []
    held = node.hold(while_held=lambda: seen.extend([node.held_file.exists(), entry.in_use(), evict(entry)]))
    assert seen == [True, True, False]
    assert held == Held(len(FILES), sum(map(len, FILES.values())), "SIGTERM")
    assert not entry.in_use()
    assert evict(entry)


def test_an_entry_that_comes_while_it_waits_is_held(node: Node) -> None:
    node.hold(
        lambda: node.tenant.mkdir(parents=True),
        lambda: node.put(complete=False),
        node.put,
    )


@pytest.mark.parametrize(
    ("put", "what"),
    [(lambda node: None, "nothing of it is there"), (lambda node: node.put(complete=False), "whole yet")],
    ids=["nothing", "half"],
)
def test_what_does_not_come_in_time_is_missing(node: Node, put: Callable[[Node], object], what: str) -> None:
    put(node)
    with pytest.raises(CacheMissing, match=f"{ONE}.* 0 s.* {what}") as caught:
        node.hold(seconds=0)
    assert caught.value.retryable


def test_the_entry_of_another_tenant_or_artifact_is_not_held(node: Node) -> None:
    node.put(tenant="team-b")
    node.put(name="other")
    with pytest.raises(CacheMissing):
        node.hold(seconds=0)


# -- damage -------------------------------------------------------------------------------------------------


def a_link(path: Path) -> None:
    path.rename(path.with_name(".sovereign-elsewhere"))
    path.symlink_to(path.with_name(".sovereign-elsewhere"))


def a_linked_folder(path: Path) -> None:
    elsewhere = path.parents[2] / "elsewhere"
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)


def another_time(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def another_size(path: Path) -> None:
    status = path.stat()
    os.truncate(path, status.st_size - 1)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("path", "spoil", "found"),
    [
        (SHARD, another_size, "expected 300000 bytes at .*, found 299999"),
        (SHARD, another_time, "expected a file written at .*, found "),
        (SHARD, Path.unlink, "found none"),
        (SHARD, a_link, "found a link"),
        (SHARD, a_pipe, "found something that is no file"),
        ("original/LICENSE", a_linked_folder, "expected nothing at original, found a link"),
        ("model-00003-of-00002.safetensors", Path.touch, "expected nothing at .*, found a file of 0 bytes"),
        ("original/other.safetensors", lambda path: path.symlink_to("/dev/zero"), "found a link"),
        ("chat_template.jinja", Path.touch, "found a file of 0 bytes"),
    ],
    ids=["size", "time", "missing", "link", "pipe", "folder", "shard too many", "linked shard", "template"],
)
def test_what_changed_since_it_was_checked_is_not_held(
    node: Node, path: str, spoil: Callable[[Path], object], found: str
) -> None:
    entry = node.put()
    spoil(entry.folder / path)
    with pytest.raises(CacheCorrupt, match=found) as caught:
        node.hold()
    assert str(entry.folder) in str(caught.value)
    assert caught.value.exit_code == 3


def test_the_first_damaged_file_is_named_and_the_others_are_counted(node: Node) -> None:
    entry = node.put()
    for path in FILES:
        (entry.folder / path).unlink()
    with pytest.raises(CacheCorrupt, match=r"8 bytes at config\.json, found none, and 4 more files"):
        node.hold()


def test_what_the_disk_lost_by_itself_is_found_only_by_hashing(node: Node) -> None:
    entry = node.put()
    rot(entry.folder / SHARD)
    node.hold()
    found = Digest.of((entry.folder / SHARD).read_bytes())
    with pytest.raises(CacheCorrupt, match=f"bytes of {Digest.of(FILES[SHARD])} at {SHARD}, found .*{found}"):
        node.hold(verify_always=True)


def test_it_says_that_it_holds_only_after_everything_was_looked_at(node: Node) -> None:
    node.put()
    looked: list[bool] = []
    node.hold_by(Script(at_check=lambda: looked.append(node.held_file.exists())), verify_always=True)
    assert len(looked) >= len([content for content in FILES.values() if content])
    assert not any(looked)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda entry: mark(entry, of=OTHER), str(OTHER)),
        (lambda entry: (entry.folder / ".complete").write_bytes(b'{"format": 1'), "found none"),
        (lambda entry: a_link(entry.folder / ".complete"), "found a link"),
        (lambda entry: a_pipe(entry.folder / ".complete"), "or something that is no file"),
        (lambda entry: a_folder(entry.folder / ".complete"), "or something that is no file"),
    ],
    ids=["another's", "torn", "link", "pipe", "folder"],
)
def test_a_marker_that_is_not_the_artifacts_own_is_damage(
    node: Node, spoil: Callable[[Entry], object], found: str
) -> None:
    spoil(node.put())
    with pytest.raises(CacheCorrupt, match=f"complete, found .*{found}|complete, {found}"):
        node.hold()


def test_a_marker_of_which_one_line_is_broken_vouches_for_nothing(node: Node) -> None:
    entry = node.put()
    marker = entry.folder / ".complete"
    marker.write_bytes(marker.read_bytes().replace(b'"size": 300000', b'"size": "300000"'))
    with pytest.raises(CacheCorrupt):
        node.hold()


def test_files_and_marker_that_somebody_wrote_together_are_not_held(node: Node) -> None:
    entry = node.put()
    forged = {**FILES, SHARD: FILES[SHARD][::-1]}
    (entry.folder / SHARD).write_bytes(forged[SHARD])
    mark(entry, forged)
    right = Digest.of(FILES[SHARD])
    with pytest.raises(CacheCorrupt, match=f"expected a marker that vouches for {right} at {SHARD}"):
        node.hold()


@pytest.mark.parametrize("content", [None, b"", b"{}"], ids=["none", "empty", "another"])
def test_without_its_manifest_nothing_says_what_an_entry_should_be(node: Node, content: bytes | None) -> None:
    place = node.put().folder / ".manifest"
    place.unlink() if content is None else place.write_bytes(content)
    with pytest.raises(CacheCorrupt, match=rf"the manifest {ONE} at \.manifest"):
        node.hold()


def test_a_link_in_place_of_the_entry_or_its_lock_is_not_followed(node: Node) -> None:
    entry = node.put()
    a_link(entry.folder / IN_USE)
    with pytest.raises(CacheCorrupt, match="in-use to be a file, found a link"):
        node.hold()
    a_link(entry.folder)
    with pytest.raises(CacheCorrupt, match="to be a folder, found a link"):
        node.hold()


# -- without the weights ------------------------------------------------------------------------------------


def test_without_the_weights_only_the_other_files_are_looked_at(node: Node) -> None:
    entry = node.put(there=without_weights(), complete=False)
    mark(entry, without_weights(), config_only=True)
    (entry.folder / SHARD).write_bytes(b"on its way")
    (entry.folder / ".sovereign-0123.partial").touch()
    assert node.hold(config_only=True).files == len(without_weights())
    with pytest.raises(CacheMissing):
        node.hold(seconds=0)
    (entry.folder / "tokenizer.json").touch()
    with pytest.raises(CacheCorrupt, match=r"tokenizer\.json"):
        node.hold(config_only=True)


def test_the_marker_of_everything_will_do_without_the_weights(node: Node) -> None:
    entry = node.put()
    (entry.folder / SHARD).unlink()
    assert node.hold(config_only=True, verify_always=True).files == len(without_weights())
    rot(entry.folder / "config.json")
    node.hold(config_only=True)
    with pytest.raises(CacheCorrupt):
        node.hold(config_only=True, verify_always=True)


@pytest.mark.parametrize("stale", [True, False], ids=["the small one", "the large one"])
def test_one_marker_that_is_older_than_a_repair_does_no_harm(node: Node, stale: bool) -> None:
    entry = node.put()
    mark(entry, without_weights(), config_only=True)
    another_time(entry.folder / "config.json")
    files = FILES if stale else without_weights()
    mark(entry, files, config_only=not stale)
    for config_only in (True, False):
        node.hold(config_only=config_only, verify_always=True)


def test_a_broken_marker_of_everything_does_no_harm_without_the_weights(node: Node) -> None:
    entry = node.put()
    mark(entry, without_weights(), config_only=True)
    mark(entry, of=OTHER)
    node.hold(config_only=True)
    (entry.folder / ".complete-config").unlink()
    with pytest.raises(CacheCorrupt):
        node.hold(config_only=True)


# -- others on the node -------------------------------------------------------------------------------------


def test_an_entry_that_is_evicted_just_before_it_is_locked_is_waited_for_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = node.put()
    real = fcntl.flock
    evicted: list[bool] = []

    def too_late(descriptor: int, operation: int) -> None:
        if not evicted:
            with monkeypatch.context() as patch:
                patch.setattr(fcntl, "flock", real)
                evicted.append(evict(entry))
        real(descriptor, operation)

    monkeypatch.setattr(holding.fcntl, "flock", too_late)
    node.hold(node.put, while_held=lambda: evicted.append(entry.in_use()))
    assert evicted == [True, True]


def test_an_entry_that_was_replaced_before_it_was_locked_is_not_taken_for_the_new_one(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = node.put()
    real = fcntl.flock
    renewed: list[Entry] = []

    def too_late(descriptor: int, operation: int) -> None:
        if not renewed:
            shutil.rmtree(entry.folder)
            renewed.append(node.put())
        real(descriptor, operation)

    monkeypatch.setattr(holding.fcntl, "flock", too_late)
    held: list[bool] = []
    node.hold(lambda: None, while_held=lambda: held.append(entry.in_use()))
    assert held == [True]


def test_while_the_eviction_has_the_lock_the_entry_counts_as_gone(node: Node) -> None:
    entry = node.put()
    taking = alone(entry.folder / IN_USE)
    taking.__enter__()
    node.hold(lambda: None, lambda: taking.__exit__(None, None, None))


def test_a_fetch_at_work_in_the_entry_is_no_obstacle(node: Node) -> None:
    entry = node.put()
    with alone(entry.folder):
        node.hold()


def test_two_pods_hold_the_same_entry(node: Node, tmp_path: Path) -> None:
    entry = node.put()
    other = Node(tmp_path / "another-pod")
    other.tenant = node.tenant
    seen: list[bool] = []
    node.hold(while_held=lambda: (other.hold(), seen.append(evict(entry))))
    assert seen == [False]


# -- the pod itself, and the disk ---------------------------------------------------------------------------


def test_what_a_killed_run_left_is_removed_first(node: Node) -> None:
    node.held_file.touch()
    seen: list[bool] = []
    node.hold(lambda: (seen.append(node.held_file.exists()), node.put()))
    assert seen == [False]


def test_a_place_that_cannot_be_written_is_found_out_before_the_work(node: Node) -> None:
    shutil.rmtree(node.held_file.parent)
    with pytest.raises(DiskFailed, match="held"):
        node.hold()


def test_a_signal_while_it_looks_at_the_bytes_ends_it_without_holding(node: Node) -> None:
    entry = node.put()

    def ended() -> None:
        raise Interrupted("SIGTERM ended the work")

    with pytest.raises(Interrupted):
        node.hold_by(Script(at_check=ended), verify_always=True)
    assert not entry.in_use()


def test_a_disk_that_does_not_give_its_bytes_back_is_no_corrupt_cache(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = node.put()
    real = os.preadv

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == entry.folder / SHARD:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(DiskFailed, match=f"{SHARD}.*check the node's disk"):
        node.hold(verify_always=True)
    node.hold()


def test_a_missing_right_is_no_missing_entry(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = node.put()
    real = os.open

    def guarded(path: str | Path, flags: int, mode: int = 0o777, **others: int) -> int:
        if Path(path) == entry.folder / IN_USE:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, mode, **others)

    monkeypatch.setattr(os, "open", guarded)
    with pytest.raises(DiskFailed, match="in-use cannot be opened: Permission denied"):
        node.hold()


def test_a_file_system_without_locks_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.put()

    def without_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(holding.fcntl, "flock", without_locks)
    with pytest.raises(DiskFailed, match="local file system"):
        node.hold()
