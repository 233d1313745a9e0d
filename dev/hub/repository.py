# SPDX-License-Identifier: Apache-2.0
"""The folder that the hub double serves, read as repositories, revisions and files.

Content decides everything: a changed file is another commit, and the old commit is gone. Large files are
hashed once per (path, size, mtime).
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dev.hub import git

LFS_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".onnx", ".h5", ".msgpack"}
)
LFS_FROM = 10 * 1024 * 1024
"""Files from this size on are LFS files whatever their name; the Hub refuses larger ones outside LFS."""

_MARKERS = frozenset({".gated", ".private", ".git", ".cache"})


@dataclass(frozen=True)
class HubFile:
    path: str
    source: Path
    size: int
    blob_id: str
    sha256: str | None
    """None for a file that git keeps itself."""
    pointer_size: int

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob_id


@dataclass(frozen=True)
class Revision:
    label: str
    commit: str
    files: dict[str, HubFile]
    trees: dict[str, str]
    """Folder path -> git tree id; the root is the empty path."""


@dataclass(frozen=True)
class Repository:
    id: str
    folder: Path
    gated_for: frozenset[str] | None
    """Tokens whose owners accepted the licence; None where there is nothing to accept."""
    private_for: frozenset[str] | None
    revisions: tuple[Revision, ...]

    @cached_property
    def main(self) -> Revision | None:
        by_label = {revision.label: revision for revision in self.revisions}
        return by_label.get("main") or (self.revisions[-1] if self.revisions else None)

    def revision(self, name: str) -> Revision | None:
        if name == "main":
            return self.main
        return next((one for one in self.revisions if name in (one.label, one.commit)), None)


class HubFolder:
    """Reads repositories afresh on every call; remembers digests of files that did not change."""

    def __init__(self, root: Path, *, lfs_from: int = LFS_FROM) -> None:
        self.root = root
        self._lfs_from = lfs_from
        self._known: dict[tuple[str, int, int], HubFile] = {}
        self._reading = threading.Lock()

    def ids(self) -> list[str]:
        return sorted(
            f"{org.name}/{repo.name}"
            for org in self.root.iterdir()
            if org.is_dir() and not org.name.startswith(".")
            for repo in org.iterdir()
            if repo.is_dir() and not repo.name.startswith(".")
        )

    def canonical_id(self, repo_id: str) -> str | None:
        """The id as its owner spells it; the Hub does not mind the case."""
        ids = self.ids()
        if repo_id in ids:
            return repo_id
        return next((one for one in ids if one.lower() == repo_id.lower()), None)

    def repository(self, repo_id: str) -> Repository | None:
        if repo_id not in self.ids():
            return None
        folder = self.root / repo_id
        labelled = sorted(
            entry for entry in folder.iterdir() if entry.name.startswith("@") and entry.is_dir()
        )
        if labelled:
            revisions = tuple(self._revision(entry.name[1:], entry) for entry in labelled)
        else:
            revisions = (self._revision("main", folder),)
        return Repository(
            id=repo_id,
            folder=folder,
            gated_for=_tokens(folder / ".gated"),
            private_for=_tokens(folder / ".private"),
            revisions=revisions,
        )

    def tokens(self) -> frozenset[str]:
        """Every token that any marker names."""
        named: set[str] = set()
        for repo_id in self.ids():
            for marker in (".gated", ".private"):
                named |= _tokens(self.root / repo_id / marker) or frozenset()
        return frozenset(named)

    def object(self, sha256: str) -> HubFile | None:
        """The LFS object of that digest, if the folder was read since it is there."""
        with self._reading:
            found = [file for file in self._known.values() if file.sha256 == sha256]
        return next((file for file in reversed(found) if file.source.is_file()), None)

    def _revision(self, label: str, folder: Path) -> Revision:
        files = {path: self._file(path, source) for path, source in _walk(folder)}
        trees = git.tree_ids({path: file.blob_id for path, file in files.items()})
        return Revision(label=label, commit=git.commit_id(trees[""]), files=files, trees=trees)

    def _file(self, path: str, source: Path) -> HubFile:
        stat = source.stat()
        key = (str(source), stat.st_size, stat.st_mtime_ns)
        # One reader at a time: a client that asks twice must not have the same gigabytes hashed twice.
        with self._reading:
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = self._read(path, source, stat.st_size)
            return known

    def _read(self, path: str, source: Path, size: int) -> HubFile:
        if source.suffix in LFS_SUFFIXES or size >= self._lfs_from:
            with source.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            pointer = git.lfs_pointer(sha256, size)
            return HubFile(path, source, size, git.blob_id(pointer), sha256, len(pointer))
        return HubFile(path, source, size, git.blob_id(source.read_bytes()), None, 0)


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _MARKERS)
        for name in sorted(names):
            source = Path(where, name)
            if name not in _MARKERS and source.is_file():
                yield source.relative_to(folder).as_posix(), source


def _tokens(marker: Path) -> frozenset[str] | None:
    if not marker.is_file():
        return None
    return frozenset(line.strip() for line in marker.read_text().splitlines() if line.strip())
