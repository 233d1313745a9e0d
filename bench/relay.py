# SPDX-License-Identifier: Apache-2.0
"""A relay between a client and a server that counts what the server sends, and can be as slow as a link is.

Links are shared: whatever goes over one, through whichever relay, has its rate together. Kernels without
queueing disciplines cannot limit a link themselves.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

_PIECE = 64 * 1024


class Link:
    """So many bytes a second for all that share it; None is without limit."""

    def __init__(self, rate: float | None = None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._busy_until = 0.0

    def book(self, count: int) -> float:
        """When (by the monotonic clock) these bytes will have passed, behind all that were booked before."""
        now = time.monotonic()
        if self._rate is None:
            return now
        with self._lock:
            self._busy_until = max(self._busy_until, now) + count / self._rate
            return self._busy_until


class Relay:
    """Runs from `__enter__` to `__exit__`; takes the listening socket over. Only answers are slowed."""

    def __init__(
        self,
        listening: socket.socket,
        upstream: tuple[str, int],
        out: Link | None = None,
        into: Callable[[str], Link] = lambda _: Link(),
    ) -> None:
        self._listening = listening
        self._upstream = upstream
        self._out = out or Link()
        self._into = into
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._ending = False
        self.sent = 0
        """Bytes of answers so far, headers included."""

    @property
    def host(self) -> str:
        address, port = self._listening.getsockname()[:2]
        return f"{address}:{port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._ending = True
            opened = [self._listening, *self._open]
        for each in opened:
            with contextlib.suppress(OSError):  # wakes whoever waits for it
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _start(self, call: Callable[[], None]) -> None:
        thread = threading.Thread(target=call)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # so it ends
            while True:
                client, (address, *_) = self._listening.accept()
                self._start(partial(self._serve, client, address))

    def _serve(self, client: socket.socket, address: str) -> None:
        with client, socket.create_connection(self._upstream) as server:
            with self._lock:
                self._open |= {client, server}
                if self._ending:
                    return
            asking = threading.Thread(target=_pass_on, args=(client, server))
            asking.start()
            try:
                self._answer(server, client, self._into(address))
            finally:
                for each in (client, server):
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
                asking.join()
                with self._lock:
                    self._open -= {client, server}

    def _answer(self, server: socket.socket, client: socket.socket, into: Link) -> None:
        piece = memoryview(bytearray(_PIECE))
        with contextlib.suppress(OSError):  # one of the two went away
            while count := server.recv_into(piece):
                passed = max(self._out.book(count), into.book(count))
                if (left := passed - time.monotonic()) > 0:
                    time.sleep(left)
                client.sendall(piece[:count])
                with self._lock:
                    self.sent += count


def _pass_on(client: socket.socket, server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while asked := client.recv(_PIECE):
            server.sendall(asked)
        server.shutdown(socket.SHUT_WR)
