# SPDX-License-Identifier: Apache-2.0
"""One more origin: whatever is asked of it is kept, and answered by a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Origin:
    """`asked` is every request: its path and its Authorization."""

    host: str
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.host}"


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20
    disable_nagle_algorithm = True  # the head and the body are two writes

    def log_message(self, *args: object) -> None:
        """Silent."""

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def drip(request: Request, beginning: bytes, drop: bytes) -> None:
    """A server that is slow on purpose, for 20 s or until the client has gone."""
    request.close_connection = True
    with suppress(OSError):
        request.wfile.write(beginning)
        for _ in range(400):
            request.wfile.write(drop)
            time.sleep(0.05)


@dataclass
class Flood:
    """Answers with 256 MiB of blanks, or with what the client takes; `sent` in MiB."""

    sent: int = 0

    def __call__(self, request: Request) -> None:
        request.close_connection = True
        request.send_response(200)
        request.end_headers()
        with suppress(OSError):
            while self.sent < 256:
                request.wfile.write(b" " * (1 << 20))
                self.sent += 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no news here."""


@contextmanager
def an_origin(answer: Callable[[Request], None]) -> Iterator[Origin]:
    class Bound(Request):
        def do_GET(self) -> None:
            origin.asked.append((self.path, self.headers.get("Authorization")))
            answer(self)

        do_HEAD = do_POST = do_PUT = do_GET

    with _Server(("127.0.0.1", 0), Bound) as server:
        origin = Origin(f"127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield origin
        finally:
            server.shutdown()
            thread.join()
