# SPDX-License-Identifier: Apache-2.0
"""`index.json`: what a bundle carries, under which names. Frozen before it is signed; the signature covers
its exact bytes.

A function of the content, the bundle's name and its version: no time stamps. A value module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from sovereign_airgap import oci, strict_json
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import BundleDefective, InvalidReference, MalformedManifest
from sovereign_airgap.manifest import INDEX_TYPE, TITLE, Descriptor, canonical_json
from sovereign_airgap.names import defect_of
from sovereign_airgap.reference import is_repository, is_tag
from sovereign_airgap.strict_json import Json

KIND = "dev.sovereign.kind"
REF_NAME = "org.opencontainers.image.ref.name"
BASE = "dev.sovereign.base"
BUNDLE_NAME = "dev.sovereign.bundle"
BUNDLE_VERSION = "dev.sovereign.bundle.version"
# Notes of roots: the model that a licence or a manifest belongs to, as `<repository>:<tag>`; and where an
# image was found, with the digest that was found there.
MODEL_NOTE = "dev.sovereign.model"
ORIGIN_NOTE = "dev.sovereign.origin"
INDEX_BYTES = 4 * 1024 * 1024
MAX_ROOTS = 2_000

BOM_TYPE = "application/vnd.cyclonedx+json"
FILE_TYPE = "application/octet-stream"

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")


class Kind(StrEnum):
    """What a root is. `referrers` is the fallback index of what refers to a model: facts and signatures."""

    MODEL = "model"
    REFERRERS = "referrers"
    IMAGE = "image"
    CHART = "chart"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Root:
    """One thing that the bundle carries.

    Files have a `title` (a safe relative path) and point to their bytes; everything else has a `repository`
    and a `tag` and points to a manifest or an index. `notes` are further annotations, such as the index that
    an image's manifest came from.
    """

    kind: Kind
    descriptor: Descriptor
    repository: str = ""
    tag: str = ""
    title: str = ""
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """How people and error messages call it."""
        return self.title or f"{self.repository}:{self.tag}"

    def as_json(self) -> dict[str, Json]:
        annotations: dict[str, Json] = {**dict(self.notes), KIND: str(self.kind)}
        if self.title:
            annotations[TITLE] = self.title
        else:
            annotations[REF_NAME] = f"{self.repository}:{self.tag}"
        return {**self.descriptor.as_json(), "annotations": annotations}


@dataclass(frozen=True, slots=True)
class Index:
    """The bundle's table of contents. `base` is the index digest of the bundle that a delta needs."""

    name: str
    version: int
    roots: tuple[Root, ...] = field(default=())
    base: Digest | None = None

    def of_kind(self, *kinds: Kind) -> tuple[Root, ...]:
        return tuple(root for root in self.roots if root.kind in kinds)

    def encode(self) -> bytes:
        """Canonical JSON, the roots sorted by kind and name."""
        annotations: dict[str, Json] = {BUNDLE_NAME: self.name, BUNDLE_VERSION: str(self.version)}
        if self.base is not None:
            annotations[BASE] = str(self.base)
        ordered = sorted(self.roots, key=lambda root: (str(root.kind), root.name.encode("utf-8")))
        manifests: list[Json] = [root.as_json() for root in ordered]
        document: dict[str, Json] = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": manifests,
            "annotations": annotations,
        }
        return canonical_json(document)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Reads an `index.json`; raises BundleDefective naming what is wrong with it."""
        try:
            if len(content) > INDEX_BYTES:
                raise _defective(f"at most {INDEX_BYTES} bytes", str(len(content)))
            document = oci.read(content, INDEX_TYPE)
            raw = strict_json.load_object(content)["manifests"]
        except MalformedManifest as error:
            raise BundleDefective(f"index.json: {error}") from error
        assert isinstance(raw, list)
        if len(raw) > MAX_ROOTS:
            raise _defective(f"at most {MAX_ROOTS} roots", str(len(raw)))
        name = document.annotations.get(BUNDLE_NAME, "")
        version = document.annotations.get(BUNDLE_VERSION, "")
        if not is_bundle_name(name):
            raise _defective(f"a name in the annotation {BUNDLE_NAME}", ascii(name)[:80])
        if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            raise _defective(f"a version from 1 on in the annotation {BUNDLE_VERSION}", ascii(version)[:40])
        base = document.annotations.get(BASE)
        try:
            roots = tuple(
                _root(entry, descriptor) for entry, descriptor in zip(raw, document.children, strict=True)
            )
            parsed = cls(name, int(version), roots, None if base is None else Digest.parse(base))
        except (MalformedManifest, InvalidReference) as error:
            raise BundleDefective(f"index.json: {error}") from error
        names = [(root.kind is Kind.FILE, root.name) for root in roots]
        if twice := sorted({name for is_file, name in names if names.count((is_file, name)) > 1}):
            raise _defective("every name once", f"{twice[0]!a} twice")
        return parsed


def is_bundle_name(name: str) -> bool:
    """Lower-case letters, digits, dots and dashes, at most 63: it becomes a tag and a file name."""
    return _NAME.fullmatch(name) is not None


def _root(entry: Json, descriptor: Descriptor) -> Root:
    annotations = oci.texts(entry.get("annotations") if isinstance(entry, dict) else None)
    try:
        kind = Kind(annotations.pop(KIND, ""))
    except ValueError as error:
        raise _defective(f"one of {', '.join(Kind)} in {KIND}", ascii(entry)[:120]) from error
    title, reference = annotations.pop(TITLE, ""), annotations.pop(REF_NAME, "")
    notes = tuple(sorted(annotations.items()))
    if kind is Kind.FILE:
        if not title or reference or defect_of(title):
            raise _defective("files with a safe title", f"{title!a}: {defect_of(title) or 'no title alone'}")
        return Root(kind, descriptor, title=title, notes=notes)
    repository, _, tag = reference.rpartition(":")
    if title or not is_repository(repository) or not is_tag(tag):
        raise _defective(f"<repository>:<tag> in {REF_NAME}", ascii(reference)[:150])
    if descriptor.media_type not in oci.DOCUMENT_TYPES:
        raise _defective(f"a manifest behind {reference}", descriptor.media_type[:150])
    return Root(kind, descriptor, repository=repository, tag=tag, notes=notes)


def _defective(expected: str, found: str) -> BundleDefective:
    return BundleDefective(f"index.json: expected {expected}, found {found}.")
