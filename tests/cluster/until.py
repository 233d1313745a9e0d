# SPDX-License-Identifier: Apache-2.0
"""Waiting for what users would wait for: an object as the API server shows it."""

from __future__ import annotations

import json
from collections.abc import Callable

from dev.kubectl import Kubectl, Manifest

# Admission lets nobody but these write a policy into a sealed namespace: somebody with such rights is who the
# tests guard against.
_INTRUDER = "system:serviceaccount:kube-system:generic-garbage-collector"
READY_WITHIN = 900.0  # seconds on two busy cores; usually 120


def until(
    kubectl: Kubectl, *what: str, holds: Callable[[Manifest], bool], seconds: float = READY_WITHIN
) -> Manifest:
    """Watch an object until `holds`; fail with its last state."""
    seen: Manifest = {}
    for seen in kubectl.watch(*what, seconds=seconds):
        if holds(seen):
            return seen
    said = json.dumps(seen.get("status", {}), indent=1)[-3000:]
    raise AssertionError(f"{' '.join(what)} did not come to that within {seconds:.0f} s; last status: {said}")


def is_current(model: Manifest) -> bool:
    return bool(model.get("status", {}).get("observedGeneration") == model["metadata"]["generation"])


def intruder(kubectl: Kubectl) -> Kubectl:
    """The same cluster as somebody who may write policies into a sealed namespace."""
    return Kubectl((*kubectl.prefix, f"--as={_INTRUDER}", "--as-group=system:masters"))
