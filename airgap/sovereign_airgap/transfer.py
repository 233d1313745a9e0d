# SPDX-License-Identifier: Apache-2.0
"""One file from the hub into the registry in a single pass: read, hash, send; nothing touches a disk.

The hash cannot be stored, but it can be copied: at each boundary that the registry has acknowledged a copy is
kept. After a fault the source is asked again from the last boundary, what the registry already holds is
hashed without being sent, and the rest is sent. Memory is one buffer per file, whatever the file's size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import RegistryForbidden
from sovereign_airgap.hub import Hub, SourceRestarted
from sovereign_airgap.hub_stream import Hashes, HubStream
from sovereign_airgap.listing import HubFile
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import HubReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.safetensors_header import HeaderCollector
from sovereign_airgap.uploads import (
    CHUNK_BYTES,
    LEAST_CHUNK_BYTES,
    ChunkTooLarge,
    RefusedByRegistry,
    SessionLost,
    UploadSession,
    put_blob,
)
from sovereign_airgap.wire import BUFFER_BYTES, LineBroken, Upload


@dataclass(frozen=True, slots=True)
class RegistryStore:
    """A repository of a registry as the place where a model's blobs go."""

    registry: Registry
    progress: Progress
    chunk: int = CHUNK_BYTES
    mount_from: tuple[str, ...] = ()

    def has_blob(self, digest: Digest, size: int) -> bool:
        return self.registry.has_blob(digest, size)

    def put_blob(self, content: bytes) -> Digest:
        return put_blob(self.registry, content)

    def carry(self, hub: Hub, source: HubReference, file: HubFile, header: HeaderCollector | None) -> Digest:
        return Transfer(
            hub, source, self.registry, file, self.progress, header, self.chunk, self.mount_from
        ).run()

    def open_blob(self, digest: Digest) -> BinaryIO | None:
        """None: the hub serves a file's first bytes as cheaply as the registry does."""
        return None


@dataclass(slots=True)
class Transfer:
    """Carries one file; `header` keeps the safetensors header that streamed past, if one was wanted."""

    hub: Hub
    source: HubReference
    registry: Registry
    file: HubFile
    progress: Progress
    header: HeaderCollector | None = None
    chunk: int = CHUNK_BYTES
    mount_from: tuple[str, ...] = ()
    _hashes: Hashes = field(init=False)
    _boundary: int = field(init=False, default=0)
    _at_boundary: Hashes = field(init=False)
    _position: int = field(init=False, default=0)
    _buffer: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self._buffer = memoryview(bytearray(min(BUFFER_BYTES, max(1, self.file.size))))
        self._from_zero()

    def run(self) -> Digest:
        """Moves the file and returns its digest; the registry holds the blob when this returns."""
        session = UploadSession(self.registry)
        source = HubStream(self.hub, self.source, self.file)
        try:
            return self._run(session, source)
        except BaseException:
            self.progress.moved(-self._position)
            session.cancel()
            raise
        finally:
            source.close()

    def _run(self, session: UploadSession, source: HubStream) -> Digest:
        failures = 0
        best = 0
        started = False
        while True:
            try:
                if not started:
                    self._from_zero()
                    if self._begin(session):
                        assert self.file.sha256 is not None
                        self.progress.moved(self.file.size)
                        return self.file.sha256
                    started = True
                self._send_all(session, source)
                source.require_end()
                digest = self._checked()
                session.commit(digest, self.file.size)
                return digest
            except SourceRestarted:
                failures += 1
                session.cancel()
                started = False
                self.hub.pace.sleep(self.hub.pace.patience.pause(failures))
            except ChunkTooLarge:
                if self.chunk <= LEAST_CHUNK_BYTES:
                    raise self.registry.unexpected("a piece of 1 MiB", 413) from None
                self.chunk = max(self.chunk // 2, LEAST_CHUNK_BYTES)
                started = self._catch_up(session)
            except (LineBroken, SessionLost, RefusedByRegistry) as fault:
                failures = 1 if self._boundary > best else failures + 1
                best = max(best, self._boundary)
                self._wait(fault, failures)
                started = not isinstance(fault, SessionLost) and self._catch_up(session)
                if not started and self._committed_after_all():
                    return self._checked()

    def _begin(self, session: UploadSession) -> bool:
        if self.file.sha256 is not None:
            for repository in self.mount_from:
                if session.begin(self.file.sha256, repository):
                    return True
                session.cancel()
        return session.begin()

    def _send_all(self, session: UploadSession, source: HubStream) -> None:
        size = self.file.size
        while self._position < size or session.acknowledged < size:
            source.seek(self._position)
            while self._position < session.acknowledged:  # the registry has these: hash, do not send
                self._read(source, session.acknowledged - self._position)
            if self._position > session.acknowledged:
                raise SessionLost("the registry holds less than it had acknowledged")
            end = min(size, self._position + self.chunk)
            if end == self._position:
                return
            upload = session.patch(end - self._position)
            try:
                self._pipe(source, upload, end, session)
                session.accept(upload.finish(), end)
            except BaseException:
                upload.abort()
                raise
            self._boundary, self._at_boundary = end, self._hashes.copy()

    def _pipe(self, source: HubStream, upload: Upload, end: int, session: UploadSession) -> None:
        while self._position < end:
            refused = upload.write(self._read(source, end - self._position))
            if refused is not None:
                session.accept(refused, -1)

    def _read(self, source: HubStream, limit: int) -> memoryview:
        offset = self._position
        count = source.readinto(self._buffer[:limit])
        view = self._buffer[:count]
        self._hashes.update(view)
        if self.header is not None:
            self.header.feed(offset, view)
        self._position += count
        self.progress.moved(count)
        return view

    def _checked(self) -> Digest:
        return self._hashes.require_listed(self.file)

    def _wait(self, fault: Exception, failures: int) -> None:
        after = fault.after if isinstance(fault, RefusedByRegistry) else None
        if isinstance(fault, RefusedByRegistry) and fault.status == 401 and failures > 2:
            raise RegistryForbidden(
                f"{self.registry.origin} no longer accepts the login for uploads; renew it."
            )
        stalled = isinstance(fault, LineBroken) and fault.stalled
        found = f"{fault} for {self.file.path!a}"
        self.registry.wait_or_give_up(failures, found, after, stalled)

    def _catch_up(self, session: UploadSession) -> bool:
        """Asks the registry where it stands and goes back to the last boundary; False: from zero."""
        try:
            session.ask_progress()
        except SessionLost:
            session.cancel()
            return False
        if session.acknowledged < self._boundary or session.acknowledged > self.file.size:
            session.cancel()
            return False
        self._back_to(self._boundary, self._at_boundary)
        return True

    def _committed_after_all(self) -> bool:
        """A final PUT whose answer was lost may have succeeded: the session is gone then, the blob there."""
        whole = self._position == self.file.size
        return whole and self.registry.has_blob(self._checked(), self.file.size)

    def _from_zero(self) -> None:
        zero = Hashes.start(self.file)
        self._back_to(0, zero)
        self._boundary, self._at_boundary = 0, zero.copy()

    def _back_to(self, offset: int, hashes: Hashes) -> None:
        if offset != self._position:
            self.progress.moved(offset - self._position)
        self._position = offset
        self._hashes = hashes.copy()
        if self.header is not None:
            self.header.rewind(offset)
