# SPDX-License-Identifier: Apache-2.0
"""Reading one blob of a registry: a stream that is opened again where it broke, and never runs long."""

from __future__ import annotations

import hashlib
import re
from http import HTTPStatus

from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import HalfWritten
from sovereign_airgap.errors import ArtifactNotFound, RegistryBlobCorrupt, SizeMismatch
from sovereign_airgap.manifest import Descriptor
from sovereign_airgap.progress import Progress
from sovereign_airgap.registry import Registry
from sovereign_airgap.uploads import RefusedByRegistry
from sovereign_airgap.wire import Download, Hops, LineBroken, StreamRestarted

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_PROGRESS_BYTES = 1024 * 1024


class BlobStream:
    """The bytes of one blob in order, exactly as many as its descriptor says."""

    def __init__(self, registry: Registry, blob: Descriptor, what: str) -> None:
        self._registry = registry
        self._blob = blob
        self._what = what
        self._download: Download | None = None
        self._failures = 0
        self._best = 0
        self._challenged = 0
        self.position = 0

    def readinto(self, view: memoryview) -> int:
        """Some bytes from `position` on; 0 once all of them came, and no byte too many."""
        if self.position == self._blob.size:
            self._require_end()
            return 0
        while True:
            try:
                if self._download is None:
                    self._open()
                assert self._download is not None
                count = self._download.readinto(view[: self._blob.size - self.position])
                if count == 0:
                    raise LineBroken(f"the body ended after {self.position} of {self._blob.size} bytes")
                self.position += count
                return count
            except (LineBroken, RefusedByRegistry) as error:
                self.close()
                # Against the best, not the last: a registry without ranges begins at zero each time, and what
                # it brings again is no progress.
                if self.position - self._best >= _PROGRESS_BYTES:
                    self._failures = 0
                self._failures += 1
                self._best = max(self._best, self.position)
                after = error.after if isinstance(error, RefusedByRegistry) else None
                stalled = isinstance(error, LineBroken) and error.stalled
                self._registry.wait_or_give_up(self._failures, f"{error} for {self._what}", after, stalled)

    def copy_to(self, half: HalfWritten, progress: Progress) -> Digest:
        """Writes the whole blob and returns the digest of what came; the caller compares it and publishes."""
        sha256 = hashlib.sha256()
        seen = 0
        while True:
            room = half.room()
            try:
                count = self.readinto(room)
            except StreamRestarted:
                progress.moved(-seen)
                sha256, seen = hashlib.sha256(), 0
                half.restart()
                continue
            if count == 0:
                return Digest(sha256.hexdigest())
            sha256.update(room[:count])
            half.filled(count)
            seen += count
            progress.moved(count)

    def close(self) -> None:
        download, self._download = self._download, None
        if download is not None:
            download.close()

    def _open(self) -> None:
        registry, start = self._registry, self.position
        url = registry.url(f"blobs/{self._blob.digest}")
        headers = {"Range": f"bytes={start}-"} if start else {}
        authorization = registry.byte_headers().get("Authorization")
        hops = registry.wire.follow(url, headers, authorization)
        download = hops.download
        try:
            self._require_no_foreign_challenge(hops)
            self._require_success(download, start)
        except BaseException:
            download.close()
            raise
        self._download = download
        self._challenged = 0
        if download.status == HTTPStatus.OK and start:
            self.position = 0
            raise StreamRestarted

    def _require_no_foreign_challenge(self, hops: Hops) -> None:
        # Only the registry may ask for its login: a storage that it redirects to could name any realm. What
        # helps where a signed address has ended is a new one, and that comes with another try.
        status = hops.download.status
        refused = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        if refused and hops.origin != self._registry.origin:
            raise RefusedByRegistry(status, by=hops.origin)

    def _require_success(self, download: Download, start: int) -> None:
        size, status, registry = self._blob.size, download.status, self._registry
        if status == HTTPStatus.UNAUTHORIZED and self._challenged < 2:
            registry.challenged(download.headers.get("WWW-Authenticate"))
            self._challenged += 1
            raise RefusedByRegistry(status)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise registry.forbidden(f"GET of {self._what}", status)
        if status == HTTPStatus.NOT_FOUND:
            raise ArtifactNotFound(
                f"Expected {registry.origin} to hold {self._blob.digest} ({self._what}), found none; "
                "mirror the model again."
            )
        if status == HTTPStatus.PARTIAL_CONTENT:
            found = download.headers.get("Content-Range", "")
            match = _CONTENT_RANGE.fullmatch(found)
            if match is None or int(match[1]) != start:
                raise LineBroken(f"expected the range from {start} on, found {found[:60]!r}")
            total: int | None = int(match[3])
        elif status == HTTPStatus.OK:
            total = download.length
        else:
            raise RefusedByRegistry(status)
        if total is not None and total != size:
            raise SizeMismatch(
                f"{self._what}: expected {size} bytes as the manifest says, found {total} in "
                f"{registry.origin}; the "
                "manifest is wrong or the blob was cut, mirror the model again to another repository."
            )

    def _require_end(self) -> None:
        # Only a chunked body can run long: with a Content-Length the totals were compared before.
        download = self._download
        if download is not None and download.length is None:
            try:
                surplus = download.readinto(memoryview(bytearray(1)))
            except LineBroken:
                surplus = 0
            if surplus:
                raise SizeMismatch(
                    f"{self._what}: expected {self._blob.size} bytes as the manifest says, found more."
                )
        self.close()


def read_blob(registry: Registry, blob: Descriptor, what: str, limit: int) -> bytes:
    """A small blob whole, checked against its descriptor."""
    if blob.size > limit:
        raise SizeMismatch(f"{what}: expected at most {limit} bytes, found {blob.size} in the manifest.")
    stream = BlobStream(registry, blob, what)
    buffer = memoryview(bytearray(blob.size + 1))
    filled = 0
    try:
        while True:
            try:
                count = stream.readinto(buffer[filled:])
            except StreamRestarted:
                filled = 0
                continue
            if count == 0:
                break
            filled += count
    finally:
        stream.close()
    content = bytes(buffer[:filled])
    found = blob.digest.of(content)
    if found != blob.digest:
        raise corrupt(registry, blob, what, str(found))
    return content


def corrupt(registry: Registry, blob: Descriptor, what: str, found: str) -> RegistryBlobCorrupt:
    """The error that names the remedy: a registry keeps a blob that went bad even when it is pushed again."""
    return RegistryBlobCorrupt(
        f"{what}: expected {blob.digest} from {registry.origin}, found {found}; the registry's own copy is "
        "damaged and pushing again does not replace it. Remove the blob from the registry's storage "
        "(registry verify "
        "--repair), then mirror again."
    )
