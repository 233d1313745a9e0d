# SPDX-License-Identifier: Apache-2.0
"""What a bundle carries, with what people want to know of it: the input of its bill of materials.

Values. Sources make them, `bom` and `contents` read them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from sovereign_airgap.bundle.card import Card
from sovereign_airgap.bundle.index import Root
from sovereign_airgap.facts import ModelFacts
from sovereign_airgap.manifest import ModelManifest
from sovereign_airgap.selection import LeftOut
from sovereign_airgap.strict_json import Json


@dataclass(frozen=True, slots=True)
class ModelItem:
    """A model. `config` is its config.json; `no_facts` says why none could be derived from a commit of the
    hub, of which `left_out` stayed behind."""

    root: Root
    manifest: ModelManifest
    config: dict[str, Json] = field(repr=False)
    facts: ModelFacts | None
    card: Card
    referrers: Root | None = None
    licenses: tuple[Root, ...] = ()
    resource: Root | None = None
    left_out: tuple[LeftOut, ...] = ()
    no_facts: str | None = None

    @property
    def roots(self) -> tuple[Root, ...]:
        others = (self.referrers, self.resource)
        return (self.root, *self.licenses, *(root for root in others if root is not None))

    @property
    def size(self) -> int:
        return self.manifest.size


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An image. `origin` is where it came from, with the digest that was found there; `size` in bytes."""

    root: Root
    origin: str
    platform: str
    size: int

    @property
    def roots(self) -> tuple[Root, ...]:
        return (self.root,)


@dataclass(frozen=True, slots=True)
class ChartItem:
    """A Helm chart."""

    root: Root
    name: str
    version: str
    description: str
    size: int

    @property
    def roots(self) -> tuple[Root, ...]:
        return (self.root,)


@dataclass(frozen=True, slots=True)
class FileItem:
    """A file under its title."""

    root: Root

    @property
    def roots(self) -> tuple[Root, ...]:
        return (self.root,)

    @property
    def size(self) -> int:
        return self.root.descriptor.size


Item: TypeAlias = ModelItem | ImageItem | ChartItem | FileItem
