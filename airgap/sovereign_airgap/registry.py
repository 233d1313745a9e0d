# SPDX-License-Identifier: Apache-2.0
"""A registry's control side: manifests, tags, the existence of blobs, the referrers' fallback tag.

Small requests (see control.py), each tried again with bounded pauses; the bytes of blobs go over wire.py
(see uploads.py and blobs.py). Nothing here follows a redirect with credentials.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Self

from sovereign_airgap import strict_json
from sovereign_airgap.auth import Authority, Credentials
from sovereign_airgap.control import ANSWER_BYTES, PASSING, Control, Reply
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import (
    ArtifactNotFound,
    DigestMismatch,
    MalformedManifest,
    RegistryBlobCorrupt,
    RegistryForbidden,
    RegistryUnavailable,
    Stalled,
    UnsafeRedirect,
)
from sovereign_airgap.manifest import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    Descriptor,
    canonical_json,
    fallback_tag,
)
from sovereign_airgap.oci import DOCUMENT_TYPES
from sovereign_airgap.pace import Pace
from sovereign_airgap.strict_json import Json
from sovereign_airgap.wire import LineBroken, Origin, Wire, retry_after_of, target_of

_log = logging.getLogger(__name__)
# Docker's types, too: an image may be of them, and distribution answers 400 to whoever does not take them.
_ACCEPT = ", ".join(sorted(DOCUMENT_TYPES))
_GONE_BAD = (
    "the registry's own copy is damaged and pushing again does not replace it; remove the blob from the "
    "registry's storage (registry verify --repair), then mirror again"
)


class Registry:
    """One repository of one registry. Threads may share it."""

    def __init__(
        self, base: str, repository: str, wire: Wire, pace: Pace, credentials: Credentials | None, push: bool
    ) -> None:
        self.base = base
        self.repository = repository
        self.origin = Origin.of(base)
        self.wire = wire
        self.pace = pace
        self.scope = f"repository:{repository}:{'pull,push' if push else 'pull'}"
        self._control = Control(wire)
        self.authority = Authority(self._control, self.origin, credentials)
        self._anonymous = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._control.close()

    def url(self, rest: str) -> str:
        return f"{self.base}/v2/{self.repository}/{rest}"

    # -- blobs ----------------------------------------------------------------------------------------------

    def has_blob(self, digest: Digest, size: int) -> bool:
        """Whether the registry holds the blob with this length. HEAD proves existence, never integrity."""
        reply = self.ask("HEAD", self.url(f"blobs/{digest}"))
        if reply.status in (301, 302, 303, 307, 308):
            return False  # a storage redirect tells no length: push, and let the registry deduplicate
        if reply.status != HTTPStatus.OK:
            return False
        length = reply.headers.get("content-length", "")
        if length != str(size):
            raise RegistryBlobCorrupt(
                f"Expected {self.origin} to hold {digest} with {size} bytes, found "
                f"{length or 'no length'}: {_GONE_BAD}."
            )
        return True

    # -- manifests ------------------------------------------------------------------------------------------

    def head_manifest(self, target: str) -> Digest | None:
        """The digest behind a tag, None where there is none."""
        reply = self.ask("HEAD", self.url(f"manifests/{target}"), {"Accept": _ACCEPT})
        if reply.status == HTTPStatus.NOT_FOUND:
            return None
        if reply.status != HTTPStatus.OK:
            raise self.unexpected("HEAD of a manifest", reply.status)
        named = reply.headers.get("docker-content-digest")
        return Digest.parse(named) if named else Digest.of(self.get_manifest(target))

    def get_manifest(self, target: str) -> bytes:
        """The bytes behind a tag or digest; with a digest they are checked against it."""
        content = self.find_manifest(target)
        if content is None:
            raise ArtifactNotFound(
                f"Expected {self.origin} to hold {self.repository} at {target[:100]}, found none; check "
                "the name, or mirror the model first."
            )
        return content

    def find_manifest(self, target: str) -> bytes | None:
        reply = self.ask(
            "GET", self.url(f"manifests/{target}"), {"Accept": _ACCEPT}, limit=MAX_MANIFEST_BYTES
        )
        if reply.status == HTTPStatus.NOT_FOUND:
            return None
        if reply.status != HTTPStatus.OK:
            raise self.unexpected("GET of a manifest", reply.status)
        found = Digest.of(reply.body)
        if ":" in target and target != str(found):
            raise DigestMismatch(
                f"Expected the manifest {target} from {self.origin}, found bytes of {found}; repair the "
                "registry or mirror the model again."
            )
        return reply.body

    def put_manifest(self, target: str, content: bytes, media_type: str = MANIFEST_TYPE) -> Reply:
        """Stores a manifest under a tag or digest; the registry must name the digest that we computed."""
        if len(content) > MAX_MANIFEST_BYTES:
            raise MalformedManifest(
                f"Expected a manifest of at most {MAX_MANIFEST_BYTES} bytes, found {len(content)}; narrow "
                "the selection."
            )
        reply = self.ask("PUT", self.url(f"manifests/{target}"), {"Content-Type": media_type}, content)
        if reply.status not in (HTTPStatus.CREATED, HTTPStatus.OK, HTTPStatus.ACCEPTED):
            raise self.unexpected(f"PUT of the manifest {target[:100]}", reply.status, reply.body)
        named = reply.headers.get("docker-content-digest", str(Digest.of(content)))
        if named != str(Digest.of(content)):
            raise DigestMismatch(
                f"Expected {self.origin} to store {Digest.of(content)}, found {named[:100]}."
            )
        return reply

    # -- referrers ------------------------------------------------------------------------------------------

    def referrers(self, subject: Digest, artifact_type: str) -> tuple[Descriptor, ...]:
        """Manifests that refer to the subject, from the API where there is one and the fallback tag else."""
        reply = self.ask(
            "GET", self.url(f"referrers/{subject}"), {"Accept": INDEX_TYPE}, limit=MAX_MANIFEST_BYTES
        )
        if reply.status == HTTPStatus.OK:
            entries = _entries(reply.body)
        elif reply.status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.BAD_REQUEST):
            entries = _entries(self.find_manifest(fallback_tag(subject)))
        else:
            raise self.unexpected("GET of referrers", reply.status)
        return tuple(_descriptor(entry) for entry in entries if entry.get("artifactType") == artifact_type)

    def put_referrer(
        self,
        subject: Digest,
        content: bytes,
        artifact_type: str,
        annotations: Mapping[str, str] | None = None,
    ) -> Digest:
        """Stores a manifest that names `subject`, and lists it under the fallback tag where nobody else does.

        Older referrers of the same artifact type and annotations are replaced in the list; annotations tell
        apart what must stand side by side, as signatures by several keys. Read-modify-write: two writers at
        once can lose one entry, which the next mirror (or signature) restores.
        """
        digest = Digest.of(content)
        reply = self.put_manifest(str(digest), content)
        if reply.headers.get("oci-subject") == str(subject):
            return digest
        tag = fallback_tag(subject)
        before = _entries(self.find_manifest(tag))
        entry: dict[str, Json] = {
            **Descriptor(MANIFEST_TYPE, digest, len(content)).as_json(),
            "artifactType": artifact_type,
        }
        if annotations:
            entry["annotations"] = {**annotations}
        others = [other for other in before if _place_of(other) != _place_of(entry)]
        if entry not in before or len(others) != len(before) - 1:
            manifests: list[Json] = [*others, entry]
            index = canonical_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})
            self.put_manifest(tag, index, INDEX_TYPE)
        return digest

    # -- requests -------------------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        limit: int = ANSWER_BYTES,
    ) -> Reply:
        """One control request: challenges answered, passing errors tried again, anything final returned."""
        failures = 0
        challenged = 0
        while True:
            self.pace.check()
            after: float | None = None
            stalled = False
            try:
                reply = self._once(method, url, headers or {}, content, limit)
                if reply.status == HTTPStatus.UNAUTHORIZED and challenged < 2:
                    self.authority.answer(reply.headers.get("www-authenticate", ""), self.scope)
                    challenged += 1
                    continue
                if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                    raise self.forbidden(method, reply.status)
                if reply.status not in PASSING:
                    return reply
                found = f"status {reply.status}"
                after = retry_after_of(reply.headers.get("retry-after"))
            except LineBroken as error:
                found, stalled = str(error), error.stalled
            failures += 1
            self.wait_or_give_up(failures, found, after, stalled)

    def ask_once(self, method: str, url: str) -> None:
        """One request whose failure does not matter; it is also sent while the run is being stopped."""
        with contextlib.suppress(LineBroken):
            self._once(method, url, {}, b"", ANSWER_BYTES, seconds=5.0)

    def wait_or_give_up(
        self, failures: int, found: str, after: float | None = None, stalled: bool = False
    ) -> None:
        """Sleeps before another try, or raises RegistryUnavailable (Stalled) once patience has ended."""
        patience = self.pace.patience
        if failures >= patience.attempts:
            kind = Stalled if stalled else RegistryUnavailable
            raise kind(
                f"Expected {self.origin} to answer, found {found.rstrip('.')} in {failures} attempts; "
                "check that the registry runs and is reachable from here."
            )
        pause = patience.pause(failures, after)
        _log.info("registry: %s, trying again in %.1f s", found, pause)
        self.pace.sleep(pause)

    def forbidden(self, what: str, status: int) -> RegistryForbidden:
        return RegistryForbidden(
            f"{self.origin} answers {status} to {what} in {self.repository}; check the login in the docker "
            f"config and its right to {'push' if 'push' in self.scope else 'pull'}."
        )

    def unexpected(self, what: str, status: int, body: bytes = b"") -> RegistryUnavailable:
        detail = body.decode("utf-8", "replace")[:200].strip()
        return RegistryUnavailable(
            f"Expected {self.origin} to accept {what}, found status "
            f"{status}{': ' + ascii(detail) if detail else ''}."
        )

    def locate(self, location: str | None, request_url: str) -> str:
        """The address that a Location means; another origin is refused, because it would get the bytes."""
        if not location:
            raise LineBroken(f"{self.origin} gave no Location")
        target, origin = target_of(request_url, location)
        if origin != self.origin:
            raise UnsafeRedirect(
                f"Expected uploads to stay at {self.origin}, found a Location at {origin}; set "
                "http.relativeurls in the registry's configuration."
            )
        return target

    def byte_headers(self) -> dict[str, str]:
        """Authorization for the byte path; asks first where a token is missing or has ended."""
        header = self.authority.header(self.scope)
        if header is None and not self._anonymous:
            self.ask("GET", f"{self.base}/v2/")
            header = self.authority.header(self.scope)
            self._anonymous = header is None
        return {} if header is None else {"Authorization": header}

    def challenged(self, www_authenticate: str | None) -> None:
        """Learns from a 401 on the byte path, for example because a token ended within a file."""
        self.authority.answer(www_authenticate or "", self.scope)

    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes,
        limit: int,
        seconds: float | None = None,
    ) -> Reply:
        sent = dict(headers)
        authorization = self.authority.header(self.scope)
        if authorization is not None:
            sent["Authorization"] = authorization
        return self._control.ask(method, url, sent, content, limit, seconds)


def _entries(index: bytes | None) -> list[dict[str, Json]]:
    if index is None:
        return []
    try:
        manifests = strict_json.load_object(index).get("manifests")
    except strict_json.NotStrict as error:
        raise MalformedManifest(f"Expected a list of referrers, found: {str(error)[:200]}.") from error
    if not isinstance(manifests, list):
        raise MalformedManifest("Expected a list of referrers, found an index without manifests.")
    return [entry for entry in manifests if isinstance(entry, dict)]


def _place_of(entry: dict[str, Json]) -> tuple[Json, Json]:
    """What only one entry of a list of referrers may have."""
    return entry.get("artifactType"), entry.get("annotations") or None


def _descriptor(entry: dict[str, Json]) -> Descriptor:
    media_type, digest, size = entry.get("mediaType"), entry.get("digest"), entry.get("size")
    if not isinstance(media_type, str) or not isinstance(digest, str) or not isinstance(size, int):
        raise MalformedManifest("Expected referrers with mediaType, digest and size, found one without.")
    return Descriptor(media_type, Digest.parse(digest), size)
