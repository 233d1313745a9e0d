# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a bundle, each thing once and by its name, and as many of them as a person can read."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from sovereign_airgap.errors import (
    BomContradicts,
    BundleDefective,
    DigestMismatch,
    DiskFailed,
    MalformedManifest,
    NotSigned,
    SignatureInvalid,
    SizeMismatch,
    SovereignError,
    UnsafeFileName,
    WrongBase,
)
from sovereign_airgap.strict_json import Json

MAX_DEFECTS = 200
_TEXT_CHARACTERS = 600
_KINDS: dict[str, type[SovereignError]] = {
    kind.reason: kind
    for kind in (
        BomContradicts, DigestMismatch, DiskFailed, MalformedManifest, NotSigned, SignatureInvalid,
        SizeMismatch, UnsafeFileName, WrongBase,
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class Defect:
    """One thing that is wrong: a path, a part or a root, what it is or lacks, and the reason's stable word.

    Both texts are safe to print: names come from strangers.
    """

    path: str
    what: str
    reason: str = BundleDefective.reason

    def __str__(self) -> str:
        return f"{self.path}: {self.what}{'' if self.what.endswith('.') else '.'}"

    def as_json(self) -> dict[str, Json]:
        return {"path": self.path, "what": self.what, "reason": self.reason}


@dataclass(slots=True)
class Findings:
    """Collects defects from several threads: of every path the first one, of all paths the first 200."""

    _by_path: dict[str, Defect] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _dropped: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, path: str, what: str, reason: str = BundleDefective.reason) -> None:
        found = Defect(_printable(path), _printable(what), reason)
        with self._lock:
            if found.path in self._seen:
                return
            self._seen.add(found.path)
            self._by_path[found.path] = found
            if len(self._by_path) > 2 * MAX_DEFECTS:
                self._cut()

    def error(self, path: str, error: SovereignError) -> None:
        """As `add`, for what somebody else found."""
        self.add(path, str(error), error.reason)

    def has(self, path: str) -> bool:
        with self._lock:
            return _printable(path) in self._seen

    def explain(self, paths: Iterable[str]) -> None:
        """Forgets the defects of `paths`: what was found since says why they are there."""
        with self._lock:
            for path in paths:
                self._by_path.pop(_printable(path), None)

    @property
    def paths(self) -> list[str]:
        with self._lock:
            return sorted(self._by_path)

    def all(self) -> tuple[tuple[Defect, ...], int]:
        """The defects by path, and how many more there are."""
        with self._lock:
            self._cut()
            return tuple(self._by_path.values()), self._dropped

    def _cut(self) -> None:
        kept = sorted(self._by_path.values())
        self._dropped += len(kept[MAX_DEFECTS:])
        self._by_path = {each.path: each for each in kept[:MAX_DEFECTS]}


def refusal(describe: str, defects: tuple[Defect, ...], more: int) -> SovereignError:
    """The error that names every defect, of their kind where all have one."""
    reasons = {defect.reason for defect in defects}
    kind = _KINDS.get(min(reasons), BundleDefective) if len(reasons) == 1 else BundleDefective
    if len(defects) == 1 and not more:
        return kind(f"Expected a whole bundle at {describe}, found a defect. {defects[0]}")
    lines = [f"Expected a whole bundle at {describe}, found {len(defects) + more} defects."]
    lines += [str(defect) for defect in defects]
    if more:
        lines.append(f"and {more} more")
    return kind("\n".join(lines))


def _printable(text: str) -> str:
    text = text[:_TEXT_CHARACTERS]
    return text if text.isprintable() and text.isascii() else ascii(text)[1:-1]
