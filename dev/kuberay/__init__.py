# SPDX-License-Identifier: Apache-2.0
"""A test double of KubeRay's operator, not KubeRay: real clusters and kind run the real one.

KubeRay cannot be installed from a package registry. On the embedded cluster this host process turns
RayServices into RayClusters, pods, Services and Serve applications, following KubeRay v1.7.0 in what others
can see: names, labels, commands, environment, probes, init containers, conditions, what it ignores, and that
it writes the whole object.

    names, quantities       constants and numbers
    cluster_spec, pods, services, suspension, conditions    pure: manifests and decisions
    ray_service, ray_cluster    one round of reconciling each
    api, serve              Kubernetes and Ray over HTTP
    controller              the loop
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]
PID_FILE, LOG_FILE = "kuberay.pid", "kuberay.log"


class ClusterPlace(Protocol):
    """What of a cluster the stand-in needs."""

    @property
    def state_dir(self) -> Path: ...
    @property
    def kubeconfig(self) -> Path: ...


def start(cluster: ClusterPlace) -> Path:
    """Runs the stand-in beside a cluster unless it runs already; returns the file with its process id."""
    pid_file = cluster.state_dir / PID_FILE
    if _runs(pid_file):
        return pid_file
    with (cluster.state_dir / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dev.kuberay", "--kubeconfig", str(cluster.kubeconfig)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    pid_file.write_text(f"{process.pid}\n")
    return pid_file


def _runs(pid_file: Path) -> bool:
    """The recorded process lives and is the stand-in: process ids are used again."""
    if not pid_file.exists():
        return False
    try:
        command = Path(f"/proc/{int(pid_file.read_text())}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
    return b"dev.kuberay" in command


def stop(cluster: ClusterPlace) -> None:
    """Ends the recorded process; nothing to do is no error."""
    pid_file = cluster.state_dir / PID_FILE
    if _runs(pid_file):
        os.kill(int(pid_file.read_text()), 15)
    pid_file.unlink(missing_ok=True)
