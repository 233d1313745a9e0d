# SPDX-License-Identifier: Apache-2.0
"""The seal, read as a list of what is open, and by a small model of how NetworkPolicy decides."""

from __future__ import annotations

from typing import Any

import pytest

from sovereign_operator.api import ANNOTATION_RENDERED, FINALIZER, LABEL_COMPONENT, LABEL_MODEL, LABEL_OWNER
from sovereign_operator.desired.network_policy import policies
from sovereign_operator.desired.rendered import defects
from tests.unit.operator.builders import a_config, a_model

CLIENTS = {
    "clients": [{"namespace": "chat", "podLabels": {"app": "assistant"}}, {"podLabels": {"app": "here"}}]
}
MODEL = a_model("mixtral", network=CLIENTS)
CONFIG = a_config(prometheus={"namespace": "monitoring"})

HEAD = ("models", {LABEL_MODEL: "mixtral", LABEL_COMPONENT: "head"})
WORKER = ("models", {LABEL_MODEL: "mixtral", LABEL_COMPONENT: "worker"})
PROBER = ("models", {LABEL_MODEL: "mixtral", LABEL_COMPONENT: "prober"})
OTHER_MODEL = ("models", {LABEL_MODEL: "other", LABEL_COMPONENT: "worker"})
OTHER_TEAM = ("elsewhere", {LABEL_MODEL: "mixtral", LABEL_COMPONENT: "worker"})
KUBERAY = ("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"})
DNS = ("kube-system", {"k8s-app": "kube-dns"})
REGISTRY = ("sovereign-system", {"app.kubernetes.io/name": "sovereign-registry"})
CHAT = ("chat", {"app": "assistant"})
HERE = ("models", {"app": "here"})
STRANGER = ("chat", {"app": "stranger"})
PROMETHEUS = ("monitoring", {"app": "prometheus"})
Pod = tuple[str, dict[str, str]]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    matches = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return matches and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ())
    )


def is_open(source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
    """Kubernetes' rule: where a pod is selected, only what some policy lists is let through, on both
    sides."""
    rendered = policies(MODEL, CONFIG)

    def side(pod: Pod, peer: Pod, direction: str) -> bool:
        mine = [
            policy["spec"]
            for policy in rendered
            if policy["metadata"]["namespace"] == pod[0]
            and selects(policy["spec"]["podSelector"], pod[1])
            and direction in policy["spec"]["policyTypes"]
        ]
        if not mine:
            return True
        word = "from" if direction == "Ingress" else "to"
        return any(
            any(matches(each, peer) for each in rule[word])
            and (
                "ports" not in rule
                or any(p["port"] == port and p["protocol"] == protocol for p in rule["ports"])
            )
            for spec in mine
            for rule in spec.get(direction.lower(), ())
        )

    def matches(each: dict[str, Any], peer: Pod) -> bool:
        if "ipBlock" in each:
            return False
        namespace = (
            each.get("namespaceSelector", {})
            .get("matchLabels", {})
            .get("kubernetes.io/metadata.name", "models")
        )
        return bool(peer[0] == namespace) and selects(each.get("podSelector", {}), peer[1])

    return side(source, target, "Egress") and side(target, source, "Ingress")


OPEN = [
    (HEAD, WORKER, 6379),
    (WORKER, HEAD, 41234),
    (WORKER, WORKER, 29500),
    (PROBER, WORKER, 7),
    (KUBERAY, HEAD, 8265),
    (KUBERAY, HEAD, 8000),
    (CHAT, HEAD, 8000),
    (CHAT, WORKER, 8000),
    (HERE, WORKER, 8000),
    (PROMETHEUS, WORKER, 8080),
    (PROMETHEUS, HEAD, 8080),
    (WORKER, REGISTRY, 5000),
    (WORKER, DNS, 53),
]
CLOSED = [
    (KUBERAY, WORKER, 8265),
    (KUBERAY, HEAD, 10001),
    (CHAT, HEAD, 8265),
    (STRANGER, WORKER, 8000),
    (PROMETHEUS, HEAD, 8000),
    (OTHER_MODEL, WORKER, 29500),
    (OTHER_TEAM, WORKER, 29500),
    (WORKER, OTHER_MODEL, 8000),
    (WORKER, OTHER_TEAM, 8000),
    (WORKER, REGISTRY, 5001),
    (WORKER, KUBERAY, 8080),
    (WORKER, STRANGER, 443),
    (WORKER, DNS, 443),
    (PROBER, CHAT, 8000),
]


@pytest.mark.parametrize(("source", "target", "port"), OPEN)
def test_what_serving_needs_is_open(source: Pod, target: Pod, port: int) -> None:
    assert is_open(source, target, port)


@pytest.mark.parametrize(("source", "target", "port"), CLOSED)
def test_everything_else_is_closed(source: Pod, target: Pod, port: int) -> None:
    assert not is_open(source, target, port)


def test_dns_is_open_over_both_protocols() -> None:
    assert is_open(WORKER, DNS, 53, "UDP") and is_open(WORKER, DNS, 53, "TCP")


def test_no_rule_names_an_address_or_everybody() -> None:
    for policy in policies(MODEL, CONFIG):
        for rule in [*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())]:
            peers = rule.get("from") or rule.get("to")
            assert peers and all("ipBlock" not in peer and peer for peer in peers)


def test_they_outlive_the_model_and_carry_our_finalizer() -> None:
    for policy in policies(MODEL, CONFIG):
        metadata = policy["metadata"]
        assert "ownerReferences" not in metadata
        assert metadata["finalizers"] == [FINALIZER]
        assert metadata["labels"][LABEL_OWNER] == "mixtral"
        assert metadata["annotations"][ANNOTATION_RENDERED]


def test_every_selector_uses_both_labels() -> None:
    for policy in policies(MODEL, CONFIG):
        selector = policy["spec"]["podSelector"]
        assert selector["matchLabels"] == {LABEL_MODEL: "mixtral"}
        assert [each["key"] for each in selector["matchExpressions"]] == [LABEL_COMPONENT]


def test_they_are_sorted_and_render_the_same_bytes_again() -> None:
    names = [policy["metadata"]["name"] for policy in policies(MODEL, CONFIG)]
    assert names == sorted(names) == [
        "mixtral-clients", "mixtral-deny-all", "mixtral-dns", "mixtral-kuberay", "mixtral-metrics",
        "mixtral-registry", "mixtral-same-model",
    ]  # fmt: skip
    assert policies(MODEL, CONFIG) == policies(MODEL, CONFIG)


def test_nothing_in_them_changes_on_the_way_through_the_api_server() -> None:
    assert [found for policy in policies(MODEL, CONFIG) for found in defects(policy)] == []


def test_without_clients_and_prometheus_nobody_may_call() -> None:
    names = {policy["metadata"]["name"] for policy in policies(a_model("m"), a_config())}
    assert names == {"m-deny-all", "m-dns", "m-kuberay", "m-registry", "m-same-model"}


def test_with_a_node_cache_there_is_no_way_to_the_registry() -> None:
    model = a_model("m", delivery={"mode": "nodeCache"})
    assert "m-registry" not in {policy["metadata"]["name"] for policy in policies(model, a_config())}


def test_a_registry_outside_the_cluster_is_named_by_its_addresses() -> None:
    registry = {"host": "registry.site:443", "writer": "registry.site:443", "cidrs": ["10.9.8.7/32"]}
    config = a_config(registry=registry, registryPods={})
    rule = next(p for p in policies(a_model("m"), config) if p["metadata"]["name"] == "m-registry")
    assert rule["spec"]["egress"] == [
        {"to": [{"ipBlock": {"cidr": "10.9.8.7/32"}}], "ports": [{"protocol": "TCP", "port": 443}]}
    ]


def test_a_registry_that_nobody_can_name_is_refused_and_not_opened() -> None:
    with pytest.raises(ValueError, match="an open port is no seal"):
        policies(a_model("m"), a_config(registryPods={}))
