# SPDX-License-Identifier: Apache-2.0
"""What one commit of the Hub holds, read through huggingface_hub.

The library is told to use our client, our endpoint and our token and nothing that lies around in the
environment: no cached login, no proxy variable, no offline switch. The token goes to the endpoint's origin
only, also when an answer names the next page elsewhere.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, runtime_checkable

import httpx2
import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import default_client_factory

from sovereign_airgap.control import WholeExchange
from sovereign_airgap.digest import Digest, git_blob_id, lfs_pointer
from sovereign_airgap.errors import (
    DigestMismatch,
    FileTooLarge,
    InvalidReference,
    RevisionNotFound,
    SizeMismatch,
    SourceChanged,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
    SovereignError,
    Stalled,
    TooManyFiles,
)
from sovereign_airgap.names import MAX_FILES
from sovereign_airgap.reference import HubReference
from sovereign_airgap.wire import (
    USER_AGENT,
    Origin,
    Wire,
    certificate_error_in,
    certificate_unknown,
    retry_after_of,
)

_log = logging.getLogger(__name__)
_BLOB_ID = re.compile(r"[0-9a-f]{40}")
_RATE_LIMIT = re.compile(r'"\w{1,40}"\s*;\s*r=0\s*;\s*t=([0-9]{1,6})')
# A listing has folders, too, and the hub gives 1,000 entries at a time: some 500 bytes each, mirrors fewer
# at a time. What is larger is no repository that we would take.
_MAX_ENTRIES = 4 * MAX_FILES
_MAX_ANSWERS = 500
_MAX_BYTES = 16 * 1024 * 1024
# How many times the stall limit one answer may take in all.
_STALLS_PER_ANSWER = 10
# huggingface_hub keeps one client for the whole process: it is set, used and dropped under this lock.
_LISTING = threading.Lock()


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the Hub lists it. `sha256` is known for LFS and Xet files only."""

    path: str
    size: int
    blob_id: str
    sha256: Digest | None


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of one commit, under the canonical id of the repository."""

    source: HubReference
    files: tuple[HubFile, ...]


@runtime_checkable
class _Response(Protocol):
    status_code: int
    headers: Mapping[str, str]


class _Passing(Exception):
    """A failure that another try may not meet."""

    def __init__(self, error: SovereignError, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


class _Broken(Exception):
    """An exchange broke off; the cause says how. The library retries its own kinds, in its own time."""


def list_commit(endpoint: str, source: HubReference, token: str | None, wire: Wire) -> Listing:
    """Lists a commit, trying again where that may help."""
    patience = wire.pace.patience
    failures = 0
    while True:
        wire.pace.check()
        try:
            with _LISTING:
                return _try(endpoint, source, token, wire)
        except _Passing as passing:
            failures += 1
            if failures >= patience.attempts:
                raise passing.error from passing.__cause__
            pause = patience.pause(failures, passing.after)
            _log.info("hub: %s Trying again in %.1f s", passing.error, pause)
            wire.pace.sleep(pause)


def _try(endpoint: str, source: HubReference, token: str | None, wire: Wire) -> Listing:
    origin = Origin.of(endpoint)
    huggingface_hub.set_client_factory(lambda: _client(origin, source, wire))
    try:
        return _list(endpoint, source, token, wire)
    except hub_errors.HfHubHTTPError as error:
        raise _explained(error, endpoint, source, token) from error
    except (_Broken, httpx2.HTTPError, OSError) as caught:
        cause = caught.__cause__ if isinstance(caught, _Broken) and caught.__cause__ else caught
        unknown = certificate_error_in(cause)
        if unknown is not None:
            raise certificate_unknown(origin, unknown, wire.ca_option) from caught
        kind = Stalled if isinstance(cause, httpx2.ReadTimeout) else SourceUnavailable
        found = f"{type(cause).__name__}: {str(cause)[:200].rstrip('.')}"
        raise _Passing(
            kind(
                f"Expected a listing of {source} from {origin}, found {found}; check that the hub is "
                "reachable from here."
            )
        ) from caught
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise SourceUnavailable(
            f"Expected a listing of {source} from {origin}, found an answer that is none "
            f"({type(error).__name__}); check --endpoint."
        ) from error
    finally:
        huggingface_hub.close_session()
        huggingface_hub.set_client_factory(default_client_factory)


def _list(endpoint: str, source: HubReference, token: str | None, wire: Wire) -> Listing:
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token or False, user_agent=USER_AGENT)
    info = api.model_info(source.repo, revision=source.revision, timeout=wire.pace.patience.stall)
    if info.sha != source.revision:
        raise SourceChanged(
            f"Expected {Origin.of(endpoint)} to answer for commit {source.revision}, found "
            f"{str(info.sha)[:60]!r}."
        )
    try:
        canonical = HubReference(info.id, source.revision)
    except InvalidReference as error:
        raise SourceChanged(f"Expected the id of a repository, found {str(info.id)[:100]!r}.") from error
    files = []
    entries = api.list_repo_tree(canonical.repo, recursive=True, revision=source.revision)
    for count, entry in enumerate(entries, 1):
        if isinstance(entry, RepoFile):
            files.append(_file(entry))
        if len(files) > MAX_FILES:
            raise TooManyFiles(f"Expected at most {MAX_FILES} files in {source}, found more.")
        if count > _MAX_ENTRIES:
            raise TooManyFiles(f"Expected at most {_MAX_ENTRIES} files and folders in {source}, found more.")
    return Listing(canonical, tuple(sorted(files, key=lambda file: file.path.encode("utf-8", "replace"))))


def _client(origin: Origin, source: HubReference, wire: Wire) -> httpx2.Client:
    def keep_home(request: httpx2.Request) -> None:
        wire.pace.check()
        if Origin.of(str(request.url)) != origin:
            request.headers.pop("Authorization", None)
            request.headers.pop("Cookie", None)

    return httpx2.Client(
        transport=_Answers(source, wire),
        trust_env=False,
        follow_redirects=True,
        max_redirects=5,
        headers={"Accept-Encoding": "identity"},
        event_hooks={"request": [keep_home]},
    )


class _Answers(WholeExchange):
    """The hub's answers to one listing: bounded in number, bytes and time.

    Left to itself the library asks for pages as long as each names another, without any timeout, and waits
    between them for as long as the hub tells it to.
    """

    def __init__(self, source: HubReference, wire: Wire) -> None:
        stall = wire.pace.patience.stall
        super().__init__(wire.tls, _STALLS_PER_ANSWER * stall)
        self._source = source
        self._limits = httpx2.Timeout(stall, connect=wire.pace.patience.connect).as_dict()
        self._answers = 0
        self._bytes = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self._answers += 1
        if self._answers > _MAX_ANSWERS:
            raise TooManyFiles(f"Expected {self._source} to be listed in {_MAX_ANSWERS} answers, found more.")
        request.extensions["timeout"] = self._limits
        try:
            response = super().handle_request(request)
        except httpx2.TransportError as error:
            raise _Broken from error
        try:
            self._require_readable(response, Origin.of(str(request.url)))
        except BaseException:
            response.close()
            raise
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _Counted(response.stream, self._count)
        return response

    def _require_readable(self, response: httpx2.Response, origin: Origin) -> None:
        status = response.status_code
        if status >= 500 or status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
            raise _Passing(_unavailable(self._source, origin, status), _after(response.headers))
        # The bytes that are counted must be those that are kept.
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise SourceUnavailable(
                f"Expected {origin} to list {self._source} in plain JSON, found it compressed, which we have "
                "not asked for; check --endpoint."
            )

    def _count(self, more: int) -> None:
        self._bytes += more
        if self._bytes > _MAX_BYTES:
            raise FileTooLarge(
                f"Expected a listing of {self._source} of at most {_MAX_BYTES} bytes, found more."
            )


class _Counted(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, count: Callable[[int], None]) -> None:
        self._stream = stream
        self._count = count

    def __iter__(self) -> Iterator[bytes]:
        try:
            for piece in self._stream:
                self._count(len(piece))
                yield piece
        except httpx2.TransportError as error:
            raise _Broken from error

    def close(self) -> None:
        self._stream.close()


def _explained(
    error: hub_errors.HfHubHTTPError, endpoint: str, source: HubReference, token: str | None
) -> SovereignError:
    origin = Origin.of(endpoint)
    # Order matters: to the library a gated repository is also a kind of missing repository.
    if isinstance(error, hub_errors.GatedRepoError):
        return gated(endpoint, source.repo)
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return RevisionNotFound(
            f"{origin} has {source.repo}, but not the commit {source.revision}; check the revision."
        )
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        seen = "with this token" if token else "without a token"
        return SourceNotFound(
            f"{origin} shows no repository {source.repo} {seen}; check the name, or give a token that may "
            "read it."
        )
    response: object = error.response
    if not isinstance(response, _Response):
        return SourceUnavailable(f"Expected a listing of {source} from {origin}, found no answer.")
    status = response.status_code
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return forbidden(endpoint, source.repo, status)
    return _unavailable(source, origin, status)


def _unavailable(source: HubReference, origin: Origin, status: int) -> SourceUnavailable:
    return SourceUnavailable(
        f"Expected a listing of {source} from {origin}, found status {status}; try again later."
    )


def _after(headers: Mapping[str, str]) -> float | None:
    """The pause that the hub asks for, in either of its ways."""
    limit = _RATE_LIMIT.search(headers.get("RateLimit", "")[:200])
    return float(limit[1]) if limit is not None else retry_after_of(headers.get("Retry-After"))


def gated(endpoint: str, repo: str) -> SourceForbidden:
    return SourceForbidden(
        f"{repo} is gated: accept its licence at {endpoint}/{repo} and give a token of that account."
    )


def forbidden(endpoint: str, repo: str, status: int) -> SourceForbidden:
    return SourceForbidden(
        f"{Origin.of(endpoint)} answers {status} for {repo}; give a token that may read it, and accept the "
        f"licence at {endpoint}/{repo} if it is gated."
    )


def _file(entry: RepoFile) -> HubFile:
    size, blob_id = entry.size, entry.blob_id
    if not isinstance(size, int) or isinstance(size, bool) or size < 0 or not isinstance(entry.path, str):
        raise ValueError("a file without path and size")
    if not isinstance(blob_id, str) or not _BLOB_ID.fullmatch(blob_id):
        raise ValueError("a file without a git blob id")
    if entry.lfs is None:
        return HubFile(entry.path, size, blob_id, None)
    if entry.lfs.size != size:
        raise SizeMismatch(
            f"Expected one size for {entry.path!a}, found {size} and {entry.lfs.size} in the listing."
        )
    sha256 = Digest(entry.lfs.sha256)
    pointer = git_blob_id(lfs_pointer(sha256.hex, size))
    if pointer != blob_id:
        raise DigestMismatch(
            f"Expected the commit to hold the pointer {pointer} to {sha256} for {entry.path!a}, found "
            f"the blob {blob_id}; the hub's listing contradicts the commit."
        )
    return HubFile(entry.path, size, blob_id, sha256)
