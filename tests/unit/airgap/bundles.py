# SPDX-License-Identifier: Apache-2.0
"""Small bundles made by hand: two models that share shards, an image, a chart and files.

Written without `bundle create`, so that what reads bundles is tested against the format and not against its
writer. A test that needs a bad bundle takes a good one and changes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sovereign_airgap.bundle import bom
from sovereign_airgap.bundle.card import Card
from sovereign_airgap.bundle.index import BOM_TYPE, FILE_TYPE, Index, Kind, Root
from sovereign_airgap.bundle.items import ChartItem, FileItem, ImageItem, Item, ModelItem
from sovereign_airgap.bundle.layout import CONTENTS, INDEX, OCI_LAYOUT, OCI_LAYOUT_CONTENT, blob_path
from sovereign_airgap.digest import Digest
from sovereign_airgap.facts import ARTIFACT_TYPE as FACTS_TYPE
from sovereign_airgap.manifest import (
    CONFIG_TYPE,
    DOC_TYPE,
    EMPTY_BLOB,
    EMPTY_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    WEIGHT_CONFIG_TYPE,
    WEIGHT_TYPE,
    Descriptor,
    Layer,
    ModelConfig,
    ModelManifest,
    canonical_json,
    fallback_tag,
)
from sovereign_airgap.strict_json import Json
from tests.unit.airgap.models import a_config, a_safetensors, layer_tensors, some_bytes

NAME = "site"
COMMIT_ONE, COMMIT_TWO = "1" * 40, "2" * 40
MODEL_ONE, MODEL_TWO = "models/org/tiny-one", "models/org/tiny-two"
IMAGE = "sovereign/serving"
CHART = "charts/sovereign-operator"
BOM = "bom.cdx.json"
LICENCE = f"licenses/{MODEL_ONE}/LICENSE"

IMAGE_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
IMAGE_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
CHART_CONFIG_TYPE = "application/vnd.cncf.helm.config.v1+json"
CHART_LAYER_TYPE = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"


@dataclass(slots=True)
class Draft:
    """A bundle that is being made in `directory`; `finish` freezes its index."""

    directory: Path
    roots: list[Root] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)

    def blob(self, content: bytes, media_type: str = FILE_TYPE) -> Descriptor:
        """Puts the bytes where their digest says."""
        found = Descriptor.of(media_type, content)
        place = self.directory / blob_path(found.digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        return found

    def manifest(
        self,
        config: Descriptor,
        layers: list[Descriptor],
        *,
        artifact_type: str | None = None,
        subject: Descriptor | None = None,
    ) -> Descriptor:
        document: dict[str, Json] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config.as_json(),
            "layers": [layer.as_json() for layer in layers],
        }
        if artifact_type is not None:
            document["artifactType"] = artifact_type
        if subject is not None:
            document["subject"] = subject.as_json()
        return self.blob(canonical_json(document), MANIFEST_TYPE)

    def index_of(self, manifests: list[Descriptor]) -> Descriptor:
        document: dict[str, Json] = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [manifest.as_json() for manifest in manifests],
        }
        return self.blob(canonical_json(document), INDEX_TYPE)

    def model(self, repository: str, commit: str, files: Mapping[str, bytes]) -> Root:
        """A model artifact with its facts as a referrer."""
        source = f"hf://{repository.removeprefix('models/')}"
        layers = tuple(
            Layer(path, self.blob(content).digest, len(content), _layer_type(path))
            for path, content in files.items()
        )
        described = ModelConfig(repository, source, commit, "MixtralForCausalLM", "BF16", "1K")
        config = self.blob(described.encode(layers), CONFIG_TYPE)
        written = ModelManifest(config, layers, source, commit)
        manifest = self.blob(written.encode(), MANIFEST_TYPE)
        self.referrers(repository, manifest)
        root = self.root(Kind.MODEL, manifest, repository, commit)
        self.items.append(ModelItem(root, written, a_config(), None, Card()))
        return root

    def referrers(self, repository: str, subject: Descriptor) -> Root:
        facts = self.manifest(
            self.blob(EMPTY_BLOB, EMPTY_TYPE),
            [self.blob(b'{"layers":2}', FACTS_TYPE)],
            artifact_type=FACTS_TYPE,
            subject=subject,
        )
        return self.root(Kind.REFERRERS, self.index_of([facts]), repository, fallback_tag(subject.digest))

    def image(self, repository: str = IMAGE, tag: str = "v1", layer: bytes = b"image layer") -> Root:
        manifest = self.manifest(
            self.blob(b'{"os":"linux","architecture":"amd64"}', IMAGE_CONFIG_TYPE),
            [self.blob(layer, IMAGE_LAYER_TYPE)],
        )
        origin = f"registry.example/{repository}:{tag}@{manifest.digest}"
        root = self.root(Kind.IMAGE, manifest, repository, tag, (("dev.sovereign.origin", origin),))
        self.items.append(ImageItem(root, origin, "linux/amd64", len(layer)))
        return root

    def chart(self, repository: str = CHART, version: str = "0.1.0") -> Root:
        name = repository.rpartition("/")[2]
        config = {"name": name, "version": version, "apiVersion": "v2"}
        manifest = self.manifest(
            self.blob(json.dumps(config).encode(), CHART_CONFIG_TYPE),
            [self.blob(b"chart " + version.encode(), CHART_LAYER_TYPE)],
        )
        root = self.root(Kind.CHART, manifest, repository, version)
        self.items.append(ChartItem(root, name, version, "", manifest.size))
        return root

    def file(self, title: str, content: bytes, media_type: str = FILE_TYPE) -> Root:
        root = Root(Kind.FILE, self.blob(content, media_type), title=title)
        self.roots.append(root)
        self.items.append(FileItem(root))
        return root

    def root(
        self,
        kind: Kind,
        descriptor: Descriptor,
        repository: str,
        tag: str,
        notes: tuple[tuple[str, str], ...] = (),
    ) -> Root:
        root = Root(kind, descriptor, repository, tag, notes=notes)
        self.roots.append(root)
        return root

    def finish(self, name: str = NAME, version: int = 1, base: Digest | None = None) -> Path:
        """Writes what is left: the bill of materials unless there is one, CONTENTS.txt (a file of the bundle,
        too), oci-layout, and last the index."""
        if not any(root.title == BOM for root in self.roots):
            self.file(BOM, bom.build(name, version, self.items), BOM_TYPE)
        contents = f"{name} {version}\n".encode()
        self.file(CONTENTS, contents)
        (self.directory / CONTENTS).write_bytes(contents)
        (self.directory / OCI_LAYOUT).write_bytes(OCI_LAYOUT_CONTENT)
        (self.directory / INDEX).write_bytes(Index(name, version, tuple(self.roots), base).encode())
        return self.directory


def model_files(name: str, *, width: int = 16) -> dict[str, bytes]:
    """Three shards, of which every model has the first two in common; about 200 bytes per `width` each."""
    shards = {
        f"model-0000{at}-of-00003.safetensors": a_safetensors(
            layer_tensors(at, width), name if at == 3 else "shared"
        )
        for at in (1, 2, 3)
    }
    weight_map = {tensor: shard for at, shard in enumerate(shards, 1) for tensor in layer_tensors(at)}
    return {
        **shards,
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        "config.json": json.dumps(a_config(num_hidden_layers=3)).encode(),
        "README.md": f"# {name}\n".encode(),
        "LICENSE": b"Apache-2.0\n",
        "empty.json": b"",
    }


def a_bundle(directory: Path, *, name: str = NAME, version: int = 1, width: int = 16) -> Path:
    """The usual bundle: two models that share two of three shards, an image, a chart, a licence, a wheel."""
    draft = Draft(directory)
    for repository, commit in ((MODEL_ONE, COMMIT_ONE), (MODEL_TWO, COMMIT_TWO)):
        draft.model(repository, commit, model_files(repository, width=width))
    draft.image()
    draft.chart()
    draft.file(LICENCE, b"Apache-2.0\n")
    draft.file("wheels/sovereign_models-0.1.0-py3-none-any.whl", some_bytes(300, "wheel"))
    draft.file("manifests/tiny-one.yaml", b"apiVersion: sovereign.dev/v1alpha1\n")
    return draft.finish(name, version)


def index_of(directory: Path) -> Index:
    return Index.parse((directory / INDEX).read_bytes())


def index_digest(directory: Path) -> Digest:
    return Digest.of((directory / INDEX).read_bytes())


def a_root(directory: Path, name: str) -> Root:
    """The root of this title, or of this repository (not its referrers)."""
    return next(
        root
        for root in index_of(directory).roots
        if name in (root.title, root.repository, root.name) and root.kind is not Kind.REFERRERS
    )


def _layer_type(path: str) -> str:
    if path.endswith(".safetensors"):
        return WEIGHT_TYPE
    return WEIGHT_CONFIG_TYPE if path.endswith(".json") else DOC_TYPE
