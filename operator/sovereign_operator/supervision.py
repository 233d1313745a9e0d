# SPDX-License-Identifier: Apache-2.0
"""Keeps kopf's watches up inside one process, while the work queue holds still.

kopf resolves what to watch once, at its start, and ends when a watch fails for good. When KubeRay appears or
goes, a watch dies or had to list anew, the watches are rebuilt, with empty indices; the queue, its backoffs
and what is settled outlive them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import kopf

from sovereign_operator.cluster import ApiUnavailable
from sovereign_operator.config import OperatorConfig
from sovereign_operator.indices import Key
from sovereign_operator.kuberay import GROUP_VERSION, KINDS
from sovereign_operator.workqueue import WorkQueue, backoff

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 15.0
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
# An API server that restarts breaks all watches, not all at one moment.
GATHER_SECONDS: Final = 2.0

# The plural names that are served in a group version.
Served = Callable[[str], Awaitable[frozenset[str]]]


async def supervise(
    config: OperatorConfig,
    queue: WorkQueue[Key],
    registry: kopf.OperatorRegistry,
    served: Served,
    outdated: asyncio.Event,
    liveness: str | None,
) -> None:
    """Runs kopf again and again, anew where `outdated` is set. Returns when it was ended by a signal."""
    failures = 0
    stop, ended = asyncio.Event(), asyncio.Event()

    @kopf.on.cleanup(registry=registry)
    async def let_go(**_: object) -> None:
        # kopf waits 5 s for the task that waits for this flag, whatever it was that ended the watches.
        stop.set()

    while True:
        await queue.hold()  # the first event opens it again
        if ended.is_set():
            break
        stop.clear()
        outdated.clear()
        # Before kopf starts: when it ends it cancels every task that is younger.
        kinds = asyncio.create_task(_notice_kinds(served, outdated), name="kuberay-kinds")
        watcher = asyncio.create_task(_stop_when_outdated(outdated, ended, stop), name="outdated")
        started = asyncio.get_running_loop().time()
        try:
            await _watch(config, registry, stop, liveness)
        except Exception as error:
            lived = asyncio.get_running_loop().time() - started
            failures = 1 if lived > 60 else failures + 1
            wait = backoff(failures, 0.0, last=60.0)
            logger.error("the watches ended (%s: %s); next try in %.0f s", type(error).__name__, error, wait)
            _default_signals()
            await asyncio.sleep(wait)
            continue
        finally:
            rebuild = watcher.done() and not ended.is_set()
            watcher.cancel()
            kinds.cancel()
        if not rebuild:
            break
        logger.info("KubeRay's kinds came or went, or a watch listed anew: the watches are rebuilt")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE_SECONDS):
            await queue.hold()


async def _watch(
    config: OperatorConfig, registry: kopf.OperatorRegistry, stop: asyncio.Event, liveness: str | None
) -> None:
    namespaces = sorted(set(config.watch_namespaces))
    await kopf.operator(
        registry=registry,
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        liveness_endpoint=liveness,
        stop_flag=stop,
    )


async def _notice_kinds(served: Served, outdated: asyncio.Event) -> None:
    await kinds_changed(served, LOOK_SECONDS)
    outdated.set()


async def _stop_when_outdated(outdated: asyncio.Event, ended: asyncio.Event, stop: asyncio.Event) -> None:
    """From the first sign on a signal is ours: the run that ends would keep it to itself."""
    await outdated.wait()

    def end() -> None:
        ended.set()
        outdated.set()  # where the next run has begun and not yet taken the signals

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, end)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GATHER_SECONDS):
            await ended.wait()
    stop.set()


async def kinds_changed(served: Served, seconds: float) -> None:
    """Returns once other kinds of KubeRay are served than at the call.

    While both are there nothing is asked, after one more look that catches a change during kopf's own start:
    should one go later, its watch ends and says so.
    """
    before: frozenset[str] | None = None
    while True:
        try:
            now: frozenset[str] | None = KINDS & await served(GROUP_VERSION)
        except ApiUnavailable:
            now = before
        if before is not None and now != before:
            return
        if before == KINDS:
            await asyncio.Event().wait()
        before = now
        await asyncio.sleep(seconds)


def _default_signals() -> None:
    """kopf leaves its signal handlers behind, bound to a run that is over."""
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.remove_signal_handler(number)
