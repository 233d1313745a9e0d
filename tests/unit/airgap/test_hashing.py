# SPDX-License-Identifier: Apache-2.0
"""Hashing many files at once: aligned reads of any range, and an end for every lane."""

from __future__ import annotations

import mmap
import os
import signal
from pathlib import Path

import pytest

from sovereign_airgap.bundle import hashing
from sovereign_airgap.bundle.hashing import hash_all
from sovereign_airgap.bundle.layout import FileRange
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import (
    SovereignError,
)


@pytest.mark.parametrize("small", [0, 5000, 1 << 20], ids=["ahead", "both", "small"])
def test_ranges_of_several_files_are_hashed_as_one_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(hashing, "_SMALL_BYTES", small)
    monkeypatch.setattr(hashing, "_PIECE_BYTES", 8192)
    content = os.urandom(100_000)
    path = tmp_path / "file"
    path.write_bytes(content)
    spans = [(0, 100_000), (1, 99_999), (4096, 8192), (8191, 8193), (5000, 5000), (99_999, 100_000)]
    found: dict[int, Digest | SovereignError] = {}

    def ranges_of(at: int) -> tuple[FileRange, ...]:
        return (FileRange(path, *spans[at]), FileRange(path, 0, at))

    sizes = {at: end - start + at for at, (start, end) in enumerate(spans)}
    moved: list[int] = []
    hash_all(sizes, ranges_of, 2, found.__setitem__, moved.append)
    assert found == {at: Digest.of(content[a:b] + content[:at]) for at, (a, b) in enumerate(spans)}
    assert sum(moved) == sum(sizes.values())


@pytest.mark.parametrize("lanes", range(1, 17))
def test_any_number_of_lanes_reads_aligned_pieces_of_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    sizes: list[int] = []
    real = mmap.mmap

    def counted(descriptor: int, size: int) -> mmap.mmap:
        sizes.append(size)
        return real(descriptor, 4096)

    monkeypatch.setattr(mmap, "mmap", counted)
    path = tmp_path / "file"
    path.write_bytes(b"content")
    ranges = (FileRange(path, 0, 7),)
    found: dict[int, Digest | SovereignError] = {}
    hash_all(dict.fromkeys(range(lanes), 7), lambda at: ranges, lanes, found.__setitem__, lambda count: None)
    assert set(found.values()) == {Digest.of(b"content")}
    assert len(sizes) == 2 * lanes and sum(sizes) <= 64 * 1024 * 1024
    assert not any(size % 4096 for size in sizes)


@pytest.mark.parametrize("small", [0, 1 << 20], ids=["ahead", "small"])
def test_a_file_that_ends_before_its_range_has_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(hashing, "_SMALL_BYTES", small)
    path = tmp_path / "file"
    path.write_bytes(bytes(5000))
    found: dict[int, Digest | SovereignError] = {}
    ranges = {0: (FileRange(path, 0, 5001),), 1: ()}
    hash_all({0: 5001, 1: 0}, ranges.__getitem__, None, found.__setitem__, lambda count: None)
    assert isinstance(found[0], SovereignError) and "found 5000" in str(found[0])
    assert found[1] == Digest.of(b"")
    hash_all({}, ranges.__getitem__, None, found.__setitem__, lambda count: None)


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

    sizes = dict.fromkeys(range(40), 64 * 1024 * 1024)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Ended):
            hash_all(sizes, lambda at: (FileRange(path, 0, sizes[at]),), 2, lambda what, result: None, moved)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(counted) < 40 * 32
