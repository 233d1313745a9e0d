# SPDX-License-Identifier: Apache-2.0
"""Reading one file of the hub from any offset, and the hashes that say whether it was the right one.

What takes the bytes (a registry in `transfer`, a directory in `bundle.unfinished`) is not known here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol, Self

from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import SizeMismatch
from sovereign_airgap.hub import Hub, HubWindow, WindowRefused, wrong_bytes
from sovereign_airgap.listing import HubFile
from sovereign_airgap.reference import HubReference
from sovereign_airgap.wire import LineBroken, StreamRestarted

# A source that brings less than this between two failures is not getting anywhere.
_PROGRESS_BYTES = 1024 * 1024


class _Hash(Protocol):
    def update(self, data: memoryview | bytes, /) -> None: ...
    def copy(self) -> Self: ...
    def hexdigest(self) -> str: ...


@dataclass(slots=True)
class Hashes:
    """sha256 always; the git blob id only where the Hub lists nothing better."""

    sha256: _Hash
    blob: _Hash | None

    @classmethod
    def start(cls, file: HubFile) -> Self:
        blob = None
        if file.sha256 is None:
            blob = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        return cls(hashlib.sha256(), blob)

    def update(self, view: memoryview) -> None:
        self.sha256.update(view)
        if self.blob is not None:
            self.blob.update(view)

    def copy(self) -> Hashes:
        return Hashes(self.sha256.copy(), None if self.blob is None else self.blob.copy())

    def require_listed(self, file: HubFile) -> Digest:
        """The digest of the whole file; raises DigestMismatch where the hub listed another."""
        digest = Digest(self.sha256.hexdigest())
        if file.sha256 is not None and digest != file.sha256:
            raise wrong_bytes(file, str(file.sha256), str(digest))
        if self.blob is not None and self.blob.hexdigest() != file.blob_id:
            raise wrong_bytes(file, f"git blob {file.blob_id}", f"git blob {self.blob.hexdigest()}")
        return digest


class HubStream:
    """The hub's bytes from any offset on, window after window."""

    def __init__(self, hub: Hub, reference: HubReference, file: HubFile) -> None:
        self._hub = hub
        self._reference = reference
        self._file = file
        self._window: HubWindow | None = None
        self.position = 0
        self._failures = 0
        self._failed_at = 0
        self._opened_at = -1

    def seek(self, offset: int) -> None:
        if offset != self.position:
            self.close()
            self.position = offset

    def readinto(self, view: memoryview) -> int:
        """Some bytes from `position` on, never 0; a broken window is opened again where it broke."""
        while True:
            try:
                if self._window is None:
                    self._open()
                assert self._window is not None
                count = self._window.download.readinto(view)
                if count:
                    self.position += count
                    return count
                self.close()
                self._require_progress()
            except (LineBroken, WindowRefused) as error:
                self.close()
                if self.position - self._failed_at >= _PROGRESS_BYTES:
                    self._failures = 0
                self._failures += 1
                self._failed_at = self.position
                self._hub.wait_or_give_up(self._failures, self._file, error)

    def _require_progress(self) -> None:
        # Windows that end at once, again and again, are no source.
        if self.position == self._opened_at:
            raise LineBroken("the body ended before its first byte")

    def require_end(self) -> None:
        """The body must end where the listing says: one byte more is one too many."""
        if self._window is not None and self._window.download.length is None:
            try:
                surplus = self._window.download.readinto(memoryview(bytearray(1)))
            except LineBroken:
                surplus = 0
            if surplus:
                raise SizeMismatch(
                    f"Expected {self._file.size} bytes of {self._file.path!a} as listed, found more."
                )
        self.close()

    def close(self) -> None:
        window, self._window = self._window, None
        if window is not None:
            window.download.close()

    def _open(self) -> None:
        end = min(self._file.size, self.position + self._hub.window)
        window = self._hub.open(self._reference, self._file, self.position, end)
        if window.start != self.position:
            self._window, self.position, self._opened_at = window, window.start, window.start
            raise StreamRestarted
        self._window = window
        self._opened_at = window.start
