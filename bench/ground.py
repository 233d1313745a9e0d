# SPDX-License-Identifier: Apache-2.0
"""Where the benchmarks' verbs run: two models on a hub, one as a bundle, as parts and in a registry."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import stage
from bench.measure import ContestantFailed, Run, run
from bench.stage import Stage
from dev.hub import HubServer
from dev.registry import LocalRegistry

VENV = Path(sys.executable).parent
BUNDLE = "bench"
_PARTS = 4


@dataclass(frozen=True)
class Ground:
    """What every entrant finds; `registry` is the host of one that is empty at the start of each turn."""

    work: Path
    model: Stage
    sibling: Stage
    hub: HubServer
    full: LocalRegistry
    workers: int
    registry: str = ""

    @property
    def bundle(self) -> Path:
        """Of `model` alone."""
        return self.work / "bundle"

    @property
    def parts(self) -> Path:
        return self.work / "parts"

    @property
    def part_size(self) -> int:
        return max(self.model.size // _PARTS, 4096)

    @property
    def out(self) -> Path:
        """Where an entrant writes; absent at its start, removed after it."""
        return self.work / "out"

    @property
    def pulled(self) -> str:
        """The reference, without scheme, of `model` in the registry that holds it."""
        return f"{self.full.host}/models/{self.model.repo}"

    @property
    def digest(self) -> str:
        return str(json.loads((self.work / "mirrored.json").read_text())["digest"])

    def blobs(self) -> list[Path]:
        return sorted((self.bundle / "blobs/sha256").iterdir(), key=lambda path: (-path.stat().st_size, path))

    def stored(self) -> list[Path]:
        """The weights on the disk of the registry that holds them."""
        return [self.full.blob_path(digest) for digest in self.model.digests]

    def source(self, model: Stage) -> str:
        return f"hf://{model.repo}@{self.hub.commit(model.repo)}"


def ours(*arguments: str) -> Run:
    return run([str(VENV / "sovereign-airgap"), *arguments, "--progress", "none"])


def create(ground: Ground, out: Path, *models: Stage, since: Path | None = None) -> Run:
    named = [part for model in models for part in ("--model", ground.source(model))]
    base = () if since is None else ("--since", str(since))
    hub = ("--endpoint", ground.hub.endpoint)
    return ours("bundle", "create", "-o", str(out), "--name", BUNDLE, *named, *hub, *base)


def mirror(ground: Ground, host: str, result: Path) -> Run:
    hub = ("--plain-http", "--endpoint", ground.hub.endpoint, "--result-file", str(result))
    return ours("mirror", ground.source(ground.model), f"oci://{host}", *hub)


def split(ground: Ground, out: Path) -> Run:
    return ours("bundle", "split", str(ground.bundle), "-o", str(out), "--part-size", str(ground.part_size))


@contextmanager
def mirrored(work: Path, size: int, files: int, workers: int) -> Iterator[Ground]:
    """Makes hub and registry, `size` bytes in each model, and ends them afterwards. No bundle, no parts."""
    work.mkdir()
    model = stage.build(work, size, files)
    sibling = stage.sibling(model)
    with ExitStack() as stack:
        hub = stack.enter_context(HubServer(model.hub_folder))
        full = stack.enter_context(LocalRegistry(work / "full"))
        ground = Ground(work, model, sibling, hub, full, workers)
        mirror(ground, full.host, work / "mirrored.json")
        yield ground


@contextmanager
def opened(work: Path, size: int, files: int, workers: int) -> Iterator[Ground]:
    """The same, and `model` as a bundle and as parts."""
    with mirrored(work, size, files, workers) as ground:
        create(ground, ground.bundle, ground.model)
        split(ground, ground.parts)
        yield ground


def settle(folder: Path) -> None:
    """Waits until what others left in the page cache is on the disk that holds `folder`."""
    subprocess.run(["sync", "-f", str(folder)], check=True)


def evict(paths: Iterable[Path]) -> None:
    """Takes files out of the page cache: they will be read from the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def warm(paths: Iterable[Path]) -> None:
    """Brings files into the page cache, where there is room: their server's disk is not what is measured."""
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            buffer = bytearray(4 * 1024 * 1024)
            while stream.readinto(buffer):
                pass


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def size_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_below(folder))


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder.with_name(folder.name + ".unfinished"), ignore_errors=True)


def require_stored(name: str, model: Stage, registry: LocalRegistry) -> None:
    for path, digest in zip(model.weights, model.digests, strict=True):
        stored = registry.blob_path(digest)
        if not stored.is_file() or stored.stat().st_size != path.stat().st_size:
            raise ContestantFailed(f"{name} did not bring {path.name} into the registry")


def require_written(name: str, folder: Path, size: int) -> None:
    if (found := size_below(folder)) < size:
        raise ContestantFailed(f"{name} wrote {found} bytes instead of {size}")
