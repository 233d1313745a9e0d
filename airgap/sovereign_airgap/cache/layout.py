# SPDX-License-Identifier: Apache-2.0
"""Where things lie in a node's cache.

    ROOT/.lock                     held by whoever reckons sizes, reserves or evicts; not while bytes come
    ROOT/.sequence                 the last number given: a number, never a clock, tells what was used last
    ROOT/TENANT/                   one for each namespace; never renamed or removed, its pods mount it
    ROOT/TENANT/sha256-<64 hex>/   an entry: the files of the artifact with this manifest digest, and
        .manifest                  its bytes: with them a marker can be checked against the folder's name
        .complete .complete-config the markers, as `pull` writes them
        .used                      the number of the last fetch
        .in-use                    empty; the pods that use the entry hold its lock, shared
        .reserved                  bytes that the entry will have; there while it is being fetched
    ROOT/TENANT/.evicted-*/        an entry on its way out

Who writes to an entry holds the lock of its folder. Symbolic links are nobody's here, and none is followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sovereign_airgap.cache.locks import is_held
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained, regular_file, replace_file, sync_folder
from sovereign_airgap.errors import CacheBusy, DiskFailed, InvalidReference, SovereignError
from sovereign_airgap.manifest import MAX_MANIFEST_BYTES, ModelManifest
from sovereign_airgap.marker import CONFIG_MARKER, MARKER, Written, marker_name, read_marker
from sovereign_airgap.names import RESERVED_PREFIX
from sovereign_airgap.pace import Pace

LOCK = ".lock"
SEQUENCE = ".sequence"
MANIFEST = ".manifest"
USED = ".used"
IN_USE = ".in-use"
RESERVED = ".reserved"
EVICTED_PREFIX = ".evicted-"
ENTRY_NAMES = frozenset((MANIFEST, MARKER, CONFIG_MARKER, USED, IN_USE, RESERVED))
"""What lies in an entry beside the artifact's files."""

LOCK_SECONDS = 300.0
_POLL_SECONDS = 0.1
_BLOCK = 512  # what st_blocks counts, on every file system
_TENANT = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_ENTRY = re.compile(r"sha256-([0-9a-f]{64})")
_NUMBER_BYTES = 20

Inode = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Blocks:
    """What an inode takes: bytes on the disk, and how many names it has, wherever they are.

    `names`: how many of them are below the folder that was looked at.
    """

    size: int
    links: int
    names: int = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One artifact of one tenant. Its properties ask the disk anew each time."""

    tenant: str
    digest: Digest
    folder: Path

    def __str__(self) -> str:
        return f"{self.tenant}/{self.digest}"

    @property
    def complete(self) -> bool:
        """All files are there, as far as the marker says."""
        return self.vouched(config_only=False) is not None

    @property
    def config_only(self) -> bool:
        """Everything but the weights is there, as far as the markers say."""
        return not self.complete and self.vouched(config_only=True) is not None

    @property
    def used(self) -> int:
        return read_number(self.folder / USED)

    @property
    def reserved(self) -> int:
        return read_number(self.folder / RESERVED)

    def in_use(self) -> bool:
        """Whether a pod holds it now."""
        return is_held(self.folder / IN_USE)

    def being_written(self) -> bool:
        """Whether a fetch (of another process, or through another descriptor) writes to it now."""
        return is_held(self.folder)

    def vouched(self, config_only: bool) -> dict[str, Written] | None:
        """The files of its marker, by path; None where the marker is not there, or is another artifact's."""
        marker = self.folder / marker_name(config_only)
        if regular_file(marker) is None:
            return None
        manifest, files = read_marker(marker)
        return files if manifest == str(self.digest) else None

    def manifest(self) -> ModelManifest | None:
        """The artifact's manifest, whose digest is the entry's; None where it is not there or another."""
        place = self.folder / MANIFEST
        found = regular_file(place)
        if found is None or found.st_size > MAX_MANIFEST_BYTES:
            return None
        try:
            with place.open("rb") as file:
                content = file.read(MAX_MANIFEST_BYTES + 1)  # it may have grown since
            return ModelManifest.parse(content) if Digest.of(content) == self.digest else None
        except (OSError, SovereignError):
            return None

    def withdraw(self) -> None:
        """Removes the markers, for good: no new pod starts on it, and the next fetch looks at every byte."""
        for config_only in (False, True):
            marker = self.folder / marker_name(config_only)
            with explained(marker):
                marker.unlink(missing_ok=True)
        sync_folder(self.folder)


class Cache:
    """The folder of a node that the fetch pods write."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()  # the folder itself may be a link: whoever runs this chose it

    def tenants(self) -> list[str]:
        return sorted(folder.name for folder in _folders(self.root) if is_tenant(folder.name))

    def entries(self, tenant: str | None = None) -> list[Entry]:
        """Of one tenant or of all, by tenant and digest; nothing else that lies there counts."""
        found = []
        for name in self.tenants() if tenant is None else [tenant]:
            require_tenant(name)
            for folder in _folders(self.root / name):
                match = _ENTRY.fullmatch(folder.name)
                if match:
                    found.append(Entry(name, Digest(match[1]), folder))
        return sorted(found, key=lambda entry: (entry.tenant, entry.digest))

    def entry(self, tenant: str, digest: Digest) -> Entry:
        """Where the entry is or would be; nothing is made."""
        require_tenant(tenant)
        return Entry(tenant, digest, entry_folder(self.root / tenant, digest))

    @contextmanager
    def locked(self, pace: Pace, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Nobody else reckons, reserves or evicts while the block lasts; CacheBusy after `seconds`."""
        lock = self.root / LOCK
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with explained(lock):
            descriptor = os.open(lock, flags, 0o600)
        ends = time.monotonic() + seconds
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() >= ends:
                        raise CacheBusy(
                            f"Expected {lock} to be free within {seconds:g} seconds, but another fetch or "
                            "eviction on this node holds it; try again later."
                        ) from error
                except OSError as error:
                    raise DiskFailed(
                        f"{lock} cannot be locked: {error.strerror}; put the cache on a local file system."
                    ) from error
                pace.sleep(_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def next_sequence(self) -> int:
        """A number larger than every one given before, also where `.sequence` was lost. Under `locked`."""
        path = self.root / SEQUENCE
        number = max([read_number(path), *(entry.used for entry in self.entries())]) + 1
        write_number(path, number)
        return number


def is_tenant(name: str) -> bool:
    return _TENANT.fullmatch(name) is not None


def require_tenant(name: str) -> None:
    """Raises InvalidReference unless it can be a namespace's name."""
    if not is_tenant(name):
        raise InvalidReference(
            f"Expected a tenant named as a namespace is (lower-case letters, digits and '-', at most 63), "
            f"found {name[:100]!a}."
        )


def entry_folder(tenant_folder: Path, digest: Digest) -> Path:
    """Where the entry of a manifest lies in its tenant's folder."""
    return tenant_folder / f"sha256-{digest.hex}"


def usage(entries: Iterable[Entry]) -> int:
    """Bytes on the disk of all these together: what several share counts once."""
    found: dict[Inode, Blocks] = {}
    for entry in entries:
        found |= inodes(entry.folder)
    return sum(each.size for each in found.values())


def inodes(folder: Path) -> dict[Inode, Blocks]:
    """What lies below a folder; files that go away meanwhile are left out."""
    found: dict[Inode, Blocks] = {}
    names_of: Counter[Inode] = Counter()
    for inside, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = Path(inside, name).lstat()
                inode = status.st_dev, status.st_ino
                names_of[inode] += 1
                found[inode] = Blocks(status.st_blocks * _BLOCK, status.st_nlink, names_of[inode])
    return found


def strangers(folder: Path, paths: Collection[str]) -> list[str]:
    """Paths of what lies in an entry beside the files of `paths` and ours: an engine may load any of it."""
    found = []
    for inside, folders, names in os.walk(folder):
        links = [name for name in folders if Path(inside, name).is_symlink()]
        for name in (*names, *links):
            path = Path(inside, name).relative_to(folder).as_posix()
            if path not in paths and path not in ENTRY_NAMES and not name.startswith(RESERVED_PREFIX):
                found.append(path)
    return sorted(found)


def read_number(path: Path) -> int:
    """The decimal number in a small file; 0 where there is none."""
    if regular_file(path) is None:
        return 0
    try:
        with path.open("rb") as file:
            text = file.read(_NUMBER_BYTES + 1).strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() and len(text) < _NUMBER_BYTES else 0


def write_number(path: Path, number: int) -> None:
    replace_file(path, b"%d\n" % number)


def _folders(folder: Path) -> list[Path]:
    """The real folders in a folder; none where there is no such folder."""
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return []
        with os.scandir(folder) as found:
            return [Path(each.path) for each in found if each.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DiskFailed(
            f"{folder} cannot be read: {error.strerror}; check the cache's disk and rights."
        ) from error
