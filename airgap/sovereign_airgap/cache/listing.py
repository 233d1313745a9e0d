# SPDX-License-Identifier: Apache-2.0
"""The verb `cache list`: what lies in a node's cache, as the markers say it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rich.console import Console
from rich.table import Table

from sovereign_airgap.cache.layout import Cache, Entry, usage
from sovereign_airgap.strict_json import Json

_SHORT_HEX = 12


class State(StrEnum):
    """How much of an artifact its entry has. What the files really are, `cache scrub` finds out."""

    COMPLETE = "complete"
    CONFIG = "config"
    PARTIAL = "partial"


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry; `size` in bytes on the disk, what it shares included. `used`: the larger, the later."""

    entry: Entry
    size: int
    state: State
    in_use: bool
    being_written: bool
    used: int

    def as_json(self) -> dict[str, Json]:
        return {
            "tenant": self.entry.tenant,
            "digest": str(self.entry.digest),
            "bytes": self.size,
            "state": str(self.state),
            "inUse": self.in_use,
            "beingWritten": self.being_written,
            "used": self.used,
        }


@dataclass(frozen=True, slots=True)
class Listing:
    """All entries, those last that would be evicted last; `taken`: bytes of all, shared ones once."""

    entries: tuple[Listed, ...]
    taken: int
    budget: int

    def as_json(self) -> dict[str, Json]:
        return {
            "entries": [each.as_json() for each in self.entries],
            "bytes": self.taken,
            "budget": self.budget or None,
        }


def list_cache(cache: Cache, budget: int = 0) -> Listing:
    """Nothing is locked for longer than a look: a fetch or an eviction may change it meanwhile."""
    entries = cache.entries()
    found = [
        Listed(entry, usage([entry]), _state(entry), entry.in_use(), entry.being_written(), entry.used)
        for entry in entries
    ]
    found.sort(key=lambda each: (each.state is not State.PARTIAL, each.used, str(each.entry)))
    return Listing(tuple(found), usage(entries), budget)


def _state(entry: Entry) -> State:
    if entry.complete:
        return State.COMPLETE
    return State.CONFIG if entry.config_only else State.PARTIAL


def show(found: Listing, console: Console) -> None:
    """Prints it for people."""
    if found.entries:
        table = Table("Tenant", "Artifact", "Bytes", "State", "Held by", "Used", box=None, pad_edge=False)
        for each in found.entries:
            held = [*(["pods"] if each.in_use else []), *(["a fetch"] if each.being_written else [])]
            table.add_row(
                each.entry.tenant,
                f"sha256:{each.entry.digest.hex[:_SHORT_HEX]}…",
                f"{each.size:,}",
                str(each.state),
                " and ".join(held) or "nobody",
                f"#{each.used}" if each.used else "never",
            )
        console.print(table)
    of = f" of a budget of {found.budget:,}" if found.budget else ""
    console.print(f"{len(found.entries):,} artifacts, {found.taken:,} bytes{of}")
