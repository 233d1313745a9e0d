# SPDX-License-Identifier: Apache-2.0
"""A signal ends the holding of an entry whenever it comes, and never in the middle of something."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest

from sovereign_airgap.cache.ending import Ending, ending_on_request
from sovereign_airgap.errors import Interrupted


@pytest.fixture(autouse=True)
def raising_handler() -> Iterator[None]:
    """What the command line has installed when it calls a verb."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("the handler was called")

    signals = (signal.SIGTERM, signal.SIGINT)
    before = {wanted: signal.signal(wanted, interrupt) for wanted in signals}
    yield
    for wanted, handler in before.items():
        signal.signal(wanted, handler)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def send(number: signal.Signals = signal.SIGTERM) -> None:
    """To this thread: the test runner has others, which would get it."""
    signal.pthread_kill(threading.get_ident(), number)


def test_a_signal_is_there_for_whoever_asks_and_stays_there() -> None:
    with ending_on_request() as ending:
        ending.check()
        send(signal.SIGINT)
        for _ in range(2):
            with pytest.raises(Interrupted, match="SIGINT ended the work"):
                ending.check()


def test_a_pause_lasts_as_long_as_it_should_and_ends_with_the_signal() -> None:
    with ending_on_request() as ending:
        begun = time.monotonic()
        ending.pause(0.05)
        assert time.monotonic() - begun >= 0.05
        send()
        with pytest.raises(Interrupted, match="SIGTERM ended the work"):
            ending.pause(60)
        with pytest.raises(Interrupted):
            ending.check()


def test_a_signal_that_came_before_the_waiting_ends_it() -> None:
    with ending_on_request() as ending:
        send()
        assert ending.wait() == "SIGTERM"


def test_a_second_signal_is_nobodys() -> None:
    with ending_on_request() as ending:
        send()
        ending.wait()
        send()
        send(signal.SIGINT)


def test_threads_of_the_block_neither_get_the_signals_nor_lose_them() -> None:
    def masked() -> bool:
        return {signal.SIGTERM, signal.SIGINT} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())

    with ending_on_request(), ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda _: masked(), range(4)))


def test_a_failure_in_the_block_is_its_own() -> None:
    with pytest.raises(LookupError, match="its own"), ending_on_request() as ending:
        assert isinstance(ending, Ending)
        raise LookupError("its own")
