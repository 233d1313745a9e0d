# SPDX-License-Identifier: Apache-2.0
"""Processes that outlive the command that started them, each recorded in a file of the cluster's state.

A record holds the pid and the time that the kernel gave the process at its start, so that a pid which was
recycled since (or belongs to an earlier boot) is never mistaken for ours, and never signalled.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dev.cluster.errors import ClusterError

TERM_SECONDS = 10.0
_DETACHED = 'log=$1; shift; "$@" >>"$log" 2>&1 </dev/null & echo $!'


@dataclass(frozen=True)
class Process:
    """A recorded process. `born` is what `birth()` said right after the start."""

    name: str
    pid: int
    born: str
    log: str
    argv: tuple[str, ...]

    @property
    def alive(self) -> bool:
        return birth(self.pid) == self.born

    def end(self, patience: float = TERM_SECONDS) -> None:
        """SIGTERM, once more half-way (etcd wants it), SIGKILL at last; return when it is gone."""
        for number, wait in (
            (signal.SIGTERM, patience / 2),
            (signal.SIGTERM, patience / 2),
            (signal.SIGKILL, 10.0),
        ):
            if not self.alive:
                return
            _send(self.pid, number)
            if awaited(lambda: not self.alive, wait, interval=0.02):
                return
        if self.alive:
            raise ClusterError(
                f"{self.name} (pid {self.pid}) does not end, not even by SIGKILL; see {self.log}."
            )

    def last_words(self, lines: int = 6) -> str:
        try:
            return "\n".join(Path(self.log).read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


class ProcessTable:
    """The recorded processes of one cluster: one JSON file each, written before anything else can fail."""

    def __init__(self, records: Path, logs: Path) -> None:
        self._records, self._logs = records, logs

    def start(
        self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> Process:
        """Start argv detached (own session, no input) and record it; one running under `name` is kept."""
        if (running := self.find(name)) and running.alive:
            return running
        self._records.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        log = log or self._logs / f"{name}.log"
        # The shell forks, prints the pid and leaves, so that init reaps the process and not our caller.
        started = subprocess.run(
            [
                "/bin/sh",
                "-c",
                'log=$1; shift; "$@" >>"$log" 2>&1 </dev/null & echo $!',
                "sh",
                str(log),
                *argv,
            ],
            env={**os.environ, **(env or {})},
            start_new_session=True,
            capture_output=True,
            text=True,
            check=True,
        )
        pid = int(started.stdout)
        process = Process(name, pid, birth(pid) or "", str(log), tuple(argv))
        record = self._records / f"{name}.json"
        partial = record.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(process), indent=1) + "\n")
        partial.rename(record)
        return process

    def find(self, name: str) -> Process | None:
        try:
            return _parse((self._records / f"{name}.json").read_text())
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def all(self) -> list[Process]:
        """Every recorded process, alive or not, by name."""
        names = sorted(path.stem for path in self._records.glob("*.json"))
        return [process for name in names if (process := self.find(name))]

    def forget_dead(self, names: Sequence[str]) -> None:
        """Remove the records that a crash has left, so that only deaths from now on count."""
        for name in names:
            if (process := self.find(name)) and not process.alive:
                (self._records / f"{name}.json").unlink(missing_ok=True)

    def end(self, name: str, patience: float = TERM_SECONDS) -> None:
        if process := self.find(name):
            process.end(patience)
        (self._records / f"{name}.json").unlink(missing_ok=True)


def _parse(text: str) -> Process:
    fields = json.loads(text)
    return Process(fields["name"], fields["pid"], fields["born"], fields["log"], tuple(fields["argv"]))


def birth(pid: int) -> str | None:
    """Boot and start time of a living process, as one comparable word; None if it is gone or a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _birth_without_proc(pid)
    except ProcessLookupError:
        return None
    state, *fields = status.rpartition(")")[2].split()
    if state in "ZX":
        return None
    return f"{_boot()}/{fields[18]}"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _birth_without_proc(pid: int) -> str | None:
    listed = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip() or None


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise ClusterError(
            f"Process {pid} belongs to another user; run the command as the one who started it."
        ) from None


def awaited(condition: Callable[[], bool], seconds: float, interval: float = 0.1) -> bool:
    """Look again and again until the condition holds (True) or the time is over (False)."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True
