# SPDX-License-Identifier: Apache-2.0
"""Conditions in a status, by Kubernetes' rule: the transition time moves only when the status does. Pure."""

from __future__ import annotations

from typing import Any

Manifest = dict[str, Any]


def set_condition(
    status: Manifest,
    kind: str,
    value: bool | None,
    reason: str,
    message: str,
    *,
    now: str,
    fresh: bool = False,
) -> None:
    """Writes one condition in place; None is Unknown; `fresh` moves the transition time in any case."""
    conditions: list[Manifest] = status.setdefault("conditions", [])
    word = {True: "True", False: "False", None: "Unknown"}[value]
    old = next((c for c in conditions if c["type"] == kind), None)
    moved = fresh or old is None or old["status"] != word
    new = {
        "type": kind,
        "status": word,
        "reason": reason,
        "message": message,
        "observedGeneration": status.get("observedGeneration", 0),
        "lastTransitionTime": now if moved or old is None else old["lastTransitionTime"],
    }
    if old is None:
        conditions.append(new)
    else:
        conditions[conditions.index(old)] = new


def is_true(status: Manifest, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in status.get("conditions", []))


def reason_of(status: Manifest, kind: str) -> str | None:
    return next((c["reason"] for c in status.get("conditions", []) if c["type"] == kind), None)
