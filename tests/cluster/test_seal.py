# SPDX-License-Identifier: Apache-2.0
"""Both lanes of the seal on a real node: a network that enforces nothing, and one with exactly one way out.

Models here are held back by the seal or deleted as soon as they are let through, so none of them serves.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest

from dev import outside, policy, stack
from dev.cluster import Cluster, dns
from dev.cluster.state import NODE_IP
from dev.kubectl import Kubectl, Manifest, condition, is_true, named
from dev.stack import MODELS, SYSTEM, Stack
from tests.cluster.until import intruder, is_current, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3000)]

PROVEN_WITHIN = 300.0

BY_POLICY = [one["name"] for one in outside.PROBE_TARGETS if one["protocol"] in ("TCP", "UDP")]
BY_POLICY.append("api-server")
BY_HOLE = {"outside-icmp": "icmp type echo-request"}


@pytest.fixture(scope="module", autouse=True)
def namespace(installed: Stack) -> Iterator[None]:
    """The models' namespace anew (the journey ends by deleting it), and the operator's Role in it."""
    stack.namespaces(installed.kubectl, MODELS)
    probe = {"targets": outside.PROBE_TARGETS, "settleSeconds": 30}  # longer than the lag below
    values = {"resyncSeconds": 10, "probe": probe}
    stack.install_charts(installed.target, installed.images, values)
    yield
    installed.kubectl("delete", "namespace", MODELS, "--wait=false")


@pytest.fixture(autouse=True)
def network(node_cluster: Cluster) -> Iterator[Cluster]:
    """The network enforces policies, without defects, before and after each test."""
    policy.start(node_cluster)
    yield node_cluster
    policy.start(node_cluster)


def apply_model(installed: Stack, name: str) -> None:
    manifest = stack.example("tiny-moe", installed.images, installed.revisions["first"])
    manifest["metadata"]["name"] = name
    installed.kubectl.apply(manifest)


def delete_model(kubectl: Kubectl, name: str) -> None:
    kubectl("-n", MODELS, "delete", "smodel", name, "--timeout=300s", timeout=320)


def sealed_says(kubectl: Kubectl, name: str, *reasons: str, seconds: float = PROVEN_WITHIN) -> Manifest:
    """The model once EgressSealed has one of these reasons."""
    return until(
        kubectl,
        *("-n", MODELS, "smodel", named(name)),
        holds=lambda m: is_current(m) and condition(m, "EgressSealed").get("reason") in reasons,
        seconds=seconds,
    )


def test_a_network_that_enforces_nothing_is_found_out_and_nothing_is_served(
    installed: Stack, network: Cluster
) -> None:
    kubectl = installed.kubectl
    policy.stop(network)
    apply_model(installed, "unsealed")
    said = sealed_says(kubectl, "unsealed", "PolicyNotEnforced")
    assert {"canary-tcp", "canary-udp", "canary-dns"} <= set(said["status"]["egress"]["findings"])
    assert condition(said, "Ready")["reason"] == "PolicyNotEnforced"
    assert is_true(said, "Stalled")
    assert kubectl.items("-n", MODELS, "rayservices") == []

    policy.start(network)

    said = sealed_says(kubectl, "unsealed", "Sealed", seconds=900)  # it is tried again after 30 s to 10 min
    assert said["status"]["egress"]["denied"] >= 3 + len(BY_POLICY)  # the canary's three
    until(kubectl, "-n", MODELS, "rayservices", named("unsealed"), holds=bool, seconds=120)
    delete_model(kubectl, "unsealed")


@pytest.mark.parametrize(("path", "hole"), BY_HOLE.items(), ids=list(BY_HOLE))
def test_a_plugin_that_does_not_cover_a_path_is_a_leak_by_that_name(
    installed: Stack, network: Cluster, path: str, hole: str
) -> None:
    policy.start(network, holes=[hole])
    apply_model(installed, "holed")
    said = sealed_says(installed.kubectl, "holed", "LeakDetected", "Sealed")
    assert condition(said, "EgressSealed")["reason"] == "LeakDetected"
    assert set(said["status"]["egress"]["findings"]) - {"own-node"} == {path}
    delete_model(installed.kubectl, "holed")


def test_a_plugin_that_covers_ipv4_only_is_a_leak_on_every_ipv6_path(
    installed: Stack, network: Cluster
) -> None:
    if not outside.has_ipv6():
        pytest.skip("this kernel forwards IPv6 for all links or for none, and the machine's stay as they are")
    policy.start(network, holes=["meta nfproto ipv6"])
    apply_model(installed, "four-only")
    said = sealed_says(installed.kubectl, "four-only", "LeakDetected", "PolicyNotEnforced", "Sealed")
    assert condition(said, "EgressSealed")["reason"] == "LeakDetected"
    assert set(said["status"]["egress"]["findings"]) - {"own-node"} == {"outside6-tcp-443", "outside6-udp-53"}
    delete_model(installed.kubectl, "four-only")


def test_enforcement_that_lags_is_waited_for_and_told(installed: Stack, network: Cluster) -> None:
    """What lags less than a prober takes to start, on a busy machine ten seconds, has passed by then."""
    policy.start(network, lag_seconds=20.0)
    apply_model(installed, "late")
    said = sealed_says(installed.kubectl, "late", "Sealed", "PolicyNotEnforced", "LeakDetected")
    assert condition(said, "EgressSealed")["reason"] == "Sealed"
    assert float(said["status"]["egress"]["settledSeconds"]) > 0
    delete_model(installed.kubectl, "late")


@pytest.mark.parametrize("lost", ["canary", "resolver"])
def test_without_canary_or_names_nothing_is_proven_and_nothing_is_served(
    installed: Stack, network: Cluster, lost: str
) -> None:
    kubectl = installed.kubectl
    deployment = f"deployment/sovereign-{lost}"
    kubectl("-n", SYSTEM, "scale", deployment, "--replicas=0")
    kubectl(
        *("-n", SYSTEM, "wait", "--for=delete", "pod", "-l", f"app.kubernetes.io/name=sovereign-{lost}"),
        *("--timeout=120s",),
        timeout=140,
    )
    apply_model(installed, "without")
    said = sealed_says(kubectl, "without", "ProbeInconclusive", "Sealed")
    assert condition(said, "EgressSealed")["reason"] == "ProbeInconclusive"
    assert kubectl.find("-n", MODELS, "rayservice", "without") is None
    kubectl("-n", SYSTEM, "scale", deployment, "--replicas=1")
    kubectl("-n", SYSTEM, "rollout", "status", deployment, "--timeout=120s", timeout=140)
    sealed_says(kubectl, "without", "Sealed", seconds=400)  # after 30 s, then 60 s
    delete_model(kubectl, "without")


def test_a_resolver_that_forwards_is_found_by_what_it_answers(installed: Stack, network: Cluster) -> None:
    """The cluster's own DNS in place of the sealed resolver, as a platform could have configured it."""
    kubectl = installed.kubectl
    values: Manifest = {"resyncSeconds": 10, "resolver": {"enabled": False, "replicas": 1}}
    dns.forwarding(network)
    stack.install_charts(installed.target, installed.images, values)
    try:
        apply_model(installed, "forwarded")
        said = sealed_says(kubectl, "forwarded", "DNSForwards", "Sealed", "LeakDetected")
        assert condition(said, "EgressSealed")["reason"] == "DNSForwards"
        assert set(said["status"]["egress"]["findings"]) - {"own-node"} == {"outside-dns-name"}
        assert kubectl.find("-n", MODELS, "rayservice", "forwarded") is None
        delete_model(kubectl, "forwarded")
    finally:
        dns.forwarding(network, on=False)
        stack.install_charts(installed.target, installed.images, {"resyncSeconds": 10})


def test_a_namespace_that_lost_its_label_is_not_sealed(installed: Stack, network: Cluster) -> None:
    kubectl = installed.kubectl
    kubectl("label", "namespace", MODELS, "sovereign.dev/sealed-")
    try:
        apply_model(installed, "unlabelled")
        sealed_says(kubectl, "unlabelled", "NamespaceNotSealed")
        assert kubectl.find("-n", MODELS, "rayservice", "unlabelled") is None
    finally:
        kubectl("label", "namespace", MODELS, "sovereign.dev/sealed=true")
    sealed_says(kubectl, "unlabelled", "Sealed")
    delete_model(kubectl, "unlabelled")


def target_of(path: str, cluster: Cluster) -> dict[str, Any]:
    """Address, port and protocol of a path; policies see the API server behind its Service."""
    if path == "api-server":
        return {"protocol": "TCP", "address": NODE_IP, "port": cluster.api_port}
    return next(one for one in outside.PROBE_TARGETS if one["name"] == path)


def open_path(name: str, target: dict[str, Any]) -> Manifest:
    """A second policy beside ours that opens one path for one model's pods."""
    address = ipaddress.ip_address(target["address"])
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"{name}-opened", "namespace": MODELS},
        "spec": {
            "podSelector": {"matchLabels": {"sovereign.dev/model": name}},
            "policyTypes": ["Egress"],
            "egress": [
                {
                    "to": [{"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}],
                    "ports": [{"protocol": target["protocol"], "port": target["port"]}],
                }
            ],
        },
    }


@pytest.fixture(scope="module")
def leaking(installed: Stack, namespace: None, node_cluster: Cluster) -> Iterator[dict[str, str]]:
    """One model for each path, with a second policy that opens exactly it: path -> model. All at once."""
    policy.start(node_cluster)
    kubectl = installed.kubectl
    models = {path: f"leak-{number}" for number, path in enumerate(BY_POLICY, 1)}
    for path, name in models.items():
        intruder(kubectl).apply(open_path(name, target_of(path, node_cluster)))
        apply_model(installed, name)
    yield models
    kubectl("-n", MODELS, "delete", "smodel", *models.values(), "--timeout=600s", timeout=620)


@pytest.mark.parametrize("path", BY_POLICY)
def test_a_policy_that_opens_one_path_is_a_leak_by_that_name(
    installed: Stack, leaking: dict[str, str], path: str
) -> None:
    if path.startswith("outside6") and not outside.has_ipv6():
        pytest.skip("this kernel forwards IPv6 for all links or for none, and the machine's stay as they are")
    said = sealed_says(installed.kubectl, leaking[path], "LeakDetected", "Sealed", seconds=600)
    assert condition(said, "EgressSealed")["reason"] == "LeakDetected"
    assert set(said["status"]["egress"]["findings"]) - {"own-node"} == {path}
    assert path in condition(said, "EgressSealed")["message"]
    assert installed.kubectl.find("-n", MODELS, "rayservice", leaking[path]) is None
