# SPDX-License-Identifier: Apache-2.0
"""Several things at once, and the end of all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from sovereign_airgap.errors import DigestMismatch, Interrupted
from sovereign_airgap.pace import Pace, Patience
from sovereign_airgap.stopping import all_at_once


def test_results_come_in_the_order_of_the_calls() -> None:
    with Pace(Patience()) as pace:
        assert all_at_once([lambda: 1, lambda: 2, lambda: 3], pace, 2, "t") == [1, 2, 3]


def test_a_signal_between_two_calls_ends_those_that_run() -> None:
    begun = threading.Event()

    def hangs() -> None:
        begun.set()
        pace.sleep(60)

    def interrupted() -> Iterator[Callable[[], None]]:
        yield hangs
        assert begun.wait(10)
        raise Interrupted("SIGTERM")

    with Pace(Patience()) as pace:
        with pytest.raises(Interrupted, match="SIGTERM"):
            all_at_once(interrupted(), pace, 2, "t")
        assert pace.stopped


def test_the_first_cause_is_reported_and_not_what_it_ended() -> None:
    def hangs() -> None:
        pace.sleep(60)

    def fails() -> None:
        raise DigestMismatch("a, not b")

    with Pace(Patience()) as pace, pytest.raises(DigestMismatch, match="a, not b"):
        all_at_once([hangs, fails], pace, 2, "t")
