# SPDX-License-Identifier: Apache-2.0
"""A node with a cache, and a registry that it fetches from: every fetch is a process of its own."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sovereign_airgap.cache.layout import IN_USE, Cache, Entry
from sovereign_airgap.cli import run
from sovereign_airgap.digest import Digest
from tests.dataplane.models import WEIGHTS, a_model
from tests.dataplane.site import REPO, Outcome, Site
from tests.dataplane.test_outages import assert_told_well
from tests.dataplane.test_process import Command, start
from tests.unit.faults.proxy import Hang

TENANT = "team-a"


@dataclass(frozen=True)
class Fetched:
    """How a fetch ended, and its numbers."""

    outcome: Outcome
    document: dict[str, object]

    @property
    def fetched(self) -> object:
        return self.document["fetchedBytes"]

    def failed_as(self, reason: str, code: int = 1) -> None:
        assert (self.outcome.reason, self.outcome.code) == (reason, code), self.outcome
        assert_told_well(self.outcome)

    def done(self) -> "Fetched":
        assert (self.outcome.reason, self.outcome.code) == ("Fetched", 0), self.outcome
        return self


@dataclass
class Running:
    command: Command

    def ended(self) -> Fetched:
        outcome = self.command.ended()
        return Fetched(outcome, json.loads(self.command.result.read_text()))

    def kill(self) -> None:
        """As a power cut or the kernel's out-of-memory killer would."""
        self.command.process.kill()
        self.command.process.communicate(timeout=30)


@dataclass
class NodeSite:
    """`within` is put before every command: a namespace in which the node's disk is mounted."""

    site: Site
    folder: Path
    within: Sequence[str] = ()

    @property
    def root(self) -> Path:
        return self.folder / "cache"

    @property
    def cache(self) -> Cache:
        return Cache(self.root)

    def publish(self, seed: str, **files: bytes | None) -> str:
        """Mirrors another revision; the digest of its manifest."""
        self.site.publish(a_model(seed, **files))
        done = self.site.mirror()
        assert done.code == 0, done
        return done.digest

    def files(self) -> dict[str, bytes]:
        """What was published last."""
        folder = self.site.hub_folder / REPO
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }

    def start(self, digest: str, *options: str, tenant: str = TENANT, at: str = "one") -> Running:
        """`at` names the folder of the result: two that run at the same time need two."""
        folder = self.folder / at
        folder.mkdir(exist_ok=True)
        return Running(start(folder, *self._arguments(digest, tenant), *options, within=self.within))

    def fetch(self, digest: str, *options: str, tenant: str = TENANT) -> Fetched:
        """The same command, in this process unless it has to be in a namespace."""
        if self.within:
            return self.start(digest, *options, tenant=tenant).ended()
        result = self.folder / "result"
        result.unlink(missing_ok=True)
        told = ("--progress", "none", "--result-file", str(result))
        code = run([*self._arguments(digest, tenant), *options, *told])
        document = json.loads(result.read_text())
        return Fetched(Outcome(code, document["reason"], document["message"]), document)

    def _arguments(self, digest: str, tenant: str) -> list[str]:
        reference = f"{self.site.target}@{digest}"
        patience = ("--plain-http", "--stall-seconds", "20", "--longest-pause", "0.05")
        return ["cache", "fetch", reference, "--root", str(self.root), "--tenant", tenant, *patience]

    def entry(self, digest: str, tenant: str = TENANT) -> Entry:
        return self.cache.entry(tenant, Digest.parse(digest))

    def assert_whole(self, digest: str, files: dict[str, bytes], tenant: str = TENANT) -> None:
        """Every file is right and nothing else is there, as the command in its namespace sees it."""
        entry = self.entry(digest, tenant)
        listed = self.look("find", str(entry.folder), "-type", "f", "-printf", "%P\n").split()
        ours = {".complete", ".complete-config", ".manifest", ".used", IN_USE}
        assert set(listed) == {*files, *ours}
        sums = self.look("sh", "-c", 'cd "$0" && sha256sum -- *', str(entry.folder)).splitlines()
        assert {line[66:]: f"sha256:{line[:64]}" for line in sums} == {
            path: str(Digest.of(content)) for path, content in files.items()
        }

    def look(self, *command: str) -> str:
        done = subprocess.run([*self.within, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
        return done.stdout


class Disk:
    """A small tmpfs in a mount namespace of its own, which lasts as long as this block."""

    def __init__(self, folder: Path, options: str) -> None:
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        script = 'mount -t tmpfs -o "$1" none "$0" && echo ready && exec sleep 600'
        self._process = subprocess.Popen(
            ["unshare", "--mount", *user, "sh", "-c", script, str(folder), options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.close()
            pytest.skip("a private mount needs root or user namespaces")
        self._folder = folder
        into = ["--user", "--preserve-credentials"] if user else []
        self.within = ["nsenter", *into, "--mount", f"--target={self._process.pid}", f"--wdns={Path.cwd()}"]

    def change(self, options: str) -> None:
        subprocess.run([*self.within, "mount", "-o", f"remount,{options}", str(self._folder)], check=True)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def a_disk(node: NodeSite, options: str) -> Iterator[Disk]:
    """The node's cache on a disk of its own: as root of a namespace it is ours alone."""
    disk = Disk(node.root, options)
    node.within = disk.within
    try:
        yield disk
    finally:
        node.within = ()
        disk.close()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, what
        time.sleep(0.02)


def size(files: dict[str, bytes]) -> int:
    return sum(map(len, files.values()))


def blob(node: NodeSite, digest: str, path: str) -> str:
    layers = node.site.manifest(digest)["layers"]
    assert isinstance(layers, list)
    return next(str(one["digest"]) for one in layers if one["annotations"]["org.cncf.model.filepath"] == path)


def hang_at(node: NodeSite, digest: str, path: str = WEIGHTS) -> None:
    node.site.registry.break_(Hang(after=9_000), method="GET", path=f"/blobs/{blob(node, digest, path)}")


def wait_until_only_one_is_missing(node: NodeSite, digest: str) -> None:
    folder = node.entry(digest).folder
    names = {path for path in node.files() if path != WEIGHTS}
    wait_until(lambda: all((folder / name).exists() for name in names), "the other files never came")
