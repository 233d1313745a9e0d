# SPDX-License-Identifier: Apache-2.0
"""A Job that is tried again: what its pod said when it ended, and when the next try is due. Pure.

Jobs of mirrors and of fetches are named by what they do, created and never patched. A failed one stays for
30 s to 30 min, so that it can be read, and is then deleted and created again; at once when the user changes
the annotation sovereign.dev/retry. The count of tries lives on the Job and, between two Jobs, in the model's
status, so a restarted operator goes on where the old one stopped.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sovereign_airgap import errors
from sovereign_operator import reasons
from sovereign_operator.api import ANNOTATION_ATTEMPT, ANNOTATION_RETRY
from sovereign_operator.values import Manifest
from sovereign_operator.workqueue import backoff
from sovereign_operator.world import annotation, condition_of, is_of, moment, stamp

BACKOFF_FIRST: Final = 30.0
BACKOFF_LAST: Final = 1800.0
# While a Job runs, its progress is the only news: ask at this pace.
POLL_SECONDS: Final = 10.0
_REASON: Final = re.compile(r"[A-Z][A-Za-z0-9]{1,63}")
_SUCCESSES: Final = (reasons.ARTIFACT_MIRRORED, reasons.FETCHED)


def _every(kind: type[errors.SovereignError]) -> set[type[errors.SovereignError]]:
    return {kind}.union(*(_every(below) for below in kind.__subclasses__()))


# Reasons of the data plane that go away only when a person does something.
PERSISTENT: Final = frozenset(kind.reason for kind in _every(errors.SovereignError) if not kind.retryable)


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a Job ended, as its pod's termination message tells it."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class NextTry:
    """When a Job that ended is tried again. `attempt`: which try it was, 0 where the count starts anew."""

    attempt: int
    at: datetime
    seconds: float  # from now; none are left where it is due

    @property
    def is_due(self) -> bool:
        return self.seconds <= 0

    @property
    def words(self) -> str:
        return f"Try {self.attempt}; the next one is at {stamp(self.at)}."


def next_try(job: Manifest, now: datetime, asked: bool = False) -> NextTry:
    """`asked`: the user wants it now, and did not say so before this Job was created."""
    attempt, ended = attempt_of(job), ended_at(job) or now
    at = ended + timedelta(seconds=backoff(attempt, 0.0, BACKOFF_FIRST, BACKOFF_LAST))
    return NextTry(attempt, at, 0.0 if asked else (at - now).total_seconds())


def numbered(job: Manifest, attempt: int, asked: str) -> Manifest:
    """A copy that says which try it is, and what the user had asked for by then."""
    manifest = copy.deepcopy(job)
    marks = manifest["metadata"].setdefault("annotations", {})
    marks[ANNOTATION_ATTEMPT] = str(attempt)
    if asked:
        marks[ANNOTATION_RETRY] = asked
    return manifest


def attempt_of(job: Manifest) -> int:
    text = annotation(job, ANNOTATION_ATTEMPT)
    return int(text) if text.isdecimal() and len(text) < 9 else 1


def ended_at(job: Manifest) -> datetime | None:
    for kind in ("Failed", "Complete"):
        when = moment(condition_of(job, kind).get("lastTransitionTime"))
        if when is not None:
            return when
    return None


# -- what the pod said ------------------------------------------------------------------------------------


def result_of(job: Manifest, pods: tuple[Manifest, ...], what: str, unknown: str) -> JobResult:
    """The data plane's own words where the pod left any, else what Kubernetes says of the Job, for the reason
    `unknown`. `what`: the word for such a Job."""
    for pod in latest_first(pods):
        if not is_of(pod, job):
            continue
        for ended in endings(pod):
            if found := parse_result(str(ended.get("message") or "")):
                return found
            if ended.get("reason") not in (None, "Completed", "Error"):
                return JobResult(unknown, f"The {what} pod ended without a result: {ended['reason']}.")
    failed = condition_of(job, "Failed")
    words = str(failed.get("message") or failed.get("reason") or "no reason was given").rstrip(".")
    return JobResult(unknown, f"The {what} Job ended without a result: {words}.")


def latest_first(pods: tuple[Manifest, ...]) -> list[Manifest]:
    return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True)


def endings(pod: Manifest) -> tuple[Manifest, ...]:
    """How the pod's containers ended, those that did."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return tuple(filter(None, ((status.get("state") or {}).get("terminated") for status in statuses)))


def parse_result(text: str) -> JobResult | None:
    """Reads the message of a failure. It crosses a trust boundary: bounded, and a reason is one word."""
    try:
        body = json.loads(text[:4096])
        reason, message = body["reason"], body["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(reason, str) or not isinstance(message, str) or not _REASON.fullmatch(reason):
        return None
    if reason in _SUCCESSES:
        return None
    return JobResult(reason, message.strip()[:900])


def waiting_for(pod: Manifest) -> str:
    """Why a pod does not run yet, in the words of the scheduler or the kubelet."""
    status = pod.get("status") or {}
    for each in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (each.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {str(waiting.get('message') or '')[:500]}"
    missing = {
        each.get("type"): each for each in status.get("conditions") or () if each.get("status") == "False"
    }
    if unscheduled := missing.get("PodScheduled"):
        return str(unscheduled.get("message") or unscheduled.get("reason") or "")[:500]
    if "PodReadyToStartContainers" in missing:
        # The kubelet tells no more than this outside of events, which are not ours to read.
        name = pod["metadata"].get("name", "")
        return f"its volumes or its network are not there; if it stays so, the events of pod {name} say why."
    return ""


def has_started(pod: Manifest) -> bool:
    return (pod.get("status") or {}).get("phase") not in (None, "Pending")
