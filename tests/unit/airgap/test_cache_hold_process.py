# SPDX-License-Identifier: Apache-2.0
"""Holding an entry as a pod does it: processes, signals, another user, a read-only mount."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sovereign_airgap.cache.eviction import evict
from sovereign_airgap.cache.layout import Entry
from tests.unit.airgap.cache_entries import FILES, ONE, SHARD, an_endless_entry, an_entry, rot

pytestmark = pytest.mark.slow

NOBODY = 65534
SECONDS = 60.0
# Room for an interpreter, the command line and what it imports; a pod's request is reckoned from this.
MAX_RESIDENT_BYTES = 40 * 1024 * 1024


class Pod:
    """`cache hold` in a process of its own, and what it tells from outside."""

    def __init__(self, folder: Path, tenant: Path, *options: str, program: tuple[str, ...] = ()) -> None:
        self.held_file, self.result_file = folder / "held", folder / "result"
        arguments = ["cache", "hold", "--tenant-dir", str(tenant), "--manifest", str(ONE)]
        files = ["--held-file", str(self.held_file), "--result-file", str(self.result_file)]
        command = program or (sys.executable, "-m", "sovereign_airgap.cli")
        self.process = subprocess.Popen(
            [*command, *arguments, *files, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        ends = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < ends
            time.sleep(0.02)

    def wait_until_held(self) -> None:
        self.wait_until(self.held_file.exists)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(timeout=SECONDS)

    @property
    def result(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.result_file.read_text())
        return found

    def told(self, name: str, file: str = "status") -> str:
        """The first word of a line that the kernel tells of the process."""
        lines = Path(f"/proc/{self.process.pid}/{file}").read_text().splitlines()
        told = dict(line.split(":", 1) for line in lines)
        return told[name].split()[0]

    def sleeps(self) -> bool:
        """It is past its start, where a signal would be nobody's, and waits for something."""
        return bool(int(self.told("SigCgt"), 16) & 1 << (signal.SIGTERM - 1)) and self.told("State") == "S"


Start = Callable[..., Pod]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where other users may go as well; pytest's own folder is closed to them."""
    place = Path(tempfile.mkdtemp(prefix="cache-hold-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    pods: list[Pod] = []

    def call(*options: str, program: tuple[str, ...] = ()) -> Pod:
        own = folder / f"pod-{len(pods)}"
        own.mkdir()
        own.chmod(0o777)
        pods.append(Pod(own, folder / "cache" / "team-a", *options, program=program))
        return pods[-1]

    yield call
    for pod in pods:
        pod.process.kill()
        pod.process.communicate()


@pytest.fixture
def entry(folder: Path) -> Entry:
    return an_entry(folder / "cache")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_holds_ends_it_with_0(start: Start, entry: Entry, number: signal.Signals) -> None:
    pod = start()
    pod.wait_until_held()
    assert pod.end(number) == 0
    assert (pod.result["reason"], pod.result["files"]) == ("Held", len(FILES))
    assert number.name in str(pod.result["message"])
    assert not pod.held_file.exists()


def test_a_signal_while_it_waits_ends_it_at_once(start: Start, folder: Path) -> None:
    pod = start("--seconds", "600")
    pod.wait_until(pod.sleeps)
    assert pod.end() == 1
    assert (pod.result["reason"], pod.held_file.exists()) == ("Interrupted", False)


def test_a_signal_while_it_hashes_ends_it_at_once(start: Start, folder: Path) -> None:
    pod = start("--verify", "always", "--manifest", str(an_endless_entry(folder / "cache").digest))
    pod.wait_until(lambda: int(pod.told("rchar", "io")) > 64 * 1024 * 1024)
    assert pod.end() == 1
    assert (pod.result["reason"], pod.held_file.exists()) == ("Interrupted", False)


def test_damage_ends_it_with_3_and_what_is_missing_with_1(start: Start, entry: Entry) -> None:
    rot(entry.folder / SHARD)
    pod = start("--verify", "always")
    assert pod.wait() == 3
    assert pod.result["reason"] == "CacheCorrupt"
    shutil.rmtree(entry.folder)
    pod = start("--seconds", "0.1")
    assert pod.wait() == 1
    assert pod.result["reason"] == "CacheMissing"


def test_nobody_evicts_what_a_pod_holds_and_anybody_can_once_it_was_killed(
    start: Start, entry: Entry
) -> None:
    first, second = start(), start()
    for pod in (first, second):
        pod.wait_until_held()
    assert not evict(entry)
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert first.held_file.exists(), "nobody removes it after a SIGKILL; the next run does"
    assert not evict(entry)
    assert second.end(signal.SIGKILL) == -signal.SIGKILL
    assert evict(entry)


def test_another_user_holds_through_a_read_only_mount(start: Start, entry: Entry, folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting, and becoming another user, needs root")
    cache = folder / "cache"
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && touch "$1/x" 2>/dev/null && exit 99'
    # The interpreter may lie where nobody else may go: everything is imported before the rights are dropped.
    script = (
        "import os, sys, sovereign_airgap.cli as cli, sovereign_airgap.bundle.hashing, "
        "sovereign_airgap.cache.hold; "
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); sys.exit(cli.run(sys.argv[1:]))"
    )
    program = ("unshare", "--mount", "sh", "-c", f'{mount}; shift; exec "$@"', "sh", str(cache))
    tried = subprocess.run([*program, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no read-only mount here: {tried.stderr.strip() or tried.returncode}")
    pod = start("--verify", "always", program=(*program, sys.executable, "-c", script))
    pod.wait_until_held()
    assert pod.told("Uid") == str(NOBODY)
    assert not evict(entry), "the lock is the same on both sides of the mount"
    assert pod.end() == 0
    assert evict(entry)


@pytest.mark.parametrize("verify", ["changed", "always"])
def test_holding_takes_little_memory_and_no_time(start: Start, entry: Entry, verify: str) -> None:
    pod = start("--verify", verify)
    pod.wait_until_held()
    pod.wait_until(pod.sleeps)
    assert int(pod.told("VmRSS")) * 1024 < MAX_RESIDENT_BYTES
    switches = pod.told("voluntary_ctxt_switches")
    time.sleep(1.2)  # more than twice its interval of polling
    assert pod.told("voluntary_ctxt_switches") == switches, "it sleeps until the signal comes"
    assert pod.end() == 0
