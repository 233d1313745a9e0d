# SPDX-License-Identifier: Apache-2.0
"""A double of a registry, in this process and in memory: upload sessions, ranges, tags, logins, faults.

It follows distribution where that matters to a client (Range semantics, an old Location after a dropped
PATCH, no referrers API). Its repositories share all blobs and tags, unless it is `scoped` like a real one.
What it cannot prove is proven against the real one elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit


class RegistryDouble:
    """`next("PATCH", fault)` breaks the next such request; `seen` is every request as `METHOD kind`."""

    def __init__(
        self, login: tuple[str, str] | None = None, bearer: bool = False, scoped: bool = False
    ) -> None:
        self.login = login
        self.scoped = scoped
        self.linked: set[tuple[str, str]] = set()
        self.mounts = True
        self.bearer = bearer
        self.tokens_given = 0
        self.tokens_expired = 0
        self.token_seconds = 60
        self.largest_patch: int | None = None
        self.ignores_range = False
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.current: dict[str, str] = {}
        self.seen: list[str] = []
        self.pushed_bytes = 0
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._states = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        double = self

        class Bound(_Handler):
            registry = double

        self._server = _Server(("127.0.0.1", 0), Bound)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next(self, request: str, *faults: Fault) -> None:
        self._faults[request].extend(faults)

    def take(self, request: str) -> Fault | None:
        with self._lock:
            self.seen.append(request)
            waiting = self._faults[request]
            return waiting.popleft() if waiting else None

    def state(self) -> int:
        """A number that makes every Location new: an old one is an error."""
        with self._lock:
            self._states += 1
            return self._states

    def name_of(self, repository: str, reference: str) -> str:
        """Where `manifests` keeps it: in a scoped registry after the name of its repository."""
        return f"{repository}/{reference}" if self.scoped else reference

    def has(self, repository: str, digest: str) -> bool:
        return digest in self.blobs and (not self.scoped or (repository, digest) in self.linked)

    @property
    def tags(self) -> dict[str, str]:
        return {
            name: "sha256:" + hashlib.sha256(content).hexdigest()
            for name, (content, _) in self.manifests.items()
            if "sha256:" not in name
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no news here."""


class _Handler(BaseHTTPRequestHandler):
    registry: RegistryDouble
    protocol_version = "HTTP/1.1"
    timeout = 20

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._dispatch()

    do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = do_GET

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _dispatch(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path == "/token":
            self._token()
            return
        match = re.fullmatch(r"/v2/(?:(.+?)/(blobs|manifests|referrers|tags)/(.*))?", parts.path)
        if match is None:
            self.reply(404)
            return
        self.repository, kind, self.rest = match[1] or "", match[2] or "base", match[3] or ""
        if self.rest.startswith("uploads/"):
            kind, self.rest = "uploads", self.rest.removeprefix("uploads/")
        fault = self.registry.take(f"{self.command} {kind}")
        if not self._authorized():
            self.body()
            return
        if fault is not None and fault(self):
            return
        getattr(self, f"_{kind}")()

    def _authorized(self) -> bool:
        registry = self.registry
        if registry.login is None:
            return True
        given = self.headers.get("Authorization", "")
        user = "Basic " + base64.b64encode(":".join(registry.login).encode()).decode()
        if registry.bearer:
            if given in [
                f"Bearer token-{at + 1}" for at in range(registry.tokens_expired, registry.tokens_given)
            ]:
                return True
            realm = f'Bearer realm="http://{registry.host}/token",service="double"'
            self.reply(401, WWW_Authenticate=realm)
            return False
        if given == user:
            return True
        self.reply(401, WWW_Authenticate='Basic realm="double"')
        return False

    def _token(self) -> None:
        registry = self.registry
        assert registry.login is not None
        user = "Basic " + base64.b64encode(":".join(registry.login).encode()).decode()
        if self.headers.get("Authorization") != user:
            self.reply(401)
            return
        registry.tokens_given += 1
        token = {"token": f"token-{registry.tokens_given}", "expires_in": registry.token_seconds}
        self.reply(200, json.dumps(token).encode())

    def _base(self) -> None:
        self.reply(200, b"{}")

    def _referrers(self) -> None:
        self.reply(404)

    def _tags(self) -> None:
        prefix = self.registry.name_of(self.repository, "")
        names = [name.removeprefix(prefix) for name in self.registry.tags if name.startswith(prefix)]
        self.reply(200, json.dumps({"name": self.repository, "tags": sorted(names)}).encode())

    def _manifests(self) -> None:
        manifests = self.registry.manifests
        name = self.registry.name_of(self.repository, self.rest)
        if self.command == "PUT":
            content = self.body()
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
            if missing := self._missing(content):
                errors = {"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "detail": missing}]}
                self.reply(400, json.dumps(errors).encode())
                return
            entry = (content, self.headers["Content-Type"])
            manifests[self.registry.name_of(self.repository, digest)] = manifests[name] = entry
            self.reply(201, Docker_Content_Digest=digest)
            return
        if name not in manifests:
            self.reply(404)
            return
        if self.command == "DELETE":
            del manifests[name]
            self.reply(202)
            return
        content, media_type = manifests[name]
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.reply(200, content, Content_Type=media_type, Docker_Content_Digest=digest)

    def _missing(self, content: bytes) -> list[str]:
        """As distribution does, a scoped registry refuses a manifest whose children it lacks."""
        registry = self.registry
        if not registry.scoped:
            return []
        document = json.loads(content)
        blobs = [document["config"], *document["layers"]] if "config" in document else []
        children = document.get("manifests", [])
        names = [registry.name_of(self.repository, child["digest"]) for child in children]
        lacking = [each["digest"] for each in blobs if not registry.has(self.repository, each["digest"])]
        return lacking + [name for name in names if name not in registry.manifests]

    def _blobs(self) -> None:
        content = self.registry.blobs.get(self.rest)
        if content is None or not self.registry.has(self.repository, self.rest):
            self.reply(404)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or self.registry.ignores_range:
            self.reply(200, content)
            return
        start, stop = int(wanted[1]), int(wanted[2] or len(content) - 1)
        self.reply(206, content[start : stop + 1], Content_Range=f"bytes {start}-{stop}/{len(content)}")

    def _uploads(self) -> None:
        registry = self.registry
        if self.command == "POST":
            mount = self.query.get("mount", "")
            if registry.mounts and mount and registry.has(self.query.get("from", ""), mount):
                registry.linked.add((self.repository, mount))
                self.reply(201)
                return
            name = f"u{registry.state()}"
            registry.uploads[name] = bytearray()
            self._accepted(name)
            return
        name = self.rest
        if name not in registry.uploads:
            self.body()
            self.reply(404)
            return
        kept = registry.uploads[name]
        if self.command == "GET":
            self._accepted(name, 204)
        elif self.command == "DELETE":
            del registry.uploads[name]
            self.reply(204)
        elif self.command == "PATCH":
            if self._is_too_large():
                return
            start = int(self.headers["Content-Range"].split("-")[0])
            content = self.body()
            if start != len(kept) or self.query.get("state") != registry.current.get(name):
                self.reply(416)  # as distribution does for an old Location, or for a gap
                return
            registry.pushed_bytes += len(content)
            kept += content
            self._accepted(name)
        elif self.command == "PUT":
            if self._is_too_large():
                return
            kept += self.body()
            if self.query["digest"] != "sha256:" + hashlib.sha256(kept).hexdigest():
                self.reply(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
                return
            registry.blobs[self.query["digest"]] = bytes(registry.uploads.pop(name))
            registry.linked.add((self.repository, self.query["digest"]))
            self.reply(201)

    def _is_too_large(self) -> bool:
        limit = self.registry.largest_patch
        if limit is None or int(self.headers.get("Content-Length", 0)) <= limit:
            return False
        self.close_connection = True
        self.reply(413, Connection="close")
        return True

    def _accepted(self, name: str, status: int = 202) -> None:
        size = len(self.registry.uploads[name])
        state = self.registry.current[name] = str(self.registry.state())
        location = f"/v2/{self.repository}/blobs/uploads/{name}?state={state}"
        self.reply(status, Location=location, Range=f"0-{max(0, size - 1)}")


Fault = Callable[[_Handler], bool]


def status(code: int, **headers: str) -> Fault:
    """Answers with an error after reading the request."""

    def fault(handler: _Handler) -> bool:
        handler.body()
        handler.reply(code, **headers)
        return True

    return fault


def drop_after(count: int) -> Fault:
    """Keeps `count` bytes of an upload's body, then hangs up without an answer."""

    def fault(handler: _Handler) -> bool:
        kept = handler.rfile.read(count)
        handler.registry.uploads[handler.rest] += kept
        handler.registry.pushed_bytes += count
        handler.hang_up()
        return True

    return fault


def answer_lost(handler: _Handler) -> bool:
    """Does what was asked, but the answer never arrives."""
    handler.reply = lambda *_, **__: None  # type: ignore[method-assign]
    handler._uploads()
    handler.hang_up()
    return True


def forget_session(handler: _Handler) -> bool:
    handler.body()
    handler.registry.uploads.pop(handler.rest, None)
    handler.reply(404)
    return True


def cut_body(count: int) -> Fault:
    """Promises the whole blob and hangs up after `count` bytes."""

    def fault(handler: _Handler) -> bool:
        content = handler.registry.blobs[handler.rest]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:count])
        handler.wfile.flush()
        handler.hang_up()
        return True

    return fault


def elsewhere(handler: _Handler) -> bool:
    """Gives a Location on another origin."""
    handler.body()
    handler.reply(202, Location="http://127.0.0.2:1/v2/x/blobs/uploads/u", Range="0-0")
    return True
