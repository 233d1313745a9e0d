# SPDX-License-Identifier: Apache-2.0
"""Doing several things at once, where one failure ends everything else, and which error is then the one to
report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from sovereign_airgap.errors import Interrupted, SovereignError
from sovereign_airgap.pace import Pace

T = TypeVar("T")


def all_at_once(calls: Iterable[Callable[[], T]], pace: Pace, parallel: int, name: str) -> list[T]:
    """The results in the order of the calls, at most `parallel` at a time; raises the first cause."""
    futures: list[Future[T]] = []
    with ThreadPoolExecutor(parallel, thread_name_prefix=name) as pool:
        try:
            # A signal may come between two calls, and the pool waits for those that run: stop them.
            for call in calls:
                futures.append(pool.submit(call))  # noqa: PERF401  (those begun must be known)
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            if all(future.exception() is None for future in done):
                return [future.result() for future in futures]
        except BaseException:
            pace.stop()
            raise
        finally:
            for future in futures:
                future.cancel()
        pace.stop()
    raise first_cause(f.exception() for f in futures if f.done() and not f.cancelled())


def first_cause(errors: Iterable[BaseException | None]) -> BaseException:
    """The error that ended the others: not the Interrupted that they got because of it."""
    found = [error for error in errors if error is not None]

    def rank(error: BaseException) -> int:
        if isinstance(error, Interrupted):
            return 2
        return 0 if isinstance(error, SovereignError) else 1

    return min(found, key=rank)
