# SPDX-License-Identifier: Apache-2.0
"""What a bundle brings and where each of its bytes has to go: decided before the first of them is sent.

Nothing is hashed here but the documents; what is refused here costs no upload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from sovereign_airgap.bundle import bom
from sovereign_airgap.bundle.graph import reach
from sovereign_airgap.bundle.index import INDEX_BYTES, Index, Kind, Root
from sovereign_airgap.bundle.layout import INDEX, BundleReader, blob_path, read, read_blob
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import BomContradicts, BundleDefective, SizeMismatch, WrongBase
from sovereign_airgap.manifest import Descriptor, ModelManifest

# Files have no repository of their own: the record of what was loaded carries them, so that the registry
# holds all of the bundle and a later delta may leave them out.
STATE_REPOSITORY = "sovereign/state"


@dataclass(frozen=True, slots=True)
class Stock:
    """Where bytes come from: the bundle, then the base of a delta where one is on disk."""

    readers: tuple[BundleReader, ...]

    def holder(self, digest: Digest) -> BundleReader | None:
        """The first reader with a file of this digest's name; None where it must be in the registry."""
        path = blob_path(digest)
        return next((reader for reader in self.readers if reader.size(path) is not None), None)

    def read(self, descriptor: Descriptor) -> bytes:
        """A small blob whole, its size and digest compared."""
        return read_blob(self._holding(descriptor.digest), descriptor.digest, descriptor.size)

    def open(self, digest: Digest) -> BinaryIO:
        return self._holding(digest).open(blob_path(digest))

    def _holding(self, digest: Digest) -> BundleReader:
        holder = self.holder(digest)
        if holder is None:
            raise _missing(self, [digest])
        return holder


@dataclass(frozen=True, slots=True)
class Shipment:
    """One blob and every repository that needs it, sorted."""

    digest: Digest
    size: int
    repositories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Consignment:
    """One root with its documents, children first (the order in which they may be pushed), and its blobs."""

    root: Root
    documents: tuple[Descriptor, ...]
    blobs: frozenset[Digest]


@dataclass(frozen=True, slots=True)
class Cargo:
    """All of a bundle. `shipments` holds every blob once, the largest first."""

    index: Index
    index_content: bytes
    stock: Stock
    consignments: tuple[Consignment, ...]
    shipments: tuple[Shipment, ...]

    @property
    def index_digest(self) -> Digest:
        return Digest.of(self.index_content)

    @property
    def size(self) -> int:
        """Bytes of all blobs, each counted once."""
        return sum(shipment.size for shipment in self.shipments)


def survey(reader: BundleReader, content: bytes, base: BundleReader | None = None) -> Cargo:
    """Follows every root of the index `content`, the bytes whose signature was checked.

    Raises BundleDefective, SizeMismatch, WrongBase or MalformedManifest.
    """
    index = Index.parse(content)
    readers = [reader]
    if base is not None and index.base is not None:
        _require_base(index, index.base, base)
        readers.append(base)
    stock = Stock(tuple(readers))
    sizes: dict[Digest, int] = {}
    homes: dict[Digest, set[str]] = {}
    consignments = []
    for root in index.roots:
        if root.repository == STATE_REPOSITORY:
            raise BundleDefective(
                f"Expected no root in {STATE_REPOSITORY}, where the record of what was loaded is, found "
                f"{root.name}; make the bundle again without it."
            )
        found = reach(root, stock.read)
        home = STATE_REPOSITORY if root.kind is Kind.FILE else root.repository
        for blob in found.blobs:
            if sizes.setdefault(blob.digest, blob.size) != blob.size:
                raise SizeMismatch(
                    f"{root.name}: expected one size for {blob.digest}, found {sizes[blob.digest]} and "
                    f"{blob.size}; make the bundle again."
                )
            homes.setdefault(blob.digest, set()).add(home)
        documents = tuple(document.descriptor for document in found.documents)
        blobs = frozenset(blob.digest for blob in found.blobs)
        consignments.append(Consignment(root, documents, blobs))
    _require_described(index, stock)
    documented = {each.digest for consignment in consignments for each in consignment.documents}
    _require_paths(reader, sizes.keys() | documented)
    _require_sizes(stock, sizes, may_lack=index.base is not None)
    shipments = [Shipment(digest, size, tuple(sorted(homes[digest]))) for digest, size in sizes.items()]
    shipments.sort(key=lambda shipment: (-shipment.size, shipment.digest))
    return Cargo(index, content, stock, tuple(consignments), tuple(shipments))


def _require_described(index: Index, stock: Stock) -> None:
    """Models are models, and the bill of materials tells what is here, as for `bundle verify`."""
    for root in index.of_kind(Kind.MODEL):
        ModelManifest.parse(stock.read(root.descriptor))
    found = [root for root in index.of_kind(Kind.FILE) if root.title == bom.BOM_TITLE]
    if not found:
        raise BundleDefective(f"Expected {bom.BOM_TITLE} in the index, found none; create the bundle again.")
    if found[0].descriptor.size > bom.BOM_BYTES:
        raise BomContradicts(
            f"{bom.BOM_TITLE}: expected at most {bom.BOM_BYTES} bytes, found {found[0].descriptor.size}."
        )
    defects = bom.check(stock.read(found[0].descriptor), index, stock.read)
    if defects:
        more = f" And {len(defects) - 1} more." if len(defects) > 1 else ""
        raise BomContradicts(f"{bom.BOM_TITLE}: {defects[0]}{more} Run bundle verify, which names them all.")


def _require_base(index: Index, wanted: Digest, base: BundleReader) -> None:
    found = Digest.of(read(base, INDEX, INDEX_BYTES))
    if found != wanted:
        raise WrongBase(
            f"Expected the base {wanted} of the bundle {index.name} {index.version}, found {found} in "
            f"{base.describe}; give the bundle that the delta was made against."
        )


def _require_paths(reader: BundleReader, needed: set[Digest]) -> None:
    for entry in reader.entries():
        defect = entry.defect
        if defect is None and entry.digest is not None and entry.digest not in needed:
            defect = "a blob that nothing in the bundle refers to"
        if defect is not None:
            raise BundleDefective(
                f"Expected only paths that index.json leads to in {reader.describe}, found "
                f"{ascii(entry.path)[1:-1][:200]}: {defect}; copy the bundle again."
            )


def _require_sizes(stock: Stock, sizes: dict[Digest, int], may_lack: bool) -> None:
    missing: list[Digest] = []
    for digest, size in sizes.items():
        holder = stock.holder(digest)
        if holder is None:
            missing.append(digest)
        elif (found := holder.size(blob_path(digest))) != size:
            raise SizeMismatch(
                f"Expected {size} bytes in {blob_path(digest)} of {holder.describe}, found {found}; copy the "
                "bundle again."
            )
    if missing and not may_lack:
        raise _missing(stock, missing)


def _missing(stock: Stock, missing: Sequence[Digest]) -> BundleDefective:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return BundleDefective(
        f"Expected {blob_path(min(missing))}{more} in {stock.readers[0].describe}, found none; copy the "
        "bundle again."
    )
