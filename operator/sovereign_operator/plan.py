# SPDX-License-Identifier: Apache-2.0
"""From what is seen to what is done: one pure function, its answer a value that `carry_out.py` executes.

The order is the product: policies are seen in force and proven before a RayService exists, a new revision
is mirrored, verified and, where nodes keep weights, brought to nodes before the old one is touched, and
whatever cannot be said leaves what serves alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sovereign_operator import (
    distribution,
    mirror,
    mirror_exception,
    probing,
    reasons,
    rollout,
    sealing,
    serving,
    verification,
)
from sovereign_operator.api import FINALIZER, DeliveryStatus, EgressStatus, MirrorStatus, SovereignModel
from sovereign_operator.config import OperatorConfig
from sovereign_operator.kuberay import RECHECK_SECONDS, KubeRay
from sovereign_operator.placement import plan as choose_placement
from sovereign_operator.rollout import Memo, planned_for, stamped
from sovereign_operator.values import Artifact, Manifest, Placement
from sovereign_operator.wanted import Unrenderable, Wanted, render
from sovereign_operator.world import Action, Happening, Hold, Stage, World

# What nobody but the user can change about a placement.
_IMPOSSIBLE = (reasons.PARALLELISM_IMPOSSIBLE, reasons.REMOTE_CODE_REQUIRED, reasons.SPEC_INVALID)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do in order, and what every stage says."""

    mirrored: Stage
    verified: Stage
    placed: Stage
    sealed: Stage
    serving: Stage
    distributed: Stage | None = None  # None: weights are not kept on nodes
    blocked: Stage | None = None  # the spec itself keeps anything new from being served
    moving: Stage | None = None  # a rollout is under way
    actions: tuple[Action, ...] = ()
    artifact: Artifact | None = None
    mirror: MirrorStatus | None = None
    placement: Placement | None = None
    delivery: DeliveryStatus | None = None
    egress: EgressStatus = field(default_factory=EgressStatus)
    seal_required: bool = False  # the configuration wants a proof that there is not
    ready_replicas: int = 0
    serving_artifact: str = ""
    stopped: bool = False  # suspended, and the last pod is gone
    upgrade_starts: bool = False
    told: tuple[Happening, ...] = ()  # what cannot be seen from two statuses
    again: float | None = None
    rest: float | None = None  # how long only a change is worth a look, in s
    unsettled: str = ""  # why to look again with backoff


def plan(world: World, model: SovereignModel, wanted: Wanted, config: OperatorConfig) -> Plan:
    """What this model needs now."""
    hold: tuple[Action, ...] = () if FINALIZER in model.metadata.finalizers else (Hold(),)
    seal = sealing.next_step(world.policies, wanted.policies, _was_sealed(model))
    probe = probing.next_step(world, model, seal, config)
    mirroring = mirror.next_step(world, model, wanted.job, config.external_sources.allowed)
    exception = mirror_exception.next_step(world, wanted.job, config)
    verifying = verification.next_step(world, model, mirroring.artifact)
    verified = verifying.stage
    # A mirror that runs is looked at more often than backoff would.
    unverified = verifying.unsettled if mirroring.artifact else ""
    blocked = spec_defect(model, config)
    placed, memo = _placed(world, model, mirroring.artifact, config)
    distributing = distribution.next_step(
        world, model, memo if verified.is_true and blocked is None else None, config
    )
    memo = _on_nodes(memo, model, distributing.chosen) if memo else None
    desired: Manifest | None = None
    try:
        # Nothing unverified is rendered, not even to be stopped.
        desired = _desired(world, model, memo if verified.is_true else None, seal.allowed, config)
    except Unrenderable as error:
        blocked = blocked or Stage("False", reasons.SPEC_INVALID, str(error), stalled=True)
    kuberay = _kuberay(world)
    required = config.seal == "Required"
    may_roll = seal.in_force and (probe.proven or not required or model.spec.suspend)
    held_back = blocked is not None or not verified.is_true or memo is None or not distributing.complete
    step = rollout.RolloutStep()
    if kuberay is None and probe.egress.isolated and not model.spec.suspend:
        step = rollout.isolated(world.ray_service)
    elif kuberay is None and may_roll:
        step = rollout.next_step(world, model, desired if not held_back or model.spec.suspend else None)
    view = serving.view(world, model, None if held_back else desired)
    return Plan(
        mirrored=mirroring.stage,
        verified=verified,
        placed=placed,
        distributed=distributing.stage,
        sealed=probe.stage,
        serving=kuberay or step.moving or view.stage,
        blocked=blocked,
        moving=step.moving,
        # The probe comes last: whatever keeps it from running keeps nothing else from being done.
        actions=(
            *hold,
            *seal.actions,
            *mirroring.actions,
            *exception.actions,
            *step.actions,
            *distributing.actions,
            *probe.actions,
        ),
        artifact=mirroring.artifact,
        mirror=mirroring.status,
        placement=memo.placement if memo else None,
        delivery=distributing.status,
        egress=probe.egress.model_copy(update={"mirror_exception": exception.said}),
        seal_required=required and not probe.stage.is_true,
        ready_replicas=0 if model.spec.suspend or probe.egress.isolated else view.ready_replicas,
        serving_artifact=view.artifact,
        stopped=model.spec.suspend and not (world.pods or world.ray_clusters or step.actions),
        upgrade_starts=step.upgrade_starts,
        told=distributing.told,
        again=_soonest(
            mirroring.again,
            verifying.again,
            distributing.again,
            probe.again,
            RECHECK_SECONDS if kuberay else None,
        ),
        rest=_soonest(probe.rest, distributing.rest),
        unsettled=mirroring.stage.message if mirroring.unsettled else unverified or _unknown(placed),
    )


def spec_defect(model: SovereignModel, config: OperatorConfig) -> Stage | None:
    """What the API server accepts and this operator does not serve."""
    spec = model.spec
    image = spec.serving.image
    if config.images.require_digest and "@sha256:" not in image:
        return _stalled(
            reasons.IMAGE_NOT_PINNED,
            f"Expected spec.serving.image with a digest (…@sha256:…), found {image}. A tag can be moved; "
            "name the digest, or set images.requireDigest to false in the operator's configuration.",
        )
    if spec.delivery.mode == "nodeCache" and config.node_cache is None:
        return _stalled(
            reasons.DELIVERY_MODE_UNAVAILABLE,
            "Expected nodeCache in the operator's configuration for delivery.mode nodeCache, found none. Set "
            "nodeCache.enabled in the chart's values, or use delivery.mode ephemeral.",
        )
    if spec.serving.adapters:
        return _stalled(
            reasons.ADAPTERS_UNAVAILABLE,
            "serving.adapters are not delivered in this version; remove them.",
        )
    return None


def _unknown(placed: Stage) -> str:
    """A load puts the facts behind the manifest, and tells nobody when they are there."""
    return placed.message if placed.reason == reasons.FACTS_MISSING else ""


def _placed(
    world: World, model: SovereignModel, artifact: Artifact | None, config: OperatorConfig
) -> tuple[Stage, Memo | None]:
    """The placement in force where it was chosen for the same wishes, else a new one."""
    if artifact is None:
        return Stage("Unknown", reasons.WAITING, "There is no artifact to place yet."), None
    purpose = planned_for(model, artifact)
    memo = Memo.of(world.ray_service)
    # The reference is compared too: what is rendered from a memo is what was verified, or nothing.
    if memo is None or memo.planned_for != purpose or memo.artifact.reference != artifact.reference:
        found = choose_placement(model.spec, artifact.facts, world.nodes, config)
        if not isinstance(found, Placement):
            stalled = found.reason in _IMPOSSIBLE
            return Stage("False", found.reason, found.message, stalled), None
        memo = Memo(purpose, artifact, found)
    return Stage("True", reasons.PLACEMENT_CHOSEN, memo.placement.why or "Placed."), memo


def _on_nodes(memo: Memo, model: SovereignModel, chosen: tuple[str, ...]) -> Memo:
    """The nodes that workers prefer are part of their template: chosen once, and then left as they are."""
    if model.spec.delivery.mode == "ephemeral":
        return memo.on(())
    return memo if memo.placement.chosen else memo.on(chosen)


def _desired(
    world: World,
    model: SovereignModel,
    memo: Memo | None,
    allowed: tuple[str, ...],
    config: OperatorConfig,
) -> Manifest | None:
    """The RayService that is wanted. To suspend, what is there is good enough to render from."""
    if memo is None and model.spec.suspend:
        memo = Memo.of(world.ray_service)
    if memo is None:
        return None
    rendered = render(model, memo.artifact, memo.placement, config)
    return stamped(rendered, memo, allowed, world.ray_service)


def _kuberay(world: World) -> Stage | None:
    match world.kuberay:
        case KubeRay.MISSING:
            words = (
                "The cluster has no RayService API. Install KubeRay 1.7 or newer; it is noticed by itself."
            )
            return _stalled(reasons.KUBERAY_MISSING, words)
        case KubeRay.TOO_OLD:
            words = (
                "This KubeRay's RayService has no token authentication or no suspend. Expected KubeRay 1.7 "
                "or newer; an update is noticed by itself."
            )
            return _stalled(reasons.KUBERAY_TOO_OLD, words)
    return None


def _was_sealed(model: SovereignModel) -> bool:
    """Policies were in force once, so a missing one is somebody's doing."""
    return model.status.egress is not None and bool(model.status.egress.policy_hash)


def _stalled(reason: str, words: str) -> Stage:
    return Stage("False", reason, words, stalled=True)


def _soonest(*moments: float | None) -> float | None:
    return min((moment for moment in moments if moment is not None), default=None)
