# SPDX-License-Identifier: Apache-2.0
"""The model artifact: a CNCF ModelPack manifest with one raw layer per file.

The manifest is a function of (commit, selection, format number). `ModelManifest.encode` writes it as
canonical JSON, so that two sites that mirror the same commit get the same digest; `ModelManifest.parse`
reads manifests of others and fails closed. A value module: no network, no disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sovereign_airgap import strict_json
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import InvalidReference, MalformedManifest
from sovereign_airgap.names import MAX_FILES, require_safe_set
from sovereign_airgap.strict_json import Json

FORMAT = "1"

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
DOC_TYPE = "application/vnd.cncf.model.doc.v1.raw"
LAYER_TYPES = (WEIGHT_TYPE, WEIGHT_CONFIG_TYPE, DOC_TYPE)

FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
SOURCE = "org.opencontainers.image.source"
REVISION = "org.opencontainers.image.revision"
FORMAT_KEY = "dev.sovereign.format"
SELECTION_KEY = "dev.sovereign.selection"

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_BLOB_BYTES = 1 << 50

EMPTY_BLOB = b"{}"


def canonical_json(value: Json) -> bytes:
    """RFC 8785: sorted keys, no spaces, one spelling for every string and number."""
    import rfc8785  # only who writes needs it; readers (the operator) go without

    return rfc8785.dumps(value)


def fallback_tag(subject: Digest) -> str:
    """Where referrers of a manifest are listed in registries without the referrers API."""
    return f"sha256-{subject.hex}"


def commit_tag(revision: str, selection: str | None) -> str:
    """The tag of an artifact: the commit, plus 8 hex digits of the selection where one was made."""
    if selection is None:
        return revision
    return f"{revision}-{Digest.of(selection.encode('utf-8')).hex[:8]}"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to a blob: what it is, its digest and its exact size."""

    media_type: str
    digest: Digest
    size: int

    @classmethod
    def of(cls, media_type: str, content: bytes) -> Self:
        return cls(media_type, Digest.of(content), len(content))

    def as_json(self) -> dict[str, Json]:
        return {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of the model: the blob's digest is the file's sha256."""

    path: str
    digest: Digest
    size: int
    media_type: str

    @property
    def is_weight(self) -> bool:
        return self.media_type == WEIGHT_TYPE

    def as_json(self) -> dict[str, Json]:
        return {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
            "annotations": {FILEPATH: self.path, TITLE: self.path},
        }


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the config blob says about the model; the ModelPack schema allows nothing else."""

    name: str
    source: str
    revision: str
    architecture: str
    precision: str
    parameter_size: str

    def encode(self, layers: tuple[Layer, ...]) -> bytes:
        diff_ids: list[Json] = [str(layer.digest) for layer in sorted_layers(layers)]
        return canonical_json(
            {
                "descriptor": {"name": self.name, "sourceURL": self.source, "revision": self.revision},
                "config": {
                    "architecture": self.architecture,
                    "format": "safetensors",
                    "precision": self.precision,
                    "paramSize": self.parameter_size,
                },
                "modelfs": {"type": "layers", "diffIds": diff_ids},
            }
        )


def sorted_layers(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """By the UTF-8 bytes of the path: the one order that no locale changes."""
    return tuple(sorted(layers, key=lambda layer: layer.path.encode("utf-8")))


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """The manifest of one model at one commit."""

    config: Descriptor
    layers: tuple[Layer, ...]
    source: str
    revision: str
    selection: str | None = None
    format: str = FORMAT

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(layer.size for layer in self.layers)

    def encode(self) -> bytes:
        """The canonical bytes; their sha256 is the artifact's digest."""
        annotations: dict[str, Json] = {
            SOURCE: self.source,
            REVISION: self.revision,
            FORMAT_KEY: self.format,
        }
        if self.selection is not None:
            annotations[SELECTION_KEY] = self.selection
        layers: list[Json] = [layer.as_json() for layer in sorted_layers(self.layers)]
        return canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": ARTIFACT_TYPE,
                "config": self.config.as_json(),
                "layers": layers,
                "annotations": annotations,
            }
        )

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Reads a model manifest; whatever is not exactly one is MalformedManifest or UnsafeFileName."""
        if len(content) > MAX_MANIFEST_BYTES:
            raise _malformed(f"at most {MAX_MANIFEST_BYTES} bytes", f"{len(content)}")
        try:
            document = strict_json.load_object(content)
        except strict_json.NotStrict as error:
            raise _malformed("a JSON object", str(error)) from error
        version = document.get("schemaVersion")
        if version != 2 or isinstance(version, bool):
            raise _malformed("schemaVersion 2", repr(version)[:50])
        for key, wanted in (("mediaType", MANIFEST_TYPE), ("artifactType", ARTIFACT_TYPE)):
            if document.get(key) != wanted:
                raise _malformed(f"{key} {wanted}", repr(document.get(key))[:150])
        config = _descriptor(document.get("config"), "config")
        if config.media_type != CONFIG_TYPE:
            raise _malformed(f"a config of type {CONFIG_TYPE}", config.media_type[:150])
        raw_layers = document.get("layers")
        if not isinstance(raw_layers, list) or not 0 < len(raw_layers) <= MAX_FILES:
            raise _malformed(f"between 1 and {MAX_FILES} layers", _count(raw_layers))
        layers = tuple(_layer(raw, f"layers[{at}]") for at, raw in enumerate(raw_layers))
        require_safe_set(layer.path for layer in layers)
        _require_one_size_per_digest(layers)
        annotations = _texts(document.get("annotations"), "annotations")
        for key in (SOURCE, REVISION, FORMAT_KEY):
            if key not in annotations:
                raise _malformed(f"the annotation {key}", "none")
        if annotations[FORMAT_KEY] != FORMAT:
            raise _malformed(
                f"{FORMAT_KEY} {FORMAT}", f"{annotations[FORMAT_KEY][:20]!r}: a newer release may read it"
            )
        return cls(
            config=config,
            layers=layers,
            source=annotations[SOURCE],
            revision=annotations[REVISION],
            selection=annotations.get(SELECTION_KEY),
        )


def _malformed(expected: str, found: str) -> MalformedManifest:
    return MalformedManifest(
        f"Expected a model manifest with {expected}, found {found}; mirror the model again, "
        "or name another artifact."
    )


def _count(value: Json) -> str:
    return str(len(value)) if isinstance(value, list) else "no list"


def _descriptor(raw: Json, where: str) -> Descriptor:
    if not isinstance(raw, dict):
        raise _malformed(f"an object at {where}", type(raw).__name__)
    media_type, digest, size = raw.get("mediaType"), raw.get("digest"), raw.get("size")
    if not isinstance(media_type, str):
        raise _malformed(f"a mediaType at {where}", repr(media_type)[:50])
    if not isinstance(digest, str):
        raise _malformed(f"a digest at {where}", repr(digest)[:50])
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_BLOB_BYTES:
        raise _malformed(f"a size in bytes at {where}", repr(size)[:50])
    try:
        return Descriptor(media_type, Digest.parse(digest), size)
    except InvalidReference as error:
        raise _malformed(f"a sha256 digest at {where}", repr(digest)[:100]) from error


def _layer(raw: Json, where: str) -> Layer:
    descriptor = _descriptor(raw, where)
    if descriptor.media_type not in LAYER_TYPES:
        raise _malformed(f"a raw model layer at {where}", f"the type {descriptor.media_type[:150]!r}")
    assert isinstance(raw, dict)
    path = _texts(raw.get("annotations"), f"{where}.annotations").get(FILEPATH)
    if path is None:
        raise _malformed(f"the annotation {FILEPATH} at {where}", "none")
    return Layer(path, descriptor.digest, descriptor.size, descriptor.media_type)


def _texts(raw: Json, where: str) -> dict[str, str]:
    if not isinstance(raw, dict):
        raise _malformed(f"an object of strings at {where}", type(raw).__name__)
    texts: dict[str, str] = {}
    for key, value in raw.items():
        if not isinstance(value, str):
            raise _malformed(f"a string at {where}.{key[:100]}", type(value).__name__)
        texts[key] = value
    return texts


def _require_one_size_per_digest(layers: tuple[Layer, ...]) -> None:
    sizes: dict[Digest, int] = {}
    for layer in layers:
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise _malformed(f"one size for {layer.digest}", f"{sizes[layer.digest]} and {layer.size}")
