# SPDX-License-Identifier: Apache-2.0
"""Whether the artifact is in the registry, and what to do with the mirror Job while it is not. Pure.

The truth is the registry; the Job is disposable. It is named by a hash of what it does, created and never
patched: a changed spec is another Job, a failed one is deleted and created again after 30 s to 30 min, at
once when the user changes the annotation sovereign.dev/retry. The count of tries lives on the Job and,
between two Jobs, in status.mirror, so a restarted operator goes on where the old one stopped.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sovereign_airgap import errors
from sovereign_operator import reasons
from sovereign_operator.api import (
    ANNOTATION_ATTEMPT,
    ANNOTATION_RETRY,
    HuggingFaceSource,
    MirrorStatus,
    SovereignModel,
)
from sovereign_operator.values import Artifact, Manifest, MirrorProgress, NotThere, Unreadable
from sovereign_operator.workqueue import backoff
from sovereign_operator.world import (
    Action,
    CopyToken,
    Create,
    Delete,
    Stage,
    World,
    annotation,
    condition_of,
    is_dying,
    is_of,
    moment,
    name_of,
    stamp,
)

BACKOFF_FIRST: Final = 30.0
BACKOFF_LAST: Final = 1800.0
# While a mirror runs, its progress is the only news: ask at this pace.
POLL_SECONDS: Final = 10.0
_REASON: Final = re.compile(r"[A-Z][A-Za-z0-9]{1,63}")


def _every(kind: type[errors.SovereignError]) -> set[type[errors.SovereignError]]:
    return {kind}.union(*(_every(below) for below in kind.__subclasses__()))


# Reasons of the data plane that go away only when a person does something.
PERSISTENT: Final = frozenset(kind.reason for kind in _every(errors.SovereignError) if not kind.retryable)


@dataclass(frozen=True, slots=True)
class MirrorStep:
    """What Mirrored says, what to do, and when to look again."""

    stage: Stage
    actions: tuple[Action, ...] = ()
    artifact: Artifact | None = None
    status: MirrorStatus | None = None
    again: float | None = None  # seconds
    unsettled: bool = False  # the registry gave no answer: look again with backoff


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a mirror Job ended, as its pod's termination message tells it."""

    reason: str
    message: str


def next_step(
    world: World, model: SovereignModel, job: Manifest | None, external_allowed: bool
) -> MirrorStep:
    """`job`: the mirror Job as it is rendered now; None for a source that is in the registry already."""
    strays = tuple(
        Delete(other, foreground=True)
        for other in world.jobs
        if not is_dying(other) and (job is None or name_of(other) != name_of(job))
    )
    match world.found:
        case Artifact() as artifact:
            step = MirrorStep(
                Stage("True", reasons.ARTIFACT_MIRRORED, f"{artifact.reference}, {_sizes(artifact)}."),
                artifact=artifact,
            )
        case Unreadable() as unreadable:
            step = _without_registry(model, unreadable)
        case NotThere():
            step = _absent(world, model, job, external_allowed)
    return replace(step, actions=strays + step.actions)


def _without_registry(model: SovereignModel, unreadable: Unreadable) -> MirrorStep:
    """What was mirrored stays mirrored: a registry that restarts must not look like a lost model."""
    recorded = recorded_artifact(model)
    if recorded is None or unreadable.reason != reasons.REGISTRY_UNAVAILABLE:
        stalled = unreadable.reason != reasons.REGISTRY_UNAVAILABLE
        return MirrorStep(
            Stage("False" if stalled else "Unknown", unreadable.reason, unreadable.message, stalled),
            unsettled=True,
        )
    words = f"{recorded.reference}, {_sizes(recorded)}. {unreadable.message}"
    return MirrorStep(Stage("True", reasons.ARTIFACT_MIRRORED, words), artifact=recorded, unsettled=True)


def recorded_artifact(model: SovereignModel) -> Artifact | None:
    """The artifact that status names, where it is the one that spec asks for. It comes without facts."""
    status, source = model.status.artifact, model.spec.source
    if status is None or not status.digest:
        return None
    wanted = source.hugging_face.revision if source.hugging_face else None
    reference = source.artifact.reference if source.artifact else None
    if status.revision != wanted and status.reference != reference:
        return None
    return Artifact(status.reference, status.digest, status.bytes, status.files, status.revision)


def _absent(world: World, model: SovereignModel, job: Manifest | None, external_allowed: bool) -> MirrorStep:
    source = model.spec.source.hugging_face
    if source is None or job is None:
        reference = model.spec.source.artifact.reference if model.spec.source.artifact else ""
        return _stalled(
            reasons.ARTIFACT_NOT_FOUND,
            f"The registry has no {reference}. Load the bundle that contains it, or correct the digest.",
        )
    if not external_allowed:
        return _stalled(
            reasons.EXTERNAL_SOURCE_FORBIDDEN,
            f"{source.repo}@{source.revision[:12]} is not in the registry, and this operator's configuration "
            "allows no external sources. Load it from a bundle, or set externalSources.allowed.",
        )
    if world.token_missing and source.token_secret_ref:
        secret = source.token_secret_ref
        return _stalled(
            reasons.TOKEN_SECRET_MISSING,
            f"Expected the Secret {model.namespace}/{secret.name} with the key {secret.key} for the hub's "
            "token and did not find it. Create it, or leave tokenSecretRef out.",
        )
    live = next((one for one in world.jobs if name_of(one) == name_of(job)), None)
    if live is None:
        return _start(model, source, job)
    if is_dying(live):
        last = model.status.mirror
        return MirrorStep(_waiting("The previous mirror Job is going."), status=last)
    if condition_of(live, "Failed").get("status") == "True":
        return _failed(world, model, live, result_of(live, world.job_pods))
    if condition_of(live, "Complete").get("status") == "True":
        words = "The mirror Job completed, but the registry has no tag for the commit."
        return _failed(world, model, live, JobResult(reasons.MIRROR_FAILED, words))
    return _running(world, model, source, live)


def _start(model: SovereignModel, source: HuggingFaceSource, job: Manifest) -> MirrorStep:
    """A new Job, once the time for it has come."""
    tried = model.status.mirror
    known = tried is not None and tried.job == name_of(job)
    attempt = tried.attempt + 1 if tried is not None and known else 1
    manifest = copy.deepcopy(job)
    marks = manifest["metadata"].setdefault("annotations", {})
    marks[ANNOTATION_ATTEMPT] = str(attempt)
    if retry := model.metadata.annotations.get(ANNOTATION_RETRY):
        marks[ANNOTATION_RETRY] = retry
    return MirrorStep(
        _waiting(f"The mirror Job {name_of(job)} was started (try {attempt})."),
        actions=(Create(manifest), *_token(source, job)),
        status=MirrorStatus(attempt=attempt, job=name_of(job)),
        again=POLL_SECONDS,
    )


def _running(world: World, model: SovereignModel, source: HuggingFaceSource, live: Manifest) -> MirrorStep:
    attempt = _attempt(live)
    pods = [pod for pod in world.job_pods if is_of(pod, live) and not is_dying(pod)]
    started = any((pod.get("status") or {}).get("phase") not in (None, "Pending") for pod in pods)
    progress = world.progress or MirrorProgress()
    status = MirrorStatus(
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        files_done=progress.files_done,
        files_total=progress.files_total,
        file=progress.file[:1024],
        phase=progress.phase[:1024],
        attempt=attempt,
        job=name_of(live),
    )
    if not started:
        blocked = next(filter(None, (waiting_for(pod) for pod in pods)), "")
        words = f"The mirror Job {name_of(live)} waits for its pod" + (f": {blocked}" if blocked else ".")
        return MirrorStep(_waiting(words), actions=_token(source, live), status=status, again=POLL_SECONDS)
    words = f"{source.repo}@{source.revision[:12]}: {_progress(progress)}."
    return MirrorStep(Stage("False", reasons.MIRRORING, words), status=status, again=POLL_SECONDS)


def _failed(world: World, model: SovereignModel, live: Manifest, result: JobResult) -> MirrorStep:
    """Waits with the remains in place, so that their logs can be read, then clears them away."""
    attempt = _attempt(live)
    retry_at = _ended(live, world.now) + timedelta(seconds=backoff(attempt, 0.0, BACKOFF_FIRST, BACKOFF_LAST))
    asked = model.metadata.annotations.get(ANNOTATION_RETRY, "")
    at_once = bool(asked) and asked != annotation(live, ANNOTATION_RETRY)
    due = at_once or world.now >= retry_at
    words = f"{result.message} Try {attempt}; the next one is at {stamp(retry_at)}."
    stage = Stage("False", result.reason, words, stalled=result.reason in PERSISTENT)
    return MirrorStep(
        stage,
        actions=(Delete(live, foreground=True),) if due else (),
        status=MirrorStatus(
            attempt=0 if at_once else attempt, job=name_of(live), next_attempt=stamp(retry_at)
        ),
        again=None if due else max(1.0, (retry_at - world.now).total_seconds()),
    )


# -- readings ---------------------------------------------------------------------------------------------


def result_of(job: Manifest, pods: tuple[Manifest, ...]) -> JobResult:
    """The data plane's own words where the pod left any, else what Kubernetes says of the Job."""
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True):
        if not is_of(pod, job):
            continue
        for status in (pod.get("status") or {}).get("containerStatuses") or ():
            ended = (status.get("state") or {}).get("terminated") or {}
            if found := parse_result(str(ended.get("message") or "")):
                return found
            if ended.get("reason") not in (None, "Completed", "Error"):
                words = f"The mirror pod ended without a result: {ended['reason']}."
                return JobResult(reasons.MIRROR_FAILED, words)
    failed = condition_of(job, "Failed")
    words = str(failed.get("message") or failed.get("reason") or "no reason was given").rstrip(".")
    return JobResult(reasons.MIRROR_FAILED, f"The mirror Job ended without a result: {words}.")


def parse_result(text: str) -> JobResult | None:
    """Reads a termination message. It crosses a trust boundary: bounded, and a reason is one word."""
    try:
        body = json.loads(text[:4096])
        reason, message = body["reason"], body["message"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(reason, str) or not isinstance(message, str) or not _REASON.fullmatch(reason):
        return None
    if reason == reasons.ARTIFACT_MIRRORED:
        return None
    return JobResult(reason, message.strip()[:900])


def waiting_for(pod: Manifest) -> str:
    """Why a pod does not run yet, in the words of the scheduler or the kubelet."""
    status = pod.get("status") or {}
    for each in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (each.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {str(waiting.get('message') or '')[:500]}"
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason") or "")[:500]
    return ""


def _attempt(job: Manifest) -> int:
    text = annotation(job, ANNOTATION_ATTEMPT)
    return int(text) if text.isdecimal() and len(text) < 9 else 1


def _ended(job: Manifest, now: datetime) -> datetime:
    for kind in ("Failed", "Complete"):
        when = moment(condition_of(job, kind).get("lastTransitionTime"))
        if when is not None:
            return when
    return now


def _token(source: HuggingFaceSource, job: Manifest) -> tuple[Action, ...]:
    ref = source.token_secret_ref
    return (CopyToken(name_of(job), ref.name, ref.key),) if ref else ()


def _waiting(words: str) -> Stage:
    return Stage("False", reasons.MIRROR_PENDING, words)


def _stalled(reason: str, words: str) -> MirrorStep:
    return MirrorStep(Stage("False", reason, words, stalled=True), unsettled=True)


def _sizes(artifact: Artifact) -> str:
    return f"{artifact.files} files, {_bytes(artifact.bytes)}"


def _progress(progress: MirrorProgress) -> str:
    if not progress.bytes_total:
        return progress.phase or "starting"
    return (
        f"{_bytes(progress.bytes_done)} of {_bytes(progress.bytes_total)}, "
        f"{progress.files_done} of {progress.files_total} files"
    )


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
