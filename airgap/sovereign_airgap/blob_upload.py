# SPDX-License-Identifier: Apache-2.0
"""One blob into a registry in a single pass: read, hash, send, with one buffer whatever its size.

The hash cannot be stored, but it can be copied: at each boundary that the registry has acknowledged a copy is
kept. After a fault the registry is asked how far it got, the source is read again from the last boundary,
what the registry already holds is hashed without being sent, and the rest is sent. It is told to keep nothing
before the digest of the very bytes that were sent is the promised one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import RegistryForbidden
from sovereign_airgap.progress import Progress
from sovereign_airgap.registry import Registry
from sovereign_airgap.uploads import (
    CHUNK_BYTES,
    LEAST_CHUNK_BYTES,
    ChunkTooLarge,
    RefusedByRegistry,
    SessionLost,
    UploadSession,
)
from sovereign_airgap.wire import BUFFER_BYTES, LineBroken, StreamRestarted, Upload


class RunningHash(Protocol):
    def update(self, view: memoryview, /) -> None: ...
    def copy(self) -> Self: ...


Hash = TypeVar("Hash", bound=RunningHash)


class BlobSource(Protocol[Hash]):
    """Where the bytes come from. `name` is how sentences about faults call the blob."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def hashing(self) -> Hash:
        """The hash of nothing yet."""

    def seek(self, offset: int) -> None:
        """The next bytes are those from `offset` on."""

    def readinto(self, view: memoryview) -> int:
        """Some bytes, never 0; raises StreamRestarted, or what the user shall read."""

    def settle(self, whole: Hash) -> Digest:
        """The digest of all bytes; raises where they are not the promised ones, or where more follow."""


@dataclass(slots=True)
class BlobUpload(Generic[Hash]):
    """Sends one blob; `sent` counts the bytes that went over the wire for it, those sent twice twice."""

    registry: Registry
    source: BlobSource[Hash]
    progress: Progress
    chunk: int = CHUNK_BYTES
    sent: int = field(init=False, default=0)
    _position: int = field(init=False, default=0)
    _hash: Hash = field(init=False)
    _boundary: int = field(init=False, default=0)
    _at_boundary: Hash = field(init=False)
    _buffer: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self._buffer = memoryview(bytearray(min(BUFFER_BYTES, max(1, self.source.size))))
        self._from_zero()

    def run(self) -> Digest:
        """The registry holds the blob when this returns. On failure the progress is taken back."""
        session = UploadSession(self.registry)
        try:
            return self._run(session)
        except BaseException:
            self.progress.moved(-self._position)
            session.cancel()
            raise

    def _run(self, session: UploadSession) -> Digest:
        failures = best = 0
        begun = False
        while True:
            try:
                if not begun:
                    self._from_zero()
                    session.begin()
                    begun = True
                self._send_all(session)
                digest = self.source.settle(self._hash)
                session.commit(digest, self.source.size)
                return digest
            except StreamRestarted:
                session.cancel()
                begun = False
            except ChunkTooLarge:
                if self.chunk <= LEAST_CHUNK_BYTES:
                    raise self.registry.unexpected("a piece of 1 MiB", 413) from None
                self.chunk = max(self.chunk // 2, LEAST_CHUNK_BYTES)
                begun = self._catch_up(session)
            except (LineBroken, SessionLost, RefusedByRegistry) as fault:
                failures = 1 if self._boundary > best else failures + 1
                best = max(best, self._boundary)
                self._wait(fault, failures)
                begun = not isinstance(fault, SessionLost) and self._catch_up(session)
                if not begun and (digest_there := self._committed_after_all()):
                    return digest_there

    def _send_all(self, session: UploadSession) -> None:
        size = self.source.size
        while self._position < size or session.acknowledged < size:
            self.source.seek(self._position)
            while self._position < session.acknowledged:  # the registry has these: hash, do not send
                self._read(session.acknowledged - self._position)
            if self._position > session.acknowledged:
                raise SessionLost("the registry holds less than it had acknowledged")
            end = min(size, self._position + self.chunk)
            if end == self._position:
                return
            upload = session.patch(end - self._position)
            try:
                self._pipe(upload, end, session)
                session.accept(upload.finish(), end)
            except BaseException:
                upload.abort()
                raise
            self._boundary, self._at_boundary = end, self._hash.copy()

    def _pipe(self, upload: Upload, end: int, session: UploadSession) -> None:
        while self._position < end:
            view = self._read(end - self._position)
            refused = upload.write(view)
            if refused is not None:
                session.accept(refused, -1)
            self.sent += len(view)

    def _read(self, limit: int) -> memoryview:
        count = self.source.readinto(self._buffer[:limit])
        view = self._buffer[:count]
        self._hash.update(view)
        self._position += count
        self.progress.moved(count)
        return view

    def _wait(self, fault: Exception, failures: int) -> None:
        after = fault.after if isinstance(fault, RefusedByRegistry) else None
        if isinstance(fault, RefusedByRegistry) and fault.status == 401 and failures > 2:
            raise RegistryForbidden(
                f"{self.registry.origin} no longer accepts the login for uploads; renew it."
            )
        stalled = isinstance(fault, LineBroken) and fault.stalled
        self.registry.wait_or_give_up(failures, f"{fault} for {self.source.name}", after, stalled)

    def _catch_up(self, session: UploadSession) -> bool:
        """Asks the registry where it stands and goes back to the last boundary; False: from zero."""
        try:
            session.ask_progress()
        except SessionLost:
            session.cancel()
            return False
        if not self._boundary <= session.acknowledged <= self.source.size:
            session.cancel()
            return False
        self._back_to(self._boundary, self._at_boundary)
        return True

    def _committed_after_all(self) -> Digest | None:
        """A final PUT whose answer was lost may have succeeded: the session is gone then, the blob there."""
        if self._position != self.source.size:
            return None
        digest = self.source.settle(self._hash)
        return digest if self.registry.has_blob(digest, self.source.size) else None

    def _from_zero(self) -> None:
        zero = self.source.hashing()
        self._back_to(0, zero)
        self._boundary, self._at_boundary = 0, zero.copy()

    def _back_to(self, offset: int, state: Hash) -> None:
        if offset != self._position:
            self.progress.moved(offset - self._position)
        self._position = offset
        self._hash = state.copy()
