# SPDX-License-Identifier: Apache-2.0
"""The heart beat of the control plane: which object is looked at next, and when.

Pure asyncio, no Kubernetes: handlers add keys, workers take them. It stands between `handlers` (something
may have changed) and `reconcile` (look and act). The key is the lock: two runs of one key never overlap,
any number of adds before a run are one run, and an add during a run is exactly one more run after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

BACKOFF_FIRST = 1.0
BACKOFF_LAST = 300.0


def backoff(failures: int, spread: float, first: float = BACKOFF_FIRST, last: float = BACKOFF_LAST) -> float:
    """Seconds to wait after `failures` failures in a row; `spread` in [0, 1) takes away up to a fifth.

    The jitter only shortens, so that the documented bounds hold, and never below `first`.
    """
    full: float = min(last, first * 2.0 ** min(failures - 1, 60))
    return max(first, full * (1.0 - 0.2 * spread))


class TryLater(Exception):
    """Raised by a run that did what it could: look again with backoff. An expected state, not a defect."""


class WorkQueue(Generic[K]):
    """Runs `run(key)` once at a time per key; the float it returns asks for another run in so many s."""

    def __init__(
        self,
        run: Callable[[K], Awaitable[float | None]],
        *,
        known: Callable[[], Iterable[K]],
        workers: int = 8,
        resync_seconds: float = 300.0,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._run = run
        self._known = known
        self._workers = workers
        self._resync_seconds = resync_seconds
        self._spread = spread
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = itertools.count()
        self._running: set[K] = set()
        self._failures: dict[K, int] = {}
        self._not_before: dict[K, float] = {}
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._held = False

    # -- adding -------------------------------------------------------------------------------------------

    def add(self, key: K) -> None:
        """Asks for a run as soon as a worker is free. A failing key still waits its first second."""
        now = self._now()
        self._schedule(key, max(now, self._not_before.get(key, now)))

    def add_after(self, key: K, seconds: float) -> None:
        """Asks for a run in `seconds`; an earlier one that is already due stays."""
        self._schedule(key, self._now() + seconds)

    def add_all(self) -> None:
        for key in self._known():
            self.add(key)

    def _schedule(self, key: K, when: float) -> None:
        if key in self._due and self._due[key] <= when:
            return
        self._due[key] = when
        heapq.heappush(self._heap, (when, next(self._order), key))
        self._changed.set()

    # -- working ------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Workers and the resync run inside this block and are gone when it is left."""
        tasks = [asyncio.create_task(self._work(), name=f"reconcile-{n}") for n in range(self._workers)]
        tasks.append(asyncio.create_task(self._resync(), name="resync"))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def hold(self) -> None:
        """Starts no more runs and waits for those in flight: what they look at is about to be rebuilt."""
        self._held = True
        while self._running:
            self._idle.clear()
            await self._idle.wait()

    def open(self) -> None:
        """Runs may start (again). Cheap to call when they may already."""
        if self._held:
            self._held = False
            self._changed.set()

    async def _work(self) -> None:
        while True:
            key = await self._take()
            try:
                await self._run_one(key)
            finally:
                self._running.discard(key)
                self._idle.set()
                self._changed.set()

    async def _run_one(self, key: K) -> None:
        started = self._now()
        try:
            again = await self._run(key)
        except Exception as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            wait = backoff(failures, self._spread())
            trace = None if isinstance(error, TryLater) else error
            words = "%s: %s (%d times in a row, next try in %.0f s)"
            logger.log(
                logging.ERROR if trace else logging.INFO, words, key, error, failures, wait, exc_info=trace
            )
            self._not_before[key] = started + BACKOFF_FIRST
            self._postpone(key)
            self.add_after(key, wait)
        else:
            self._failures.pop(key, None)
            self._not_before.pop(key, None)
            if again is not None:
                self.add_after(key, again)

    def _postpone(self, key: K) -> None:
        """An event that arrived while the key failed must not turn the failure into a hot loop."""
        due = self._due.get(key)
        if due is not None and due < self._not_before[key]:
            del self._due[key]
            self._schedule(key, self._not_before[key])

    async def _take(self) -> K:
        while True:
            wait = None
            if not self._held:
                key, wait = self._pop()
                if key is not None:
                    return key
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def _pop(self) -> tuple[K | None, float | None]:
        """The next key that is due and idle, marked as running; or how long until there may be one."""
        now = self._now()
        busy: list[tuple[float, int, K]] = []
        found: K | None = None
        wait: float | None = None
        while self._heap:
            when, order, key = heapq.heappop(self._heap)
            if self._due.get(key) != when:
                continue  # superseded by an earlier date
            if when > now:
                heapq.heappush(self._heap, (when, order, key))
                wait = when - now
                break
            if key in self._running:
                busy.append((when, order, key))
                continue
            del self._due[key]
            self._running.add(key)
            found = key
            break
        for entry in busy:
            heapq.heappush(self._heap, entry)
        return found, wait

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self._resync_seconds)
            self.add_all()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
