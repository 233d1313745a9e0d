# SPDX-License-Identifier: Apache-2.0
"""Which pods a selector means, and which policies isolate a pod in which direction. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from dev.policy.world import Labels, Manifest, Pod, World

Direction = Literal["Ingress", "Egress"]


def matches(selector: Manifest, labels: Labels) -> bool:
    """Whether a label selector (matchLabels and matchExpressions, all of them) means these labels."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions") or [])


def _holds(expression: Manifest, labels: Labels) -> bool:
    key, operator, values = expression["key"], expression["operator"], expression.get("values") or []
    if operator == "In":
        return labels.get(key) in values
    if operator == "NotIn":
        return labels.get(key) not in values
    if operator == "Exists":
        return key in labels
    if operator == "DoesNotExist":
        return key not in labels
    raise ValueError(f"Expected In, NotIn, Exists or DoesNotExist in a selector, found {operator!r}.")


def directions(policy: Manifest) -> tuple[Direction, ...]:
    """What a policy isolates. Without policyTypes: ingress, and egress where it has egress rules."""
    spec = policy["spec"]
    types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    return tuple(one for one in ("Ingress", "Egress") if one in types)


def selected(policy: Manifest, world: World) -> Iterator[Pod]:
    """The governed pods that the policy isolates."""
    namespace, selector = policy["metadata"]["namespace"], policy["spec"].get("podSelector") or {}
    for pod in world.pods:
        if pod.governed and pod.namespace == namespace and matches(selector, pod.labels):
            yield pod


def peer_pods(peer: Manifest, namespace: str, world: World) -> Iterator[Pod]:
    """The pods of a peer without ipBlock; no namespaceSelector means the policy's own namespace."""
    for pod in world.pods:
        if "namespaceSelector" in peer:
            of_namespace = world.namespaces.get(pod.namespace)
            if of_namespace is None or not matches(peer["namespaceSelector"] or {}, of_namespace):
                continue
        elif pod.namespace != namespace:
            continue
        if matches(peer.get("podSelector") or {}, pod.labels):
            yield pod
