# SPDX-License-Identifier: Apache-2.0
"""Entries of a node's cache as a fetch leaves them, and ways to spoil them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sovereign_airgap.cache.layout import IN_USE, MANIFEST, Cache, Entry
from sovereign_airgap.digest import Digest
from sovereign_airgap.manifest import (
    CONFIG_TYPE,
    DOC_TYPE,
    WEIGHT_CONFIG_TYPE,
    WEIGHT_TYPE,
    Descriptor,
    Layer,
    ModelManifest,
)
from sovereign_airgap.marker import MARKER, Written, encode_marker, marker_name
from tests.unit.airgap.models import some_bytes

SHARD = "model-00001-of-00002.safetensors"
FILES = {
    "config.json": b'{"a": 1}',
    SHARD: some_bytes(300_000),
    "model-00002-of-00002.safetensors": some_bytes(400_000)[100_000:],
    "original/LICENSE": b"text",
    "original/empty.json": b"",
}


TYPES = {".safetensors": WEIGHT_TYPE, ".json": WEIGHT_CONFIG_TYPE}


def manifest_of(files: Mapping[str, bytes], name: str) -> bytes:
    layers = tuple(
        Layer(path, Digest.of(content), len(content), TYPES.get(Path(path).suffix, DOC_TYPE))
        for path, content in files.items()
    )
    return ModelManifest(Descriptor.of(CONFIG_TYPE, b"{}"), layers, f"hf://org/{name}", "0" * 40).encode()


def digest_of(files: Mapping[str, bytes], name: str) -> Digest:
    return Digest.of(manifest_of(files, name))


# Two artifacts of the same files.
ONE = digest_of(FILES, "one")
OTHER = digest_of(FILES, "other")


def without_weights(files: Mapping[str, bytes] = FILES) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if not path.endswith(".safetensors")}


def an_entry(
    root: Path,
    tenant: str = "team-a",
    name: str = "one",
    files: Mapping[str, bytes] = FILES,
    there: Mapping[str, bytes] | None = None,
    complete: bool = True,
) -> Entry:
    """An entry with everything that a fetch writes, or with those files that are `there`.

    Without its marker unless it is complete.
    """
    entry = Cache(root).entry(tenant, digest_of(files, name))
    for path, content in (files if there is None else there).items():
        place = entry.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (entry.folder / IN_USE).touch()
    (entry.folder / MANIFEST).write_bytes(manifest_of(files, name))
    if complete:
        mark(entry, files)
    return entry


def mark(
    entry: Entry, files: Mapping[str, bytes] = FILES, config_only: bool = False, of: Digest | None = None
) -> None:
    """Writes the marker for what lies there now, with the digests of `files`."""
    written = {}
    for path, content in files.items():
        status = (entry.folder / path).lstat()
        written[path] = Written(status.st_size, status.st_mtime_ns, str(Digest.of(content)))
    place = entry.folder / marker_name(config_only)
    place.write_bytes(encode_marker(str(of or entry.digest), written))


def an_endless_entry(root: Path, size: int = 1 << 40) -> Entry:
    """An entry that takes hours to hash and no block on the disk."""
    weights = Layer(SHARD, Digest.of(b"nobody gets there"), size, WEIGHT_TYPE)
    manifest = ModelManifest(Descriptor.of(CONFIG_TYPE, b"{}"), (weights,), "hf://org/endless", "0" * 40)
    entry = Cache(root).entry("team-a", Digest.of(manifest.encode()))
    entry.folder.mkdir(parents=True)
    (entry.folder / IN_USE).touch()
    (entry.folder / MANIFEST).write_bytes(manifest.encode())
    place = entry.folder / SHARD
    place.touch()
    os.truncate(place, size)
    vouched = {SHARD: Written(size, place.stat().st_mtime_ns, str(weights.digest))}
    (entry.folder / MARKER).write_bytes(encode_marker(str(entry.digest), vouched))
    return entry


def rot(path: Path) -> None:
    """Flips a bit as a disk does: size and times stay as they are."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
