# SPDX-License-Identifier: Apache-2.0
"""What an unfinished split has done: one JSON line per part that is on the disk for good.

A part is written down only after it is synced, and given up in its source only after it is written down; so
whatever a crash leaves behind, every byte is in a recorded part or still in the bundle.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from sovereign_airgap import strict_json
from sovereign_airgap.bundle.parts import MAX_PARTS, Part, part_name
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import HalfWritten, explained, regular_file, sync_folder
from sovereign_airgap.errors import BundleDefective, InvalidReference
from sovereign_airgap.strict_json import Json

SUFFIX = ".parts.unfinished"
_LINE_BYTES = 400


@dataclass(frozen=True, slots=True)
class Record:
    """A part that is on the disk. `consumed`: its bytes may be gone from the bundle."""

    part: Part
    mtime_ns: int
    consumed: bool

    def as_json(self) -> dict[str, Json]:
        return {
            "name": self.part.name,
            "size": self.part.size,
            "sha256": self.part.digest.hex,
            "mtime": self.mtime_ns,
            "consumed": self.consumed,
        }

    def is_there(self, folder: Path) -> bool:
        """Whether nobody has touched the part since."""
        found = regular_file(folder / self.part.name)
        return found is not None and (found.st_size, found.st_mtime_ns) == (self.part.size, self.mtime_ns)


@dataclass(slots=True)
class Journal:
    """The records of the split that `fingerprint` names: the same bundle, cut in the same way."""

    path: Path
    fingerprint: str
    records: list[Record]

    @classmethod
    def open(cls, folder: Path, name: str, fingerprint: str) -> Self:
        """Goes on with what an earlier run recorded; what it recorded of another split is removed.

        Raises BundleDefective where the parts of the other split are the only copy of its bundle.
        """
        path = folder / f"{name}{SUFFIX}"
        written, records = _read(path, name)
        if written != fingerprint:
            if any(record.consumed for record in records):
                raise BundleDefective(
                    f"Expected {path} to be of this bundle and part size, found another split that has "
                    "already consumed its bundle; finish that one first, or name another folder."
                )
            for record in records:
                with explained(folder):
                    (folder / record.part.name).unlink(missing_ok=True)
            records = []
        return cls(path, fingerprint, records)

    def begin(self, consume: bool) -> None:
        """Writes down, before anything is consumed, what is there and whether it will be consumed."""
        self.records = [replace(record, consumed=record.consumed or consume) for record in self.records]
        lines = [json.dumps({"split": self.fingerprint})]
        lines += [json.dumps(record.as_json()) for record in self.records]
        file = HalfWritten(self.path)
        try:
            for line in lines:
                file.write((line + "\n").encode("ascii"))
            file.publish()
        finally:
            file.close()
        sync_folder(self.path.parent)

    def add(self, record: Record) -> None:
        """On the disk when this returns."""
        line = (json.dumps(record.as_json()) + "\n").encode("ascii")
        with explained(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError("the line was cut")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self.records.append(record)


def is_consuming(folder: Path, name: str) -> bool:
    """Whether an unfinished split of `name` has given up bytes of its bundle."""
    return any(record.consumed for record in _read(folder / f"{name}{SUFFIX}", name)[1])


def _read(path: Path, name: str) -> tuple[str, list[Record]]:
    """The fingerprint and the records; of a line that a crash has cut, and of all after it, nothing."""
    if regular_file(path) is None:
        return "", []
    with explained(path), path.open("rb") as stream:
        content = stream.read((MAX_PARTS + 1) * _LINE_BYTES)
    lines = content.split(b"\n")[:-1]
    records: list[Record] = []
    fingerprint = ""
    try:
        for at, line in enumerate(lines):
            document = strict_json.load_object(line)
            if at == 0:
                fingerprint = str(document["split"])
            else:
                records.append(_record(document, part_name(name, at)))
    except (strict_json.NotStrict, InvalidReference, KeyError, TypeError, ValueError):
        pass
    return fingerprint, records


def _record(document: dict[str, Json], name: str) -> Record:
    size, mtime, consumed = document["size"], document["mtime"], document["consumed"]
    if document["name"] != name or not isinstance(size, int) or not isinstance(mtime, int):
        raise ValueError("no record")
    return Record(Part(name, size, Digest(str(document["sha256"]))), mtime, consumed is True)
