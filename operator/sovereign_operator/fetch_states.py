# SPDX-License-Identifier: Apache-2.0
"""What is known of one fetch, and what is done about it. Pure.

It comes from its Job, from that Job's pod, and from the model's pods that need the weights. A completed Job
is the record that a node has the weights. The record is wrong where a pod says so later: somebody cleared
the disk, or a file is damaged. A pod that holds the weights is right whatever the record says, unless
another one found them damaged since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal

from sovereign_operator import reasons
from sovereign_operator.amounts import in_bytes
from sovereign_operator.api import ANNOTATION_RETRY, SovereignModel
from sovereign_operator.config import NodeCacheConfig, OperatorConfig
from sovereign_operator.desired.fetch_job import Fetch, fetch_job
from sovereign_operator.desired.weights import CONTAINER
from sovereign_operator.distribution_nodes import Landed
from sovereign_operator.fetches import digests_of
from sovereign_operator.job_tries import (
    BACKOFF_LAST,
    PERSISTENT,
    POLL_SECONDS,
    JobResult,
    attempt_of,
    ended_at,
    endings,
    has_started,
    latest_first,
    next_try,
    numbered,
    parse_result,
    result_of,
    waiting_for,
)
from sovereign_operator.values import Artifact, FetchProgress, Manifest, NodeFacts
from sovereign_operator.world import (
    Action,
    Create,
    Delete,
    World,
    annotation,
    condition_of,
    is_dying,
    is_finished,
    is_of,
    moment,
    name_of,
    stamp,
)

# What a pod says of the cache; everything else is no business of a fetch.
CACHE_MISSING: Final = "CacheMissing"
CACHE_CORRUPT: Final = "CacheCorrupt"
CACHE_FULL: Final = "CacheFull"
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


@dataclass(frozen=True, slots=True)
class Case:
    """One look at one model's weights."""

    world: World
    model: SovereignModel
    config: OperatorConfig
    cache: NodeCacheConfig
    artifact: Artifact | None = None  # what is about to be served
    landed: tuple[Landed, ...] = ()
    jobs: Mapping[str, Manifest] = field(default_factory=dict)
    nodes: Mapping[str, NodeFacts] = field(default_factory=dict)

    @property
    def may_fetch(self) -> bool:
        return not self.model.spec.suspend

    def pods_of(self, job: Manifest) -> tuple[Manifest, ...]:
        return tuple(pod for pod in self.world.fetches.pods if is_of(pod, job))

    def record_of(self, fetch: Fetch) -> Manifest | None:
        """Its Job; who wants the small files only is served by whoever brought all."""
        own, whole = self.jobs.get(fetch.name), self.jobs.get(replace(fetch, config_only=False).name)
        return whole if own is None and whole is not None and succeeded(whole) else own

    def kept_on(self, node: str) -> frozenset[str]:
        """Digests that no fetch to this node may evict."""
        mine = digests_of(self.world.body or {"metadata": {}}) | {each.fetch.digest for each in self.landed}
        others = (each.digests for each in self.world.fetches.neighbours if each.keeps_on(node))
        return frozenset(mine.union(*others))

    def asked_by(self, fetch: Fetch) -> dict[str, str]:
        """Who, of the models that share this fetch, has asked for another try: name and mark."""
        mine = {self.model.name: self.model.metadata.annotations.get(ANNOTATION_RETRY, "")}
        others = {
            each.name: each.asked
            for each in self.world.fetches.neighbours
            if each.namespace == self.model.namespace and fetch.digest in each.digests
        }
        return {name: _mark(name, value) for name, value in (others | mine).items() if value}

    def asks_anew(self, fetch: Fetch, job: Manifest) -> bool:
        """Whether this model's wish for another try is younger than the Job."""
        mine = self.asked_by(fetch).get(self.model.name)
        return mine is not None and mine not in annotation(job, ANNOTATION_RETRY).split(",")


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
    holder = next((each.pod for each in _at(case, fetch) if _holds(each, fetch)), None)
    if holder is None or found.is_ready or _complaints(case, fetch):
        return found
    words = f"{name_of(holder)} holds them. {found.message}"
    return replace(_ready(case, fetch, words), actions=found.actions, again=found.again)


def succeeded(job: Manifest) -> bool:
    return not is_dying(job) and condition_of(job, "Complete").get("status") == "True"


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
    corrupt = any(said.reason == CACHE_CORRUPT for said, _ in _complaints(case, fetch))
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
    """How often it was tried before, from status: there may be no Job between two tries."""
    status = case.model.status
    if status.delivery is None or status.artifact is None or status.artifact.digest != fetch.digest:
        return 0
    tries = (node.attempt for node in status.delivery.nodes if node.name == fetch.node)
    return next(tries, 0)


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
    later = [said for said, when in _complaints(case, fetch) if when > ended]
    if not later:
        return _told(case, fetch, job)
    # A record that held for long was right when it was made.
    anew = (case.world.now - ended).total_seconds() > BACKOFF_LAST
    return replace(_failed(case, fetch, job, later[0], anew), stalled=False)


def _told(case: Case, fetch: Fetch, job: Manifest) -> FetchState:
    """Ready, in the words of whoever looked at the files last."""
    scrub = case.jobs.get(fetch.scrub_name)
    jobs = [each for each in (scrub, job) if each is not None and succeeded(each)]
    for each in sorted(jobs, key=lambda each: ended_at(each) or case.world.now, reverse=True):
        for pod in latest_first(case.pods_of(each)):
            for ended in endings(pod):
                result = _success(str(ended.get("message") or ""))
                if result:
                    return _ready(case, fetch, result.message, repaired=result.reason != reasons.FETCHED)
    return _ready(case, fetch, "The node has them.")


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


# -- readings ---------------------------------------------------------------------------------------------


def _at(case: Case, fetch: Fetch) -> tuple[Landed, ...]:
    """The model's pods that need this very artifact on this very node."""
    return tuple(
        each for each in case.landed if (each.fetch.node, each.fetch.digest) == (fetch.node, fetch.digest)
    )


def _holds(each: Landed, fetch: Fetch) -> bool:
    """Whether a pod has found complete what is wanted, and keeps it from being evicted."""
    status = _container(each.pod)
    holds = bool(status.get("started")) and "running" in (status.get("state") or {})
    return holds and (fetch.config_only or not each.fetch.config_only)


def _complaints(case: Case, fetch: Fetch) -> list[tuple[JobResult, datetime]]:
    """What pods did not find there, and when, latest first. Their words cross a trust boundary."""
    found = []
    for each in _at(case, fetch):
        status = _container(each.pod)
        if status.get("started"):
            continue
        for state in (status.get("state") or {}, status.get("lastState") or {}):
            ended = state.get("terminated") or {}
            said, when = parse_result(str(ended.get("message") or "")), moment(ended.get("finishedAt"))
            if said and when and ended.get("exitCode") and said.reason in (CACHE_MISSING, CACHE_CORRUPT):
                found.append((JobResult(said.reason, f"{name_of(each.pod)}: {said.message}"), when))
    return sorted(found, key=lambda one: one[1], reverse=True)


def _container(pod: Manifest) -> Mapping[str, Any]:
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or ()
    return next((each for each in statuses if each.get("name") == CONTAINER), {})


def _success(text: str) -> JobResult | None:
    """The message of a fetch that went well, for the reason that it repaired something or did not."""
    try:
        body = json.loads(text[:4096])
        if body["reason"] != reasons.FETCHED:
            return None
        repaired = [str(path) for path in body.get("repaired") or ()]
        words = f"{str(body['message']).strip()[:900]}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not repaired:
        return JobResult(reasons.FETCHED, words)
    return JobResult(reasons.CACHE_REPAIRED, f"Repaired {', '.join(repaired)[:120]}. {words}")


def _size(case: Case, fetch: Fetch) -> int:
    known = case.artifact
    return known.bytes if known is not None and known.digest == fetch.digest and not fetch.config_only else 0


def _age(job: Manifest, now: datetime) -> float:
    made = moment(job["metadata"].get("creationTimestamp"))
    return (now - made).total_seconds() if made else 0.0


def _mark(name: str, value: str) -> str:
    """A wish for another try as one short word, whatever somebody wrote into the annotation."""
    return hashlib.sha256(f"{name}\n{value}".encode()).hexdigest()[:12]
