# SPDX-License-Identifier: Apache-2.0
"""What the policy agent decides from, as one value: namespaces, pods with their addresses, policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Registration:
    """What the CNI plugin wrote about one sandbox when it got its addresses."""

    container: str
    namespace: str
    name: str
    uid: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Pod:
    """A pod that has addresses. `ports` maps (name, protocol) to a number; ungoverned: its rules lag."""

    namespace: str
    name: str
    labels: Labels
    addresses: tuple[str, ...]
    ports: Mapping[tuple[str, str], int]
    governed: bool = True


@dataclass(frozen=True)
class World:
    """`namespaces` maps a name to its labels; `policies` are NetworkPolicies as the API returns them."""

    namespaces: Mapping[str, Labels]
    pods: tuple[Pod, ...]
    policies: tuple[Manifest, ...]


def pods_of(
    manifests: Iterable[Manifest],
    registrations: Iterable[Registration],
    lagging: frozenset[str] = frozenset(),
) -> tuple[Pod, ...]:
    """The pods that both the API and the CNI plugin know, sorted; `lagging` names containers.

    A sandbox of a pod that the API does not know (or knows under another uid) gives no pod, and so no known
    address: its packets are dropped.
    """
    known = {(pod["metadata"]["namespace"], pod["metadata"]["name"]): pod for pod in manifests}
    found: dict[tuple[str, str], list[Registration]] = {}
    for registration in registrations:
        key = (registration.namespace, registration.name)
        pod = known.get(key)
        if pod is not None and registration.uid in ("", pod["metadata"]["uid"]):
            found.setdefault(key, []).append(registration)
    return tuple(
        Pod(
            namespace,
            name,
            known[namespace, name]["metadata"].get("labels") or {},
            tuple(sorted({address for one in sandboxes for address in one.addresses})),
            _named_ports(known[namespace, name]),
            governed=not all(one.container in lagging for one in sandboxes),
        )
        for (namespace, name), sandboxes in sorted(found.items())
    )


def _named_ports(pod: Manifest) -> dict[tuple[str, str], int]:
    return {
        (port["name"], port.get("protocol", "TCP")): int(port["containerPort"])
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
        for port in container.get("ports", [])
        if port.get("name")
    }
