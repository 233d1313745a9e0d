# SPDX-License-Identifier: Apache-2.0
"""up, down and status: the order in which the parts of an embedded cluster start and end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace

from dev.binaries import CONTROL_PLANE, NODE, BuildFailed, binary
from dev.cluster import control_plane, state
from dev.cluster.errors import ClusterError
from dev.cluster.process import Process
from dev.cluster.state import Cluster

DEFAULT_NAME = "sovereign"

Report = Callable[[str], None]


def up(
    name: str = DEFAULT_NAME,
    node: bool = False,
    progress: Report | None = None,
    policies: bool | None = None,
) -> Cluster:
    """Start what does not run yet and return when the cluster (and its node) is ready for pods.

    A control plane without a node is restarted when it is to get one. Leftovers of a crash are cleaned first.
    `policies` says whether the node enforces network policies; None keeps what was chosen before, and a new
    node enforces them.
    """
    report = progress or (lambda _: None)
    if node:
        from dev.cluster import node as nodes

        nodes.refuse_where_impossible()
    _build(NODE if node else CONTROL_PLANE, report)
    with state.exclusive(name):
        cluster = state.load(name) or Cluster(name, state.state_dir(name), state.Settings())
        if node and not cluster.settings.node:
            control_plane.stop(cluster)  # its API server listens where pods do not reach it
            cluster = replace(cluster, settings=replace(cluster.settings, node=True))
        if cluster.settings.node:
            from dev.cluster import node as nodes

            nodes.prepare(cluster, report, policies)
        report("control plane")
        cluster = control_plane.start(cluster)
        if cluster.settings.node:
            report("node")
            cluster = nodes.start(cluster, report)
        return cluster


def _build(programs: tuple[str, ...], report: Report) -> None:
    try:
        for program in programs:
            binary(program, report)
    except BuildFailed as failure:
        raise ClusterError(str(failure)) from failure


def down(name: str = DEFAULT_NAME, progress: Report | None = None) -> None:
    """End everything the cluster started and remove its folder; also after a crash, also half a cluster."""
    report = progress or (lambda _: None)
    with state.exclusive(name):
        cluster = state.load(name)
        if cluster is None:
            return
        own = {*control_plane.ENDING_ORDER}
        if cluster.settings.node:
            from dev.cluster import node as nodes

            own |= set(nodes.PROCESSES)
        for process in cluster.processes.all():
            if process.name not in own:
                report(f"ending {process.name}")
                cluster.processes.end(process.name)
        if cluster.settings.node:
            report("ending pods and the node")
            nodes.stop(cluster)
        report("ending the control plane")
        control_plane.stop(cluster)
        shutil.rmtree(cluster.state_dir)


@dataclass(frozen=True)
class Part:
    """One line of `status`."""

    name: str
    alive: bool
    detail: str


def _part(process: Process) -> Part:
    detail = f"pid {process.pid}" if process.alive else f"ended; see {process.log}"
    return Part(process.name, process.alive, detail)


def status(name: str = DEFAULT_NAME) -> tuple[Part, ...]:
    """The recorded processes and the API's own opinion; empty if there is no such cluster."""
    cluster = state.load(name)
    if cluster is None:
        return ()
    parts = [_part(process) for process in cluster.processes.all()]
    try:
        ready = control_plane.healthy(cluster)
    except (OSError, KeyError):  # no identities: `up` did not get that far
        ready = False
    return (Part("API", ready, cluster.server if cluster.api_port else "never started"), *parts)
