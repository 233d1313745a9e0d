# SPDX-License-Identifier: Apache-2.0
"""The same verbs on kind, for machines where Docker runs (`CLUSTER=kind`).

Honest note: this was written against kind's documented command line and has not been run by the tests,
because the machines that test this repository have no Docker.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from dev.cluster import state
from dev.cluster.errors import ClusterError


def up(name: str) -> Path:
    """Create the cluster if there is none of that name; return its kubeconfig."""
    _refuse_where_impossible()
    kubeconfig = state.state_dir(name) / "kind.kubeconfig"
    kubeconfig.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if name in _kind("get", "clusters").split():
        kubeconfig.write_text(_kind("get", "kubeconfig", "--name", name))
    else:
        _kind("create", "cluster", "--name", name, "--kubeconfig", str(kubeconfig), "--wait", "180s")
    kubeconfig.chmod(0o600)
    return kubeconfig


def down(name: str) -> None:
    _refuse_where_impossible()
    kubeconfig = state.state_dir(name) / "kind.kubeconfig"
    _kind("delete", "cluster", "--name", name, "--kubeconfig", str(kubeconfig))
    kubeconfig.unlink(missing_ok=True)


def _refuse_where_impossible() -> None:
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        raise ClusterError(
            "CLUSTER=kind needs a Docker daemon that `docker info` reaches; start it, or leave CLUSTER out."
        )
    if not shutil.which("kind"):
        raise ClusterError(
            "CLUSTER=kind needs `kind` on PATH; install it with `go install sigs.k8s.io/kind@latest`."
        )


def _kind(*arguments: str) -> str:
    done = subprocess.run(["kind", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`kind {' '.join(arguments[:2])}` failed: {done.stderr.strip()[-800:]}")
    return done.stdout
