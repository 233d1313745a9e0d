# SPDX-License-Identifier: Apache-2.0
"""A connected side for `bundle create`: a hub with two models that share shards, a registry with images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dev.hub import HubServer
from sovereign_airgap.bundle.create import CreateOptions, CreateResult, create
from sovereign_airgap.bundle.index import Index, Kind, Root
from sovereign_airgap.bundle.layout import INDEX, Directory, read, read_blob
from sovereign_airgap.bundle.spec import BundleSpec
from sovereign_airgap.bundle.workplace import ENDING
from sovereign_airgap.manifest import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from sovereign_airgap.progress import Progress
from sovereign_airgap.strict_json import Json
from tests.unit.airgap.models import REPO, a_repository, a_safetensors, layer_tensors, some_bytes, write
from tests.unit.airgap.registry_double import RegistryDouble

TWIN = "Org/Tiny-Twin"
SHARED = "model-00001-of-00002.safetensors"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
README = b"---\nlicense: apache-2.0\npipeline_tag: text-generation\nlanguage: no\n---\n# tiny\n"


def two_models(root: Path, width: int = 512) -> dict[str, bytes]:
    """Writes REPO and TWIN, which has another second shard and everything else in common."""
    files = a_repository(root, width=width)
    files["README.md"] = README
    write(root / REPO, {"README.md": README})
    second = {**layer_tensors(1, width), "lm_head.weight": ("BF16", [32, 16])}
    other = {**files, "model-00002-of-00002.safetensors": a_safetensors(second, "another")}
    write(root / TWIN, other)
    return files


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def push_image(
    registry: RegistryDouble,
    tag: str,
    seed: str = "",
    architecture: str = "amd64",
    layers: int = 2,
    named: bool = True,
    size: int = 10_000,
) -> Descriptor:
    """An image of a few layers under `tag` (or only under its digest, where `tag` is empty)."""
    config = json.dumps({"os": "linux", "architecture": architecture, "seed": seed}).encode()
    blobs = [(CONFIG_TYPE, config)]
    blobs += [(LAYER_TYPE, some_bytes(size, f"{seed}{n}{architecture if n else ''}")) for n in range(layers)]
    described = [Descriptor.of(media_type, content).as_json() for media_type, content in blobs]
    for _, content in blobs:
        registry.blobs[digest_of(content)] = content
    manifest: dict[str, Any] = {"schemaVersion": 2, "config": described[0], "layers": described[1:]}
    if named:
        manifest["mediaType"] = MANIFEST_TYPE
    return push_document(registry, tag, manifest, MANIFEST_TYPE)


def push_index(registry: RegistryDouble, tag: str, children: Mapping[str, Descriptor]) -> Descriptor:
    """An image index from platform (`os/architecture[/variant]`) to manifest."""
    manifests = []
    for platform, child in children.items():
        system, architecture, *variant = platform.split("/")
        named = {"os": system, "architecture": architecture}
        manifests.append(
            {**child.as_json(), "platform": named | ({"variant": variant[0]} if variant else {})}
        )
    document = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
    return push_document(registry, tag, document, INDEX_TYPE)


def push_document(registry: RegistryDouble, tag: str, document: Any, media_type: str) -> Descriptor:
    content = json.dumps(document).encode()
    registry.manifests[digest_of(content)] = (content, media_type)
    if tag:
        registry.manifests[tag] = (content, media_type)
    return Descriptor.of(media_type, content)


@dataclass
class Connected:
    """One connected side, and where its bundles go."""

    hub: HubServer
    registry: RegistryDouble
    folder: Path
    options: CreateOptions

    def __post_init__(self) -> None:
        self.progress = Progress()

    @property
    def out(self) -> Path:
        return self.folder / "bundle"

    @property
    def unfinished(self) -> Path:
        return self.out.with_name(self.out.name + ENDING)

    def source(self, repo: str = REPO) -> str:
        return f"hf://{repo}@{self.hub.commit(repo)}"

    def spec(self, **changes: Any) -> BundleSpec:
        """Both models, unless `models` says otherwise."""
        models = [{"source": self.source(REPO)}, {"source": self.source(TWIN)}]
        return BundleSpec.model_validate({"name": "site", "models": models, **changes})

    def create(self, out: Path | None = None, spec: BundleSpec | None = None, **changes: Any) -> CreateResult:
        self.progress = Progress()
        options = replace(self.options, **changes)
        return create(spec or self.spec(), out or self.out, options, self.progress)

    def downloads(self) -> list[str]:
        """Paths of the large files that the hub's storage was asked for, with their ranges."""
        return [f"{seen.path} {seen.range}" for seen in self.hub.requests if seen.origin == "storage"]


@dataclass(frozen=True)
class Opened:
    """A bundle's directory, read without believing more of it than a test needs."""

    path: Path

    @property
    def index(self) -> Index:
        return Index.parse(read(Directory(self.path), INDEX, 1 << 22))

    @property
    def blobs(self) -> set[str]:
        return {"sha256:" + place.name for place in (self.path / "blobs/sha256").iterdir()}

    def blob(self, descriptor: Descriptor) -> bytes:
        return read_blob(Directory(self.path), descriptor.digest, descriptor.size)

    def json(self, descriptor: Descriptor) -> dict[str, Json]:
        document: dict[str, Json] = json.loads(self.blob(descriptor))
        return document

    def root(self, kind: Kind, name: str) -> Root:
        (found,) = (root for root in self.index.of_kind(kind) if root.name == name)
        return found

    def require_whole(self) -> None:
        """Every blob is what its name says, and every path belongs there."""
        for entry in Directory(self.path).entries():
            assert entry.defect is None, entry
            if entry.digest is not None:
                content = (self.path / entry.path).read_bytes()
                assert digest_of(content) == str(entry.digest)
