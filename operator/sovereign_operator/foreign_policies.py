# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicies that somebody else wrote where models are. Pure.

Policies only ever add to what is allowed, so one more of them can open what ours deny. Where the chart's
admission policies are in force nobody else can write one; elsewhere it is noticed here, and a new probe says
whether something gets out. Only what could open a way out counts: a policy that lets others in opens none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sovereign_operator.api import LABEL_COMPONENT, LABEL_MODEL, SEALED_COMPONENTS
from sovereign_operator.values import Manifest

# More than these are counted and not named.
NAMED: Final = 64


def opened_by(policies: Iterable[Manifest], model: str) -> tuple[str, ...]:
    """Name and a hash of the spec of each policy that could open egress for pods of this model, sorted."""
    return tuple(sorted(_line(policy) for policy in policies if could_open(policy, model)))


def names_of(lines: Iterable[str]) -> tuple[str, ...]:
    """The names alone, bounded."""
    return tuple(line.partition(" ")[0] for line in lines)[:NAMED]


def could_open(policy: Manifest, model: str) -> bool:
    """Whether it has a rule for egress and a selector that the model's pods could match."""
    spec = policy.get("spec") or {}
    return bool(spec.get("egress")) and could_select(spec.get("podSelector") or {}, model)


def could_select(selector: Mapping[str, Any], model: str) -> bool:
    """False only where the labels that every sealed pod carries contradict it: others add more."""
    known = {LABEL_MODEL: (model,), LABEL_COMPONENT: SEALED_COMPONENTS}
    exact = (selector.get("matchLabels") or {}).items()
    if any(key in known and value not in known[key] for key, value in exact):
        return False
    return not any(
        _contradicts(wish, known[wish["key"]])
        for wish in selector.get("matchExpressions") or ()
        if wish.get("key") in known
    )


def _contradicts(wish: Mapping[str, Any], carried: tuple[str, ...]) -> bool:
    """Whether no pod with one of these values can match."""
    values = wish.get("values") or ()
    match wish.get("operator"):
        case "In":
            return not any(value in values for value in carried)
        case "NotIn":
            return all(value in values for value in carried)
        case "DoesNotExist":
            return True
    return False


def _line(policy: Manifest) -> str:
    text = json.dumps(policy["spec"], sort_keys=True)
    return f"{policy['metadata']['name']} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
