# SPDX-License-Identifier: Apache-2.0
"""The verb `cache scrub`: every byte of the node's cache hashed again.

Bytes that lie there for weeks rot, and no marker notices. A damaged entry loses its markers: no new pod
starts on it, and the next fetch looks at every file and brings the damaged ones again. Pods that hold it keep
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from sovereign_airgap.cache.damage import (
    Damage,
    Marker,
    Rehash,
    below,
    compare,
    no_manifest,
    promised_by,
    read_marked,
)
from sovereign_airgap.cache.layout import Cache, Entry, Inode
from sovereign_airgap.cache.locks import alone
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import regular_file
from sovereign_airgap.errors import CacheMissing
from sovereign_airgap.manifest import Layer
from sovereign_airgap.marker import CONFIG_MARKER, MARKER
from sovereign_airgap.progress import Progress
from sovereign_airgap.strict_json import Json

if TYPE_CHECKING:
    from rich.console import Console

_MAX_ROWS = 200


class State(StrEnum):
    """What became of an entry; one that is being written is looked at by its fetch."""

    SOUND = "sound"
    DAMAGED = "damaged"
    SKIPPED = "being written"


@dataclass(frozen=True, slots=True)
class Examined:
    """One entry; `files` and `size` (bytes) as its manifest has them."""

    entry: Entry
    state: State
    files: int = 0
    size: int = 0
    damages: tuple[Damage, ...] = ()

    def as_json(self) -> dict[str, Json]:
        return {
            "tenant": self.entry.tenant,
            "manifest": str(self.entry.digest),
            "state": str(self.state),
            "files": self.files,
            "bytes": self.size,
            "damages": [
                {"path": damage.path, "expected": damage.expected, "found": damage.found}
                for damage in self.damages
            ],
        }


def scrub(
    cache: Cache,
    progress: Progress,
    tenant: str | None = None,
    digest: Digest | None = None,
    parallel: int | None = None,
) -> tuple[Examined, ...]:
    """Every complete entry, by tenant and digest, and those that are being written.

    Raises CacheMissing where what is named is not there, DiskFailed where a file may not be read.
    """
    progress.enter("listing")
    entries = [entry for entry in cache.entries(tenant) if digest in (None, entry.digest)]
    if not entries and (tenant is not None or digest is not None):
        named = " of ".join(str(each) for each in (digest, tenant) if each is not None)
        raise CacheMissing(f"Expected {named} in {cache.root}, found nothing of it; look at `cache list`.")
    layers = [layer for entry in entries for layer in _promised(entry, *_markers(entry))]
    progress.expect(len(layers), sum(layer.size for layer in layers))
    progress.enter("hashing")
    rehash = Rehash(parallel, progress.moved)
    found = {entry: _examine(entry, rehash, progress) for entry in entries}
    examined = {entry: each for entry, each in found.items() if each is not None}
    examined |= _sharing(cache, examined)
    progress.enter("done")
    return tuple(
        examined[entry] for entry in sorted(examined, key=lambda entry: (entry.tenant, entry.digest))
    )


def _examine(entry: Entry, rehash: Rehash, progress: Progress) -> Examined | None:
    """None where nothing is complete: there is nothing to compare with."""
    # The writer's lock: nobody repairs meanwhile, so a marker that is withdrawn is the one that was read.
    with alone(entry.folder) as is_ours:
        if not is_ours:
            return Examined(entry, State.SKIPPED)
        markers = _markers(entry)
        if all(marker is None for marker in markers):
            return None
        layers = _promised(entry, *markers)
        damages = [marker for marker in markers if isinstance(marker, Damage)]
        manifest = entry.manifest()
        if manifest is None:
            damages.append(no_manifest(entry))
        else:
            files = promised_by(layers, *markers)
            damages += compare(entry, files, manifest)
            differing = {damage.path for damage in damages}
            alike = {path: promised for path, promised in files.items() if path not in differing}
            damages += rehash.damages(entry.folder, alike)
        if damages:
            entry.withdraw()
    for layer in layers:
        progress.finished(layer.path)
    state = State.DAMAGED if damages else State.SOUND
    return Examined(entry, state, len(layers), sum(layer.size for layer in layers), tuple(damages))


def _sharing(cache: Cache, examined: Mapping[Entry, Examined]) -> dict[Entry, Examined]:
    """Withdraws the other entries that have one of the damaged files, and were not looked at or not to be.

    A fetch may have linked it while it was hashed: either it sees then that its sibling was withdrawn, or we
    see its link here.
    """
    damaged: dict[str, dict[Inode, Damage]] = {}
    for entry, each in examined.items():
        for damage in each.damages:
            status = regular_file(entry.folder / damage.path)
            if status is not None and status.st_nlink > 1:
                damaged.setdefault(entry.tenant, {})[status.st_dev, status.st_ino] = damage
    found = {}
    for tenant, inodes in damaged.items():
        for entry in cache.entries(tenant):
            if entry in examined and examined[entry].state is not State.SKIPPED:
                continue
            shared = tuple(
                replace(inodes[status.st_dev, status.st_ino], path=path)
                for path, status in below(entry.folder)
                if (status.st_dev, status.st_ino) in inodes
            )
            if shared:
                entry.withdraw()
                found[entry] = Examined(entry, State.DAMAGED, damages=shared)
    return found


def _markers(entry: Entry) -> tuple[Marker | Damage | None, Marker | Damage | None]:
    """That of everything, and that of everything but the weights."""
    return read_marked(entry, MARKER), read_marked(entry, CONFIG_MARKER)


def _promised(
    entry: Entry, whole: Marker | Damage | None, config: Marker | Damage | None
) -> tuple[Layer, ...]:
    """What has to be there, going by which markers are."""
    manifest = entry.manifest()
    if manifest is None or (whole is None and config is None):
        return ()
    return tuple(layer for layer in manifest.layers if not (whole is None and layer.is_weight))


def show(examined: Sequence[Examined], console: Console) -> None:
    """Prints what was found for people."""
    from rich.table import Table
    from rich.text import Text

    table = Table("Tenant", "Artifact", "Bytes", "State", "Damaged", box=None, pad_edge=False)
    for each in examined:
        shown = [str(damage) for damage in each.damages[:_MAX_ROWS]]
        more = len(each.damages) - len(shown)
        told = "\n".join([*shown, *([f"and {more:,} more"] if more else [])])
        digest = each.entry.digest.hex
        table.add_row(
            each.entry.tenant, f"sha256:{digest[:12]}…", f"{each.size:,}", str(each.state), Text(told)
        )
    console.print(table)
