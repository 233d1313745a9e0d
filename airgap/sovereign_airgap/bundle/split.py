# SPDX-License-Identifier: Apache-2.0
"""The verb `bundle split`: a bundle's directory becomes parts that fit on media.

Every byte is read once: hashed for its part, compared with its blob's digest, written. The list comes last,
so parts without a list are unfinished. With `consume` every blob's room is given back as soon as the parts
that hold it are on the disk: a bundle and its parts together need room for one part more than the bundle.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sovereign_airgap.bundle.archive import Member, Stretch, TarPlan, expected_digest, plan
from sovereign_airgap.bundle.holes import punch
from sovereign_airgap.bundle.index import INDEX_BYTES, Index
from sovereign_airgap.bundle.journal import SUFFIX, Journal, Record, is_consuming
from sovereign_airgap.bundle.layout import INDEX, Directory, blob_digest, read, read_into
from sovereign_airgap.bundle.parts import (
    LIST_SUFFIX,
    MAX_PARTS,
    Joined,
    Part,
    Parts,
    PartsList,
    existing_parts,
    part_name,
)
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import HalfWritten, explained, locked, require_room, sweep, sync_folder
from sovereign_airgap.errors import BundleDefective, DigestMismatch, SizeMismatch
from sovereign_airgap.progress import Progress

PART_SIZE = 4000 * 1024 * 1024  # fits FAT32
MIN_PART_SIZE = 4096
_SIDE_BY_SIDE = 1024 * 1024  # below this many bytes a second thread costs more than it brings


@dataclass(frozen=True, slots=True)
class Written:
    """What lies in the folder now: `size` in bytes of all parts, of which `kept` were there before."""

    path: Path
    name: str
    index: Digest
    parts: int
    size: int
    kept: int


def split(
    directory: Path,
    out: Path,
    part_size: int = PART_SIZE,
    consume: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Writes the parts and the list of the bundle in `directory` to `out`; called again, goes on.

    Raises BundleDefective, DigestMismatch or SizeMismatch for a bundle that is not whole, DiskFull or
    DiskFailed; then no list is there. With `consume` the directory is gone afterwards.
    """
    if out.resolve().is_relative_to(directory.resolve()):
        raise BundleDefective(f"Expected a folder outside of {directory} for the parts, found {out}.")
    if part_size < MIN_PART_SIZE:
        raise BundleDefective(f"Expected parts of at least {MIN_PART_SIZE} bytes, found {part_size}.")
    reader = Directory(directory)
    content = read(reader, INDEX, INDEX_BYTES)
    index = Index.parse(content)
    name = f"{index.name}-{index.version}"
    with locked(out):
        sweep(out)
        tar = plan(reader)
        count = -(-tar.size // part_size)
        if count > MAX_PARTS:
            raise BundleDefective(f"Expected at most {MAX_PARTS} parts, found {count}; make them larger.")
        run = _Split(
            directory, out, reader, tar, name, Digest.of(content), part_size, consume, progress or Progress()
        )
        return run.finished_before() or run.run()


@dataclass(slots=True)
class _Running:
    """The hash of one member's content, of which `at` bytes are in."""

    member: Member
    at: int = 0
    hash: hashlib._Hash = field(default_factory=hashlib.sha256)


@dataclass(slots=True)
class _Split:
    directory: Path
    out: Path
    reader: Directory
    tar: TarPlan
    name: str
    index: Digest
    part_size: int
    consume: bool
    progress: Progress
    running: _Running | None = None
    can_punch: bool = True

    @property
    def _list_path(self) -> Path:
        return self.out / f"{self.name}{LIST_SUFFIX}"

    def finished_before(self) -> Written | None:
        """What an earlier run finished; raises BundleDefective where its parts are others, or damaged."""
        if not self._list_path.exists():
            return None
        found = Parts(self._list_path)
        left = {member.path for member in self.tar.members}
        removing = self.consume and (left == {INDEX} or is_consuming(self.out, self.name))
        alike = (found.list.index, found.list.part_size) == (self.index, self.part_size)
        if not alike or not (removing or found.list.size == self.tar.size):
            raise BundleDefective(
                f"Expected no parts of another bundle or size in {self.out}, found {self._list_path.name}; "
                f"remove {self.name}.part* there, or name another folder."
            )
        for name, what in found.faults():
            raise BundleDefective(
                f"{self.out / name} {what}; remove {self.name}.part* there, then split again."
            )
        self._leave(removing)
        return self._written(found.list, len(found.list.parts))

    def run(self) -> Written:
        journal = Journal.open(self.out, self.name, self._fingerprint())
        kept = self._kept(journal)
        ranges = list(self._ranges())
        for number, surplus in existing_parts(self.out, self.name):
            if not 0 < number <= len(ranges):
                raise BundleDefective(
                    f"Expected no {surplus} in {self.out}: there will be {len(ranges)} parts; remove it."
                )
        self._require_room(sum(end - start for start, end in ranges[kept:]))
        journal.begin(self.consume)
        self.progress.enter("splitting")
        self.progress.expect(len(ranges), self.tar.size)
        with ThreadPoolExecutor(1, thread_name_prefix="hash") as beside:
            for number, (start, end) in enumerate(ranges, 1):
                if number > kept:
                    journal.add(self._write(number, start, end, beside, journal.records))
                else:
                    self.progress.moved(end - start)
                if self.consume:
                    self._give_up(start, end)
                self.progress.finished(part_name(self.name, number))
        written = self._list([record.part for record in journal.records])
        self._publish(written)
        self._leave(self.consume)
        self.progress.enter("done")
        return self._written(written, kept)

    # -- what is there already ------------------------------------------------------------------------------

    def _fingerprint(self) -> str:
        """Names the bundle as it is now, and the way it is cut."""
        text = hashlib.sha256(f"{self.index} {self.part_size}".encode())
        for member in self.tar.members:
            text.update(f"\n{member.path} {member.size}".encode())
        return text.hexdigest()

    def _kept(self, journal: Journal) -> int:
        """How many of the first parts are there; forgets the records of all after them."""
        kept = 0
        while kept < len(journal.records) and journal.records[kept].is_there(self.out):
            kept += 1
        for record in journal.records[kept:]:
            if record.consumed:
                raise BundleDefective(
                    f"Expected {self.out / record.part.name} as it was written, found none or another file, "
                    f"and {self.directory} no longer has its bytes; create the bundle again."
                )
        del journal.records[kept:]
        return kept

    def _ranges(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.tar.size, self.part_size):
            yield start, min(start + self.part_size, self.tar.size)

    def _require_room(self, missing: int) -> None:
        with explained(self.out):
            same = self.directory.stat().st_dev == self.out.stat().st_dev
        require_room(self.out, min(missing, self.part_size) if self.consume and same else missing)

    # -- one part -------------------------------------------------------------------------------------------

    def _write(
        self, number: int, start: int, end: int, beside: ThreadPoolExecutor, before: list[Record]
    ) -> Record:
        final = self.out / part_name(self.name, number)
        self.progress.working_on(final.name)
        digest = hashlib.sha256()
        file = HalfWritten(final)
        try:
            for piece in self.tar.pieces(start, end):
                if isinstance(piece, bytes):
                    digest.update(piece)
                    file.write(piece)
                    self.progress.moved(len(piece))
                else:
                    self._carry(piece, file, digest, beside, before)
            status = file.publish()
        finally:
            file.close()
        sync_folder(self.out)
        part = Part(final.name, end - start, Digest(digest.hexdigest()))
        return Record(part, status.st_mtime_ns, self.consume)

    def _carry(
        self,
        stretch: Stretch,
        file: HalfWritten,
        digest: hashlib._Hash,
        beside: ThreadPoolExecutor,
        before: list[Record],
    ) -> None:
        member, left = stretch.member, stretch.end - stretch.start
        running = self._hash_of(stretch, before)
        with self.reader.open(member.path) as stream:
            stream.seek(stretch.start)
            while left:
                view = file.room()[:left]
                with explained(self.directory / member.path):
                    count = read_into(stream, view)
                if not count:
                    raise SizeMismatch(
                        f"Expected {member.size} bytes of {member.path} in {self.directory}, found fewer; "
                        "nobody may change a bundle while it is split."
                    )
                if count >= _SIDE_BY_SIDE:
                    other = beside.submit(running.hash.update, view[:count])
                    digest.update(view[:count])
                    other.result()
                else:
                    running.hash.update(view[:count])
                    digest.update(view[:count])
                file.filled(count)
                running.at += count
                left -= count
                self.progress.moved(count)
        if running.at == member.size:
            self._compare(running)

    def _hash_of(self, stretch: Stretch, before: list[Record]) -> _Running:
        """The running hash at a stretch's start; what earlier runs wrote is read back from its parts."""
        running = self.running
        if running is None or (running.member, running.at) != (stretch.member, stretch.start):
            running = _Running(stretch.member, stretch.start)
            if stretch.start:
                written = self._list([record.part for record in before])
                with Joined(self.out, written, stretch.member.offset, stretch.start) as stream:
                    while piece := stream.read(_SIDE_BY_SIDE):
                        running.hash.update(piece)
        self.running = running
        return running

    def _compare(self, running: _Running) -> None:
        wanted = expected_digest(running.member.path, self.index)
        found = Digest(running.hash.hexdigest())
        if wanted is not None and found != wanted:
            raise DigestMismatch(
                f"Expected {wanted} in {self.directory / running.member.path}, found bytes of {found}; "
                "verify the bundle, or create it again."
            )

    def _give_up(self, start: int, end: int) -> None:
        """Gives the room of blobs back; the parts that hold the bytes are written down."""
        for piece in self.tar.pieces(start, end):
            if not self.can_punch or isinstance(piece, bytes) or blob_digest(piece.member.path) is None:
                continue
            self.can_punch = punch(self.directory / piece.member.path, piece.start, piece.end)

    # -- the end --------------------------------------------------------------------------------------------

    def _list(self, parts: list[Part]) -> PartsList:
        return PartsList(self.name, self.index, self.part_size, tuple(parts))

    def _publish(self, written: PartsList) -> None:
        file = HalfWritten(self._list_path)
        try:
            file.write(written.encode())
            file.publish()
        finally:
            file.close()
        sync_folder(self.out)

    def _leave(self, remove: bool) -> None:
        """The list is there. The index is removed last: until then a retry knows what this was."""
        paths = [member.path for member in self.tar.members if member.path != INDEX]
        with explained(self.directory):
            for path in paths if remove else ():
                (self.directory / path).unlink(missing_ok=True)
        with explained(self.out):
            (self.out / f"{self.name}{SUFFIX}").unlink(missing_ok=True)
        if not remove:
            return
        with explained(self.directory):
            for folder in ("blobs/sha256", "blobs", "signatures"):
                if (self.directory / folder).is_dir():
                    (self.directory / folder).rmdir()
            (self.directory / INDEX).unlink()
        with contextlib.suppress(OSError):  # a mount point stays, and nothing is in it
            self.directory.rmdir()

    def _written(self, found: PartsList, kept: int) -> Written:
        return Written(self._list_path, self.name, self.index, len(found.parts), found.size, kept)
