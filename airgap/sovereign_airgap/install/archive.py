# SPDX-License-Identifier: Apache-2.0
"""One image of a bundle as the archive that `ctr images import` reads, made while it is sent."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence

from sovereign_airgap.bundle.graph import reach
from sovereign_airgap.bundle.index import Root
from sovereign_airgap.bundle.layout import (
    INDEX,
    OCI_LAYOUT,
    OCI_LAYOUT_CONTENT,
    BundleReader,
    blob_path,
    read_blob,
)
from sovereign_airgap.bundle.part_damage import blame
from sovereign_airgap.errors import BundleLacks, DigestMismatch
from sovereign_airgap.manifest import INDEX_TYPE, Descriptor, canonical_json
from sovereign_airgap.strict_json import Json

# Under this annotation of a manifest containerd looks for the name that the image shall have.
IMAGE_NAME = "io.containerd.image.name"
_PIECE = 1024 * 1024


def archive(reader: BundleReader, root: Root, names: Sequence[str]) -> Iterator[bytes]:
    """Yields a tar stream: an OCI layout of the image `root` under each of `names`; memory does not grow.

    Raises DigestMismatch at the end of a blob that is not what its path says, and BundleLacks where a delta
    left it to its base: the stream is not whole then, and nobody takes it.
    """
    found = reach(root, lambda document: read_blob(reader, document.digest, document.size))
    for blob in found.blobs:
        if reader.size(blob_path(blob.digest)) is None:
            raise BundleLacks(
                f"Expected all of the image {root.name} in {reader.describe}, found it without "
                f"{blob.digest}; this is a delta: install from its base, then load this one."
            )
    manifests: list[Json] = [
        {**root.descriptor.as_json(), "annotations": {IMAGE_NAME: name}} for name in names
    ]
    index = canonical_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})
    yield _header(OCI_LAYOUT, len(OCI_LAYOUT_CONTENT)) + _padded(OCI_LAYOUT_CONTENT)
    yield _header(INDEX, len(index)) + _padded(index)
    for document in found.documents:
        yield _header(blob_path(document.descriptor.digest), len(document.content))
        yield _padded(document.content)
    for blob in found.blobs:
        yield from _blob(reader, blob)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _blob(reader: BundleReader, blob: Descriptor) -> Iterator[bytes]:
    path = blob_path(blob.digest)
    yield _header(path, blob.size)
    seen, left = hashlib.sha256(), blob.size
    with reader.open(path) as stream:
        while left and (piece := stream.read(min(left, _PIECE))):
            seen.update(piece)
            left -= len(piece)
            yield piece
    if left or seen.hexdigest() != blob.digest.hex:
        raise DigestMismatch(
            f"Expected {blob.digest} in {reader.describe}, found other bytes; {blame(reader, path)}."
        )
    yield bytes(-blob.size % tarfile.BLOCKSIZE)


def _header(path: str, size: int) -> bytes:
    member = tarfile.TarInfo(path)
    member.size, member.mode = size, 0o444
    return member.tobuf(tarfile.PAX_FORMAT)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % tarfile.BLOCKSIZE)
