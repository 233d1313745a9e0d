# SPDX-License-Identifier: Apache-2.0
"""The status of a model as one value, and what has happened between two of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from sovereign_operator import conditions, rdma, reasons
from sovereign_operator.api import (
    ANNOTATION_ATTEMPT,
    ANNOTATION_NODE,
    COMPONENT_FETCH,
    COMPONENT_MIRROR,
    ArtifactStatus,
    Condition,
    DeliveryStatus,
    EgressStatus,
    PlacementStatus,
    SovereignModel,
    SovereignModelStatus,
)
from sovereign_operator.conditions import Outcome, Situation, Violation
from sovereign_operator.fetches import has_cache
from sovereign_operator.plan import Plan
from sovereign_operator.values import Manifest, Placement
from sovereign_operator.wanted import place
from sovereign_operator.world import Create, Happening, Stage, World, annotation, component_of, name_of, stamp

_SERVE_PORT = 8000


def status_of(world: World, model: SovereignModel, plan: Plan, outcome: Outcome) -> SovereignModelStatus:
    """What is written to /status after this look."""
    before = model.status
    artifact = plan.artifact
    situation = Situation(model, plan, outcome)
    serves = world.ray_service is not None
    return SovereignModelStatus(
        observed_generation=model.metadata.generation,
        conditions=conditions.conditions(situation, tuple(before.conditions), stamp(world.now)),
        model=short_name(model),
        artifact=before.artifact
        if artifact is None
        else ArtifactStatus(
            reference=artifact.reference,
            digest=artifact.digest,
            bytes=artifact.bytes,
            files=artifact.files,
            revision=artifact.revision,
            target=place(model)[1],
        ),
        # While nothing answers, the last one stays: an upgrade that recreates is one step for people.
        serving_artifact=plan.serving_artifact.partition("@")[2] or before.serving_artifact,
        mirror=plan.mirror,
        placement=_placement(plan.placement) if plan.placement else before.placement,
        delivery=plan.delivery,
        egress=rdma.listed(plan.egress, model),
        endpoint=f"http://{model.name}-serve-svc.{model.namespace}.svc:{_SERVE_PORT}/v1" if serves else "",
        ready_replicas=plan.ready_replicas,
        replicas=model.spec.serving.replicas,
        selector=model.selector,
    )


def unobserved(body: Manifest, now: datetime) -> SovereignModelStatus:
    """The first status of a new object: everything is Unknown."""
    said, stages = conditions.unobserved(has_cache(body))
    return _bare(body, said, stages, now)


def unreadable(body: Manifest, message: str, now: datetime) -> SovereignModelStatus:
    """The status of an object that this operator cannot read or render; its children stay as they are."""
    return _overall(body, Violation(reasons.SPEC_INVALID, message, stalled=True), now)


def deleting(body: Manifest, message: str, now: datetime) -> SovereignModelStatus:
    return _overall(body, Violation(reasons.DELETING, message), now)


def _overall(body: Manifest, violation: Violation, now: datetime) -> SovereignModelStatus:
    before = recorded(body)
    _, unknown = conditions.unobserved(distributed=False)
    kept = {
        c.type: Stage(c.status, c.reason, c.message) for c in before.conditions if c.type in reasons.STAGES
    }
    bare = _bare(body, conditions.overall(violation), {**unknown, **kept}, now)
    return before.model_copy(
        update={
            "observed_generation": bare.observed_generation,
            "conditions": bare.conditions,
            "ready_replicas": 0 if violation.reason == reasons.DELETING else before.ready_replicas,
        }
    )


def _bare(
    body: Manifest,
    said: dict[str, Stage],
    stages: dict[str, Stage],
    now: datetime,
) -> SovereignModelStatus:
    before = tuple(recorded(body).conditions)
    generation = int(body["metadata"].get("generation") or 0)
    return SovereignModelStatus(
        observed_generation=generation,
        conditions=conditions.merged(said, stages, before, generation, stamp(now)),
    )


def recorded(body: Manifest) -> SovereignModelStatus:
    """The status that is there, or an empty one where it cannot be read."""
    try:
        return SovereignModelStatus.model_validate(body.get("status") or {})
    except ValidationError:
        return SovereignModelStatus()


def as_json(status: SovereignModelStatus) -> dict[str, Any]:
    return status.model_dump(by_alias=True, exclude_none=True, mode="json")


def differs(body: Manifest, status: SovereignModelStatus) -> bool:
    """Whether writing would change anything; what is there is compared in the same form."""
    there: Mapping[str, Any] = body.get("status") or {}
    return bool(there != as_json(status)) and as_json(recorded(body)) != as_json(status)


def short_name(model: SovereignModel) -> str:
    source = model.spec.source
    if source.hugging_face is not None:
        return f"{source.hugging_face.repo}@{source.hugging_face.revision[:7]}"
    if source.artifact is not None:
        repository, _, digest = source.artifact.reference.partition("@sha256:")
        return f"{repository.removeprefix('models/')}@{digest[:7]}"
    return ""


def _placement(chosen: Placement) -> PlacementStatus:
    return PlacementStatus(
        tensor=chosen.tensor,
        pipeline=chosen.pipeline,
        data=chosen.data,
        expert=chosen.expert,
        replicas=chosen.replicas,
        accelerators_per_worker=chosen.accelerators_per_worker,
        workers=chosen.workers,
        nodes=list(chosen.nodes[:64]),
        why=chosen.why,
    )


# -- events -----------------------------------------------------------------------------------------------


def happenings(
    before: SovereignModelStatus, after: SovereignModelStatus, plan: Plan | None, restored: tuple[str, ...]
) -> tuple[Happening, ...]:
    """What is worth telling once, from the difference between two statuses and from what was done."""
    return tuple(_happenings(before, after, plan, restored))


def _happenings(
    before: SovereignModelStatus, after: SovereignModelStatus, plan: Plan | None, restored: tuple[str, ...]
) -> Iterator[Happening]:
    old = {condition.type: condition for condition in before.conditions}
    new = {condition.type: condition for condition in after.conditions}
    for child in restored:
        words = f"{child} was deleted or changed by somebody and was put back."
        yield Happening(reasons.EVENT_CHILD_RESTORED, words, "Warning", about=_when(new))
    if plan is not None:
        yield from _done(before, plan)
    yield from _mirrored(old.get(reasons.MIRRORED), new.get(reasons.MIRRORED))
    placed = new.get(reasons.PLACED)
    if placed and placed.status == "True" and before.placement != after.placement:
        yield Happening(reasons.EVENT_PLACED, placed.message, about=str(after.placement))
    yield from _delivered(before.delivery, after.delivery)
    distributed, was = new.get(reasons.DISTRIBUTED), old.get(reasons.DISTRIBUTED)
    if distributed and distributed.status == "True" and (was is None or was.status != "True"):
        about = distributed.last_transition_time or ""
        yield Happening(reasons.EVENT_DISTRIBUTED, distributed.message, about=about)
    yield from _ready(old.get(reasons.READY), new.get(reasons.READY))
    stalled, was = new.get(reasons.STALLED), old.get(reasons.STALLED)
    if stalled and (was is None or was.reason != stalled.reason):
        about = str(stalled.observed_generation)
        yield Happening(stalled.reason, stalled.message, "Warning", about=about)
    yield from _sealed(before.egress or EgressStatus(), after.egress or EgressStatus())
    if after.serving_artifact and before.serving_artifact not in ("", after.serving_artifact):
        yield Happening(reasons.EVENT_UPGRADED, f"{after.serving_artifact} is served now.")


def _done(before: SovereignModelStatus, plan: Plan) -> Iterator[Happening]:
    for action in plan.actions:
        if isinstance(action, Create) and component_of(action.manifest) == COMPONENT_MIRROR and plan.mirror:
            words = f"The mirror Job {plan.mirror.job} was started (try {plan.mirror.attempt})."
            yield Happening(reasons.EVENT_MIRROR_STARTED, words, about=str(before.observed_generation))
        if isinstance(action, Create) and component_of(action.manifest) == COMPONENT_FETCH:
            node, attempt = (
                annotation(action.manifest, each) for each in (ANNOTATION_NODE, ANNOTATION_ATTEMPT)
            )
            words = f"The Job {name_of(action.manifest)} was started for the node {node} (try {attempt})."
            yield Happening(reasons.EVENT_FETCH_STARTED, words, about=str(before.observed_generation))
    yield from plan.told
    if plan.upgrade_starts:
        words = plan.moving.message if plan.moving else "A change is being rolled out."
        yield Happening(reasons.EVENT_UPGRADE_STARTED, words, about=str(plan.artifact))


def _mirrored(was: Condition | None, now: Condition | None) -> Iterator[Happening]:
    if now is None or (was is not None and (was.status, was.reason) == (now.status, now.reason)):
        return
    if now.status == "True":
        yield Happening(reasons.EVENT_MIRRORED, now.message)
    elif now.status == "False" and now.reason not in (
        reasons.MIRRORING,
        reasons.MIRROR_PENDING,
        reasons.EXTERNAL_SOURCE_FORBIDDEN,
    ):
        words = f"{now.reason}: {now.message}"
        yield Happening(reasons.EVENT_MIRROR_FAILED, words, "Warning", about=now.last_transition_time or "")


def _delivered(was: DeliveryStatus | None, now: DeliveryStatus | None) -> Iterator[Happening]:
    """Each node once for each way in which a fetch to it ended."""
    before = {(node.name, node.state, node.reason) for node in (was.nodes if was else ())}
    for node in now.nodes if now else ():
        if (node.name, node.state, node.reason) in before:
            continue
        words = f"{node.name}: {node.message}"
        if node.state == "Ready" and node.reason == reasons.CACHE_REPAIRED:
            yield Happening(reasons.EVENT_REPAIRED, words, "Warning")
        elif node.state == "Ready":
            yield Happening(reasons.EVENT_FETCHED, words)
        elif node.state == "Failed":
            words = f"{node.name}: {node.reason}: {node.message}"
            yield Happening(reasons.EVENT_FETCH_FAILED, words, "Warning", about=node.next_attempt or "")
        elif node.state == "Lost":
            yield Happening(reasons.EVENT_NODE_LOST, words, "Warning", about=node.reason)


def _sealed(was: EgressStatus, now: EgressStatus) -> Iterator[Happening]:
    """Each probe is told once, so that the events are its history."""
    if now.run not in ("", was.run):
        kind: Literal["Normal", "Warning"] = "Normal" if now.verdict == reasons.SEALED else "Warning"
        yield Happening(now.verdict, now.message, kind, about=now.run)
    if now.isolated and not was.isolated:
        words = f"{now.verdict} was confirmed by a second probe, and the pods are stopped."
        yield Happening(reasons.EVENT_ISOLATED, words, "Warning", about=now.run)
    if was.isolated and not now.isolated:
        words = "Somebody released the isolation; the model is served again once a probe has said Sealed."
        yield Happening(reasons.EVENT_RELEASED, words, about=now.released)
    if now.mirror_exception not in ("", was.mirror_exception):
        yield Happening(reasons.EVENT_EXCEPTION_OPENED, now.mirror_exception)
    if was.mirror_exception and not now.mirror_exception:
        yield Happening(reasons.EVENT_EXCEPTION_CLOSED, f"It is over: {was.mirror_exception}")


def _ready(was: Condition | None, now: Condition | None) -> Iterator[Happening]:
    before = was.status if was else "Unknown"
    if now is None or now.status == before:
        return
    if now.status == "True":
        yield Happening(reasons.EVENT_READY, now.message, about=now.last_transition_time or "")
    elif before == "True":
        words = f"{now.reason}: {now.message}"
        yield Happening(reasons.EVENT_NOT_READY, words, "Warning", about=now.last_transition_time or "")


def _when(new: Mapping[str, Condition]) -> str:
    ready = new.get(reasons.READY)
    return (ready.last_transition_time or "") if ready else ""
