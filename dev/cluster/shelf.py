# SPDX-License-Identifier: Apache-2.0
"""What containerd has unpacked outlives the cluster: gigabytes that the next one need not unpack again.

`down` empties containerd of containers and moves its folder into the cache; the next `up` moves it back. One
node runs at a time, so one folder is enough. After a crash nothing is kept: who knows what is in it.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import NamedTuple

from dev.cluster import runtime
from dev.cluster.state import Cluster
from dev.paths import cache_root


class Image(NamedTuple):
    """One of containerd's names for an image; several names may share a digest."""

    name: str
    digest: str

    @property
    def repository(self) -> str:
        """The path without its registry: the registry's port is another one in every cluster."""
        return self.name.partition("@")[0].partition("/")[2]


def _place() -> Path:
    return cache_root() / "containerd"


def take(cluster: Cluster) -> None:
    """Gives a new cluster what the last one had unpacked."""
    home = runtime.containers(cluster)
    if not home.exists() and _place().is_dir():
        home.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(OSError):  # another file system: everything is unpacked anew
            _place().rename(home)


def empty(cluster: Cluster) -> bool:
    """Takes containers and outdated images out of the running containerd; whether that went well.

    The kubelet has ended before, or it would start them again.
    """
    listed = runtime.ctr(cluster, "containers", "list")
    rows = [line.split() for line in listed.stdout.splitlines()[1:]]
    ids = [row[0] for row in rows]
    used = {row[1] for row in rows if len(row) > 1}
    names = runtime.ctr(cluster, "images", "list")
    images = [Image(row[0], row[2]) for row in map(str.split, names.stdout.splitlines()[1:]) if len(row) > 2]
    outdated = [image.name for image in images if image.digest not in kept(images, used)]
    steps = [listed, names]
    if ids:
        runtime.ctr(cluster, "tasks", "delete", "--force", *ids)  # some have none
        steps.append(runtime.ctr(cluster, "containers", "delete", *ids))
    if outdated:
        steps.append(runtime.ctr(cluster, "images", "delete", *outdated))
    return not any(step.returncode for step in steps)


def kept(images: list[Image], used: set[str]) -> set[str]:
    """The digests worth keeping: those in use, and those whose repository nobody has used in a newer form."""
    renewed = {image.repository for image in images if image.name in used}
    in_use = {image.digest for image in images if image.name in used}
    return in_use | {image.digest for image in images if image.repository and image.repository not in renewed}


def put_back(cluster: Cluster) -> None:
    """Keeps the folder for the next cluster; containerd has ended, and `empty` went well."""
    home = runtime.containers(cluster)
    # What the kubelet's side of containerd remembers of its pods: none of them is left.
    for trace in home.glob("io.containerd.grpc.v1.cri*"):
        shutil.rmtree(trace, ignore_errors=True)
    shutil.rmtree(_place(), ignore_errors=True)
    with contextlib.suppress(OSError):
        home.rename(_place())
