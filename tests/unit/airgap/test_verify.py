# SPDX-License-Identifier: Apache-2.0
"""Verifying a bundle: what is whole is said to be, every defect has its name, and a part can be at fault."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click import BadParameter

from sovereign_airgap.bundle import hashing, signatures
from sovereign_airgap.bundle.defects import MAX_DEFECTS
from sovereign_airgap.bundle.hashing import Job, hash_all, lanes_for
from sovereign_airgap.bundle.index import Index
from sovereign_airgap.bundle.layout import CONTENTS, INDEX, FileRange, blob_path
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.part_damage import blame
from sovereign_airgap.bundle.parts import Parts
from sovereign_airgap.bundle.split import split
from sovereign_airgap.bundle.verify import Report, Verified, examine, find_defects, verify
from sovereign_airgap.cli import run
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import (
    BundleDefective,
    DigestMismatch,
    DiskFailed,
    KeyUnusable,
    NotSigned,
    SignatureInvalid,
    SovereignError,
)
from sovereign_airgap.options import SIZE
from sovereign_airgap.progress import Progress
from sovereign_airgap.signing.keys import PrivateKey, PublicKey
from tests.unit.airgap.bundles import MODEL_ONE, MODEL_TWO, a_bundle, a_root, index_digest, index_of
from tests.unit.faults import corrupter

PART_SIZE = 12 * 1024
CREATED = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return a_bundle(tmp_path / "bundle", width=64)


@pytest.fixture
def key(bundle: Path) -> PublicKey:
    """Of a key that has signed the bundle."""
    private = PrivateKey.generate("ed25519")
    signatures.sign(bundle, private, CREATED)
    return private.public


@pytest.fixture
def parts(bundle: Path, key: PublicKey, tmp_path: Path) -> Path:
    return split(bundle, tmp_path / "parts", PART_SIZE).path.parent


def examined(path: Path, keys: Sequence[PublicKey] = (), **options: Any) -> Report:
    return examine(open_bundle(path), keys, 1, Progress(), **options)


def defects_of(path: Path, keys: Sequence[PublicKey] = ()) -> dict[str, str]:
    return {defect.path: defect.what for defect in examined(path, keys).defects}


def the_largest_shard(bundle: Path) -> Path:
    return max((bundle / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)


# -- what is whole ------------------------------------------------------------------------------------------


def test_a_whole_bundle_is_verified_with_every_blob_and_by_whom_it_is_signed(
    bundle: Path, key: PublicKey, parts: Path
) -> None:
    blobs = list((bundle / "blobs/sha256").iterdir())
    for path in (bundle, parts):
        progress = Progress()
        found = verify(open_bundle(path), [key], 1, progress)
        assert found == Verified(
            "site", 1, index_of(bundle), index_digest(bundle), len(blobs),
            sum(blob.stat().st_size for blob in blobs), 0, (key.key_id,),
        )  # fmt: skip
        seen = progress.snapshot()
        assert (seen.bytes_done, seen.files_done) == (found.size, found.blobs)


def test_a_bundle_is_read_only_by_verifying_it(bundle: Path, parts: Path) -> None:
    for path in (bundle, parts):
        with corrupter.BadDisk(path, 0, 0) as disk:
            examined(path)
        assert disk.changes == 0


@pytest.mark.parametrize("parallel", [None, 1, 3, 1000])
def test_any_number_of_lanes_finds_the_same(bundle: Path, parallel: int | None) -> None:
    corrupter.flip(the_largest_shard(bundle))
    found = examined(bundle, parallel=parallel)
    assert [defect.path for defect in found.defects] == [f"blobs/sha256/{the_largest_shard(bundle).name}"]
    assert found.blobs == len(list((bundle / "blobs/sha256").iterdir())) - 1
    assert 1 <= lanes_for(parallel) <= 16


# -- signatures ---------------------------------------------------------------------------------------------


def test_without_a_signature_nothing_is_signed(bundle: Path) -> None:
    key = PrivateKey.generate("ed25519").public
    with pytest.raises(NotSigned):
        verify(open_bundle(bundle), [key], 1, Progress())
    assert examined(bundle).signed_by == ()


def test_a_key_that_did_not_sign_is_not_satisfied_by_one_that_did(bundle: Path, key: PublicKey) -> None:
    other = PrivateKey.generate("ecdsa-p256").public
    with pytest.raises(NotSigned):
        verify(open_bundle(bundle), [other], 1, Progress())
    with pytest.raises(NotSigned):
        verify(open_bundle(bundle), [other, key], 2, Progress())
    assert verify(open_bundle(bundle), [other, key], 1, Progress()).signed_by == (key.key_id,)


def test_a_signature_over_another_index_is_invalid(bundle: Path, key: PublicKey, tmp_path: Path) -> None:
    newer = a_bundle(tmp_path / "newer", version=2)
    shutil.copytree(bundle / "signatures", newer / "signatures")
    with pytest.raises(SignatureInvalid):
        verify(open_bundle(newer), [key], 1, Progress())


def test_a_stripped_signature_is_missed(bundle: Path, key: PublicKey) -> None:
    shutil.rmtree(bundle / "signatures")
    assert set(defects_of(bundle, [key])) == {"signatures"}


def test_a_broken_signature_is_named_even_where_no_key_is_given(bundle: Path, key: PublicKey) -> None:
    corrupter.truncate(bundle / "signatures" / f"{key.key_id}.dsse.json")
    assert set(defects_of(bundle)) == {f"signatures/{key.key_id}.dsse.json"}


def test_a_threshold_that_no_keys_can_reach_is_a_fault_of_the_caller(bundle: Path, key: PublicKey) -> None:
    with pytest.raises(KeyUnusable):
        verify(open_bundle(bundle), [key], 2, Progress())


# -- every defect -------------------------------------------------------------------------------------------


def test_every_defect_is_named_on_a_line_of_its_own(bundle: Path, key: PublicKey) -> None:
    blobs = sorted((bundle / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    corrupter.flip(blobs[-1])
    corrupter.truncate(blobs[-2])
    (bundle / "surplus.txt").write_text("x")
    (bundle / blob_path(Digest.of(b"nobody needs this"))).write_bytes(b"nobody needs this")
    corrupter.flip(bundle / CONTENTS)
    shutil.rmtree(bundle / "signatures")

    with pytest.raises(BundleDefective) as refused:
        verify(open_bundle(bundle), [key], 1, Progress())

    lines = str(refused.value).splitlines()
    assert lines[0] == f"Expected a whole bundle at {bundle}, found 6 defects."
    assert {line.partition(": ")[0] for line in lines[1:]} == {
        f"blobs/sha256/{blobs[-1].name}", f"blobs/sha256/{blobs[-2].name}", "surplus.txt", CONTENTS,
        blob_path(Digest.of(b"nobody needs this")), "signatures",
    }  # fmt: skip
    assert all(line.endswith(".") for line in lines)
    assert [defect.path for defect in find_defects(open_bundle(bundle), [key], 1, Progress())] == sorted(
        line.partition(": ")[0] for line in lines[1:]
    )


def test_ten_thousand_defects_are_counted_and_two_hundred_named(bundle: Path) -> None:
    for number in range(1000):
        (bundle / f"surplus-{number:04}").touch()
    found = examined(bundle)
    assert len(found.defects) == MAX_DEFECTS
    assert found.more == 1000 - MAX_DEFECTS
    assert [defect.path for defect in found.defects] == [f"surplus-{n:04}" for n in range(MAX_DEFECTS)]
    with pytest.raises(BundleDefective, match="found 1000 defects"):
        _ = found.verified


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\u202etxt.exe", os.fsdecode(b"\xff")])
def test_the_name_of_a_surplus_file_cannot_play_tricks_in_a_terminal(bundle: Path, name: str) -> None:
    (bundle / name).touch()
    (defect,) = examined(bundle).defects
    assert defect.path.isprintable() and defect.path.isascii()
    assert str(defect).isprintable()


def test_a_missing_blob_is_named_with_what_needs_it(bundle: Path) -> None:
    the_largest_shard(bundle).unlink()
    (what,) = defects_of(bundle).values()
    assert "is missing" in what and (MODEL_ONE in what or MODEL_TWO in what)


def test_a_manifest_that_cannot_be_read_is_named_once_and_its_blobs_are_not_called_surplus(
    bundle: Path,
) -> None:
    digest = a_root(bundle, MODEL_ONE).descriptor.digest
    corrupter.flip(bundle / blob_path(digest))
    assert set(defects_of(bundle)) == {blob_path(digest)}


def test_a_disk_that_cannot_read_one_file_is_named_and_the_rest_is_verified(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = the_largest_shard(bundle)
    real = os.preadv

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == bad:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    found = examined(bundle)
    assert [(defect.path, defect.reason) for defect in found.defects] == [
        (f"blobs/sha256/{bad.name}", "DiskFailed")
    ]
    assert found.blobs == len(list(bad.parent.iterdir())) - 1
    with pytest.raises(DiskFailed, match="Input/output error"):
        _ = found.verified


def test_where_reading_past_the_page_cache_is_refused_it_is_read_through_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv
    refused = set()

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if descriptor not in refused and not refused.add(descriptor):  # type: ignore[func-returns-value]
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    assert not examined(bundle, parallel=1).defects


# -- parts --------------------------------------------------------------------------------------------------


def test_of_one_damaged_part_only_that_part_is_named(parts: Path, key: PublicKey) -> None:
    names = sorted(path.name for path in parts.glob("*.part-*"))
    assert len(names) > 5
    for name in names:
        corrupter.flip(parts / name)
        assert set(defects_of(parts, [key])) == {name}
        corrupter.flip(parts / name)
    assert not defects_of(parts, [key])


def test_every_part_that_is_damaged_or_missing_is_named(parts: Path, key: PublicKey) -> None:
    corrupter.flip(parts / "site-1.part-00002")
    corrupter.remove(parts / "site-1.part-00004")
    corrupter.truncate(parts / "site-1.part-00005")
    found = defects_of(parts, [key])
    assert set(found) == {"site-1.part-00002", "site-1.part-00004", "site-1.part-00005"}
    assert all("copy this part again" in what for what in found.values())


def test_parts_in_each_others_places_are_told_from_damaged_ones(parts: Path, key: PublicKey) -> None:
    corrupter.swap(parts / "site-1.part-00002", parts / "site-1.part-00003")
    found = defects_of(parts, [key])
    assert set(found) == {"site-1.part-00002", "site-1.part-00003"}
    assert "holds the bytes of site-1.part-00003" in found["site-1.part-00002"]


def test_a_part_of_another_bundle_is_named(parts: Path, key: PublicKey, tmp_path: Path) -> None:
    other = split(a_bundle(tmp_path / "other", width=66), tmp_path / "others", PART_SIZE).path.parent
    shutil.copy(other / "site-1.part-00003", parts / "site-1.part-00003")
    found = defects_of(parts, [key])
    assert set(found) == {"site-1.part-00003"}
    assert "of another bundle" in found["site-1.part-00003"]


def test_the_list_of_another_bundle_is_refused(parts: Path, key: PublicKey, tmp_path: Path) -> None:
    other = split(a_bundle(tmp_path / "other", width=66), tmp_path / "others", PART_SIZE).path
    shutil.copy(other, parts / other.name)
    assert defects_of(parts, [key])


def test_a_part_too_many_is_named(parts: Path, key: PublicKey) -> None:
    shutil.copy(parts / "site-1.part-00001", parts / "site-1.part-00099")
    assert set(defects_of(parts, [key])) == {"site-1.part-00099"}


@pytest.mark.parametrize("disguise", corrupter.DISGUISES)
def test_a_part_that_is_no_plain_file_is_never_read(parts: Path, key: PublicKey, disguise: str) -> None:
    corrupter.DISGUISES[disguise](parts / "site-1.part-00002")
    assert set(defects_of(parts, [key])) == {"site-1.part-00002"}


def test_parts_of_a_bundle_that_was_bad_before_are_not_blamed(bundle: Path, tmp_path: Path) -> None:
    the_largest_shard(bundle).unlink()
    parts = split(bundle, tmp_path / "parts", PART_SIZE).path
    (path,) = defects_of(parts)
    assert path.startswith("blobs/sha256/")


def test_whoever_reads_wrong_bytes_can_ask_which_part_to_copy_again(parts: Path, bundle: Path) -> None:
    reader = open_bundle(parts)
    path = blob_path(Digest.of(the_largest_shard(bundle).read_bytes()))
    assert blame(open_bundle(bundle), path) == "copy the bundle again"
    assert blame(reader, path) == "copy the bundle again"
    assert isinstance(reader, Parts)
    number = reader.parts_of(path)[-1]
    corrupter.flip(parts / f"site-1.part-{number:05d}")
    assert re.fullmatch(rf"site-1\.part-{number:05d} .*; copy this part again", blame(reader, path))


# -- anything -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(25))
def test_no_damage_to_a_signed_bundle_goes_unnoticed(bundle: Path, key: PublicKey, seed: int) -> None:
    damage, path = corrupter.damage_anything(bundle, seed)
    with pytest.raises(SovereignError) as refused:
        verify(open_bundle(bundle), [key], 1, Progress())
    assert refused.value.exit_code == 3, (damage, path)


@pytest.mark.parametrize("seed", range(25))
def test_no_damage_to_signed_parts_goes_unnoticed(parts: Path, key: PublicKey, seed: int) -> None:
    (parts / "site-1.parts.json").rename(parts.parent / "list")
    damage, path = corrupter.damage_anything(parts, seed)
    (parts.parent / "list").rename(parts / "site-1.parts.json")
    assert set(defects_of(parts, [key])) == {path.name}, damage


# -- deltas -------------------------------------------------------------------------------------------------


def test_of_a_delta_the_base_is_asked_for_what_is_absent(bundle: Path, tmp_path: Path) -> None:
    delta = a_bundle(tmp_path / "delta", version=2, width=64)
    index = index_of(delta)
    (delta / INDEX).write_bytes(Index(index.name, 2, index.roots, index_digest(bundle)).encode())
    absent = the_largest_shard(delta)
    absent.unlink()

    alone = examined(delta).verified
    assert alone.absent == 1
    assert examined(delta, base=open_bundle(bundle)).verified.absent == 1

    wrong = a_bundle(tmp_path / "wrong", version=3)
    found = examined(delta, base=open_bundle(wrong))
    assert [defect.reason for defect in found.defects] == ["WrongBase"]

    (bundle / "blobs/sha256" / absent.name).unlink()
    assert [defect.path for defect in examined(delta, base=open_bundle(bundle)).defects] == [
        f"blobs/sha256/{absent.name}"
    ]
    whole = a_bundle(tmp_path / "whole")
    assert [defect.reason for defect in examined(whole, base=open_bundle(bundle)).defects] == ["WrongBase"]


# -- hashing ------------------------------------------------------------------------------------------------


def test_ranges_of_several_files_are_hashed_as_one_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_PIECE_BYTES", 8192)
    content = os.urandom(100_000)
    path = tmp_path / "file"
    path.write_bytes(content)
    spans = [(0, 100_000), (1, 99_999), (4096, 8192), (8191, 8193), (5000, 5000), (99_999, 100_000)]
    found: dict[int, Digest | SovereignError] = {}
    jobs = [
        Job(at, (FileRange(path, start, end), FileRange(path, 0, at)))
        for at, (start, end) in enumerate(spans)
    ]
    moved: list[int] = []
    hash_all(jobs, 2, found.__setitem__, moved.append)
    assert found == {at: Digest.of(content[a:b] + content[:at]) for at, (a, b) in enumerate(spans)}
    assert sum(moved) == sum(job.size for job in jobs)


def test_a_file_that_ends_before_its_range_has_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5000))
    found: dict[int, Digest | SovereignError] = {}
    hash_all([Job(0, (FileRange(path, 0, 5001),)), Job(1, ())], None, found.__setitem__, lambda count: None)
    assert isinstance(found[0], SovereignError) and "found 5000" in str(found[0])
    assert found[1] == Digest.of(b"")
    hash_all([], None, found.__setitem__, lambda count: None)


def test_a_signal_ends_all_lanes(tmp_path: Path) -> None:
    class Ended(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Ended

    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    counted: list[int] = []

    def moved(count: int) -> None:
        counted.append(count)
        if len(counted) == 3:
            os.kill(os.getpid(), signal.SIGALRM)

    jobs = [Job(at, (FileRange(path, 0, 64 * 1024 * 1024),)) for at in range(40)]
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Ended):
            hash_all(jobs, 2, lambda what, result: None, moved)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(counted) < 40 * 32


# -- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def key_file(key: PublicKey, tmp_path: Path) -> Path:
    path = tmp_path / "key.pub"
    path.write_bytes(key.pem())
    return path


def test_the_command_says_by_whom_and_writes_its_result(
    bundle: Path, key: PublicKey, key_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result"
    command = ["bundle", "verify", str(bundle), "--key", str(key_file), "--progress", "none"]
    assert run([*command, "--result-file", str(result)]) == 0
    assert f"signed by {key.key_id}" in capsys.readouterr().out
    assert json.loads(result.read_bytes())["reason"] == "Verified"
    assert run(["verify", str(bundle), "--key", str(key_file)]) == 0


def test_the_command_exits_with_3_and_a_line_for_every_defect(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupter.flip(the_largest_shard(bundle))
    (bundle / "surplus").touch()
    result = tmp_path / "result"
    command = ["bundle", "verify", str(bundle), "--progress", "none", "--result-file", str(result)]
    assert run(command) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 3
    assert json.loads(result.read_bytes())["reason"] == "BundleDefective"


@pytest.mark.parametrize("damaged", [False, True])
def test_with_json_there_is_one_document_whatever_was_found(
    bundle: Path, damaged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if damaged:
        corrupter.flip(the_largest_shard(bundle))
    assert run(["bundle", "verify", str(bundle), "--json", "--progress", "none"]) == (3 if damaged else 0)
    document = json.loads(capsys.readouterr().out)
    assert document["index"] == str(index_digest(bundle))
    assert [defect["reason"] for defect in document["defects"]] == (["DigestMismatch"] if damaged else [])


def test_the_command_refuses_what_is_no_bundle_and_a_threshold_without_keys(tmp_path: Path) -> None:
    assert run(["bundle", "verify", str(tmp_path / "absent"), "--progress", "none"]) == 3
    assert run(["bundle", "verify", str(tmp_path), "--threshold", "2"]) == 2


def test_the_command_split_writes_parts_that_verify(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["bundle", "split", str(bundle), "-o", str(out), "--part-size", "8KiB", "--progress", "none"]
    assert run([*command, "--result-file", str(tmp_path / "result")]) == 0
    assert json.loads((tmp_path / "result").read_bytes())["parts"] == len(list(out.glob("*.part-*")))
    assert run(["bundle", "verify", str(out), "--progress", "none"]) == 0
    assert run(["bundle", "split", str(bundle), "-o", str(out), "--part-size", "8 apples"]) == 2


def test_mixed_reasons_are_a_defective_bundle_and_one_reason_keeps_its_name(bundle: Path) -> None:
    corrupter.flip(the_largest_shard(bundle))
    with pytest.raises(DigestMismatch):
        verify(open_bundle(bundle), (), 1, Progress())
    (bundle / "surplus").touch()
    with pytest.raises(BundleDefective):
        verify(open_bundle(bundle), (), 1, Progress())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("5B", 5),
        ("3K", 3072),
        ("3KiB", 3072),
        ("3kb", 3000),
        ("4000MiB", 4000 << 20),
        ("4 GB", 4 * 10**9),
    ],
)
def test_a_part_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert SIZE.convert(text, None, None) == size


@pytest.mark.parametrize("text", ["0", "-1", "1.5G", "1e9", "1X", "MiB", "", "1" * 30])
def test_what_is_no_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(BadParameter):
        SIZE.convert(text, None, None)
