# SPDX-License-Identifier: Apache-2.0
"""From what was loaded to files that a site applies: values for each chart, a SovereignModel per model.

Every reference in them is by digest and in the new registry. They are made from the bundle and the registry's
name alone: the same bundle loaded twice gives the same files.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sovereign_airgap import oci, strict_yaml
from sovereign_airgap.bundle.chart_values import CRDS_CHART, OPERATOR_CHART, Values, values_of
from sovereign_airgap.bundle.image_names import Images, RelocatedImage, image_reference
from sovereign_airgap.bundle.index import MODEL_NOTE, ORIGIN_NOTE, Kind, Root
from sovereign_airgap.bundle.load import Fetch, Loaded, Placed
from sovereign_airgap.errors import BundleDefective, InvalidReference, SovereignError
from sovereign_airgap.manifest import MAX_MANIFEST_BYTES
from sovereign_airgap.reference import ArtifactReference, OciReference
from sovereign_airgap.strict_json import Json, NotStrict

_MANIFEST_BYTES = 1024 * 1024
_CHART_BYTES = 20 * 1024 * 1024
_API = ("sovereign.dev/v1alpha1", "SovereignModel")
# What a cluster writes into an object, and another cluster must not be told.
_FROM_A_CLUSTER = (
    "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wishes:
    """`registry` is the registry's name as nodes and pods know it, where that is not the load's target."""

    registry: str | None = None
    namespace: str = "models"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what it was, and what it is now."""

    kind: str
    was: str
    now: str


@dataclass(frozen=True, slots=True)
class Relocation:
    """Files by path, sorted; `notes` are sentences about what is left to do."""

    files: dict[str, bytes]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def relocate(loaded: Loaded, wishes: Wishes, fetch: Fetch) -> Relocation:
    """Everything that a site applies; raises what `fetch` raises, or BundleDefective for a bad manifest."""
    return _Relocating(loaded, wishes, fetch).run()


@dataclass(slots=True)
class _Relocating:
    loaded: Loaded
    wishes: Wishes
    fetch: Fetch
    images: Images = field(init=False)
    files: dict[str, bytes] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self) -> Relocation:
        self.images = Images.of(
            RelocatedImage(_origin(placed), self._here(placed.reference))
            for placed in self._placed(Kind.IMAGE)
        )
        for image in self.images.images:
            self.rows.append(Row("image", image.origin.name, image.now.name))
        for placed in self._placed(Kind.CHART):
            self._chart(placed)
        for placed in self._placed(Kind.MODEL):
            self._model(placed)
        self.files["images.txt"] = "".join(
            f"{image.origin.name} {image.now.name}\n" for image in self.images.images
        ).encode()
        return Relocation(dict(sorted(self.files.items())), tuple(self.rows), tuple(self.notes))

    def _placed(self, kind: Kind) -> list[Placed]:
        return [placed for placed in self.loaded.placed if placed.root.kind is kind]

    def _here(self, reference: OciReference) -> OciReference:
        host = self.wishes.registry or reference.host
        return OciReference(host, reference.repository, digest=reference.digest)

    # -- charts ---------------------------------------------------------------------------------------------

    def _chart(self, placed: Placed) -> None:
        root = placed.root
        name = root.repository.rpartition("/")[2]
        archive = None if name in (OPERATOR_CHART, CRDS_CHART) else self._archive(root)
        values: Values = values_of(name, archive, self.images)
        self.notes += values.notes
        here = self._here(placed.reference)
        self.files[f"values/{name}.yaml"] = self._yaml(
            values.tree, f"Values for oci://{here.host}/{here.repository}, version {root.tag}."
        )
        self.rows.append(Row("chart", root.name, f"oci://{here.host}/{here.repository}:{root.tag}"))

    def _archive(self, root: Root) -> bytes | None:
        document = oci.read(self.fetch(root, root.descriptor, MAX_MANIFEST_BYTES), root.descriptor.media_type)
        layers = document.children[1:]
        if document.is_index or not layers or layers[0].size > _CHART_BYTES:
            return None
        return self.fetch(root, layers[0], _CHART_BYTES)

    # -- models ---------------------------------------------------------------------------------------------

    def _model(self, placed: Placed) -> None:
        root = placed.root
        reference = ArtifactReference(placed.reference.repository, root.descriptor.digest)
        brought = [
            file
            for file in self.loaded.cargo.index.of_kind(Kind.FILE)
            if file.title.startswith("manifests/") and dict(file.notes).get(MODEL_NOTE) == root.name
        ]
        self.rows.append(Row("model", root.name, str(reference)))
        for file in brought:
            manifest = self._brought(file)
            self._rewrite(manifest, reference)
            self._write_model(file.title.removeprefix("manifests/"), manifest, root)
        if not brought:
            self._make(root, reference)

    def _brought(self, file: Root) -> dict[str, Json]:
        try:
            manifest = strict_yaml.load_object(self.fetch(file, file.descriptor, _MANIFEST_BYTES))
        except NotStrict as error:
            raise BundleDefective(f"Expected {file.title} to be YAML, found {error}.") from error
        if (manifest.get("apiVersion"), manifest.get("kind")) != _API:
            raise BundleDefective(
                f"Expected {file.title} to be a {_API[1]} of {_API[0]}, found "
                f"{str(manifest.get('kind'))!a:.80} of {str(manifest.get('apiVersion'))!a:.80}."
            )
        return manifest

    def _rewrite(self, manifest: dict[str, Json], reference: ArtifactReference) -> None:
        manifest.pop("status", None)
        metadata, spec = _mapping(manifest, "metadata"), _mapping(manifest, "spec")
        for key in _FROM_A_CLUSTER:
            metadata.pop(key, None)
        spec["source"] = {"artifact": {"reference": str(reference)}}
        serving = _mapping(spec, "serving")
        image = serving.get("image")
        found = self.images.find(image) if isinstance(image, str) else None
        name = str(metadata.get("name"))
        if found is not None:
            serving["image"] = found.now.name
        elif isinstance(image, str) and not self._is_here(image):
            self.notes.append(
                f"the image {ascii(image)[1:-1][:200]} of {name} is not in the bundle: it stays as it is."
            )
        adapters = serving.get("adapters")
        for adapter in adapters if isinstance(adapters, list) else []:
            if isinstance(adapter, dict):
                adapter["reference"] = self._adapter(adapter.get("reference"), name)

    def _is_here(self, image: str) -> bool:
        wanted = image_reference(image)
        return wanted is not None and wanted.host == (self.wishes.registry or self.loaded.target.host)

    def _adapter(self, reference: Json, name: str) -> Json:
        """Adapters of the bundle move with the prefix."""
        try:
            wanted = ArtifactReference.parse(str(reference))
        except InvalidReference:
            return reference
        for placed in self._placed(Kind.MODEL):
            if (placed.root.repository, placed.root.descriptor.digest) == (wanted.repository, wanted.digest):
                return str(ArtifactReference(placed.reference.repository, wanted.digest))
        self.notes.append(f"the adapter {wanted} of {name} is not in the bundle: it stays as it is.")
        return reference

    def _make(self, root: Root, reference: ArtifactReference) -> None:
        """A manifest for a model that brought none: whole as far as the bundle knows."""
        image = self.images.named("serving")
        if image is None:
            self.notes.append(
                f"no manifest is written for {root.name}: it brought none, and the bundle has no one serving "
                f"image. Its source.artifact.reference is {reference}."
            )
            return
        name = _object_name(root.repository)
        if f"models/{name}.yaml" in self.files:
            name = f"{name[:54]}-{root.tag[:8].lower()}".rstrip("-.")
        manifest: dict[str, Json] = {
            "apiVersion": _API[0],
            "kind": _API[1],
            "metadata": {"name": name, "namespace": self.wishes.namespace},
            "spec": {
                "source": {"artifact": {"reference": str(reference)}},
                "serving": {"image": image.now.name},
            },
        }
        self._write_model(f"{name}.yaml", manifest, root)

    def _write_model(self, name: str, manifest: dict[str, Json], root: Root) -> None:
        self.files[f"models/{name}"] = self._yaml(manifest, f"{root.name}, ready for kubectl apply.")

    def _yaml(self, tree: dict[str, Json], what: str) -> bytes:
        index = self.loaded.cargo.index
        head = (
            f"# {what}\n# Written by `bundle load` from the bundle {index.name} {index.version} "
            f"({self.loaded.cargo.index_digest}).\n"
        )
        return head.encode() + _dumped(tree)


class _Dumper(yaml.SafeDumper):
    """Readers of YAML disagree about what is a number or a truth value: only words go without quotes."""


_WORD = re.compile(r"[A-Za-z/][A-Za-z0-9._/@:+-]*")
_NO_WORDS = frozenset(["true", "false", "yes", "no", "on", "off", "null", "y", "n"])


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = _WORD.fullmatch(text) is not None and text.lower() not in _NO_WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)


def _dumped(tree: dict[str, Json]) -> bytes:
    text = yaml.dump(
        tree, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=1000
    )
    return str(text).encode()


def show(relocation: Relocation, console: Console) -> None:
    """Prints what is where. Names are escaped: they come from somebody else."""
    table = Table("Kind", "In the bundle", "Behind the gap", box=None, pad_edge=False)
    for row in relocation.rows:
        table.add_row(row.kind, Text(ascii(row.was)[1:-1]), Text(ascii(row.now)[1:-1]))
    console.print(table)


def as_json(relocation: Relocation, loaded: Loaded) -> bytes:
    """The same for programs: what was loaded, and every reference."""
    index = loaded.cargo.index
    document = {
        "bundle": {
            "name": index.name,
            "version": index.version,
            "index": str(loaded.cargo.index_digest),
            "signedBy": list(loaded.signed_by),
        },
        "references": [{"kind": row.kind, "was": row.was, "now": row.now} for row in relocation.rows],
        "notes": list(relocation.notes),
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def _origin(placed: Placed) -> OciReference:
    """Where the image came from; one without a note came from where it is."""
    root = placed.root
    told = dict(root.notes).get(ORIGIN_NOTE, "")
    try:
        return OciReference.parse(told)
    except SovereignError:
        return OciReference(placed.reference.host, root.repository, root.tag, root.descriptor.digest)


def _mapping(parent: dict[str, Json], key: str) -> dict[str, Json]:
    found = parent.get(key)
    if not isinstance(found, dict):
        raise BundleDefective(f"Expected a SovereignModel with a mapping under {key}, found none.")
    return found


def _object_name(repository: str) -> str:
    """A name for the object: a DNS label, from the last word of the repository."""
    word = re.sub(r"[^a-z0-9-]+", "-", repository.rpartition("/")[2].lower()).strip("-")
    return (word or "model")[:63].rstrip("-")
