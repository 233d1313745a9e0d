# SPDX-License-Identifier: Apache-2.0
"""Runs a probe's program until it is done or a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from sovereign_airgap.errors import Interrupted

T = TypeVar("T")

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


def run_until_signalled(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of `work`; SIGTERM or SIGINT cancel it and raise Interrupted.

    A handler that raises, as the command line has, would be swallowed by the event loop's callbacks. From
    here until the loop has its own handlers the signals wait, so that none falls in between.
    """

    async def watched() -> T:
        loop = asyncio.get_running_loop()
        ended: list[signal.Signals] = []
        task = asyncio.ensure_future(work())

        def end(number: signal.Signals) -> None:
            ended.append(number)
            task.cancel()

        for wanted in _ENDING:
            # In a thread of somebody's the signals are theirs.
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(wanted, end, wanted)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            return await task
        except asyncio.CancelledError:
            if ended:
                raise Interrupted(f"{ended[0].name} ended the work; start it again to go on.") from None
            raise

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        return asyncio.run(watched())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
