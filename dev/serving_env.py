# SPDX-License-Identifier: Apache-2.0
"""The environment that the serving tests run in: Ray, vLLM for CPUs and the CPU plugin, from the lock file.

6 GB in the cache and about a minute to make, so it is made once for each lock file and kept. It is apart
from the development environment because Ray and vLLM pin half of PyPI.

    python -m dev.serving_env          prints the environment's interpreter
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.paths import cache_root
from sovereign_serving import offline

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "locks" / "serving-cpu.txt"
BUILD_LOCK = ROOT / "locks" / "build.txt"
PLUGIN = ROOT / "dev" / "cpu_expert_parallel"


def interpreter() -> Path:
    """The environment's Python; installs what is missing first."""
    environment = folder()
    python = environment / "bin" / "python"
    with _alone(environment):
        _once(environment / "installed", "packages", lambda: _install_packages(environment))
        _once(environment / "plugin", _digest(sorted(PLUGIN.rglob("*.py"))), lambda: _install_plugin(python))
    return python


def folder() -> Path:
    """Where the environment of this lock file is or will be."""
    return cache_root() / f"serving-env-{_digest([LOCK])}"


def variables(home: Path) -> dict[str, str]:
    """The offline environment of a model pod with the CPU profile, for processes that live in `home`."""
    paths = {name: path.replace("/home/sovereign", str(home)) for name, path in offline.PATHS.items()}
    return {
        **offline.FIXED,
        **paths,
        **offline.CPU,
        # One for all: what vLLM learns of a model class costs it ten seconds of a process of its own.
        "VLLM_CACHE_ROOT": str(folder() / "vllm"),
        # All traffic of tests stays on the loopback interface.
        "VLLM_HOST_IP": "127.0.0.1",
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT / "serving"),
        "USER": "sovereign",
    }


def _install_packages(environment: Path) -> None:
    shutil.rmtree(environment, ignore_errors=True)
    _uv("venv", "--python", "3.11", str(environment))
    python = environment / "bin" / "python"
    _uv("pip", "install", "--python", str(python), "--require-hashes", "--no-deps", "-r", str(LOCK))


def _install_plugin(python: Path) -> None:
    what = ["--no-deps", "--reinstall", "--build-constraints", str(BUILD_LOCK), str(PLUGIN)]
    _uv("pip", "install", "--python", str(python), *what)


def _uv(*arguments: str) -> None:
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise FileNotFoundError("uv is needed to make the serving environment: pip install uv")
    # In the repository root: uv reads the overrides of pyproject.toml from the working directory only.
    subprocess.run([uv, *arguments, "--quiet"], cwd=ROOT, check=True)


def _once(marker: Path, state: str, make: Callable[[], None]) -> None:
    """Runs `make` unless the marker says that it succeeded for this state before."""
    if marker.exists() and marker.read_text() == state:
        return
    make()
    marker.write_text(state)


@contextmanager
def _alone(environment: Path) -> Iterator[None]:
    """One process at a time: test workers ask for the environment all at once."""
    environment.parent.mkdir(parents=True, exist_ok=True)
    with environment.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()[:12]


if __name__ == "__main__":
    print(interpreter())
