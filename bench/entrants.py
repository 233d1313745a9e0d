# SPDX-License-Identifier: Apache-2.0
"""Who takes part in `bench-airgap`, verb by verb, and what the floor of each verb is.

`bench-delivery` takes the pullers from here.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench import ground as grounds
from bench import stage
from bench.ground import VENV, Ground, ours
from bench.measure import Run, run
from bench.ratios import Role
from dev.binaries import BuildFailed, binary

CORES = len(os.sched_getaffinity(0))
ORAS = "oras==0.2.43"
_INSTALL_SECONDS = 120
_TAG = "models/bench:latest"


@dataclass(frozen=True)
class Entrant:
    name: str
    does: str
    role: Role
    go: Callable[[Ground], Run]
    absent: str | None = None
    """Why it cannot take part here."""


@dataclass(frozen=True)
class Contest:
    """One verb. `cold` files are read from the disk, `warm` ones from the page cache, in every turn."""

    verb: str
    floor: str
    entrants: tuple[Entrant, ...]
    size: Callable[[Ground], int] = lambda ground: ground.model.size
    warm: Callable[[Ground], Iterable[Path]] = lambda ground: ()
    cold: Callable[[Ground], Iterable[Path]] = lambda ground: ()
    writes: bool = False
    """Whether entrants leave at least `size` bytes in `out`."""
    stores: bool = False
    """Whether they leave the model in an empty registry."""


@dataclass(frozen=True)
class Tools:
    """Why a peer is absent, None if it is not. oras-py gets an environment below `folder` when asked for."""

    folder: Path

    def crane(self) -> str | None:
        try:
            binary("crane")
        except BuildFailed as failure:
            return str(failure).splitlines()[0]
        return None

    def skopeo(self) -> str | None:
        return None if shutil.which("skopeo") else "skopeo is not installed"

    def hf(self) -> str | None:
        return None if (VENV / "hf").exists() else "hf is not in this environment"

    def oras(self) -> str | None:
        return _install_oras(self.folder)


def contests(tools: Tools) -> tuple[Contest, ...]:
    return (_create(tools), _verify(), _split(), _load(tools), _pull(tools), _delta(), _mirror(tools))


def _create(tools: Tools) -> Contest:
    return Contest(
        "create",
        "loopback HTTP GET from the hub, sha256, O_DIRECT write and fsync, no checks",
        (
            Entrant("floor", "hub to disk, sha256", Role.FLOOR, lambda ground: _fetch_hub(ground)),
            Entrant(
                "sovereign-airgap",
                "hub to bundle, everything checked",
                Role.OURS,
                lambda ground: grounds.create(ground, ground.out, ground.model),
            ),
            Entrant("hf download", "hub to disk, no hash", Role.PEER, _hf_download, tools.hf()),
        ),
        warm=lambda ground: ground.model.weights,
        writes=True,
    )


def _verify() -> Contest:
    lanes = str(2 * CORES)  # while one lane of a core reads, the other hashes

    def blobs(ground: Ground) -> list[str]:
        return [str(path) for path in ground.blobs()]

    def sha256sum(ground: Ground) -> Run:
        return run(
            ["sh", "-c", f'printf "%s\\0" "$@" | xargs -0 -n1 -P{CORES} sha256sum', "", *blobs(ground)]
        )

    return Contest(
        "verify",
        f"disk read past the page cache and sha256, on all {CORES} cores",
        (
            Entrant("floor", "disk, sha256", Role.FLOOR, lambda g: bare("hash", lanes, *blobs(g))),
            Entrant("disk alone", "disk", Role.BOUND, lambda g: bare("read", lanes, *blobs(g))),
            Entrant(
                "cores alone", "sha256 of memory", Role.BOUND,
                lambda g: bare("cores", str(CORES), str(g.model.size)),
            ),
            Entrant(
                "sovereign-airgap", "directory, all of verify", Role.OURS,
                lambda g: ours("bundle", "verify", str(g.bundle)),
            ),
            Entrant(
                "sovereign-airgap, parts", "parts, all of verify", Role.ASIDE,
                lambda g: ours("bundle", "verify", str(g.parts)),
            ),
            Entrant("sha256sum", f"blobs, {CORES} processes", Role.PEER, sha256sum),
        ),
        cold=lambda ground: [*grounds.files_below(ground.bundle), *grounds.files_below(ground.parts)],
    )  # fmt: skip


def _split() -> Contest:
    def tar_and_split(ground: Ground) -> Run:
        script = 'mkdir "$2" && tar -cf - -C "$1" . | split -b "$3" - "$2/part-"'
        return run(["sh", "-c", script, "", str(ground.bundle), str(ground.out), str(ground.part_size)])

    def copy(ground: Ground) -> Run:
        files = [str(path) for path in ground.blobs()]
        return bare("copy", str(ground.workers), str(ground.out), *files)

    return Contest(
        "split",
        "disk to disk past the page cache, sha256 once, several files at once, fsync",
        (
            Entrant("floor", "disk to disk, sha256", Role.FLOOR, copy),
            Entrant(
                "sovereign-airgap",
                "blobs and parts hashed",
                Role.OURS,
                lambda ground: grounds.split(ground, ground.out),
            ),
            Entrant("tar | split", "no hash", Role.PEER, tar_and_split),
        ),
        cold=lambda ground: ground.blobs(),
        writes=True,
    )


def _load(tools: Tools) -> Contest:
    def push(ground: Ground) -> Run:
        files = [str(path) for path in ground.blobs()]
        return bare("push", str(ground.workers), ground.registry, "models/bench", *files)

    def load(ground: Ground) -> Run:
        return ours("bundle", "load", str(ground.bundle), f"oci://{ground.registry}", "--plain-http")

    return Contest(
        "load",
        "disk read past the page cache, sha256, one PATCH and PUT for each blob, several at once",
        (
            Entrant("floor", "disk to registry, sha256", Role.FLOOR, push),
            Entrant("sovereign-airgap", "bundle to registry", Role.OURS, load),
            *_pushers(tools, Role.PEER),
            Entrant("oras-py push", "files to registry", Role.PEER, _oras_push(tools), tools.oras()),
        ),
        cold=lambda ground: [*ground.blobs(), *ground.model.weights],
        stores=True,
    )


PULL_FLOOR = "loopback HTTP GET from the registry, sha256, O_DIRECT write and fsync, no checks"


def pull_floor() -> Entrant:
    def fetch(ground: Ground) -> Run:
        blobs = f"http://{ground.full.host}/v2/models/{ground.model.repo}/blobs"
        urls = [f"{blobs}/{digest}" for digest in ground.model.digests]
        return bare("fetch", str(ground.workers), str(ground.out), *urls)

    return Entrant("floor", "registry to disk, sha256", Role.FLOOR, fetch)


def pull(name: str, role: Role) -> Entrant:
    def go(ground: Ground) -> Run:
        return ours("pull", f"oci://{ground.pulled}@{ground.digest}", str(ground.out), "--plain-http")

    return Entrant(name, "registry to files", role, go)


def pull_peers(tools: Tools) -> tuple[Entrant, ...]:
    def crane(ground: Ground) -> Run:
        reference = f"{ground.pulled}@{ground.digest}"
        return run([str(binary("crane")), "pull", "--insecure", "--format=oci", reference, str(ground.out)])

    def skopeo(ground: Ground) -> Run:
        source = f"docker://{ground.pulled}@{ground.digest}"
        return run(["skopeo", "copy", "--src-tls-verify=false", source, f"dir:{ground.out}"])

    return (
        Entrant("crane pull", "registry to OCI layout", Role.PEER, crane, tools.crane()),
        Entrant("skopeo copy", "registry to folder", Role.PEER, skopeo, tools.skopeo()),
    )


def _pull(tools: Tools) -> Contest:
    def oras(ground: Ground) -> Run:
        target = f"{ground.pulled}@{ground.digest}"
        return _oras(tools, "client.pull(target=sys.argv[1], outdir=sys.argv[2])", target, str(ground.out))

    return Contest(
        "pull",
        PULL_FLOOR,
        (
            pull_floor(),
            pull("sovereign-airgap", Role.OURS),
            *pull_peers(tools),
            Entrant("oras-py pull", "registry to files", Role.PEER, oras, tools.oras()),
        ),
        warm=lambda ground: ground.stored(),
        writes=True,
    )


def _delta() -> Contest:
    def fetch_changed(ground: Ground) -> Run:
        changed = stage.addresses(ground.hub, ground.sibling)[-1]
        return bare("fetch", "1", str(ground.out), changed)

    def create(ground: Ground) -> Run:
        return grounds.create(ground, ground.out, ground.model, ground.sibling, since=ground.bundle)

    return Contest(
        "delta",
        "the one changed file by loopback HTTP GET, sha256, O_DIRECT write and fsync",
        (
            Entrant("floor", "changed file to disk, sha256", Role.FLOOR, fetch_changed),
            Entrant("sovereign-airgap", "create --since, a second model", Role.OURS, create),
        ),
        size=lambda ground: ground.sibling.weights[-1].stat().st_size,
        warm=lambda ground: ground.sibling.weights[-1:],
        writes=True,
    )


def _mirror(tools: Tools) -> Contest:
    def floor(ground: Ground) -> Run:
        urls = stage.addresses(ground.hub, ground.model)
        module = [sys.executable, "-m", "bench.floor"]
        return run([*module, str(ground.workers), ground.registry, "models/bench", *urls])

    def mirror(ground: Ground) -> Run:
        return grounds.mirror(ground, ground.registry, ground.work / "result.json")

    def after_download(pusher: Entrant) -> Entrant:
        return Entrant(
            f"hf download + {pusher.name}",
            "hub to disk, then layout to registry",
            Role.PEER,
            lambda ground: _hf_download(ground).then(pusher.go(ground)),
            tools.hf() or pusher.absent,
        )

    pushers = _pushers(tools, Role.ASIDE)
    return Contest(
        "mirror",
        "loopback HTTP GET from the hub, sha256, one PATCH and PUT to the registry, no checks",
        (
            Entrant("floor", "hub to registry, sha256", Role.FLOOR, floor),
            Entrant("sovereign-airgap", "hub to registry, all checked", Role.OURS, mirror),
            *map(after_download, pushers),
            *pushers,
        ),
        warm=lambda ground: ground.model.weights,
        stores=True,
    )


def _pushers(tools: Tools, role: Role) -> tuple[Entrant, Entrant]:
    def crane(ground: Ground) -> Run:
        target = f"{ground.registry}/{_TAG}"
        return run([str(binary("crane")), "push", "--insecure", str(ground.model.layout), target])

    def skopeo(ground: Ground) -> Run:
        to = f"docker://{ground.registry}/{_TAG}"
        options = ("--preserve-digests", "--dest-tls-verify=false")
        return run(["skopeo", "copy", *options, f"oci:{ground.model.layout}", to])

    return (
        Entrant("crane push", "OCI layout to registry", role, crane, tools.crane()),
        Entrant("skopeo copy", "OCI layout to registry", role, skopeo, tools.skopeo()),
    )


def bare(verb: str, workers: str, *arguments: str) -> Run:
    return run([sys.executable, "-m", "bench.bare", verb, workers, *arguments])


def _fetch_hub(ground: Ground) -> Run:
    return bare("fetch", str(ground.workers), str(ground.out), *stage.addresses(ground.hub, ground.model))


def _hf_download(ground: Ground) -> Run:
    environment = {
        "HF_ENDPOINT": ground.hub.endpoint,
        "HF_HOME": f"{ground.out}/home",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    repo = ground.model.repo
    where = ("--revision", ground.hub.commit(repo), "--local-dir", f"{ground.out}/model")
    return run([str(VENV / "hf"), "download", repo, *where], environment)


# -- oras-py, in an environment of its own --------------------------------------------------------------


def _oras_push(tools: Tools) -> Callable[[Ground], Run]:
    def push(ground: Ground) -> Run:
        call = "client.push(target=sys.argv[1], files=sys.argv[2:], disable_path_validation=True)"
        return _oras(tools, call, f"{ground.registry}/{_TAG}", *map(str, ground.model.weights))

    return push


def _oras(tools: Tools, call: str, *arguments: str) -> Run:
    script = f"import sys, oras.client; client = oras.client.OrasClient(insecure=True); {call}"
    return run([str(tools.folder / "bin/python"), "-c", script, *arguments])


@cache
def _install_oras(folder: Path) -> str | None:
    uv = [sys.executable, "-m", "uv", "--quiet"]
    try:
        subprocess.run([*uv, "venv", str(folder)], check=True, capture_output=True, timeout=_INSTALL_SECONDS)
        subprocess.run(
            [*uv, "pip", "install", "--python", str(folder / "bin/python"), ORAS],
            check=True,
            capture_output=True,
            timeout=_INSTALL_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{ORAS} could not be installed: {str(error)[:200]}"
    return None
