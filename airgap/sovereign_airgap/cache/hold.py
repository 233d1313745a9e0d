# SPDX-License-Identifier: Apache-2.0
"""The verb `cache hold`: keeps an entry of the node's cache where it is, for as long as a pod lives.

It runs beside the model, with the tenant's folder mounted read-only and without any right: all it does to the
node is a shared kernel lock, which goes with the process however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sovereign_airgap.cache.damage import (
    Damage,
    Promised,
    Rehash,
    compare,
    described,
    no_manifest,
    promised_by,
    read_marked,
)
from sovereign_airgap.cache.ending import Ending
from sovereign_airgap.cache.layout import IN_USE, Entry, entry_folder
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained
from sovereign_airgap.errors import CacheCorrupt, CacheMissing, DiskFailed
from sovereign_airgap.marker import CONFIG_MARKER, MARKER

_POLL_SECONDS: Final = 0.5
_NOT_THERE: Final = (errno.ENOENT, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class HoldOptions:
    """`seconds`: how long the entry may take to come; `verify_always` hashes what the marker vouches for."""

    config_only: bool = False
    verify_always: bool = False
    seconds: float = 120.0
    parallel: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """What was held; `signal` is the name of the one that ended it."""

    files: int
    size: int
    signal: str


def hold(tenant_folder: Path, digest: Digest, held_file: Path, options: HoldOptions, ending: Ending) -> Held:
    """Holds the entry until a signal comes; `held_file` is there while it is held, and only then.

    Raises CacheMissing if the entry did not come in time, CacheCorrupt if it is damaged, Interrupted if a
    signal came before it was held.
    """
    _require_place(held_file)
    entry = Entry(tenant_folder.name, digest, entry_folder(tenant_folder, digest))
    with _wanted(entry, options, ending) as files:
        size = sum(promised.size for promised in files.values())
        ending.check()
        with explained(held_file):
            held_file.touch(exist_ok=False)
        try:
            return Held(len(files), size, ending.wait())
        finally:
            with contextlib.suppress(OSError):
                held_file.unlink()


def _require_place(held_file: Path) -> None:
    """Removes what a killed run left, and finds out before the long work whether it can be written again."""
    with explained(held_file):
        held_file.unlink(missing_ok=True)
        if not os.access(held_file.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _wanted(entry: Entry, options: HoldOptions, ending: Ending) -> Iterator[dict[str, Promised]]:
    """The files of the entry, compared or hashed, and locked while the block lasts."""
    folder = entry.folder
    ends = time.monotonic() + options.seconds
    while True:
        with shared(folder) as is_ours:
            if is_ours and _is_complete(entry, options.config_only):
                yield _undamaged(entry, options, ending)
                return
        left = ends - time.monotonic()
        if left <= 0:
            lacking = "it is not whole yet" if folder.is_dir() else "nothing of it is there"
            raise CacheMissing(
                f"Expected {entry.digest} to be complete in {folder.parent} within {options.seconds:g} s, "
                f"but {lacking}; look at the fetch of this node."
            )
        ending.pause(min(_POLL_SECONDS, left))


@contextmanager
def shared(folder: Path) -> Iterator[bool]:
    """Keeps the entry from being evicted while the block lasts; False where there is none (any more).

    Never waits: whoever has the lock alone is taking the entry away.
    """
    descriptor = _open_in_use(folder)
    try:
        yield descriptor is not None and _lock(descriptor) and _names(folder / IN_USE, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open_in_use(folder: Path) -> int | None:
    lock = folder / IN_USE
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise CacheCorrupt(f"Expected {folder} to be a folder, found a link or a file; remove it.")
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise CacheCorrupt(f"Expected {lock} to be a file, found a link; remove the entry.") from error
        raise DiskFailed(
            f"{lock} cannot be opened: {error.strerror}; check the cache's disk and rights."
        ) from error
    return descriptor


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise DiskFailed(
            f"Entries of the cache cannot be locked: {error.strerror}; put the cache on a local file system."
        ) from error
    return True


def _names(path: Path, descriptor: int) -> bool:
    """Whether the path still leads to what was locked: the eviction renames before it removes."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False


def _is_complete(entry: Entry, config_only: bool) -> bool:
    """Whether a marker says so; raises CacheCorrupt where one is there, but is not the entry's."""
    names = (MARKER, CONFIG_MARKER) if config_only else (MARKER,)
    markers = [read_marked(entry, name) for name in names]
    damages = [marker for marker in markers if isinstance(marker, Damage)]
    if damages and all(marker is None or isinstance(marker, Damage) for marker in markers):
        raise _corrupt(entry, damages)
    return any(marker is not None for marker in markers)


def _undamaged(entry: Entry, options: HoldOptions, ending: Ending) -> dict[str, Promised]:
    """What is wanted of the manifest, after a look at all of it."""
    manifest = entry.manifest()
    if manifest is None:
        raise _corrupt(entry, [no_manifest(entry)])
    layers = (layer for layer in manifest.layers if not (options.config_only and layer.is_weight))
    files = promised_by(layers, *(read_marked(entry, name) for name in (MARKER, CONFIG_MARKER)))
    damages = compare(entry, files, manifest)
    if not damages and options.verify_always:
        damages = Rehash(options.parallel, lambda _: ending.check()).damages(entry.folder, files)
    for damage in damages:
        if damage.unreadable:
            raise DiskFailed(f"In {entry.folder}: {damage}; check the node's disk.")
    if damages:
        raise _corrupt(entry, damages)
    return files


def _corrupt(entry: Entry, damages: list[Damage]) -> CacheCorrupt:
    return CacheCorrupt(
        f"In {entry.folder}: {described(damages)}; fetch it again with --verify always, which repairs it."
    )
