# SPDX-License-Identifier: Apache-2.0
"""containerd and the image registry behind it, and the removal of every trace that containers leave."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dev import policy
from dev.binaries import CNI_PLUGINS, binary
from dev.cluster import network
from dev.cluster.control_plane import ENVIRONMENT
from dev.cluster.errors import ClusterError
from dev.cluster.oci_layout import write_program_image
from dev.cluster.process import awaited, birth
from dev.cluster.state import Cluster
from dev.paths import cache_root

PAUSE_IMAGE, DNS_IMAGE = "sovereign.dev/embedded/pause:1", "sovereign.dev/embedded/coredns:1"
_CGROUPS = Path("/sys/fs/cgroup")
_SHIM_SOCKETS = Path("/run/containerd/s")
_LIBCNI = (Path("/var/lib/cni/results"), Path("/var/lib/cni"))


def folder(cluster: Cluster) -> Path:
    return cluster.state_dir / "node"


def socket(cluster: Cluster) -> Path:
    return folder(cluster) / "containerd.sock"


def containers(cluster: Cluster) -> Path:
    """What must survive a restart: images and snapshots."""
    return folder(cluster) / "containerd"


def _running(cluster: Cluster) -> Path:
    """What must not survive one: bundles, root file systems, network namespaces."""
    return folder(cluster) / "run"


def start_registry(cluster: Cluster) -> None:
    """A registry on loopback whose storage is in the cache, so that images are pushed once per machine."""
    config = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": str(cache_root() / "registry")},
            "delete": {"enabled": True},
        },
        "http": {"addr": cluster.images, "secret": "loopback-only"},
    }
    path = folder(cluster) / "registry.json"  # JSON is YAML
    path.write_text(json.dumps(config, indent=1))
    cluster.processes.start("image-registry", [str(binary("registry")), "serve", str(path)], ENVIRONMENT)


def start_containerd(cluster: Cluster) -> None:
    """Start containerd and return when it answers and has the images that no registry serves."""
    base = folder(cluster)
    if len(str(socket(cluster))) > 100:
        raise ClusterError(
            f"{socket(cluster)} is too long a name for a socket; set SOVEREIGN_STATE to a shorter folder."
        )
    _place_plugins(cluster)
    hosts = base / "hosts" / cluster.images
    hosts.mkdir(parents=True, exist_ok=True)
    (hosts / "hosts.toml").write_text(
        f'server = "http://{cluster.images}"\n'
        f'[host."http://{cluster.images}"]\n'
        'capabilities = ["pull", "resolve"]\n'
    )
    (base / "containerd.toml").write_text(configuration(cluster))
    cluster.processes.start(
        "containerd",
        [str(binary("containerd")), "--config", str(base / "containerd.toml"), "--log-level", "info"],
        ENVIRONMENT,
    )
    if not awaited(lambda: ctr(cluster, "version").returncode == 0, 60):
        raise ClusterError(
            f"containerd does not answer; see {cluster.state_dir / 'logs' / 'containerd.log'}."
        )
    for reference, program in ((PAUSE_IMAGE, "pause"), (DNS_IMAGE, "coredns")):
        archive = base / f"{program}.tar"
        write_program_image(archive, reference, binary(program))
        done = ctr(cluster, "images", "import", "--local", str(archive))
        archive.unlink()
        if done.returncode:
            raise ClusterError(f"containerd does not take the image {reference}: {done.stderr.strip()}")


def _place_plugins(cluster: Cluster) -> None:
    plugins, networks = folder(cluster) / "cni" / "bin", folder(cluster) / "cni" / "net.d"
    for path in (plugins, networks):
        path.mkdir(parents=True, exist_ok=True)
    for name in CNI_PLUGINS:
        (plugins / name).unlink(missing_ok=True)
        (plugins / name).symlink_to(binary(name))
    (networks / "10-sovereign.conflist").write_text(
        network.plugin_configuration(
            folder(cluster) / "cni" / "addresses", policy.place_plugin(cluster, plugins)
        )
    )


def configuration(cluster: Cluster) -> str:
    base = folder(cluster)
    return f"""
version = 3
root = "{containers(cluster)}"
state = "{_running(cluster)}"
# Plugins that would write outside this folder, or that need file systems we do not use.
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{socket(cluster)}"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
discard_unpacked_layers = true
image_pull_progress_timeout = "10m"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.images".registry]
config_path = "{base / "hosts"}"

[plugins."io.containerd.cri.v1.runtime"]
disable_apparmor = true
# Root in a small VM or a container may not lower this score, and then no pod would start.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{base / "cni" / "bin"}"]
conf_dir = "{base / "cni" / "net.d"}"
use_internal_loopback = true

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{binary("containerd-shim-runc-v2")}"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{shutil.which("runc") or "runc"}"
Root = "{_running(cluster) / "runc"}"
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri"]
stream_server_address = "127.0.0.1"
"""


def ctr(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command to this cluster's containerd, in the namespace of its pods; the caller judges the code."""
    return subprocess.run(
        [str(binary("ctr")), "--address", str(socket(cluster)), "--namespace", "k8s.io", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def remove_containers(cluster: Cluster) -> None:
    """End every container, shim, mount and cgroup of this cluster; containerd has ended before."""
    ids = _container_ids(cluster)
    _end_all(cluster, ids)
    unmount_below(cluster.state_dir)
    _remove_cgroups(ids)
    for result in _LIBCNI[0].glob("sovereign-*"):
        if result.name.split("-")[1] in ids:
            result.unlink(missing_ok=True)
    for name in ids:
        _shim_socket(cluster, name).unlink(missing_ok=True)
    # These are containerd's fixed places, not ours alone: they go only where nothing is left in them.
    for path in (_SHIM_SOCKETS, _SHIM_SOCKETS.parent, *_LIBCNI):
        with contextlib.suppress(OSError):
            path.rmdir()
    shutil.rmtree(_running(cluster), ignore_errors=True)
    shutil.rmtree(folder(cluster) / "cni" / "addresses", ignore_errors=True)
    policy.forget_sandboxes(cluster)


def _container_ids(cluster: Cluster) -> set[str]:
    """Containers and sandboxes, as containerd's own folders name them: this also works after a crash."""
    state, root = _running(cluster), containers(cluster)
    places = [state / "io.containerd.runtime.v2.task" / "k8s.io"]
    places += [root / "io.containerd.grpc.v1.cri" / kind for kind in ("containers", "sandboxes")]
    return {path.name for place in places if place.is_dir() for path in place.iterdir() if path.is_dir()}


def _end_all(cluster: Cluster, ids: set[str]) -> None:
    """SIGKILL to the processes in our containers' cgroups and to our shims, until there are none."""

    def none_left() -> bool:
        pids = {pid for path in _cgroups(ids) for pid in _members(path)} | set(_shims(cluster))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not any(birth(pid) for pid in pids)

    if not awaited(none_left, 30):
        raise ClusterError("Some containers of the cluster do not end, not even by SIGKILL; see `ps`.")


def _shim_socket(cluster: Cluster, name: str) -> Path:
    """Where a shim listens: containerd derives it from its own address, the namespace and the sandbox."""
    return _SHIM_SOCKETS / hashlib.sha256(f"{socket(cluster)}/k8s.io/{name}".encode()).hexdigest()


def _members(cgroup: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(line) for line in (cgroup / "cgroup.procs").read_text().split()]
    return []


def _shims(cluster: Cluster) -> Iterator[int]:
    """Pids of shims that serve our containerd: they name its socket in their arguments."""
    address = str(socket(cluster)).encode()
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"containerd-shim-runc-v2") and address in words:
                    yield int(path.name)


def _cgroups(ids: set[str]) -> list[Path]:
    """Our containers' cgroups, deepest first: one tree on cgroups v2, one for each controller on v1."""
    tops = [parent / name for parent in _cgroup_parents() for name in ids]
    found = {path for top in tops if top.is_dir() for path in (top, *top.rglob("*")) if path.is_dir()}
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def _cgroup_parents() -> list[Path]:
    """Where containerd puts the containers of Kubernetes, in the one tree (v2) or in each of them (v1)."""
    trees = [_CGROUPS, *(path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink())]
    return [tree / "k8s.io" for tree in trees if (tree / "k8s.io").is_dir()]


def _remove_cgroups(ids: set[str]) -> None:
    for path in [*_cgroups(ids), *_cgroup_parents()]:
        # The shared parent stays where something else of this machine is in it.
        with contextlib.suppress(OSError):
            path.rmdir()


def unmount_below(path: Path) -> None:
    """Unmount what is mounted below the cluster's own folder, deepest first; nothing else on this machine."""
    for mount in reversed(mounts_below(path)):
        done = subprocess.run(["umount", "-l", str(mount)], capture_output=True, text=True, check=False)
        if done.returncode and mount in mounts_below(path):
            raise ClusterError(f"{mount} cannot be unmounted: {done.stderr.strip()}")


def mounts_below(path: Path) -> list[Path]:
    """Mount points strictly below path, in the order of mounting."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split(" ")[4].replace("\\040", " ")) for line in lines]
    return [point for point in points if path in point.parents]
