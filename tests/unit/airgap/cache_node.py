# SPDX-License-Identifier: Apache-2.0
"""A node's cache beside a registry double, and artifacts to fetch into it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sovereign_airgap.cache.fetch import FetchOptions, FetchResult, fetch
from sovereign_airgap.cache.layout import RESERVED, Cache, Entry
from sovereign_airgap.cache.room import Limits
from sovereign_airgap.digest import Digest
from sovereign_airgap.marker import Written
from sovereign_airgap.progress import Progress
from sovereign_airgap.pull import PullOptions
from sovereign_airgap.reference import OciReference
from tests.unit.airgap.models import some_bytes
from tests.unit.airgap.registry_double import RegistryDouble
from tests.unit.airgap.shelf import FILES, Shelf

MIB = 1 << 20
SHARD = "model.safetensors"
OTHER_FILES = {**FILES, "config.json": b'{"b": 2}', "more.safetensors": some_bytes(200_000, "more")}


class Node:
    """A node's cache, beside a registry double with artifacts in it."""

    def __init__(self, registry: RegistryDouble, options: PullOptions, root: Path) -> None:
        self.shelf, self.cache = Shelf(registry, options, root / "unused"), Cache(root)
        self.one, self.other = self.shelf.reference, self.shelf.put(OTHER_FILES)
        self.progress = Progress()

    def fetch(
        self,
        reference: OciReference | None = None,
        tenant: str = "team-a",
        budget: int = 0,
        reserve: int = 0,
        keep: tuple[Digest, ...] = (),
        seconds: float = 20.0,
        **changes: object,
    ) -> FetchResult:
        """`changes` are of PullOptions."""
        pulling = dataclasses.replace(self.shelf.options, **changes)  # type: ignore[arg-type]
        options = FetchOptions(pulling, Limits(budget, reserve), frozenset(keep), seconds)
        self.progress = Progress()
        return fetch(reference or self.one, self.cache, tenant, options, self.progress)

    def entry(self, reference: OciReference | None = None, tenant: str = "team-a") -> Entry:
        digest = (reference or self.one).digest
        assert digest is not None
        return self.cache.entry(tenant, digest)

    def require_whole(self, entry: Entry, files: dict[str, bytes] = FILES) -> None:
        """Every file is right, and both markers say what is there."""
        for path, content in files.items():
            assert (entry.folder / path).read_bytes() == content, path
        marked = entry.vouched(config_only=False)
        assert marked == {path: written(entry.folder / path) for path in files}
        assert entry.vouched(config_only=True) == {p: w for p, w in marked.items() if ".safetensors" not in p}
        assert not (entry.folder / RESERVED).exists()

    @property
    def requests(self) -> int:
        return len(self.shelf.registry.seen)


def written(place: Path) -> Written:
    found = place.lstat()
    return Written(found.st_size, found.st_mtime_ns, str(Digest.of(place.read_bytes())))


def inode(place: Path) -> int:
    return place.lstat().st_ino


def size_of(files: dict[str, bytes]) -> int:
    return sum(map(len, files.values()))


def digest_of(reference: OciReference) -> Digest:
    assert reference.digest is not None
    return reference.digest


def an_artifact(node: Node, name: str, size: int = MIB) -> OciReference:
    return node.shelf.put({"config.json": b"{}", SHARD: some_bytes(1024, name) * (size // 1024)})
