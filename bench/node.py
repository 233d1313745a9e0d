# SPDX-License-Identifier: Apache-2.0
"""Who takes part in `bench-delivery`: a model comes to a node, a pod starts on it again, the next comes.

Two models that share all shards but the last stand for two revisions. They have different names, which costs
the fetch nothing and gives it nothing.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench import ground as grounds
from bench.entrants import CORES, PULL_FLOOR, Contest, Entrant, Tools, bare, pull, pull_floor, pull_peers
from bench.ground import VENV, Ground, ours
from bench.measure import Run, run
from bench.ratios import Role

TENANT = "bench"
_LOOK = "import os, sys; [os.stat(path) for path in sys.argv[1:]]"


@contextmanager
def opened(work: Path, size: int, files: int, workers: int) -> Iterator[Ground]:
    """Both revisions in a registry, the first in a node's cache as well."""
    with grounds.mirrored(work, size, files, workers) as ground:
        grounds.mirror(replace(ground, model=ground.sibling), ground.full.host, work / "mirrored-next.json")
        fetch(ground, cache(ground))
        yield ground


def cache(ground: Ground) -> Path:
    """The one that has the first revision. Entrants do not change it."""
    return ground.work / "cache"


def held(ground: Ground) -> list[Path]:
    """The weights in that cache."""
    (entry,) = (cache(ground) / TENANT).glob("sha256-*")
    return sorted(entry.glob("*.safetensors"))


def following(ground: Ground) -> tuple[str, str]:
    """Repository and digest of the next revision."""
    document = json.loads((ground.work / "mirrored-next.json").read_text())
    return f"models/{ground.sibling.repo}", str(document["digest"])


def changed(ground: Ground) -> Path:
    """The one shard that the next revision has and the first has not."""
    return ground.sibling.weights[-1]


def fetch(ground: Ground, root: Path, host: str = "", next_revision: bool = False) -> Run:
    """What a fetch Job runs; from another `host` than the registry's where one is given."""
    repository, digest = f"models/{ground.model.repo}", ground.digest
    if next_revision:
        repository, digest = following(ground)
    root.mkdir(parents=True, exist_ok=True)
    return ours(*fetch_command(f"{host or ground.full.host}/{repository}@{digest}", root))


def fetch_command(reference: str, root: Path) -> list[str]:
    where = ("--root", str(root), "--tenant", TENANT)
    return ["cache", "fetch", f"oci://{reference}", *where, "--plain-http"]


def hold(ground: Ground, verify: str) -> Run:
    """What runs beside the model in a pod, until the pod's own program may start."""
    ready = ground.work / "held"
    wanted = ("--tenant-dir", str(cache(ground) / TENANT), "--manifest", ground.digest)
    command = [str(VENV / "sovereign-airgap"), "cache", "hold", *wanted]
    return run([*command, "--held-file", str(ready), "--verify", verify], until=ready)


def second_cache(ground: Ground) -> Path:
    """Another cache with the first revision, for one turn: other names of the same files."""
    shutil.copytree(cache(ground), ground.out, copy_function=os.link, symlinks=True)
    return ground.out


def contests(tools: Tools) -> tuple[Contest, ...]:
    return (_deliver(tools), _restart(), _revision())


def _deliver(tools: Tools) -> Contest:
    return Contest(
        "deliver",
        PULL_FLOOR,
        (
            pull_floor(),
            Entrant("cache fetch", "registry to node", Role.OURS, lambda ground: fetch(ground, ground.out)),
            pull("pull", Role.ASIDE),
            *pull_peers(tools),
        ),
        warm=lambda ground: ground.stored(),
        writes=True,
    )


def _restart() -> Contest:
    def look(ground: Ground) -> Run:
        return run([sys.executable, "-c", _LOOK, *map(str, held(ground))])

    def sha256(ground: Ground) -> Run:
        return bare("hash", str(2 * CORES), *map(str, held(ground)))

    return Contest(
        "restart",
        "a Python that starts and looks at the size of every file",
        (
            Entrant("floor", "sizes of the files", Role.FLOOR, look),
            Entrant("cache hold", "compared with marker", Role.OURS, lambda g: hold(g, "changed")),
            Entrant("cache hold, always", "all hashed again", Role.ASIDE, lambda g: hold(g, "always")),
            Entrant("disk and cores alone", "disk, sha256", Role.ASIDE, sha256),
            pull("pull to emptyDir", Role.PEER),
        ),
        warm=lambda ground: ground.stored(),
        cold=held,
    )


def _revision() -> Contest:
    def floor(ground: Ground) -> Run:
        repository, _ = following(ground)
        blob = f"http://{ground.full.host}/v2/{repository}/blobs/{ground.sibling.digests[-1]}"
        return bare("fetch", "1", str(ground.out), blob)

    return Contest(
        "revision",
        "the one changed shard by loopback HTTP GET, sha256, O_DIRECT write and fsync",
        (
            Entrant("floor", "changed shard to disk, sha256", Role.FLOOR, floor),
            Entrant(
                "cache fetch",
                "the others are linked",
                Role.OURS,
                lambda ground: fetch(ground, second_cache(ground), next_revision=True),
            ),
            Entrant(
                "cache fetch, empty",
                "all fetched",
                Role.ASIDE,
                lambda ground: fetch(ground, ground.out, next_revision=True),
            ),
        ),
        size=lambda ground: changed(ground).stat().st_size,
        warm=lambda ground: [*ground.stored(), ground.full.blob_path(ground.sibling.digests[-1])],
        cold=held,
        writes=True,
    )
