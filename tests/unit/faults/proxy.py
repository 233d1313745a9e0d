# SPDX-License-Identifier: Apache-2.0
"""A proxy that stands before a hub, a storage origin or a registry and breaks what the tests ask it to.

It forwards everything as it is, until a `Fault` matches. Each fault says how often it strikes: once is a
hiccup, for ever is an outage that ends when the test calls `heal`.
"""

import contextlib
import http.client
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from dev.hub.listener import Listener

FOR_EVER = 1_000_000
_PIECE = 64 * 1024
_TRICKLE = 1024
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade"})


@dataclass(frozen=True)
class Asked:
    """A request's line and headers."""

    method: str
    target: str
    headers: dict[str, str]
    """Names in lower case."""


@dataclass(frozen=True)
class Reply:
    """A whole answer, held in memory: the tests' files are small."""

    status: int
    headers: dict[str, str]
    body: bytes


Edit = Callable[[Reply], Reply]


class Fault:
    """What goes wrong with a request; the kinds are below."""


@dataclass(frozen=True)
class Answer(Fault):
    """The upstream never hears of the request; this is the answer."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Change(Fault):
    """The upstream's answer, changed. `Content-Length` becomes the new body's, unless `keep_length`."""

    by: Edit
    keep_length: bool = False


@dataclass(frozen=True)
class Cut(Fault):
    """The answer breaks off after `after` bytes of its body."""

    after: int


@dataclass(frozen=True)
class Hang(Fault):
    """The answer stops after `after` bytes of its body; the connection stays open until `heal`."""

    after: int


@dataclass(frozen=True)
class Silence(Fault):
    """The upstream does what it is asked; the client hears nothing, not even a header, until `heal`."""


@dataclass(frozen=True)
class Trickle(Fault):
    """A KiB a second in both directions, until `heal`: a line that is there and gets nothing done."""


@dataclass(frozen=True)
class CutUpload(Fault):
    """The upstream gets `after` bytes of the request's body, then both connections break."""

    after: int


@dataclass(frozen=True)
class LoseAnswer(Fault):
    """The upstream does what it is asked; the client's connection breaks before it hears of it."""


@dataclass(frozen=True)
class IgnoreRange(Fault):
    """The upstream does not see the Range header: it sends the whole file with 200."""


@dataclass
class _Rule:
    matches: Callable[[Asked], bool]
    fault: Fault
    left: int


class FaultyProxy:
    """Forwards to `upstream` (an http address) from `__enter__` to `__exit__`."""

    def __init__(self, upstream: str, *, tls: tuple[Path, Path] | None = None, port: int = 0) -> None:
        self.upstream = upstream
        self.asked: list[Asked] = []
        self.struck = 0
        """How often a fault matched: a test that counts on one asserts this."""
        self._rules: list[_Rule] = []
        self._guard = threading.Lock()
        self._healed = threading.Event()
        self._listener = Listener(self._respond, "127.0.0.1", port, tls)
        self.url = self._listener.url
        self.host = urlsplit(self.url).netloc

    def break_(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        path: str = "",
        times: int = FOR_EVER,
        after: int = 0,
    ) -> Self:
        """`fault` strikes requests of `method` whose target contains `path`, `times` times, after `after`."""
        skipped = iter(range(after))

        def matches(asked: Asked) -> bool:
            wanted = (method is None or asked.method == method) and path in asked.target
            return wanted and next(skipped, None) is None

        self._healed.clear()
        self._rules.append(_Rule(matches, fault, times))
        return self

    def heal(self) -> None:
        """The cause is gone: no fault strikes any more, and hanging connections end."""
        with self._guard:
            self._rules.clear()
        self._healed.set()

    def count(self, method: str, path: str = "") -> int:
        return sum(one.method == method and path in one.target for one in self.asked)

    def __enter__(self) -> Self:
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()
        self._listener.stop()

    def _fault_for(self, asked: Asked) -> Fault | None:
        with self._guard:
            self.asked.append(asked)
            for rule in self._rules:
                if rule.left and rule.matches(asked):
                    rule.left -= 1
                    self.struck += 1
                    return rule.fault
        return None

    def _respond(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        asked = Asked(handler.command, handler.path, headers)
        length = int(headers.get("content-length", 0))
        match self._fault_for(asked):
            case Answer(status, answer_headers, body):
                for _ in _body(handler, length):
                    pass
                _send(handler, Reply(status, answer_headers, body))
            case CutUpload(after):
                with contextlib.suppress(OSError), self._connection() as upstream:
                    _start(upstream, asked)
                    for piece in _body(handler, min(after, length)):
                        upstream.send(piece)
                _break(handler)
            case LoseAnswer():
                self._forward(asked, handler, length)
                _break(handler)
            case Change(by, keep_length):
                reply = self._forward(asked, handler, length)
                told = reply.headers.get("content-length") if keep_length else None
                _send(handler, by(reply), length=told)
                handler.close_connection = handler.close_connection or keep_length
            case Cut(after):
                reply = self._forward(asked, handler, length)
                _send(handler, replace(reply, body=reply.body[:after]), length=str(len(reply.body)))
                handler.close_connection = True
            case Hang(after):
                reply = self._forward(asked, handler, length)
                _send(handler, replace(reply, body=reply.body[:after]), length=str(len(reply.body)))
                self._healed.wait()
                handler.close_connection = True
            case Silence():
                self._forward(asked, handler, length)
                self._healed.wait()
                _break(handler)
            case Trickle():
                self._trickle(asked, handler, length)
            case IgnoreRange():
                whole = {name: value for name, value in headers.items() if name != "range"}
                _send(handler, self._forward(replace(asked, headers=whole), handler, length))
            case _:
                _send(handler, self._forward(asked, handler, length))

    def _trickle(self, asked: Asked, handler: BaseHTTPRequestHandler, length: int) -> None:
        # The client hangs up in the middle: that is what it shall do.
        with contextlib.suppress(OSError):
            if length:
                for _ in _body(handler, length, _TRICKLE):
                    self._healed.wait(1)
            else:
                reply = self._forward(asked, handler, length)
                _send(handler, replace(reply, body=b""), length=str(len(reply.body)))
                for at in range(0, len(reply.body), _TRICKLE):
                    handler.wfile.write(reply.body[at : at + _TRICKLE])
                    self._healed.wait(1)
        _break(handler)

    def _forward(self, asked: Asked, handler: BaseHTTPRequestHandler, length: int) -> Reply:
        with self._connection() as upstream:
            _start(upstream, asked)
            for piece in _body(handler, length):
                upstream.send(piece)
            response = upstream.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            kept = {name: value for name, value in told.items() if name not in _HOP_BY_HOP}
            return Reply(response.status, kept, response.read())

    @contextlib.contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc, timeout=30)
        try:
            yield connection
        finally:
            connection.close()


def _start(upstream: http.client.HTTPConnection, asked: Asked) -> None:
    upstream.putrequest(asked.method, asked.target, skip_host=True, skip_accept_encoding=True)
    for name, value in asked.headers.items():
        if name not in _HOP_BY_HOP:
            upstream.putheader(name, value)
    upstream.endheaders()


def _body(handler: BaseHTTPRequestHandler, length: int, piece_bytes: int = _PIECE) -> Iterator[bytes]:
    while length:
        piece = handler.rfile.read(min(length, piece_bytes))
        if not piece:
            return
        length -= len(piece)
        yield piece


def _send(handler: BaseHTTPRequestHandler, reply: Reply, length: str | None = None) -> None:
    handler.send_response(reply.status)
    for name, value in reply.headers.items():
        if name.lower() != "content-length":
            handler.send_header(name, value)
    if handler.command == "HEAD":
        length = length or reply.headers.get("content-length")
    handler.send_header("Content-Length", length or str(len(reply.body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(reply.body)


def _break(handler: BaseHTTPRequestHandler) -> None:
    """End the connection at once, with a reset: what a dying server or a firewall does."""
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# -- changes, for `Change(by=…)` ----------------------------------------------------------------------------


def flip(at: int) -> Edit:
    """One bit of the body, at byte `at`; the length stays."""

    def by(reply: Reply) -> Reply:
        body = bytearray(reply.body)
        body[at] ^= 1
        return replace(reply, body=bytes(body))

    return by


def shorten(count: int) -> Edit:
    return lambda reply: replace(reply, body=reply.body[:-count])


def lengthen(count: int) -> Edit:
    return lambda reply: replace(reply, body=reply.body + b"\0" * count)


def header(name: str, value: str) -> Edit:
    return lambda reply: replace(reply, headers={**reply.headers, name.lower(): value})


def rewrite(old: bytes, new: bytes) -> Edit:
    return lambda reply: replace(reply, body=reply.body.replace(old, new))


def edit_json(edit: Callable[[object], object]) -> Edit:
    """The JSON body, through `edit`; answers that are not 200 stay as they are."""

    def by(reply: Reply) -> Reply:
        if reply.status != 200:
            return reply
        return replace(reply, body=json.dumps(edit(json.loads(reply.body))).encode())

    return by
