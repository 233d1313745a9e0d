# SPDX-License-Identifier: Apache-2.0
"""A signal ends a probe's program whenever it comes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import Any

import pytest

from sovereign_airgap.errors import Interrupted
from sovereign_airgap.probe.ending import run_until_signalled


@pytest.fixture(autouse=True)
def raising_handler() -> Iterator[None]:
    """What the command line has installed when it calls a verb."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted("too early or too late")

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    assert signal.signal(signal.SIGTERM, before) is interrupt


def test_it_returns_what_the_work_returns() -> None:
    assert run_until_signalled(lambda: asyncio.sleep(0, "done")) == "done"


def test_a_signal_before_the_loop_has_its_handlers_is_kept_for_them() -> None:
    def work() -> Coroutine[Any, Any, None]:
        os.kill(os.getpid(), signal.SIGTERM)  # the loop runs and has no handlers yet
        return asyncio.sleep(60)

    with pytest.raises(Interrupted, match="SIGTERM ended the work"):
        run_until_signalled(work)


def test_a_signal_in_the_middle_cancels_the_work() -> None:
    async def signalled() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    with pytest.raises(Interrupted, match="SIGTERM ended the work"):
        run_until_signalled(signalled)


def test_a_failure_of_the_work_is_its_own() -> None:
    async def failing() -> None:
        raise LookupError("its own")

    with pytest.raises(LookupError, match="its own"):
        run_until_signalled(failing)
