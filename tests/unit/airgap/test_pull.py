# SPDX-License-Identifier: Apache-2.0
"""Pulling an artifact: nothing at a final path unless its digest matched, and the marker last."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sovereign_airgap import disk
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import (
    ArtifactNotFound,
    DigestMismatch,
    DiskFailed,
    DiskFull,
    InvalidReference,
    MalformedManifest,
    RegistryBlobCorrupt,
    RegistryUnavailable,
    SizeMismatch,
    UnsafeFileName,
)
from sovereign_airgap.pull import PullOptions
from sovereign_airgap.reference import OciReference
from tests.unit.airgap.models import some_bytes
from tests.unit.airgap.registry_double import RegistryDouble, cut_body, status
from tests.unit.airgap.shelf import FILES, Shelf


@pytest.fixture
def shelf(registry: RegistryDouble, pull_options: PullOptions, tmp_path: Path) -> Shelf:
    return Shelf(registry, pull_options, tmp_path / "weights")


@pytest.mark.parametrize("direct", [True, False])
def test_all_files_arrive_and_the_marker_vouches_for_them(shelf: Shelf, direct: bool) -> None:
    result = shelf.pull(direct=direct)
    shelf.require_whole()
    assert (result.files, result.kept, result.size) == (4, 0, sum(map(len, FILES.values())))


def test_a_file_larger_than_the_buffer_keeps_its_tail(shelf: Shelf) -> None:
    large = some_bytes(100_000) * 90  # two buffers of 4 MiB and an unaligned rest
    reference = shelf.put({"model.safetensors": large})
    shelf.pull(reference)
    shelf.require_whole({"model.safetensors": large})


def test_the_weights_can_stay_behind(shelf: Shelf) -> None:
    result = shelf.pull(config_only=True)
    assert result.files == 3
    assert "model.safetensors" not in shelf.found
    assert ".complete" not in shelf.found, "a reader of the whole model must not be fooled"
    assert ".complete-config" in shelf.found
    shelf.pull()
    assert shelf.found["model.safetensors"] == FILES["model.safetensors"]


def test_a_second_pull_fetches_nothing(shelf: Shelf) -> None:
    shelf.pull()
    before = shelf.gets
    assert shelf.pull().kept == 4
    assert shelf.gets == before


def test_a_flipped_bit_on_the_disk_is_found_when_asked_and_repaired(shelf: Shelf) -> None:
    shelf.pull()
    place = shelf.directory / "model.safetensors"
    times = place.stat()
    with place.open("r+b") as file:
        file.write(b"X")
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert shelf.pull().kept == 4, "size and time are all that the marker compares"
    assert shelf.pull(verify_always=True).kept == 3
    shelf.require_whole()


def test_without_a_marker_what_lies_there_is_hashed_before_it_is_believed(shelf: Shelf) -> None:
    shelf.pull()
    (shelf.directory / ".complete").unlink()
    (shelf.directory / "model.safetensors").write_bytes(b"X" * 300_000)
    assert shelf.pull().kept == 3
    shelf.require_whole()


def test_files_of_the_artifact_before_are_removed_and_others_are_not(shelf: Shelf) -> None:
    shelf.pull(shelf.put({"model-00001-of-00002.safetensors": b"old", "config.json": b"old"}))
    (shelf.directory / "mine.txt").write_bytes(b"mine")
    shelf.pull()
    found = shelf.found
    assert "model-00001-of-00002.safetensors" not in found
    assert (found["mine.txt"], found["config.json"]) == (b"mine", FILES["config.json"])


def test_a_flipped_bit_never_reaches_the_final_path(shelf: Shelf) -> None:
    digest = str(Digest.of(FILES["model.safetensors"]))
    shelf.registry.blobs[digest] = b"X" + FILES["model.safetensors"][1:]
    with pytest.raises(RegistryBlobCorrupt, match="repair") as caught:
        shelf.pull()
    assert caught.value.exit_code == 3
    assert not {"model.safetensors", ".complete"} & shelf.found.keys()
    assert not [name for name in shelf.found if name.endswith(".partial")]
    shelf.registry.blobs[digest] = FILES["model.safetensors"]
    shelf.pull()
    shelf.require_whole()


def test_a_wrong_layer_size_is_refused_before_a_byte_is_written(shelf: Shelf) -> None:
    for size in (299_999, 300_001):
        with pytest.raises(SizeMismatch):
            shelf.pull(shelf.put(FILES, model=size))
        assert "model.safetensors" not in shelf.found


def test_a_cut_body_goes_on_where_it_broke(shelf: Shelf) -> None:
    shelf.registry.next("GET blobs", cut_body(100_000), cut_body(0))
    shelf.pull(parallel=1)
    shelf.require_whole()


def test_a_registry_without_ranges_starts_the_file_again(shelf: Shelf) -> None:
    shelf.registry.ignores_range = True
    shelf.registry.next("GET blobs", cut_body(100_000))
    shelf.pull(parallel=1)
    shelf.require_whole()


def test_an_outage_leaves_no_marker_and_a_second_try_succeeds(shelf: Shelf) -> None:
    shelf.registry.next("GET blobs", *[status(503)] * 20)
    with pytest.raises(RegistryUnavailable):
        shelf.pull()
    assert ".complete" not in shelf.found
    shelf.registry._faults.clear()
    shelf.pull()
    shelf.require_whole()


def test_a_missing_blob_and_a_missing_manifest_are_named(shelf: Shelf) -> None:
    del shelf.registry.blobs[str(Digest.of(b"text"))]
    with pytest.raises(ArtifactNotFound, match="original/LICENSE"):
        shelf.pull()
    with pytest.raises(ArtifactNotFound):
        shelf.pull(OciReference(shelf.registry.host, "models/org/name", digest=Digest.of(b"other")))


def test_a_manifest_with_other_bytes_is_refused(shelf: Shelf) -> None:
    digest = shelf.reference.target
    shelf.registry.manifests[digest] = (b"{}", "application/json")
    with pytest.raises(DigestMismatch):
        shelf.pull()


def test_a_manifest_that_climbs_out_is_refused(shelf: Shelf) -> None:
    with pytest.raises(UnsafeFileName):
        shelf.pull(shelf.put({"../escaped.json": b"{}"}))
    with pytest.raises(MalformedManifest):
        shelf.pull(shelf.put_manifest(b"[]"))
    assert not (shelf.directory.parent / "escaped.json").exists()


def test_a_folder_that_is_a_link_is_not_followed(shelf: Shelf, tmp_path: Path) -> None:
    shelf.directory.mkdir()
    (tmp_path / "outside").mkdir()
    (shelf.directory / "original").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeFileName, match="link"):
        shelf.pull()
    assert not list((tmp_path / "outside").iterdir())


def test_a_final_path_that_is_a_link_is_replaced_not_followed(shelf: Shelf, tmp_path: Path) -> None:
    shelf.directory.mkdir()
    (tmp_path / "outside").write_bytes(FILES["config.json"])
    (shelf.directory / "config.json").symlink_to(tmp_path / "outside")
    shelf.pull()
    assert not (shelf.directory / "config.json").is_symlink()


def test_what_a_killed_pull_left_is_swept(shelf: Shelf) -> None:
    shelf.directory.mkdir()
    (shelf.directory / ".sovereign-0123.partial").write_bytes(b"half")
    shelf.pull()
    shelf.require_whole()


def test_too_little_room_is_refused_before_the_first_byte(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(shelf.directory.parent)
    small = os.statvfs_result((*real[:3], 0, 0, *real[5:10]))
    monkeypatch.setattr(disk.os, "statvfs", lambda _: small)
    with pytest.raises(DiskFull, match="enlarge"):
        shelf.pull()
    assert shelf.gets == 0


def test_a_disk_that_fills_up_leaves_no_final_path(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, "write", full)
    with pytest.raises(DiskFull):
        shelf.pull()
    monkeypatch.undo()
    assert not [name for name in shelf.found if name != "original/empty.json"]


def test_a_file_system_that_refuses_direct_writes_is_written_to_anyway(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.write, []

    def picky(descriptor: int, view: memoryview) -> int:
        import fcntl

        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, view)

    monkeypatch.setattr(disk.os, "write", picky)
    large = some_bytes(1000) * 9000
    shelf.pull(shelf.put({"model.safetensors": large}))
    shelf.require_whole({"model.safetensors": large})
    if not refused:
        pytest.skip("this file system has no direct writes to refuse")


def test_two_pulls_never_write_to_one_directory(shelf: Shelf) -> None:
    with disk.locked(shelf.directory), pytest.raises(DiskFailed, match="Another run"):
        shelf.pull()


def test_a_tag_is_not_pulled(shelf: Shelf) -> None:
    with pytest.raises(InvalidReference):
        shelf.pull(OciReference(shelf.registry.host, "models/org/name", tag="latest"))
