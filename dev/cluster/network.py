# SPDX-License-Identifier: Apache-2.0
"""The pod bridge, and the rules that keep pods on this machine. Both exist before the first pod does.

The bridge is the only link we make. Forwarding is switched on for it alone, never for the machine, so that a
laptop with a cluster on it does not become a router.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from pathlib import Path

from dev.cluster.errors import ClusterError
from dev.cluster.state import NODE_IP, POD_CIDR, SERVICE_CIDR, Cluster

BRIDGE = "sovereign0"
# Tables that a node's programs make under fixed names; ours to remove, because the claim on the bridge says
# that no other cluster of ours runs, and `claim` refuses a machine that had them before.
PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"), ("inet", "cni_hostport"))
_LINK = Path("/sys/class/net") / BRIDGE


def claim(cluster: Cluster) -> None:
    """Refuse a machine that already has what we would make: another node cluster, another Kubernetes."""
    owner = _owner()
    if owner == str(cluster.state_dir):
        return
    if owner is not None:
        raise ClusterError(
            f"The embedded node of another cluster ({owner}) holds this machine's {BRIDGE}, and there can be "
            f"one at a time; end that one with `python -m dev cluster down --name {Path(owner).name}`."
        )
    if _LINK.exists():
        # A cluster of ours whose folder is gone; what it has left under fixed names is nobody's now.
        _run("ip", "link", "delete", BRIDGE)
        _delete_proxy_tables()
    for family, table in PROXY_TABLES:
        if _table_exists(family, table):
            raise ClusterError(
                f"This machine has an nftables table `{family} {table}`, so it seems to be a Kubernetes node "
                "already; use another machine, or remove the table if nothing needs it "
                f"(`nft delete table {family} {table}`)."
            )
    for route in json.loads(_run("ip", "-j", "-4", "route", "show") or "[]"):
        destination = "0.0.0.0/32" if route["dst"] == "default" else route["dst"]
        for ours in (POD_CIDR, SERVICE_CIDR):
            if ipaddress.ip_network(destination, strict=False).overlaps(ipaddress.ip_network(ours)):
                raise ClusterError(
                    f"This machine has a route to {destination} over {route.get('dev', '?')}, which overlaps "
                    f"the cluster's own range {ours}; the embedded node cannot run beside it."
                )


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
    """Guard first, then the bridge: there is no moment in which a pod could have got out."""
    _run("nft", "-f", "-", stdin=guard(table_of(cluster), cluster.api_port))
    if not _LINK.exists():
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
    _run("ip", "link", "set", BRIDGE, "alias", str(cluster.state_dir))
    _run("ip", "addr", "replace", f"{NODE_IP}/{POD_CIDR.rpartition('/')[2]}", "dev", BRIDGE)
    for key, value in (("ipv6/conf", ("disable_ipv6", "1")), ("ipv4/conf", ("forwarding", "1"))):
        knob = Path("/proc/sys/net") / key / BRIDGE / value[0]
        if knob.exists():  # a kernel without IPv6 has no such file
            knob.write_text(value[1])
    _run("ip", "link", "set", BRIDGE, "up")
    # A machine without a default route reaches services too, and with the bridge's address as its own.
    _run("ip", "route", "replace", SERVICE_CIDR, "dev", BRIDGE, "src", NODE_IP)


def guard(table: str, api_port: int) -> str:
    """The rule set: pods talk to pods and to the API, nothing from outside talks to pods. Repeatable."""
    return f"""
        table inet {table} {{}}
        delete table inet {table}
        table inet {table} {{
            set host_ports {{ type inet_service; elements = {{ {api_port} }} }}
            chain forward {{
                type filter hook forward priority filter - 10; policy accept;
                iifname "{BRIDGE}" oifname != "{BRIDGE}" counter drop comment "pods stay on this machine"
                iifname != "{BRIDGE}" oifname "{BRIDGE}" counter drop comment "nothing outside reaches pods"
            }}
            chain input {{
                type filter hook input priority filter - 10; policy accept;
                iifname "{BRIDGE}" ct state established,related accept
                iifname "{BRIDGE}" ip protocol icmp accept
                iifname "{BRIDGE}" tcp dport @host_ports accept
                iifname "{BRIDGE}" counter drop comment "no way out through a program on this machine"
                iifname != {{ "lo", "{BRIDGE}" }} ip daddr {POD_CIDR} counter drop
                iifname != {{ "lo", "{BRIDGE}" }} tcp dport {api_port} counter drop
            }}
        }}
    """


def open_host_port(cluster: Cluster, port: int) -> None:
    """Let pods reach a program on this machine (at the node's address) on one TCP port more."""
    _run("nft", "add", "element", "inet", table_of(cluster), "host_ports", f"{{ {port} }}")


def tear_down(cluster: Cluster) -> None:
    """Remove the bridge if it is ours, the proxy's tables, and the guard as the very last."""
    alias = _LINK / "ifalias"
    if alias.exists() and alias.read_text().strip() in ("", str(cluster.state_dir)):
        _run("ip", "link", "delete", BRIDGE)
        _delete_proxy_tables()
    if _table_exists("inet", table_of(cluster)):
        _run("nft", "delete", "table", "inet", table_of(cluster))


def _delete_proxy_tables() -> None:
    for family, table in PROXY_TABLES:
        if _table_exists(family, table):
            _run("nft", "delete", "table", family, table)


def _table_exists(family: str, table: str) -> bool:
    listed = subprocess.run(
        ["nft", "list", "tables", family], capture_output=True, text=True, check=False
    ).stdout
    return f"table {family} {table}" in listed.splitlines()


def _run(*command: str, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout


def plugin_configuration(folder: Path) -> str:
    """CNI: addresses from `folder`, a port on the bridge; no gateway: that would switch on forwarding."""
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
                        "ranges": [[{"subnet": POD_CIDR, "rangeStart": "10.244.0.10", "gateway": NODE_IP}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": str(folder),
                    },
                },
                {
                    "type": "portmap",
                    "capabilities": {"portMappings": True},
                    "snat": False,
                    "backend": "nftables",
                },
            ],
        },
        indent=1,
    )
