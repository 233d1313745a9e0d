# SPDX-License-Identifier: Apache-2.0
"""The verb `bundle diff`: what a newer bundle brings, takes away and changes, and how much must be carried.

Computed from the indexes and manifests alone: no blob is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sovereign_airgap.bundle.graph import Reach, ReadDocument, reach
from sovereign_airgap.bundle.index import INDEX_BYTES, Index, Root
from sovereign_airgap.bundle.layout import INDEX, BundleReader, blob_path, read, read_blob
from sovereign_airgap.digest import Digest
from sovereign_airgap.manifest import Descriptor
from sovereign_airgap.strict_json import Json

if TYPE_CHECKING:
    from rich.console import Console


class Way(StrEnum):
    """What happened to a root between two bundles."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Change:
    """One root that differs. `was` is its former name where it changed; `size` all its bytes; `carry` those
    that the older bundle lacks, each counted once over all changes."""

    way: Way
    kind: str
    name: str
    was: str
    size: int
    carry: int

    def as_json(self) -> dict[str, Json]:
        return {
            "change": str(self.way), "kind": self.kind, "name": self.name, "was": self.was or None,
            "bytes": self.size, "carry": self.carry,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difference:
    """All that differs, each group by kind and name; sizes in bytes. `same` counts roots that do not."""

    old: str
    new: str
    added: tuple[Change, ...]
    removed: tuple[Change, ...]
    changed: tuple[Change, ...]
    same: int
    carry_blobs: int
    carry_bytes: int

    @property
    def changes(self) -> tuple[Change, ...]:
        return (*self.added, *self.changed, *self.removed)

    def as_json(self) -> dict[str, Json]:
        changes: list[Json] = [change.as_json() for change in self.changes]
        return {
            "old": self.old, "new": self.new, "changes": changes, "same": self.same,
            "carryBlobs": self.carry_blobs, "carryBytes": self.carry_bytes,
        }  # fmt: skip


def diff(old: BundleReader, new: BundleReader) -> Difference:
    """Compares two bundles; raises BundleDefective, DigestMismatch, SizeMismatch or MalformedManifest where
    an index or a manifest is not whole."""
    older, newer = _index(old), _index(new)
    before = [reach(root, _documents(old, new)) for root in older.roots]
    after = [reach(root, _documents(new, old)) for root in newer.roots]
    there = {digest for found in before for digest in _blobs(found)}
    changes, same = _pairs(before, after)
    rows: list[Change] = []
    carried: dict[Digest, int] = {}
    for was, now in changes:
        found = now or was
        assert found is not None
        missing = {} if now is None else {
            digest: size
            for digest, size in _blobs(now).items()
            if digest not in there and digest not in carried
        }  # fmt: skip
        carried |= missing
        rows.append(
            Change(
                way=_way(was, now),
                kind=str(found.root.kind),
                name=found.root.name,
                was=was.root.name if was is not None and now is not None else "",
                size=sum(_blobs(found).values()),
                carry=sum(missing.values()),
            )
        )
    return Difference(
        old=f"{older.name} {older.version}",
        new=f"{newer.name} {newer.version}",
        added=_of(rows, Way.ADDED),
        removed=_of(rows, Way.REMOVED),
        changed=_of(rows, Way.CHANGED),
        same=same,
        carry_blobs=len(carried),
        carry_bytes=sum(carried.values()),
    )


def show(found: Difference, console: Console) -> None:
    """A table for people, and one line with what it comes to."""
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    if found.changes:
        table = Table("change", "kind", "name", "was", box=None, pad_edge=False)
        table.add_column("bytes", justify="right")
        table.add_column("to carry", justify="right")
        for row in found.changes:
            was = row.was if row.was != row.name else "other content"
            texts = [Text(text) for text in (str(row.way), row.kind, row.name, was)]
            table.add_row(*texts, decimal(row.size), decimal(row.carry))
        console.print(table)
    console.print(
        Text(
            f"From {found.old} to {found.new}: {len(found.added)} added, {len(found.changed)} changed, "
            f"{len(found.removed)} removed, {found.same} the same; {found.carry_blobs} blobs of "
            f"{found.carry_bytes} bytes to carry."
        )
    )


def _index(reader: BundleReader) -> Index:
    return Index.parse(read(reader, INDEX, INDEX_BYTES))


def _documents(reader: BundleReader, other: BundleReader) -> ReadDocument:
    """Manifests from one bundle, or from the other where the first is a delta that leaves them out."""

    def read_document(descriptor: Descriptor) -> bytes:
        path = blob_path(descriptor.digest)
        holder = other if reader.size(path) is None and other.size(path) is not None else reader
        return read_blob(holder, descriptor.digest, descriptor.size)

    return read_document


def _blobs(found: Reach) -> dict[Digest, int]:
    sizes = {blob.digest: blob.size for blob in found.blobs}
    return sizes | {each.descriptor.digest: each.descriptor.size for each in found.documents}


def _pairs(before: list[Reach], after: list[Reach]) -> tuple[list[tuple[Reach | None, Reach | None]], int]:
    """Which root became which, and how many stayed as they are.

    First by name; then, where a repository has one root left on each side, by repository: a model at
    another commit, an image under another tag.
    """
    pairs: list[tuple[Reach | None, Reach | None]] = []
    olds, news = before, after
    for key in (_name, _place):
        by_key = _by(key, olds)
        alone = {at: found[0] for at, found in _by(key, news).items() if len(found) == 1}
        matched = [(by_key[at][0], now) for at, now in alone.items() if len(by_key.get(at, ())) == 1]
        pairs += matched
        gone = {id(found) for pair in matched for found in pair}
        olds = [found for found in olds if id(found) not in gone]
        news = [found for found in news if id(found) not in gone]
    changed = [
        (was, now)
        for was, now in pairs
        if was is None or now is None or was.root.descriptor.digest != now.root.descriptor.digest
        or was.root.name != now.root.name
    ]  # fmt: skip
    same = len(pairs) - len(changed)
    changed += [(None, now) for now in news] + [(was, None) for was in olds]
    return sorted(changed, key=_order), same


def _by(key: Callable[[Root], tuple[str, str]], found: list[Reach]) -> dict[tuple[str, str], list[Reach]]:
    groups: dict[tuple[str, str], list[Reach]] = {}
    for each in found:
        groups.setdefault(key(each.root), []).append(each)
    return groups


def _name(root: Root) -> tuple[str, str]:
    return (str(root.kind), root.name)


def _place(root: Root) -> tuple[str, str]:
    return (str(root.kind), root.title or root.repository)


def _order(pair: tuple[Reach | None, Reach | None]) -> tuple[str, str]:
    found = pair[1] or pair[0]
    assert found is not None
    return _name(found.root)


def _way(was: Reach | None, now: Reach | None) -> Way:
    if was is None:
        return Way.ADDED
    return Way.REMOVED if now is None else Way.CHANGED


def _of(rows: list[Change], way: Way) -> tuple[Change, ...]:
    return tuple(row for row in rows if row.way is way)
