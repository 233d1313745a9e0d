# SPDX-License-Identifier: Apache-2.0
"""What happens to files on their way: flipped, cut, swapped, replaced; and disks that fail at a write."""

from __future__ import annotations

import contextlib
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

# -- one file -----------------------------------------------------------------------------------------------


def flip(path: Path, at: int | None = None) -> None:
    """Flips one bit in the byte `at` (the middle one by default); the length stays."""
    with _writable(path), path.open("r+b") as file:
        size = path.stat().st_size
        file.seek(size // 2 if at is None else at % size)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def truncate(path: Path, by: int = 1) -> None:
    with _writable(path):
        os.truncate(path, path.stat().st_size - by)


def extend(path: Path, by: int = 1) -> None:
    with _writable(path), path.open("ab") as file:
        file.write(bytes(by))


def empty(path: Path) -> None:
    with _writable(path):
        os.truncate(path, 0)


def zero(path: Path) -> None:
    """The same length, nothing but zeros: what a crash leaves where data never reached the disk."""
    size = path.stat().st_size
    empty(path)
    with _writable(path):
        os.truncate(path, size)


def remove(path: Path) -> None:
    path.unlink()


def swap(one: Path, other: Path) -> None:
    """Two files under each other's names."""
    between = one.with_name(one.name + ".swapping")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def symlink(path: Path) -> None:
    """The same bytes, behind a symbolic link."""
    elsewhere = _elsewhere(path)
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def hard_link(path: Path) -> None:
    """A second name of the file, outside."""
    os.link(path, _elsewhere(path))


def device(path: Path) -> None:
    """A device where the user may make one, else a pipe: neither may ever be read."""
    path.unlink()
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):  # root without the capability, as in most containers
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
            return
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# Whatever damages the content of one file; the name says what was done.
DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped bit": flip,
    "truncated": truncate,
    "extended": extend,
    "empty": empty,
    "zeroed": zero,
    "missing": remove,
}
# Whatever makes something else than a plain file out of one.
DISGUISES: dict[str, Callable[[Path], None]] = {
    "symbolic link": symlink,
    "hard link": hard_link,
    "device": device,
    "folder": folder,
}


def damage_anything(root: Path, seed: int) -> tuple[str, Path]:
    """Does one thing to one file below `root`, chosen by the seed; returns what and where."""
    chance = random.Random(seed)
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size)
    path = chance.choice(paths)
    name = chance.choice(sorted(DAMAGES))
    DAMAGES[name](path)
    return name, path


def _elsewhere(path: Path) -> Path:
    """Beside the bundle or whatever the file is in, on the same file system."""
    folder = path.parent
    while any((folder / name).exists() for name in ("index.json", "oci-layout")) or folder.name in (
        "sha256", "blobs", "signatures",
    ):  # fmt: skip
        folder = folder.parent
    return folder / f"elsewhere-{path.name}"


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode | stat.S_IWUSR)
    try:
        yield
    finally:
        path.chmod(mode)


# -- a disk -------------------------------------------------------------------------------------------------


class BadDisk:
    """From the nth change below `root` on, every change fails with `code`; `once` only that one does.

    Changes are creating, writing, syncing, renaming, removing and cutting files, and making folders. With
    `at=0` nothing fails and `changes` says how many there are.
    """

    def __init__(self, root: Path, at: int, code: int, *, once: bool = False) -> None:
        self._root = str(root.resolve())
        self._at, self._code, self._once = at, code, once
        self._stack = contextlib.ExitStack()
        self.changes = 0

    def __enter__(self) -> Self:
        for name in ("write", "pwrite", "writev", "fsync", "fdatasync", "ftruncate", "posix_fallocate"):
            self._patch(name, lambda first, *rest: True)
        for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "link"):
            self._patch(name, lambda first, *rest: True)
        self._patch("open", lambda path, flags=0, *rest: bool(flags & os.O_CREAT))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _patch(self, name: str, counts: Callable[..., bool]) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def faulty(first: Any, *rest: Any, **named: Any) -> Any:
            if counts(first, *rest) and self._is_below(first):
                self.changes += 1
                if self._at and (self.changes == self._at or (self.changes > self._at and not self._once)):
                    self.failed(name)
            return real(first, *rest, **named)

        self._stack.enter_context(mock.patch.object(os, name, faulty))

    def failed(self, name: str) -> None:
        """What happens at the nth change; a test may let the process die here instead."""
        raise OSError(self._code, os.strerror(self._code))

    def _is_below(self, target: Any) -> bool:
        if isinstance(target, int):
            try:
                path = str(Path(f"/proc/self/fd/{target}").readlink())
            except OSError:
                return False
        else:
            path = str(Path(target).absolute())
        return path == self._root or path.startswith(self._root + "/")


class DyingProcess(BadDisk):
    """As kill -9 at the nth change: nothing is cleaned up. Only for processes made for it."""

    def failed(self, name: str) -> None:
        os._exit(137)
