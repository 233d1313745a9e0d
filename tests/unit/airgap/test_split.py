# SPDX-License-Identifier: Apache-2.0
"""Splitting a bundle: room for one part more, no byte lost whatever fails, the same bytes on a retry."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sovereign_airgap.bundle import holes
from sovereign_airgap.bundle import split as module
from sovereign_airgap.bundle.layout import INDEX, blob_path
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.parts import Parts
from sovereign_airgap.bundle.split import split
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import locked
from sovereign_airgap.errors import (
    EXIT_REFUSED,
    BundleDefective,
    DigestMismatch,
    DiskFailed,
    DiskFull,
    Refusal,
    SovereignError,
)
from sovereign_airgap.progress import Progress
from tests.unit.airgap.bundles import MODEL_ONE, Draft, a_bundle, a_root
from tests.unit.airgap.models import some_bytes
from tests.unit.faults import corrupter
from tests.unit.faults.corrupter import BadDisk

PART_SIZE = 16 * 1024
MEBIBYTE = 1024 * 1024


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here asks what survives one, and to wait for the disk takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return a_bundle(tmp_path / "bundle", width=32)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def every_blob_is_right(path: Path) -> bool:
    reader = open_bundle(path)
    for entry in reader.entries():
        with reader.open(entry.path) as stream:
            if entry.digest not in (None, Digest.of(stream.read())):
                return False
    return True


def used(folder: Path) -> int:
    """Bytes that the files really take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


# -- the usual way ------------------------------------------------------------------------------------------


def test_a_bundle_becomes_parts_and_stays_as_it_was(bundle: Path, out: Path, tmp_path: Path) -> None:
    before = a_bundle(tmp_path / "again", width=32)
    progress = Progress()
    written = split(bundle, out, PART_SIZE, progress=progress)

    assert every_blob_is_right(out)
    assert written.path == out / "site-1.parts.json"
    assert written.parts == len(Parts(written.path).list.parts) > 3
    assert written.kept == 0
    assert sorted(contents(out)) == [*(f"site-1.part-{n:05d}" for n in range(1, written.parts + 1)),
                                     "site-1.parts.json"]  # fmt: skip
    for path in before.rglob("*"):
        if path.is_file():
            assert (bundle / path.relative_to(before)).read_bytes() == path.read_bytes()
    seen = progress.snapshot()
    assert seen.bytes_done == seen.bytes_total == written.size
    assert seen.files_done == written.parts


def test_a_second_split_into_the_same_folder_writes_nothing(bundle: Path, out: Path) -> None:
    first = split(bundle, out, PART_SIZE)
    before = [path.stat() for path in sorted(out.iterdir())]
    second = split(bundle, out, PART_SIZE)
    assert [path.stat() for path in sorted(out.iterdir())] == before
    assert second.kept == second.parts == first.parts


def test_consumed_the_bundle_is_gone_and_every_byte_is_in_the_parts(
    bundle: Path, out: Path, tmp_path: Path
) -> None:
    split(bundle, tmp_path / "kept", PART_SIZE)
    split(bundle, out, PART_SIZE, consume=True)
    assert contents(out) == contents(tmp_path / "kept")
    assert not bundle.exists()


def test_consuming_needs_room_for_one_part_more_than_the_bundle(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = a_bundle(tmp_path / "bundle", width=16 * 1024)  # 1.5 MiB a shard
    part_size = MEBIBYTE
    before = used(bundle)
    if not holes.punch(bundle / "CONTENTS.txt", 0, 1):
        pytest.skip("this file system cannot give room back")
    peaks = []
    write = module._Split._write

    def watched(run: module._Split, *rest: object) -> object:
        record = write(run, *rest)  # type: ignore[arg-type]
        peaks.append(used(bundle) + used(out))
        return record

    monkeypatch.setattr(module._Split, "_write", watched)
    written = split(bundle, out, part_size, consume=True)

    assert written.parts > 4
    assert max(peaks) <= before + part_size + 64 * 1024
    assert every_blob_is_right(out)


def test_where_no_room_can_be_given_back_the_parts_are_right_all_the_same(
    bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "punch", lambda path, start, end: False)
    split(bundle, out, PART_SIZE, consume=True)
    assert every_blob_is_right(out)
    assert not bundle.exists()


def test_a_part_that_ends_exactly_with_the_archive_is_the_last(bundle: Path, out: Path) -> None:
    size = split(bundle, out / "one").size
    assert split(bundle, out / "two", size).parts == 1
    assert split(bundle, out / "three", size // 2).parts == 2
    assert every_blob_is_right(out / "three")


# -- every write fails --------------------------------------------------------------------------------------


@pytest.fixture
def three_blobs(tmp_path: Path) -> Path:
    """Three blobs over four parts: small, because it is split a hundred times."""
    draft = Draft(tmp_path / "three")
    draft.file("one", some_bytes(9_000, "one"))
    draft.file("two", some_bytes(9_000, "two"))
    return draft.finish()


@pytest.mark.parametrize("consume", [False, True], ids=["keeping", "consuming"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=["full", "read-only", "broken"])
def test_a_disk_that_fails_at_any_write_loses_nothing(
    tmp_path: Path, three_blobs: Path, code: int, consume: bool
) -> None:
    good = tmp_path / "good"
    assert split(three_blobs, good, 8192).parts == 4
    at, failed = 0, True
    while failed:
        at += 1
        root = tmp_path / str(at)
        source = shutil.copytree(three_blobs, root / "bundle")
        failed = False
        try:
            with BadDisk(root, at, code):
                split(source, root / "out", 8192, consume)
        except (DiskFull, DiskFailed) as error:
            failed = True
            assert str(error).endswith(".")
            assert isinstance(error, DiskFull) is (code == errno.ENOSPC)
        for name, content in contents(root / "out").items():  # nothing wrong under a final name, ever
            if not name.startswith(".") and not name.endswith(".unfinished"):
                assert content == (good / name).read_bytes()
        if failed:
            split(source, root / "out", 8192, consume)
        assert contents(root / "out") == contents(good)
        assert (source / INDEX).exists() is not consume
        shutil.rmtree(root)
    assert at > 30


def test_a_hole_that_cannot_be_punched_stops_the_split_and_the_retry_works(
    bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, start: int, end: int) -> bool:
        raise DiskFailed("no")

    with monkeypatch.context() as patch, pytest.raises(DiskFailed):
        patch.setattr(module, "punch", broken)
        split(bundle, out, PART_SIZE, consume=True)
    split(bundle, out, PART_SIZE, consume=True)
    assert every_blob_is_right(out)


def test_what_was_written_before_the_failure_is_not_written_again(bundle: Path, out: Path) -> None:
    with BadDisk(out.parent / "counted", 0, 0) as disk:
        split(bundle, out.parent / "counted", PART_SIZE)
    with pytest.raises(DiskFull), BadDisk(out, disk.changes // 2, errno.ENOSPC):
        split(bundle, out, PART_SIZE)
    there = {path.name: path.stat().st_ino for path in out.glob("*.part-*")}
    written = split(bundle, out, PART_SIZE)
    assert 0 < written.kept < written.parts
    for number in range(1, written.kept + 1):
        name = f"site-1.part-{number:05d}"
        assert (out / name).stat().st_ino == there[name]


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from sovereign_airgap.bundle.split import split
from tests.unit.faults.corrupter import DyingProcess
root, at, consume = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "consume"
with DyingProcess(root, at, 0):
    split(root / "bundle", root / "out", 8192, consume)
"""


@pytest.mark.parametrize("consume", ["keep", "consume"])
def test_killed_anywhere_the_next_run_finishes_the_same_parts(
    tmp_path: Path, three_blobs: Path, consume: str
) -> None:
    split(three_blobs, tmp_path / "good", 8192)
    repository = Path(__file__).parents[3]
    for at in itertools.count(4, 11):
        root = tmp_path / str(at)
        shutil.copytree(three_blobs, root / "bundle")
        command = [sys.executable, "-c", KILLED, str(repository), str(root), str(at), consume]
        ended = subprocess.run(command, check=False, timeout=60).returncode
        if (root / "bundle" / INDEX).exists():
            split(root / "bundle", root / "out", 8192, consume == "consume")
        assert contents(root / "out") == contents(tmp_path / "good")
        if ended == 0:
            break
        assert ended == 137
    assert at > 30


def test_a_signal_leaves_nothing_half_written(bundle: Path, out: Path) -> None:
    class Ended(Progress):
        def finished(self, path: str) -> None:
            super().finished(path)
            if path.endswith("00002"):
                os.kill(os.getpid(), signal.SIGALRM)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            split(bundle, out, PART_SIZE, progress=Ended())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert sorted(contents(out)) == ["site-1.part-00001", "site-1.part-00002", "site-1.parts.unfinished"]
    with pytest.raises(BundleDefective, match="unfinished"):
        open_bundle(out)
    assert split(bundle, out, PART_SIZE).kept == 2


# -- bad bundles and bad folders ----------------------------------------------------------------------------


@pytest.mark.parametrize("consume", [False, True], ids=["keeping", "consuming"])
@pytest.mark.parametrize("damage", sorted({*corrupter.DAMAGES, *corrupter.DISGUISES} - {"missing"}))
def test_a_damaged_blob_never_becomes_parts(bundle: Path, out: Path, damage: str, consume: bool) -> None:
    shard = max((bundle / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    {**corrupter.DAMAGES, **corrupter.DISGUISES}[damage](shard)
    with pytest.raises((Refusal, DiskFailed)) as refused:
        split(bundle, out, PART_SIZE, consume)
    assert shard.name in str(refused.value)
    assert not list(out.glob("*.parts.json"))
    assert bundle.exists()


def test_an_empty_file_in_place_of_a_blob_is_refused_before_the_first_byte(bundle: Path, out: Path) -> None:
    corrupter.empty(bundle / blob_path(a_root(bundle, MODEL_ONE).descriptor.digest))
    with pytest.raises(DigestMismatch, match="empty"):
        split(bundle, out, PART_SIZE)
    assert not list(out.glob("*"))


def test_a_surplus_file_is_refused_by_name(bundle: Path, out: Path) -> None:
    (bundle / "notes.txt").write_text("x")
    with pytest.raises(BundleDefective, match=r"notes\.txt"):
        split(bundle, out, PART_SIZE)


def test_a_bundle_that_changes_between_two_runs_is_split_anew(bundle: Path, out: Path) -> None:
    with pytest.raises(DiskFull), BadDisk(out, 30, errno.ENOSPC):
        split(bundle, out, PART_SIZE)
    assert list(out.glob("*.part-*"))
    signature = bundle / "signatures" / f"{'a' * 64}.dsse.json"
    signature.parent.mkdir()
    signature.write_text("{}")
    assert split(bundle, out, PART_SIZE).kept == 0
    assert every_blob_is_right(out)


def test_what_is_the_only_copy_of_a_bundle_is_never_replaced(bundle: Path, out: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    with pytest.raises(DiskFull), BadDisk(out, 30, errno.ENOSPC):
        split(bundle, out, PART_SIZE, consume=True)
    there = contents(out)
    with pytest.raises(BundleDefective, match="already consumed"):
        split(other, out, PART_SIZE * 2)
    assert {name: there[name] for name in contents(out)} == there


def test_a_part_lost_after_its_blobs_were_consumed_is_said_to_be_lost(bundle: Path, out: Path) -> None:
    with pytest.raises(DiskFull), BadDisk(out, 30, errno.ENOSPC):
        split(bundle, out, PART_SIZE, consume=True)
    corrupter.remove(out / "site-1.part-00001")
    with pytest.raises(BundleDefective, match="create the bundle again") as refused:
        split(bundle, out, PART_SIZE, consume=True)
    assert refused.value.exit_code == EXIT_REFUSED


def test_parts_of_another_bundle_in_the_folder_are_not_mixed(bundle: Path, out: Path, tmp_path: Path) -> None:
    split(bundle, out, PART_SIZE)
    before = contents(out)
    with pytest.raises(BundleDefective, match="or name another folder"):
        split(bundle, out, PART_SIZE * 2)
    with pytest.raises(BundleDefective, match="or name another folder"):
        split(a_bundle(tmp_path / "other", width=48), out, PART_SIZE)
    assert contents(out) == before

    split(
        a_bundle(tmp_path / "newer", version=2, width=32), out, PART_SIZE
    )  # another version has other names
    assert before.items() <= contents(out).items()


def test_a_part_that_no_list_and_no_record_explains_stops_the_split(bundle: Path, out: Path) -> None:
    out.mkdir()
    (out / "site-1.part-00999").write_bytes(b"x")
    with pytest.raises(BundleDefective, match="part-00999"):
        split(bundle, out, PART_SIZE)


def test_a_damaged_part_of_a_finished_split_is_named(bundle: Path, out: Path) -> None:
    split(bundle, out, PART_SIZE)
    corrupter.truncate(out / "site-1.part-00002")
    with pytest.raises(BundleDefective, match=r"part-00002 is cut"):
        split(bundle, out, PART_SIZE)


def test_parts_inside_of_the_bundle_are_refused(bundle: Path) -> None:
    for out in (bundle, bundle / "parts"):
        with pytest.raises(BundleDefective, match="outside"):
            split(bundle, out, PART_SIZE)


def test_too_many_or_too_small_parts_are_refused(
    bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleDefective, match="at least 4096"):
        split(bundle, out, 4095)
    monkeypatch.setattr(module, "MAX_PARTS", 3)
    with pytest.raises(BundleDefective, match="at most 3 parts"):
        split(bundle, out, 4096)


def test_without_room_nothing_is_begun(bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(directory: Path, size: int) -> None:
        raise DiskFull(f"{size} bytes")

    monkeypatch.setattr(module, "require_room", no_room)
    with pytest.raises(DiskFull):
        split(bundle, out, PART_SIZE)
    assert contents(out) == {}


def test_two_runs_never_write_to_one_folder(bundle: Path, out: Path) -> None:
    with locked(out), pytest.raises(SovereignError, match="Another run"):
        split(bundle, out, PART_SIZE)
