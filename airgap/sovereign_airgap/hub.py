# SPDX-License-Identifier: Apache-2.0
"""The Hub's bytes: our own streaming GET of a commit's files, in bounded windows.

Every answer is held against the listing before its first byte is believed: status, commit, lengths, range.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

from sovereign_airgap.digest import Digest, git_blob_id
from sovereign_airgap.errors import (
    CredentialsUnreadable,
    DigestMismatch,
    FileTooLarge,
    InvalidReference,
    RevisionNotFound,
    SizeMismatch,
    SourceChanged,
    SourceUnavailable,
    SovereignError,
    Stalled,
)
from sovereign_airgap.listing import HubFile, Listing, forbidden, gated, list_commit
from sovereign_airgap.pace import Pace
from sovereign_airgap.reference import HubReference
from sovereign_airgap.wire import (
    Download,
    LineBroken,
    Origin,
    Wire,
    retry_after_of,
)

WINDOW_BYTES = 1 << 30
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class WindowRefused(Exception):
    """The source answered a byte request with an error; `final` says that another try will not help."""

    def __init__(self, error: SovereignError, after: float | None = None, final: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after
        self.final = final


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

    def list(self, source: HubReference) -> Listing:
        """Lists a commit; the id in the answer is the canonical one (repositories get renamed)."""
        return list_commit(self.endpoint, source, self._token, self._wire)

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
            is_gated = headers.get("X-Error-Code") == "GatedRepo"
            error: SovereignError = (
                gated(self.endpoint, source.repo)
                if is_gated
                else forbidden(self.endpoint, source.repo, status)
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
        "try again or use another endpoint."
    )


def token_in(path: Path) -> str:
    """The token in a file; raises CredentialsUnreadable."""
    try:
        return read_token(path.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError, InvalidReference) as error:
        raise CredentialsUnreadable(f"Expected one hub token in {path}, found something else.") from error


def read_token(text: str) -> str:
    """A token as a file holds it; refuses what could not be sent in a header."""
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidReference("Expected one token in the token file, found none or more than one word.")
    return token
