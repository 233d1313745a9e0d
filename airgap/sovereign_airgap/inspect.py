# SPDX-License-Identifier: Apache-2.0
"""The verb `inspect`: what an artifact is, without its weights."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sovereign_airgap import strict_json
from sovereign_airgap.access import Access
from sovereign_airgap.blobs import read_blob
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import InvalidReference, MalformedManifest
from sovereign_airgap.facts import ARTIFACT_TYPE, MAX_FACTS_BYTES, ModelFacts, read_config, require_agreement
from sovereign_airgap.manifest import Descriptor, ModelManifest
from sovereign_airgap.pace import Pace, Patience
from sovereign_airgap.reference import OciReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.strict_json import Json

_CONFIG_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Inspected:
    """An artifact as the registry holds it."""

    reference: OciReference
    digest: Digest
    manifest: ModelManifest
    facts: ModelFacts | None

    def as_json(self) -> dict[str, Json]:
        files: list[Json] = [
            {
                "path": layer.path,
                "digest": str(layer.digest),
                "size": layer.size,
                "mediaType": layer.media_type,
            }
            for layer in self.manifest.layers
        ]
        document: dict[str, Json] = {
            "reference": str(self.reference),
            "digest": str(self.digest),
            "source": self.manifest.source,
            "revision": self.manifest.revision,
            "format": self.manifest.format,
            "bytes": self.manifest.size,
            "files": files,
            "facts": None if self.facts is None else self.facts.as_json(),
        }
        if self.manifest.selection is not None:
            document["selection"] = self.manifest.selection
        return document


def inspect(reference: OciReference, access: Access, patience: Patience) -> Inspected:
    """Reads the manifest, config.json and facts; raises where the facts are of another model."""
    if not reference.repository:
        raise InvalidReference(f"Expected oci://HOST/REPO:TAG or @sha256:…, found {reference}.")
    with Pace(patience) as pace, access.registry(reference, pace, push=False) as registry:
        content = registry.get_manifest(reference.target)
        digest = Digest.of(content)
        manifest = ModelManifest.parse(content)
        facts = _facts(registry, digest)
        if facts is not None:
            _compare(registry, manifest, facts)
    return Inspected(reference.with_digest(digest), digest, manifest, facts)


def _facts(registry: Registry, subject: Digest) -> ModelFacts | None:
    referrers = registry.referrers(subject, ARTIFACT_TYPE)
    if not referrers:
        return None
    content = registry.get_manifest(str(referrers[-1].digest))
    try:
        document = strict_json.load_object(content)
    except strict_json.NotStrict as error:
        raise MalformedManifest(f"Expected a facts manifest, found: {str(error)[:200]}.") from error
    layers = document.get("layers")
    layer = layers[0] if isinstance(layers, list) and len(layers) == 1 else None
    named = document.get("subject")
    if not isinstance(layer, dict) or not isinstance(named, dict) or named.get("digest") != str(subject):
        raise MalformedManifest(f"Expected a facts manifest with one layer about {subject}, found another.")
    digest, size = layer.get("digest"), layer.get("size")
    if not isinstance(digest, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise MalformedManifest("Expected facts with a digest and a size, found a layer without.")
    blob = Descriptor(ARTIFACT_TYPE, Digest.parse(digest), size)
    return ModelFacts.parse(read_blob(registry, blob, "the model facts", MAX_FACTS_BYTES))


def _compare(registry: Registry, manifest: ModelManifest, facts: ModelFacts) -> None:
    for path in ("config.json", "params.json"):
        for layer in manifest.layers:
            if layer.path == path:
                blob = Descriptor(layer.media_type, layer.digest, layer.size)
                require_agreement(facts, read_config(read_blob(registry, blob, path, _CONFIG_BYTES)))
                return


def show(found: Inspected, console: Console) -> None:
    """Prints the artifact for people. Names are escaped: they come from somebody else."""
    head = Table.grid(padding=(0, 2))
    rows = [
        ("Artifact", str(found.reference)),
        ("Source", found.manifest.source),
        ("Revision", found.manifest.revision),
        ("Size", f"{found.manifest.size:,} bytes in {len(found.manifest.layers)} files"),
    ]
    if found.manifest.selection is not None:
        rows.append(("Selection", found.manifest.selection))
    if found.facts is None:
        rows.append(("Facts", "none"))
    else:
        facts = found.facts
        experts = (
            f"{facts.experts} experts, {facts.experts_per_token} per token" if facts.experts else "dense"
        )
        rows.append(("Model", f"{facts.architecture}, {facts.dtype}, {facts.layers} layers, {experts}"))
        rows.append(("Parameters", f"{facts.parameters:,}"))
        rows.append(("KV cache", f"{facts.kv_bytes_per_token:,} bytes per token"))
    for name, value in rows:
        head.add_row(name, _text(value))
    table = Table("File", "Bytes", "sha256", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for layer in found.manifest.layers:
        table.add_row(_text(layer.path), f"{layer.size:,}", layer.digest.hex)
    console.print(head)
    console.print(table)


def _text(value: str) -> Text:
    """Nothing in it is markup: `[/b]` is a folder's end and a file's beginning."""
    return Text(ascii(value)[1:-1])
