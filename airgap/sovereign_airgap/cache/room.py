# SPDX-License-Identifier: Apache-2.0
"""Which entries of a node's cache have to go so that another one fits: a decision over plain values.

What is not complete goes first, then what was fetched longest ago, counted by number and not by a clock.
Never what is wanted on this node, in use, or being written; and nothing at all if that would not help.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sovereign_airgap.cache.layout import Blocks, Entry, Inode
from sovereign_airgap.errors import CacheFull

# For what a file system keeps beside the bytes of files.
SPARE_BYTES = 1024 * 1024
_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """In bytes. `budget`: what all entries together may take on the disk; 0 for no such bound.

    `reserve`: what stays free on the file system, for whoever else writes there.
    """

    budget: int = 0
    reserve: int = 0


@dataclass(frozen=True, slots=True)
class Occupant:
    """An entry as this decision sees it. `stays`: it is wanted on this node, or held by a pod."""

    entry: Entry
    blocks: dict[Inode, Blocks] = field(default_factory=dict)
    complete: bool = True
    used: int = 0
    reserved: int = 0
    being_written: bool = False
    stays: bool = False

    @property
    def size(self) -> int:
        return sum(each.size for each in self.blocks.values())

    @property
    def to_come(self) -> int:
        """Bytes that whoever writes to it has reserved and not yet written."""
        return max(0, self.reserved - self.size) if self.being_written else 0

    @property
    def may_go(self) -> bool:
        return not (self.being_written or self.stays)


def on_disk(sizes: Iterable[int]) -> int:
    """What files of these sizes take: whole blocks."""
    return sum(-(-size // _BLOCK_BYTES) * _BLOCK_BYTES for size in sizes)


def taken(occupants: Iterable[Occupant]) -> int:
    """Bytes on the disk of all together; what several share counts once."""
    blocks: dict[Inode, Blocks] = {}
    for occupant in occupants:
        blocks |= occupant.blocks
    return sum(each.size for each in blocks.values())


class Freed:
    """Bytes that come free when some go, with who goes changing: an inode goes with the last of its names.

    Reckoned anew for each of hundreds of entries with hundreds of files, it would hold the cache's lock long.
    """

    def __init__(self) -> None:
        self.size = 0
        self._names: Counter[Inode] = Counter()
        self._inodes: dict[Inode, int] = {}

    def add(self, occupant: Occupant) -> None:
        for inode, each in occupant.blocks.items():
            self._names[inode] += each.names
            if self._names[inode] >= each.links and inode not in self._inodes:
                self._inodes[inode] = each.size
                self.size += each.size

    def remove(self, occupant: Occupant) -> None:
        for inode, each in occupant.blocks.items():
            self._names[inode] -= each.names
            if self._names[inode] < each.links:
                self.size -= self._inodes.pop(inode, 0)


def freed_by(going: Iterable[Occupant]) -> int:
    """Bytes that come free when all of these go."""
    freed = Freed()
    for occupant in going:
        freed.add(occupant)
    return freed.size


def choose(
    wanted: Entry, occupants: Sequence[Occupant], need: int, free: int, limits: Limits
) -> tuple[Occupant, ...]:
    """Who goes so that `need` more bytes fit, of which `free` are free on the disk now.

    The wanted entry may be one of the occupants: it never goes. Raises CacheFull, and then nobody should go.
    """
    lack = _lack(wanted, occupants, need, free, limits)
    if not lack:
        return ()
    going: list[Occupant] = []
    freed = Freed()
    for occupant in _order(wanted, occupants):
        going.append(occupant)
        freed.add(occupant)
        if freed.size >= lack:
            break
    else:
        raise CacheFull(_told(wanted, occupants, need, free, limits, freed.size))
    # An earlier one may have been asked in vain: it shares its bytes with one that stays, or is small.
    for spared in reversed(going[:-1]):
        freed.remove(spared)
        if freed.size >= lack:
            going = [each for each in going if each is not spared]
        else:
            freed.add(spared)
    return tuple(going)


def _lack(wanted: Entry, occupants: Sequence[Occupant], need: int, free: int, limits: Limits) -> int:
    """How many bytes have to come free."""
    if not need:
        return 0
    to_come = _to_come(wanted, occupants)
    over_disk = need + SPARE_BYTES + limits.reserve + to_come - free
    over_budget = taken(occupants) + to_come + need - limits.budget if limits.budget else 0
    return max(0, over_disk, over_budget)


def _to_come(wanted: Entry, occupants: Iterable[Occupant]) -> int:
    return sum(each.to_come for each in occupants if each.entry != wanted)


def _order(wanted: Entry, occupants: Iterable[Occupant]) -> list[Occupant]:
    return sorted(
        (each for each in occupants if each.may_go and each.entry != wanted),
        key=lambda each: (each.complete, each.used, str(each.entry)),
    )


def _told(
    wanted: Entry, occupants: Sequence[Occupant], need: int, free: int, limits: Limits, could_go: int
) -> str:
    budget = f"{taken(occupants)} of the budget of {limits.budget} are taken, " if limits.budget else ""
    kept = [each for each in occupants if not each.may_go and each.entry != wanted]
    return (
        f"Expected room for {need} more bytes of {wanted} in the node's cache, but {budget}{free} bytes are "
        f"free on its disk, {limits.reserve} of them are to stay free and {_to_come(wanted, occupants)} are "
        f"promised to other fetches, and only {could_go} would come free: {len(kept)} entries are in use or "
        "wanted here. Enlarge the disk or the budget, or serve fewer models on this node."
    )
