# SPDX-License-Identifier: Apache-2.0
"""A double of the world outside the cluster: one network namespace of ours, and nothing behind it.

It has addresses from the documentation ranges only and answers on the ports that a probe tries, so that tests
can show a path open or closed without a packet that leaves this machine. The guard (dev.cluster.network) lets
pods go there and nowhere else. Every packet that a pod sends to an address outside the cluster is counted,
before anything can drop it.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dev.cluster import network
from dev.cluster.errors import ClusterError
from dev.cluster.network import BRIDGE, OUTSIDE_LINK, run
from dev.cluster.process import awaited
from dev.cluster.state import KUBELET_PORT, POD_CIDR, POD_CIDR6, SERVICE_CIDR

if TYPE_CHECKING:
    from dev.cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]
PROCESS = "outside"
NAMESPACE = "sov-outside"
INNER_LINK = "world"
# RFC 5737 and RFC 3849; not 192.0.2.0/24, which some virtual machines really have.
WEB, WEB6 = "198.51.100.10", "2001:db8:0:1::10"
METADATA = "198.51.100.254"  # stands for the address at which clouds hand out credentials
OTHER_NODE = "203.0.113.10"  # stands for another machine of the cluster
NAME = "probe.example"  # a name that the world's DNS knows, and the cluster's must not
_NEAR, _NEAR6 = "198.51.100.9", "2001:db8:0:1::9"  # our own end of the link

TCP_PORTS, UDP_PORTS = (443, 80, 53), (53, 443, 123)


def _target(name: str, protocol: str, address: str = "", port: int = 0, query: str = "") -> dict[str, Any]:
    given = {"address": address, "port": port, "query": query}
    return {"name": name, "protocol": protocol, **{key: value for key, value in given.items() if value}}


# The operator's chart takes this as `probe.targets`.
PROBE_TARGETS: list[dict[str, Any]] = [
    *(_target(f"outside-tcp-{port}", "TCP", WEB, port) for port in TCP_PORTS),
    *(_target(f"outside-udp-{port}", "UDP", WEB, port) for port in UDP_PORTS),
    _target("outside-icmp", "ICMP", WEB),
    _target("outside6-tcp-443", "TCP", WEB6, 443),
    _target("outside6-udp-53", "UDP", WEB6, 53),
    _target("metadata", "TCP", METADATA, 80),
    _target("other-node-kubelet", "TCP", OTHER_NODE, KUBELET_PORT),
    _target("outside-dns-name", "RESOLVE", query=NAME),
]


def start(cluster: Cluster) -> None:
    """Make the namespace, its link, its program and the counters; what is there already is kept."""
    process = cluster.processes.find(PROCESS)
    if process is None or not process.alive or not (Path("/sys/class/net") / OUTSIDE_LINK).exists():
        cluster.processes.end(PROCESS)
        clean(cluster)
        _make_link()
    if not network.table_exists("inet", table_of(cluster)):
        run("nft", "-f", "-", stdin=counters(table_of(cluster)))
    addresses = [WEB, WEB6] if network.has_ipv6() else [WEB]
    program = [sys.executable, "-m", "dev.outside_answers", *addresses, "--kubelet", OTHER_NODE]
    command = ["nsenter", f"--net=/run/netns/{NAMESPACE}", *program]
    cluster.run_process(PROCESS, command, env={"PYTHONPATH": str(ROOT)})
    if not awaited(_answers, 15):
        raise ClusterError(
            f"The stand-in for the outside does not answer at {WEB}; see {cluster.state_dir / 'logs'}."
        )


def stop(cluster: Cluster) -> None:
    """End the program and remove the namespace, the link and the counters; harmless when repeated."""
    cluster.processes.end(PROCESS)
    clean(cluster)
    network.delete_table("inet", table_of(cluster))


def has_ipv6() -> bool:
    """Whether pods could reach WEB6 here: kernels before 6.17 forward IPv6 for all links or for none."""
    return (Path("/proc/sys/net/ipv6/conf") / OUTSIDE_LINK / "force_forwarding").exists()


def refuse_where_taken() -> None:
    """Say so where the machine's own network uses an address that we would make."""
    for destination, link in network.routes():
        if destination.prefixlen < 8:  # a default route in two halves, as some VPNs have it
            continue
        for address in (WEB, METADATA, OTHER_NODE, WEB6):
            if link != OUTSIDE_LINK and ipaddress.ip_address(address) in destination:
                raise ClusterError(
                    f"This machine has a route to {destination} over {link}, and the embedded node would use "
                    f"{address} for its stand-in of the outside; use another machine, or remove the route."
                )


def clean(cluster: Cluster) -> None:
    """Remove what this cluster has (or a crash has left) under names that a machine has once."""
    if network.is_anothers(cluster):
        return
    if (Path("/sys/class/net") / OUTSIDE_LINK).exists():
        run("ip", "link", "delete", OUTSIDE_LINK)
    if (Path("/run/netns") / NAMESPACE).exists():
        run("ip", "netns", "delete", NAMESPACE)


def _make_link() -> None:
    """Single addresses on both ends, not networks: everything else stays as unreachable as it was."""
    run("ip", "netns", "add", NAMESPACE)
    run(*f"ip link add {OUTSIDE_LINK} type veth peer name {INNER_LINK} netns {NAMESPACE}".split())
    inside = ("ip", "-n", NAMESPACE)
    network.route_only(OUTSIDE_LINK)
    run(*inside, "link", "set", "lo", "up")
    # Up before they have addresses, or there is no route to an IPv6 peer.
    run("ip", "link", "set", OUTSIDE_LINK, "up")
    run(*inside, "link", "set", INNER_LINK, "up")
    run("ip", "addr", "add", _NEAR, "peer", WEB, "dev", OUTSIDE_LINK)
    run(*inside, "addr", "add", WEB, "peer", _NEAR, "dev", INNER_LINK)
    for address in (METADATA, OTHER_NODE):
        run(*inside, "addr", "add", f"{address}/32", "dev", INNER_LINK)
    if network.has_ipv6():
        run("ip", "addr", "add", _NEAR6, "peer", WEB6, "dev", OUTSIDE_LINK, "nodad")
        run(*inside, "addr", "add", WEB6, "peer", _NEAR6, "dev", INNER_LINK, "nodad")
    for address in (METADATA, OTHER_NODE):
        run("ip", "route", "replace", f"{address}/32", "via", WEB, "dev", OUTSIDE_LINK)
    # Only pods ask; their answers go back over our end.
    run(*inside, "route", "add", POD_CIDR, "via", _NEAR)
    if network.has_ipv6():
        run(*inside, "-6", "route", "add", POD_CIDR6, "via", _NEAR6)


def _answers() -> bool:
    """Asked over our own link only: without it the question would leave this machine."""
    with socket.socket() as asking:
        asking.settimeout(1)
        try:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, OUTSIDE_LINK.encode())
            asking.connect((WEB, TCP_PORTS[0]))
        except OSError:
            return False
    return True


def table_of(cluster: Cluster) -> str:
    return f"{network.table_of(cluster)}.outside"


def counters(table: str) -> str:
    """Rules that count and never judge: first of all hooks, and what ends on the link itself left out."""
    return f"""
        table inet {table} {{
            set outside4 {{ type ipv4_addr . ipv4_addr; size 65535; flags dynamic; }}
            set outside6 {{ type ipv6_addr . ipv6_addr; size 65535; flags dynamic; }}
            chain first {{
                type filter hook prerouting priority raw - 10; policy accept;
                iifname != "{BRIDGE}" accept
                ip daddr {{ {POD_CIDR}, {SERVICE_CIDR}, 224.0.0.0/24, 255.255.255.255 }} accept
                ip6 daddr {{ {POD_CIDR6}, fe80::/10, ff02::/16 }} accept
                add @outside4 {{ ip saddr . ip daddr counter }}
                add @outside6 {{ ip6 saddr . ip6 daddr counter }}
            }}
        }}
    """


def counts(cluster: Cluster) -> dict[tuple[str, str], int]:
    """Packets that pods sent towards addresses outside the cluster, by (source, destination).

    Counted since the cluster came up or since `forget`, whether they arrived or were dropped.
    """
    found: dict[tuple[str, str], int] = {}
    for name in ("outside4", "outside6"):
        listed = json.loads(run("nft", "-j", "list", "set", "inet", table_of(cluster), name))
        for part in listed["nftables"]:
            for entry in part.get("set", {}).get("elem", []):
                source, destination = entry["elem"]["val"]["concat"]
                found[source, destination] = entry["elem"]["counter"]["packets"]
    return found


def forget(cluster: Cluster) -> None:
    """Begin counting anew."""
    for name in ("outside4", "outside6"):
        run("nft", "flush", "set", "inet", table_of(cluster), name)
