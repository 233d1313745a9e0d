# SPDX-License-Identifier: Apache-2.0
"""One blob on its way into a registry: an upload session of the distribution specification.

The registry alone says how far it got. After any error the session asks it and goes on with nothing but the
Location and Range of that answer: an old Location is refused with 416, and what was sent is not what was
stored.
"""

from __future__ import annotations

import contextlib
import re
from http import HTTPStatus
from urllib.parse import urlencode, urlsplit, urlunsplit

from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import SovereignError
from sovereign_airgap.registry import Registry
from sovereign_airgap.wire import Answer, LineBroken, Origin, Upload

CHUNK_BYTES = 64 * 1024 * 1024
LEAST_CHUNK_BYTES = 1024 * 1024
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")


class SessionLost(Exception):
    """The registry no longer knows the session, or what it kept is unusable: start a new one from zero."""


class ChunkTooLarge(Exception):
    """413: the same bytes in smaller pieces may pass."""


class RefusedByRegistry(Exception):
    """An answer to a byte request that is no success; `after` is the registry's own wish for a pause.

    `by` is where the answer came from, if that is not the registry but a storage that it redirects to.
    """

    def __init__(self, status: int, after: float | None = None, by: Origin | None = None) -> None:
        super().__init__(f"status {status}" if by is None else f"status {status} from {by}")
        self.status = status
        self.after = after


class UploadSession:
    """One upload; `acknowledged` is what the registry has said that it holds."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._location: str | None = None
        self.acknowledged = 0

    def begin(self, mount: Digest | None = None, mount_from: str | None = None) -> bool:
        """Opens a session. True means that the registry mounted the blob instead: nothing is to be sent."""
        query = ""
        if mount is not None and mount_from is not None:
            query = "?" + urlencode({"mount": str(mount), "from": mount_from})
        url = self._registry.url("blobs/uploads/") + query
        reply = self._registry.ask("POST", url)
        if reply.status == HTTPStatus.CREATED and query:
            return True
        if reply.status != HTTPStatus.ACCEPTED:
            raise self._registry.unexpected("the start of an upload", reply.status, reply.body)
        self._location = self._registry.locate(reply.headers.get("location"), url)
        self.acknowledged = 0
        return False

    def patch(self, length: int) -> Upload:
        """Opens the request for the next `length` bytes from `acknowledged` on."""
        start = self.acknowledged
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{start}-{start + length - 1}",
            **self._registry.byte_headers(),
        }
        return self._registry.wire.send("PATCH", self._where(), headers, length)

    def accept(self, answer: Answer, expected: int) -> None:
        """Takes the answer to a PATCH that should have brought the registry to `expected` bytes."""
        self._learn_from(answer)
        if answer.status not in (HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT, HTTPStatus.CREATED):
            raise RefusedByRegistry(answer.status, answer.retry_after)
        self._location = self._registry.locate(answer.headers.get("Location"), self._where())
        stored = _end_of(answer.headers.get("Range"))
        if stored is not None and stored != expected:
            raise LineBroken(f"the registry stored {stored} of {expected} bytes")
        self.acknowledged = expected

    def ask_progress(self) -> None:
        """After an error: learns Location and Range from the registry, or raises SessionLost."""
        reply = self._registry.ask("GET", self._where())
        if reply.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.OK, HTTPStatus.ACCEPTED):
            self._location = None
            raise SessionLost(f"status {reply.status}")
        stored = _end_of(reply.headers.get("range"))
        if stored is None or stored <= 1:
            # `0-0` means nothing or one byte, and nobody can tell which.
            raise SessionLost("nothing stored yet")
        self._location = self._registry.locate(reply.headers.get("location"), self._where())
        self.acknowledged = stored

    def send(self, view: memoryview) -> None:
        """One PATCH whose bytes are in memory."""
        end = self.acknowledged + len(view)
        upload = self.patch(len(view))
        try:
            refused = upload.write(view)
            self.accept(upload.finish() if refused is None else refused, end)
        except BaseException:
            upload.abort()
            raise

    def commit(self, digest: Digest, size: int, body: bytes = b"") -> None:
        """The final PUT, with the rest of the blob where it was kept in memory."""
        headers = {"Content-Type": "application/octet-stream", **self._registry.byte_headers()}
        if body:
            headers["Content-Range"] = f"{self.acknowledged}-{self.acknowledged + len(body) - 1}"
        upload = self._registry.wire.send("PUT", self._with_digest(digest), headers, len(body))
        answer = upload.write(memoryview(body)) if body else None
        if answer is None:
            answer = upload.finish(within=self._registry.pace.patience.commit(size))
        self._learn_from(answer)
        if answer.status not in (HTTPStatus.CREATED, HTTPStatus.OK, HTTPStatus.NO_CONTENT):
            if answer.status == HTTPStatus.NOT_FOUND or answer.status == HTTPStatus.BAD_REQUEST:
                raise SessionLost(f"status {answer.status}")
            raise RefusedByRegistry(answer.status, answer.retry_after)
        self._location = None

    def cancel(self) -> None:
        """Tells the registry to forget the session; best effort, also after the run was stopped."""
        location, self._location = self._location, None
        if location is None:
            return
        with contextlib.suppress(SovereignError, LineBroken):
            self._registry.ask_once("DELETE", location)

    def _learn_from(self, answer: Answer) -> None:
        if answer.status == HTTPStatus.UNAUTHORIZED:
            self._registry.challenged(answer.headers.get("WWW-Authenticate"))
        if answer.status == HTTPStatus.FORBIDDEN:
            raise self._registry.forbidden("an upload", answer.status)
        if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise ChunkTooLarge

    def _where(self) -> str:
        if self._location is None:
            raise SessionLost("no session")
        return self._location

    def _with_digest(self, digest: Digest) -> str:
        parts = urlsplit(self._where())
        query = f"{parts.query}&" if parts.query else ""
        return urlunsplit(parts._replace(query=f"{query}{urlencode({'digest': str(digest)})}"))


def put_blob(registry: Registry, content: bytes) -> Digest:
    """Stores a blob that is in memory, unless the registry has it."""
    digest = Digest.of(content)
    if registry.has_blob(digest, len(content)):
        return digest
    failures = 0
    piece = len(content)
    while True:
        session = UploadSession(registry)
        try:
            session.begin()
            if piece == len(content):
                session.commit(digest, len(content), content)
            else:
                for at in range(0, len(content), piece):
                    session.send(memoryview(content)[at : at + piece])
                session.commit(digest, len(content))
            return digest
        except ChunkTooLarge:
            session.cancel()
            if piece <= LEAST_CHUNK_BYTES:
                raise registry.unexpected(f"a piece of {piece} bytes", 413) from None
            piece = max(piece // 2, LEAST_CHUNK_BYTES)
        except (LineBroken, SessionLost, RefusedByRegistry) as error:
            session.cancel()
            failures += 1
            after = error.after if isinstance(error, RefusedByRegistry) else None
            stalled = isinstance(error, LineBroken) and error.stalled
            registry.wait_or_give_up(failures, str(error), after, stalled)
            if registry.has_blob(digest, len(content)):
                return digest
        except BaseException:
            session.cancel()
            raise


def _end_of(header: str | None) -> int | None:
    """`0-99` means that 100 bytes are stored; None where the header is missing or no such range."""
    match = _RANGE.fullmatch(header.strip()) if header is not None else None
    return int(match.group(1)) + 1 if match is not None else None
