# SPDX-License-Identifier: Apache-2.0
"""A test double of a network plugin that enforces NetworkPolicy, not a network plugin: for the embedded node.

The node's bridge enforces nothing, which is one lane of the tests. This is the other: a host process that
renders all policies as one nftables table, and a CNI plugin that holds every pod back until its rules are in.
It follows NetworkPolicy in what pods can see; it does not keep a pod from borrowing its neighbour's address
(no pod here may send raw packets), and connections that exist survive a policy that forbids new ones.

    world, selection, rules     pure: what is, who is meant, which rules follow
    tables                      how rules replace one another
    api, agent                  lists and watches, the loop, the answers to the plugin
    cni_plugin                  runs alone, at each sandbox's start and end
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dev.cluster import network
from dev.cluster.errors import ClusterError
from dev.cluster.process import awaited

if TYPE_CHECKING:
    from dev.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
PROCESS = "policy-agent"
READY_SECONDS = 30.0


def folder(cluster: Cluster) -> Path:
    """What the CNI plugin and the agent share. Short: a socket's name has 107 bytes."""
    return cluster.state_dir / "policy"


def tables_of(cluster: Cluster) -> tuple[str, str]:
    """The nftables tables (family inet) that hold the rules by turns; a dot, which no cluster's name has."""
    name = f"{network.table_of(cluster)}.policy"
    return f"{name}.a", f"{name}.b"


@dataclass(frozen=True)
class Wanted:
    """What was chosen, as `wanted.json` holds it; the CNI plugin reads `enforced` there."""

    enforced: bool = True
    lag_seconds: float = 0.0
    holes: tuple[str, ...] = ()


def start(cluster: Cluster, lag_seconds: float = 0.0, holes: Sequence[str] = ()) -> None:
    """Enforce policies; returns when they are in force.

    Defects can be had: new pods stay open for `lag_seconds`, as with a plugin that is late; and what a hole
    matches (an nft match, such as `meta nfproto ipv6`) passes whatever policies say.
    """
    choose(cluster, Wanted(True, lag_seconds, tuple(holes)))
    resume(cluster)


def stop(cluster: Cluster) -> None:
    """Enforce nothing from now on, until `start`: what a bridge without a network plugin does."""
    choose(cluster, Wanted(enforced=False))
    resume(cluster)


def running(cluster: Cluster) -> bool:
    """Whether the agent's process is alive; its rules stay in the kernel when it is killed."""
    process = cluster.processes.find(PROCESS)
    return process is not None and process.alive


def resume(cluster: Cluster) -> None:
    """Do what was last chosen with `start` or `stop`; a new cluster enforces. Before the first pod."""
    wanted = _wanted(cluster)
    choose(cluster, wanted)
    if not wanted.enforced:
        cluster.processes.end(PROCESS)
        remove(cluster)
        return
    command = [sys.executable, "-m", "dev.policy", "--cluster", cluster.name]
    command += ["--lag-seconds", str(wanted.lag_seconds), *(f"--hole={hole}" for hole in wanted.holes)]
    process = cluster.processes.find(PROCESS)
    if process and process.alive and process.argv != tuple(command):
        cluster.processes.end(PROCESS)  # its rules stay in force until the next one replaces them
    cluster.run_process(PROCESS, command, env={"PYTHONPATH": str(ROOT)})
    settle(cluster)


def settle(cluster: Cluster) -> None:
    """Return when the agent has put in force what the API holds now; ClusterError if it does not."""
    if not awaited(lambda: _answers(cluster) or not running(cluster), READY_SECONDS) or not running(cluster):
        process = cluster.processes.find(PROCESS)
        words = process.last_words() if process else "it was never started"
        raise ClusterError(f"The policy agent does not put its rules in force; its last words:\n{words}")


def remove(cluster: Cluster) -> None:
    """Take the rules out of the kernel; harmless where there are none."""
    for table in tables_of(cluster):
        network.delete_table("inet", table)


def _answers(cluster: Cluster) -> bool:
    """Whether a round that began after this question ended well."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(READY_SECONDS)
        try:
            asking.connect(str(folder(cluster) / "agent.sock"))
            asking.sendall(b"{}\n")
            return asking.recv(4096).strip() == b"{}"
        except OSError:
            return False


def choose(cluster: Cluster, wanted: Wanted) -> None:
    """Write down what `resume` does, and whether the CNI plugin waits for the agent."""
    place = folder(cluster) / "wanted.json"
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(wanted)))
    partial.rename(place)


def _wanted(cluster: Cluster) -> Wanted:
    try:
        recorded = json.loads((folder(cluster) / "wanted.json").read_text())
    except FileNotFoundError:
        return Wanted()
    return Wanted(recorded["enforced"], recorded["lag_seconds"], tuple(recorded["holes"]))


def place_plugin(cluster: Cluster, plugins: Path) -> dict[str, str]:
    """Put the CNI plugin where containerd looks, as a copy (a checkout may go first); its configuration."""
    name = "sovereign-policy"
    code = plugins / f".{name}.py"
    code.write_text((Path(__file__).parent / "cni_plugin.py").read_text())
    program = plugins / name
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{code}"\n')
    program.chmod(0o755)
    return {"type": name, "folder": str(folder(cluster))}


def forget_sandboxes(cluster: Cluster) -> None:
    """After every sandbox was removed without the plugin: their addresses are nobody's now."""
    shutil.rmtree(folder(cluster) / "sandboxes", ignore_errors=True)


__all__ = [
    "Wanted",
    "choose",
    "folder",
    "forget_sandboxes",
    "place_plugin",
    "remove",
    "resume",
    "running",
    "settle",
    "start",
    "stop",
    "tables_of",
]
