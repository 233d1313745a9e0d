# SPDX-License-Identifier: Apache-2.0
"""Hashing a node's cache again: what is damaged is withdrawn and named, what is whole is not touched."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sovereign_airgap.cache import scrub as scrubbing
from sovereign_airgap.cache.hold import shared
from sovereign_airgap.cache.layout import Cache, Entry
from sovereign_airgap.cache.locks import alone
from sovereign_airgap.cache.scrub import Examined, State
from sovereign_airgap.cli import run
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import CacheMissing, DiskFailed
from sovereign_airgap.progress import Progress
from tests.unit.airgap.cache_entries import (
    FILES,
    ONE,
    OTHER,
    SHARD,
    an_entry,
    mark,
    rot,
    without_weights,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def scrub(root: Path, tenant: str | None = None, digest: Digest | None = None) -> dict[str, Examined]:
    found = scrubbing.scrub(Cache(root), Progress(), tenant, digest)
    return {str(each.entry): each for each in found}


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def paths(examined: Examined) -> list[str]:
    return [damage.path for damage in examined.damages]


def test_a_sound_cache_stays_as_it_is_and_every_byte_was_looked_at(root: Path) -> None:
    entries = [an_entry(root), an_entry(root, "team-b"), an_entry(root, name="other")]
    mark(entries[0], without_weights(), config_only=True)
    before = everything(root)
    progress = Progress()

    found = scrubbing.scrub(Cache(root), progress)

    assert {each.entry for each in found} == set(entries)
    assert {each.state for each in found} == {State.SOUND}
    size = sum(map(len, FILES.values()))
    assert {(each.files, each.size) for each in found} == {(len(FILES), size)}
    now = progress.snapshot()
    assert (now.files_done, now.bytes_done) == (now.files_total, now.bytes_total) == (15, 3 * size)
    assert everything(root) == before


@pytest.mark.parametrize("config_only", [False, True], ids=["everything", "without weights"])
def test_a_rotten_file_withdraws_its_entry_and_no_other(root: Path, config_only: bool) -> None:
    there = without_weights() if config_only else FILES
    entry = an_entry(root, there=there, complete=False)
    mark(entry, there, config_only)
    other = an_entry(root, "team-b")
    rot(entry.folder / "config.json")
    before = everything(root)

    found = scrub(root)

    assert found[str(other)].state is State.SOUND
    assert (found[str(entry)].state, paths(found[str(entry)])) == (State.DAMAGED, ["config.json"])
    marker = f"{entry.tenant}/{entry.folder.name}/{'.complete-config' if config_only else '.complete'}"
    assert everything(root) == {path: content for path, content in before.items() if path != marker}
    assert str(entry) not in scrub(root), "nothing vouches for it any more"


def test_everything_that_a_pod_would_refuse_is_found(root: Path) -> None:
    entry = an_entry(root)
    status = (entry.folder / "config.json").stat()
    os.utime(entry.folder / "config.json", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    (entry.folder / "model-00002-of-00002.safetensors").unlink()
    (entry.folder / "model-00003-of-00002.safetensors").touch()
    rot(entry.folder / SHARD)
    (examined,) = scrub(root).values()
    assert sorted(paths(examined)) == [
        "config.json",
        *(f"model-0000{n}-of-00002.safetensors" for n in (1, 2, 3)),
    ]
    assert not entry.complete


@pytest.mark.parametrize(
    "spoil",
    [
        lambda marker: marker.write_bytes(b"{"),
        lambda marker: marker.write_bytes(
            marker.read_bytes().replace(str(ONE).encode(), b"sha256:" + b"0" * 64)
        ),
        lambda marker: (marker.unlink(), marker.symlink_to("/etc/hostname")),
    ],
    ids=["torn", "another's", "link"],
)
def test_a_marker_that_vouches_for_something_else_is_withdrawn(
    root: Path, spoil: Callable[[Path], object]
) -> None:
    entry = an_entry(root)
    spoil(entry.folder / ".complete")
    (examined,) = scrub(root).values()
    assert (examined.state, paths(examined)[0]) == (State.DAMAGED, ".complete")
    assert len(paths(examined)) == 1 + len(FILES), "and for none of the files"
    assert not (entry.folder / ".complete").is_symlink() and not (entry.folder / ".complete").exists()


@pytest.mark.parametrize("content", [None, b"{}"], ids=["none", "another"])
def test_an_entry_without_its_manifest_is_withdrawn(root: Path, content: bytes | None) -> None:
    entry = an_entry(root)
    place = entry.folder / ".manifest"
    place.unlink() if content is None else place.write_bytes(content)
    (examined,) = scrub(root).values()
    assert (examined.state, paths(examined)) == (State.DAMAGED, [".manifest"])
    assert not entry.complete


def test_files_and_marker_that_somebody_wrote_together_are_damage(root: Path) -> None:
    entry = an_entry(root)
    forged = {**FILES, SHARD: FILES[SHARD][::-1]}
    (entry.folder / SHARD).write_bytes(forged[SHARD])
    mark(entry, forged)
    (examined,) = scrub(root).values()
    assert (examined.state, paths(examined)) == (State.DAMAGED, [SHARD])


def two_that_share(root: Path) -> tuple[Entry, Entry]:
    """Two artifacts of one tenant with the same first shard, linked."""
    entry, other = an_entry(root), an_entry(root, name="other", complete=False)
    (other.folder / SHARD).unlink()
    os.link(entry.folder / SHARD, other.folder / SHARD)
    mark(other)
    return entry, other


def test_a_damaged_file_of_two_entries_is_named_in_both_and_read_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, other = two_that_share(root)
    rot(entry.folder / SHARD)
    read: list[str] = []
    real = os.preadv

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        read.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        return real(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)

    found = scrubbing.scrub(Cache(root), Progress())

    assert [(each.state, paths(each)) for each in found] == [(State.DAMAGED, [SHARD])] * 2
    assert not (entry.complete or other.complete)
    assert (read.count(SHARD), read.count("config.json")) == (1, 2)


def test_who_shares_a_damaged_file_is_withdrawn_also_if_it_was_not_asked_for(root: Path) -> None:
    entry, other = two_that_share(root)
    rot(entry.folder / SHARD)
    found = scrub(root, digest=entry.digest)
    assert {name: paths(each) for name, each in found.items()} == {str(entry): [SHARD], str(other): [SHARD]}
    assert not other.complete


def test_who_links_a_damaged_file_while_it_is_hashed_is_withdrawn(root: Path) -> None:
    entry, other = two_that_share(root)
    rot(entry.folder / SHARD)
    with alone(other.folder):
        found = scrub(root)
    assert found[str(other)].state is State.DAMAGED
    assert not other.complete


def test_an_entry_that_is_sound_by_itself_keeps_a_file_that_is_wrong_in_another(root: Path) -> None:
    entry, other = two_that_share(root)
    wrong = entry.folder / "config.json"
    wrong.unlink()
    wrong.hardlink_to(other.folder / SHARD)
    found = scrub(root)
    assert (found[str(entry)].state, found[str(other)].state) == (State.DAMAGED, State.SOUND)
    assert other.complete


def test_an_entry_that_is_being_written_is_skipped_and_said(root: Path) -> None:
    entry, other = an_entry(root), an_entry(root, "team-b")
    rot(entry.folder / SHARD)
    with alone(entry.folder):
        found = scrub(root)
    assert {name: each.state for name, each in found.items()} == {
        str(entry): State.SKIPPED,
        str(other): State.SOUND,
    }
    assert entry.complete, "whoever writes to it decides about its marker"


def test_an_entry_that_is_not_complete_is_not_looked_at(root: Path) -> None:
    an_entry(root, complete=False)
    assert scrub(root) == {}


def test_nobody_evicts_or_repairs_an_entry_while_it_is_hashed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = an_entry(root)
    seen: list[bool] = []
    real = scrubbing.compare

    def watched(*arguments: object, **options: object) -> object:
        seen.append(entry.being_written())
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(scrubbing, "compare", watched)
    scrub(root)
    assert seen == [True]
    assert not entry.being_written()


def test_pods_that_hold_an_entry_do_not_keep_it_from_being_scrubbed(root: Path) -> None:
    entry = an_entry(root)
    rot(entry.folder / SHARD)
    with shared(entry.folder) as held:
        assert held
        assert scrub(root)[str(entry)].state is State.DAMAGED


def test_one_tenant_or_one_artifact_can_be_named(root: Path) -> None:
    first, second = an_entry(root), an_entry(root, name="other")
    third = an_entry(root, "team-b")
    assert scrub(root, "team-a").keys() == {str(first), str(second)}
    assert scrub(root, digest=ONE).keys() == {str(first), str(third)}
    assert scrub(root, "team-b", ONE).keys() == {str(third)}
    for tenant, digest in (("team-c", None), ("team-b", OTHER), (None, Digest.of(b"third"))):
        with pytest.raises(CacheMissing, match="found nothing of it"):
            scrub(root, tenant, digest)


# -- disks --------------------------------------------------------------------------------------------------


def refusing(monkeypatch: pytest.MonkeyPatch, bad: Path, code: int) -> None:
    """Reads of one file fail as a disk or a kernel lets them fail."""
    real = os.preadv

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == bad:
            raise OSError(code, os.strerror(code))
        return real(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)


def test_bytes_that_the_disk_does_not_give_back_are_damage_and_the_rest_is_hashed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, other = an_entry(root), an_entry(root, "team-b")
    refusing(monkeypatch, entry.folder / SHARD, errno.EIO)
    found = scrub(root)
    assert (found[str(entry)].state, paths(found[str(entry)])) == (State.DAMAGED, [SHARD])
    assert "does not give them back" in found[str(entry)].damages[0].found
    assert found[str(other)].state is State.SOUND
    assert not entry.complete


def test_a_missing_right_withdraws_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = an_entry(root)
    refusing(monkeypatch, entry.folder / SHARD, errno.EPERM)
    with pytest.raises(DiskFailed, match=f"{SHARD}.*not permitted"):
        scrub(root)
    assert entry.complete


def test_a_marker_that_cannot_be_removed_has_its_reason(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = an_entry(root)
    rot(entry.folder / SHARD)

    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(DiskFailed, match=r"\.complete.*Read-only file system"):
        scrub(root)


# -- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return tmp_path / "result"


def run_scrub(root: Path, result: Path, *more: str) -> int:
    return run(
        ["cache", "scrub", "--root", str(root), "--progress", "none", "--result-file", str(result), *more]
    )


def test_the_command_ends_with_3_and_names_entry_and_files(
    root: Path, result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = an_entry(root)
    assert run_scrub(root, result) == 0
    assert json.loads(result.read_text())["reason"] == "Scrubbed"
    assert "sound" in capsys.readouterr().out
    rot(entry.folder / SHARD)

    assert run_scrub(root, result, "--json") == 3

    told = capsys.readouterr()
    (document,) = json.loads(told.out)["entries"]
    named = {key: document[key] for key in ("tenant", "manifest", "state")}
    assert named == {"tenant": "team-a", "manifest": str(ONE), "state": "damaged"}
    (damage,) = document["damages"]
    assert (damage["path"], damage["expected"]) == (SHARD, f"bytes of {Digest.of(FILES[SHARD])}")
    written = json.loads(result.read_text())
    assert written["reason"] == "CacheCorrupt"
    assert f"team-a/{ONE} ({SHARD})" in written["message"]
    assert run_scrub(root, result) == 0, "nothing vouches for it any more"


def test_a_path_that_looks_like_markup_is_shown_as_it_is(
    root: Path, result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = an_entry(root)
    (entry.folder / "a[").mkdir()
    (entry.folder / "a[/b].json").touch()
    assert run_scrub(root, result) == 3
    assert "a[/b].json" in capsys.readouterr().out


def test_the_message_about_many_damaged_files_is_bounded(root: Path, result: Path) -> None:
    names = {f"{number:03}-{'x' * 200}.json": b"x" for number in range(60)}
    for number in range(9):
        entry = an_entry(root, name=f"model-{number}", files=names)
        for path in names:
            (entry.folder / path).unlink()
    assert run_scrub(root, result) == 3
    assert result.stat().st_size <= 3 * 1024


def test_the_command_says_what_it_skipped(
    root: Path, result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = an_entry(root)
    with alone(entry.folder):
        assert run_scrub(root, result) == 0
    assert "being written" in capsys.readouterr().out
    assert "1 were skipped" in json.loads(result.read_text())["message"]


@pytest.mark.parametrize(
    "wrong", [["--tenant", "../team-a"], ["--manifest", "sha256:0"], ["--root", "/nowhere"]]
)
def test_wrong_arguments_are_refused(root: Path, result: Path, wrong: list[str]) -> None:
    an_entry(root)
    assert run_scrub(root, result, *wrong) == 2
