# SPDX-License-Identifier: Apache-2.0
"""The rendered table: what is accepted for whom, and that what is not accepted is dropped."""

from __future__ import annotations

from typing import Any

import pytest

from dev.policy.rules import render
from tests.unit.policy.objects import PLACE, a_pod, a_policy, a_world, chain, rules

WEB = a_pod("web", "10.244.0.10", "fd00:10:244::10", ports={("http", "TCP"): 8080})
API = a_pod("api", "10.244.0.11", "fd00:10:244::11", ports={("http", "TCP"): 9090})
FAR = a_pod("far", "10.244.0.12", namespace="other")


def allowed(direction: str, **rule: Any) -> list[str]:
    """The accepts of one policy for `web` with one rule."""
    spec = {"policyTypes": [direction], direction.lower(): [rule]}
    return chain(
        a_world(WEB, API, FAR, policies=(a_policy(app="web", **spec),)), f"{direction.lower()}-policy-0"
    )


def test_without_policies_known_pods_are_free_and_unknown_addresses_are_dropped() -> None:
    world = a_world(WEB)
    assert chain(world, "egress-judged") == [
        "ip saddr != @pods4 counter drop",
        "ip6 saddr != @pods6 counter drop",
    ]
    assert "set pods4 { type ipv4_addr; elements = { 10.244.0.10 } }" in rules(world)
    assert "set pods6 { type ipv6_addr; }" in rules(a_world())


def test_a_selected_pod_ends_in_a_drop_in_both_families() -> None:
    world = a_world(WEB, API, policies=(a_policy(app="web", policyTypes=["Egress"]),))
    assert chain(world, "egress-pod-0") == [
        "ip daddr 10.244.0.10 accept",
        "ip6 daddr fd00:10:244::10 accept",
        "jump egress-policy-0",
        "counter drop",
    ]
    assert chain(world, "egress-policy-0") == []
    judged = chain(world, "egress-judged")
    assert "ip saddr vmap { 10.244.0.10 : goto egress-pod-0 }" in judged
    assert "ip6 saddr vmap { fd00:10:244::10 : goto egress-pod-0 }" in judged
    assert not any("vmap" in rule for rule in chain(world, "ingress-judged"))


def test_policies_of_one_pod_add_up() -> None:
    first = a_policy("a", policyTypes=["Ingress"])
    second = a_policy("b", app="web", policyTypes=["Ingress"], ingress=[{}])
    world = a_world(WEB, API, policies=(second, first))
    assert chain(world, "ingress-pod-1")[-3:] == [
        "jump ingress-policy-0",
        "jump ingress-policy-1",
        "counter drop",
    ]
    assert chain(world, "ingress-policy-1") == ["accept"]


def test_peers_and_ports_are_paired() -> None:
    peers = [{"podSelector": {"matchLabels": {"app": "api"}}}, {"namespaceSelector": {}}]
    ports = [{"port": 443}, {"port": 53, "protocol": "UDP"}]
    lines = allowed("Egress", to=peers, ports=ports)
    assert lines[:4] == [
        "ip daddr { 10.244.0.11 } tcp dport 443 accept",
        "ip daddr { 10.244.0.11 } udp dport 53 accept",
        "ip6 daddr { fd00:10:244::11 } tcp dport 443 accept",
        "ip6 daddr { fd00:10:244::11 } udp dport 53 accept",
    ]
    assert lines[4] == "ip daddr { 10.244.0.10, 10.244.0.11, 10.244.0.12 } tcp dport 443 accept"


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ({"port": 80}, "tcp dport 80 accept"),
        ({"port": 80, "endPort": 90}, "tcp dport 80-90 accept"),
        ({"protocol": "UDP"}, "meta l4proto udp accept"),
        ({"port": 7, "protocol": "SCTP"}, "sctp dport 7 accept"),
    ],
)
def test_ports_are_numbers_ranges_or_whole_protocols(port: dict[str, Any], expected: str) -> None:
    assert allowed("Ingress", ports=[port]) == [expected]


def test_a_named_port_is_looked_up_in_the_pod_that_answers() -> None:
    named = [{"port": "http"}]
    assert allowed("Ingress", ports=named) == [
        "ip daddr { 10.244.0.10 } tcp dport 8080 accept",
        "ip6 daddr { fd00:10:244::10 } tcp dport 8080 accept",
    ]
    peer = {"podSelector": {"matchLabels": {"app": "api"}}}
    assert "ip daddr { 10.244.0.11 } ip daddr { 10.244.0.11 } tcp dport 9090 accept" in allowed(
        "Egress", to=[peer], ports=named
    )
    assert allowed("Ingress", ports=[{"port": "absent"}]) == []


def test_address_blocks_leave_out_their_exceptions_and_keep_to_their_family() -> None:
    assert allowed("Egress", to=[{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.96.0.0/16"]}}]) == [
        "ip daddr 10.0.0.0/8 ip daddr != { 10.96.0.0/16 } accept"
    ]
    assert allowed("Ingress", **{"from": [{"ipBlock": {"cidr": "2001:db8::/32"}}]}) == [
        "ip6 saddr 2001:db8::/32 accept"
    ]
    (line,) = allowed("Ingress", **{"from": [{"ipBlock": {"cidr": "::/0"}}]}, ports=[{"port": "http"}])
    assert line.startswith("ip6 saddr ::/0 ip6 daddr")


def test_a_peer_without_pods_allows_nobody_and_no_peer_at_all_everybody() -> None:
    nobody = {"podSelector": {"matchLabels": {"app": "none"}}}
    assert allowed("Egress", to=[nobody]) == []
    assert allowed("Egress") == ["accept"]
    assert allowed("Egress", to=[]) == ["accept"]


def test_a_pod_whose_rules_lag_is_open_but_known() -> None:
    late = a_pod("web", "10.244.0.10", governed=False)
    world = a_world(late, policies=(a_policy(policyTypes=["Egress"]),))
    assert not any("goto" in line for line in rules(world))
    assert "set pods4 { type ipv4_addr; elements = { 10.244.0.10 } }" in rules(world)


def test_only_the_api_servers_port_of_the_node_is_judged() -> None:
    assert chain(a_world(), "node")[-1] == 'iifname "sovereign0" tcp dport 6443 jump egress-judged'


def test_the_same_world_gives_the_same_text() -> None:
    policies = (a_policy("a"), a_policy("b", policyTypes=["Egress"]))
    text = render(a_world(WEB, API, policies=policies), PLACE)
    assert text == render(a_world(API, WEB, policies=policies[::-1]), PLACE)
