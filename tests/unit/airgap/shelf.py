# SPDX-License-Identifier: Apache-2.0
"""A registry double with one small artifact in it, and a directory to pull into."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

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
from sovereign_airgap.progress import Progress
from sovereign_airgap.pull import PullOptions, PullResult, pull
from sovereign_airgap.reference import OciReference
from tests.unit.airgap.models import some_bytes
from tests.unit.airgap.registry_double import RegistryDouble

FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": some_bytes(300_000),
    "original/empty.json": b"",
    "original/LICENSE": b"text",
}
TYPES = {".json": WEIGHT_CONFIG_TYPE, ".safetensors": WEIGHT_TYPE}


class Shelf:
    """A registry double with one artifact in it, and a directory to pull into."""

    def __init__(self, registry: RegistryDouble, options: PullOptions, directory: Path) -> None:
        self.registry, self.options, self.directory = registry, options, directory
        self.reference = self.put(FILES)

    def put(self, files: dict[str, bytes], **sizes: int) -> OciReference:
        layers = []
        for path, content in files.items():
            digest = Digest.of(content)
            self.registry.blobs[str(digest)] = content
            size = sizes.get(path.partition(".")[0], len(content))
            layers.append(Layer(path, digest, size, TYPES.get(Path(path).suffix, DOC_TYPE)))
        manifest = ModelManifest(Descriptor.of(CONFIG_TYPE, b"{}"), tuple(layers), "hf://org/name", "0" * 40)
        return self.put_manifest(manifest.encode())

    def put_manifest(self, content: bytes) -> OciReference:
        digest = Digest.of(content)
        self.registry.manifests[str(digest)] = (content, "application/vnd.oci.image.manifest.v1+json")
        return OciReference(self.registry.host, "models/org/name", digest=digest)

    def pull(self, reference: OciReference | None = None, **changes: object) -> PullResult:
        options = dataclasses.replace(self.options, **changes)  # type: ignore[arg-type]
        return pull(reference or self.reference, self.directory, options, Progress())

    @property
    def found(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.directory)): path.read_bytes()
            for path in sorted(self.directory.rglob("*"))
            if path.is_file()
        }

    @property
    def gets(self) -> int:
        return self.registry.seen.count("GET blobs")

    def require_whole(self, files: dict[str, bytes] = FILES) -> None:
        found = self.found
        marker = json.loads(found.pop(".complete"))
        assert found == files
        assert marker["files"].keys() == files.keys()
