# SPDX-License-Identifier: Apache-2.0
"""The marker: the last file that a pull writes, which vouches for all the others.

Read by whoever serves from the directory, so it stands apart from pulling, which takes a network to import.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sovereign_airgap import strict_json
from sovereign_airgap.disk import open_regular
from sovereign_airgap.strict_json import Json

MARKER = ".complete"
CONFIG_MARKER = ".complete-config"
MAX_MARKER_BYTES = 16 * 1024 * 1024
"""More than any artifact needs: manifests end at 4 MiB, and a path is at most three times as long escaped."""
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it was when its digest had been checked; `digest` is `sha256:<hex>`."""

    size: int
    mtime_ns: int
    digest: str


def marker_name(config_only: bool) -> str:
    return CONFIG_MARKER if config_only else MARKER


def encode_marker(manifest: str, files: Mapping[str, Written]) -> bytes:
    """The marker's bytes; `manifest` is the digest of the artifact whose files these are, by their path."""
    listed: dict[str, Json] = {
        path: {"digest": file.digest, "mtimeNs": file.mtime_ns, "size": file.size}
        for path, file in sorted(files.items())
    }
    document: Json = {"files": listed, "format": _FORMAT, "manifest": manifest}
    return json.dumps(document, sort_keys=True).encode("ascii")


def read_bounded(file: BinaryIO) -> bytes:
    """The bytes of a file that may be a marker, and of a larger one as many as tell that it is none.

    A hole of terabytes takes nothing of the disk, and all of the memory of whoever reads it.
    """
    return file.read(MAX_MARKER_BYTES + 1)


def parse_marker(content: bytes) -> tuple[str, dict[str, Written]]:
    """The manifest digest and the files; nothing where it is no marker of ours."""
    if len(content) > MAX_MARKER_BYTES:
        return "", {}
    try:
        document = strict_json.load_object(content)
    except strict_json.NotStrict:
        return "", {}
    manifest, files = document.get("manifest"), document.get("files")
    if document.get("format") != _FORMAT or not isinstance(manifest, str) or not isinstance(files, dict):
        return "", {}
    found = {}
    for path, entry in files.items():
        written = _written(entry)
        if written is None:
            return "", {}  # half a list vouches for nothing: what it lacks would not be looked at
        found[path] = written
    return manifest, found


def _written(entry: Json) -> Written | None:
    if isinstance(entry, dict):
        size, mtime, digest = entry.get("size"), entry.get("mtimeNs"), entry.get("digest")
        if isinstance(size, int) and isinstance(mtime, int) and isinstance(digest, str):
            return Written(size, mtime, digest)
    return None


def read_marker(marker: Path) -> tuple[str, dict[str, Written]]:
    """As `parse_marker`; nothing where there is no such file either."""
    try:
        file = open_regular(marker)
        if file is None:
            return "", {}
        with file:
            return parse_marker(read_bounded(file))
    except OSError:
        return "", {}
