# SPDX-License-Identifier: Apache-2.0
"""The bundle that a delta is made to: what it carries need not be carried again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from sovereign_airgap.bundle.graph import needed
from sovereign_airgap.bundle.index import INDEX_BYTES, Index
from sovereign_airgap.bundle.layout import INDEX, BundleReader, read, read_blob
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import OlderVersion, WrongBase


@dataclass(frozen=True, slots=True)
class Base:
    """`sizes` holds every blob that is in place where this bundle was loaded, also those of its own base."""

    index: Index
    digest: Digest
    sizes: dict[Digest, int] = field(repr=False)

    @classmethod
    def read(cls, reader: BundleReader) -> Self:
        """Follows the roots of a bundle; its large blobs are not looked at, they need not even be here."""
        content = read(reader, INDEX, INDEX_BYTES)
        index = Index.parse(content)
        sizes = needed(index, lambda document: read_blob(reader, document.digest, document.size))
        return cls(index, Digest.of(content), sizes)

    def version_after(self, name: str, version: int | None) -> int:
        """The version of a delta: the wished one, or the next; raises where no site could load it."""
        if name != self.index.name:
            raise WrongBase(
                f"Expected a delta to the bundle {self.index.name} to have its name, found {name}: what was "
                "loaded is remembered by name."
            )
        if version is None:
            return self.index.version + 1
        if version <= self.index.version:
            raise OlderVersion(
                f"Expected a version above {self.index.version}, which its base has, found {version}."
            )
        return version
