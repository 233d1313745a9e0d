# SPDX-License-Identifier: Apache-2.0
"""What the in-cluster registry holds: the truth about mirrored artifacts. Reads only, on the read-only side.

A commit's tag is asked each time, because it is what a mirror Job creates; what lies under a digest never
changes, so it is read once. HEAD proves existence, never integrity: every manifest that is read is hashed,
and facts count only where they agree with the model's own config.json.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import replace
from typing import Final

import aiohttp

from sovereign_airgap import strict_json
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import SovereignError
from sovereign_airgap.facts import ARTIFACT_TYPE as FACTS_TYPE
from sovereign_airgap.facts import ModelFacts, read_config, require_agreement
from sovereign_airgap.manifest import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    ModelManifest,
    fallback_tag,
)
from sovereign_airgap.reference import ArtifactReference
from sovereign_airgap.signing import referrer
from sovereign_airgap.signing.dsse import ENVELOPE_BYTES
from sovereign_airgap.strict_json import Json
from sovereign_operator import reasons
from sovereign_operator.config import RegistryConfig
from sovereign_operator.values import NOT_THERE, Artifact, Envelopes, Found, Unreadable

logger = logging.getLogger(__name__)

_MAX_SMALL_BLOB: Final = 1024 * 1024
_REMEMBERED: Final = 4096
# Signatures are a kilobyte; these bounds are for what somebody else may have put there.
_SIGNED_REMEMBERED: Final = 256
_MAX_SIGNATURES_BYTES: Final = 256 * 1024
# How registries without the referrers API say so.
_NO_API: Final = (400, 404, 405)
_TIMEOUT = aiohttp.ClientTimeout(total=15.0, sock_connect=5.0)


class _Absent(Exception):
    """404."""


class _WrongBytes(Exception):
    """The registry sent something else than the digest that was asked for."""


class RegistryReader:
    """Reads artifacts from one registry and remembers what cannot change."""

    def __init__(self, session: aiohttp.ClientSession, config: RegistryConfig) -> None:
        self._session = session
        self._host = config.host
        self._base = f"{'http' if config.plain_http else 'https'}://{config.host}/v2"
        self._known: OrderedDict[tuple[str, Digest], Artifact] = OrderedDict()
        # By artifact: its signatures when they were last listed, by the digest of their manifests.
        self._signed: OrderedDict[str, tuple[dict[Digest, bytes], Envelopes]] = OrderedDict()

    async def find(self, repository: str, target: str) -> Found:
        """The artifact that a commit's tag names, or that a digest is."""
        try:
            return await self._artifact(repository, await self._head(repository, target))
        except _Absent:
            return NOT_THERE
        except _WrongBytes as error:
            return Unreadable(reasons.ARTIFACT_MALFORMED, f"{repository}: {error}")
        except SovereignError as error:
            return Unreadable(error.reason, f"{repository}: {error}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return self._away(repository, error)

    async def signatures(self, reference: str) -> Envelopes | Unreadable:
        """The signatures beside an artifact, listed anew each time. A registry that is away takes none back:
        then it is what was listed last."""
        known, last = self._signed.get(reference, ({}, None))
        try:
            artifact = ArtifactReference.parse(reference)
            contents, defects = await self._signatures(artifact, known)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return last or self._away(reference, error)
        except (SovereignError, _WrongBytes, strict_json.NotStrict) as error:
            contents, defects = {}, [f"The signatures of {reference} cannot be listed: {error}"]
        found = Envelopes(reference, tuple(contents.values()), tuple(defects))
        self._signed[reference] = contents, found
        self._signed.move_to_end(reference)
        while len(self._signed) > _SIGNED_REMEMBERED:
            self._signed.popitem(last=False)
        return found

    async def _signatures(
        self, artifact: ArtifactReference, known: dict[Digest, bytes]
    ) -> tuple[dict[Digest, bytes], list[str]]:
        """What can be read, and what is wrong with the rest: one bad signature must not hide a good one."""
        contents: dict[Digest, bytes] = {}
        defects: list[str] = []
        listed = await self._referrers(artifact.repository, artifact.digest, referrer.SIGNATURE_TYPE)
        for entry in listed[-referrer.MAX_REFERRERS :]:
            if sum(map(len, contents.values())) > _MAX_SIGNATURES_BYTES:
                defects.append(f"The signatures of {artifact} are larger than {_MAX_SIGNATURES_BYTES} bytes.")
                break
            try:
                digest = Digest.parse(str(entry.get("digest")))
                contents[digest] = known.get(digest) or await self._envelope(artifact, digest)
            except _Absent:
                defects.append(f"A signature of {artifact} is listed and not there.")
            except (SovereignError, _WrongBytes) as error:
                defects.append(f"A signature of {artifact} cannot be read: {error}")
        return contents, defects

    async def _envelope(self, artifact: ArtifactReference, digest: Digest) -> bytes:
        repository = artifact.repository
        text = await self._by_digest(f"{repository}/manifests", digest, MANIFEST_TYPE, MAX_MANIFEST_BYTES)
        blob = referrer.envelope_of(text, artifact.digest)
        return await self._by_digest(f"{repository}/blobs", blob.digest, "*/*", ENVELOPE_BYTES)

    def _away(self, what: str, error: Exception) -> Unreadable:
        words = str(error) or type(error).__name__
        return Unreadable(
            reasons.REGISTRY_UNAVAILABLE,
            f"The registry {self._host} did not answer for {what}: {words[:300]}. What is served "
            "stays as it is; the registry is asked again.",
        )

    async def _artifact(self, repository: str, digest: Digest) -> Artifact:
        key = (repository, digest)
        known = self._known.get(key)
        if known is None or known.facts is None:
            body = await self._by_digest(f"{repository}/manifests", digest, MANIFEST_TYPE, MAX_MANIFEST_BYTES)
            manifest = ModelManifest.parse(body)
            known = Artifact(
                reference=f"{repository}@{digest}",
                digest=str(digest),
                bytes=manifest.size,
                files=len(manifest.layers),
                revision=manifest.revision,
            )
            known = replace(known, facts=await self._facts(repository, digest, manifest))
        self._known[key] = known
        self._known.move_to_end(key)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return known

    async def _facts(self, repository: str, digest: Digest, manifest: ModelManifest) -> ModelFacts | None:
        """The facts that refer to the artifact; None where there are none yet."""
        try:
            blob = await self._facts_blob(repository, digest)
            facts = ModelFacts.parse(blob) if blob is not None else None
            config = next((layer for layer in manifest.layers if layer.path == "config.json"), None)
            if facts is not None and config is not None:
                text = await self._by_digest(f"{repository}/blobs", config.digest, "*/*", _MAX_SMALL_BLOB)
                require_agreement(facts, read_config(text))
            return facts
        except _Absent:
            return None
        except (
            strict_json.NotStrict, AssertionError, KeyError, IndexError, TypeError, AttributeError
        ) as error:  # fmt: skip
            logger.warning("%s@%s: its facts cannot be read: %r", repository, digest, error)
            return None

    async def _facts_blob(self, repository: str, subject: Digest) -> bytes | None:
        for entry in reversed(await self._referrers(repository, subject, FACTS_TYPE)):
            digest = Digest.parse(str(entry["digest"]))
            text = await self._by_digest(f"{repository}/manifests", digest, MANIFEST_TYPE, MAX_MANIFEST_BYTES)
            layers = strict_json.load_object(text)["layers"]
            assert isinstance(layers, list)
            first = layers[0]
            assert isinstance(first, dict)
            blob = Digest.parse(str(first["digest"]))
            return await self._by_digest(f"{repository}/blobs", blob, "*/*", _MAX_SMALL_BLOB)
        return None

    async def _referrers(self, repository: str, subject: Digest, artifact_type: str) -> list[dict[str, Json]]:
        """What refers to a manifest: from the API where the registry has it, by the fallback tag else."""
        try:
            path = f"{repository}/referrers/{subject}"
            body = await self._get(path, INDEX_TYPE, absent=_NO_API, artifactType=artifact_type)
        except _Absent:
            try:
                body = await self._get(f"{repository}/manifests/{fallback_tag(subject)}", INDEX_TYPE)
            except _Absent:
                return []
        entries = strict_json.load_object(body).get("manifests")
        return [
            entry
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict) and entry.get("artifactType") == artifact_type
        ]

    async def _head(self, repository: str, target: str) -> Digest:
        headers = {"Accept": MANIFEST_TYPE}
        url = f"{self._base}/{repository}/manifests/{target}"
        async with self._session.head(url, headers=headers, timeout=_TIMEOUT) as answer:
            _expect(answer)
            digest = Digest.parse(answer.headers.get("Docker-Content-Digest", ""))
        if target.startswith("sha256:") and str(digest) != target:
            raise _WrongBytes(f"the registry answered {target} with {digest}")
        return digest

    async def _by_digest(self, path: str, digest: Digest, accept: str, limit: int) -> bytes:
        body = await self._get(f"{path}/{digest}", accept, limit)
        actual = Digest.of(body)
        if actual != digest:
            raise _WrongBytes(f"expected {digest}, the registry sent bytes that hash to {actual}")
        return body

    async def _get(
        self,
        path: str,
        accept: str,
        limit: int = MAX_MANIFEST_BYTES,
        absent: tuple[int, ...] = (404,),
        **query: str,
    ) -> bytes:
        async with self._session.get(
            f"{self._base}/{path}", params=query, headers={"Accept": accept}, timeout=_TIMEOUT
        ) as answer:
            _expect(answer, absent)
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise _WrongBytes(f"{path} is larger than {limit} bytes")
        return bytes(body)


def _expect(answer: aiohttp.ClientResponse, absent: tuple[int, ...] = (404,)) -> None:
    if answer.status in absent:
        raise _Absent
    if answer.status != 200:
        raise aiohttp.ClientError(f"status {answer.status} instead of 200")
