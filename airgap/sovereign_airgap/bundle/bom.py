# SPDX-License-Identifier: Apache-2.0
"""The bill of materials: CycloneDX 1.6, its ML profile. Made with the bundle, checked against it for ever.

No time stamp, no serial number, no version of ours: the same content has the same bill.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from sovereign_airgap import strict_json
from sovereign_airgap.bundle.graph import ReadDocument
from sovereign_airgap.bundle.index import Index, Kind, Root
from sovereign_airgap.bundle.items import ChartItem, FileItem, ImageItem, Item, ModelItem
from sovereign_airgap.bundle.layout import CONTENTS
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import InvalidSpec, SovereignError
from sovereign_airgap.manifest import ModelManifest, canonical_json, sorted_layers
from sovereign_airgap.strict_json import Json

BOM_TITLE = "bom.cdx.json"
BOM_BYTES = 64 * 1024 * 1024
SPEC_VERSION = "1.6"
_MAX_DEFECTS = 100
_UNDESCRIBED = frozenset([BOM_TITLE, CONTENTS])
_TYPES = {
    Kind.MODEL: "machine-learning-model",
    Kind.IMAGE: "container",
    Kind.CHART: "application",
    Kind.FILE: "file",
}
# Of the model facts, what a reader of the card wants; bytes and counts.
_FACTS = (
    "architecture", "dtype", "quantization", "layers", "hidden_size", "heads", "kv_heads", "vocab_size",
    "experts", "experts_per_token", "max_position_embeddings", "parameters", "bytes_total", "remote_code",
    "multimodal",
)  # fmt: skip


def build(name: str, version: int, items: Sequence[Item]) -> bytes:
    """The bill of a bundle, as canonical JSON; `items` in any order."""
    components = [_component(item) for item in items]
    for item in items:
        if isinstance(item, ModelItem):
            components += [_file(root) for root in item.roots if root.kind is Kind.FILE]
    components.sort(key=lambda component: str(component["bom-ref"]).encode("utf-8"))
    references: list[Json] = [component["bom-ref"] for component in components]
    listed: list[Json] = [*components]
    content = canonical_json(
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": SPEC_VERSION,
            "version": 1,
            "metadata": {
                "component": {"type": "data", "bom-ref": "bundle", "name": name, "version": str(version)}
            },
            "components": listed,
            "dependencies": [{"ref": "bundle", "dependsOn": references}],
            "compositions": [{"aggregate": "complete", "assemblies": ["bundle"]}],
        }
    )
    if len(content) > BOM_BYTES:
        raise InvalidSpec(
            f"Expected a bill of materials of at most {BOM_BYTES} bytes, found {len(content)}; make two "
            "bundles of it."
        )
    return content


# -- making it ----------------------------------------------------------------------------------------------


def _component(item: Item) -> dict[str, Json]:
    match item:
        case ModelItem():
            return _model(item)
        case ImageItem():
            return _image(item)
        case ChartItem():
            described = _described(item.root, item.name, item.version)
            return described | ({"description": item.description} if item.description else {})
        case FileItem():
            return _file(item.root)


def _described(root: Root, name: str, version: str) -> dict[str, Json]:
    component: dict[str, Json] = {
        "type": _TYPES[root.kind],
        "bom-ref": _reference(root),
        "name": name,
        "hashes": _hashes(root.descriptor.digest),
    }
    return component | ({"version": version} if version else {})


def _model(item: ModelItem) -> dict[str, Json]:
    root, manifest = item.root, item.manifest
    files: list[Json] = [
        {"type": "file", "name": layer.path, "hashes": _hashes(layer.digest)}
        for layer in sorted_layers(manifest.layers)
    ]
    component = _described(root, root.repository, manifest.revision)
    organisation, _, name = manifest.source.removeprefix("hf://").rpartition("/")
    if manifest.source.startswith("hf://") and organisation:
        component |= {"group": organisation, "name": name}
        component["purl"] = f"pkg:huggingface/{quote(organisation)}/{quote(name)}@{manifest.revision}"
    component["components"] = files
    component["externalReferences"] = _references_of(item)
    component["modelCard"] = _model_card(item)
    component["properties"] = _properties(
        {
            "sovereign:reference": f"{root.repository}:{root.tag}",
            "sovereign:selection": manifest.selection or "",
            "sovereign:size": str(manifest.size),
        }
    )
    if item.card.licenses:
        component["licenses"] = [
            {"license": {"id": each.id} if each.id else {"name": each.text}} for each in item.card.licenses
        ]
    return component


def _references_of(item: ModelItem) -> list[Json]:
    root, manifest = item.root, item.manifest
    found: list[Json] = [
        {"type": "source-distribution", "url": _source(manifest), "comment": "the commit it was taken from"},
        {"type": "distribution", "url": f"{root.repository}@{root.descriptor.digest}"},
    ]
    for file in item.licenses:
        hashes = _hashes(file.descriptor.digest)
        found.append({"type": "license", "url": quote(file.title), "hashes": hashes})
    return found


def _model_card(item: ModelItem) -> dict[str, Json]:
    facts, family = item.facts, item.config.get("model_type")
    parameters: dict[str, Json] = {}
    if item.card.task:
        parameters["task"] = item.card.task
    if isinstance(family, str) and family.isprintable() and len(family) <= 100:
        parameters["architectureFamily"] = family
    architectures = item.config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    if isinstance(first, str) and first.isprintable() and len(first) <= 100:
        parameters["modelArchitecture"] = first
    card: dict[str, Json] = {"modelParameters": parameters}
    if facts is not None:
        values = {f"sovereign:{name}": getattr(facts, name) for name in _FACTS}
        card["properties"] = _properties(
            {name: _spelled(value) for name, value in values.items() if value not in (None, 0, "")}
        )
    return card


def _image(item: ImageItem) -> dict[str, Json]:
    root, digest = item.root, item.root.descriptor.digest
    component = _described(root, root.repository, root.tag)
    where, _, _ = item.origin.partition("@")
    host_and_path = where.rpartition(":")[0] if ":" in where.rpartition("/")[2] else where
    qualifiers = f"repository_url={quote(host_and_path, safe='/:')}&tag={quote(root.tag)}"
    component["purl"] = (
        f"pkg:oci/{quote(root.repository.rpartition('/')[2])}@{quote(str(digest))}?{qualifiers}"
    )
    component["externalReferences"] = [{"type": "distribution", "url": f"oci://{item.origin}"}]
    component["properties"] = _properties(
        {"sovereign:platform": item.platform, "sovereign:size": str(item.size)}
    )
    return component


def _file(root: Root) -> dict[str, Json]:
    component = _described(root, root.title, "")
    component["properties"] = _properties({"sovereign:size": str(root.descriptor.size)})
    return component


def _reference(root: Root) -> str:
    return f"{root.kind}:{root.name}"


def _hashes(digest: Digest) -> list[Json]:
    return [{"alg": "SHA-256", "content": digest.hex}]


def _source(manifest: ModelManifest) -> str:
    return f"{manifest.source}@{manifest.revision}"


def _properties(values: dict[str, str]) -> list[Json]:
    return [{"name": name, "value": value} for name, value in sorted(values.items()) if value]


def _spelled(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# -- checking it --------------------------------------------------------------------------------------------


def check(bom: bytes, index: Index, read: ReadDocument) -> list[str]:
    """Where the bill and the bundle disagree, each a sentence; empty where they agree.

    `read` gives manifests of models. What newer releases may add to a bill is no defect.
    """
    try:
        if len(bom) > BOM_BYTES:
            return [f"The bill should have at most {BOM_BYTES} bytes, found {len(bom)}."]
        document = strict_json.load_object(bom)
    except strict_json.NotStrict as error:
        return [f"The bill should be a JSON object, found {str(error)[:200]}."]
    defects: list[str] = []
    if document.get("bomFormat") != "CycloneDX" or document.get("specVersion") != SPEC_VERSION:
        defects.append(f"The bill should be CycloneDX {SPEC_VERSION}, found something else.")
    about = _object(_object(document.get("metadata")).get("component"))
    if (about.get("name"), about.get("version")) != (index.name, str(index.version)):
        found = f"{about.get('name')} {about.get('version')}"
        defects.append(f"The bill should be of {index.name} {index.version}, found {ascii(found)[:100]}.")
    listed: dict[str, dict[str, Json]] = {}
    for component in _objects(document.get("components")):
        reference = component.get("bom-ref")
        if not isinstance(reference, str) or reference in listed:
            defects.append(f"The bill lists {ascii(reference)[:150]} twice, or without a name.")
        else:
            listed[reference] = component
    for root in index.roots:
        if root.kind in _TYPES and not (root.kind is Kind.FILE and root.title in _UNDESCRIBED):
            defects += _defects_of(root, listed.pop(_reference(root), None), read)
    defects += [f"The bill lists {ascii(name)[:150]}, which the bundle does not carry." for name in listed]
    return defects[:_MAX_DEFECTS]


def _defects_of(root: Root, component: dict[str, Json] | None, read: ReadDocument) -> Iterable[str]:
    if component is None:
        return [f"The bill does not list {root.name}."]
    defects = []
    if component.get("type") != _TYPES[root.kind]:
        defects.append(f"The bill should call {root.name} a {_TYPES[root.kind]}.")
    if component.get("hashes") != _hashes(root.descriptor.digest):
        defects.append(f"The bill has another digest for {root.name} than {root.descriptor.digest}.")
    if root.kind is Kind.MODEL:
        try:
            manifest = ModelManifest.parse(read(root.descriptor))
        except SovereignError as error:
            return [*defects, f"{root.name}: {error}"]
        defects += _model_defects(root, manifest, component)
    return defects


def _model_defects(root: Root, manifest: ModelManifest, component: dict[str, Json]) -> Iterable[str]:
    if component.get("version") != manifest.revision:
        yield f"The bill has another revision for {root.name} than {manifest.revision}."
    sources = [
        entry.get("url")
        for entry in _objects(component.get("externalReferences"))
        if entry.get("type") == "source-distribution"
    ]
    if sources != [_source(manifest)]:
        yield f"The bill has another source for {root.name} than {_source(manifest)}."
    files = {(file.get("name"), str(file.get("hashes"))) for file in _objects(component.get("components"))}
    wanted = {(layer.path, str(_hashes(layer.digest))) for layer in manifest.layers}
    for path in sorted({str(path) for path, _ in files ^ wanted}):
        yield f"The bill and the manifest of {root.name} disagree about {ascii(path)[:150]}."


def _object(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _objects(value: Json) -> list[dict[str, Json]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
