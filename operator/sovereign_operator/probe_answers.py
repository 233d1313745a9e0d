# SPDX-License-Identifier: Apache-2.0
"""What a prober's or a control's Job has to say: a result, silence with a reason, or nothing yet. Pure.

A termination message crosses a trust boundary: `sovereign_airgap.probe.result` reads it as any stranger's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sovereign_airgap.probe.result import InvalidResult, parse_result
from sovereign_operator import job_tries
from sovereign_operator.api import ANNOTATION_PROBE_RUN
from sovereign_operator.values import Manifest
from sovereign_operator.verdict import Answer, Silence
from sovereign_operator.world import annotation, condition_of, is_of


def answer_of(job: Manifest, pods: Sequence[Manifest]) -> Answer | None:
    """None while the Job runs. The pod's own words come before those of Kubernetes about the Job."""
    for message, ended in _endings(job, pods):
        try:
            result = parse_result(message)
        except InvalidResult as error:
            failure = job_tries.parse_result(message)
            said = f"{failure.reason}: {failure.message}" if failure else f"{ended}. {error}"
            return Silence(said)
        if result.run != annotation(job, ANNOTATION_PROBE_RUN):
            return Silence(f"its pod reports another run, {result.run}.")
        return result
    failed = condition_of(job, "Failed")
    if failed.get("status") == "True":
        why = str(failed.get("message") or failed.get("reason") or "no reason was given").rstrip(".")
        return Silence(f"its Job ended without one: {why[:300]}.")
    if condition_of(job, "Complete").get("status") == "True":
        return Silence("its Job completed and its pod is gone.")
    return None


def overdue(job: Manifest | None, pods: Sequence[Manifest], seconds: int) -> Silence:
    """What is said of a Job that ran out of time: above all what its pod waits for."""
    if job is None:
        return Silence("its Job is not there.")
    mine = [pod for pod in pods if is_of(pod, job)]
    if not mine:
        return Silence(
            f"within {seconds} s no pod was made for it; a quota or an admission policy may forbid."
        )
    waits = next(filter(None, map(job_tries.waiting_for, mine)), "")
    return Silence(
        f"not within {seconds} s" + (f"; its pod waits: {waits.rstrip('.')[:400]}." if waits else ".")
    )


def has_ended(job: Manifest, pods: Sequence[Manifest]) -> bool:
    """Whether a pod of the Job was seen at its end."""
    return any(True for _ in _endings(job, pods))


def _endings(job: Manifest, pods: Sequence[Manifest]) -> Iterator[tuple[str, str]]:
    """Termination messages with how the container ended; a pod that is killed at a deadline leaves none."""
    for pod in pods:
        if not is_of(pod, job):
            continue
        for status in (pod.get("status") or {}).get("containerStatuses") or ():
            ended = (status.get("state") or {}).get("terminated") or {}
            if ended:
                yield (
                    str(ended.get("message") or ""),
                    f"exit code {ended.get('exitCode')} ({ended.get('reason')})",
                )
