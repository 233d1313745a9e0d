# SPDX-License-Identifier: Apache-2.0
"""Which component each pod address belonged to, for tests that count packets by their sender."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from dev.kubectl import Kubectl, Manifest

COMPONENT = "sovereign.dev/component"
WATCHED_SECONDS = 3600.0


class PodAddresses:
    """Follows all pods of a cluster in the background; addresses stay known after their pod is gone.

    The embedded node hands addresses out in a circle of 65,000, so none comes back within a test run.
    """

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._component: dict[str, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def component(self, address: str) -> str:
        """`head`, `worker`, `prober`, …; the empty string for pods without the label, `?` for no pod."""
        for pod in self._kubectl.items("-A", "pods"):  # the watch may be a moment late
            self._note(pod)
        return self._component.get(address, "?")

    def _follow(self) -> None:
        for pod in self._kubectl.watch("-A", "pods", seconds=WATCHED_SECONDS):
            if self._ended.is_set():
                return
            self._note(pod)

    def _note(self, pod: Manifest) -> None:
        if pod["spec"].get("hostNetwork"):
            return
        labels = pod["metadata"].get("labels") or {}
        for entry in pod.get("status", {}).get("podIPs") or ():
            self._component[entry["ip"]] = labels.get(COMPONENT, "")
