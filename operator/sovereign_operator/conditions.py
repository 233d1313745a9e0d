# SPDX-License-Identifier: Apache-2.0
"""Readiness as a list of named defects, and the conditions that say so. Pure.

READY is the specification: a model is Ready when none of these defects is found, and otherwise the first
one is the reason. A later check may rely on the earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sovereign_operator import rdma, reasons
from sovereign_operator.api import ANNOTATION_RELEASE, Condition, SovereignModel
from sovereign_operator.plan import Plan
from sovereign_operator.world import Stage

Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Violation:
    """A defect that keeps a model from being Ready. `ends`: it is neither progress nor an obstacle."""

    reason: str
    message: str
    stalled: bool = False
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of carrying a plan out; empty strings where nothing stood in the way."""

    refused: str = ""  # by the API server, in its words
    contested: str = ""  # by another field manager
    terminating: bool = False  # the namespace is going
    writes: int = 0


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that a check may look at."""

    model: SovereignModel
    plan: Plan
    outcome: Outcome


Check = Callable[[Situation], Violation | None]


def namespace_is_going(it: Situation) -> Violation | None:
    if not it.outcome.terminating:
        return None
    return Violation(reasons.DELETING, f"The namespace {it.model.namespace} is being deleted.")


def child_is_refused(it: Situation) -> Violation | None:
    if not it.outcome.refused:
        return None
    return Violation(reasons.APPLY_REFUSED, it.outcome.refused, stalled=True)


def fields_are_contested(it: Situation) -> Violation | None:
    if not it.outcome.contested:
        return None
    return Violation(reasons.FIELD_CONFLICT, it.outcome.contested, stalled=True)


def model_is_suspended(it: Situation) -> Violation | None:
    if not it.model.spec.suspend:
        return None
    return Violation(reasons.SUSPENDED, it.plan.serving.message, ends=it.plan.stopped)


def model_is_isolated(it: Situation) -> Violation | None:
    if not it.plan.egress.isolated:
        return None
    words = (
        f"The pods were stopped after a proven leak. The last probe: {it.plan.egress.message} Once the way "
        f"out is closed, set the annotation {ANNOTATION_RELEASE} to a new value."
    )
    return Violation(reasons.ISOLATED, words, stalled=True)


def spec_is_defective(it: Situation) -> Violation | None:
    return _of(it.plan.blocked) if it.plan.blocked else None


def artifact_is_missing(it: Situation) -> Violation | None:
    return _unless_true(it.plan.mirrored)


def artifact_is_unverified(it: Situation) -> Violation | None:
    return _unless_true(it.plan.verified)


def nodes_are_missing(it: Situation) -> Violation | None:
    return _unless_true(it.plan.placed)


def weights_are_missing(it: Situation) -> Violation | None:
    """On nodes, where they are kept there: pods that deliver for themselves say so themselves."""
    return _unless_true(it.plan.distributed) if it.plan.distributed else None


def policy_is_missing(it: Situation) -> Violation | None:
    return _of(it.plan.sealed) if it.plan.sealed.reason == reasons.POLICY_MISSING else None


def seal_is_unproven(it: Situation) -> Violation | None:
    if not it.plan.seal_required:
        return None
    words = f"The operator's configuration has seal: Required. {it.plan.sealed.message}"
    return Violation(it.plan.sealed.reason, words, it.plan.sealed.stalled)


def replicas_are_missing(it: Situation) -> Violation | None:
    return _unless_true(it.plan.serving)


READY: tuple[Check, ...] = (
    namespace_is_going,
    child_is_refused,
    fields_are_contested,
    model_is_suspended,
    model_is_isolated,
    spec_is_defective,
    artifact_is_missing,
    artifact_is_unverified,
    nodes_are_missing,
    weights_are_missing,
    policy_is_missing,
    seal_is_unproven,
    replicas_are_missing,
)


def first_violation(situation: Situation) -> Violation | None:
    return next((found for check in READY if (found := check(situation)) is not None), None)


def conditions(situation: Situation, before: tuple[Condition, ...], now: str) -> list[Condition]:
    """All conditions: Ready and the stages always, Reconciling or Stalled where they are True."""
    violation = first_violation(situation)
    plan = situation.plan
    stages = {
        reasons.MIRRORED: plan.mirrored,
        reasons.VERIFIED: plan.verified,
        reasons.PLACED: plan.placed,
        reasons.EGRESS_SEALED: rdma.told(plan.sealed, situation.model),
        reasons.SERVING: plan.serving,
    }
    if plan.distributed is not None:
        stages[reasons.DISTRIBUTED] = plan.distributed
    generation = situation.model.metadata.generation
    optional = (("distributed", plan.distributed), ("sealed", plan.sealed))
    passed = [word for word, stage in optional if stage is not None and stage.is_true]
    return merged(overall(violation, passed), stages, before, generation, now)


def overall(violation: Violation | None, passed: Sequence[str] = ()) -> dict[str, Stage]:
    """Ready and its companions: Reconciling and Stalled are never both there, and neither beside Ready.
    `passed`: stages that not every model has."""
    if violation is None:
        words = f"{', '.join(('Mirrored', 'verified', 'placed', *passed))} and serving."
        return {reasons.READY: Stage("True", reasons.ALL_CHECKS_PASSED, words)}
    said = {reasons.READY: Stage("False", violation.reason, violation.message)}
    if not violation.ends:
        kind = reasons.STALLED if violation.stalled else reasons.RECONCILING
        said[kind] = Stage("True", violation.reason, violation.message)
    return said


def unobserved(distributed: bool) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """What is said before anything was looked at: nothing is green. `distributed`: nodes keep weights."""
    unknown = Stage("Unknown", reasons.NOT_OBSERVED, "The operator has not looked at this yet.")
    said = {
        reasons.READY: unknown,
        reasons.RECONCILING: Stage("True", reasons.NOT_OBSERVED, "The operator starts to look at this."),
    }
    stages = (stage for stage in reasons.STAGES if distributed or stage != reasons.DISTRIBUTED)
    return said, dict.fromkeys(stages, unknown)


def merged(
    said: dict[str, Stage],
    stages: dict[str, Stage],
    before: tuple[Condition, ...],
    generation: int,
    now: str,
) -> list[Condition]:
    """The conditions in a fixed order; the time of the last transition stays while the status does."""
    old = {condition.type: condition for condition in before}
    return [
        _condition(kind, stage, old.get(kind), generation, now)
        for kind in reasons.CONDITION_TYPES
        if (stage := said.get(kind) or stages.get(kind)) is not None
    ]


def _condition(kind: str, stage: Stage, old: Condition | None, generation: int, now: str) -> Condition:
    same = old is not None and old.status == stage.status and old.last_transition_time
    return Condition(
        type=kind,
        status=stage.status,
        reason=stage.reason,
        message=stage.message[:1024],
        last_transition_time=old.last_transition_time if old is not None and same else now,
        observed_generation=generation,
    )


def _of(stage: Stage) -> Violation:
    return Violation(stage.reason, stage.message, stage.stalled)


def _unless_true(stage: Stage) -> Violation | None:
    return None if stage.is_true else _of(stage)
