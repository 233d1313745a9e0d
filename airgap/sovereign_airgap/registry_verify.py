# SPDX-License-Identifier: Apache-2.0
"""The verb `registry verify`: whether a registry's disk still holds what its names say.

A registry hashes a blob once, when it comes, and never again; what goes bad afterwards it serves as it is,
and keeps when the right bytes are pushed. So every blob is hashed here, and every name is followed to a blob:
tags to manifests, manifests to their children. Uploads that are under way are not looked at, and what the
garbage collection takes away meanwhile is no defect: a finding is looked at twice before it counts.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sovereign_airgap import oci
from sovereign_airgap.bundle.hashing import hash_all
from sovereign_airgap.bundle.layout import FileRange
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained, regular_file
from sovereign_airgap.errors import MalformedManifest, SovereignError
from sovereign_airgap.manifest import MAX_MANIFEST_BYTES
from sovereign_airgap.progress import Progress
from sovereign_airgap.registry_storage import Link, Repository, Storage, StoredBlob
from sovereign_airgap.strict_json import Json

MAX_FINDINGS = 100_000
# Names that changed later than this may be half of something that is being written.
SETTLED_SECONDS = 60.0
_MAX_USERS = 20
_MAX_ROWS = 200


class Kind(StrEnum):
    """What is wrong; `--repair` removes the first three, a load or a mirror brings what is missing."""

    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    DANGLING = "dangling link"
    MISSING = "missing"
    MALFORMED = "malformed manifest"
    FORBIDDEN = "not readable by us"
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect: where (below the storage's root), of what, and which artifacts have to be loaded again."""

    kind: Kind
    path: str
    what: str
    digest: Digest | None = None
    repository: str = ""
    used_by: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Json]:
        return {
            "kind": str(self.kind),
            "path": self.path,
            "what": self.what,
            "digest": None if self.digest is None else str(self.digest),
            "usedBy": list(self.used_by),
        }


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at, and what was found, by path."""

    blobs: int
    size: int
    repositories: int
    findings: tuple[Finding, ...]
    more: int = 0

    def as_json(self) -> dict[str, Json]:
        return {
            "blobs": self.blobs,
            "bytes": self.size,
            "repositories": self.repositories,
            "findings": [finding.as_json() for finding in self.findings],
            "more": self.more,
        }


def verify(
    storage: Storage, progress: Progress, parallel: int | None = None, settled: float = SETTLED_SECONDS
) -> Verified:
    """Hashes every blob and follows every name; raises DiskFailed where the storage itself cannot be read."""
    return _Verification(storage, progress, parallel, settled).run()


def hash_again(blob: Path, size: int) -> Digest | SovereignError:
    """The digest of a blob's bytes on the disk, or why it cannot be had."""
    results: dict[Path, Digest | SovereignError] = {}
    hash_all({blob: size}, lambda path: (FileRange(path, 0, size),), 1, results.__setitem__, lambda _: None)
    return results[blob]


@dataclass(slots=True)
class _Verification:
    storage: Storage
    progress: Progress
    parallel: int | None
    settled: float
    blobs: dict[Digest, StoredBlob] = field(default_factory=dict)
    bad: dict[Digest, tuple[Kind, str]] = field(default_factory=dict)
    users: dict[Digest, list[str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    _dropped: int = 0

    def run(self) -> Verified:
        self.progress.enter("listing")
        self.blobs = {blob.digest: blob for blob in self.storage.blobs()}
        size = sum(blob.size for blob in self.blobs.values())
        self.progress.expect(len(self.blobs), size)
        self.progress.enter("hashing")
        self._hash()
        self.progress.enter("following")
        repositories = 0
        for repository in self.storage.repositories():
            repositories += 1
            self._follow(repository)
        for digest, (kind, what) in self.bad.items():
            used = tuple(sorted(set(self.users.get(digest, ()))))
            self._add(Finding(kind, self._path(self.blobs[digest].path), what, digest, used_by=used))
        for folder in self.storage.strangers():
            what = (
                "not made by the registry, whose garbage collection may stop here: look at it, then remove it"
            )
            self._add(Finding(Kind.STRANGER, self._path(folder), what))
        self.progress.enter("done")
        found = tuple(sorted(self.findings, key=lambda finding: (finding.path, finding.what)))
        return Verified(len(self.blobs), size, repositories, found, self._dropped)

    # -- bytes ----------------------------------------------------------------------------------------------

    def _hash(self) -> None:
        suspects: list[StoredBlob] = []

        def found(digest: Digest, result: Digest | SovereignError) -> None:
            if result != digest:
                suspects.append(self.blobs[digest])
            self.progress.finished(digest.hex)

        def ranges_of(digest: Digest) -> tuple[FileRange, ...]:
            blob = self.blobs[digest]
            return (FileRange(blob.path, 0, blob.size),)

        sizes = {digest: blob.size for digest, blob in self.blobs.items()}
        hash_all(sizes, ranges_of, self.parallel, found, self.progress.moved)
        for blob in suspects:
            # Once more, at the length that it has now: it may have been collected, or put right, meanwhile.
            status = regular_file(blob.path)
            if status is None:
                del self.blobs[blob.digest]
                continue
            result = hash_again(blob.path, status.st_size)
            if result != blob.digest:
                self.bad[blob.digest] = _judged(blob, result, status.st_size)

    # -- names ----------------------------------------------------------------------------------------------

    def _follow(self, repository: Repository) -> None:
        layers = {link.held for link in self._right(repository, repository.layers) if link.held is not None}
        revisions = {
            link.held for link in self._right(repository, repository.revisions) if link.held is not None
        }
        tags: dict[Digest, list[str]] = {}
        for tag, link in repository.tags:
            if link.held is None or link.held not in revisions:
                self._dangling(repository, link, f"the tag {tag} names no manifest of {repository.name}")
            else:
                tags.setdefault(link.held, []).append(tag)
        for digest in sorted(revisions):
            users = [f"{repository.name}:{tag}" for tag in tags.get(digest, [])]
            self._follow_manifest(
                repository, digest, users or [f"{repository.name}@{digest}"], layers, revisions
            )

    def _right(self, repository: Repository, links: tuple[Link, ...]) -> Iterator[Link]:
        """Links that hold their digest and lead to a blob; the others are findings."""
        for link in links:
            if not link.is_right:
                self._dangling(repository, link, f"holds another digest than its path in {repository.name}")
            elif not self._has(link.promised):
                self._dangling(repository, link, f"leads to no blob in {repository.name}")
            else:
                yield link

    def _follow_manifest(
        self,
        repository: Repository,
        digest: Digest,
        users: list[str],
        layers: set[Digest],
        revisions: set[Digest],
    ) -> None:
        self._used(digest, users)
        if digest in self.bad:
            return
        blob = self.blobs.get(digest)
        if blob is None:
            return  # collected meanwhile
        try:
            document = _document(blob)
        except MalformedManifest as error:
            self._add(Finding(Kind.MALFORMED, self._path(blob.path), str(error), digest, repository.name))
            return
        for child in document.children:
            self._used(child.digest, users)
            if child.media_type in oci.DOCUMENT_TYPES:
                missing = child.digest not in revisions
            else:
                missing = child.digest not in layers and "foreign" not in child.media_type
            stored = self.blobs.get(child.digest)
            # What was pushed since the listing is no defect: the disk is asked once more.
            if missing and not self.storage.serves(repository.name, child.digest):
                lacking = f"{child.digest} ({child.size} bytes)"
                what = f"{lacking}, which {users[0]} needs, is not in {repository.name}"
                self._add(
                    Finding(
                        Kind.MISSING, self._path(blob.path), what, child.digest, repository.name, tuple(users)
                    )
                )
            elif stored is not None and stored.size != child.size and child.digest not in self.bad:
                what = f"{users[0]} promises {child.size} bytes of {child.digest}, there are {stored.size}"
                self._add(Finding(Kind.MALFORMED, self._path(blob.path), what, digest, repository.name))

    def _has(self, digest: Digest | None) -> bool:
        return digest is not None and (digest in self.blobs or self.storage.has_data(digest))

    def _used(self, digest: Digest, users: list[str]) -> None:
        known = self.users.setdefault(digest, [])
        known += users[: max(0, _MAX_USERS - len(known))]

    def _dangling(self, repository: Repository, link: Link, what: str) -> None:
        try:
            age = time.time() - link.path.parent.lstat().st_mtime
        except OSError:
            return  # taken away meanwhile
        if age >= self.settled:
            digest = link.promised or link.held
            self._add(Finding(Kind.DANGLING, self._path(link.path), what, digest, repository.name))

    def _add(self, finding: Finding) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)
        else:
            self._dropped += 1

    def _path(self, path: Path) -> str:
        return ascii(path.relative_to(self.storage.root).as_posix())[1:-1]


def _judged(blob: StoredBlob, result: Digest | SovereignError, size: int) -> tuple[Kind, str]:
    if isinstance(result, Digest):
        return Kind.DAMAGED, f"{size} bytes with the digest {result}"
    cause = result.__cause__
    if isinstance(cause, OSError) and cause.errno != errno.EIO:
        # A missing right is no reason to remove anything.
        return Kind.FORBIDDEN, f"cannot be read: {cause.strerror}"
    return Kind.UNREADABLE, "the disk does not give its bytes back"


def _document(blob: StoredBlob) -> oci.Document:
    if blob.size > MAX_MANIFEST_BYTES:
        raise MalformedManifest(
            f"Expected a manifest of at most {MAX_MANIFEST_BYTES} bytes, found {blob.size}."
        )
    with explained(blob.path):
        content = blob.path.read_bytes()
    return oci.read(content, oci.media_type_of(content))


def show(found: Verified, console: Console) -> None:
    """Prints what was found for people."""
    if found.findings:
        table = Table("What", "Where", "Found", "Load or mirror again", box=None, pad_edge=False)
        for finding in found.findings[:_MAX_ROWS]:
            table.add_row(
                str(finding.kind), finding.path, finding.what, "\n".join(finding.used_by) or "nothing"
            )
        console.print(table)
    more = found.more + len(found.findings[_MAX_ROWS:])
    if more:
        console.print(f"and {more:,} more")
    console.print(
        f"{found.blobs:,} blobs ({found.size:,} bytes) in {found.repositories:,} repositories, "
        f"{len(found.findings) + found.more:,} findings"
    )
