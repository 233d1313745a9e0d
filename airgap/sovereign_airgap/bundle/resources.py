# SPDX-License-Identifier: Apache-2.0
"""Files that belong to a model: its licences, and the SovereignModel that shall serve it."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path

from sovereign_airgap import strict_yaml
from sovereign_airgap.bundle.index import FILE_TYPE, MODEL_NOTE, Kind, Root, is_bundle_name
from sovereign_airgap.bundle.unfinished import Unfinished
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained
from sovereign_airgap.errors import InvalidSpec
from sovereign_airgap.manifest import DOC_TYPE, Descriptor, ModelManifest
from sovereign_airgap.selection import Wish
from sovereign_airgap.strict_json import Json, NotStrict

YAML_TYPE = "application/yaml"
_RESOURCE_BYTES = 1024 * 1024


def licenses_of(root: Root, manifest: ModelManifest) -> tuple[Root, ...]:
    """Roots for the licence files of a model: the same blobs once more, where people look for them."""
    found = []
    for layer in manifest.layers:
        name = posixpath.basename(layer.path).lower()
        if layer.media_type == DOC_TYPE and name.startswith(("license", "notice")):
            descriptor = Descriptor(FILE_TYPE, layer.digest, layer.size)
            title = f"licenses/{root.repository}/{layer.path}"
            found.append(Root(Kind.FILE, descriptor, title=title, notes=((MODEL_NOTE, root.name),)))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Resource:
    """A SovereignModel as the user wrote it."""

    path: Path
    name: str
    content: bytes
    source: dict[str, Json]

    @property
    def title(self) -> str:
        return f"manifests/{self.name}.yaml"

    def require(self, source: str, revision: str, selection: str | None, digest: Digest | None) -> None:
        """Raises InvalidSpec where it names another model than the one that is carried with it."""
        hub, artifact = _object(self.source.get("huggingFace")), _object(self.source.get("artifact"))
        if hub:
            named = f"hf://{hub.get('repo')}".lower(), hub.get("revision"), _wish(hub).text
            if named != (source.lower(), revision, selection):
                raise self._wrong(f"{source}@{revision} with the same selection", f"{named[0]}@{named[1]}")
        elif artifact:
            reference = artifact.get("reference")
            if digest is None or not str(reference).endswith(f"@{digest}"):
                raise self._wrong(f"{source}@{revision}", str(reference))
        else:
            raise self._wrong(f"{source}@{revision}", "no source")

    def root(self, to: Unfinished, model: Root) -> Root:
        """Stores it; the root under which `load` finds it."""
        to.put_blob(self.content)
        return Root(
            Kind.FILE,
            Descriptor.of(YAML_TYPE, self.content),
            title=self.title,
            notes=((MODEL_NOTE, model.name),),
        )

    def _wrong(self, expected: str, found: str) -> InvalidSpec:
        return InvalidSpec(f"Expected {self.path} to serve {expected}, found {ascii(found)[1:-1][:200]}.")


def read_resource(path: Path) -> Resource:
    """Reads a SovereignModel; raises InvalidSpec where it is something else."""
    with explained(path), path.open("rb") as file:
        content = file.read(_RESOURCE_BYTES + 1)
    if len(content) > _RESOURCE_BYTES:
        raise InvalidSpec(f"Expected {path} to have at most {_RESOURCE_BYTES} bytes, found more.")
    try:
        document = strict_yaml.load_object(content)
    except NotStrict as error:
        raise InvalidSpec(f"Expected {path} to be one SovereignModel in YAML, found {error}.") from error
    name = _object(document.get("metadata")).get("name")
    if document.get("kind") != "SovereignModel" or not isinstance(name, str) or not is_bundle_name(name):
        found = f"{document.get('kind')} {name}"
        raise InvalidSpec(f"Expected {path} to be a SovereignModel with a name, found {ascii(found)[:150]}.")
    return Resource(path, name, content, _object(_object(document.get("spec")).get("source")))


def _wish(hub: dict[str, Json]) -> Wish:
    include, exclude = hub.get("include"), hub.get("exclude")
    return Wish(
        tuple(str(glob) for glob in include) if isinstance(include, list) else (),
        tuple(str(glob) for glob in exclude) if isinstance(exclude, list) else (),
    )


def _object(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}
