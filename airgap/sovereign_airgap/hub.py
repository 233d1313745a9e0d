# SPDX-License-Identifier: Apache-2.0
"""The Hub's side: what a commit holds, and the bytes of its files.

The listing comes through huggingface_hub, told to use our client, our endpoint and our token and nothing
that lies around in the environment. The bytes come by our own streaming GET in bounded windows.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from typing import Protocol, runtime_checkable
from urllib.parse import quote

import httpx2
import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import RepoFile

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
from sovereign_airgap.pace import Pace
from sovereign_airgap.reference import HubReference
from sovereign_airgap.wire import (
    USER_AGENT,
    Download,
    LineBroken,
    Origin,
    Wire,
    certificate_error_in,
    certificate_unknown,
    retry_after_of,
)

WINDOW_BYTES = 1 << 30
PUBLIC_ENDPOINT = "https://huggingface.co"
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_BLOB_ID = re.compile(r"[0-9a-f]{40}")
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


class WindowRefused(Exception):
    """The source answered a byte request with an error; `final` says that another try will not help."""

    def __init__(self, error: SovereignError, after: float | None = None, final: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after
        self.final = final


class SourceRestarted(Exception):
    """A 200 came to a request from the middle: the stream is at the file's start again."""


@runtime_checkable
class _Response(Protocol):
    status_code: int
    headers: Mapping[str, str]


class Hub:
    """One endpoint with one token. Threads may share it."""

    def __init__(
        self, endpoint: str, wire: Wire, pace: Pace, token: str | None = None, window: int = WINDOW_BYTES
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.origin = Origin.of(self.endpoint)
        self.pace = pace
        self.window = window
        self._wire = wire
        self._token = token

    # -- listing --------------------------------------------------------------------------------------------

    def list(self, source: HubReference) -> Listing:
        """Lists a commit; the id in the answer is the canonical one (repositories get renamed)."""
        failures = 0
        while True:
            try:
                return self._list_once(source)
            except (SourceUnavailable, Stalled) as error:
                # The library tries the pages of a tree again, but not the first question.
                failures += 1
                if failures >= self.pace.patience.attempts:
                    raise
                self.pace.sleep(self.pace.patience.pause(failures, _wish_of(error)))

    def _list_once(self, source: HubReference) -> Listing:
        # huggingface_hub keeps one client for the whole process: set, use and drop it under a lock.
        with _LISTING:
            huggingface_hub.set_client_factory(self._client)
            try:
                return self._list(source)
            except hub_errors.HfHubHTTPError as error:
                raise self._explain(error, source) from error
            except (httpx2.HTTPError, OSError) as error:
                unknown = certificate_error_in(error)
                if unknown is not None:
                    raise certificate_unknown(self.origin, unknown, self._wire.ca_option) from error
                kind = Stalled if isinstance(error, httpx2.ReadTimeout) else SourceUnavailable
                raise kind(
                    f"Expected a listing of {source} from {self.origin}, found {type(error).__name__}: "
                    f"{str(error)[:200].rstrip('.')}; check that the hub is reachable from here."
                ) from error
            except (KeyError, TypeError, ValueError) as error:
                raise SourceUnavailable(
                    f"Expected a listing of {source} from {self.origin}, found an answer that is none "
                    f"({type(error).__name__}); check --endpoint."
                ) from error
            finally:
                huggingface_hub.close_session()
                huggingface_hub.set_client_factory(httpx2.Client)

    def _list(self, source: HubReference) -> Listing:
        api = huggingface_hub.HfApi(endpoint=self.endpoint, token=self._token or False, user_agent=USER_AGENT)
        info = api.model_info(source.repo, revision=source.revision, timeout=self.pace.patience.stall)
        if info.sha != source.revision:
            raise SourceChanged(
                f"Expected {self.origin} to answer for commit {source.revision}, found "
                f"{str(info.sha)[:60]!r}."
            )
        try:
            canonical = HubReference(info.id, source.revision)
        except InvalidReference as error:
            raise SourceChanged(f"Expected the id of a repository, found {str(info.id)[:100]!r}.") from error
        files = []
        for entry in api.list_repo_tree(canonical.repo, recursive=True, revision=source.revision):
            if isinstance(entry, RepoFile):
                files.append(_file(entry))
            if len(files) > MAX_FILES:
                raise TooManyFiles(f"Expected at most {MAX_FILES} files in {source}, found more.")
        return Listing(canonical, tuple(sorted(files, key=lambda file: file.path.encode("utf-8", "replace"))))

    def _client(self) -> httpx2.Client:
        patience = self.pace.patience

        def keep_home(request: httpx2.Request) -> None:
            self.pace.check()
            if Origin.of(str(request.url)) != self.origin:
                # Also the next page of a listing: whoever sends us elsewhere does not get the token there.
                request.headers.pop("Authorization", None)
                request.headers.pop("Cookie", None)

        return httpx2.Client(
            verify=self._wire.tls,
            trust_env=False,
            follow_redirects=True,
            max_redirects=5,
            event_hooks={"request": [keep_home]},
            timeout=httpx2.Timeout(patience.stall, connect=patience.connect),
        )

    def _explain(self, error: hub_errors.HfHubHTTPError, source: HubReference) -> SovereignError:
        # Order matters: a gated repository is also a kind of missing repository to the library.
        if isinstance(error, hub_errors.GatedRepoError):
            return self._gated(source.repo)
        if isinstance(error, hub_errors.RevisionNotFoundError):
            return RevisionNotFound(
                f"{self.origin} has {source.repo}, but not the commit {source.revision}; check the revision."
            )
        if isinstance(error, hub_errors.RepositoryNotFoundError):
            seen = "with this token" if self._token else "without a token"
            return SourceNotFound(
                f"{self.origin} shows no repository {source.repo} {seen}; check the name, or give a token "
                "that "
                "may read it."
            )
        response: object = error.response
        status = response.status_code if isinstance(response, _Response) else 0
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return self._forbidden(source.repo, status)
        return SourceUnavailable(
            f"Expected a listing of {source} from {self.origin}, found status {status}; try again later."
        )

    def _gated(self, repo: str) -> SourceForbidden:
        return SourceForbidden(
            f"{repo} is gated: accept its licence at {self.endpoint}/{repo} and give a token of that account."
        )

    def _forbidden(self, repo: str, status: int) -> SourceForbidden:
        return SourceForbidden(
            f"{self.origin} answers {status} for {repo}; give a token that may read it, and accept the "
            "licence "
            f"at {self.endpoint}/{repo} if it is gated."
        )

    # -- bytes ----------------------------------------------------------------------------------------------

    def open(self, source: HubReference, file: HubFile, offset: int, end: int) -> HubWindow:
        """Opens the bytes [offset, end) of a file, as far as the server gives them."""
        url = f"{self.endpoint}/{source.repo}/resolve/{source.revision}/{quote(file.path, safe='/')}"
        headers = {"Range": f"bytes={offset}-{end - 1}"} if file.size else {}
        authorization = f"Bearer {self._token}" if self._token else None
        for last in (False, True):
            hops = self._wire.follow(url, headers, authorization)
            download = hops.download
            refused_by_storage = hops.origin != self.origin and download.status in (401, 403)
            if not refused_by_storage or last:
                break
            download.close()  # a signed address that has ended: resolve once more
        try:
            self._require_success(source, file, download)
            self._require_commit(source, file, (*hops.headers, download.headers))
            start = _start_of(download, file, offset)
        except BaseException:
            download.close()
            raise
        return HubWindow(download, start)

    def read(self, source: HubReference, file: HubFile, limit: int) -> bytes:
        """A small file whole, checked against what the Hub listed for it."""
        if file.size > limit:
            raise FileTooLarge(f"Expected {file.path!a} to have at most {limit} bytes, found {file.size}.")
        failures = 0
        while True:
            try:
                window = self.open(source, file, 0, file.size)
                try:
                    content = window.download.read(file.size + 1)
                finally:
                    window.download.close()
                require_listed(file, content)
                return content
            except LineBroken as error:
                failures += 1
                self.wait_or_give_up(failures, file, error)
            except WindowRefused as error:
                failures += 1
                self.wait_or_give_up(failures, file, error)

    def wait_or_give_up(self, failures: int, file: HubFile, error: LineBroken | WindowRefused) -> None:
        """Sleeps before another try; raises what the user shall read once patience has ended."""
        after = None
        if isinstance(error, WindowRefused):
            after = error.after
            if error.final or failures >= self.pace.patience.attempts:
                raise error.error
        elif failures >= self.pace.patience.attempts:
            kind = Stalled if error.stalled else SourceUnavailable
            raise kind(
                f"Expected {file.size} bytes of {file.path!a}, found after {failures} attempts: "
                f"{str(error)[:300].rstrip('.')}; check the way to the hub."
            ) from error
        self.pace.sleep(self.pace.patience.pause(failures, after))

    def _require_commit(self, source: HubReference, file: HubFile, hops: tuple[Message, ...]) -> None:
        commit = hops[0].get("X-Repo-Commit")
        if commit is not None and commit != source.revision:
            raise SourceChanged(
                f"Expected {file.path!a} at commit {source.revision}, found {commit[:60]!r}; name a commit "
                "that the hub still serves."
            )

    def _require_success(self, source: HubReference, file: HubFile, download: Download) -> None:
        status, headers = download.status, download.headers
        if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            if headers.get("Content-Encoding", "identity").lower() != "identity":
                raise SourceChanged(f"Expected plain bytes of {file.path!a}, found them compressed.")
            return
        where = Origin.of(download.url)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            gated = headers.get("X-Error-Code") == "GatedRepo"
            error: SovereignError = (
                self._gated(source.repo) if gated else self._forbidden(source.repo, status)
            )
            raise WindowRefused(error, final=where == self.origin)
        if status == HTTPStatus.NOT_FOUND:
            if headers.get("X-Error-Code") == "RevisionNotFound":
                raise RevisionNotFound(
                    f"{where} no longer has the commit {source.revision} of {source.repo}."
                )
            raise SourceChanged(f"{where} listed {file.path!a} and now answers 404 for it.")
        unavailable = SourceUnavailable(
            f"Expected {file.path!a} from {where}, found status {status}; try again later."
        )
        raise WindowRefused(unavailable, retry_after_of(headers.get("Retry-After")))


@dataclass(frozen=True, slots=True)
class HubWindow:
    """An open response and the offset of its first byte in the file."""

    download: Download
    start: int


def _start_of(download: Download, file: HubFile, offset: int) -> int:
    """Checks lengths and ranges against the listing before the first byte is believed."""
    if download.status == HTTPStatus.OK:
        if download.length is not None and download.length != file.size:
            raise SizeMismatch(
                f"Expected {file.size} bytes of {file.path!a} as listed, found a Content-Length of "
                f"{download.length}; the hub contradicts itself, try another endpoint or commit."
            )
        return 0
    found = download.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(found)
    if match is None or int(match[1]) != offset or not offset <= int(match[2]) < int(match[3]):
        raise SourceChanged(f"Expected {file.path!a} from byte {offset} on, found {found[:80]!r}.")
    if int(match[3]) != file.size:
        raise SizeMismatch(
            f"Expected {file.size} bytes of {file.path!a} as listed, found {match[3]} in all; the hub "
            "contradicts itself, try another endpoint or commit."
        )
    if download.length is not None and download.length != int(match[2]) - int(match[1]) + 1:
        raise SizeMismatch(
            f"Expected the range {found[:80]!r} of {file.path!a}, found a Content-Length of "
            f"{download.length}."
        )
    return offset


def _wish_of(error: SovereignError) -> float | None:
    """The pause that the hub asked for in the answer behind an error."""
    response: object = getattr(error.__cause__, "response", None)
    return retry_after_of(response.headers.get("Retry-After")) if isinstance(response, _Response) else None


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
            f"Expected the commit to hold the pointer {pointer} to {sha256} for {entry.path!a}, found the "
            "blob "
            f"{blob_id}; the hub's listing contradicts the commit."
        )
    return HubFile(entry.path, size, blob_id, sha256)


def require_listed(file: HubFile, content: bytes) -> None:
    """Compares a whole small file with its listing: size, then sha256 or git blob id."""
    if len(content) != file.size:
        more = "more" if len(content) > file.size else str(len(content))
        raise SizeMismatch(f"Expected {file.size} bytes of {file.path!a} as listed, found {more}.")
    if file.sha256 is not None:
        found = Digest.of(content)
        if found != file.sha256:
            raise wrong_bytes(file, str(file.sha256), str(found))
    elif git_blob_id(content) != file.blob_id:
        raise wrong_bytes(file, f"git blob {file.blob_id}", f"git blob {git_blob_id(content)}")


def wrong_bytes(file: HubFile, expected: str, found: str) -> DigestMismatch:
    return DigestMismatch(
        f"{file.path!a}: expected {expected} as listed by the hub, found {found}; nothing of it was kept, "
        "try "
        "again or use another endpoint."
    )


def read_token(text: str) -> str:
    """A token as a file holds it; refuses what could not be sent in a header."""
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidReference("Expected one token in the token file, found none or more than one word.")
    return token
