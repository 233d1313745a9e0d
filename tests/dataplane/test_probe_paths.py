# SPDX-License-Identifier: Apache-2.0
"""The probe's programs in network namespaces: every path open, dropped, rejected, and each open alone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sovereign_airgap.probe.plan import ProbePlan, Protocol, Target
from tests.dataplane.network_lab import CANARY, NODE, OUTSIDE, OUTSIDE6, PEER, RESOLVER, Lab, a_lab, paths_of

TARGETS = (
    Target("tcp-443", Protocol.TCP, OUTSIDE, 443),
    Target("tcp-53", Protocol.TCP, OUTSIDE, 53),
    Target("udp-53", Protocol.UDP, OUTSIDE, 53),
    Target("udp-443", Protocol.UDP, OUTSIDE, 443),
    Target("udp-123", Protocol.UDP, OUTSIDE, 123),
    Target("udp-9999", Protocol.UDP, OUTSIDE, 9999),
    Target("dns", Protocol.DNS, OUTSIDE, 53, "probe.example"),
    Target("icmp", Protocol.ICMP, OUTSIDE),
    Target("tcp6-443", Protocol.TCP, OUTSIDE6, 443),
    Target("udp6-53", Protocol.UDP, OUTSIDE6, 53),
    Target("icmp6", Protocol.ICMP, OUTSIDE6),
    Target("name", Protocol.RESOLVE, query="probe.example"),
    Target("named", Protocol.TCP, "some.example", 80),
)
# What opens each of them, in the words of nft; `named` is looked up first and then is the canary's address.
OPENINGS = {
    "tcp-443": f"ip daddr {OUTSIDE} tcp dport 443 accept",
    "tcp-53": f"ip daddr {OUTSIDE} tcp dport 53 accept",
    "udp-443": f"ip daddr {OUTSIDE} udp dport 443 accept",
    "udp-123": f"ip daddr {OUTSIDE} udp dport 123 accept",
    "udp-9999": f"ip daddr {OUTSIDE} udp dport 9999 accept",
    "icmp": f"ip daddr {OUTSIDE} icmp type echo-request accept",
    "tcp6-443": f"ip6 daddr {OUTSIDE6} tcp dport 443 accept",
    "udp6-53": f"ip6 daddr {OUTSIDE6} udp dport 53 accept",
    "icmp6": f"ip6 daddr {OUTSIDE6} icmpv6 type echo-request accept",
    "name": f"ip daddr {RESOLVER} udp dport 53 accept",
}


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with a_lab() as lab:
        yield lab


@pytest.fixture
def lab(made: Lab) -> Lab:
    made.forward()
    made.ping_sockets(True)
    return made


def a_plan(
    *targets: Target,
    settle: float = 0,
    canary: str | None = CANARY,
    peer: str | None = PEER,
    timeout: float = 1.2,
) -> str:
    return ProbePlan("run-1", timeout, settle, canary, peer, targets).render()


def test_without_rules_every_path_is_reached(lab: Lab) -> None:
    begun = time.monotonic()
    paths, document = paths_of(a_plan(*TARGETS, timeout=5), lab, NODE_NAME="node-1")
    assert {name for name, outcome in paths.items() if outcome != "reached"} == set()
    assert len(paths) == len(TARGETS) + 5
    assert document["settled"] is None and document["node"] == "node-1" and document["run"] == "run-1"
    assert 0 <= document["seconds"] <= time.monotonic() - begun


@pytest.mark.parametrize("verdict", ["drop", "reject", "reject with icmpx admin-prohibited"])
def test_what_the_router_stops_is_denied_however_it_does_it(lab: Lab, verdict: str) -> None:
    # A refused connection looks as it does from a host where nothing listens.
    reset = ["meta l4proto tcp reject with tcp reset"] if verdict == "reject" else []
    lab.forward(f"ip daddr {PEER} accept", *reset, verdict)
    paths, document = paths_of(a_plan(*TARGETS[:-2], settle=2), lab)
    assert {name for name, outcome in paths.items() if outcome == "reached"} == {"peer-tcp", "peer-udp"}
    assert set(paths.values()) == {"reached", "denied"}
    assert document["settled"] == 0


@pytest.mark.parametrize("name", sorted(OPENINGS))
def test_a_path_that_is_open_alone_is_reached_alone(lab: Lab, name: str) -> None:
    lab.forward(f"ip daddr {PEER} accept", OPENINGS[name], policy="drop")
    targets = [target for target in TARGETS if target.name in OPENINGS]
    paths, _ = paths_of(a_plan(*targets), lab)
    assert {name for name, outcome in paths.items() if outcome == "reached"} == {name, "peer-tcp", "peer-udp"}
    assert {name for name, outcome in paths.items() if outcome == "unable"} == set()


def test_dns_to_an_outside_server_is_seen_as_a_name_and_as_a_datagram(lab: Lab) -> None:
    lab.forward(f"ip daddr {OUTSIDE} udp dport 53 accept", policy="drop")
    targets = [target for target in TARGETS if target.name in ("dns", "udp-53", "name")]
    paths, _ = paths_of(a_plan(*targets, canary=None, peer=None), lab)
    assert paths == {"dns": "reached", "udp-53": "reached", "name": "denied"}


def test_what_a_pod_cannot_try_is_never_denied(lab: Lab) -> None:
    lab.forward(f"ip daddr {PEER} accept", policy="drop")
    lab.ping_sockets(False)
    paths, _ = paths_of(a_plan(*TARGETS, canary="canary.example", settle=1), lab)
    unable = {name for name, outcome in paths.items() if outcome == "unable"}
    assert unable == {"canary-tcp", "canary-udp", "canary-dns", "icmp", "icmp6", "named"}


def test_a_pod_without_ipv6_says_so(lab: Lab) -> None:
    lab.without_ipv6()
    try:
        paths, _ = paths_of(a_plan(*TARGETS), lab)
    finally:
        lab.with_ipv6()
    unable = {name for name, outcome in paths.items() if outcome == "unable"}
    assert unable == {"tcp6-443", "udp6-53", "icmp6"}


def test_the_own_node_is_tried_at_the_address_that_the_pod_was_given(lab: Lab) -> None:
    target = Target("own-node", Protocol.TCP, "node", 10250)
    plan = a_plan(target, canary=None, peer=None)
    for address, expected in ((NODE, "reached"), (f"2001:db8::fe,{NODE}", "reached"), ("", "unable"),
                              ("198.51.100.1", "denied")):  # fmt: skip
        paths, _ = paths_of(plan, lab, NODE_IP=address)
        assert paths == {"own-node": expected}, address
