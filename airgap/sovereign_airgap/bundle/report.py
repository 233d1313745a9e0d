# SPDX-License-Identifier: Apache-2.0
"""What a verification found: a whole bundle, or its defects. Values."""

from __future__ import annotations

from dataclasses import dataclass

from sovereign_airgap.bundle.defects import Defect, refusal
from sovereign_airgap.bundle.index import Index
from sovereign_airgap.digest import Digest
from sovereign_airgap.strict_json import Json


@dataclass(frozen=True, slots=True)
class Verified:
    """A bundle that is whole. `blobs` were hashed, `size` bytes of them; `absent` are with a delta's base;
    `signed_by` are ids of the given keys, none where none were given."""

    name: str
    version: int
    index: Index
    index_digest: Digest
    blobs: int
    size: int
    absent: int
    signed_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found: the bundle as far as it can be told, and its defects, `more` unnamed."""

    describe: str
    index: Index | None
    index_digest: Digest | None
    blobs: int
    size: int
    absent: int
    signed_by: tuple[str, ...]
    defects: tuple[Defect, ...]
    more: int

    @property
    def verified(self) -> Verified:
        """Raises the error that names every defect."""
        if self.defects or self.index is None or self.index_digest is None:
            raise refusal(self.describe, self.defects, self.more)
        return Verified(
            self.index.name, self.index.version, self.index, self.index_digest, self.blobs, self.size,
            self.absent, self.signed_by,
        )  # fmt: skip

    def as_json(self) -> dict[str, Json]:
        index = self.index
        defects: list[Json] = [defect.as_json() for defect in self.defects]
        return {
            "path": self.describe,
            "name": None if index is None else index.name,
            "version": None if index is None else index.version,
            "index": None if self.index_digest is None else str(self.index_digest),
            "base": None if index is None or index.base is None else str(index.base),
            "blobs": self.blobs,
            "bytes": self.size,
            "absent": self.absent,
            "signedBy": [*self.signed_by],
            "defects": defects,
            "moreDefects": self.more,
        }
