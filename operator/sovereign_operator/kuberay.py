# SPDX-License-Identifier: Apache-2.0
"""Which KubeRay the cluster has, read from what the API server says it serves.

The operator may not list CRDs, and a version number in a Deployment's image tag says nothing on a cluster
with its own builds. The published schema does: token authentication and suspend are fields of RayService.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Any, Final

from sovereign_operator.values import Manifest

GROUP_VERSION: Final = "ray.io/v1"
# How long "no" or "too old" is believed. "Yes" is believed until the API server refuses a RayService.
RECHECK_SECONDS: Final = 30.0
# What the watches need to be there.
KINDS: Final = frozenset({"rayservices", "rayclusters"})
# Fields of RayService.spec that 1.7 has and older ones lack.
WANTED: Final = (("suspend",), ("rayClusterConfig", "authOptions"))


class KubeRay(Enum):
    SUPPORTED = "supported"
    TOO_OLD = "too old"
    MISSING = "missing"


def detect(document: Mapping[str, Any] | None) -> KubeRay:
    """From the OpenAPI v3 document of ray.io/v1, or None where the group is not served."""
    schemas = ((document or {}).get("components") or {}).get("schemas") or {}
    for schema in schemas.values():
        for kind in schema.get("x-kubernetes-group-version-kind") or ():
            if kind.get("group") == "ray.io" and kind.get("kind") == "RayService":
                return KubeRay.SUPPORTED if _has_all(schema, schemas) else KubeRay.TOO_OLD
    return KubeRay.MISSING


def _has_all(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> bool:
    return all(_has(schema, ("spec", *path), schemas) for path in WANTED)


def _has(schema: Mapping[str, Any], path: tuple[str, ...], schemas: Mapping[str, Any]) -> bool:
    for name in path:
        found = (schema.get("properties") or {}).get(name)
        if found is None:
            return False
        schema = _resolve(found, schemas)
    return True


def _resolve(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follows a local reference; a field with a default wraps its reference in allOf."""
    for part in (schema, *(schema.get("allOf") or ())):
        if "$ref" in part:
            resolved: Mapping[str, Any] = schemas.get(part["$ref"].rpartition("/")[2]) or {}
            return resolved
    return schema


class KubeRayState:
    """Remembers the answer, so that a steady state asks nothing."""

    def __init__(self, openapi: Callable[[str], Awaitable[Manifest | None]]) -> None:
        self._openapi = openapi
        self._known: KubeRay | None = None
        self._asked = 0.0
        self._asking = asyncio.Lock()

    async def state(self) -> KubeRay:
        """One request at most per RECHECK_SECONDS while KubeRay is missing or too old, none afterwards."""
        async with self._asking:
            now = asyncio.get_running_loop().time()
            fresh = self._known is KubeRay.SUPPORTED or now - self._asked < RECHECK_SECONDS
            if self._known is None or not fresh:
                self._known, self._asked = detect(await self._openapi(GROUP_VERSION)), now
            return self._known

    def doubt(self) -> None:
        """Ask again at the next opportunity: the API server did not know the kind."""
        self._known = None
