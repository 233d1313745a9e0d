# SPDX-License-Identifier: Apache-2.0
"""A model's files from the hub into a repository of the registry; nothing touches a disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

from sovereign_airgap.blob_upload import BlobUpload
from sovereign_airgap.digest import Digest
from sovereign_airgap.hub import Hub
from sovereign_airgap.hub_stream import Hashes, HubStream
from sovereign_airgap.listing import HubFile
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import HubReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.safetensors_header import HeaderCollector
from sovereign_airgap.uploads import CHUNK_BYTES, UploadSession, put_blob
from sovereign_airgap.wire import LineBroken, StreamRestarted


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
        if file.sha256 is not None and self._mounts(file.sha256):
            self.progress.moved(file.size)
            return file.sha256
        blob = HubBlob(HubStream(hub, source, file), hub, file, header)
        try:
            return BlobUpload(self.registry, blob, self.progress, self.chunk).run()
        finally:
            blob.stream.close()

    def open_blob(self, digest: Digest) -> BinaryIO | None:
        """None: the hub serves a file's first bytes as cheaply as the registry does."""
        return None

    def _mounts(self, digest: Digest) -> bool:
        for repository in self.mount_from:
            session = UploadSession(self.registry)
            if session.begin(digest, repository):
                return True
            session.cancel()
        return False


@dataclass(slots=True)
class HubBlob:
    """One file of the hub as a source; `header` keeps the safetensors header that streams past."""

    stream: HubStream
    hub: Hub
    file: HubFile
    header: HeaderCollector | None = None
    _restarts: int = field(init=False, default=0)

    @property
    def name(self) -> str:
        return ascii(self.file.path)

    @property
    def size(self) -> int:
        return self.file.size

    def hashing(self) -> Hashes:
        return Hashes.start(self.file)

    def seek(self, offset: int) -> None:
        if self.header is not None:
            self.header.rewind(offset)
        self.stream.seek(offset)

    def readinto(self, view: memoryview) -> int:
        offset = self.stream.position
        try:
            count = self.stream.readinto(view)
        except StreamRestarted:
            self._restarts += 1
            words = LineBroken("the hub began again from the first byte")
            self.hub.wait_or_give_up(self._restarts, self.file, words)
            raise
        if self.header is not None:
            self.header.feed(offset, view[:count])
        return count

    def settle(self, whole: Hashes) -> Digest:
        self.stream.require_end()
        return whole.require_listed(self.file)
