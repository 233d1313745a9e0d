# SPDX-License-Identifier: Apache-2.0
"""The second origin of the hub double: object storage behind signed, expiring addresses.

It never sees a token. A request that carries `Authorization` is refused, as S3 does, and recorded: it means
that a client sent its Hub token to a stranger.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, quote, urlsplit

from dev.hub.repository import HubFile
from dev.hub.transfer import send_file


@dataclass
class Signer:
    """Makes and checks addresses that are good for `lifetime` seconds."""

    lifetime: float = 3600.0
    clock: Callable[[], float] = time.time
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def sign(self, file: HubFile) -> str:
        """Path and query of the object; the origin is the caller's."""
        expires = int(self.clock() + self.lifetime)
        signature = self._signature(file.sha256 or "", expires)
        name = quote(file.path.rpartition("/")[2], safe="")
        return f"/objects/{file.sha256}?filename={name}&expires={expires}&signature={signature}"

    def refusal(self, sha256: str, query: dict[str, list[str]]) -> str | None:
        """Why the address is not good, or None if it is."""
        expires = query.get("expires", ["0"])[0]
        given = query.get("signature", [""])[0]
        if not expires.isdecimal() or not hmac.compare_digest(given, self._signature(sha256, int(expires))):
            return "SignatureDoesNotMatch"
        return "Request has expired" if int(expires) < self.clock() else None

    def revoke(self) -> None:
        """Every address signed so far is refused from now on."""
        self._key = secrets.token_bytes(32)

    def _signature(self, sha256: str, expires: int) -> str:
        return hmac.new(self._key, f"{sha256}\n{expires}".encode(), hashlib.sha256).hexdigest()


def respond(
    handler: BaseHTTPRequestHandler,
    signer: Signer,
    find: Callable[[str], HubFile | None],
    violations: list[str],
) -> None:
    address = urlsplit(handler.path)
    sha256 = address.path.removeprefix("/objects/")
    if handler.headers.get("Authorization") is not None:
        violations.append(f"{handler.command} {address.path} carried Authorization to the storage origin")
        _refuse(handler, 400, "InvalidArgument", "Only one auth mechanism allowed")
        return
    why = signer.refusal(sha256, parse_qs(address.query))
    if why is not None:
        _refuse(handler, 403, "AccessDenied", why)
        return
    file = find(sha256)
    if file is None:
        _refuse(handler, 404, "NoSuchKey", "The specified key does not exist.")
        return
    send_file(handler, file.source, file.size, {"ETag": f'"{sha256}"'})


def _refuse(handler: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/xml")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
