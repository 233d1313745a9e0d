# SPDX-License-Identifier: Apache-2.0
"""One commit of the hub on its way into a store: select, carry every file, describe what was carried.

The same for a registry and for a bundle. Nothing is published here: when `carry` returns, all blobs are in
the store, and the manifest exists in memory only.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial

from sovereign_airgap import facts as model_facts
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import FactsContradict, MalformedConfig
from sovereign_airgap.extraction import Survey, extract, parameter_size
from sovereign_airgap.hub import Hub, WindowRefused
from sovereign_airgap.listing import HubFile, Listing
from sovereign_airgap.manifest import (
    CONFIG_TYPE,
    EMPTY_BLOB,
    EMPTY_TYPE,
    MANIFEST_TYPE,
    WEIGHT_TYPE,
    Descriptor,
    Layer,
    ModelConfig,
    ModelManifest,
    canonical_json,
)
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import HubReference
from sovereign_airgap.safetensors_header import PREFIX_BYTES, HeaderCollector
from sovereign_airgap.selection import MAX_INDEX_BYTES, LeftOut, Selection, Taken, Wish, index_paths, select
from sovereign_airgap.stopping import all_at_once
from sovereign_airgap.store import Store
from sovereign_airgap.strict_json import Json
from sovereign_airgap.wire import BUFFER_BYTES, LineBroken

# Files of git itself are at most 10 MB on the Hub; up to this size they are read whole and looked up first.
SMALL_BYTES = 8 * 1024 * 1024
# What the start of a README (its front matter) may be long.
README_BYTES = 64 * 1024
CONFIG_BYTES = 4 * 1024 * 1024
CONFIGS = ("config.json", "params.json")
README = "README.md"


@dataclass(frozen=True, slots=True)
class Assembled:
    """A model whose blobs are all in the store. `no_facts` says why it has none; `readme` is its start."""

    source: HubReference
    tag: str
    manifest: ModelManifest
    content: bytes
    left_out: tuple[LeftOut, ...]
    config: dict[str, Json]
    readme: bytes
    facts: model_facts.ModelFacts | None
    no_facts: str | None

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor.of(MANIFEST_TYPE, self.content)


@dataclass(slots=True)
class HubModel:
    """`select` first: it costs no weights; then `carry`."""

    hub: Hub
    listing: Listing
    wish: Wish
    store: Store
    progress: Progress
    parallel: int = 4
    _files: dict[str, HubFile] = field(init=False)
    _selection: Selection | None = None
    _survey: Survey = field(default_factory=Survey)
    _kept: dict[str, bytes] = field(default_factory=dict)
    _readme: bytes = b""
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._files = {file.path: file for file in self.listing.files}

    @property
    def tag(self) -> str:
        return self.wish.tag(self.listing.source.revision)

    # -- before the bytes -----------------------------------------------------------------------------------

    def select(self) -> tuple[HubFile, ...]:
        """The files that will be carried; reads nothing but the index files of the weights."""
        paths = tuple(self._files)
        indices = index_paths(paths, self.wish)
        for path in indices:
            self._kept[path] = self.hub.read(self.listing.source, self._files[path], MAX_INDEX_BYTES)
        self._selection = select(paths, self.wish, {path: self._kept[path] for path in indices})
        return tuple(self._files[taken.path] for taken in self._selection.taken)

    # -- the bytes ------------------------------------------------------------------------------------------

    def carry(self) -> Assembled:
        """Moves what was selected into the store; the first failure ends everything else."""
        assert self._selection is not None
        layers = self._carry_all(self._selection.taken)
        config = self._config()
        manifest = self._manifest(layers, config)
        facts, no_facts = self._facts(config)
        return Assembled(
            source=self.listing.source,
            tag=self.tag,
            manifest=manifest,
            content=manifest.encode(),
            left_out=self._selection.left_out,
            config=config,
            readme=self._readme,
            facts=facts,
            no_facts=no_facts,
        )

    def _carry_all(self, taken: tuple[Taken, ...]) -> tuple[Layer, ...]:
        """Several files at once, large ones first."""
        order = sorted(taken, key=lambda item: (-self._files[item.path].size, item.path))
        calls = [partial(self._carry, self._files[item.path], item.media_type) for item in order]
        return tuple(all_at_once(calls, self.hub.pace, self.parallel, "mirror"))

    def _carry(self, file: HubFile, media_type: str) -> Layer:
        self.hub.pace.check()
        self.progress.working_on(file.path)
        header = None
        if media_type == WEIGHT_TYPE:
            header = HeaderCollector(file.path, file.size, self._turn)
        if self._is_read_whole(file, header):
            digest = self._carry_small(file)
        elif file.sha256 is not None and self.store.has_blob(file.sha256, file.size):
            digest = file.sha256
            self.progress.moved(file.size)
        else:
            digest = self.store.carry(self.hub, self.listing.source, file, header)
        if header is not None:
            if not header.complete:  # it was there already, or mounted: no byte came past
                self._read_header(file, header, digest)
            found = Survey()
            header.read(found.add)
            with self._counting:
                self._survey.merge(found)
        self.progress.finished(file.path)
        return Layer(file.path, digest, file.size, media_type)

    def _is_read_whole(self, file: HubFile, header: HeaderCollector | None) -> bool:
        if file.path in self._kept or file.path in CONFIGS:
            return True
        return header is None and file.sha256 is None and file.size <= SMALL_BYTES

    def _carry_small(self, file: HubFile) -> Digest:
        content = self._kept.get(file.path)
        if content is None:
            limit = CONFIG_BYTES if file.path in CONFIGS else SMALL_BYTES
            content = self.hub.read(self.listing.source, file, limit)
        if file.path in CONFIGS:
            self._kept[file.path] = content
        else:
            self._kept.pop(file.path, None)
        if file.path == README:
            self._readme = content[:README_BYTES]
        digest = self.store.put_blob(content)
        self.progress.moved(file.size)
        return digest

    def _read_header(self, file: HubFile, header: HeaderCollector, digest: Digest) -> None:
        """The header of a file that is there already: from the store if that is near, else from the hub."""
        buffer = memoryview(bytearray(min(BUFFER_BYTES, max(1, file.size))))
        stored = self.store.open_blob(digest)
        if stored is None:
            self._read_header_from_hub(file, header, buffer)
            return
        with stored:
            offset = 0
            while not header.complete and (piece := stored.read(len(buffer))):
                header.feed(offset, memoryview(piece))
                offset += len(piece)

    def _read_header_from_hub(self, file: HubFile, header: HeaderCollector, buffer: memoryview) -> None:
        failures = 0
        offset = 0
        while not header.complete:
            try:
                end = min(file.size, max(header.wanted, offset + 1, min(file.size, 64 * 1024)))
                if offset >= end or file.size <= PREFIX_BYTES:
                    header.read(lambda tensors: None)  # raises: the file ends within its header
                    return
                window = self.hub.open(self.listing.source, file, offset, end)
                try:
                    offset = window.start
                    while not header.complete and (count := window.download.readinto(buffer)):
                        header.feed(offset, buffer[:count])
                        offset += count
                finally:
                    window.download.close()
            except (LineBroken, WindowRefused) as error:
                failures += 1
                self.hub.wait_or_give_up(failures, file, error)

    # -- what was carried -----------------------------------------------------------------------------------

    def _config(self) -> dict[str, Json]:
        for path in CONFIGS:
            if path in self._kept:
                return model_facts.read_config(self._kept[path])
        return {}

    def _manifest(self, layers: tuple[Layer, ...], config: dict[str, Json]) -> ModelManifest:
        source = self.listing.source
        architectures = model_facts.shape_of(config).architectures
        described = ModelConfig(
            name=source.repo,
            source=f"hf://{source.repo}",
            revision=source.revision,
            architecture=architectures[0] if architectures else "unknown",
            precision=self._survey.precision,
            parameter_size=parameter_size(self._survey.parameters),
        )
        blob = described.encode(layers)
        self.store.put_blob(blob)
        return ModelManifest(
            config=Descriptor.of(CONFIG_TYPE, blob),
            layers=layers,
            source=f"hf://{source.repo}",
            revision=source.revision,
            selection=self.wish.text,
        )

    def _facts(self, config: dict[str, Json]) -> tuple[model_facts.ModelFacts | None, str | None]:
        try:
            return extract(self._survey, config), None
        except (FactsContradict, MalformedConfig) as error:
            # The artifact itself is sound: its digests do not depend on what we can derive from it.
            return None, str(error)


def put_facts(store: Store, subject: Descriptor, facts: model_facts.ModelFacts) -> bytes:
    """Stores the blobs of the facts; returns the manifest that refers to `subject`, which is not stored."""
    blob = canonical_json(facts.as_json())
    store.put_blob(EMPTY_BLOB)
    store.put_blob(blob)
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": model_facts.ARTIFACT_TYPE,
            "config": Descriptor.of(EMPTY_TYPE, EMPTY_BLOB).as_json(),
            "layers": [Descriptor.of(model_facts.ARTIFACT_TYPE, blob).as_json()],
            "subject": subject.as_json(),
        }
    )
