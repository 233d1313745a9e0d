# SPDX-License-Identifier: Apache-2.0
"""The pod bridge, and the rules that keep pods on this machine. Both exist before the first pod does.

Forwarding is switched on for the bridge and for the link to `dev.outside` alone, never for the machine, so
that a laptop with a cluster on it does not become a router.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.cluster.errors import ClusterError
from dev.cluster.process import awaited
from dev.cluster.state import KUBELET_PORT, NODE_IP, NODE_IP6, POD_CIDR, POD_CIDR6, SERVICE_CIDR, Cluster

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

BRIDGE = "sovereign0"
# The way to the stand-in for the world (dev.outside). The guard knows it before it exists.
OUTSIDE_LINK = "sovereign-out"
# Tables that a node's programs make under fixed names; ours to remove, because the claim on the bridge says
# that no other cluster of ours runs, and `claim` refuses a machine that had them before.
PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"), ("inet", "cni_hostport"))
_LINK = Path("/sys/class/net") / BRIDGE


def claim(cluster: Cluster) -> None:
    """Make the bridge this cluster's; from here on it is the only one with a node on this machine.

    Refuses a machine that already has what we would make: another node cluster, another Kubernetes.
    """
    with _one_claim_at_a_time():
        if _owner() == str(cluster.state_dir):
            return
        _refuse_where_taken()
        cluster.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "link", "set", BRIDGE, "alias", str(cluster.state_dir))


def is_anothers(cluster: Cluster) -> bool:
    """Whether another cluster has the bridge, and with it everything that has one name on a machine."""
    return _owner() not in (None, str(cluster.state_dir))


@contextmanager
def _one_claim_at_a_time() -> Iterator[None]:
    """A name that one process can have, and that the kernel takes back however the process ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:

        def taken() -> bool:
            try:
                lock.bind("\0sovereign-node-claim")
            except OSError:
                return False
            return True

        if not awaited(taken, 15):
            raise ClusterError(
                "Another cluster has been claiming this machine for 15 s; wait for its `up`, or end that."
            )
        yield


def _refuse_where_taken() -> None:
    owner = _owner()
    if owner is not None:
        raise ClusterError(
            f"The embedded node of another cluster ({owner}) holds this machine's {BRIDGE}, and there can be "
            f"one at a time; end that one with `python -m dev cluster down --name {Path(owner).name}`."
        )
    if _LINK.exists():
        # A cluster of ours whose folder is gone; what it has left under fixed names is nobody's now.
        run("ip", "link", "delete", BRIDGE)
        _delete_proxy_tables()
    for family, table in PROXY_TABLES:
        if table_exists(family, table):
            raise ClusterError(
                f"This machine has an nftables table `{family} {table}`, so it seems to be a Kubernetes node "
                "already; use another machine, or remove the table if nothing needs it "
                f"(`nft delete table {family} {table}`)."
            )
    for destination, link in routes():
        for ours in map(ipaddress.ip_network, (POD_CIDR, SERVICE_CIDR, POD_CIDR6)):
            if destination.version == ours.version and destination.overlaps(ours):
                raise ClusterError(
                    f"This machine has a route to {destination} over {link}, which overlaps the cluster's "
                    f"own range {ours}; the embedded node cannot run beside it."
                )


def routes() -> Iterator[tuple[Network, str]]:
    """The machine's routes and the links that they lead to, without the default ones."""
    for version in ("-4", "-6"):
        for route in json.loads(run("ip", "-j", version, "route", "show") or "[]"):
            if route["dst"] != "default":
                yield ipaddress.ip_network(route["dst"], strict=False), str(route.get("dev", "?"))


def _owner() -> str | None:
    """The state folder that claimed the bridge; None if there is no bridge, or its folder is gone."""
    try:
        alias = (_LINK / "ifalias").read_text().strip()
    except OSError:
        return None
    return alias if alias and Path(alias).is_dir() else None


def table_of(cluster: Cluster) -> str:
    return "sovereign_" + cluster.name.replace("-", "_")


def set_up(cluster: Cluster) -> None:
    """Guard first, then the bridge goes up: there is no moment in which a pod could have got out."""
    run("nft", "-f", "-", stdin=guard(table_of(cluster), cluster.api_port))
    _filter_bridged_packets()
    route_only(BRIDGE)
    run("ip", "addr", "replace", f"{NODE_IP}/{POD_CIDR.rpartition('/')[2]}", "dev", BRIDGE)
    if has_ipv6():
        length = POD_CIDR6.rpartition("/")[2]
        run("ip", "addr", "replace", f"{NODE_IP6}/{length}", "dev", BRIDGE, "nodad")
    run("ip", "link", "set", BRIDGE, "up")
    # A machine without a default route reaches services too, and with the bridge's address as its own.
    run("ip", "route", "replace", SERVICE_CIDR, "dev", BRIDGE, "src", NODE_IP)


def _filter_bridged_packets() -> None:
    """Hand what pods send one another to the rules: without this, only what is routed would be seen."""
    if not Path("/proc/sys/net/bridge").exists():  # a module here, built in elsewhere
        subprocess.run(["modprobe", "br_netfilter"], capture_output=True, check=False)
    if not Path("/proc/sys/net/bridge").exists():
        raise ClusterError(
            "The kernel does not filter bridged packets (no /proc/sys/net/bridge), so network policies could "
            "not hold between pods; load the module br_netfilter, or use a kernel that has it."
        )
    run("ip", "link", "set", BRIDGE, "type", "bridge", "nf_call_iptables", "1", "nf_call_ip6tables", "1")


def has_ipv6() -> bool:
    return Path("/proc/sys/net/ipv6/conf").exists()


def route_only(link: str) -> None:
    """Forward what comes in on this link, and believe no router announcement from it."""
    knobs = {"ipv4": {"forwarding": 1}, "ipv6": {"disable_ipv6": 0, "accept_ra": 0, "force_forwarding": 1}}
    for family, values in knobs.items():
        for name, value in values.items():
            knob = Path("/proc/sys/net") / family / "conf" / link / name
            if knob.exists():  # no IPv6 in some kernels; forwarding of single links only since 6.17
                knob.write_text(str(value))


def guard(table: str, api_port: int) -> str:
    """The rule set: pods talk to pods, to the API and to the stand-in for the world. Repeatable."""
    neighbours = "nd-neighbor-solicit, nd-neighbor-advert"
    return f"""
        table inet {table} {{}}
        delete table inet {table}
        table inet {table} {{
            set host_ports {{ type inet_service; elements = {{ {api_port}, {KUBELET_PORT} }} }}
            chain forward {{
                type filter hook forward priority filter - 10; policy accept;
                iifname "{BRIDGE}" oifname "{OUTSIDE_LINK}" accept
                iifname "{OUTSIDE_LINK}" oifname "{BRIDGE}" ct state established,related accept
                iifname "{BRIDGE}" oifname != "{BRIDGE}" counter drop comment "pods stay on this machine"
                iifname != "{BRIDGE}" oifname "{BRIDGE}" counter drop comment "nothing outside reaches pods"
                iifname "{OUTSIDE_LINK}" counter drop comment "that world ends here"
                oifname "{OUTSIDE_LINK}" counter drop
            }}
            chain input {{
                type filter hook input priority filter - 10; policy accept;
                iifname {{ "{BRIDGE}", "{OUTSIDE_LINK}" }} ct state established,related accept
                iifname {{ "{BRIDGE}", "{OUTSIDE_LINK}" }} icmpv6 type {{ {neighbours} }} accept
                iifname "{BRIDGE}" ip protocol icmp accept
                iifname "{BRIDGE}" icmpv6 type echo-request accept
                iifname "{BRIDGE}" tcp dport @host_ports accept
                iifname "{BRIDGE}" counter drop comment "no way out through a program on this machine"
                iifname "{OUTSIDE_LINK}" counter drop
                iifname != {{ "lo", "{BRIDGE}" }} ip daddr {POD_CIDR} counter drop
                iifname != {{ "lo", "{BRIDGE}" }} ip6 daddr {POD_CIDR6} counter drop
                iifname != {{ "lo", "{BRIDGE}" }} tcp dport {api_port} counter drop
            }}
        }}
    """


def open_host_port(cluster: Cluster, port: int) -> None:
    """Let pods reach a program on this machine (at the node's address) on one TCP port more."""
    run("nft", "add", "element", "inet", table_of(cluster), "host_ports", f"{{ {port} }}")


def tear_down(cluster: Cluster) -> None:
    """Remove the bridge if it is ours, the proxy's tables, and the guard as the very last."""
    alias = _LINK / "ifalias"
    if alias.exists() and alias.read_text().strip() in ("", str(cluster.state_dir)):
        run("ip", "link", "delete", BRIDGE)
        _delete_proxy_tables()
    delete_table("inet", table_of(cluster))


def _delete_proxy_tables() -> None:
    for family, table in PROXY_TABLES:
        delete_table(family, table)


def delete_table(family: str, table: str) -> None:
    """Harmless where there is none."""
    if table_exists(family, table):
        run("nft", "delete", "table", family, table)


def table_exists(family: str, table: str) -> bool:
    listed = subprocess.run(
        ["nft", "list", "tables", family], capture_output=True, text=True, check=False
    ).stdout
    return f"table {family} {table}" in listed.splitlines()


def run(*command: str, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout


def plugin_configuration(folder: Path, chained: dict[str, str]) -> str:
    """CNI: addresses from `folder`, a port on the bridge, then the `chained` plugin as the last.

    No gateway: that would switch on forwarding.
    """
    ranges = [[{"subnet": POD_CIDR, "rangeStart": "10.244.0.10", "gateway": NODE_IP}]]
    routes = [{"dst": "0.0.0.0/0"}]
    if has_ipv6():
        ranges.append([{"subnet": POD_CIDR6, "rangeStart": "fd00:10:244::10", "gateway": NODE_IP6}])
        routes.append({"dst": "::/0"})
    return json.dumps(
        {
            "cniVersion": "1.0.0",
            "name": "sovereign",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": False,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": ranges,
                        "routes": routes,
                        "dataDir": str(folder),
                    },
                },
                {
                    "type": "portmap",
                    "capabilities": {"portMappings": True},
                    "snat": False,
                    "backend": "nftables",
                },
                chained,
            ],
        },
        indent=1,
    )
