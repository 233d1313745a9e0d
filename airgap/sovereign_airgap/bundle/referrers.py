# SPDX-License-Identifier: Apache-2.0
"""The list of what refers to a model, where a registry keeps it behind a tag: two lists become one.

The registry may know signatures that the bundle does not bring, and the other way round: both stay. Of what
there is one of (the facts, one key's signature) the bundle's stays, which was checked with everything else.
"""

from __future__ import annotations

from collections.abc import Callable

from sovereign_airgap import strict_json
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import MalformedManifest
from sovereign_airgap.manifest import INDEX_TYPE, canonical_json
from sovereign_airgap.strict_json import Json

_MAX_ENTRIES = 1000
# Of these types a list has one entry for each set of annotations; what others mean by two is theirs.
_OURS = "application/vnd.sovereign."


def merged(
    before: bytes | None, ours: bytes, artifact_types: dict[str, str], is_there: Callable[[Digest], bool]
) -> bytes:
    """The index that lists both, as it was where nothing is new; raises MalformedManifest.

    `artifact_types` tells those of our entries, by digest, where the list itself does not. `is_there` says
    whether the registry still holds what an older entry names: it refuses a list with one that it lacks.
    """
    if before is None:
        return ours
    kept = _entries(before)
    brought = [_typed(entry, artifact_types) for entry in _entries(ours)]
    known = {str(entry.get("digest")) for entry in kept}
    new = [entry for entry in brought if entry.get("digest") not in known]
    if not new:
        return before
    replaced = [_seat(entry) for entry in new if _seat(entry) is not None]
    entries: list[Json] = [
        entry
        for entry in kept
        if _seat(entry) not in replaced and is_there(Digest.parse(str(entry.get("digest"))))
    ]
    entries += new
    if len(entries) > _MAX_ENTRIES:
        raise MalformedManifest(f"Expected at most {_MAX_ENTRIES} referrers, found {len(entries)}.")
    return canonical_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries})


def _entries(index: bytes) -> list[dict[str, Json]]:
    try:
        manifests = strict_json.load_object(index).get("manifests")
    except strict_json.NotStrict as error:
        raise MalformedManifest(f"Expected a list of referrers, found: {str(error)[:200]}.") from error
    if not isinstance(manifests, list) or not all(isinstance(entry, dict) for entry in manifests):
        raise MalformedManifest("Expected a list of referrers, found an index without manifests.")
    return [entry for entry in manifests if isinstance(entry, dict)]


def _seat(entry: dict[str, Json]) -> tuple[str, Json] | None:
    """What only one entry of our types may have; None for entries of others."""
    artifact_type = entry.get("artifactType")
    if not isinstance(artifact_type, str) or not artifact_type.startswith(_OURS):
        return None
    return artifact_type, entry.get("annotations") or None


def _typed(entry: dict[str, Json], artifact_types: dict[str, str]) -> dict[str, Json]:
    told = artifact_types.get(str(entry.get("digest")))
    return entry if told is None or "artifactType" in entry else {**entry, "artifactType": told}
