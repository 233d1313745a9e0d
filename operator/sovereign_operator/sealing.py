# SPDX-License-Identifier: Apache-2.0
"""The network policies of one model: in force before its first pod, and for as long as one is left. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

from sovereign_operator import reasons
from sovereign_operator.api import ANNOTATION_RENDERED, FINALIZER
from sovereign_operator.desired.rendered import surplus
from sovereign_operator.rollout import first_difference, needs_apply
from sovereign_operator.values import Manifest
from sovereign_operator.world import (
    Action,
    Apply,
    Delete,
    Release,
    Reseal,
    Stage,
    Strip,
    annotation,
    is_dying,
    name_of,
)

MISSING: Final = Stage(
    "False", reasons.POLICY_MISSING, "Policies are being put in force, before anything else."
)


@dataclass(frozen=True, slots=True)
class SealingStep:
    """`in_force`: every policy was seen exactly as rendered. No pod may be created before."""

    policy_hash: str
    in_force: bool
    allowed: tuple[str, ...] = ()
    actions: tuple[Action, ...] = ()


def next_step(live: tuple[Manifest, ...], desired: tuple[Manifest, ...], sealed_before: bool) -> SealingStep:
    """What puts the policies in force. `sealed_before`: they were once, so a gap is somebody's doing."""
    by_name = {name_of(policy): policy for policy in live}
    actions: list[Action] = []
    in_force = True
    for wanted in desired:
        found = by_name.pop(name_of(wanted), None)
        if found is None:
            actions.append(Apply(wanted, restores=sealed_before))
        elif is_dying(found):
            in_force = False  # it still denies; without our finalizer it goes by itself and is put back then
            if FINALIZER in found["metadata"].get("finalizers", ()):
                actions.append(Reseal(found, wanted))
        elif needs_apply(found, wanted):
            same = annotation(found, ANNOTATION_RENDERED) == annotation(wanted, ANNOTATION_RENDERED)
            drift = first_difference(found, wanted) if same else ""
            actions.append(Apply(wanted, restores=same, drifted_at=drift))
        elif added := surplus(found["spec"], wanted["spec"]):
            # Policies only ever add up: one more rule in one of ours is a way out.
            actions.append(Strip(found, wanted, {"spec": added}))
    in_force = in_force and not actions
    if in_force:
        actions.extend(removal(tuple(by_name.values())))
    return SealingStep(policy_hash(desired), in_force, allowed(desired), tuple(actions))


def removal(policies: tuple[Manifest, ...]) -> tuple[Action, ...]:
    """Deletes policies and lets them go: only for those that no pod needs any more."""
    return tuple(
        action
        for policy in sorted(policies, key=name_of)
        for action in ((Release(policy),) if is_dying(policy) else (Delete(policy), Release(policy)))
    )


def policy_hash(desired: tuple[Manifest, ...]) -> str:
    """Which policies a probe's verdict is about."""
    specs = {name_of(policy): policy["spec"] for policy in desired}
    return hashlib.sha256(json.dumps(specs, sort_keys=True).encode()).hexdigest()[:16]


def allowed(desired: tuple[Manifest, ...]) -> tuple[str, ...]:
    """A short hash for each thing that is allowed: to whose pods, which way, with whom, on which port."""
    found: set[str] = set()
    anything: list[Manifest] = [{}]
    for policy in desired:
        spec = policy["spec"]
        for way, side in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(way) or ():
                for peer in rule.get(side) or anything:
                    for port in rule.get("ports") or anything:
                        found.add(_short_hash([spec["podSelector"], way, peer, port]))
    return tuple(sorted(found))


def _short_hash(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
