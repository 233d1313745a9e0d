# SPDX-License-Identifier: Apache-2.0
"""A bundle that is being made, under its temporary name: where every source puts its blobs.

A blob appears under its digest only after it was hashed. What an earlier run left is hashed again before it
is believed, once; so a run that was killed costs a read of the disk and not the network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sovereign_airgap.blobs import BlobStream, corrupt, read_blob
from sovereign_airgap.bundle.layout import (
    CONTENTS,
    INDEX,
    OCI_LAYOUT,
    OCI_LAYOUT_CONTENT,
    blob_digest,
    blob_path,
)
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import (
    BUFFER_BYTES,
    HalfWritten,
    explained,
    regular_file,
    require_room,
    sweep,
    sync_folder,
)
from sovereign_airgap.errors import SizeMismatch
from sovereign_airgap.hub import Hub
from sovereign_airgap.hub_stream import Hashes, HubStream
from sovereign_airgap.listing import HubFile
from sovereign_airgap.manifest import MAX_BLOB_BYTES, Descriptor
from sovereign_airgap.pace import Pace
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import HubReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.safetensors_header import HeaderCollector
from sovereign_airgap.wire import LineBroken, StreamRestarted


@dataclass(slots=True)
class Unfinished:
    """One writer per directory; threads of that writer share it. `lacking` are the blobs that the base has,
    with their sizes: they are not written again."""

    directory: Path
    pace: Pace
    progress: Progress
    lacking: dict[Digest, int] = field(default_factory=dict)
    direct: bool = True
    _right: dict[Digest, int] = field(default_factory=dict)
    _turns: dict[Digest, threading.RLock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        """Makes the directory fit for blobs; what an earlier run froze is thawed. Only under the lock."""
        with explained(self.directory):
            self._blobs.mkdir(parents=True, exist_ok=True)
            for name in (INDEX, CONTENTS, OCI_LAYOUT):
                (self.directory / name).unlink(missing_ok=True)
            if (self.directory / "signatures").is_dir():
                shutil.rmtree(self.directory / "signatures")
        sweep(self.directory)

    # -- what is there --------------------------------------------------------------------------------------

    def has_blob(self, digest: Digest, size: int) -> bool:
        """Whether the blob need not be carried: it is here and right, or the base has it."""
        return self.lacking.get(digest) == size or self.is_here(digest, size)

    def is_here(self, digest: Digest, size: int) -> bool:
        """Whether the blob is here; one from an earlier run is hashed, and removed if it is another."""
        with self._turn(digest):
            if digest in self._right:
                return self._right[digest] == size
            place = self._place(digest)
            found = regular_file(place)
            if found is None:
                return False
            if found.st_size != size or found.st_nlink != 1 or self._hashed(place) != digest:
                with explained(place):
                    place.unlink()
                return False
            self._note(digest, size)
            return True

    def open_blob(self, digest: Digest) -> BinaryIO | None:
        """The bytes of a blob that is here and right."""
        if digest not in self._right:
            return None
        place = self._place(digest)
        with explained(place):
            return place.open("rb")

    def require_room(self, blobs: Iterable[Descriptor], more: int) -> None:
        """Raises DiskFull where the blobs, without those of their size that are here, and `more` bytes would
        not fit."""
        missing: dict[Digest, int] = {}
        for blob in blobs:
            if self.lacking.get(blob.digest) != blob.size:
                found = regular_file(self._place(blob.digest))
                if found is None or found.st_size != blob.size:
                    missing[blob.digest] = blob.size
        require_room(self._blobs, more + sum(missing.values()))

    # -- what comes -----------------------------------------------------------------------------------------

    def put_blob(self, content: bytes) -> Digest:
        """Stores a blob that is in memory, unless the base has it."""
        digest = Digest.of(content)
        if self.lacking.get(digest) != len(content):
            self.put_document(content)
        return digest

    def put_document(self, content: bytes) -> Digest:
        """As `put_blob`, also where the base has it: a delta can be followed from its roots on its own."""
        digest = Digest.of(content)
        with self._turn(digest):
            if not self.is_here(digest, len(content)):
                self._write(self._place(digest), content)
                self._note(digest, len(content))
        return digest

    def carry(self, hub: Hub, source: HubReference, file: HubFile, header: HeaderCollector | None) -> Digest:
        """Moves a file of the hub in, compared with its listing."""
        if file.sha256 is None:
            return self._carry(hub, source, file, header)
        with self._turn(file.sha256):  # two models may share it: whoever comes second finds it
            if self.has_blob(file.sha256, file.size):
                self.progress.moved(file.size)
                return file.sha256
            return self._carry(hub, source, file, header)

    def fetch(self, registry: Registry, blob: Descriptor, what: str) -> None:
        """Moves a blob of a registry in; `what` is how messages call it."""
        with self._turn(blob.digest):
            if self.has_blob(blob.digest, blob.size):
                self.progress.moved(blob.size)
                return
            self.pace.check()
            stream = BlobStream(registry, blob, what)
            half = HalfWritten(self._place(blob.digest), self.direct)
            try:
                found = stream.copy_to(half, self.progress)
                if found != blob.digest:
                    raise corrupt(registry, blob, what, str(found))
                half.publish()
            except BaseException:
                self.progress.moved(-stream.position)
                raise
            finally:
                half.close()
                stream.close()
            self._note(blob.digest, blob.size)

    def small(self, registry: Registry, blob: Descriptor, what: str, limit: int) -> bytes:
        """A small blob of a registry whole; from here where it is here, and here afterwards unless the base
        has it."""
        if self.is_here(blob.digest, blob.size) and blob.size <= limit:
            place = self._place(blob.digest)
            with explained(place):
                return place.read_bytes()
        content = read_blob(registry, blob, what, limit)
        self.put_blob(content)
        return content

    def take(self, path: Path) -> tuple[Digest, int]:
        """Copies a local file in, hashing what is written; returns its digest and size."""
        half = HalfWritten(self._blobs / "arriving", self.direct)
        try:
            sha256, size = hashlib.sha256(), 0
            with explained(path):
                source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while True:
                    room = half.room()
                    with explained(path):
                        count = os.readv(source, [room])
                    if count == 0:
                        break
                    sha256.update(room[:count])
                    half.filled(count)
                    size += count
                    self.progress.moved(count)
                    self.pace.check()
                    if size > MAX_BLOB_BYTES:
                        raise SizeMismatch(
                            f"Expected {path} to have at most {MAX_BLOB_BYTES} bytes, found more."
                        )
            finally:
                os.close(source)
            digest = Digest(sha256.hexdigest())
            self._publish(half, digest, size)
            return digest, size
        finally:
            half.close()

    # -- the end --------------------------------------------------------------------------------------------

    def freeze(self, index: bytes, contents: bytes, wanted: Collection[Digest]) -> None:
        """Removes what this bundle does not need, then writes the files that make the directory a bundle,
        `index.json` last."""
        with explained(self.directory):
            for place in sorted(self._blobs.iterdir()):
                found = blob_digest(f"blobs/sha256/{place.name}")
                if found is None or found not in wanted or found not in self._right:
                    place.unlink()
        for name, content in ((OCI_LAYOUT, OCI_LAYOUT_CONTENT), (CONTENTS, contents), (INDEX, index)):
            sync_folder(self.directory)
            self._write(self.directory / name, content)
        for folder in (self._blobs, self._blobs.parent, self.directory):
            sync_folder(folder)

    @property
    def size(self) -> int:
        """Bytes of the blobs that are here."""
        return sum(self._right.values())

    # -- within ---------------------------------------------------------------------------------------------

    @property
    def _blobs(self) -> Path:
        return self.directory / "blobs" / "sha256"

    def _place(self, digest: Digest) -> Path:
        return self.directory / blob_path(digest)

    def _carry(self, hub: Hub, source: HubReference, file: HubFile, header: HeaderCollector | None) -> Digest:
        stream = HubStream(hub, source, file)
        half = HalfWritten(self._blobs / "arriving", self.direct)
        position = restarts = 0
        hashes = Hashes.start(file)
        try:
            while position < file.size:
                room = half.room()[: file.size - position]
                try:
                    count = stream.readinto(room)
                except StreamRestarted:
                    restarts += 1
                    hub.wait_or_give_up(restarts, file, LineBroken("the hub began again from the first byte"))
                    self.progress.moved(-position)
                    position, hashes = 0, Hashes.start(file)
                    half.restart()
                    if header is not None:
                        header.rewind(0)
                    continue
                view = room[:count]
                hashes.update(view)
                if header is not None:
                    header.feed(position, view)
                half.filled(count)
                position += count
                self.progress.moved(count)
            stream.require_end()
            digest = hashes.require_listed(file)
            self._publish(half, digest, file.size)
            return digest
        except BaseException:
            self.progress.moved(-position)
            raise
        finally:
            half.close()
            stream.close()

    def _publish(self, half: HalfWritten, digest: Digest, size: int) -> None:
        """Gives what was written the name of its digest, unless it is not needed."""
        with self._turn(digest):
            if not self.has_blob(digest, size):
                half.final = self._place(digest)
                half.publish()
                self._note(digest, size)

    def _write(self, place: Path, content: bytes) -> None:
        half = HalfWritten(place, direct=False)
        try:
            view = memoryview(content)
            while view:
                room = half.room()
                count = min(len(room), len(view))
                room[:count] = view[:count]
                half.filled(count)
                view = view[count:]
            half.publish()
        finally:
            half.close()

    def _hashed(self, place: Path) -> Digest:
        sha256 = hashlib.sha256()
        buffer = memoryview(bytearray(BUFFER_BYTES))
        with explained(place), place.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                sha256.update(buffer[:count])
                self.pace.check()
        return Digest(sha256.hexdigest())

    def _note(self, digest: Digest, size: int) -> None:
        with self._lock:
            self._right[digest] = size

    @contextmanager
    def _turn(self, digest: Digest) -> Iterator[None]:
        """One thread at a time for one digest: no blob is fetched or hashed twice."""
        with self._lock:
            turn = self._turns.setdefault(digest, threading.RLock())
        with turn:
            yield
