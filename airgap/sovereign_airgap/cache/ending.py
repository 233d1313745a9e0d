# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT as something to ask for, instead of something that happens.

A handler that raises, as the command line has, may fall between taking a lock and noting it, or into a pool
of threads that waits for its own. While the block lasts the signals wait until they are looked at, and the
threads that are started in it do not get them either. Afterwards they are ignored, because the work is over;
whoever had installed handlers puts them back.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sovereign_airgap.errors import Interrupted

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


class Ending:
    """What to ask whether a signal wants the work to end; made by `ending_on_request`."""

    def __init__(self) -> None:
        self._taken = ""

    def check(self) -> None:
        """Raises Interrupted if the work is to end; any thread of the block may ask."""
        name = self._taken or next((wanted.name for wanted in _ENDING if wanted in signal.sigpending()), "")
        if name:
            raise Interrupted(f"{name} ended the work; start it again to go on.")

    def pause(self, seconds: float) -> None:
        """Waits so long; raises Interrupted as soon as the work is to end."""
        taken = signal.sigtimedwait(_ENDING, seconds)
        if taken is not None:
            self._taken = signal.Signals(taken.si_signo).name
        self.check()

    def wait(self) -> str:
        """Waits, without waking up, until the work is to end; the name of the signal."""
        return signal.Signals(signal.sigwait(_ENDING)).name


@contextmanager
def ending_on_request() -> Iterator[Ending]:
    """Keeps the signals for its block. Before other threads are started, which would get them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        yield Ending()
    finally:
        # A second signal may be waiting: ignoring it takes it away before a handler that raises gets it.
        for wanted in _ENDING:
            with contextlib.suppress(ValueError):  # in a thread of somebody's the signals are theirs
                signal.signal(wanted, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
