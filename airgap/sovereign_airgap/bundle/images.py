# SPDX-License-Identifier: Apache-2.0
"""Images of a registry: one platform's manifest, or the whole index, as it is. Nothing is ever rewritten."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from sovereign_airgap import oci, strict_json
from sovereign_airgap.access import Access
from sovereign_airgap.bundle.graph import Reach, reach
from sovereign_airgap.bundle.index import ORIGIN_NOTE, Kind, Root
from sovereign_airgap.bundle.items import ImageItem
from sovereign_airgap.bundle.source import Survey
from sovereign_airgap.bundle.spec import ALL_PLATFORMS
from sovereign_airgap.bundle.unfinished import Unfinished
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import ArtifactNotFound, MalformedManifest, SizeMismatch
from sovereign_airgap.manifest import Descriptor
from sovereign_airgap.pace import Pace
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import OciReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.stopping import all_at_once
from sovereign_airgap.strict_json import Json

DEFAULT_PLATFORM = "linux/amd64"
_CONFIG_TYPES = frozenset(
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"]
)
_CONFIG_BYTES = 4 * 1024 * 1024
_MAX_DEPTH = 4


@dataclass(slots=True)
class ImageSource:
    """One image of a spec; `platform` is `os/architecture[/variant]` or `all`."""

    reference: OciReference
    platform: str
    access: Access
    pace: Pace
    progress: Progress
    parallel: int = 4
    _reach: Reach | None = None
    _origin: str = ""

    @property
    def describe(self) -> str:
        return self.reference.name

    def survey(self, to: Unfinished) -> Survey:
        """Reads the manifests; raises ArtifactNotFound where there is none for the platform."""
        with self.access.registry(_as_served(self.reference), self.pace, push=False) as registry:
            content = registry.get_manifest(self.reference.target)
            found = Descriptor.of(oci.media_type_of(content), content)
            named = found.digest
            kept = {named: content}
            if self.platform != ALL_PLATFORMS:
                found = self._choose(registry, found, content, kept)
            self._origin = str(replace(self.reference, digest=named).name)
            root = Root(
                Kind.IMAGE,
                found,
                repository=_as_served(self.reference).repository,
                tag=self.reference.tag or f"sha256-{named.hex[:12]}",
                notes=((ORIGIN_NOTE, self._origin),),
            )
            self._reach = reach(root, partial(_document, registry, kept))
            if self.platform != ALL_PLATFORMS:
                self._require_platform(to, registry, self._reach)
        return Survey((root.name,), len(self._reach.blobs), self._reach.blobs)

    def carry(self, to: Unfinished) -> tuple[ImageItem, ...]:
        reached = self._reach
        assert reached is not None
        order = sorted(reached.blobs, key=lambda blob: (-blob.size, blob.digest))
        with self.access.registry(_as_served(self.reference), self.pace, push=False) as registry:
            calls = [partial(self._fetch, to, registry, blob) for blob in order]
            all_at_once(calls, self.pace, self.parallel, "image")
        for document in reached.documents:
            to.put_document(document.content)
        return (ImageItem(reached.root, self._origin, self.platform, reached.size),)

    def _fetch(self, to: Unfinished, registry: Registry, blob: Descriptor) -> None:
        self.progress.working_on(self.describe)
        to.fetch(registry, blob, f"a blob of {self.describe}")
        self.progress.finished(self.describe)

    def _choose(
        self, registry: Registry, found: Descriptor, content: bytes, kept: dict[Digest, bytes]
    ) -> Descriptor:
        """The manifest of one platform, through indexes of indexes."""
        for _ in range(_MAX_DEPTH):
            document = oci.read(content, found.media_type)
            if not document.is_index:
                return found
            chosen = _for_platform(document, self.platform)
            if chosen is None:
                there = ", ".join(sorted(set(_names(document)))) or "none"
                raise ArtifactNotFound(
                    f"Expected {self.describe} for {self.platform}, found it for {ascii(there)[1:-1][:300]}; "
                    "choose another with --platform, or take --all-platforms."
                )
            found = chosen
            content = _document(registry, kept, found)
        raise MalformedManifest(
            f"{self.describe}: expected at most {_MAX_DEPTH} levels of indexes, found more."
        )

    def _require_platform(self, to: Unfinished, registry: Registry, reached: Reach) -> None:
        """An image without an index says only in its config what it runs on."""
        manifest = reached.documents[-1].read
        config = manifest.children[0]
        if manifest.is_index or config.media_type not in _CONFIG_TYPES:
            return
        content = to.small(registry, config, f"the config of {self.describe}", _CONFIG_BYTES)
        try:
            document = strict_json.load_object(content)
        except strict_json.NotStrict as error:
            raise MalformedManifest(
                f"Expected the config of {self.describe} to be a JSON object, found {str(error)[:200]}."
            ) from error
        system, architecture = self.platform.split("/")[:2]
        found = document.get("os"), document.get("architecture")
        if found != (system, architecture):
            raise ArtifactNotFound(
                f"Expected {self.describe} for {self.platform}, found it for {ascii(found)[:80]}; choose "
                "another with --platform."
            )


def _as_served(reference: OciReference) -> OciReference:
    """Docker's own registry answers under another name than the one that its images are called by."""
    if reference.host != "docker.io":
        return reference
    repository = reference.repository
    served = repository if "/" in repository else f"library/{repository}"
    return replace(reference, host="registry-1.docker.io", repository=served)


def _document(registry: Registry, kept: dict[Digest, bytes], wanted: Descriptor) -> bytes:
    """A manifest by digest, asked for once; its length is compared with its descriptor."""
    content = kept.get(wanted.digest)
    if content is None:
        content = kept[wanted.digest] = registry.get_manifest(str(wanted.digest))
    if len(content) != wanted.size:
        raise SizeMismatch(
            f"Expected {wanted.size} bytes of {wanted.digest} as its index says, found {len(content)}."
        )
    return content


def _for_platform(index: oci.Document, platform: str) -> Descriptor | None:
    """The child for a platform. Without a variant in the wish the first one is taken, one that has none
    first."""
    wanted = platform.split("/")
    fitting = []
    for child, raw in zip(index.children, index.platforms, strict=True):
        if child.media_type not in oci.DOCUMENT_TYPES or raw is None:
            continue
        named = [raw.get("os"), raw.get("architecture"), raw.get("variant")]
        if named[:2] == wanted[:2] and (len(wanted) < 3 or named[2] == wanted[2]):
            fitting.append((named[2] is not None, child))
    return min(fitting, key=lambda pair: pair[0])[1] if fitting else None


def _names(index: oci.Document) -> Iterable[str]:
    for raw in index.platforms:
        parts: list[Json] = [raw.get(key) for key in ("os", "architecture", "variant")] if raw else []
        if parts and parts[0] != "unknown":  # attestations
            yield "/".join(str(part) for part in parts if part)
