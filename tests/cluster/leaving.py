# SPDX-License-Identifier: Apache-2.0
"""What pods tried to send out of the cluster, packets and names, by the component of the pod that did."""

from __future__ import annotations

import re
import threading
from types import TracebackType
from typing import Self

from dev import outside
from dev.cluster import Cluster
from dev.kubectl import Kubectl, Manifest
from dev.stack import SYSTEM

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


def packets_out(cluster: Cluster, addresses: PodAddresses) -> dict[str, int]:
    """Packets towards the outside, dropped or not, by component."""
    found: dict[str, int] = {}
    for (source, _), packets in outside.counts(cluster).items():
        component = addresses.component(source)
        found[component] = found.get(component, 0) + packets
    return found


def names_asked(kubectl: Kubectl) -> set[str]:
    """Names outside that the sealed resolver was asked for. Who asked is not known here: kube-proxy on the
    embedded node hides the pods behind the node's address.
    """
    said = kubectl("-n", SYSTEM, "logs", "deployment/sovereign-resolver")
    return {found[1] for found in re.finditer(r"outside \S+ \S+ (\S+) NXDOMAIN", said)}
