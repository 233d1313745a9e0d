# SPDX-License-Identifier: Apache-2.0
"""What every source of a bundle can do: say what it will bring, then bring it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sovereign_airgap.bundle.items import Item
from sovereign_airgap.bundle.unfinished import Unfinished
from sovereign_airgap.manifest import Descriptor


@dataclass(frozen=True, slots=True)
class Survey:
    """What one source will bring: under which names, how many files. `more` counts bytes whose digests
    nobody knows yet."""

    names: tuple[str, ...]
    files: int
    blobs: tuple[Descriptor, ...] = ()
    more: int = 0

    @property
    def size(self) -> int:
        return self.more + sum(blob.size for blob in self.blobs)


class Source(Protocol):
    """One thing that a spec names. `survey` looks, without the large bytes; then `carry` brings them."""

    @property
    def describe(self) -> str:
        """How messages and progress call it."""

    def survey(self, to: Unfinished) -> Survey: ...

    def carry(self, to: Unfinished) -> tuple[Item, ...]: ...
