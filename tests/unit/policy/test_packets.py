# SPDX-License-Identifier: Apache-2.0
"""The rendered rules in a real kernel: packets between pods on one bridge, in throw-away namespaces."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dev.policy.world import Pod
from tests.unit.policy import links
from tests.unit.policy.links import Machine, arrives, connects, pinged
from tests.unit.policy.objects import TABLES, a_pod, a_policy, a_world

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not links.possible(), reason="needs root, nftables and a kernel that filters bridges"),
]

A4, A6, B4, B6, C4 = "10.244.0.10", "fd00:10:244::10", "10.244.0.11", "fd00:10:244::11", "10.244.0.12"
A = a_pod("a", A4, A6)
B = a_pod("b", B4, B6, ports={("http", "TCP"): 8080})
C = a_pod("c", C4, "fd00:10:244::12", namespace="other")
DENY = a_policy("deny", policyTypes=["Ingress", "Egress"])


class Site:
    """Pods a and b in one namespace, c in another; b and c answer on TCP 8080 and 8081 and on UDP 53."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.a, self.b, self.c = (machine.pod(number) for number in (10, 11, 12))
        for pod in (self.b, self.c):
            for port in (8080, 8081):
                machine.listen(pod, port)
        self.udp = machine.listen(self.b, 53, socket.SOCK_DGRAM)

    def enforce(self, *policies: dict[str, object], pods: tuple[Pod, ...] = (A, B, C)) -> None:
        self.machine.enforce(a_world(*pods, policies=policies))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    for machine in links.machine():
        yield Site(machine)


def test_without_policies_pods_reach_one_another_in_both_families(site: Site) -> None:
    site.enforce()
    assert connects(site.a, B4, 8080)
    assert connects(site.a, B6, 8080)
    assert arrives(site.a, B4, 53, site.udp) == A4
    assert arrives(site.a, B6, 53, site.udp) == A6
    assert pinged(site.a, B4)


def test_default_deny_holds_in_both_families_and_for_datagrams(site: Site) -> None:
    site.enforce(DENY)
    assert not connects(site.a, B4, 8080)
    assert not connects(site.a, B6, 8080)
    assert not connects(site.c, B4, 8080), "ingress of b"
    assert not connects(site.a, C4, 8080), "egress of a"
    assert arrives(site.a, B4, 53, site.udp) is None
    assert arrives(site.a, B6, 53, site.udp) is None
    assert not pinged(site.a, B4)


def test_a_rule_opens_its_peers_and_ports_and_no_others(site: Site) -> None:
    to_b = {"to": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": "http"}]}
    from_a = {"from": [{"podSelector": {"matchLabels": {"app": "a"}}}], "ports": [{"port": "http"}]}
    site.enforce(
        DENY,
        a_policy("out", app="a", policyTypes=["Egress"], egress=[to_b]),
        a_policy("in", app="b", policyTypes=["Ingress"], ingress=[from_a]),
    )
    assert connects(site.a, B4, 8080)
    assert connects(site.a, B6, 8080)
    assert not connects(site.a, B4, 8081)
    assert not connects(site.c, B4, 8080)


def test_one_end_alone_is_not_enough(site: Site) -> None:
    everywhere = a_policy("out", app="a", policyTypes=["Egress"], egress=[{}])
    site.enforce(DENY, everywhere)
    assert not connects(site.a, B4, 8080), "b's ingress is still closed"
    assert connects(site.a, C4, 8080)


def test_address_blocks_and_their_exceptions(site: Site) -> None:
    block = {"to": [{"ipBlock": {"cidr": "10.244.0.0/16", "except": [f"{C4}/32"]}}]}
    site.enforce(a_policy(app="a", policyTypes=["Egress"], egress=[block]))
    assert connects(site.a, B4, 8080)
    assert not connects(site.a, C4, 8080)
    assert not connects(site.a, B6, 8080), "no block of this family"
    anything = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": "http"}]}
    site.enforce(a_policy(app="a", policyTypes=["Egress"], egress=[anything]))
    assert connects(site.a, B4, 8080)
    assert not connects(site.a, C4, 8080), "c has no port of that name"


def test_an_unknown_address_is_dropped_both_ways(site: Site) -> None:
    site.enforce(pods=(A, B))
    assert not connects(site.c, B4, 8080)
    assert not connects(site.a, C4, 8080)


def test_the_node_reaches_its_pods_and_they_the_node_but_not_the_api_server(site: Site) -> None:
    site.enforce(DENY)
    assert connects(site.machine.name, B4, 8080)
    kubelet, api = site.machine.listen(site.machine.name, 10250), site.machine.listen(site.machine.name, 6443)
    assert connects(site.a, "10.244.0.1", 10250)
    assert not connects(site.a, "10.244.0.1", 6443)
    site.enforce(DENY, a_policy("api", policyTypes=["Egress"], egress=[{"ports": [{"port": 6443}]}]))
    assert connects(site.a, "10.244.0.1", 6443)
    kubelet.close()
    api.close()


def test_a_service_is_judged_by_the_pods_behind_it_and_by_the_pod_that_asks(site: Site) -> None:
    """As kube-proxy does it here: translated first, and masqueraded last."""
    site.machine.nft(
        "-f",
        "-",
        stdin=f"""
        table ip proxy {{
            chain before {{
                type nat hook prerouting priority dstnat;
                ip daddr 10.96.0.7 tcp dport 80 meta mark set 0x4000 dnat to {B4}:8080;
            }}
            chain after {{ type nat hook postrouting priority srcnat; meta mark 0x4000 masquerade; }}
        }}
        """,
    )
    site.enforce()
    assert connects(site.a, "10.96.0.7", 80)
    from_a = {"from": [{"podSelector": {"matchLabels": {"app": "a"}}}], "ports": [{"port": 8080}]}
    site.enforce(a_policy("in", app="b", policyTypes=["Ingress"], ingress=[from_a]))
    assert connects(site.a, "10.96.0.7", 80)
    assert not connects(site.c, "10.96.0.7", 80)
    assert connects(site.b, "10.96.0.7", 80), "a pod reaches itself through its own service"
    site.enforce(a_policy("deny", app="b", policyTypes=["Ingress", "Egress"]))
    assert connects(site.b, "10.96.0.7", 80), "whatever its policies say"


@pytest.mark.parametrize(
    ("hole", "expected"),
    [
        ("meta nfproto ipv6", {"tcp": False, "tcp6": True, "icmp": False}),
        ("icmp type echo-request", {"tcp": False, "tcp6": False, "icmp": True}),
    ],
)
def test_a_hole_opens_what_it_matches_and_nothing_else(
    site: Site, hole: str, expected: dict[str, bool]
) -> None:
    site.machine.enforce(a_world(A, B, C, policies=(DENY,)), hole)
    tcp, tcp6 = connects(site.a, B4, 8080), connects(site.a, B6, 8080)
    assert {"tcp": tcp, "tcp6": tcp6, "icmp": pinged(site.a, B4)} == expected


FLOOD = """
import socket, sys
print("begun", flush=True)
while True:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(50):
            sender.sendto(b"x", (sys.argv[1], 53))
"""


def test_no_packet_passes_while_rules_replace_one_another(site: Site) -> None:
    """Where one transaction replaces one table, about one of eleven replacements lets a packet through."""
    deny = a_policy("deny", app="a", policyTypes=["Egress"])
    site.enforce(deny)
    other_pods = [a_pod(f"p{number}", f"10.244.1.{number}") for number in range(1, 40)]
    worlds = [a_world(A, B, C, *other_pods[:number], policies=(deny,)) for number in (38, 39)]
    command = ["nsenter", f"--net=/run/netns/{site.a}", sys.executable, "-c", FLOOD, B4]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as flood:
        assert flood.stdout
        assert flood.stdout.readline() == b"begun\n"
        for number in range(200):
            site.machine.enforce(worlds[number % 2])
        flood.kill()
    site.udp.settimeout(links.SILENCE)
    with pytest.raises(TimeoutError):
        site.udp.recv(64)
    assert sorted(links.present(site.machine)) in ([TABLES[0]], [TABLES[1]])


def test_rules_replace_what_a_crash_left_behind(site: Site) -> None:
    """Both tables there, as after a crash between the two steps; and none, as after a removal by hand."""
    for left in (TABLES, TABLES[:1], TABLES[1:], ()):
        for table in TABLES:
            site.machine.nft("-f", "-", stdin=f"table inet {table} {{}}\ndelete table inet {table}\n")
        for table in left:
            site.machine.nft("-f", "-", stdin=f"table inet {table} {{}}\n")
        site.enforce(DENY)
        assert not connects(site.a, B4, 8080)
        site.enforce()
        assert connects(site.a, B4, 8080), left
        assert len(links.present(site.machine)) == 1


def test_a_connection_that_exists_outlives_the_policy_that_forbids_it(site: Site) -> None:
    site.enforce()
    listener = site.machine.listen(site.b, 8082)
    kept = links.within(site.a, lambda: socket.create_connection((B4, 8082), timeout=10))
    accepted, _ = listener.accept()
    with kept, accepted:
        site.enforce(DENY)
        accepted.settimeout(10)
        kept.sendall(b"still here")
        assert accepted.recv(10) == b"still here"
