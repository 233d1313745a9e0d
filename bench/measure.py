# SPDX-License-Identifier: Apache-2.0
"""Running a contestant as a process of its own: wall time, CPU time, memory and disk, from the kernel."""

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024
_BLOCK = 512  # what the kernel counts output in
_LOOK_SECONDS = 0.002
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


class ContestantFailed(RuntimeError):
    """A contestant ended with an error; the text has its last lines."""


@dataclass(frozen=True)
class Run:
    """One process, or several one after another."""

    seconds: float
    cpu_seconds: float
    peak_rss: int
    """Bytes; of the largest process, its own children not included."""
    written: int = 0
    """Bytes that it made dirty in the page cache or wrote past it, its children included."""

    def then(self, other: "Run") -> "Run":
        return Run(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_rss, other.peak_rss),
            self.written + other.written,
        )


def run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, until: Path | None = None
) -> Run:
    """Until the process ends; with `until`, until that file is there, and then the process is told to end."""
    with tempfile.TemporaryFile() as output:
        begun = time.monotonic()
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
        memory = _Memory(process.pid)
        try:
            if until is not None:
                _await(until, process.pid)
                ready = time.monotonic()
                process.send_signal(signal.SIGTERM)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = (time.monotonic() if until is None else ready) - begun
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            peak = memory.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            told = output.read().decode(errors="replace")[-2000:]
            raise ContestantFailed(f"{' '.join(command)} ended with {process.returncode}:\n{told}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak, usage.ru_oublock * _BLOCK)


def _await(file: Path, pid: int) -> None:
    """Returns as well when the process ended without making the file; its exit status says why."""
    while not file.exists() and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(_LOOK_SECONDS)


class _Memory:
    """The high-water mark of a process, read again and again until it ends.

    Not ru_maxrss: that one starts with what this process had at the fork, and a small contestant would be
    shown as large as we are. VmHWM starts with the contestant's own program.
    """

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self._peak = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            try:
                found = _PEAK.search(self._status.read_text())
            except (FileNotFoundError, ProcessLookupError):
                return
            if found:
                self._peak = int(found[1]) * 1024
