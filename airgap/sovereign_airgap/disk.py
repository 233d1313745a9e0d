# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a name appears only with the right content behind it.

Past the page cache where the file system allows (the cache would be charged to the pod, and costs more than
half of the throughput), through it otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sovereign_airgap.errors import DiskFailed, DiskFull, UnsafeFileName
from sovereign_airgap.names import RESERVED_PREFIX

BUFFER_BYTES = 4 * 1024 * 1024
_ALIGNMENT = 4096
_SPARE_BYTES = 1024 * 1024
_PARTIAL = ".partial"


@contextlib.contextmanager
def explained(what: Path) -> Iterator[None]:
    """Turns the system's errors into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{what} cannot be written: {error.strerror}; free or add space, then try again."
            ) from error
        raise DiskFailed(
            f"{what} cannot be used: {error.strerror or error}; check its volume and rights."
        ) from error


def require_room(directory: Path, size: int) -> None:
    """Refuses before the first byte what cannot fit."""
    with explained(directory):
        found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if size and size + _SPARE_BYTES > free:
        raise DiskFull(
            f"Expected {size} free bytes for {directory}, found {free}; enlarge the volume, then try again."
        )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One writer per directory; the kernel lets go of the lock when the process ends, however it ends."""
    with explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DiskFailed(f"Another run is writing to {directory}; wait until it has ended.") from error
        except OSError as error:  # file systems without locks: the rename is still atomic
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                raise DiskFailed(f"{directory} cannot be locked: {error.strerror}.") from error
        yield
    finally:
        os.close(descriptor)


def place_of(directory: Path, path: str) -> Path:
    """The final path of a file; makes its folders and refuses to go through a link."""
    place = directory
    *folders, name = path.split("/")
    for folder in folders:
        place = place / folder
        with explained(place):
            place.mkdir(exist_ok=True)
            if not stat.S_ISDIR(place.lstat().st_mode):
                raise UnsafeFileName(
                    f"Expected {place} to be a folder, found a link; empty the directory first."
                )
    return place / name


def regular_file(path: Path) -> os.stat_result | None:
    """The status of a regular file; None for anything else, links included."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            return found
    return None


def open_regular(path: Path) -> BinaryIO | None:
    """A regular file, to be read unbuffered; None for a link, a folder, a pipe, a device. Raises OSError.

    It is judged once it is open, so that nobody can change it in between, and no pipe is waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket, or a device that is not there
            return None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb", buffering=0)


def sweep(directory: Path) -> None:
    """Removes what a killed run left half-written. Only under the lock."""
    with explained(directory):
        for folder, _, names in os.walk(directory):
            for name in names:
                if name.startswith(RESERVED_PREFIX) and name.endswith(_PARTIAL):
                    Path(folder, name).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut, where the file system knows how."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def set_direct(descriptor: int, on: bool) -> bool:
    """Past the page cache or through it; whether the flag now is as wished."""
    flag: int = getattr(os, "O_DIRECT", 0)
    if not flag:
        return not on
    try:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | flag if on else flags & ~flag)
    except OSError:
        return False
    return True


def partial_name(final: Path) -> Path:
    """A name beside the final one that nobody has, and that `sweep` removes after a killed run."""
    return final.with_name(f"{RESERVED_PREFIX}{os.urandom(8).hex()}{_PARTIAL}")


class HalfWritten:
    """A file under a temporary name beside its final one; `publish` is the only way to the final name."""

    def __init__(self, final: Path, direct: bool = True) -> None:
        self.final = final
        self._temporary = partial_name(final)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._direct = False
        with explained(final):
            self._descriptor = os.open(self._temporary, flags, 0o644)
        if direct:
            self._direct = set_direct(self._descriptor, True)
        self._map = mmap.mmap(-1, BUFFER_BYTES)  # page-aligned, as O_DIRECT wants it
        self._buffer = memoryview(self._map)
        self._filled = 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._buffer[self._filled :]

    def filled(self, count: int) -> None:
        """Takes `count` bytes of `room`; writes when the buffer is full."""
        self._filled += count
        if self._filled == BUFFER_BYTES:
            self._write(self._buffer)
            self._filled = 0

    def write(self, content: bytes) -> None:
        """Takes bytes that somebody else has in memory."""
        while content:
            count = min(len(content), len(self.room()))
            self.room()[:count] = content[:count]
            self.filled(count)
            content = content[count:]

    def restart(self) -> None:
        """Forgets everything written so far."""
        self._filled = 0
        with explained(self.final):
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.ftruncate(self._descriptor, 0)
        self._direct = set_direct(self._descriptor, True) if self._direct else False

    def publish(self) -> os.stat_result:
        """Everything on the disk, then the final name. The caller has compared the digest before."""
        if self._filled:
            if self._direct:
                self._direct = not set_direct(self._descriptor, False)
            self._write(self._buffer[: self._filled])
            self._filled = 0
        with explained(self.final):
            os.fsync(self._descriptor)
            self._temporary.replace(self.final)
            return os.fstat(self._descriptor)

    def close(self) -> None:
        """Removes the temporary file unless it was published."""
        os.close(self._descriptor)
        self._buffer.release()
        with contextlib.suppress(BufferError):  # a caller's slice may live in a traceback
            self._map.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _write(self, view: memoryview) -> None:
        with explained(self.final):
            while view:
                try:
                    count = os.write(self._descriptor, view)
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._direct:
                        raise
                    self._direct = not set_direct(
                        self._descriptor, False
                    )  # the file system promised more than it does
                    continue
                view = view[count:]
                if view and self._direct and count % _ALIGNMENT:
                    self._direct = not set_direct(self._descriptor, False)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a small file as a whole: whoever reads it finds what was there before, or all of this."""
    half = HalfWritten(path, direct=False)
    try:
        half.write(content)
        half.publish()
    finally:
        half.close()
