# SPDX-License-Identifier: Apache-2.0
"""From a defect in a bundle's content to the part that must be copied again.

Parts are hashed only where something in them is wrong: whoever reads a whole bundle has hashed its blobs
already, and everything between them is compared byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterable

from sovereign_airgap.bundle.defects import Findings
from sovereign_airgap.bundle.hashing import hash_all
from sovereign_airgap.bundle.layout import BundleReader, FileRange, signature_key_id
from sovereign_airgap.bundle.parts import Part, Parts
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import DigestMismatch, SovereignError
from sovereign_airgap.progress import Progress

# Where a finding about a bundle's signatures as a whole stands.
SIGNATURES = "signatures"


def name_damaged_parts(parts: Parts, findings: Findings, parallel: int | None, progress: Progress) -> None:
    """Adds every damaged part to the findings, and drops from them what it explains."""
    faults = dict(parts.faults())
    for name, what in faults.items():
        findings.add(name, f"{what}; copy this part again")
    paths = set(findings.paths)
    suspects: dict[int, set[str]] = {}
    try:
        members = parts.members()
    except SovereignError:
        # What comes after the damage cannot be found in the archive: any part may be the damaged one.
        suspects = {number: {parts.describe} for number in range(1, len(parts.list.parts) + 1)}
        if faults:
            findings.explain([parts.describe])
    else:
        for path in members:
            if path in paths or (SIGNATURES in paths and signature_key_id(path)):
                for number in parts.parts_of(path):
                    suspects.setdefault(number, set()).add(path if path in paths else SIGNATURES)
    readable = [number for number in suspects if _part(parts, number).name not in faults]
    for number, what in _damaged(parts, readable, parallel, progress).items():
        findings.add(_part(parts, number).name, f"{what}; copy this part again", DigestMismatch.reason)
        findings.explain(suspects[number])


def blame(reader: BundleReader, path: str) -> str:
    """The end of a sentence about a path with wrong bytes: what to copy again."""
    if isinstance(reader, Parts):
        damaged = _damaged(reader, reader.parts_of(path), None, Progress())
        for number, what in sorted(damaged.items()):
            return f"{_part(reader, number).name} {what}; copy this part again"
    return "copy the bundle again"


def _damaged(
    parts: Parts, numbers: Iterable[int], parallel: int | None, progress: Progress
) -> dict[int, str]:
    """Which of these parts are not what the list says, and what they are instead."""
    damaged: dict[int, str] = {}
    sizes = {number: _part(parts, number).size for number in numbers}
    progress.expect(len(sizes), sum(sizes.values()))

    def ranges_of(number: int) -> tuple[FileRange, ...]:
        part = _part(parts, number)
        return (FileRange(parts.folder / part.name, 0, part.size),)

    def found(number: int, result: Digest | SovereignError) -> None:
        if isinstance(result, SovereignError):
            damaged[number] = f"cannot be read: {result}"
        elif result != _part(parts, number).digest:
            damaged[number] = _instead(parts, result)
        progress.finished(_part(parts, number).name)

    hash_all(sizes, ranges_of, parallel, found, progress.moved)
    return damaged


def _instead(parts: Parts, found: Digest) -> str:
    other = next((part for part in parts.list.parts if part.digest == found), None)
    if other is not None:
        return f"holds the bytes of {other.name}"
    return f"is damaged, or of another bundle: it holds bytes of {found}"


def _part(parts: Parts, number: int) -> Part:
    return parts.list.parts[number - 1]
