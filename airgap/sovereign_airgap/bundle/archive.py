# SPDX-License-Identifier: Apache-2.0
"""The one archive that a bundle's parts are slices of: a tar whose every byte follows from its contents.

Sorted paths, mtime 0, uid and gid 0, mode 0444, sizes of 8 GiB and more in a pax header. Written here and
not by `tarfile`, whose headers differ between releases of Python. The reader takes exactly what the writer
makes: it forms the header that should be there and compares. A value module: no disk.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sovereign_airgap.bundle.layout import MAX_ENTRIES, BundleReader, Entry, blob_digest, is_allowed
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import BundleDefective, DigestMismatch

BLOCK = 512
END = bytes(2 * BLOCK)
_USTAR_LIMIT = 8**11  # eleven octal digits hold less than this
_PAX_NAME = "././@PaxHeader"
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
}

# Reads `count` bytes of the archive at an offset; fewer only at its end.
ReadAt = Callable[[int, int], bytes]


class ArchiveBroken(BundleDefective):
    """From `offset` on, in bytes, the archive is not what `split` writes."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Member:
    """One path of the archive; its content starts at `offset`, its header at `start`, its padding ends at
    `end`, all in bytes. `defect` says why it may not be there."""

    path: str
    size: int
    start: int
    offset: int
    defect: str | None = None

    @property
    def end(self) -> int:
        return self.offset + _padded(self.size)

    @property
    def entry(self) -> Entry:
        return Entry(self.path, self.size, self.defect)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes `start` to `end` of a member's content."""

    member: Member
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TarPlan:
    """The whole archive before its first byte is written: members in their order, `size` in bytes."""

    members: tuple[Member, ...]
    size: int

    def pieces(self, start: int, end: int) -> Iterator[bytes | Stretch]:
        """What stands between two offsets: bytes of ours, and stretches of content."""
        at = bisect.bisect_right(self.members, start, key=lambda member: member.start) - 1
        for member in self.members[max(0, at) :]:
            if member.start >= end:
                break
            yield from _clipped(header(member.path, member.size), member.start, start, end)
            first, last = max(start, member.offset), min(end, member.offset + member.size)
            if first < last:
                yield Stretch(member, first - member.offset, last - member.offset)
            padding = bytes(_padded(member.size) - member.size)
            yield from _clipped(padding, member.offset + member.size, start, end)
        yield from _clipped(END, self.size - len(END), start, end)


def plan(reader: BundleReader) -> TarPlan:
    """The archive of a bundle; raises BundleDefective for a bundle with a path that may not be there."""
    members: list[Member] = []
    start = 0
    for entry in reader.entries():
        if entry.defect is not None:
            raise BundleDefective(
                f"Expected only a bundle's files in {reader.describe}, found {ascii(entry.path)[:200]}: "
                f"{entry.defect}; remove it, then try again."
            )
        if entry.size == 0 and entry.digest not in (None, Digest.of(b"")):
            raise DigestMismatch(
                f"Expected {entry.digest} in {reader.describe}, found an empty file; create the bundle again."
            )
        offset = start + len(header(entry.path, entry.size))
        members.append(Member(entry.path, entry.size, start, offset))
        start = members[-1].end
    return TarPlan(tuple(members), start + len(END))


def header(path: str, size: int) -> bytes:
    """The header blocks of a file; `path` is one of a bundle's, which are ASCII and shorter than 100."""
    if size < _USTAR_LIMIT:
        return _block(path, size, b"0")
    record = _pax_record(size)
    return _block(_PAX_NAME, len(record), b"x") + record.ljust(BLOCK, b"\0") + _block(path, 0, b"0")


def walk(read: ReadAt, size: int) -> Iterator[Member]:
    """The members of an archive of `size` bytes, in their order, each path once.

    What is well-formed but may not be there comes with its defect; raises ArchiveBroken where nothing can be
    read any more.
    """
    at, previous, count = 0, "", 0
    while True:
        block = _read(read, at, BLOCK)
        if block == bytes(BLOCK):
            if at + len(END) != size or _read(read, at, len(END)) != END:
                raise ArchiveBroken(at, "Expected the archive's next file, found its end.")
            return
        member = _member(read, at, block)
        count += 1
        if count > MAX_ENTRIES:
            raise ArchiveBroken(at, f"Expected at most {MAX_ENTRIES} files in the archive, found more.")
        if member.end > size - len(END):
            raise ArchiveBroken(at, f"Expected {ascii(member.path)[:200]} to end within the archive.")
        if member.path <= previous:
            raise ArchiveBroken(
                at,
                f"Expected paths in order, found {ascii(member.path)[:200]} after {ascii(previous)[:200]}.",
            )
        padding = member.end - member.offset - member.size
        if padding and _read(read, member.offset + member.size, padding) != bytes(padding):
            raise ArchiveBroken(member.end - padding, f"Expected zeros after {ascii(member.path)[:200]}.")
        yield member
        at, previous = member.end, member.path


def expected_digest(path: str, index: Digest) -> Digest | None:
    """The digest that a file must have, where that is known beforehand: of blobs and of the index."""
    return index if path == "index.json" else blob_digest(path)


def _member(read: ReadAt, at: int, block: bytes) -> Member:
    kind, size, start = block[156:157], _octal(block[124:136]), at
    if _octal(block[148:156]) != _checksum(block) or size is None:
        raise ArchiveBroken(at, "Expected a file's header in the archive, found other bytes.")
    found = block
    if kind == b"x" and size <= BLOCK:
        record = _read(read, at + BLOCK, BLOCK)
        last = _read(read, at + 2 * BLOCK, BLOCK)
        found += record + last
        text = record[:size].rpartition(b"=")[2].rstrip(b"\n")
        size = int(text) if text.isdigit() and len(text) < 20 else 0
        block, kind = last, last[156:157]
    path = block[:100].rstrip(b"\0").decode("ascii", "backslashreplace")
    offset = at + len(found)
    if found == (header(path, size) if path.isascii() and len(path) <= 100 else b""):
        defect = None if is_allowed(path) else "a file that does not belong there"
        return Member(path, size, start, offset, defect)
    if kind in _KINDS and not size:
        return Member(path, 0, start, offset, _KINDS[kind])
    raise ArchiveBroken(
        at, f"Expected the header that split writes for {ascii(path)[:200]}, found another one."
    )


def _clipped(content: bytes, at: int, start: int, end: int) -> Iterator[bytes]:
    piece = content[max(0, start - at) : max(0, end - at)]
    if piece:
        yield piece


def _block(name: str, size: int, kind: bytes) -> bytes:
    """One POSIX.1-1988 header block: numbers in octal, ended by NUL; no owner, no device, no prefix."""
    fields = (
        name.encode("ascii").ljust(100, b"\0"),
        b"0000444\0" + b"0000000\0" * 2,
        b"%011o\0" % size + b"%011o\0" % 0,
        b" " * 8,
        kind,
        bytes(100),
        b"ustar\00000",
        bytes(64),
        b"0000000\0" * 2,
        bytes(155 + 12),
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _pax_record(size: int) -> bytes:
    """`<length> size=<bytes>` and a newline; the length counts its own digits."""
    body = b" size=%d\n" % size
    return b"%d" % (len(body) + 2) + body


def _checksum(block: bytes) -> int:
    return sum(block) - sum(block[148:156]) + 8 * ord(" ")


def _octal(text: bytes) -> int | None:
    digits = text.rstrip(b"\0 ")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read(read: ReadAt, at: int, count: int) -> bytes:
    found = read(at, count)
    if len(found) != count:
        raise ArchiveBroken(at, "Expected the archive to go on, found its end.")
    return found
