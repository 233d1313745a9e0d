# SPDX-License-Identifier: Apache-2.0
"""Whether what is rendered is in force: a hash that goes onto the object, and a comparison with the live one.

KubeRay and the API server write defaults into what we applied, so equality would see a difference forever.
What we rendered has to be *contained* in what lives: maps as subsets, lists of the same length element by
element. That is why the builders emit canonical quantities and no null, empty or zero values: those come back
changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sovereign_operator.api import ANNOTATION_RENDERED
from sovereign_operator.values import Manifest


def rendered_hash(manifest: Mapping[str, Any]) -> str:
    """16 hex digits of what was rendered, whatever the order of its keys and whatever it was stamped with."""
    metadata = manifest.get("metadata")
    if isinstance(metadata, Mapping) and ANNOTATION_RENDERED in (metadata.get("annotations") or {}):
        annotations = {k: v for k, v in metadata["annotations"].items() if k != ANNOTATION_RENDERED}
        rest = {key: value for key, value in metadata.items() if key != "annotations"}
        manifest = dict(manifest) | {"metadata": rest | ({"annotations": annotations} if annotations else {})}
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_hash(manifest: Manifest) -> Manifest:
    """The manifest with its hash as an annotation."""
    metadata = dict(manifest["metadata"])
    metadata["annotations"] = dict(metadata.get("annotations") or {}) | {
        ANNOTATION_RENDERED: rendered_hash(manifest)
    }
    return dict(manifest) | {"metadata": metadata}


def contains(live: Any, rendered: Any) -> bool:
    """Whether everything that was rendered is in force in the live tree."""
    if isinstance(rendered, Mapping):
        return isinstance(live, Mapping) and all(
            key in live and contains(live[key], value) for key, value in rendered.items()
        )
    if isinstance(rendered, list | tuple):
        return (
            isinstance(live, list | tuple)
            and len(live) == len(rendered)
            and all(contains(one, other) for one, other in zip(live, rendered, strict=True))
        )
    # True == 1 in Python, and not in a manifest.
    return type(live) is type(rendered) and bool(live == rendered)


def surplus(live: Mapping[str, Any], rendered: Mapping[str, Any]) -> Manifest:
    """The merge patch (RFC 7396) that leaves nothing in the live map but what was rendered; empty where
    nothing was added. What is missing there is put in by an apply."""
    patch: Manifest = {}
    for key, value in live.items():
        wanted = rendered.get(key)
        if isinstance(value, Mapping) and isinstance(wanted, Mapping):
            if inner := surplus(value, wanted):
                patch[key] = inner
        elif value != wanted:
            patch[key] = wanted
    return patch


def defects(manifest: Any, path: str = "") -> list[str]:
    """Paths of values that do not come back from the API server as they were sent: null, empty, zero."""
    if isinstance(manifest, Mapping) and manifest:
        return [found for key, value in manifest.items() for found in defects(value, f"{path}.{key}")]
    if isinstance(manifest, list | tuple) and manifest:
        return [found for i, value in enumerate(manifest) for found in defects(value, f"{path}[{i}]")]
    absent = (
        manifest is None or manifest == "" or (isinstance(manifest, list | tuple | Mapping) and not manifest)
    )
    zero = isinstance(manifest, int) and not isinstance(manifest, bool) and manifest == 0
    return [path] if absent or zero else []
