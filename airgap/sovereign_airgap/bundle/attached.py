# SPDX-License-Identifier: Apache-2.0
"""What refers to a model and travels with it: its facts and its signatures, listed under the fallback tag."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sovereign_airgap import oci
from sovereign_airgap.blobs import read_blob
from sovereign_airgap.bundle.index import Kind, Root
from sovereign_airgap.bundle.unfinished import Unfinished
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import MalformedManifest
from sovereign_airgap.facts import ARTIFACT_TYPE, MAX_FACTS_BYTES, ModelFacts
from sovereign_airgap.hub_model import put_facts
from sovereign_airgap.manifest import INDEX_TYPE, MANIFEST_TYPE, Descriptor, canonical_json, fallback_tag
from sovereign_airgap.registry import Registry
from sovereign_airgap.signing.dsse import ENVELOPE_BYTES
from sovereign_airgap.signing.referrer import MAX_REFERRERS, SIGNATURE_TYPE
from sovereign_airgap.strict_json import Json

# How many referrers of a type are carried, the latest ones, and how large a blob of theirs may be.
_CARRIED = {ARTIFACT_TYPE: (1, MAX_FACTS_BYTES), SIGNATURE_TYPE: (MAX_REFERRERS, ENVELOPE_BYTES)}
_MAX_CHILDREN = 4


@dataclass(frozen=True, slots=True)
class Attached:
    """A manifest that refers to a model, with the small blobs that it needs."""

    artifact_type: str
    content: bytes
    annotations: Mapping[str, str]
    blobs: tuple[bytes, ...] = ()

    def as_json(self) -> dict[str, Json]:
        """Its entry in the list of referrers; the annotations are the manifest's own, as OCI has it."""
        entry = Descriptor.of(MANIFEST_TYPE, self.content).as_json()
        entry["artifactType"] = self.artifact_type
        if self.annotations:
            entry["annotations"] = {**self.annotations}
        return entry


def attach_facts(to: Unfinished, subject: Descriptor, facts: ModelFacts) -> Attached:
    """Facts that were derived here; their blobs are stored at once."""
    return Attached(ARTIFACT_TYPE, put_facts(to, subject, facts), {})


def attached_to(registry: Registry, subject: Descriptor) -> tuple[Attached, ...]:
    """What a registry lists for the subject; a list that names another subject raises MalformedManifest."""
    found = []
    for artifact_type, (count, limit) in _CARRIED.items():
        for listed in registry.referrers(subject.digest, artifact_type)[-count:]:
            content = registry.get_manifest(str(listed.digest))
            document = oci.read(content, MANIFEST_TYPE)
            about = None if document.subject is None else document.subject.digest
            few = len(document.children) <= _MAX_CHILDREN
            if about != subject.digest or document.artifact_type != artifact_type or not few:
                raise MalformedManifest(
                    f"Expected {listed.digest} to be {artifact_type} about {subject.digest}, found another; "
                    "remove it from the registry, then try again."
                )
            blobs = tuple(read_blob(registry, blob, artifact_type, limit) for blob in document.children)
            found.append(Attached(artifact_type, content, document.annotations, blobs))
    return tuple(found)


def facts_among(attached: Iterable[Attached]) -> ModelFacts | None:
    for each in attached:
        if each.artifact_type == ARTIFACT_TYPE and each.blobs:
            return ModelFacts.parse(each.blobs[-1])
    return None


def referrers_root(to: Unfinished, model: Root, attached: Sequence[Attached]) -> Root | None:
    """Stores what is attached and its list; the root under which the list travels, if there is anything."""
    if not attached:
        return None
    for each in attached:
        for blob in each.blobs:
            to.put_blob(blob)
        to.put_document(each.content)
    ordered = sorted(attached, key=lambda each: (each.artifact_type, Digest.of(each.content)))
    manifests: list[Json] = [each.as_json() for each in ordered]
    index = canonical_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})
    to.put_document(index)
    tag = fallback_tag(model.descriptor.digest)
    return Root(Kind.REFERRERS, Descriptor.of(INDEX_TYPE, index), repository=model.repository, tag=tag)
