# SPDX-License-Identifier: Apache-2.0
"""Custom resource definitions on a test's API server: applied, and waited for until they are served."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from dev.cluster.process import awaited
from dev.kubectl import Kubectl, KubectlFailed, Manifest, named


def serve(kubectl: Kubectl, path: Path, name: str, seconds: float = 300) -> None:
    """Applies a definition and returns once the API server serves it and lists it among what it has."""
    ends = monotonic() + seconds
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
    conditions: list[Manifest] = []
    for definition in kubectl.watch("crd", named(name), seconds=seconds):
        # At first the list of conditions is null, not absent.
        conditions = (definition.get("status") or {}).get("conditions") or []
        if any(each["type"] == "Established" and each["status"] == "True" for each in conditions):
            break
    else:
        raise TimeoutError(f"{name} was not established within {seconds} s; its conditions: {conditions}")
    if not awaited(lambda: _is_known(kubectl, name), ends - monotonic(), interval=0.5):
        raise TimeoutError(f"{name} was established and not served within {seconds} s")


def _is_known(kubectl: Kubectl, name: str) -> bool:
    try:
        kubectl("get", name, "--all-namespaces", "-o", "name")
    except KubectlFailed:
        return False
    return True
