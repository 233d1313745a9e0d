# SPDX-License-Identifier: Apache-2.0
"""One embedded cluster as a value and as a folder: everything that it is stands below its state folder."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dev.binaries import binary
from dev.cluster.errors import ClusterError
from dev.cluster.process import Process, ProcessTable
from dev.paths import state_root

POD_CIDR, SERVICE_CIDR = "10.244.0.0/16", "10.96.0.0/16"
# The pod bridge's own address: the node's address too, so that nothing hangs on the machine's network.
NODE_IP, API_SERVICE_IP, DNS_SERVICE_IP = "10.244.0.1", "10.96.0.1", "10.96.0.10"
# A second address for each pod, so that IPv6 is a way that can be open or closed; services have none.
POD_CIDR6, NODE_IP6 = "fd00:10:244::/64", "fd00:10:244::1"
KUBELET_PORT = 10250
DOMAIN = "cluster.local"
NODE_NAME = "embedded"


@dataclass(frozen=True)
class Settings:
    """What was chosen when the cluster came up; ports are 0 until chosen."""

    node: bool = False
    api_port: int = 0
    etcd_port: int = 0
    etcd_peer_port: int = 0
    registry_port: int = 0


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up (or was). Others start host processes beside it through `run_process`."""

    name: str
    state_dir: Path
    settings: Settings

    @property
    def api_port(self) -> int:
        return self.settings.api_port

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.api_port}"

    @property
    def kubeconfig(self) -> Path:
        return self.state_dir / "kubeconfig"

    @property
    def kubectl(self) -> list[str]:
        """The start of every kubectl command against this cluster."""
        return [str(binary("kubectl")), "--kubeconfig", str(self.kubeconfig)]

    @property
    def helm(self) -> Path:
        return binary("helm")

    @property
    def images(self) -> str:
        """host:port of the registry that the node pulls from; what is pushed there outlives the cluster."""
        if not self.settings.node:
            raise ClusterError(f"Cluster {self.name} has no node, so no images; use `cluster up --node`.")
        return f"127.0.0.1:{self.settings.registry_port}"

    @property
    def pki(self) -> Path:
        return self.state_dir / "pki"

    @property
    def audit_log(self) -> Path:
        """What the API server was asked, by whom, in order: one audit.k8s.io/v1 Event as JSON a line."""
        return self.state_dir / "logs" / "audit.log"

    @property
    def processes(self) -> ProcessTable:
        return ProcessTable(self.state_dir / "processes", self.state_dir / "logs")

    def run_process(
        self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> Process:
        """Start a host process that belongs to the cluster: `down` ends it first. One running is kept."""
        return self.processes.start(name, argv, env, log)

    def save(self) -> None:
        path = self.state_dir / "cluster.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self.settings), indent=1) + "\n")
        partial.rename(path)


def state_dir(name: str) -> Path:
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", name):
        raise ClusterError(
            f"{name!r} is no name for a cluster; use up to 32 of a-z, 0-9 and dashes, a letter first."
        )
    return state_root() / "clusters" / name


def load(name: str) -> Cluster | None:
    """The cluster as its folder describes it, running or not; None if there is no such folder."""
    folder = state_dir(name)
    try:
        recorded = json.loads((folder / "cluster.json").read_text())
    except (OSError, ValueError):
        return Cluster(name, folder, Settings()) if folder.exists() else None
    known = {field.name for field in fields(Settings)}
    return Cluster(name, folder, Settings(**{key: value for key, value in recorded.items() if key in known}))


def names() -> list[str]:
    folder = state_root() / "clusters"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """One up or down of a cluster at a time; a second one waits. The lock file goes with the cluster."""
    folder = state_dir(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{name}.lock"
    while True:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                continue  # the one who held it has removed it: others would lock another file
            try:
                yield
            finally:
                if not folder.exists():
                    path.unlink(missing_ok=True)
            return
