# SPDX-License-Identifier: Apache-2.0
"""Selectors, directions, peers, and which pods have addresses at all."""

from __future__ import annotations

from typing import Any

import pytest

from dev.policy.selection import directions, matches, peer_pods, selected
from dev.policy.world import Registration, pods_of
from tests.unit.policy.objects import a_pod, a_policy, a_world


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, True),
        ({"matchLabels": {"app": "web"}}, True),
        ({"matchLabels": {"app": "web", "tier": "back"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["api", "web"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, False),
        ({"matchExpressions": [{"key": "other", "operator": "NotIn", "values": ["x"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        (
            {
                "matchLabels": {"app": "web"},
                "matchExpressions": [{"key": "tier", "operator": "In", "values": ["back"]}],
            },
            False,
        ),
    ],
)
def test_a_selector_means_what_kubernetes_says(selector: dict[str, Any], expected: bool) -> None:
    assert matches(selector, {"app": "web", "tier": "front"}) is expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, ("Ingress",)),
        ({"egress": [{}]}, ("Ingress", "Egress")),
        ({"policyTypes": ["Egress"]}, ("Egress",)),
        ({"policyTypes": ["Egress", "Ingress"]}, ("Ingress", "Egress")),
    ],
)
def test_a_policy_isolates_in_the_directions_it_names_or_implies(
    spec: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert directions(a_policy(**spec)) == expected


def test_a_policy_selects_governed_pods_of_its_own_namespace_only() -> None:
    late = a_pod("late", "10.244.0.12", governed=False)
    world = a_world(a_pod("web", "10.244.0.10"), a_pod("far", "10.244.0.11", namespace="other"), late)
    assert [pod.name for pod in selected(a_policy(), world)] == ["web"]


def test_peers_are_of_the_own_namespace_unless_a_namespace_selector_says_otherwise() -> None:
    world = a_world(
        a_pod("web", "10.244.0.10"),
        a_pod("web", "10.244.0.11", namespace="other"),
        a_pod("db", "10.244.0.12", namespace="other"),
        other={"team": "red"},
    )

    def found(**peer: Any) -> list[str]:
        return [f"{pod.namespace}/{pod.name}" for pod in peer_pods(peer, "shop", world)]

    assert found(podSelector={}) == ["shop/web"]
    assert found(namespaceSelector={}) == ["other/db", "other/web", "shop/web"]
    red = {"matchLabels": {"team": "red"}}
    assert found(namespaceSelector=red) == ["other/db", "other/web"]
    assert found(namespaceSelector=red, podSelector={"matchLabels": {"app": "web"}}) == ["other/web"]


def a_manifest(uid: str = "u-1") -> dict[str, Any]:
    port = {"name": "http", "containerPort": 8080}
    return {
        "metadata": {"namespace": "shop", "name": "web", "uid": uid},
        "spec": {"containers": [{"name": "web", "ports": [port, {"containerPort": 9}]}]},
    }


def a_registration(container: str = "c1", uid: str = "u-1", address: str = "10.244.0.10") -> Registration:
    return Registration(container, "shop", "web", uid, (address, "fd00:10:244::10"))


def test_a_pod_has_the_addresses_that_the_plugin_wrote_down() -> None:
    (pod,) = pods_of([a_manifest()], [a_registration(), a_registration("c2", address="10.244.0.11")])
    assert pod.addresses == ("10.244.0.10", "10.244.0.11", "fd00:10:244::10")
    assert pod.ports == {("http", "TCP"): 8080}


def test_a_sandbox_of_no_known_pod_gives_no_address() -> None:
    assert pods_of([], [a_registration()]) == ()
    assert pods_of([a_manifest("u-2")], [a_registration()]) == (), "an earlier pod of the same name"


def test_a_lagging_sandbox_leaves_its_pod_ungoverned() -> None:
    (pod,) = pods_of([a_manifest()], [a_registration()], frozenset({"c1"}))
    assert not pod.governed
