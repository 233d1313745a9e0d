# SPDX-License-Identifier: Apache-2.0
"""From the roots of a bundle to every blob they need, bounded in depth and number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sovereign_airgap import oci
from sovereign_airgap.bundle.index import Index, Root
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import BundleDefective
from sovereign_airgap.manifest import MAX_MANIFEST_BYTES, Descriptor

MAX_DEPTH = 4
MAX_BLOBS = 200_000


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index on the way from a root, with its exact bytes."""

    descriptor: Descriptor
    content: bytes
    read: oci.Document


@dataclass(frozen=True, slots=True)
class Reach:
    """All that one root needs: `documents` children first (the order in which they may be pushed), `blobs`
    without them, each once."""

    root: Root
    documents: tuple[Document, ...]
    blobs: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        return sum(blob.size for blob in self.blobs) + sum(len(each.content) for each in self.documents)


# The exact, verified bytes of a document; raises what its storage raises.
ReadDocument = Callable[[Descriptor], bytes]


def reach(root: Root, read: ReadDocument) -> Reach:
    """Follows one root to its end; raises MalformedManifest, or BundleDefective where it does not end."""
    if root.descriptor.media_type not in oci.DOCUMENT_TYPES:
        return Reach(root, (), (root.descriptor,))
    documents: dict[Digest, Document] = {}
    blobs: dict[Digest, Descriptor] = {}

    def visit(descriptor: Descriptor, depth: int) -> None:
        if descriptor.digest in documents:
            return
        if depth > MAX_DEPTH:
            raise BundleDefective(f"{root.name}: expected at most {MAX_DEPTH} levels of indexes, found more.")
        if descriptor.size > MAX_MANIFEST_BYTES:
            raise BundleDefective(
                f"{root.name}: expected manifests of at most {MAX_MANIFEST_BYTES} bytes, "
                f"found {descriptor.size}."
            )
        content = read(descriptor)
        document = oci.read(content, descriptor.media_type)
        for child in document.children:
            if child.media_type in oci.DOCUMENT_TYPES:
                visit(child, depth + 1)
            else:
                known = blobs.setdefault(child.digest, child)
                if known.size != child.size:
                    raise BundleDefective(
                        f"{root.name}: expected one size for {child.digest}, "
                        f"found {known.size} and {child.size}."
                    )
            if len(blobs) + len(documents) > MAX_BLOBS:
                raise BundleDefective(f"{root.name}: expected at most {MAX_BLOBS} blobs, found more.")
        documents[descriptor.digest] = Document(descriptor, content, document)

    visit(root.descriptor, 1)
    return Reach(root, tuple(documents.values()), tuple(blobs.values()))


def needed(index: Index, read: ReadDocument) -> dict[Digest, int]:
    """Every digest that the bundle needs, with its size: blobs and documents of all roots."""
    sizes: dict[Digest, int] = {}
    for root in index.roots:
        found = reach(root, read)
        for each in (*found.blobs, *(document.descriptor for document in found.documents)):
            if sizes.setdefault(each.digest, each.size) != each.size:
                raise BundleDefective(
                    f"{root.name}: expected one size for {each.digest}, "
                    f"found {sizes[each.digest]} and {each.size}."
                )
    return sizes
