# SPDX-License-Identifier: Apache-2.0
"""Local files of a bundle: CRDs, wheels, whatever the other side shall find under a title."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from sovereign_airgap.bundle.index import FILE_TYPE, Kind, Root
from sovereign_airgap.bundle.items import FileItem
from sovereign_airgap.bundle.source import Survey
from sovereign_airgap.bundle.spec import FileSpec, require_title
from sovereign_airgap.bundle.unfinished import Unfinished
from sovereign_airgap.disk import explained
from sovereign_airgap.errors import InvalidSpec
from sovereign_airgap.manifest import Descriptor
from sovereign_airgap.progress import Progress

_MAX_FILES = 1_000
_FOLDERS = {".whl": "wheels", ".yaml": "manifests", ".yml": "manifests"}


@dataclass(slots=True)
class FileSource:
    """A file of a spec, or a folder of them."""

    spec: FileSpec
    progress: Progress
    _found: tuple[tuple[str, Path], ...] = ()

    @property
    def describe(self) -> str:
        return str(self.spec.path)

    def survey(self, to: Unfinished) -> Survey:
        path = self.spec.path
        with explained(path):
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                title = path.resolve().name if self.spec.title is None else self.spec.title
                self._found = tuple((f"{title}/{inside}", place) for inside, place in _files_below(path))
            else:
                self._found = ((self.spec.title or _title_of(path), path),)
            size = sum(place.stat().st_size for _, place in self._found)
        for title, place in self._found:
            if not stat.S_ISREG(place.stat().st_mode):
                raise InvalidSpec(f"Expected {place} to be a plain file, found something else.")
            try:
                require_title(title)
            except ValueError as error:
                raise InvalidSpec(f"{place} cannot be carried: {error}; give it another title.") from error
        return Survey(tuple(title for title, _ in self._found), len(self._found), more=size)

    def carry(self, to: Unfinished) -> tuple[FileItem, ...]:
        items = []
        for title, path in self._found:
            self.progress.working_on(title)
            digest, size = to.take(path)
            items.append(FileItem(Root(Kind.FILE, Descriptor(FILE_TYPE, digest, size), title=title)))
            self.progress.finished(title)
        return tuple(items)


def _raise(error: OSError) -> None:
    """Without it os.walk leaves out what it cannot read."""
    raise error


def _title_of(path: Path) -> str:
    folder = _FOLDERS.get(path.suffix, "files")
    return f"{folder}/{path.name}"


def _files_below(folder: Path) -> list[tuple[str, Path]]:
    """Every file below a folder with its path in it, sorted; hidden ones are left out, links are not followed
    into folders."""
    found: list[tuple[str, Path]] = []
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(place, name)
                found.append((path.relative_to(folder).as_posix(), path))
        if len(found) > _MAX_FILES:
            raise InvalidSpec(f"Expected at most {_MAX_FILES} files below {folder}, found more.")
    if not found:
        raise InvalidSpec(f"Expected files below {folder}, found none.")
    return found
