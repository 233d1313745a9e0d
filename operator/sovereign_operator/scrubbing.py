# SPDX-License-Identifier: Apache-2.0
"""When what a node has is hashed again: a record that is old gets a Job that does, one node of a model at a
time.

Pure. A disk loses bits without telling. Nothing waits for a scrub, and one that cannot be done changes
nothing: what it found damaged it has brought anew, or pods that start will say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sovereign_operator.desired.fetch_job import Fetch, scrub_job
from sovereign_operator.fetch_case import Case, succeeded
from sovereign_operator.fetch_states import FetchState
from sovereign_operator.job_tries import ended_at, numbered
from sovereign_operator.world import Action, Create, Delete, is_dying, is_finished

# A scrub reads all of the weights: one that failed is not repeated at the pace of a fetch.
AGAIN_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class ScrubStep:
    """`rest`: seconds until the next one is due, None where there is none."""

    actions: tuple[Action, ...] = ()
    rest: float | None = None


def next_step(case: Case, states: tuple[FetchState, ...]) -> ScrubStep:
    """Scrubs what is there. `states`: of everything that is wanted."""
    if not case.cache.scrub_interval_seconds or not case.may_fetch:
        return ScrubStep()
    wanted = [state.fetch for state in states if state.is_ready]
    scrubs = [job for fetch in wanted if (job := case.jobs.get(fetch.scrub_name)) is not None]
    if any(is_dying(job) or not is_finished(job) for job in scrubs):
        return ScrubStep()  # its end wakes us
    due = [(left, fetch) for fetch in wanted if (left := _seconds_left(case, fetch)) is not None]
    if not due:
        return ScrubStep()
    left, fetch = min(due, key=lambda one: (one[0], one[1].name))
    if left > 0:
        return ScrubStep(rest=max(1.0, left))
    old = case.jobs.get(fetch.scrub_name)
    if old is not None:
        return ScrubStep((Delete(old, foreground=True),))
    job = scrub_job(fetch, case.model, case.config, case.cache, keep=case.kept_on(fetch.node))
    return ScrubStep((Create(numbered(job, 1, "")),))


def _seconds_left(case: Case, fetch: Fetch) -> float | None:
    """Until this one is due; None where nothing says when it was last looked at."""
    record = case.record_of(fetch)
    fetched = ended_at(record) if record is not None and succeeded(record) else None
    if fetched is None:
        return None
    scrub = case.jobs.get(fetch.scrub_name)
    ended = ended_at(scrub) if scrub is not None else None
    if scrub is not None and ended is not None and not succeeded(scrub):
        return max(_left(case, fetched), AGAIN_SECONDS - _passed(case, ended))
    return _left(case, max(fetched, ended) if ended is not None else fetched)


def _left(case: Case, since: datetime) -> float:
    return case.cache.scrub_interval_seconds - _passed(case, since)


def _passed(case: Case, since: datetime) -> float:
    return (case.world.now - since).total_seconds()
