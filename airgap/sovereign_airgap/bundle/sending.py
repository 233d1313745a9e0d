# SPDX-License-Identifier: Apache-2.0
"""One blob from a bundle into a registry: read, hash, send, in one pass and with one buffer.

The registry is told to keep nothing before the sha256 of the very bytes that were sent is the promised one,
and it compares again on its side. After a fault it is asked how far it got; what it holds is hashed again
from the disk without being sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from sovereign_airgap.bundle.layout import blob_path, read_into
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained
from sovereign_airgap.errors import DigestMismatch, RegistryForbidden, SizeMismatch
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
from sovereign_airgap.wire import BUFFER_BYTES, LineBroken


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...
    def copy(self) -> Self: ...
    def hexdigest(self) -> str: ...


@dataclass(slots=True)
class Sending:
    """Sends one blob; `blame` ends the sentence about bytes that are not the promised ones."""

    registry: Registry
    stream: BinaryIO
    digest: Digest
    size: int
    where: str
    progress: Progress
    blame: Callable[[], str] = lambda: "copy the bundle again"
    chunk: int = CHUNK_BYTES
    _hash: _Hash = field(init=False)
    _position: int = field(init=False, default=0)
    _boundary: int = field(init=False, default=0)
    _at_boundary: _Hash = field(init=False)
    _buffer: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self._buffer = memoryview(bytearray(min(BUFFER_BYTES, max(1, self.size))))
        self._from_zero()

    def run(self, session: UploadSession, begun: bool = False) -> int:
        """The registry holds the blob when this returns; returns the bytes that were sent for it.

        `begun`: the session is open already, because the registry did not mount the blob.
        """
        sent = 0
        failures = 0
        best = 0
        try:
            while True:
                try:
                    if not begun:
                        self._from_zero()
                        session.begin()
                        begun = True
                    sent += self._send_all(session)
                    self._require_promised()
                    session.commit(self.digest, self.size)
                    return sent
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
                    if not begun and self._committed_after_all():
                        return sent
        except BaseException:
            self.progress.moved(-self._position)
            session.cancel()
            raise

    def _send_all(self, session: UploadSession) -> int:
        sent = 0
        while self._position < self.size or session.acknowledged < self.size:
            with explained(Path(self.where)):
                self.stream.seek(self._position)
            while self._position < session.acknowledged:  # the registry has these: hash, do not send
                self._read(session.acknowledged - self._position)
            if self._position > session.acknowledged:
                raise SessionLost("the registry holds less than it had acknowledged")
            end = min(self.size, self._position + self.chunk)
            if end == self._position:
                break
            upload = session.patch(end - self._position)
            try:
                while self._position < end:
                    view = self._read(end - self._position)
                    refused = upload.write(view)
                    if refused is not None:
                        session.accept(refused, -1)
                    sent += len(view)
                session.accept(upload.finish(), end)
            except BaseException:
                upload.abort()
                raise
            self._boundary, self._at_boundary = end, self._hash.copy()
        return sent

    def _read(self, limit: int) -> memoryview:
        with explained(Path(self.where)):
            count = read_into(self.stream, self._buffer[:limit])
        if not count:
            raise SizeMismatch(
                f"Expected {self.size} bytes of {blob_path(self.digest)} in {self.where}, found the end "
                f"after {self._position}; copy the bundle again."
            )
        view = self._buffer[:count]
        self._hash.update(view)
        self._position += count
        self.progress.moved(count)
        return view

    def _require_promised(self) -> None:
        found = self._hash.hexdigest()
        if found != self.digest.hex:
            raise DigestMismatch(
                f"Expected {blob_path(self.digest)} in {self.where} to have the sha256 of its name, found "
                f"{found}; {self.blame()}."
            )

    def _wait(self, fault: Exception, failures: int) -> None:
        after = fault.after if isinstance(fault, RefusedByRegistry) else None
        if isinstance(fault, RefusedByRegistry) and fault.status == 401 and failures > 2:
            raise RegistryForbidden(
                f"{self.registry.origin} no longer accepts the login for uploads; renew it."
            )
        stalled = isinstance(fault, LineBroken) and fault.stalled
        self.registry.wait_or_give_up(failures, f"{fault} for {self.digest}", after, stalled)

    def _catch_up(self, session: UploadSession) -> bool:
        """Asks the registry where it stands and goes back to the last boundary; False: from zero."""
        try:
            session.ask_progress()
        except SessionLost:
            session.cancel()
            return False
        if not self._boundary <= session.acknowledged <= self.size:
            session.cancel()
            return False
        self._back_to(self._boundary, self._at_boundary)
        return True

    def _committed_after_all(self) -> bool:
        """A final PUT whose answer was lost may have succeeded: the session is gone then, the blob there."""
        if self._position != self.size:
            return False
        self._require_promised()
        return self.registry.has_blob(self.digest, self.size)

    def _from_zero(self) -> None:
        self._back_to(0, hashlib.sha256())
        self._boundary, self._at_boundary = 0, self._hash.copy()

    def _back_to(self, offset: int, state: _Hash) -> None:
        self.progress.moved(offset - self._position)
        self._position = offset
        self._hash = state.copy()
