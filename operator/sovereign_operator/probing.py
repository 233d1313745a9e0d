# SPDX-License-Identifier: Apache-2.0
"""When the seal is probed, what its two Jobs answered, and what is known after that. Pure.

A run is two Jobs of one id, and the id follows from the one before, so an operator that starts anew finds
what it had begun. What a run said is kept in status.egress: its Jobs may go. It is probed before the first
pod, after each change of nodes or of policies, ours or others', and again when the proof is old; what proved
nothing or worse is tried again after 30 s to 10 min, a leak at once, because the second run confirms it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sovereign_airgap.probe.plan import Protocol
from sovereign_operator import peer, reasons
from sovereign_operator.api import ANNOTATION_PROBE_RUN, ANNOTATION_RELEASE, EgressStatus, SovereignModel
from sovereign_operator.config import OWN_NODE, OperatorConfig
from sovereign_operator.desired.probe import control_job, new_run, prober_job, targets
from sovereign_operator.desired.surroundings import on_worker_nodes, resolver
from sovereign_operator.foreign_policies import names_of
from sovereign_operator.placement import group_of
from sovereign_operator.probe_answers import answer_of, overdue
from sovereign_operator.sealing import MISSING, SealingStep
from sovereign_operator.values import Manifest
from sovereign_operator.verdict import BREACHES, ISOLATED_FOR, Answer, Question, Verdict, judge
from sovereign_operator.workqueue import backoff
from sovereign_operator.world import (
    Action,
    Create,
    Delete,
    Stage,
    World,
    annotation,
    is_dying,
    is_finished,
    moment,
    name_of,
    stamp,
)

BACKOFF_FIRST: Final = 30.0
BACKOFF_LAST: Final = 600.0
# Clocks of two machines differ; a proof from further ahead means that ours was set back.
SKEW: Final = timedelta(seconds=60)
# How soon a namespace without its label is looked at again: namespaces are not watched.
RECHECK_SECONDS: Final = 30.0
CONTROL_PLANE: Final = "node-role.kubernetes.io/control-plane"


@dataclass(frozen=True, slots=True)
class ProbingStep:
    """`proven`: for exactly what is rendered now. `rest`: how long only a change is worth a look, in s."""

    stage: Stage
    egress: EgressStatus
    proven: bool = False
    actions: tuple[Action, ...] = ()
    again: float | None = None  # seconds until the next look, whatever happens
    rest: float | None = None


@dataclass(frozen=True, slots=True)
class _Case:
    """One look at one model."""

    world: World
    model: SovereignModel
    config: OperatorConfig
    purpose: str  # what a proof has to be about

    @property
    def may_run(self) -> bool:
        return self.config.probe.canary is not None and not self.model.spec.suspend


def next_step(world: World, model: SovereignModel, seal: SealingStep, config: OperatorConfig) -> ProbingStep:
    """What to do about the proof, and what EgressSealed says."""
    case = _Case(world, model, config, purpose_of(world, model, seal.policy_hash, config))
    known = _still_known(model, seal)
    if not seal.in_force:
        return ProbingStep(MISSING, known, actions=_discarded(case, known))
    if not case.may_run:
        return _at_rest(case, known, (*_strays(case, ""), *peer.removal(world)))
    run = new_run(model, case.purpose, known.run)
    strays = _strays(case, run)
    if not (_of_run(world, run) or _seconds_until_due(case, known) <= 0):
        return _at_rest(case, known, (*peer.next_step(world, model, config).actions, *strays))
    return _underway(case, known, run, strays)


def purpose_of(world: World, model: SovereignModel, policy_hash: str, config: OperatorConfig) -> str:
    """What a proof is about: everything that is tried and, after the dot, the nodes that it may be on and
    what others wrote that could open the seal. Those come and go: a proof counts until the next is there."""
    tried: dict[str, Any] = {
        "policies": policy_hash,
        "image": config.images.airgap,
        "canary": config.probe.canary,
        "targets": [target.as_json() for target in targets(config)],
        "place": on_worker_nodes(model, config),
        "resolver": resolver(model, config),
    }
    around = [*(node.name for node in group_of(model.spec, world.nodes)), *world.opened_by_others]
    return f"{_digest(tried)}.{_digest(around)}"


# -- what is known ----------------------------------------------------------------------------------------


def _still_known(model: SovereignModel, seal: SealingStep) -> EgressStatus:
    """The last verdict; void once a policy was missing, and after somebody released the pods."""
    known = model.status.egress or EgressStatus()
    known = known.model_copy(update={"policy_hash": seal.policy_hash})
    asked = _release(model)
    if known.isolated and asked not in ("", known.released):
        return _void(known).model_copy(update={"isolated": False, "released": asked})
    return known if seal.in_force else _void(known)


def _void(known: EgressStatus) -> EgressStatus:
    return known.model_copy(update={"probe_hash": "", "in_a_row": 0, "unanswered": 0})


def _release(model: SovereignModel) -> str:
    return model.metadata.annotations.get(ANNOTATION_RELEASE, "")[:256]


def _holds(case: _Case, known: EgressStatus) -> bool:
    """Whether the verdict is about our policies; other nodes, and policies of others, are probed next and
    void nothing."""
    return bool(known.probe_hash) and known.probe_hash.partition(".")[0] == case.purpose.partition(".")[0]


def _age(case: _Case, known: EgressStatus) -> timedelta | None:
    """How old the last proof is; None where there is none, or where it is from the future."""
    ended = moment(known.last_probe)
    return None if ended is None or ended > case.world.now + SKEW else case.world.now - ended


def _seconds_until_due(case: _Case, known: EgressStatus) -> float:
    age = _age(case, known)
    if age is None or known.probe_hash != case.purpose:
        return 0.0
    return _wait_after(known, case.config) - age.total_seconds()


def _wait_after(known: EgressStatus, config: OperatorConfig) -> float:
    if known.unanswered:
        return backoff(known.unanswered, 0.0, BACKOFF_FIRST, BACKOFF_LAST)
    if known.verdict == reasons.SEALED:
        return float(config.probe.interval_seconds)
    if known.verdict in ISOLATED_FOR and known.in_a_row == 1:
        return 0.0
    return backoff(max(known.in_a_row, 1), 0.0, BACKOFF_FIRST, BACKOFF_LAST)


# -- what is said -----------------------------------------------------------------------------------------


def _stage(case: _Case, known: EgressStatus, waits: str = "", blocked: bool = False) -> Stage:
    """A proven breach first, then what keeps a proof from counting, then the proof."""
    holds = _holds(case, known)
    if holds and known.verdict in BREACHES:
        return Stage("False", known.verdict, known.message, stalled=True)
    if case.world.namespace_sealed is False:
        return _not_labelled(case.model.namespace)
    if not holds:
        return _unproven(case, waits, blocked)
    if known.verdict != reasons.SEALED:
        return Stage("Unknown", known.verdict, known.message)
    age, limit = _age(case, known), timedelta(seconds=2 * case.config.probe.interval_seconds)
    if age is None or age > limit:
        words = (
            f"The last proof is of {known.last_probe}, and a proof counts for {limit}; a new probe is due."
        )
        return Stage("Unknown", reasons.STALE, words)
    return Stage("True", reasons.SEALED, known.message)


def _unproven(case: _Case, waits: str, blocked: bool) -> Stage:
    if case.config.probe.canary is None:
        words = "The policies are in force in the API; nothing was proven, because probe.canary is not set."
        return Stage("Unknown", reasons.NOT_PROBED, words, stalled=True)
    if case.model.spec.suspend:
        words = "The policies are in force in the API; they are probed once the model is resumed."
        return Stage("Unknown", reasons.NOT_PROBED, words)
    if blocked:
        return Stage("Unknown", reasons.PROBE_INCONCLUSIVE, f"The probe {waits}")
    return Stage("Unknown", reasons.PROBING, f"The probe {waits or 'is under way.'}")


def _not_labelled(namespace: str) -> Stage:
    words = (
        f"Expected the label sovereign.dev/sealed=true on the namespace {namespace}: without it the "
        "admission policies do not guard it. The platform team sets it."
    )
    return Stage("False", reasons.NAMESPACE_NOT_SEALED, words, stalled=True)


# -- what is done -----------------------------------------------------------------------------------------


def _at_rest(case: _Case, known: EgressStatus, actions: tuple[Action, ...]) -> ProbingStep:
    stage = _stage(case, known)
    unlabelled = stage.reason == reasons.NAMESPACE_NOT_SEALED
    return ProbingStep(
        stage,
        known,
        proven=stage.is_true and known.probe_hash == case.purpose,
        actions=actions,
        again=RECHECK_SECONDS if unlabelled else None,
        rest=max(1.0, _seconds_until_due(case, known)) if case.may_run else None,
    )


def _underway(case: _Case, known: EgressStatus, run: str, strays: tuple[Action, ...]) -> ProbingStep:
    """Peer first, then both Jobs, then their answers."""
    companion = peer.next_step(case.world, case.model, case.config)
    actions = (*companion.actions, *strays)
    jobs = _of_run(case.world, run)
    if not jobs and not companion.ready:
        waits = f"waits for its peer: {companion.waits.rstrip('.')}."
        return _waiting(case, known, actions, waits, companion.blocked)
    if not jobs and not _has_a_node(case):
        return _waiting(case, known, actions, "waits for a node that its prober could run on.")
    wanted = (control_job(case.model, case.config, run), prober_job(case.model, case.config, run))
    found = {name_of(job): job for job in jobs}
    missing = tuple(Create(job) for job in wanted if name_of(job) not in found)
    left = _seconds_left(case, jobs)
    answers = [_answer(case, found.get(name_of(job)), left) for job in wanted]
    if any(answer is None for answer in answers):
        return _waiting(case, known, (*actions, *missing), "is under way.", again=left)
    control, prober = answers
    assert control is not None and prober is not None
    verdict = judge(prober, control, _question(case))
    leftovers = tuple(Delete(job, foreground=True) for job in jobs if not is_finished(job))
    return _at_rest(case, _after(case, known, run, verdict), (*actions, *leftovers))


def _waiting(
    case: _Case,
    known: EgressStatus,
    actions: tuple[Action, ...],
    waits: str,
    blocked: bool = False,
    again: float | None = None,
) -> ProbingStep:
    stage = _stage(case, known, waits, blocked)
    recheck = RECHECK_SECONDS if stage.reason == reasons.NAMESPACE_NOT_SEALED else None
    soonest = min((each for each in (again, recheck) if each is not None), default=None)
    # Whatever else it waits for is a pod or a node, and those are watched. A proof may grow old meanwhile.
    age = _age(case, known) if stage.is_true else None
    rest = 2 * case.config.probe.interval_seconds - age.total_seconds() + 1 if age is not None else None
    return ProbingStep(
        stage,
        known,
        proven=stage.is_true and known.probe_hash == case.purpose,
        actions=actions,
        again=soonest,
        rest=rest,
    )


def _after(case: _Case, known: EgressStatus, run: str, verdict: Verdict) -> EgressStatus:
    """What is known once a run was judged. One that proved nothing takes no proven breach away."""
    at = {"probe_hash": case.purpose, "last_probe": stamp(case.world.now), "run": run}
    if verdict.reason == reasons.PROBE_INCONCLUSIVE and _holds(case, known) and known.verdict in BREACHES:
        return known.model_copy(update={**at, "unanswered": known.unanswered + 1})
    alike = known.verdict == verdict.reason or {known.verdict, verdict.reason} <= ISOLATED_FOR
    in_a_row = known.in_a_row + 1 if alike and _holds(case, known) else 1
    isolated = known.isolated or _isolates(case, verdict, in_a_row)
    return known.model_copy(
        update={
            **at,
            "verdict": verdict.reason,
            "message": verdict.message[:1000],
            "in_a_row": in_a_row,
            "unanswered": 0,
            "node": verdict.node,
            "settled_seconds": "" if verdict.settled is None else f"{verdict.settled:g}",
            "denied": verdict.denied,
            "unprovable": list(verdict.unprovable[:48]),
            "findings": list(verdict.findings[:48]),
            "isolated": isolated,
            # What stands in the annotation now released an earlier isolation, or none.
            "released": _release(case.model) if isolated and not known.isolated else known.released,
        }
    )


def _isolates(case: _Case, verdict: Verdict, in_a_row: int) -> bool:
    """Confirmed by a second pod, wanted by the model, and there is something to stop."""
    service = case.world.ray_service
    return (
        case.config.seal == "Required"
        and case.model.spec.network.on_leak == "Isolate"
        and verdict.reason in ISOLATED_FOR
        and in_a_row >= 2
        and service is not None
        and not service["spec"].get("suspend")
    )


def _question(case: _Case) -> Question:
    tried = targets(case.config)
    return Question(
        targets=tuple(target.name for target in tried if target.name != OWN_NODE),
        names=frozenset(target.name for target in tried if target.protocol is Protocol.RESOLVE),
        suspects=names_of(case.world.opened_by_others),
        control_planes=frozenset(node.name for node in case.world.nodes if CONTROL_PLANE in node.labels),
    )


def _answer(case: _Case, job: Manifest | None, left: float) -> Answer | None:
    pods = case.world.probe_pods
    answer = answer_of(job, pods) if job is not None else None
    return overdue(job, pods, case.config.probe.deadline_seconds) if answer is None and left <= 0 else answer


def _seconds_left(case: _Case, jobs: Sequence[Manifest]) -> float:
    started: list[datetime] = [
        when for job in jobs if (when := moment(job["metadata"].get("creationTimestamp"))) is not None
    ]
    passed = (case.world.now - min(started)).total_seconds() if started else 0.0
    return case.config.probe.deadline_seconds - passed


def _of_run(world: World, run: str) -> tuple[Manifest, ...]:
    return tuple(
        job for job in world.probe_jobs if annotation(job, ANNOTATION_PROBE_RUN) == run and not is_dying(job)
    )


def _strays(case: _Case, run: str) -> tuple[Action, ...]:
    """Jobs that still try what nobody wants to know any more; finished ones go by themselves."""
    return tuple(
        Delete(job, foreground=True)
        for job in case.world.probe_jobs
        if annotation(job, ANNOTATION_PROBE_RUN) != run and not is_dying(job) and not is_finished(job)
    )


def _discarded(case: _Case, known: EgressStatus) -> tuple[Action, ...]:
    """What was tried while a policy was missing is no answer to anything."""
    return tuple(
        Delete(job, foreground=True)
        for job in case.world.probe_jobs
        if annotation(job, ANNOTATION_PROBE_RUN) != known.run and not is_dying(job)
    )


def _has_a_node(case: _Case) -> bool:
    return any(node.ready and node.schedulable for node in group_of(case.model.spec, case.world.nodes))


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
