# SPDX-License-Identifier: Apache-2.0
"""Verifying a bundle: what is whole is said to be, and every defect has its name."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from sovereign_airgap.bundle import archive, hashing, layout
from sovereign_airgap.bundle.defects import MAX_DEFECTS
from sovereign_airgap.bundle.hashing import lanes_for
from sovereign_airgap.bundle.index import Index
from sovereign_airgap.bundle.layout import CONTENTS, INDEX, blob_path
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.report import Verified
from sovereign_airgap.bundle.split import split
from sovereign_airgap.bundle.verify import find_defects, verify
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import (
    BundleDefective,
    DiskFailed,
    KeyUnusable,
    NotSigned,
    SignatureInvalid,
    SovereignError,
)
from sovereign_airgap.progress import Progress
from sovereign_airgap.signing.keys import PrivateKey, PublicKey
from tests.unit.airgap.bundles import MODEL_ONE, MODEL_TWO, a_bundle, a_root, index_digest, index_of
from tests.unit.airgap.verifying import defects_of, examined, signed, the_largest_shard
from tests.unit.faults import corrupter

PART_SIZE = 12 * 1024


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return a_bundle(tmp_path / "bundle", width=64)


@pytest.fixture
def key(bundle: Path) -> PublicKey:
    """Of a key that has signed the bundle."""
    return signed(bundle)


@pytest.fixture
def parts(bundle: Path, key: PublicKey, tmp_path: Path) -> Path:
    return split(bundle, tmp_path / "parts", PART_SIZE).path.parent


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


def test_a_folder_or_an_archive_without_end_is_not_listed_to_its_end(
    bundle: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, path in ((layout, bundle), (archive, parts)):
        with monkeypatch.context() as patch:
            patch.setattr(module, "MAX_ENTRIES", 10)
            (what,) = defects_of(path).values()
        assert "at most 10 files" in what


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
    monkeypatch.setattr(hashing, "_SMALL_BYTES", 0)
    real = os.preadv
    refused = set()

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if descriptor not in refused and not refused.add(descriptor):  # type: ignore[func-returns-value]
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    assert not examined(bundle, parallel=1).defects


@pytest.mark.parametrize("seed", range(25))
def test_no_damage_to_a_signed_bundle_goes_unnoticed(bundle: Path, key: PublicKey, seed: int) -> None:
    damage, path = corrupter.damage_anything(bundle, seed)
    with pytest.raises(SovereignError) as refused:
        verify(open_bundle(bundle), [key], 1, Progress())
    assert refused.value.exit_code == 3, (damage, path)


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
