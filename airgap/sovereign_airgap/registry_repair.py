# SPDX-License-Identifier: Apache-2.0
"""`registry verify --repair`: takes away what is damaged, so that the next mirror or load brings it again.

The bytes go before the links: a run that is killed in between leaves a link to nothing, which the registry
answers with 404; the other way round it would leave bytes that the registry keeps for whoever pushes next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sovereign_airgap.disk import regular_file
from sovereign_airgap.registry_storage import Link, Repository, Storage
from sovereign_airgap.registry_verify import Finding, Kind, Verified, hash_again

_BAD_BYTES = (Kind.DAMAGED, Kind.UNREADABLE)
REMOVED = (*_BAD_BYTES, Kind.DANGLING)


@dataclass(frozen=True, slots=True)
class Repaired:
    """Folders that were removed (below the storage's root), and what has to be loaded or mirrored again."""

    removed: tuple[str, ...]
    to_bring: tuple[str, ...]


def repair(storage: Storage, found: Verified) -> Repaired:
    """Removes bad bytes with their links, and links to nothing; raises DiskFailed where it cannot."""
    return _Repair(storage).run(found)


@dataclass(slots=True)
class _Repair:
    storage: Storage
    removed: list[str] = field(default_factory=list)

    def run(self, found: Verified) -> Repaired:
        for finding in found.findings:
            if finding.kind in _BAD_BYTES:
                self._remove_blob(finding)
        dangling = {self.storage.root / each.path for each in found.findings if each.kind is Kind.DANGLING}
        for repository in self.storage.repositories() if dangling else ():
            self._remove_dangling(repository, dangling)
        to_bring = {
            user
            for finding in found.findings
            if finding.kind in (*_BAD_BYTES, Kind.MISSING)
            for user in finding.used_by
        }
        return Repaired(tuple(self.removed), tuple(sorted(to_bring)))

    def _remove_blob(self, finding: Finding) -> None:
        digest = finding.digest
        assert digest is not None
        folder = self.storage.blob_folder(digest)
        status = regular_file(folder / "data")
        if status is None or hash_again(folder / "data", status.st_size) == digest:
            return  # gone, or put right since it was found
        self._remove(folder)
        for repository in self.storage.repositories():
            for link in (*repository.layers, *repository.revisions):
                if link.promised == digest:
                    self._remove(link.path.parent)
            for tag, link in repository.tags:
                if link.held == digest:
                    self._remove(self.storage.tag_folder(repository.name, tag))
            for history in self.storage.tag_histories(repository.name, digest):
                self._remove(history)

    def _remove_dangling(self, repository: Repository, dangling: set[Path]) -> None:
        """Read again, because what a link leads to may have come since it was found."""
        for link in (*repository.layers, *repository.revisions):
            if link.path in dangling and not self._leads_to_a_blob(link):
                self._remove(link.path.parent)
        revisions = {link.held for link in repository.revisions if self._leads_to_a_blob(link)}
        for tag, link in repository.tags:
            if link.path in dangling and (link.held is None or link.held not in revisions):
                self._remove(self.storage.tag_folder(repository.name, tag))

    def _leads_to_a_blob(self, link: Link) -> bool:
        return link.is_right and link.held is not None and self.storage.has_data(link.held)

    def _remove(self, folder: Path) -> None:
        self.storage.remove(folder)
        self.removed.append(folder.relative_to(self.storage.root).as_posix())
