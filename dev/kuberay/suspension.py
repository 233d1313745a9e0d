# SPDX-License-Identifier: Apache-2.0
"""`spec.suspend` of a RayService, as KubeRay v1.7.0 has it: a state machine in two conditions. Pure.

running -> Suspending (written before anything is deleted) -> Suspended -> running. Once Suspending stands in
the status the deletion runs to its end, even when `suspend` is taken back meanwhile.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any

from dev.kuberay.conditions import is_true, set_condition

Manifest = dict[str, Any]

SUSPENDING, SUSPENDED = "Suspending", "Suspended"


class Step(Enum):
    RUN = auto()
    """Suspension has no say: go on."""
    BEGIN = auto()
    """`begin` the suspension; nothing is deleted yet."""
    DELETE = auto()
    """Delete what the RayService owns; `finish` when nothing is left."""
    STAY = auto()
    """Suspended, and meant to be."""
    RESUME = auto()
    """`resume`, then go on."""


def next_step(service: Manifest) -> Step:
    status, wanted = service.get("status", {}), bool(service["spec"].get("suspend"))
    if is_true(status, SUSPENDED):
        return Step.STAY if wanted else Step.RESUME
    if is_true(status, SUSPENDING):
        return Step.DELETE
    return Step.BEGIN if wanted else Step.RUN


def begin(status: Manifest, generation: int, now: str) -> None:
    status["observedGeneration"] = generation
    set_condition(
        status, SUSPENDING, True, "SuspendRequested",
        "Spec.Suspend is true; will delete all Kubernetes resources owned by this RayService.", now=now,
    )  # fmt: skip
    set_condition(status, "Ready", False, "SuspendInProgress", "RayService is suspending.", now=now)
    set_condition(status, "UpgradeInProgress", False, "SuspendInProgress", "No upgrade in progress.", now=now)
    status |= {"activeServiceStatus": {}, "pendingServiceStatus": {}}
    for field in ("numServeEndpoints", "serviceStatus"):
        status.pop(field, None)


def waiting(status: Manifest, now: str) -> None:
    message = "Waiting for all Kubernetes resources owned by this RayService to be deleted."
    set_condition(status, SUSPENDING, True, "SuspendInProgress", message, now=now)


def finish(status: Manifest, now: str) -> None:
    message = "All owned resources have been deleted."
    set_condition(status, SUSPENDING, False, "SuspendComplete", message, now=now)
    set_condition(status, SUSPENDED, True, "SuspendComplete", message, now=now)
    set_condition(status, "Ready", False, "SuspendComplete", "RayService is suspended.", now=now)
    set_condition(status, "UpgradeInProgress", False, "SuspendComplete", "No upgrade in progress.", now=now)


def resume(status: Manifest, generation: int, now: str) -> None:
    status["observedGeneration"] = generation
    set_condition(
        status,
        SUSPENDED,
        False,
        "RayServiceResumed",
        "Spec.Suspend is false; RayService has resumed.",
        now=now,
    )
    message = "RayService is initializing after resuming from suspend."
    for kind in ("Ready", "UpgradeInProgress"):
        set_condition(status, kind, False, "Initializing", message, now=now, fresh=True)
