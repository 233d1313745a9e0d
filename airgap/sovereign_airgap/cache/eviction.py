# SPDX-License-Identifier: Apache-2.0
"""Making room in a node's cache: looks at all entries, and carries out what `room` decides.

Everything here runs under the cache's lock. An entry leaves under another name first: whoever waits for its
lock then finds that the path no longer leads to what was locked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from sovereign_airgap import disk
from sovereign_airgap.cache.layout import EVICTED_PREFIX, IN_USE, RESERVED, Cache, Entry, inodes
from sovereign_airgap.cache.locks import alone
from sovereign_airgap.cache.room import Limits, Occupant, choose, freed_by
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained, sync_folder
from sovereign_airgap.errors import DiskFailed
from sovereign_airgap.names import RESERVED_PREFIX

_log = logging.getLogger(__name__)


def make_room(
    cache: Cache, wanted: Entry, need: int, limits: Limits, keep: Collection[Digest]
) -> tuple[Entry, ...]:
    """Evicts until `need` more bytes of the wanted entry fit; returns who went. Raises CacheFull."""
    occupants = survey(cache, keep)
    free = free_bytes(cache.root)
    gone: list[Occupant] = []
    # Bytes of who has gone count as free at once: some file systems tell so only later.
    while going := choose(wanted, occupants, need, free + freed_by(gone), limits):
        for occupant in going:
            occupants.remove(occupant)
            if evict(occupant.entry):
                gone.append(occupant)
            else:  # a pod came in between
                occupants.append(replace(occupant, stays=True))
    return tuple(occupant.entry for occupant in gone)


def survey(cache: Cache, keep: Collection[Digest] = ()) -> list[Occupant]:
    """All entries of all tenants, as they are now."""
    return [
        Occupant(
            entry=entry,
            blocks=inodes(entry.folder),
            complete=entry.complete or entry.config_only,
            used=entry.used,
            reserved=entry.reserved,
            being_written=entry.being_written(),
            stays=entry.digest in keep or entry.in_use(),
        )
        for entry in cache.entries()
    ]


def free_bytes(root: Path) -> int:
    """What the file system has for us; its own reserve for root is not ours."""
    with explained(root):
        found = os.statvfs(root)
    return found.f_bavail * found.f_frsize


def evict(entry: Entry) -> bool:
    """Removes an entry for good; False, and it stays, where a pod uses it or a fetch writes to it."""
    with alone(entry.folder) as unwritten, alone(entry.folder / IN_USE) as unused:
        if not (unwritten and unused):
            return False
        going = entry.folder.with_name(f"{EVICTED_PREFIX}{os.urandom(8).hex()}")
        with explained(entry.folder):
            entry.folder.rename(going)
            sync_folder(going.parent)
            shutil.rmtree(going)
    return True


def sweep(cache: Cache) -> None:
    """Removes what killed runs left: entries on their way out, reservations, and files half written."""
    for leftover in cache.root.glob(f"{RESERVED_PREFIX}*"):
        _remove(leftover)
    for tenant in cache.tenants():
        for leftover in (cache.root / tenant).glob(f"{EVICTED_PREFIX}*"):
            _remove(leftover)
    for entry in cache.entries():
        with alone(entry.folder) as unwritten:
            # Somebody else's entry on a bad piece of the disk is no reason to fetch nothing.
            if unwritten:
                with contextlib.suppress(OSError, DiskFailed):
                    (entry.folder / RESERVED).unlink(missing_ok=True)
                    disk.sweep(entry.folder)


def _remove(leftover: Path) -> None:
    """What cannot be removed stays: it is in nobody's way but for its bytes."""
    try:
        if leftover.is_symlink() or not leftover.is_dir():
            leftover.unlink(missing_ok=True)
        else:
            shutil.rmtree(leftover)
    except OSError as error:
        _log.warning("%s cannot be removed: %s", leftover, error.strerror)
