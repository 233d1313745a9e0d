# SPDX-License-Identifier: Apache-2.0
"""Manifests and indexes of any kind: which blobs a document points to, and nothing more.

Model manifests have their own, stricter reader in `manifest`. A value module: no network, no disk.
"""

from __future__ import annotations

from dataclasses import dataclass

from sovereign_airgap import strict_json
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import InvalidReference, MalformedManifest
from sovereign_airgap.manifest import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    MAX_BLOB_BYTES,
    MAX_MANIFEST_BYTES,
    Descriptor,
)
from sovereign_airgap.strict_json import Json

DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX_TYPE = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = frozenset({MANIFEST_TYPE, DOCKER_MANIFEST_TYPE})
INDEX_TYPES = frozenset({INDEX_TYPE, DOCKER_INDEX_TYPE})
DOCUMENT_TYPES = MANIFEST_TYPES | INDEX_TYPES

_MAX_CHILDREN = 4_100  # a model has at most 4,000 files


@dataclass(frozen=True, slots=True)
class Document:
    """What a manifest or an index points to. `platforms` is parallel to `children` of an index."""

    media_type: str
    artifact_type: str | None
    children: tuple[Descriptor, ...]
    platforms: tuple[dict[str, Json] | None, ...]
    subject: Descriptor | None
    annotations: dict[str, str]

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES


def read(content: bytes, media_type: str) -> Document:
    """Parses the document of a descriptor of `media_type`; raises MalformedManifest.

    Of a manifest the children are its config and layers, of an index its manifests, in their order.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise _malformed(f"at most {MAX_MANIFEST_BYTES} bytes", str(len(content)))
    try:
        document = strict_json.load_object(content)
    except strict_json.NotStrict as error:
        raise _malformed("a JSON object", str(error)[:200]) from error
    version = document.get("schemaVersion")
    if version != 2 or isinstance(version, bool):
        raise _malformed("schemaVersion 2", repr(version)[:50])
    if media_type not in DOCUMENT_TYPES:
        raise _malformed("a manifest or an index", media_type[:150])
    named = document.get("mediaType", media_type)
    if named != media_type:
        raise _malformed(f"mediaType {media_type}", repr(named)[:150])
    if media_type in INDEX_TYPES:
        raw = _list(document.get("manifests"), "manifests")
    else:
        raw = [document.get("config"), *_list(document.get("layers"), "layers")]
    subject = document.get("subject")
    artifact_type = document.get("artifactType")
    return Document(
        media_type=media_type,
        artifact_type=artifact_type if isinstance(artifact_type, str) else None,
        children=tuple(descriptor(entry, f"[{at}]") for at, entry in enumerate(raw)),
        platforms=tuple(_platform(entry) for entry in raw),
        subject=None if subject is None else descriptor(subject, "subject"),
        annotations=texts(document.get("annotations")),
    )


def media_type_of(content: bytes) -> str:
    """What a document that was asked for by name says it is; OCI's may say nothing, then its members tell.

    Raises MalformedManifest where it is no JSON object; whether it is a manifest at all, `read` decides.
    """
    try:
        document = strict_json.load_object(content)
    except strict_json.NotStrict as error:
        raise _malformed("a JSON object", str(error)[:200]) from error
    named = document.get("mediaType")
    if isinstance(named, str):
        return named
    return INDEX_TYPE if "manifests" in document else MANIFEST_TYPE


def descriptor(raw: Json, where: str) -> Descriptor:
    """A descriptor with its type, digest and size; raises MalformedManifest that names `where`."""
    if not isinstance(raw, dict):
        raise _malformed(f"a descriptor at {where}", type(raw).__name__)
    media_type, digest, size = raw.get("mediaType"), raw.get("digest"), raw.get("size")
    if not isinstance(media_type, str) or not 0 < len(media_type) <= 255:
        raise _malformed(f"a mediaType at {where}", repr(media_type)[:50])
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_BLOB_BYTES:
        raise _malformed(f"a size in bytes at {where}", repr(size)[:50])
    try:
        return Descriptor(media_type, Digest.parse(digest if isinstance(digest, str) else ""), size)
    except InvalidReference as error:
        raise _malformed(f"a sha256 digest at {where}", repr(digest)[:100]) from error


def texts(raw: Json) -> dict[str, str]:
    """Annotations; entries that are no strings are an error."""
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise _malformed("annotations that are strings", repr(raw)[:100])
    return {key: str(value) for key, value in raw.items()}


def _platform(entry: Json) -> dict[str, Json] | None:
    found = entry.get("platform") if isinstance(entry, dict) else None
    return found if isinstance(found, dict) else None


def _list(value: Json, name: str) -> list[Json]:
    if not isinstance(value, list) or len(value) > _MAX_CHILDREN:
        raise _malformed(f"{name}, at most {_MAX_CHILDREN}", _count(value))
    return value


def _count(value: Json) -> str:
    return str(len(value)) if isinstance(value, list) else type(value).__name__


def _malformed(expected: str, found: str) -> MalformedManifest:
    return MalformedManifest(f"Expected an OCI document with {expected}, found {found}.")
