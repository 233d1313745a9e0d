# SPDX-License-Identifier: Apache-2.0
"""Pods, policies and worlds as the tests of the policy agent need them."""

from __future__ import annotations

from typing import Any

from dev.policy.rules import Place, render
from dev.policy.world import Manifest, Pod, World

TABLES = ("sovereign_test.policy.a", "sovereign_test.policy.b")
PLACE = Place("sovereign0", 6443)


def a_pod(name: str = "web", *addresses: str, namespace: str = "shop", **fields: Any) -> Pod:
    """A pod labelled `app: <name>`."""
    return Pod(namespace, name, **{"labels": {"app": name}, "addresses": addresses, "ports": {}, **fields})


def a_policy(name: str = "policy", namespace: str = "shop", app: str | None = None, **spec: Any) -> Manifest:
    """A policy for the pods of `app`, or for all of its namespace."""
    selector = {"matchLabels": {"app": app}} if app else {}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": selector, **spec},
    }


def a_world(*pods: Pod, policies: tuple[Manifest, ...] = (), **namespaces: dict[str, str]) -> World:
    names = {pod.namespace for pod in pods} | set(namespaces)
    labels = {name: {"kubernetes.io/metadata.name": name, **namespaces.get(name, {})} for name in names}
    return World(labels, tuple(sorted(pods, key=lambda pod: (pod.namespace, pod.name))), policies)


def rules(world: World) -> list[str]:
    """The lines of the rendered table, without indentation."""
    return [line.strip() for line in render(world, PLACE).splitlines()]


def chain(world: World, name: str) -> list[str]:
    """The rules of one chain."""
    lines = rules(world)
    start = lines.index(f"chain {name} {{")
    return [line for line in lines[start + 1 : lines.index("}", start)] if not line.startswith("#")]
