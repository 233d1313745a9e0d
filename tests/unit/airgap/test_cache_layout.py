# SPDX-License-Identifier: Apache-2.0
"""The node's cache on the disk: what counts as an entry, who holds what, and how much it takes."""

from __future__ import annotations

import fcntl
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.cache.damage import Damage, read_marked
from sovereign_airgap.cache.layout import (
    ENTRY_NAMES,
    IN_USE,
    LOCK,
    RESERVED,
    SEQUENCE,
    USED,
    Cache,
    is_tenant,
    read_number,
    require_tenant,
    strangers,
    usage,
    write_number,
)
from sovereign_airgap.cache.locks import alone, is_held
from sovereign_airgap.errors import CacheBusy, DiskFailed, InvalidReference
from sovereign_airgap.marker import MARKER, MAX_MARKER_BYTES
from sovereign_airgap.names import defect_of
from sovereign_airgap.pace import Pace, Patience
from tests.unit.airgap.cache_entries import FILES, ONE, OTHER, an_entry, mark
from tests.unit.airgap.cache_node import MIB


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    (tmp_path / "cache").mkdir()
    return Cache(tmp_path / "cache")


def test_only_folders_named_as_entries_of_namespaces_count(cache: Cache, tmp_path: Path) -> None:
    wanted = [an_entry(cache.root, "team-b"), an_entry(cache.root, "team-a", "other")]
    hexadecimal = ONE.hex
    for name in (
        f"team-a/sha256-{hexadecimal[:-1]}",
        f"team-a/sha256-{hexadecimal.upper()}",
        f"team-a/sha512-{hexadecimal}",
        f"team-a/.evicted-{hexadecimal}",
        f"Team/sha256-{hexadecimal}",
        f".hidden/sha256-{hexadecimal}",
    ):
        (cache.root / name).mkdir(parents=True)
    (cache.root / "a-file").touch()
    (cache.root / f"team-a/sha256-{hexadecimal}").touch()
    (cache.root / "a-link").symlink_to(cache.root / "team-b")
    (cache.root / f"team-b/sha256-{OTHER.hex}").symlink_to(wanted[0].folder)

    assert cache.tenants() == ["team-a", "team-b"]
    assert cache.entries() == [wanted[1], wanted[0]]
    assert cache.entries("team-b") == [wanted[0]]
    assert cache.entries("nobody") == []


def test_the_cache_itself_may_lie_behind_a_link(cache: Cache, tmp_path: Path) -> None:
    entry = an_entry(cache.root)
    (tmp_path / "link").symlink_to(cache.root)
    assert Cache(tmp_path / "link").entries() == [entry]


@pytest.mark.parametrize("name", ["a", "team-a", "0", "a" * 63, "1-2-3"])
def test_a_namespace_can_be_a_tenant(name: str) -> None:
    require_tenant(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "-a", "a-", "A", "ä", "a" * 64, "a\n", "a b", "../x", ".lock", "a.b"]
)
def test_nothing_else_can(cache: Cache, name: str) -> None:
    with pytest.raises(InvalidReference, match="Expected a tenant"):
        cache.entry(name, ONE)
    with pytest.raises(InvalidReference):
        cache.entries(name)


@given(st.text(max_size=70))
def test_a_tenant_is_always_one_plain_folder(name: str) -> None:
    if is_tenant(name):
        assert Path("/x", name).name == name
        assert name.isascii()
        assert not name.startswith(".")


@pytest.mark.parametrize("config_only", [True, False])
def test_an_entry_is_as_complete_as_its_markers_say(cache: Cache, config_only: bool) -> None:
    entry = an_entry(cache.root, complete=False)
    assert (entry.complete, entry.config_only) == (False, False)
    mark(entry, config_only=config_only)
    assert (entry.complete, entry.config_only) == (not config_only, config_only)
    assert (entry.vouched(config_only) or {}).keys() == FILES.keys()
    entry.withdraw()
    assert (entry.complete, entry.config_only) == (False, False)


def test_the_marker_of_another_artifact_vouches_for_nothing(cache: Cache) -> None:
    entry = an_entry(cache.root, complete=False)
    mark(entry, of=OTHER)
    assert not entry.complete
    assert entry.vouched(config_only=False) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b"\xff"])
def test_a_marker_that_cannot_be_read_vouches_for_nothing(cache: Cache, content: bytes) -> None:
    entry = an_entry(cache.root)
    (entry.folder / ".complete").write_bytes(content)
    assert not entry.complete


def test_a_marker_that_is_a_link_vouches_for_nothing(cache: Cache) -> None:
    entry = an_entry(cache.root)
    (entry.folder / ".complete").rename(entry.folder / "elsewhere")
    (entry.folder / ".complete").symlink_to("elsewhere")
    assert not entry.complete


@pytest.mark.parametrize("name", sorted(ENTRY_NAMES))
def test_no_more_is_read_of_a_file_of_ours_than_it_can_have(cache: Cache, name: str) -> None:
    entry = an_entry(cache.root)
    with (entry.folder / name).open("ab") as file:
        file.truncate(64 * MIB)  # a hole, of whatever size, takes nothing of the disk
    tracemalloc.start()
    try:
        entry.complete, entry.config_only, entry.used, entry.reserved, entry.manifest()
        assert isinstance(read_marked(entry, name), Damage)
        assert tracemalloc.get_traced_memory()[1] < MAX_MARKER_BYTES + MIB
    finally:
        tracemalloc.stop()


def test_a_marker_that_is_too_long_vouches_for_nothing(cache: Cache) -> None:
    entry = an_entry(cache.root)
    marker = entry.folder / MARKER
    content = marker.read_bytes()
    marker.write_bytes(content.ljust(MAX_MARKER_BYTES))
    assert entry.complete
    marker.write_bytes(content.ljust(MAX_MARKER_BYTES + 1))
    assert not entry.complete, "what comes behind the bound could say anything"
    assert isinstance(read_marked(entry, MARKER), Damage)


def test_no_file_of_an_artifact_can_have_a_name_of_ours() -> None:
    """A manifest is a stranger's: it must not bring a lock or a marker."""
    for name in ENTRY_NAMES:
        assert defect_of(name) is not None


# -- numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"-1", b"1.5", b"seven", b"9" * 20, b"1 2", b"\xb2", b"0x1"])
def test_what_is_no_number_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "number").write_bytes(content)
    assert read_number(tmp_path / "number") == 0


def test_numbers_are_read_as_they_were_written(tmp_path: Path) -> None:
    for number in (0, 7, 10**18):
        write_number(tmp_path / "number", number)
        assert read_number(tmp_path / "number") == number
    (tmp_path / "link").symlink_to("number")
    assert read_number(tmp_path / "link") == 0
    assert read_number(tmp_path / "none") == 0


def test_a_sequence_goes_on_where_it_was_lost(cache: Cache) -> None:
    entry = an_entry(cache.root)
    assert [cache.next_sequence() for _ in range(3)] == [1, 2, 3]
    write_number(entry.folder / USED, 41)
    assert cache.next_sequence() == 42
    (cache.root / SEQUENCE).write_bytes(b"rubbish")
    assert cache.next_sequence() == 42
    assert entry.used == 41


# -- locks --------------------------------------------------------------------------------------------------


def test_holders_of_an_entry_and_its_writer_are_told_apart(cache: Cache) -> None:
    entry = an_entry(cache.root)
    assert (entry.in_use(), entry.being_written()) == (False, False)
    with (entry.folder / IN_USE).open("rb") as one, (entry.folder / IN_USE).open("rb") as two:
        fcntl.flock(one, fcntl.LOCK_SH)
        fcntl.flock(two, fcntl.LOCK_SH)
        assert (entry.in_use(), entry.being_written()) == (True, False)
        fcntl.flock(one, fcntl.LOCK_UN)
        assert entry.in_use()
    assert not entry.in_use()
    with alone(entry.folder) as ours:
        assert ours
        assert (entry.in_use(), entry.being_written()) == (False, True)
    assert not entry.being_written()


def test_nobody_holds_what_is_not_there(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "nothing")
    (tmp_path / "link").symlink_to("/dev/null")
    assert not is_held(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    assert not is_held(tmp_path / "pipe")


def test_without_locks_everything_counts_as_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert is_held(tmp_path)
    refused = pytest.raises(DiskFailed, match="local file system")
    with Pace(Patience()) as pace, refused, Cache(tmp_path).locked(pace):
        raise AssertionError


def test_the_cache_is_locked_for_one_at_a_time(cache: Cache) -> None:
    with Pace(Patience()) as pace:
        with cache.locked(pace):
            assert is_held(cache.root / LOCK)
            with pytest.raises(CacheBusy, match=r"within 0\.2 seconds"), cache.locked(pace, seconds=0.2):
                raise AssertionError
        with cache.locked(pace):
            pass
    assert (cache.root / LOCK).stat().st_mode & 0o777 == 0o600, "a pod of a tenant could hold it for ever"


def test_a_lock_that_is_a_link_is_not_followed(cache: Cache, tmp_path: Path) -> None:
    (cache.root / LOCK).symlink_to(tmp_path / "outside")
    with Pace(Patience()) as pace, pytest.raises(DiskFailed), cache.locked(pace):
        raise AssertionError
    assert not (tmp_path / "outside").exists()


# -- sizes --------------------------------------------------------------------------------------------------


def test_what_entries_share_counts_once(cache: Cache) -> None:
    one, two = an_entry(cache.root), cache.entry("team-a", OTHER)
    two.folder.mkdir()
    alone_takes = usage([one])
    assert alone_takes >= sum(len(content) for content in FILES.values())
    before = usage([one, two])
    for path in FILES:
        (two.folder / path).parent.mkdir(exist_ok=True)
        os.link(one.folder / path, two.folder / path)
    assert usage([one, two]) == before
    assert usage([two]) > alone_takes // 2
    assert usage([]) == 0


def test_holes_do_not_count(cache: Cache) -> None:
    entry = an_entry(cache.root)
    before = usage([entry])
    with (entry.folder / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert usage([entry]) < before + (1 << 20)


def test_strangers_are_all_files_that_no_fetch_put_there(cache: Cache, tmp_path: Path) -> None:
    entry = an_entry(cache.root)
    write_number(entry.folder / USED, 1)
    write_number(entry.folder / RESERVED, 1)
    mark(entry, config_only=True)
    (entry.folder / ".sovereign-00.partial").touch()
    assert strangers(entry.folder, FILES.keys()) == []
    (entry.folder / "model-00003-of-00002.safetensors").touch()
    (entry.folder / "original" / ".complete").touch()
    (entry.folder / "more").mkdir()
    (entry.folder / "more" / "a.json").touch()
    (entry.folder / "outside").symlink_to(tmp_path)
    assert strangers(entry.folder, FILES.keys()) == [
        "model-00003-of-00002.safetensors",
        "more/a.json",
        "original/.complete",
        "outside",
    ]
