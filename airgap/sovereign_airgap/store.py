# SPDX-License-Identifier: Apache-2.0
"""Where the blobs of a model go: a repository of a registry, or a bundle that is being made.

One interface, so that whatever is carried from the hub is selected, checked and described by the same code.
"""

from __future__ import annotations

from typing import BinaryIO, Protocol

from sovereign_airgap.digest import Digest
from sovereign_airgap.hub import Hub
from sovereign_airgap.listing import HubFile
from sovereign_airgap.reference import HubReference
from sovereign_airgap.safetensors_header import HeaderCollector


class Store(Protocol):
    """A place for blobs. Threads share it."""

    def has_blob(self, digest: Digest, size: int) -> bool:
        """Whether the blob need not be carried."""

    def put_blob(self, content: bytes) -> Digest:
        """Stores a blob that is in memory."""

    def carry(self, hub: Hub, source: HubReference, file: HubFile, header: HeaderCollector | None) -> Digest:
        """Moves a file in, compared with its listing; what streams past is shown to `header`."""

    def open_blob(self, digest: Digest) -> BinaryIO | None:
        """The bytes of a blob that is here and was checked; None where the source is as near."""
