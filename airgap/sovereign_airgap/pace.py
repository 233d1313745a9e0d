# SPDX-License-Identifier: Apache-2.0
"""Patience: when an exchange counts as stalled, how often and how long to wait before another try.

There is no limit on how long a file may take, only on how long nothing may move. One thread watches every
socket of a run and shuts down those that move too little; the thread that waits on it then gets an error
instead of waiting for ever, whichever call it waits in.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sovereign_airgap.errors import Interrupted


@dataclass(frozen=True, slots=True)
class Patience:
    """All time limits, in seconds. `attempts` counts failures in a row without any progress between them."""

    attempts: int = 6
    first_pause: float = 0.5
    longest_pause: float = 30.0
    longest_retry_after: float = 120.0
    connect: float = 15.0
    stall: float = 60.0
    least_bytes_per_stall: int = 64 * 1024
    commit_bytes_per_second: int = 50_000_000

    def pause(self, failures: int, retry_after: float | None = None) -> float:
        """How long to wait after the n-th failure in a row: doubling, jittered, bounded."""
        ceiling = min(self.longest_pause, self.first_pause * 2.0 ** min(failures - 1, 16))
        wait = ceiling * (0.5 + random.random() / 2)  # noqa: S311  (jitter, not a secret)
        if retry_after is not None:
            wait = max(wait, min(retry_after, self.longest_retry_after))
        return wait

    def commit(self, size: int) -> float:
        """A registry may read a whole blob again before it answers the final PUT."""
        return max(self.stall, size / self.commit_bytes_per_second)


class Mark:
    """What the watcher knows of one socket; only the owner's thread moves it forward.

    Only time spent inside `with mark:` counts: a file that waits for its other side has not stalled here.
    """

    __slots__ = ("_bytes", "_entered", "_least", "_limit", "_spent", "_window", "sock", "stalled")

    def __init__(self, sock: socket.socket, limit: float, least: int) -> None:
        self.sock = sock
        self.stalled = False
        self._bytes = 0
        self._entered: float | None = None
        self.expect(limit, least)

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entered is not None:
            self._spent += time.monotonic() - self._entered
            self._entered = None

    def moved(self, count: int) -> None:
        self._bytes += count

    def expect(self, limit: float, least: int) -> None:
        """Starts a new window: within `limit` seconds of waiting at least `least` bytes must move."""
        self._window, self._spent = self._bytes, 0.0
        self._limit, self._least = limit, least

    def judge(self, now: float) -> bool:
        """Whether the socket has stalled; a window with enough bytes opens the next one."""
        entered = self._entered
        if entered is None or self._spent + now - entered < self._limit:
            return False
        if self._bytes - self._window < self._least:
            return True
        self._window, self._spent = self._bytes, entered - now
        return False


class Pace:
    """Watches the sockets of one run; also the one place where the run is told to stop."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self._marks: set[Mark] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="pace", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        """Ends every exchange now; whoever waits gets Interrupted."""
        self._stopped.set()
        with self._lock:
            for mark in self._marks:
                _shut(mark)

    def check(self) -> None:
        if self._stopped.is_set():
            raise Interrupted("The work was ended before it was done; start it again to go on.")

    def sleep(self, seconds: float) -> None:
        self._stopped.wait(seconds)
        self.check()

    def watch(self, sock: socket.socket) -> Mark:
        self.check()
        mark = Mark(sock, self.patience.stall, 1)
        with self._lock:
            self._marks.add(mark)
        self.check()
        return mark

    def release(self, mark: Mark) -> None:
        # Under the lock, so that the watcher never shuts down a socket that was closed and reused.
        with self._lock:
            self._marks.discard(mark)

    def _watch(self) -> None:
        tick = min(1.0, self.patience.stall / 4)
        while not self._closed.wait(tick):
            now = time.monotonic()
            with self._lock:
                for mark in self._marks:
                    if not mark.stalled and mark.judge(now):
                        mark.stalled = True
                        _shut(mark)


def _shut(mark: Mark) -> None:
    # Not mark.sock.shutdown: on a TLS socket that would drop the TLS layer, and the reader would take
    # ciphertext for content.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(mark.sock, socket.SHUT_RDWR)
