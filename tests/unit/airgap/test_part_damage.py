# SPDX-License-Identifier: Apache-2.0
"""Damaged parts have a name: one of them is copied again, not the whole bundle."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from sovereign_airgap.bundle.layout import blob_path
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.part_damage import blame
from sovereign_airgap.bundle.parts import Parts
from sovereign_airgap.bundle.split import split
from sovereign_airgap.digest import Digest
from sovereign_airgap.signing.keys import PublicKey
from tests.unit.airgap.bundles import a_bundle
from tests.unit.airgap.verifying import defects_of, signed, the_largest_shard
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


@pytest.mark.parametrize("seed", range(25))
def test_no_damage_to_signed_parts_goes_unnoticed(parts: Path, key: PublicKey, seed: int) -> None:
    (parts / "site-1.parts.json").rename(parts.parent / "list")
    damage, path = corrupter.damage_anything(parts, seed)
    (parts.parent / "list").rename(parts / "site-1.parts.json")
    assert set(defects_of(parts, [key])) == {path.name}, damage
