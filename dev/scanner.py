# SPDX-License-Identifier: Apache-2.0
"""The policy scanner (checkov) over rendered manifests, in an environment of its own, and without a network.

It is apart from the development environment because it pins a hundred packages, half of which that has in
other versions. 190 MB in the cache, made once for each lock file.

    python -m dev.scanner FILE...     prints what it finds, one line each
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.paths import cache_root

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "locks" / "checkov.txt"
SECONDS = 300.0


class ScanFailed(RuntimeError):
    """The scanner could not be installed or did not end well; the text has its last words."""


@dataclass(frozen=True, order=True)
class Finding:
    """A check that a manifest does not pass."""

    check: str
    kind: str
    name: str
    says: str


def findings(files: Sequence[Path]) -> tuple[Finding, ...]:
    """Every failed check, sorted. Raises ScanFailed where a file could not be read, too."""
    arguments = [word for file in files for word in ("--file", str(file))]
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [str(_program()), *arguments, "--framework", "kubernetes", "--skip-download", "--output", "json"],
            # Nothing of this machine: no account, no configuration, no proxy.
            env={"PATH": "/usr/bin:/bin", "HOME": home, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    if done.returncode not in (0, 1):  # 1: there are findings
        raise ScanFailed(f"checkov ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return _read(json.loads(done.stdout))


def _read(report: Any) -> tuple[Finding, ...]:
    found = set()
    for part in report if isinstance(report, list) else [report]:
        if part["summary"]["parsing_errors"]:
            raise ScanFailed(f"checkov could not read {part['results'].get('parsing_errors')}")
        for failed in part["results"]["failed_checks"]:
            kind, _, name = failed["resource"].split(".", 2)  # kind, namespace, name
            found.add(Finding(failed["check_id"], kind, name, failed["check_name"]))
    return tuple(sorted(found))


def _program() -> Path:
    """The scanner; installs it from the lock file first where the cache lacks it."""
    folder = cache_root() / f"checkov-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _uv("venv", "--python", "3.11", str(folder))
            python = str(folder / "bin" / "python")
            _uv("pip", "install", "--python", python, "--require-hashes", "--no-deps", "-r", str(LOCK))
            (folder / "installed").touch()
    return folder / "bin" / "checkov"


def _uv(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uv", *arguments, "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ScanFailed(f"uv {arguments[0]} failed: {done.stderr.strip()[-1000:]}")


if __name__ == "__main__":
    for finding in findings([Path(name) for name in sys.argv[1:]]):
        print(finding.check, f"{finding.kind}/{finding.name}", finding.says)
