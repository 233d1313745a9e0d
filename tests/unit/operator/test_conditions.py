# SPDX-License-Identifier: Apache-2.0
"""The conditions as tools read them: kstatus' rules hold always, and the order of defects is fixed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sovereign_operator import conditions, reasons
from sovereign_operator.api import Condition, EgressStatus
from sovereign_operator.conditions import READY, Outcome, Situation, first_violation
from sovereign_operator.plan import Plan
from sovereign_operator.world import Stage
from tests.unit.operator.builders import a_model

FINE = Stage("True", "Fine", "fine")
UNPROVEN = Stage("Unknown", reasons.NOT_PROBED, "not proven")
NOW, THEN = "2026-01-31T12:00:00Z", "2026-01-01T00:00:00Z"


def a_plan(**changes: object) -> Plan:
    plan = Plan(mirrored=FINE, verified=FINE, placed=FINE, sealed=UNPROVEN, serving=FINE)
    return replace(plan, **changes)  # type: ignore[arg-type]


def bad(reason: str, stalled: bool = False) -> Stage:
    return Stage("False", reason, f"{reason} it is", stalled)


def a_situation(plan: Plan | None = None, outcome: Outcome | None = None, **spec: object) -> Situation:
    return Situation(a_model(**spec), plan or a_plan(), outcome or Outcome())  # type: ignore[arg-type]


def said(situation: Situation, before: tuple[Condition, ...] = ()) -> dict[str, Condition]:
    return {c.type: c for c in conditions.conditions(situation, before, NOW)}


SITUATIONS = {
    "ready": a_situation(),
    "mirroring": a_situation(a_plan(mirrored=bad("Mirroring"))),
    "forbidden": a_situation(a_plan(mirrored=bad("SourceForbidden", True))),
    "unverified": a_situation(a_plan(verified=bad("NotSigned", True))),
    "unplaced": a_situation(a_plan(placed=bad("NoMatchingNodes"))),
    "undistributed": a_situation(a_plan(distributed=bad("Fetching"))),
    "undistributed for long": a_situation(a_plan(distributed=bad("CacheCorrupt", True))),
    "unsealed": a_situation(a_plan(sealed=bad("PolicyMissing"))),
    "unproven": a_situation(a_plan(seal_required=True)),
    "leaking": a_situation(a_plan(seal_required=True, sealed=bad("LeakDetected", True))),
    "leak reported": a_situation(a_plan(sealed=bad("LeakDetected", True))),
    "isolated": a_situation(a_plan(seal_required=True, egress=EgressStatus(isolated=True))),
    "starting": a_situation(a_plan(serving=bad("Starting"))),
    "refused": a_situation(outcome=Outcome(refused="exceeded quota")),
    "contested": a_situation(outcome=Outcome(contested="rival")),
    "going": a_situation(outcome=Outcome(terminating=True)),
    "stopping": a_situation(a_plan(serving=bad("Suspended")), suspend=True),
    "stopped": a_situation(a_plan(serving=bad("Suspended"), stopped=True), suspend=True),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_reconciling_and_stalled_are_never_both_there_and_neither_beside_ready(name: str) -> None:
    found = said(SITUATIONS[name])
    companions = {kind for kind in ("Reconciling", "Stalled") if kind in found}
    assert all(found[kind].status == "True" for kind in companions)
    assert len(companions) <= 1
    assert found["Ready"].status in ("True", "False")
    if found["Ready"].status == "True":
        assert not companions


@pytest.mark.parametrize("name", SITUATIONS)
def test_all_stages_are_there_and_everything_carries_the_generation(name: str) -> None:
    found = said(SITUATIONS[name])
    assert found.keys() & set(reasons.STAGES) == set(reasons.STAGES) - (
        set() if name.startswith("undistributed") else {"Distributed"}
    )
    assert {c.observed_generation for c in found.values()} == {1}


@pytest.mark.parametrize(
    ("name", "reason", "companion"),
    [
        ("ready", "AllChecksPassed", ""),
        ("mirroring", "Mirroring", "Reconciling"),
        ("forbidden", "SourceForbidden", "Stalled"),
        ("unverified", "NotSigned", "Stalled"),
        ("unplaced", "NoMatchingNodes", "Reconciling"),
        ("undistributed", "Fetching", "Reconciling"),
        ("undistributed for long", "CacheCorrupt", "Stalled"),
        ("unsealed", "PolicyMissing", "Reconciling"),
        ("unproven", "NotProbed", "Reconciling"),
        ("leaking", "LeakDetected", "Stalled"),
        ("leak reported", "AllChecksPassed", ""),
        ("isolated", "Isolated", "Stalled"),
        ("starting", "Starting", "Reconciling"),
        ("refused", "ApplyRefused", "Stalled"),
        ("contested", "FieldConflict", "Stalled"),
        ("going", "Deleting", "Reconciling"),
        ("stopping", "Suspended", "Reconciling"),
        ("stopped", "Suspended", ""),
    ],
)
def test_the_reason_of_ready_is_the_first_defect(name: str, reason: str, companion: str) -> None:
    found = said(SITUATIONS[name])
    assert found["Ready"].reason == reason
    assert [kind for kind in ("Reconciling", "Stalled") if kind in found] == (
        [companion] if companion else []
    )
    if companion:
        assert (found[companion].reason, found[companion].message) == (reason, found["Ready"].message)


def test_an_earlier_defect_hides_a_later_one() -> None:
    plan = a_plan(
        blocked=bad("ImageNotPinned", True),
        mirrored=bad("Mirroring"),
        verified=bad("NotSigned", True),
        placed=bad("NoMatchingNodes"),
        distributed=bad("CacheFull"),
        sealed=bad("PolicyMissing"),
        seal_required=True,
        serving=bad("Starting"),
    )
    situation = a_situation(plan, Outcome(refused="no", contested="rival", terminating=True), suspend=True)
    found = [violation.reason for check in READY if (violation := check(situation)) is not None]
    assert found == [
        "Deleting",
        "ApplyRefused",
        "FieldConflict",
        "Suspended",
        "ImageNotPinned",
        "Mirroring",
        "NotSigned",
        "NoMatchingNodes",
        "CacheFull",
        "PolicyMissing",
        "PolicyMissing",
        "Starting",
    ]
    first = first_violation(situation)
    assert first is not None
    assert first.reason == "Deleting"


def test_an_egress_that_was_not_probed_does_not_keep_a_model_from_being_ready() -> None:
    found = said(a_situation())
    assert found["EgressSealed"].status == "Unknown"
    assert found["Ready"].status == "True"


def test_the_time_of_the_last_transition_stays_while_the_status_does() -> None:
    old = Condition(type="Ready", status="False", reason="Starting", last_transition_time=THEN)
    same = said(a_situation(a_plan(serving=bad("ReplicasMissing"))), (old,))
    assert same["Ready"].last_transition_time == THEN
    assert same["Ready"].reason == "ReplicasMissing"
    other = said(a_situation(), (old,))
    assert other["Ready"].last_transition_time == NOW


@pytest.mark.parametrize("distributed", [False, True])
def test_what_is_said_first_is_not_green(distributed: bool) -> None:
    overall, stages = conditions.unobserved(distributed)
    assert {stage.status for stage in stages.values()} == {"Unknown"}
    assert set(stages) == set(reasons.STAGES) - (set() if distributed else {"Distributed"})
    assert overall["Ready"].status == "Unknown"


def test_a_message_of_any_length_fits_into_a_condition() -> None:
    found = said(a_situation(outcome=Outcome(refused="x" * 100_000)))
    assert len(found["Ready"].message) == 1024


def test_ready_claims_a_seal_only_where_one_was_proven() -> None:
    assert "sealed" not in said(a_situation())["Ready"].message
    assert "sealed" in said(a_situation(a_plan(sealed=FINE)))["Ready"].message


def test_ready_says_of_weights_on_nodes_that_they_are_there() -> None:
    assert said(a_situation())["Ready"].message == "Mirrored, verified, placed and serving."
    both = said(a_situation(a_plan(sealed=FINE, distributed=FINE)))["Ready"].message
    assert both == "Mirrored, verified, placed, distributed, sealed and serving."
