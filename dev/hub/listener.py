# SPDX-License-Identifier: Apache-2.0
"""One listening port of the hub double: a threaded HTTP/1.1 server that can be ended with its connections."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

Respond = Callable[[BaseHTTPRequestHandler], None]


class Listener:
    """Serves `respond`, whatever the method, from `start` to `stop`."""

    def __init__(self, respond: Respond, host: str, port: int, tls: tuple[Path, Path] | None) -> None:
        self._server = _Server((host, port), _handler(respond))
        self.scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            # The handshake belongs to the connection's own thread: a client that refuses our certificate
            # must not end the loop that accepts the next one.
            self._server.tls = context
            self.scheme = "https"
        self.port: int = self._server.server_address[1]
        shown = "127.0.0.1" if host in ("", "0.0.0.0") else host
        self.url = f"{self.scheme}://{shown}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.end_connections()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    tls: ssl.SSLContext | None = None

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(address, handler)

    def finish_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        # A client that goes away, or will not trust us, is the client's affair.
        with contextlib.suppress(ConnectionError, TimeoutError, ssl.SSLError), self._secured(request) as one:
            with self._guard:
                self._open.add(one)
            try:
                self.RequestHandlerClass(one, client_address, self)  # type: ignore[arg-type]
            finally:
                with self._guard:
                    self._open.discard(one)

    def _secured(self, connection: socket.socket) -> socket.socket:
        return connection if self.tls is None else self.tls.wrap_socket(connection, server_side=True)

    def end_connections(self) -> None:
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _handler(respond: Respond) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        server_version = "HubDouble/1"

        def do_GET(self) -> None:
            respond(self)

        do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it so)
            """Quiet: the double keeps its own record of requests."""

    return Handler
