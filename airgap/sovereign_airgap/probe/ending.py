# SPDX-License-Identifier: Apache-2.0
"""Runs a probe's program until it is done or a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from sovereign_airgap.errors import Interrupted

T = TypeVar("T")


def run_until_signalled(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; SIGTERM or SIGINT cancel it and raise Interrupted.

    A handler that raises, as the command line has, would be swallowed by the event loop's callbacks.
    """

    async def watched() -> T:
        loop = asyncio.get_running_loop()
        ended: list[signal.Signals] = []
        task = asyncio.ensure_future(work)

        def end(number: signal.Signals) -> None:
            ended.append(number)
            task.cancel()

        for wanted in (signal.SIGTERM, signal.SIGINT):
            # In a thread of somebody's the signals are theirs.
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(wanted, end, wanted)
        try:
            return await task
        except asyncio.CancelledError:
            if ended:
                raise Interrupted(f"{ended[0].name} ended the work; start it again to go on.") from None
            raise

    return asyncio.run(watched())
