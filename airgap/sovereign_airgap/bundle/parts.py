# SPDX-License-Identifier: Apache-2.0
"""A bundle as parts: equal slices of one archive, with a list of their digests, read without joining them.

The list is not signed and nothing is believed because of it: it tells which part to copy again. What the
parts hold is checked as in a directory, against the digests in paths and in the signed index.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, cast

from sovereign_airgap import strict_json
from sovereign_airgap.bundle.archive import Member, walk
from sovereign_airgap.bundle.index import is_bundle_name
from sovereign_airgap.bundle.layout import Entry, FileRange, open_plain
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained
from sovereign_airgap.errors import BundleDefective, InvalidReference
from sovereign_airgap.manifest import MAX_BLOB_BYTES, canonical_json
from sovereign_airgap.strict_json import Json

LIST_SUFFIX = ".parts.json"
MAX_PARTS = 10_000
_LIST_BYTES = 4 * 1024 * 1024
_FORMAT = 1
_NAME = re.compile(r"(.+)-([1-9][0-9]{0,8})")
_PART = re.compile(r"(.+)\.part-([0-9]{5})")


@dataclass(frozen=True, slots=True)
class Part:
    """One slice: its file's name, its size in bytes and its digest."""

    name: str
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class PartsList:
    """`NAME.parts.json`. `index` is the digest of the index.json inside; `size` of all parts, in bytes."""

    name: str
    index: Digest
    part_size: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def encode(self) -> bytes:
        parts: list[Json] = [
            {"name": part.name, "size": part.size, "sha256": part.digest.hex} for part in self.parts
        ]
        return canonical_json(
            {
                "format": _FORMAT,
                "name": self.name,
                "index": str(self.index),
                "partSize": self.part_size,
                "size": self.size,
                "parts": parts,
            }
        )

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Reads a list; raises BundleDefective naming what is wrong with it."""
        try:
            document = strict_json.load_object(content)
            if document.get("format") != _FORMAT:
                raise _malformed(f"format {_FORMAT}", repr(document.get("format"))[:40])
            name, raw = document.get("name"), document.get("parts")
            if not isinstance(name, str) or not _is_name(name):
                raise _malformed("a bundle's name and version", ascii(name)[:100])
            if not isinstance(raw, list) or not 0 < len(raw) <= MAX_PARTS:
                raise _malformed(
                    f"1 to {MAX_PARTS} parts", str(len(raw)) if isinstance(raw, list) else "none"
                )
            size = _size(document.get("partSize"), "partSize")
            parts = tuple(_part(entry, part_name(name, at)) for at, entry in enumerate(raw, 1))
            found = cls(name, _digest(document.get("index"), "sha256:"), size, parts)
        except strict_json.NotStrict as error:
            raise _malformed("a JSON object", str(error)[:200]) from error
        even = all(part.size == size for part in parts[:-1]) and 0 < parts[-1].size <= size
        if not even or document.get("size") != found.size:
            raise _malformed("parts of equal sizes, the last one at most as large", "other sizes")
        return found


def part_name(name: str, number: int) -> str:
    """The file name of a part; the first is number 1."""
    return f"{name}.part-{number:05d}"


def part_number(name: str, file_name: str) -> int | None:
    """Which part of `name` a file is; None where it is none."""
    found = _PART.fullmatch(file_name)
    return int(found[2]) if found and found[1] == name else None


class Parts:
    """A bundle in parts; its list is read at once, the parts when they are needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_plain(path) as stream, explained(path):
            content = stream.read(_LIST_BYTES + 1)
        if len(content) > _LIST_BYTES:
            raise _malformed(f"at most {_LIST_BYTES} bytes", "more")
        self.list = PartsList.parse(content)
        self._walking = threading.Lock()
        self._members: dict[str, Member] | None = None

    @property
    def describe(self) -> str:
        return str(self._path)

    @property
    def folder(self) -> Path:
        return self._path.parent

    def entries(self) -> Iterator[Entry]:
        """Raises BundleDefective where a part is missing, or so damaged that what follows cannot be found."""
        for member in self.members().values():
            yield member.entry

    def size(self, path: str) -> int | None:
        member = self.members().get(path)
        return None if member is None or member.defect else member.size

    def open(self, path: str) -> BinaryIO:
        member = self.members().get(path)
        if member is None or member.defect:
            raise BundleDefective(f"Expected {ascii(path)[:200]} in {self._path}, found none.")
        return cast(BinaryIO, Joined(self.folder, self.list, member.offset, member.size))

    def ranges(self, path: str) -> tuple[FileRange, ...]:
        member = self.members().get(path)
        if member is None or member.defect:
            raise BundleDefective(f"Expected {ascii(path)[:200]} in {self._path}, found none.")
        found, at, end = [], member.offset, member.offset + member.size
        while at < end:
            number, start = divmod(at, self.list.part_size)
            count = min(end - at, self.list.part_size - start)
            file = self.folder / part_name(self.list.name, number + 1)
            found.append(FileRange(file, start, start + count))
            at += count
        return tuple(found)

    def members(self) -> dict[str, Member]:
        """Where every path lies in the archive; as `entries`."""
        with self._walking:
            if self._members is None:
                for name, what in self.faults():
                    raise BundleDefective(f"{self.folder / name} {what}; copy this part again.")
                size = self.list.size
                with Joined(self.folder, self.list, 0, size) as archive:

                    def read(at: int, count: int) -> bytes:
                        archive.seek(at)
                        return archive.read(count) or b""

                    self._members = {member.path: member for member in walk(read, size)}
            return self._members

    def parts_of(self, path: str) -> range:
        """The numbers of the parts that hold a path's header and content."""
        member = self.members()[path]
        return self.parts_at(member.start, member.end)

    def parts_at(self, start: int, end: int) -> range:
        """The numbers of the parts that hold a range of the archive, in bytes."""
        last = min(max(start, end - 1), self.list.size - 1)
        return range(start // self.list.part_size + 1, last // self.list.part_size + 2)

    def faults(self) -> Iterator[tuple[str, str]]:
        """Parts that are missing, surplus, of a wrong size or no plain files, by what status alone shows: a
        file name, and what follows it in a sentence."""
        for part in self.list.parts:
            try:
                found = (self.folder / part.name).lstat()
            except OSError as error:
                yield part.name, f"is missing ({error.strerror})"
                continue
            if not stat.S_ISREG(found.st_mode):
                yield part.name, "is a link, a folder or a device instead of a plain file"
            elif found.st_nlink > 1:
                yield part.name, "is a hard link: another name could change it after it was checked"
            elif found.st_size != part.size:
                way = "cut" if found.st_size < part.size else "too long"
                yield part.name, f"is {way}: expected {part.size} bytes, found {found.st_size}"
        for number, name in existing_parts(self.folder, self.list.name):
            if number == 0 or number > len(self.list.parts):
                yield name, f"is one too many: the list names {len(self.list.parts)} parts"


class Joined(io.RawIOBase):
    """Bytes `start` to `start + size` of the parts as one stream; a read is short only at its end.

    At most one part is open at a time.
    """

    def __init__(self, folder: Path, parts: PartsList, start: int, size: int) -> None:
        super().__init__()
        self._folder, self._list = folder, parts
        self._start, self._size, self._at = start, size, 0
        self._number = 0
        self._part: BinaryIO | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise ValueError("negative position")
        self._at = origin + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Raises DiskFailed or BundleDefective, naming the part."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._at < self._size:
            position = self._start + self._at
            offset = position % self._list.part_size
            part = self._part_at(position // self._list.part_size + 1)
            want = min(len(view) - done, self._size - self._at, self._list.part_size - offset)
            with explained(self._folder / part_name(self._list.name, self._number)):
                count = os.preadv(part.fileno(), [view[done : done + want]], offset)
            if not count:
                raise BundleDefective(
                    f"Expected {part_name(self._list.name, self._number)} in {self._folder} to go on at byte "
                    f"{offset}, found its end; copy this part again."
                )
            done += count
            self._at += count
        return done

    def close(self) -> None:
        self._let_go()
        super().close()

    def _part_at(self, number: int) -> BinaryIO:
        if self._part is None or number != self._number:
            self._let_go()
            self._part = open_plain(self._folder / part_name(self._list.name, number))
            self._number = number
        return self._part

    def _let_go(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            part.close()


def existing_parts(folder: Path, name: str) -> list[tuple[int, str]]:
    """Every file in `folder` that is named as a part of `name`, in the order of their numbers."""
    found = []
    with explained(folder), os.scandir(folder) as items:
        for item in items:
            number = part_number(name, item.name)
            if number is not None:
                found.append((number, item.name))
    return sorted(found)


def _is_name(name: str) -> bool:
    found = _NAME.fullmatch(name)
    return found is not None and is_bundle_name(found[1])


def _part(raw: Json, name: str) -> Part:
    if not isinstance(raw, dict) or raw.get("name") != name:
        found = raw.get("name") if isinstance(raw, dict) else raw
        raise _malformed(f"the part {name}", ascii(found)[:150])
    return Part(name, _size(raw.get("size"), name), _digest(raw.get("sha256"), ""))


def _size(raw: Json, where: str) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 0 < raw <= MAX_BLOB_BYTES:
        raise _malformed(f"a size in bytes at {where}", ascii(raw)[:50])
    return raw


def _digest(raw: Json, prefix: str) -> Digest:
    try:
        if not isinstance(raw, str) or not raw.startswith(prefix):
            raise InvalidReference("no digest")
        return Digest(raw.removeprefix(prefix))
    except InvalidReference as error:
        raise _malformed("sha256 digests", ascii(raw)[:100]) from error


def _malformed(expected: str, found: str) -> BundleDefective:
    return BundleDefective(
        f"Expected a list of parts with {expected}, found {found}; copy the file {LIST_SUFFIX[1:]} again."
    )
