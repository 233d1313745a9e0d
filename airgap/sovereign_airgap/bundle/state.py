# SPDX-License-Identifier: Apache-2.0
"""What was loaded: one record per bundle name in the target registry, against going back to an old version.

An old bundle is signed as well as a new one, so a signature alone lets anybody who kept one bring its defects
back. The record names what is loaded now, and per key the highest version that it has ever vouched for.
It is as trustworthy as the registry: who may write there may also remove it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from sovereign_airgap import oci, strict_json
from sovereign_airgap.blobs import read_blob
from sovereign_airgap.bundle.index import Index
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import InvalidReference, MalformedManifest, OlderVersion
from sovereign_airgap.manifest import MANIFEST_TYPE, Descriptor, canonical_json
from sovereign_airgap.registry import Registry
from sovereign_airgap.strict_json import Json
from sovereign_airgap.uploads import put_blob

ARTIFACT_TYPE = "application/vnd.sovereign.bundle.state.v1+json"
INDEX_BLOB_TYPE = "application/vnd.sovereign.bundle.index.v1+json"
_STATE_BYTES = 1024 * 1024
_MAX_KEYS = 256
# Stands for bundles that were loaded without a key.
UNSIGNED = "unsigned"


@dataclass(frozen=True, slots=True)
class Seen:
    """The highest version under one key."""

    version: int
    index: Digest


@dataclass(frozen=True, slots=True)
class State:
    """`version` and `index` are what is loaded now, `keys` the highest that each key's id has vouched for."""

    name: str
    version: int
    index: Digest
    keys: Mapping[str, Seen] = field(default_factory=dict)

    def encode(self) -> bytes:
        keys: dict[str, Json] = {
            key: {"version": seen.version, "index": str(seen.index)} for key, seen in self.keys.items()
        }
        return canonical_json(
            {"name": self.name, "version": self.version, "index": str(self.index), "keys": keys}
        )

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Raises MalformedManifest."""
        try:
            document = strict_json.load_object(content)
            raw = document.get("keys")
            if not isinstance(raw, dict) or len(raw) > _MAX_KEYS:
                raise MalformedManifest(f"Expected a record with at most {_MAX_KEYS} keys, found none.")
            keys = {key: _seen(value) for key, value in raw.items()}
            now = _seen(document)
        except (strict_json.NotStrict, InvalidReference) as error:
            raise MalformedManifest(f"Expected the record of a load, found: {str(error)[:200]}.") from error
        return cls(str(document.get("name")), now.version, now.index, keys)


def require_not_older(state: State | None, index: Index, digest: Digest, trusted: Sequence[str]) -> None:
    """Raises OlderVersion where a key that the site trusts, whether it has signed this bundle or not, has
    vouched for a higher version, or for another bundle of the same version. Who carries a bundle can remove
    a signature from it, and a retired key signs on. What was loaded without keys counts always; a bundle
    loaded without keys is compared with the highest of all."""
    if state is None:
        return
    heard = {UNSIGNED, *trusted}
    relevant = [seen for key, seen in state.keys.items() if not trusted or key in heard]
    for seen in relevant:
        if seen.version > index.version:
            raise OlderVersion(
                f"Expected version {seen.version} or later of the bundle {index.name}, found version "
                f"{index.version}; load a newer one, or this one with --allow-downgrade."
            )
        if seen.version == index.version and seen.index != digest:
            raise OlderVersion(
                f"Expected version {index.version} of the bundle {index.name} to be {seen.index} as it was "
                f"loaded before, found {digest}; raise the version, or load it with --allow-downgrade."
            )


def after(state: State | None, index: Index, digest: Digest, signed_by: Sequence[str]) -> State:
    """The record once this bundle is loaded: the highest versions stay, also after a downgrade."""
    keys = {} if state is None else dict(state.keys)
    for key in signed_by or (UNSIGNED,):
        before = keys.get(key)
        if before is None or before.version <= index.version:
            keys[key] = Seen(index.version, digest)
    return State(index.name, index.version, digest, keys)


@dataclass(frozen=True, slots=True)
class Record:
    """A state with the index that it was made from, and the manifest's children."""

    state: State
    index_blob: Descriptor | None


def recorded(registry: Registry, name: str) -> Record | None:
    """What `sovereign/state` says about the bundle `name`; None where it was never loaded."""
    content = registry.find_manifest(name)
    if content is None:
        return None
    document = oci.read(content, MANIFEST_TYPE)
    config = document.children[0]
    if document.artifact_type != ARTIFACT_TYPE or config.media_type != ARTIFACT_TYPE:
        raise MalformedManifest(
            f"Expected the record of a load behind {registry.repository}:{name}, found something else; "
            "find out who wrote it, then remove it."
        )
    state = State.parse(read_blob(registry, config, f"the record of {name}", _STATE_BYTES))
    if state.name != name:
        raise MalformedManifest(f"Expected the record of {name}, found that of {ascii(state.name)[:80]}.")
    blobs = [child for child in document.children if child.media_type == INDEX_BLOB_TYPE]
    return Record(state, blobs[0] if len(blobs) == 1 else None)


def record(registry: Registry, state: State, index_content: bytes, layers: Sequence[dict[str, Json]]) -> None:
    """Writes the record; `layers` are further descriptors whose blobs the repository holds already."""
    config = state.encode()
    put_blob(registry, config)
    put_blob(registry, index_content)
    children: list[Json] = [Descriptor.of(INDEX_BLOB_TYPE, index_content).as_json(), *layers]
    registry.put_manifest(
        state.name,
        canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": ARTIFACT_TYPE,
                "config": Descriptor.of(ARTIFACT_TYPE, config).as_json(),
                "layers": children,
            }
        ),
    )


def _seen(raw: Json) -> Seen:
    if not isinstance(raw, dict):
        raise MalformedManifest("Expected a version and an index in the record of a load, found neither.")
    version, index = raw.get("version"), raw.get("index")
    if not isinstance(version, int) or isinstance(version, bool) or not 0 < version < 10**9:
        raise MalformedManifest(f"Expected a version in the record of a load, found {version!r:.40}.")
    return Seen(version, Digest.parse(index if isinstance(index, str) else ""))
