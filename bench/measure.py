# SPDX-License-Identifier: Apache-2.0
"""Running a contestant as a process of its own: wall time, CPU time and peak memory, from the kernel."""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MIB = 1024 * 1024


class ContestantFailed(RuntimeError):
    """A contestant ended with an error; the text has its last lines."""


@dataclass(frozen=True)
class Run:
    """One process, or several one after another."""

    seconds: float
    cpu_seconds: float
    peak_rss: int
    """Bytes; of the largest process, children of the contestant's own not included."""

    def then(self, other: "Run") -> "Run":
        return Run(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_rss, other.peak_rss),
        )


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    with tempfile.TemporaryFile() as output:
        begun = time.monotonic()
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            told = output.read().decode(errors="replace")[-2000:]
            raise ContestantFailed(f"{' '.join(command)} ended with {process.returncode}:\n{told}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
