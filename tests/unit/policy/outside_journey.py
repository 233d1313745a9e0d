# SPDX-License-Identifier: Apache-2.0
"""Two pods behind the guard and the double of the outside: a program that prints what it saw as JSON.

`python -m tests.unit.policy.outside_journey FOLDER`, in namespaces of its own for the network and for mounts,
because the double has fixed names.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dev import outside
from dev.cluster import network
from dev.cluster.errors import ClusterError
from dev.cluster.process import awaited
from dev.cluster.state import Cluster, Settings
from tests.unit.policy.links import Machine, connects, echoed


def claimed_by_one_of(folder: Path) -> tuple[Cluster, list[bool]]:
    """Several clusters claim the machine at once: the one that has it, and whether each other was told so."""
    clusters = [
        Cluster(f"unit-{number}", folder / f"unit-{number}", Settings(node=True, api_port=6443))
        for number in range(6)
    ]

    def complaint(cluster: Cluster) -> str:
        try:
            network.claim(cluster)
        except ClusterError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(clusters)) as threads:
        said = list(threads.map(complaint, clusters))
    owner = clusters[said.index("")]
    return owner, [f"--name {owner.name}" in text for text in said if text]


def journey(folder: Path) -> dict[str, Any]:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    cluster, refused = claimed_by_one_of(folder)
    network.set_up(cluster)
    machine = Machine.around_this_one()
    asking, other = machine.pod(10), machine.pod(11)
    outside.start(cluster)
    machine.listen(other, 8080)
    seen: dict[str, Any] = {"ipv6": outside.has_ipv6(), "refused": refused}
    other_cluster = Cluster("another", folder / "another", Settings(node=True))
    outside.stop(other_cluster)  # not its own: stays
    seen["reached6"] = awaited(lambda: connects(asking, outside.WEB6, 443), 5 if seen["ipv6"] else 1)
    wanted = [(outside.WEB, port) for port in outside.TCP_PORTS]
    wanted += [(outside.METADATA, 80), (outside.OTHER_NODE, 10250), ("10.244.0.11", 8080)]
    seen["reached"] = [connects(asking, *target) for target in wanted]
    seen["udp"] = [echoed(asking, outside.WEB, 123)]
    elsewhere = (("192.0.2.77", 443), ("198.51.100.9", 8443), ("2001:db8:0:1::99", 443))
    with machine.listen(machine.name, 8443):
        seen["elsewhere"] = [connects(asking, *target) for target in elsewhere]
        inwards = (("10.244.0.11", 8080), ("198.51.100.9", 8443), ("10.244.0.1", 8443))
        seen["inwards"] = [connects(outside.NAMESPACE, *target) for target in inwards]
    connects(other, "10.244.0.1", 1)
    seen["counted"] = {" ".join(pair): packets for pair, packets in outside.counts(cluster).items()}
    outside.forget(cluster)
    seen["forgotten"] = outside.counts(cluster)
    outside.stop(cluster)
    network.tear_down(cluster)
    machine.close()
    links_left = [path.name for path in Path("/sys/class/net").glob("sov*")]
    seen["left"] = [links_left, [path.name for path in Path("/run/netns").glob("sov*")]]
    knobs = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
    seen["forwarding"] = [(Path("/proc/sys/net") / knob).read_text().strip() for knob in knobs]
    return seen


if __name__ == "__main__":
    sys.stdout.write(json.dumps(journey(Path(sys.argv[1]))) + "\n")
