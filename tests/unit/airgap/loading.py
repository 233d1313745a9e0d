# SPDX-License-Identifier: Apache-2.0
"""What tests of loading look at, in a bundle and in the registry double that it is loaded into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sovereign_airgap.bundle.layout import blob_path
from sovereign_airgap.bundle.load import Loaded
from sovereign_airgap.digest import Digest
from sovereign_airgap.manifest import ModelManifest
from tests.unit.airgap.bundles import a_root
from tests.unit.airgap.registry_double import RegistryDouble

# Shards of 1.1 MB: larger than what is sent in one piece.
WIDTH = 11_500
SHARD = "model-00001-of-00003.safetensors"

# load(bundle, prefix="", **changes of the options)
Load = Callable[..., Loaded]


def blob_of(bundle: Path, repository: str, path: str) -> Digest:
    content = (bundle / blob_path(a_root(bundle, repository).descriptor.digest)).read_bytes()
    return next(layer.digest for layer in ModelManifest.parse(content).layers if layer.path == path)


def tags(place: RegistryDouble) -> list[str]:
    """Without the record and claims."""
    return sorted(tag for tag in place.tags if "sovereign/state/" not in tag)


def claims(place: RegistryDouble) -> list[str]:
    return [tag for tag in place.tags if "_loading-" in tag]


def flip(path: Path, at: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def documents(bundle: Path) -> set[str]:
    """Hex digests of the manifests and indexes in a bundle."""
    found = set()
    for path in (bundle / "blobs/sha256").iterdir():
        content = path.read_bytes()
        if content.startswith(b"{") and b'"schemaVersion":2' in content:
            found.add(path.name)
    return found
