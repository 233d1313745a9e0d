# SPDX-License-Identifier: Apache-2.0
"""The verb `pull`: an artifact becomes a directory of files that are what the manifest says.

Hashed while written, published by rename only after the digest matched. The marker comes last and says that
all files are there; a reader that sees it needs to check nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sovereign_airgap.access import Access
from sovereign_airgap.blobs import BlobStream, corrupt
from sovereign_airgap.bundle.hashing import hash_all
from sovereign_airgap.bundle.layout import FileRange
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import (
    HalfWritten,
    explained,
    locked,
    place_of,
    regular_file,
    replace_file,
    require_room,
    sweep,
    sync_folder,
)
from sovereign_airgap.errors import InvalidReference, SovereignError
from sovereign_airgap.manifest import Descriptor, Layer, ModelManifest
from sovereign_airgap.marker import CONFIG_MARKER, MARKER, Written, encode_marker, marker_name, read_marker
from sovereign_airgap.names import defect_of
from sovereign_airgap.pace import Pace, Patience
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import OciReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.stopping import all_at_once


@dataclass(frozen=True, slots=True)
class PullOptions:
    """`verify_always` hashes files again that the marker already vouches for."""

    access: Access = field(default_factory=Access)
    config_only: bool = False
    verify_always: bool = False
    patience: Patience = field(default_factory=Patience)
    parallel: int = 4
    direct: bool = True


@dataclass(frozen=True, slots=True)
class PullResult:
    """What lies in the directory now; `kept` of the files were there already and right.

    `size`, `kept_bytes` and `fetched_bytes` are of the wanted files; what is neither kept nor fetched was
    adopted. `repaired` are those that lay there and were not right.
    """

    digest: Digest
    directory: Path
    size: int
    files: int
    kept: int
    revision: str
    kept_bytes: int
    fetched_bytes: int
    repaired: tuple[str, ...]


class Neighbours:
    """What else lies on the same disk: the joint at which the node's cache takes part. Here: nothing."""

    def distrust(self, place: Path) -> None:
        """Is told of what lies under a file's name and is not that file; it is replaced later."""

    def adopt(self, layer: Layer, place: Path) -> Written | None:
        """Puts a file that lies elsewhere at `place`; what vouches for it there, None where there is none."""
        return None

    def require_room(self, directory: Path, sizes: Sequence[int]) -> None:
        """Refuses what cannot fit, before the first byte of files of these sizes."""
        require_room(directory, sum(sizes))


@dataclass(frozen=True, slots=True)
class Source:
    """An artifact in a registry: its manifest, as it is and parsed, and what its files are read through."""

    registry: Registry
    pace: Pace
    manifest: ModelManifest
    digest: Digest
    content: bytes


def pull(reference: OciReference, directory: Path, options: PullOptions, progress: Progress) -> PullResult:
    """Pulls by digest; raises a SovereignError, and then no marker is there and every final path is right."""
    with (
        Pace(options.patience) as pace,
        opened(reference, options.access, pace, progress) as source,
        locked(directory),
    ):
        return fill(directory, source, options, progress, Neighbours())


@contextmanager
def opened(reference: OciReference, access: Access, pace: Pace, progress: Progress) -> Iterator[Source]:
    """Reads the manifest that the reference names by its digest."""
    if reference.digest is None or not reference.repository:
        raise InvalidReference(
            f"Expected a reference by digest as in oci://HOST/REPO@sha256:…, found {reference}."
        )
    with access.registry(reference, pace, push=False) as registry:
        progress.enter("reading the manifest")
        content = registry.get_manifest(str(reference.digest))
        yield Source(registry, pace, ModelManifest.parse(content), reference.digest, content)


def fill(
    directory: Path, source: Source, options: PullOptions, progress: Progress, neighbours: Neighbours
) -> PullResult:
    """Brings what is missing into a directory that the caller has locked."""
    registry, pace = source.registry, source.pace
    return _Pull(
        registry, pace, source.manifest, source.digest, directory, options, progress, neighbours
    ).run()


@dataclass(slots=True)
class _Pull:
    registry: Registry
    pace: Pace
    manifest: ModelManifest
    digest: Digest
    directory: Path
    options: PullOptions
    progress: Progress
    neighbours: Neighbours

    def run(self) -> PullResult:
        layers = [
            layer for layer in self.manifest.layers if not (self.options.config_only and layer.is_weight)
        ]
        self.progress.expect(len(layers), _size(layers))
        self.progress.enter("checking what is there")
        vouched = self._vouched()
        sweep(self.directory)
        places = {layer.path: place_of(self.directory, layer.path) for layer in layers}
        kept = self._right(layers, places, vouched)
        missing = [layer for layer in layers if layer.path not in kept]
        if missing or not self._marker.is_file():
            with explained(self._marker):
                self._marker.unlink(missing_ok=True)
        repaired = tuple(layer.path for layer in missing if os.path.lexists(places[layer.path]))
        for path in repaired:
            self.neighbours.distrust(places[path])
        adopted = self._adopt(missing, places)
        absent = [layer for layer in missing if layer.path not in adopted]
        self.neighbours.require_room(self.directory, [layer.size for layer in absent])
        self.progress.enter("pulling")
        written = self._fetch_all(absent, places)
        for folder in sorted({place.parent for place in places.values()}):
            sync_folder(folder)
        self._mark({**kept, **adopted, **written})
        self.progress.enter("done")
        return PullResult(
            self.digest,
            self.directory,
            _size(layers),
            len(layers),
            len(kept),
            self.manifest.revision,
            kept_bytes=_size(layers) - _size(missing),
            fetched_bytes=_size(absent),
            repaired=repaired,
        )

    @property
    def _marker(self) -> Path:
        return self.directory / marker_name(self.options.config_only)

    # -- what is there already ------------------------------------------------------------------------------

    def _vouched(self) -> dict[str, Written]:
        """What the markers vouch for; files of another artifact that we wrote earlier are removed."""
        wanted = {layer.path for layer in self.manifest.layers}
        vouched: dict[str, Written] = {}
        for name in (MARKER, CONFIG_MARKER):
            marker = self.directory / name
            manifest, files = read_marker(marker)
            if manifest == str(self.digest):
                vouched.update(files)
                continue
            with explained(marker):
                marker.unlink(missing_ok=True)
                for path in files:
                    # Left behind they would be served: engines load every shard that they find.
                    if path not in wanted and defect_of(path) is None:
                        self._remove(path)
        return vouched

    def _remove(self, path: str) -> None:
        place = self.directory / path
        if place.parent.resolve().is_relative_to(self.directory.resolve()) and regular_file(place):
            place.unlink()

    def _right(
        self, layers: Sequence[Layer], places: Mapping[str, Path], vouched: Mapping[str, Written]
    ) -> dict[str, Written]:
        """Those layers whose file lies at its place: vouched for as it is there, or else hashed."""
        found: dict[str, Written] = {}
        doubted: dict[str, Written] = {}
        digests = {layer.path: layer.digest for layer in layers}
        for layer in layers:
            status = regular_file(places[layer.path])
            if status is None or status.st_size != layer.size:
                continue
            written = Written(status.st_size, status.st_mtime_ns, str(layer.digest))
            if self.options.verify_always or vouched.get(layer.path) != written:
                doubted[layer.path] = written
            else:
                self._is_there(layer.path, written, found)

        def hashed(path: str, result: Digest | SovereignError) -> None:
            # Bytes that the disk does not give back are not right either: the file is made anew.
            if result == digests[path]:
                self._is_there(path, doubted[path], found)

        hash_all(
            {path: written.size for path, written in doubted.items()},
            lambda path: (FileRange(places[path], 0, doubted[path].size),),
            self.options.parallel,
            hashed,
            lambda _: self.pace.check(),
        )
        return found

    def _is_there(self, path: str, written: Written, found: dict[str, Written]) -> None:
        found[path] = written
        self.progress.moved(written.size)
        self.progress.finished(path)

    def _adopt(self, layers: Sequence[Layer], places: Mapping[str, Path]) -> dict[str, Written]:
        """What the neighbours have of these layers, believed as far as what was there before."""
        offered = {layer.path: self.neighbours.adopt(layer, places[layer.path]) for layer in layers}
        lent = {path: written for path, written in offered.items() if written is not None}
        found = self._right([layer for layer in layers if layer.path in lent], places, lent)
        for path in sorted(lent.keys() - found.keys()):
            self.neighbours.distrust(places[path])
        return found

    # -- the bytes ------------------------------------------------------------------------------------------

    def _fetch_all(self, layers: list[Layer], places: dict[str, Path]) -> dict[str, Written]:
        order = sorted(layers, key=lambda layer: (-layer.size, layer.path))
        calls = [partial(self._fetch, layer, places[layer.path]) for layer in order]
        written = all_at_once(calls, self.pace, self.options.parallel, "pull")
        return {layer.path: each for layer, each in zip(order, written, strict=True)}

    def _fetch(self, layer: Layer, place: Path) -> Written:
        self.pace.check()
        self.progress.working_on(layer.path)
        blob = Descriptor(layer.media_type, layer.digest, layer.size)
        stream = BlobStream(self.registry, blob, ascii(layer.path))
        half = HalfWritten(place, self.options.direct)
        try:
            found = stream.copy_to(half, self.progress)
            if found != layer.digest:
                raise corrupt(self.registry, blob, ascii(layer.path), str(found))
            status = half.publish()
        except BaseException:
            self.progress.moved(-stream.position)
            raise
        finally:
            half.close()
            stream.close()
        self.progress.finished(layer.path)
        return Written(status.st_size, status.st_mtime_ns, str(layer.digest))

    # -- the marker -----------------------------------------------------------------------------------------

    def _mark(self, files: dict[str, Written]) -> None:
        replace_file(self._marker, encode_marker(str(self.digest), files))
        sync_folder(self.directory)


def _size(layers: Iterable[Layer]) -> int:
    return sum(layer.size for layer in layers)
