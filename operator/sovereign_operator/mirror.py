# SPDX-License-Identifier: Apache-2.0
"""Whether the artifact is in the registry, and what to do with the mirror Job while it is not. Pure.

The truth is the registry; the Job is disposable. It is named by a hash of what it does, so a changed spec is
another Job; how a failed one is tried again stands in `job_tries.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sovereign_operator import reasons
from sovereign_operator.amounts import in_bytes
from sovereign_operator.api import ANNOTATION_RETRY, HuggingFaceSource, MirrorStatus, SovereignModel
from sovereign_operator.job_tries import (
    PERSISTENT,
    POLL_SECONDS,
    JobResult,
    attempt_of,
    has_started,
    next_try,
    numbered,
    result_of,
    waiting_for,
)
from sovereign_operator.values import Artifact, Manifest, MirrorProgress, NotThere, Unreadable
from sovereign_operator.wanted import place
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
    name_of,
    stamp,
)


@dataclass(frozen=True, slots=True)
class MirrorStep:
    """What Mirrored says, what to do, and when to look again."""

    stage: Stage
    actions: tuple[Action, ...] = ()
    artifact: Artifact | None = None
    status: MirrorStatus | None = None
    again: float | None = None  # seconds
    unsettled: bool = False  # the registry gave no answer: look again with backoff


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
    status = model.status.artifact
    if status is None or not status.digest or status.target != place(model)[1]:
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
        return _failed(world, model, live, result_of(live, world.job_pods, "mirror", reasons.MIRROR_FAILED))
    if condition_of(live, "Complete").get("status") == "True":
        words = "The mirror Job completed, but the registry has no tag for the commit."
        return _failed(world, model, live, JobResult(reasons.MIRROR_FAILED, words))
    return _running(world, model, source, live)


def _start(model: SovereignModel, source: HuggingFaceSource, job: Manifest) -> MirrorStep:
    """A new Job, once the time for it has come."""
    tried = model.status.mirror
    known = tried is not None and tried.job == name_of(job)
    attempt = tried.attempt + 1 if tried is not None and known else 1
    manifest = numbered(job, attempt, model.metadata.annotations.get(ANNOTATION_RETRY, ""))
    return MirrorStep(
        _waiting(f"The mirror Job {name_of(job)} was started (try {attempt})."),
        actions=(Create(manifest), *_token(source, job)),
        status=MirrorStatus(attempt=attempt, job=name_of(job)),
        again=POLL_SECONDS,
    )


def _running(world: World, model: SovereignModel, source: HuggingFaceSource, live: Manifest) -> MirrorStep:
    pods = [pod for pod in world.job_pods if is_of(pod, live) and not is_dying(pod)]
    started = any(has_started(pod) for pod in pods)
    progress = world.progress or MirrorProgress()
    status = MirrorStatus(
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        files_done=progress.files_done,
        files_total=progress.files_total,
        file=progress.file[:1024],
        phase=progress.phase[:1024],
        attempt=attempt_of(live),
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
    wish = model.metadata.annotations.get(ANNOTATION_RETRY, "")
    asked = bool(wish) and wish != annotation(live, ANNOTATION_RETRY)
    again = next_try(live, world.now, asked)
    return MirrorStep(
        Stage("False", result.reason, f"{result.message} {again.words}", result.reason in PERSISTENT),
        actions=(Delete(live, foreground=True),) if again.is_due else (),
        status=MirrorStatus(
            attempt=0 if asked else again.attempt, job=name_of(live), next_attempt=stamp(again.at)
        ),
        again=None if again.is_due else max(1.0, again.seconds),
    )


def _token(source: HuggingFaceSource, job: Manifest) -> tuple[Action, ...]:
    ref = source.token_secret_ref
    return (CopyToken(name_of(job), ref.name, ref.key),) if ref else ()


def _waiting(words: str) -> Stage:
    return Stage("False", reasons.MIRROR_PENDING, words)


def _stalled(reason: str, words: str) -> MirrorStep:
    return MirrorStep(Stage("False", reason, words, stalled=True), unsettled=True)


def _sizes(artifact: Artifact) -> str:
    return f"{artifact.files} files, {in_bytes(artifact.bytes)}"


def _progress(progress: MirrorProgress) -> str:
    if not progress.bytes_total:
        return progress.phase or "starting"
    return (
        f"{in_bytes(progress.bytes_done)} of {in_bytes(progress.bytes_total)}, "
        f"{progress.files_done} of {progress.files_total} files"
    )
