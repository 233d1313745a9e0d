# SPDX-License-Identifier: Apache-2.0
"""How distribution (v3, filesystem driver) keeps a registry on a disk, and reading that without trusting it.

    blobs/sha256/<2 hex>/<64 hex>/data                      every blob and manifest, once
    repositories/<name>/_layers/sha256/<64 hex>/link        the repository may serve this blob
    repositories/<name>/_manifests/revisions/sha256/…/link  the repository has this manifest
    repositories/<name>/_manifests/tags/<tag>/current/link  what the tag names
    repositories/<name>/_manifests/tags/<tag>/index/…/link  what it has ever named

A link is a file that holds a digest. Symbolic links are nobody's here, and none is followed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained, regular_file
from sovereign_airgap.errors import DiskFailed, InvalidReference
from sovereign_airgap.reference import is_repository, is_tag

MAX_BLOBS = 1_000_000
_LINK_BYTES = 200
_MAX_DEPTH = 130  # of names of 255 characters


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as it lies there; `size` in bytes."""

    digest: Digest
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Link:
    """A link's file, the digest that its path promises (None for `current`), and the one that it holds."""

    path: Path
    promised: Digest | None
    held: Digest | None

    @property
    def is_right(self) -> bool:
        return self.held is not None and self.promised in (None, self.held)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository's links."""

    name: str
    layers: tuple[Link, ...]
    revisions: tuple[Link, ...]
    tags: tuple[tuple[str, Link], ...]


class Storage:
    """The folder that `rootdirectory` names in the registry's configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "docker" / "registry" / "v2"
        if not self.root.is_dir():
            raise DiskFailed(
                f"Expected the storage of a registry (docker/registry/v2) in {folder}, found none; name the "
                "folder that is rootdirectory in the registry's configuration."
            )

    def blobs(self) -> Iterator[StoredBlob]:
        """Every blob whose path is one, by its path; strange paths are the business of `strangers`."""
        count = 0
        for folder in self._blob_folders():
            digest = _digest(folder)
            status = regular_file(folder / "data")
            if digest is None or status is None or folder.parent.name != digest.hex[:2]:
                continue
            count += 1
            if count > MAX_BLOBS:
                raise DiskFailed(f"Expected at most {MAX_BLOBS} blobs in {self.folder}, found more.")
            yield StoredBlob(digest, folder / "data", status.st_size)

    def strangers(self) -> Iterator[Path]:
        """Folders among the blobs that the registry could not have made. An empty one is about to get its
        blob."""
        for folder in self._blob_folders():
            digest = _digest(folder)
            if digest is None or folder.parent.name != digest.hex[:2] or _holds_something_else(folder):
                yield folder

    def repositories(self) -> Iterator[Repository]:
        """Every repository, sorted by name."""
        for name, folder in sorted(self._repository_folders()):
            manifests = folder / "_manifests"
            tags = tuple(
                (tag.name, _link(tag / "current" / "link", None))
                for tag in _folders(manifests / "tags")
                if is_tag(tag.name)
            )
            yield Repository(
                name,
                _links(folder / "_layers" / "sha256"),
                _links(manifests / "revisions" / "sha256"),
                tags,
            )

    def blob_folder(self, digest: Digest) -> Path:
        return self.root / "blobs" / "sha256" / digest.hex[:2] / digest.hex

    def serves(self, repository: str, digest: Digest) -> bool:
        """Whether the repository has a right link to the blob now, and the blob is there."""
        folder = self.root / "repositories" / repository
        places = (folder / "_layers", folder / "_manifests" / "revisions")
        links = (_link(place / "sha256" / digest.hex / "link", digest) for place in places)
        return any(link.is_right for link in links) and self.has_data(digest)

    def has_data(self, digest: Digest) -> bool:
        return regular_file(self.blob_folder(digest) / "data") is not None

    def tag_folder(self, repository: str, tag: str) -> Path:
        return self.root / "repositories" / repository / "_manifests" / "tags" / tag

    def tag_histories(self, repository: str, digest: Digest) -> list[Path]:
        """Where the repository's tags remember that they have named the digest."""
        tags = self.root / "repositories" / repository / "_manifests" / "tags"
        found = (tag / "index" / "sha256" / digest.hex for tag in _folders(tags))
        return [folder for folder in found if folder.is_dir()]

    def remove(self, folder: Path) -> None:
        """Removes a folder of the storage with what is in it, for good: the directory is flushed."""
        if self.root not in folder.parents:
            raise ValueError(f"{folder} is not in {self.root}")
        with explained(folder):
            shutil.rmtree(folder)
            parent = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)

    def _blob_folders(self) -> Iterator[Path]:
        for prefix in _folders(self.root / "blobs" / "sha256"):
            yield from _folders(prefix)

    def _repository_folders(self) -> Iterator[tuple[str, Path]]:
        def walk(folder: Path, name: str, depth: int) -> Iterator[tuple[str, Path]]:
            below = _folders(folder)
            if name and is_repository(name) and any(each.name in ("_layers", "_manifests") for each in below):
                yield name, folder
            for each in below if depth < _MAX_DEPTH else []:
                if not each.name.startswith("_"):
                    yield from walk(each, f"{name}/{each.name}" if name else each.name, depth + 1)

        return walk(self.root / "repositories", "", 0)


def _links(folder: Path) -> tuple[Link, ...]:
    found = []
    for each in _folders(folder):
        digest = _digest(each)
        # A link that was deleted leaves its folder behind.
        if digest is not None and os.path.lexists(each / "link"):
            found.append(_link(each / "link", digest))
    return tuple(found)


def _link(path: Path, promised: Digest | None) -> Link:
    held = None
    if regular_file(path) is not None:
        try:
            with path.open("rb") as file:
                held = Digest.parse(file.read(_LINK_BYTES).decode("ascii", "replace").strip())
        except (OSError, InvalidReference):
            held = None
    return Link(path, promised, held)


def _holds_something_else(folder: Path) -> bool:
    try:
        names = [each.name for each in folder.iterdir()]
    except OSError:
        return False
    return bool(names) and (names != ["data"] or regular_file(folder / "data") is None)


def _digest(folder: Path) -> Digest | None:
    try:
        return Digest(folder.name)
    except InvalidReference:
        return None


def _folders(folder: Path) -> list[Path]:
    """The real folders in a folder, sorted; none where there is no such folder (any more)."""
    try:
        with os.scandir(folder) as found:
            return sorted(Path(each.path) for each in found if each.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DiskFailed(
            f"{folder} cannot be read: {error.strerror}; check the registry's volume and rights."
        ) from error
