# SPDX-License-Identifier: Apache-2.0
"""What is known of one fetch, and what is done about it. Pure.

It comes from its Job, from that Job's pod, and from the model's pods that need the weights. A completed Job
is the record that a node has the weights. The record is wrong where a pod says so later: somebody cleared
the disk, or a file is damaged. A pod that holds the weights is right whatever the record says, unless
another one found them damaged since.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from sovereign_operator import reasons
from sovereign_operator.amounts import in_bytes
from sovereign_operator.desired.fetch_job import Fetch, fetch_job
from sovereign_operator.fetch_case import (
    CACHE_CORRUPT,
    Case,
    complaints,
    holds,
    pods_at,
    succeeded,
    success_of,
)
from sovereign_operator.fetches import digests_of
from sovereign_operator.job_tries import (
    BACKOFF_LAST,
    PERSISTENT,
    POLL_SECONDS,
    JobResult,
    attempt_of,
    ended_at,
    has_started,
    next_try,
    numbered,
    result_of,
    waiting_for,
)
from sovereign_operator.values import FetchProgress, Manifest
from sovereign_operator.world import (
    Action,
    Create,
    Delete,
    condition_of,
    is_dying,
    is_finished,
    moment,
    name_of,
    stamp,
)

# A Job without a pod after this is not late: the API server refuses the pod.
NO_POD_SECONDS: Final = 10.0
FORBIDDEN: Final = (
    "no pod was made for it; a quota or pod security may forbid it: the operator's namespace has to allow "
    "hostPath volumes (label pod-security.kubernetes.io/enforce=privileged)."
)

State = Literal["Ready", "Fetching", "Pending", "Failed", "Lost"]


@dataclass(frozen=True, slots=True)
class FetchState:
    """`again`: seconds until the next look. `stalled`: a person has to do something."""

    fetch: Fetch
    state: State
    reason: str
    message: str
    bytes_done: int = 0
    bytes_total: int = 0
    rate: int = 0
    attempt: int = 0
    next_attempt: str | None = None
    actions: tuple[Action, ...] = ()
    again: float | None = None
    stalled: bool = False

    @property
    def is_ready(self) -> bool:
        return self.state == "Ready"


def state_of(case: Case, fetch: Fetch) -> FetchState:
    node = case.nodes.get(fetch.node)
    if node is None or not node.ready:
        words = f"The node is {'gone' if node is None else 'not ready'}."
        return FetchState(fetch, "Lost", reasons.NODE_LOST, words)
    job = case.record_of(fetch)
    if job is None:
        found = _absent(case, fetch)
    elif is_dying(job):
        found = _pending(case, fetch, f"The previous Job {name_of(job)} is going.", attempt_of(job))
    elif succeeded(job):
        found = _recorded(case, fetch, job)
    elif condition_of(job, "Failed").get("status") == "True":
        found = _failed(case, fetch, job, result_of(job, case.pods_of(job), "fetch", reasons.FETCH_FAILED))
    else:
        found = _running(case, fetch, job)
    holder = next((each.pod for each in pods_at(case, fetch) if holds(each, fetch)), None)
    if holder is None or found.is_ready or complaints(case, fetch):
        return found
    words = f"{name_of(holder)} holds them. {found.message}"
    return replace(_ready(case, fetch, words), actions=found.actions, again=found.again)


# -- states -----------------------------------------------------------------------------------------------


def _absent(case: Case, fetch: Fetch) -> FetchState:
    """A new Job, unless another one writes to the same entry."""
    if not case.may_fetch:
        words = "Nothing is fetched while the model is suspended."
        return replace(_pending(case, fetch, words, 0), again=None)
    related = replace(fetch, config_only=not fetch.config_only)
    for name in (related.name, fetch.scrub_name, related.scrub_name):
        other = case.jobs.get(name)
        if other is not None and not is_finished(other):
            return _pending(case, fetch, f"The Job {name} writes there.", 0)
    attempt = _recorded_attempt(case, fetch) + 1
    corrupt = any(said.reason == CACHE_CORRUPT for said, _ in complaints(case, fetch))
    job = fetch_job(
        fetch,
        case.model,
        case.config,
        case.cache,
        keep=case.kept_on(fetch.node),
        # What was found damaged has the sizes and times that it should have.
        verify="always" if corrupt else case.model.spec.delivery.verify,
    )
    marks = ",".join(sorted(case.asked_by(fetch).values()))
    words = f"The fetch Job {fetch.name} was started (try {attempt})."
    return replace(_pending(case, fetch, words, attempt), actions=(Create(numbered(job, attempt, marks)),))


def _recorded_attempt(case: Case, fetch: Fetch) -> int:
    """How often it was tried before, from status: there may be no Job between two tries. Where two artifacts
    are fetched to one node status does not say which is which: to wait too long does less harm."""
    status = case.model.status
    if status.delivery is None or fetch.digest not in digests_of(case.world.body or {}):
        return 0
    return max((node.attempt for node in status.delivery.nodes if node.name == fetch.node), default=0)


def _running(case: Case, fetch: Fetch, job: Manifest) -> FetchState:
    pods = [pod for pod in case.pods_of(job) if not is_dying(pod)]
    attempt = attempt_of(job)
    if not any(has_started(pod) for pod in pods):
        why = next(filter(None, map(waiting_for, pods)), "")
        if not pods and _age(job, case.world.now) > NO_POD_SECONDS:
            why = FORBIDDEN
        words = f"The fetch Job {name_of(job)} waits for its pod" + (f": {why}" if why else ".")
        return _pending(case, fetch, words, attempt)
    said = (case.world.fetches.progress.get(str(pod["metadata"].get("uid"))) for pod in pods)
    progress = next(filter(None, said), FetchProgress())
    total = progress.bytes_total or _size(case, fetch)
    words = f"{in_bytes(progress.bytes_done)} of {in_bytes(total)}" if total else progress.phase or "starting"
    return FetchState(
        fetch,
        "Fetching",
        reasons.FETCHING,
        f"{words}.",
        bytes_done=min(progress.bytes_done, total) if total else progress.bytes_done,
        bytes_total=total,
        rate=progress.rate,
        attempt=attempt,
        again=POLL_SECONDS,
    )


def _failed(case: Case, fetch: Fetch, job: Manifest, result: JobResult, anew: bool = False) -> FetchState:
    """Waits with the remains in place, then clears them away. `anew`: the count of tries starts again."""
    asked = case.asks_anew(fetch, job)
    again = next_try(job, case.world.now, asked or anew)
    return FetchState(
        fetch,
        "Failed",
        result.reason,
        f"{result.message} {again.words}",
        bytes_total=_size(case, fetch),
        attempt=0 if asked or anew else again.attempt,
        next_attempt=stamp(again.at),
        actions=(Delete(job, foreground=True),) if again.is_due else (),
        again=None if again.is_due else max(1.0, again.seconds),
        stalled=result.reason in PERSISTENT,
    )


def _recorded(case: Case, fetch: Fetch, job: Manifest) -> FetchState:
    """Complete, unless a pod has found out otherwise since."""
    ended = ended_at(job) or case.world.now
    later = [said for said, when in complaints(case, fetch) if when > ended]
    if not later:
        return _told(case, fetch, job)
    # A record that held for longer than the longest pause between two tries was right when it was made.
    anew = (case.world.now - ended).total_seconds() > 2 * BACKOFF_LAST
    return replace(_failed(case, fetch, job, later[0], anew), stalled=False)


def _told(case: Case, fetch: Fetch, job: Manifest) -> FetchState:
    """Ready, in the words of whoever looked at the files last."""
    scrub = case.jobs.get(fetch.scrub_name)
    jobs = [each for each in (scrub, job) if each is not None and succeeded(each)]
    jobs.sort(key=lambda each: ended_at(each) or case.world.now, reverse=True)
    told = (success_of(case, each) for each in jobs)
    result = next(filter(None, told), JobResult(reasons.FETCHED, "The node has them."))
    words = result.message
    if scrub is not None and condition_of(scrub, "Failed").get("status") == "True":
        failure = result_of(scrub, case.pods_of(scrub), "scrub", reasons.FETCH_FAILED)
        words = f"The last scrub failed ({failure.reason}). {words}"
    return _ready(case, fetch, words, repaired=result.reason == reasons.CACHE_REPAIRED)


def _ready(case: Case, fetch: Fetch, words: str, repaired: bool = False) -> FetchState:
    size = _size(case, fetch)
    reason = reasons.CACHE_REPAIRED if repaired else reasons.FETCHED
    return FetchState(fetch, "Ready", reason, words, bytes_done=size, bytes_total=size)


def _pending(case: Case, fetch: Fetch, words: str, attempt: int) -> FetchState:
    return FetchState(
        fetch,
        "Pending",
        reasons.FETCH_PENDING,
        words,
        bytes_total=_size(case, fetch),
        attempt=attempt,
        again=POLL_SECONDS,
    )


def _size(case: Case, fetch: Fetch) -> int:
    known = case.artifact
    return known.bytes if known is not None and known.digest == fetch.digest and not fetch.config_only else 0


def _age(job: Manifest, now: datetime) -> float:
    made = moment(job["metadata"].get("creationTimestamp"))
    return (now - made).total_seconds() if made else 0.0
