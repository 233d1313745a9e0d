# SPDX-License-Identifier: Apache-2.0
"""Entries of a node's cache as a fetch leaves them, and ways to spoil them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sovereign_airgap.cache.layout import IN_USE, Cache, Entry
from sovereign_airgap.digest import Digest
from sovereign_airgap.marker import Written, encode_marker, marker_name
from tests.unit.airgap.models import some_bytes

MANIFEST = Digest.of(b"one manifest")
OTHER_MANIFEST = Digest.of(b"another manifest")
SHARD = "model-00001-of-00002.safetensors"
FILES = {
    "config.json": b'{"a": 1}',
    SHARD: some_bytes(300_000),
    "model-00002-of-00002.safetensors": some_bytes(400_000)[100_000:],
    "original/LICENSE": b"text",
    "original/empty.json": b"",
}


def without_weights(files: Mapping[str, bytes] = FILES) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if not path.endswith(".safetensors")}


def an_entry(
    root: Path,
    tenant: str = "team-a",
    digest: Digest = MANIFEST,
    files: Mapping[str, bytes] = FILES,
    complete: bool = True,
) -> Entry:
    """An entry with everything that a fetch writes; without its marker unless it is complete."""
    entry = Cache(root).entry(tenant, digest)
    for path, content in files.items():
        place = entry.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (entry.folder / IN_USE).touch()
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


def rot(path: Path) -> None:
    """Flips a bit as a disk does: size and times stay as they are."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
