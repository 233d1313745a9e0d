# SPDX-License-Identifier: Apache-2.0
"""What the in-cluster registry holds: the truth about mirrored artifacts. Reads only, by the read-only listener.

A commit's tag is asked each time, because it is what a mirror Job creates; what lies under a digest never
changes, so it is read once. HEAD proves existence, never integrity: every manifest that is read is hashed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
from pydantic import ValidationError

from sovereign_airgap.facts import ARTIFACT_TYPE as FACTS_TYPE
from sovereign_airgap.facts import ModelFacts
from sovereign_operator import reasons
from sovereign_operator.config import RegistryConfig
from sovereign_operator.values import Artifact

logger = logging.getLogger(__name__)

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MODEL_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
REVISION: Final = "org.opencontainers.image.revision"
_MAX_MANIFEST: Final = 4 * 1024 * 1024
_MAX_FACTS: Final = 1024 * 1024
_REMEMBERED: Final = 4096
_TIMEOUT = aiohttp.ClientTimeout(total=15.0, sock_connect=5.0)


@dataclass(frozen=True, slots=True)
class NotThere:
    """The registry answered, and has no such artifact."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The registry gave no usable answer: a reason from `reasons.py` and a sentence."""

    reason: str
    message: str


Found = Artifact | NotThere | Unreadable


class _Absent(Exception):
    """404."""


class RegistryReader:
    """Reads artifacts from one registry and remembers what cannot change."""

    def __init__(self, session: aiohttp.ClientSession, config: RegistryConfig) -> None:
        self._session = session
        self._host = config.host
        self._base = f"{'http' if config.plain_http else 'https'}://{config.host}/v2"
        self._known: OrderedDict[tuple[str, str], Artifact] = OrderedDict()

    async def find(self, repository: str, target: str) -> Found:
        """The artifact that a commit's tag names, or that a digest is."""
        try:
            digest = await self._head(repository, target)
            return await self._artifact(repository, digest)
        except _Absent:
            return NotThere()
        except _Malformed as error:
            return Unreadable(reasons.ARTIFACT_MALFORMED, f"{repository}: {error}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            words = str(error) or type(error).__name__
            return Unreadable(
                reasons.REGISTRY_UNAVAILABLE,
                f"The registry {self._host} did not answer for {repository}: {words[:300]}. Nothing that is "
                "served changes; it is asked again.",
            )

    async def _artifact(self, repository: str, digest: str) -> Artifact:
        known = self._known.get((repository, digest))
        if known is None:
            body = await self._manifest(repository, digest, MANIFEST_TYPE)
            known = artifact_of(repository, digest, _object(body))
        if known.facts is None:
            known = replace(known, facts=await self._facts(repository, digest))
        self._known[(repository, digest)] = known
        self._known.move_to_end((repository, digest))
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return known

    async def _facts(self, repository: str, digest: str) -> ModelFacts | None:
        """The model facts referrer by its fallback tag. None where there is none that we can read."""
        try:
            tag = digest.replace(":", "-", 1)
            index = _object(await self._get(f"{repository}/manifests/{tag}", INDEX_TYPE, _MAX_MANIFEST))
            for entry in reversed(index.get("manifests") or []):
                if entry.get("artifactType") == FACTS_TYPE:
                    manifest = _object(await self._manifest(repository, str(entry["digest"]), MANIFEST_TYPE))
                    blob = str(manifest["layers"][0]["digest"])
                    body = await self._get(f"{repository}/blobs/{blob}", "*/*", _MAX_FACTS)
                    _check(blob, body)
                    return ModelFacts.model_validate_json(body)
        except _Absent:
            return None
        except (_Malformed, ValidationError, KeyError, IndexError, TypeError, AttributeError) as error:
            logger.warning("%s@%s: its facts cannot be read: %s", repository, digest, error)
        return None

    async def _head(self, repository: str, target: str) -> str:
        headers = {"Accept": MANIFEST_TYPE}
        url = f"{self._base}/{repository}/manifests/{target}"
        async with self._session.head(url, headers=headers, timeout=_TIMEOUT) as answer:
            _expect(answer)
            digest = answer.headers.get("Docker-Content-Digest", "")
        if not digest.startswith("sha256:"):
            raise _Malformed(f"the registry named no sha256 digest for {target}")
        if target.startswith("sha256:") and digest != target:
            raise _Malformed(f"the registry answered {target} with {digest}")
        return digest

    async def _manifest(self, repository: str, digest: str, accept: str) -> bytes:
        body = await self._get(f"{repository}/manifests/{digest}", accept, _MAX_MANIFEST)
        _check(digest, body)
        return body

    async def _get(self, path: str, accept: str, limit: int) -> bytes:
        headers = {"Accept": accept}
        async with self._session.get(f"{self._base}/{path}", headers=headers, timeout=_TIMEOUT) as answer:
            _expect(answer)
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise _Malformed(f"{path} is larger than {limit} bytes")
        return bytes(body)


class _Malformed(Exception):
    """The registry answered with something that is not what we would have written."""


def artifact_of(repository: str, digest: str, manifest: Mapping[str, Any]) -> Artifact:
    """The artifact behind a model manifest. Raises where it is not the manifest of a model."""
    if manifest.get("artifactType") != MODEL_TYPE:
        raise _Malformed(f"{digest} is no model artifact (artifactType {manifest.get('artifactType')!r})")
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not layers:
        raise _Malformed(f"{digest} has no files")
    try:
        size = sum(int(layer["size"]) for layer in layers)
    except (KeyError, TypeError, ValueError):
        raise _Malformed(f"{digest} has a layer without a size") from None
    return Artifact(
        reference=f"{repository}@{digest}",
        digest=digest,
        bytes=size,
        files=len(layers),
        revision=str((manifest.get("annotations") or {}).get(REVISION, "")),
    )


def _expect(answer: aiohttp.ClientResponse) -> None:
    if answer.status == 404:
        raise _Absent
    if answer.status != 200:
        raise aiohttp.ClientError(f"status {answer.status} instead of 200")


def _check(digest: str, body: bytes) -> None:
    actual = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if actual != digest:
        raise _Malformed(f"expected {digest}, the registry sent bytes that hash to {actual}")


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise _Malformed(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _Malformed("not a JSON object")
    return value
