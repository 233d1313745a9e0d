# SPDX-License-Identifier: Apache-2.0
"""The work queue on a loop whose clock jumps: minutes of backoff pass in no time, in a fixed order."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from sovereign_operator.workqueue import TryLater, WorkQueue, backoff


class JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for a timer, moves the clock to it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = JumpingSelector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def on_jumping_clock(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(story())


def now() -> float:
    return round(asyncio.get_running_loop().time(), 3)


class Recorder:
    """A run function that notes when it ran and answers as told."""

    def __init__(self, answer: Callable[[str], Awaitable[float | None]] | None = None) -> None:
        self.runs: list[tuple[float, str]] = []
        self._answer = answer

    async def __call__(self, key: str) -> float | None:
        self.runs.append((now(), key))
        return await self._answer(key) if self._answer else None


def a_queue(run: Callable[[str], Awaitable[float | None]], **options: Any) -> WorkQueue[str]:
    return WorkQueue(run, known=options.pop("known", list), spread=lambda: 0.0, **options)


def test_many_adds_before_a_run_are_one_run() -> None:
    async def story() -> None:
        run = Recorder()
        queue = a_queue(run)
        for _ in range(5):
            queue.add("a")
        async with queue.working():
            await asyncio.sleep(10)
        assert run.runs == [(0, "a")]

    on_jumping_clock(story)


def test_adds_during_a_run_are_exactly_one_more_run_and_runs_of_a_key_never_overlap() -> None:
    async def story() -> None:
        inside = 0

        async def slow(key: str) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1
            await asyncio.sleep(4)
            inside -= 1

        run = Recorder(slow)
        queue = a_queue(run)
        queue.add("a")
        async with queue.working():
            await asyncio.sleep(1)
            for _ in range(3):
                queue.add("a")
            await asyncio.sleep(20)
        assert run.runs == [(0, "a"), (4, "a")]

    on_jumping_clock(story)


def test_other_keys_run_meanwhile_up_to_the_number_of_workers() -> None:
    async def story() -> None:
        async def slow(key: str) -> None:
            await asyncio.sleep(10)

        run = Recorder(slow)
        queue = a_queue(run, workers=2)
        for key in "abc":
            queue.add(key)
        async with queue.working():
            await asyncio.sleep(15)
        assert run.runs == [(0, "a"), (0, "b"), (10, "c")]

    on_jumping_clock(story)


def test_the_returned_seconds_ask_for_another_run_and_an_event_comes_first() -> None:
    async def story() -> None:
        answers = iter([30.0, 100.0, None])

        async def answer(key: str) -> float | None:
            return next(answers)

        run = Recorder(answer)
        queue = a_queue(run)
        queue.add("a")
        async with queue.working():
            await asyncio.sleep(5)
            queue.add("a")  # the run at 5 replaces what the run at 0 asked for
            await asyncio.sleep(300)
        assert run.runs == [(0, "a"), (5, "a"), (105, "a")]

    on_jumping_clock(story)


def test_failures_back_off_from_a_second_to_five_minutes_and_success_forgets_them() -> None:
    async def story() -> None:
        failing = True

        async def answer(key: str) -> None:
            if failing:
                raise RuntimeError("the API server is away")

        run = Recorder(answer)
        queue = a_queue(run, resync_seconds=1e9)
        queue.add("a")
        async with queue.working():
            await asyncio.sleep(1200)
            waits = [b[0] - a[0] for a, b in zip(run.runs, run.runs[1:], strict=False)]
            assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
            failing = False
            await asyncio.sleep(300)
            count = len(run.runs)
            await asyncio.sleep(5000)
            assert len(run.runs) == count
            failing = True
            queue.add("a")
            await asyncio.sleep(1.5)
            assert len(run.runs) == count + 2  # backoff starts again at one second

    on_jumping_clock(story)


def test_events_do_not_turn_a_failing_key_into_a_hot_loop() -> None:
    async def story() -> None:
        queue: WorkQueue[str]

        async def answer(key: str) -> None:
            queue.add(key)  # as a write of ours that comes back as an event
            raise RuntimeError("still broken")

        run = Recorder(answer)
        queue = a_queue(run, resync_seconds=1e9)
        queue.add("a")
        async with queue.working():
            await asyncio.sleep(10)
        assert len(run.runs) <= 11

    on_jumping_clock(story)


def test_an_event_after_a_long_backoff_is_served_at_once() -> None:
    async def story() -> None:
        async def answer(key: str) -> None:
            raise RuntimeError("no registry")

        run = Recorder(answer)
        queue = a_queue(run, resync_seconds=1e9)
        queue.add("a")
        async with queue.working():
            await asyncio.sleep(600)  # the next try by itself is minutes away
            before = len(run.runs)
            queue.add("a")
            await asyncio.sleep(0.01)
            assert len(run.runs) == before + 1

    on_jumping_clock(story)


def test_the_resync_adds_every_known_key() -> None:
    async def story() -> None:
        run = Recorder()
        queue = a_queue(run, known=lambda: ["a", "b"], resync_seconds=300)
        async with queue.working():
            await asyncio.sleep(601)
        assert run.runs == [(300, "a"), (300, "b"), (600, "a"), (600, "b")]

    on_jumping_clock(story)


def test_while_held_nothing_runs_and_what_was_added_runs_afterwards() -> None:
    async def story() -> None:
        async def slow(key: str) -> None:
            await asyncio.sleep(3)

        run = Recorder(slow)
        queue = a_queue(run)
        queue.add("a")
        async with queue.working():
            await asyncio.sleep(1)
            await queue.hold()
            assert now() == 3  # the run in flight was waited for
            queue.add("b")
            await asyncio.sleep(10)
            assert run.runs == [(0, "a")]
            queue.open()
            await asyncio.sleep(1)
            assert run.runs == [(0, "a"), (13, "b")]

    on_jumping_clock(story)


def test_a_run_that_asks_for_later_backs_off_without_a_stack_trace(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async def answer(key: str) -> None:
            raise TryLater("the registry does not answer")

        run = Recorder(answer)
        queue = a_queue(run, resync_seconds=1e9)
        queue.add("a")
        with caplog.at_level("INFO"):
            async with queue.working():
                await asyncio.sleep(4)
        assert run.runs == [(0, "a"), (1, "a"), (3, "a")]

    on_jumping_clock(story)
    assert [record.levelname for record in caplog.records] == ["INFO"] * 3
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("failures", [1, 2, 5, 9, 40, 5000])
@pytest.mark.parametrize("spread", [0.0, 0.5, 0.999])
def test_backoff_stays_between_one_second_and_five_minutes(failures: int, spread: float) -> None:
    assert 1.0 <= backoff(failures, spread) <= 300.0
