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
    here until the loop has its own handlers a signal is only noted, so that none falls in between.
    """
    ended: list[signal.Signals] = []

    async def watched() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work())

        def end(number: signal.Signals) -> None:
            ended.append(number)
            task.cancel()

        for wanted in _ENDING:
            # In a thread of somebody's the signals are theirs.
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(wanted, end, wanted)
        if ended:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            if ended:
                raise Interrupted(f"{ended[0].name} ended the work; start it again to go on.") from None
            raise

    with contextlib.ExitStack() as before:
        for wanted in _ENDING:
            with contextlib.suppress(ValueError):
                handler = signal.signal(wanted, lambda number, _: ended.append(signal.Signals(number)))
                before.callback(signal.signal, wanted, handler or signal.SIG_DFL)
        return asyncio.run(watched())
