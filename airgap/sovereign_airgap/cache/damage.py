# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an entry of the cache: files against manifest and markers, and bytes against digests.

The entry's name is the digest of its manifest, and the manifest has the digests of the files: nobody has to
be believed. The markers add when each file was hashed. Comparing costs nothing and finds what somebody wrote;
only hashing finds what the disk lost by itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sovereign_airgap.cache.layout import MANIFEST, Entry, strangers
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained, open_regular
from sovereign_airgap.errors import DiskFailed, SizeMismatch, SovereignError
from sovereign_airgap.manifest import Layer, ModelManifest
from sovereign_airgap.marker import Written, parse_marker, read_bounded

Marker = Mapping[str, Written]


@dataclass(frozen=True, slots=True)
class Promised:
    """A file as the manifest has it. `times`: when it was hashed, as its times of change (ns) then.

    Two markers may disagree after one of them was renewed; where there is no time none vouches for the file.
    """

    size: int
    digest: Digest
    times: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Damage:
    """One file of an entry that is not what was promised; `path` is below the entry's folder."""

    path: str
    expected: str
    found: str
    # The medium does not give the bytes back: another copy on the same disk may fare no better.
    unreadable: bool = False

    def __str__(self) -> str:
        return f"expected {self.expected} at {ascii(self.path)[1:-1]}, found {self.found}"


def described(damages: Sequence[Damage]) -> str:
    """The first of them, and how many more there are."""
    more = len(damages) - 1
    return f"{damages[0]}" + (f", and {more} more files are damaged" if more else "")


def read_marked(entry: Entry, name: str) -> Marker | Damage | None:
    """What the entry's marker `name` says; None where there is no marker. Raises DiskFailed."""
    marker = entry.folder / name
    try:
        file = open_regular(marker)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        with explained(marker):
            raise
    if file is None:
        return Damage(name, "a marker", "a link, or something that is no file")
    with file, explained(marker):
        content = read_bounded(file)
    manifest, files = parse_marker(content)
    if manifest != str(entry.digest):
        found = f"one of {manifest[:100]!a}" if manifest else "none"
        return Damage(name, f"a marker of {entry.digest}", found)
    return files


def promised_by(layers: Iterable[Layer], *markers: Marker | Damage | None) -> dict[str, Promised]:
    """The files of these layers, by path."""
    believed = [marker for marker in markers if marker is not None and not isinstance(marker, Damage)]
    found = {}
    for layer in layers:
        words = [marker[layer.path] for marker in believed if layer.path in marker]
        right = [each for each in words if (each.size, each.digest) == (layer.size, str(layer.digest))]
        times = tuple(sorted({each.mtime_ns for each in right}))
        found[layer.path] = Promised(layer.size, layer.digest, times)
    return found


def no_manifest(entry: Entry) -> Damage:
    return Damage(MANIFEST, f"the manifest {entry.digest}", "none, or another")


def compare(entry: Entry, files: Mapping[str, Promised], manifest: ModelManifest) -> list[Damage]:
    """What is not as it was promised, without any byte being read, by path.

    Nothing else may lie there, because engines load what they find; other files of the manifest may come.
    """
    there = dict(below(entry.folder))
    differences = (_difference(path, promised, there.get(path)) for path, promised in files.items())
    damages = [damage for damage in differences if damage is not None]
    damages += [
        Damage(path, "nothing", _kind(there[path]))
        for path in strangers(entry.folder, {layer.path for layer in manifest.layers})
        if path in there
    ]
    return sorted(damages, key=lambda damage: damage.path)


class Rehash:
    """Hashes files again, past the page cache where that goes; those with several names are read once."""

    def __init__(self, parallel: int | None, moved: Callable[[int], None]) -> None:
        self._parallel, self._moved = parallel, moved
        self._known: dict[tuple[int, int, int], Digest | SovereignError] = {}

    def damages(self, folder: Path, files: Mapping[str, Promised]) -> list[Damage]:
        """What hashes to another digest, by path; raises DiskFailed where we are not let to the bytes."""
        # Late: a pod that only compares starts sooner, and stays smaller.
        from sovereign_airgap.bundle.hashing import hash_all
        from sovereign_airgap.bundle.layout import FileRange

        inodes: dict[str, tuple[int, int, int]] = {}
        places: dict[tuple[int, int, int], tuple[FileRange, ...]] = {}
        for path in files:
            place = folder / path
            with explained(place):
                status = place.lstat()
            # The time of change too: a file that was replaced meanwhile is another one.
            inode = (status.st_dev, status.st_ino, status.st_ctime_ns)
            inodes[path] = inode
            if inode in self._known or inode in places:
                self._moved(status.st_size)
            else:
                places[inode] = (FileRange(place, 0, status.st_size),)
        sizes = {inode: ranges[0].end for inode, ranges in places.items()}
        hash_all(sizes, places.__getitem__, self._parallel, self._known.__setitem__, self._moved)
        judged = (
            _verdict(folder, path, promised.digest, self._known[inodes[path]])
            for path, promised in sorted(files.items())
        )
        return [damage for damage in judged if damage is not None]


def _verdict(folder: Path, path: str, promised: Digest, result: Digest | SovereignError) -> Damage | None:
    expected = f"bytes of {promised}"
    if isinstance(result, Digest):
        return None if result == promised else Damage(path, expected, f"bytes of {result}")
    cause = result.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.EIO:
        return Damage(path, expected, "a disk that does not give them back", unreadable=True)
    if isinstance(result, SizeMismatch):
        return Damage(path, expected, "fewer")
    what = cause.strerror if isinstance(cause, OSError) else str(result)
    raise DiskFailed(
        f"{folder / path} cannot be read: {what}; check the cache's disk and rights."
    ) from result


def _difference(path: str, promised: Promised, status: os.stat_result | None) -> Damage | None:
    if status is None or not stat.S_ISREG(status.st_mode):
        return Damage(path, f"a file of {promised.size} bytes", "none" if status is None else _kind(status))
    if status.st_size != promised.size:
        return Damage(path, f"{promised.size} bytes", str(status.st_size))
    if not promised.times:
        return Damage(path, f"a marker that vouches for {promised.digest}", "none that does")
    if status.st_mtime_ns not in promised.times:
        expected = f"a file written at {_seconds(promised.times[-1])}"
        return Damage(path, expected, f"one written at {_seconds(status.st_mtime_ns)}")
    return None


def below(folder: Path, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Everything below an entry that is no folder, links as themselves, without what goes away meanwhile."""
    items: list[os.DirEntry[str]] = []
    with explained(folder), _gone_is_nothing(), os.scandir(folder) as found:
        items = list(found)
    for item in items:
        status = None
        with explained(folder / item.name), _gone_is_nothing():
            status = item.stat(follow_symlinks=False)
        if status is None:
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from below(folder / item.name, f"{prefix}{item.name}/")
        else:
            yield f"{prefix}{item.name}", status


def _gone_is_nothing() -> contextlib.suppress:
    return contextlib.suppress(FileNotFoundError, NotADirectoryError)


def _kind(status: os.stat_result) -> str:
    if stat.S_ISREG(status.st_mode):
        return f"a file of {status.st_size} bytes"
    return "a link" if stat.S_ISLNK(status.st_mode) else "something that is no file"


def _seconds(nanoseconds: int) -> str:
    whole, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{whole}.{rest:09d}"
