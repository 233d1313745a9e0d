# SPDX-License-Identifier: Apache-2.0
"""The verb `pull`: an artifact becomes a directory of files that are what the manifest says.

Hashed while written, published by rename only after the digest matched. The marker comes last and says that
all files are there; a reader that sees it needs to check nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sovereign_airgap.access import Access
from sovereign_airgap.blobs import BlobStream, corrupt
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import (
    HalfWritten,
    explained,
    locked,
    place_of,
    regular_file,
    require_room,
    sweep,
    sync_folder,
)
from sovereign_airgap.errors import InvalidReference
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
    """What lies in the directory now; `kept` of the files were there already and right."""

    digest: Digest
    directory: Path
    size: int
    files: int
    kept: int
    revision: str


def pull(reference: OciReference, directory: Path, options: PullOptions, progress: Progress) -> PullResult:
    """Pulls by digest; raises a SovereignError, and then no marker is there and every final path is right."""
    if reference.digest is None or not reference.repository:
        raise InvalidReference(
            f"Expected a reference by digest as in oci://HOST/REPO@sha256:…, found {reference}."
        )
    with Pace(options.patience) as pace, options.access.registry(reference, pace, push=False) as registry:
        progress.enter("reading the manifest")
        manifest = ModelManifest.parse(registry.get_manifest(str(reference.digest)))
        with locked(directory):
            return _Pull(registry, pace, manifest, reference.digest, directory, options, progress).run()


@dataclass(slots=True)
class _Pull:
    registry: Registry
    pace: Pace
    manifest: ModelManifest
    digest: Digest
    directory: Path
    options: PullOptions
    progress: Progress

    def run(self) -> PullResult:
        layers = tuple(
            layer for layer in self.manifest.layers if not (self.options.config_only and layer.is_weight)
        )
        size = sum(layer.size for layer in layers)
        self.progress.expect(len(layers), size)
        self.progress.enter("checking what is there")
        vouched = self._vouched()
        sweep(self.directory)
        places = {layer.path: place_of(self.directory, layer.path) for layer in layers}
        kept: dict[str, Written] = {}
        for layer in layers:
            found = self._is_right(layer, places[layer.path], vouched)
            if found is not None:
                kept[layer.path] = found
        missing = [layer for layer in layers if layer.path not in kept]
        if missing or not self._marker.is_file():
            with explained(self._marker):
                self._marker.unlink(missing_ok=True)
        require_room(self.directory, sum(layer.size for layer in missing))
        self.progress.enter("pulling")
        written = self._fetch_all(missing, places)
        for folder in sorted({place.parent for place in places.values()}):
            sync_folder(folder)
        self._mark({**kept, **written})
        self.progress.enter("done")
        return PullResult(self.digest, self.directory, size, len(layers), len(kept), self.manifest.revision)

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

    def _is_right(self, layer: Layer, place: Path, vouched: dict[str, Written]) -> Written | None:
        found = regular_file(place)
        if found is None or found.st_size != layer.size:
            return None
        written = Written(found.st_size, found.st_mtime_ns, str(layer.digest))
        if self.options.verify_always or vouched.get(layer.path) != written:
            self.pace.check()
            with explained(place), place.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != layer.digest.hex:
                    return None
        self.progress.moved(layer.size)
        self.progress.finished(layer.path)
        return written

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
        content = encode_marker(str(self.digest), files)
        half = HalfWritten(self._marker, direct=False)
        try:
            half.write(content)
            half.publish()
        finally:
            half.close()
        sync_folder(self.directory)
