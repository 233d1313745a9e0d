# SPDX-License-Identifier: Apache-2.0
"""A minimal file system of this machine's own distribution, where no image registry is in reach."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from dev.images import machine
from dev.images.errors import BuildFailed
from dev.paths import cache_root

# Documentation, package caches, logs, and the mirror's name: none of it belongs into an image.
DROPPED = (
    "etc/apt/sources.list",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt/lists",
    "var/log",
)
# debootstrap leaves device nodes and the machine's own names behind.
EMPTIED = ("dev", "proc", "sys", "run", "tmp")


def make_rootfs(packages: tuple[str, ...], destination: Path) -> None:
    """Writes a tar of the file system: sorted, time stamps 0. Downloaded packages stay in the cache."""
    suite, source = machine.mirror()
    downloads = cache_root() / "images" / "debian-packages"
    downloads.mkdir(parents=True, exist_ok=True)
    command = [
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        f"--cache-dir={downloads}",
    ]
    if source.signed_by and source.signed_by.startswith("/") and Path(source.signed_by).is_file():
        command.append(f"--keyring={source.signed_by}")
    with tempfile.TemporaryDirectory(prefix="sovereign-rootfs-", dir=cache_root() / "images") as scratch:
        target = Path(scratch) / "rootfs"
        done = subprocess.run(
            [*command, suite, str(target), source.uri],
            check=False, capture_output=True, text=True, env={**os.environ, **apt_proxies()},
        )  # fmt: skip
        if done.returncode != 0:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
            raise BuildFailed(f"debootstrap of {suite} ended with {done.returncode}:\n{said}")
        strip(target)
        write_tar(target, destination)


def apt_proxies() -> dict[str, str]:
    """debootstrap downloads with wget, which does not read apt's proxy settings."""
    found = {}
    for scheme in ("http", "https"):
        setting = subprocess.run(
            ["apt-config", "shell", "proxy", f"Acquire::{scheme}::Proxy"],
            check=False, capture_output=True, text=True,
        ).stdout  # fmt: skip
        value = setting.strip().removeprefix("proxy=").strip("'")
        if value and value != "DIRECT":
            found[f"{scheme}_proxy"] = value
    return found


def strip(target: Path) -> None:
    for name in DROPPED:
        path = target / name
        if path.is_dir():
            shutil.rmtree(path)
            path.mkdir()
        else:
            path.unlink(missing_ok=True)
    for name in EMPTIED:
        for entry in (target / name).iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    (target / "etc/resolv.conf").unlink(missing_ok=True)
    (target / "etc/hostname").unlink(missing_ok=True)


def write_tar(target: Path, destination: Path) -> None:
    with tarfile.open(destination, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(target.rglob("*")):
            if path.is_socket() or path.is_fifo():
                continue
            entry = tar.gettarinfo(str(path), arcname=str(path.relative_to(target)))
            entry.mtime = 0
            if entry.isreg():
                with path.open("rb") as stream:
                    tar.addfile(entry, stream)
            else:
                tar.addfile(entry)
