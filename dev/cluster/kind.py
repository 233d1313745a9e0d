# SPDX-License-Identifier: Apache-2.0
"""The same verbs on kind, for machines where Docker runs (`CLUSTER=kind`).

Honest note: this follows the documented command lines of kind and Docker and has not been run by the tests,
because the machines that test this repository have no Docker.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dev.binaries import binary
from dev.cluster import state
from dev.cluster.errors import ClusterError
from dev.cluster.node import ACCELERATORS, LABELS
from dev.kubectl import Kubectl

if TYPE_CHECKING:
    from dev.stack import Target

REGISTRY_IMAGE = "docker.io/library/registry:3"
REGISTRY_PORT = 5001

Report = Callable[[str], None]


def up(name: str, report: Report) -> Path:
    """Create cluster and registry where they are not there yet; return the kubeconfig."""
    _refuse_where_impossible()
    kubeconfig = _kubeconfig(name)
    kubeconfig.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if name in _run("kind", "get", "clusters").split():
        kubeconfig.write_text(_run("kind", "get", "kubeconfig", "--name", name))
    else:
        report("creating a kind cluster")
        _run("kind", "create", "cluster", "--name", name, "--kubeconfig", str(kubeconfig), "--wait", "180s")
    kubeconfig.chmod(0o600)
    report("image registry")
    _start_registry(name)
    return kubeconfig


def down(name: str, report: Report) -> None:
    """Delete the cluster, its registry and its folder."""
    _refuse_where_impossible()
    report("deleting the kind cluster")
    _run("kind", "delete", "cluster", "--name", name, "--kubeconfig", str(_kubeconfig(name)))
    if _registry(name) in _containers():
        _run("docker", "rm", "--force", "--volumes", _registry(name))
    shutil.rmtree(_kubeconfig(name).parent, ignore_errors=True)


def target(name: str, report: Report) -> Target:
    """What the product is installed on: this cluster, its registry, and our helm."""
    from dev.stack import Target

    kubeconfig = _kubeconfig(name)
    up(name, report)
    kubectl = Kubectl((str(binary("kubectl")), "--kubeconfig", str(kubeconfig)))
    _advertise(kubectl)
    return Target(
        kubectl=kubectl,
        helm=(str(binary("helm")), "--kubeconfig", str(kubeconfig)),
        registry=f"127.0.0.1:{REGISTRY_PORT}",
        kubeconfig_hint=f"export KUBECONFIG={kubeconfig}",
        cluster=None,
    )


def _advertise(kubectl: Kubectl) -> None:
    """The nodes say that they have what the demo's manifest asks for, as the embedded node does."""
    capacity = json.dumps({"status": {"capacity": ACCELERATORS}})
    for node in kubectl.items("nodes"):
        name = node["metadata"]["name"]
        kubectl("label", "--overwrite", "node", name, *(f"{key}={value}" for key, value in LABELS.items()))
        kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", capacity)


def _kubeconfig(name: str) -> Path:
    # Not beside the embedded clusters: `down` of one kind of cluster must not take the other's folder.
    return state.state_dir(name).parent.parent / "kind" / name / "kubeconfig"


def _registry(name: str) -> str:
    return f"{name}-registry"


def _start_registry(name: str) -> None:
    """A registry container on kind's network; the nodes find it under the address that this machine uses."""
    registry = _registry(name)
    if registry not in _containers():
        publish = f"127.0.0.1:{REGISTRY_PORT}:5000"
        _run(
            "docker",
            "run",
            "--detach",
            "--name",
            registry,
            "--network",
            "kind",
            "-p",
            publish,
            REGISTRY_IMAGE,
        )
    folder = f"/etc/containerd/certs.d/127.0.0.1:{REGISTRY_PORT}"
    for node in _run("kind", "get", "nodes", "--name", name).split():
        _run("docker", "exec", node, "mkdir", "-p", folder)
        hosts = f'[host."http://{registry}:5000"]\n'
        _run("docker", "exec", "--interactive", node, "cp", "/dev/stdin", f"{folder}/hosts.toml", stdin=hosts)


def _containers() -> list[str]:
    return _run("docker", "ps", "--all", "--format", "{{.Names}}").split()


def _refuse_where_impossible() -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        raise ClusterError(
            "CLUSTER=kind needs Docker (`docker info` fails here); start it, or leave CLUSTER out."
        )
    if not shutil.which("kind"):
        raise ClusterError("CLUSTER=kind needs `kind` on PATH; install it, or leave CLUSTER out.")


def _run(*command: str, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command[:3])}` failed: {done.stderr.strip()[-800:]}")
    return done.stdout
