# SPDX-License-Identifier: Apache-2.0
"""Every blob of a bundle into every repository that needs it: not sent where the registry has it, mounted
where another of its repositories does, and sent once otherwise. Several blobs at once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from sovereign_airgap.blob_upload import BlobUpload
from sovereign_airgap.bundle.cargo import Shipment, Stock
from sovereign_airgap.bundle.layout import blob_path
from sovereign_airgap.bundle.part_damage import blame
from sovereign_airgap.bundle.place import Place
from sovereign_airgap.bundle.sending import BundleBlob
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import ArtifactNotFound, RegistryForbidden
from sovereign_airgap.manifest import Descriptor
from sovereign_airgap.progress import Progress
from sovereign_airgap.registry import Registry
from sovereign_airgap.stopping import all_at_once
from sovereign_airgap.uploads import CHUNK_BYTES, UploadSession, put_blob
from sovereign_airgap.wire import BUFFER_BYTES


@dataclass(slots=True)
class Tally:
    """What became of the blobs; a blob that two repositories need counts twice."""

    sent: int = 0
    sent_bytes: int = 0
    mounted: int = 0
    present: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, sent: int = 0, sent_bytes: int = 0, mounted: int = 0, present: int = 0) -> None:
        with self._lock:
            self.sent += sent
            self.sent_bytes += sent_bytes
            self.mounted += mounted
            self.present += present


@dataclass(slots=True)
class Shipping:
    """`base_repositories` are where a delta's base put its blobs."""

    place: Place
    stock: Stock
    progress: Progress
    parallel: int
    chunk: int = CHUNK_BYTES
    base_repositories: tuple[str, ...] = ()
    tally: Tally = field(default_factory=Tally)

    def ship_all(self, shipments: Sequence[Shipment]) -> None:
        """The registry holds all of them when this returns; the first failure ends the others."""
        calls = [partial(self.ship, shipment) for shipment in shipments]
        all_at_once(calls, self.place.pace, self.parallel, "load")

    def ship(self, shipment: Shipment) -> None:
        """One blob, into all of its repositories."""
        self.place.pace.check()
        self.progress.working_on(str(shipment.digest))
        holding: Registry | None = None
        lacking: list[Registry] = []
        for name in shipment.repositories:
            registry = self.place.repository(name)
            if registry.has_blob(shipment.digest, shipment.size):
                holding = holding or registry
                self.tally.add(present=1)
            else:
                lacking.append(registry)
        if lacking and holding is None and self.stock.holder(shipment.digest) is None:
            holding = self._in_base(shipment)
        moved = 0
        for registry in lacking:
            moved += self._bring(shipment, registry, holding)
            holding = holding or registry
        # Bytes that were sent have moved the tally themselves, once for each time.
        self.progress.moved(shipment.size - moved)
        self.progress.finished(str(shipment.digest))

    def _bring(self, shipment: Shipment, registry: Registry, holding: Registry | None) -> int:
        """Mounts the blob, or sends it; returns the bytes by which the progress has moved."""
        session = UploadSession(registry)
        if holding is not None:
            if self._mounts(session, shipment.digest, holding):
                self.tally.add(mounted=1)
                return 0
            session.cancel()
        holder = self.stock.holder(shipment.digest)
        if holder is None:
            raise ArtifactNotFound(
                f"Expected {registry.origin} to mount {shipment.digest} into {registry.repository}, but it "
                "does not; give the delta's base with --base, so that the blob can be sent."
            )
        if shipment.size <= BUFFER_BYTES:
            put_blob(registry, self.stock.read(Descriptor("", shipment.digest, shipment.size)))
            self.tally.add(sent=1, sent_bytes=shipment.size)
            return 0
        path = blob_path(shipment.digest)
        with holder.open(path) as stream:
            blob = BundleBlob(
                stream, shipment.digest, shipment.size, holder.describe, partial(blame, holder, path)
            )
            upload = BlobUpload(registry, blob, self.progress, self.chunk)
            upload.run()
        self.tally.add(sent=1, sent_bytes=upload.sent)
        return shipment.size

    def _mounts(self, session: UploadSession, digest: Digest, holding: Registry) -> bool:
        try:
            return session.begin(digest, holding.repository)
        except RegistryForbidden:
            # A token for one repository may not read another: then the bytes are sent once more.
            return False

    def _in_base(self, shipment: Shipment) -> Registry:
        for name in self.base_repositories:
            registry = self.place.repository(name)
            if registry.has_blob(shipment.digest, shipment.size):
                return registry
        raise ArtifactNotFound(
            f"Expected the registry to hold {shipment.digest}, which the delta leaves to its base, found "
            "none; load the base again, or give it with --base."
        )
