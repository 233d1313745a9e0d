# SPDX-License-Identifier: Apache-2.0
"""The verb `mirror`: one commit of the hub becomes one artifact in the registry.

Order is the safety here: listing and selection before any byte, every blob before the manifest, the facts
before the tag, the tag last. Whatever breaks before that leaves no tag behind, and the next run skips what
is complete.
"""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from sovereign_airgap import facts as model_facts
from sovereign_airgap.access import Access
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import FactsContradict, MalformedConfig, TagConflict
from sovereign_airgap.extraction import Survey, extract, parameter_size
from sovereign_airgap.hub import WINDOW_BYTES, Hub, WindowRefused
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
from sovereign_airgap.pace import Pace, Patience
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import PUBLIC_ENDPOINT, HubReference, OciReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.safetensors_header import PREFIX_BYTES, HeaderCollector
from sovereign_airgap.selection import MAX_INDEX_BYTES, LeftOut, Selection, Taken, Wish, index_paths, select
from sovereign_airgap.stopping import first_cause
from sovereign_airgap.strict_json import Json
from sovereign_airgap.transfer import Transfer
from sovereign_airgap.uploads import CHUNK_BYTES, put_blob
from sovereign_airgap.wire import BUFFER_BYTES, LineBroken, Wire, tls_context

# Files of git itself are at most 10 MB on the Hub; up to this size they are read whole and looked up first.
SMALL_BYTES = 8 * 1024 * 1024
_CONFIG_BYTES = 4 * 1024 * 1024
_CONFIGS = ("config.json", "params.json")


@dataclass(frozen=True, slots=True)
class MirrorOptions:
    """All wishes of a mirror; the defaults are fit for production."""

    access: Access = field(default_factory=Access)
    endpoint: str = PUBLIC_ENDPOINT
    hub_ca: Path | None = None
    token: str | None = field(default=None, repr=False)
    wish: Wish = field(default_factory=Wish)
    patience: Patience = field(default_factory=Patience)
    parallel: int = 4
    chunk: int = CHUNK_BYTES
    window: int = WINDOW_BYTES
    mount_from: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MirrorResult:
    """What is in the registry now. `no_facts` says why the artifact has none, if it has none."""

    reference: OciReference
    tag: str
    digest: Digest
    size: int
    files: int
    source: HubReference
    left_out: tuple[LeftOut, ...]
    facts: model_facts.ModelFacts | None
    no_facts: str | None


def mirror(
    source: HubReference, target: OciReference, options: MirrorOptions, progress: Progress
) -> MirrorResult:
    """Mirrors one commit; raises a SovereignError, and then no tag has moved."""
    with Pace(options.patience) as pace:
        wire = Wire(pace, tls_context(options.hub_ca), "--hub-ca")
        try:
            hub = Hub(options.endpoint, wire, pace, options.token, options.window)
            progress.enter("listing")
            listing = hub.list(source)
            if not target.repository:
                target = target.with_repository(listing.source.default_repository())
            with options.access.registry(target, pace, push=True) as registry:
                return _Mirror(hub, registry, listing, options, progress).run(target)
        finally:
            wire.close()


@dataclass(slots=True)
class _Mirror:
    hub: Hub
    registry: Registry
    listing: Listing
    options: MirrorOptions
    progress: Progress
    survey: Survey = field(default_factory=Survey)
    kept: dict[str, bytes] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def run(self, target: OciReference) -> MirrorResult:
        source = self.listing.source
        files = {file.path: file for file in self.listing.files}
        self.progress.enter("selecting")
        selection = self._select(files)
        total = sum(files[taken.path].size for taken in selection.taken)
        self.progress.expect(len(selection.taken), total)
        self.progress.enter("mirroring")
        layers = self._carry_all(selection.taken, files)
        self.progress.enter("publishing")
        config = self._config()
        manifest = self._manifest(layers, config)
        content = manifest.encode()
        digest = Digest.of(content)
        tag = self.options.wish.tag(source.revision)
        self._require_tag_free(tag, digest)
        facts, no_facts = self._facts(config)
        if facts is not None:
            self._put_facts(Descriptor(MANIFEST_TYPE, digest, len(content)), facts)
        # From here on the artifact exists for readers.
        self.registry.put_manifest(tag, content)
        if target.tag is not None and target.tag != tag:
            self.registry.put_manifest(target.tag, content)
        self.progress.enter("done")
        return MirrorResult(
            reference=target.with_digest(digest),
            tag=tag,
            digest=digest,
            size=manifest.size,
            files=len(layers),
            source=source,
            left_out=selection.left_out,
            facts=facts,
            no_facts=no_facts,
        )

    # -- before the bytes -----------------------------------------------------------------------------------

    def _select(self, files: dict[str, HubFile]) -> Selection:
        paths = tuple(files)
        indices = index_paths(paths, self.options.wish)
        for path in indices:
            self.kept[path] = self.hub.read(self.listing.source, files[path], MAX_INDEX_BYTES)
        return select(paths, self.options.wish, {path: self.kept[path] for path in indices})

    # -- the bytes ------------------------------------------------------------------------------------------

    def _carry_all(self, taken: tuple[Taken, ...], files: dict[str, HubFile]) -> tuple[Layer, ...]:
        """Several files at once, large ones first; the first failure ends the others."""
        order = sorted(taken, key=lambda item: (-files[item.path].size, item.path))
        with ThreadPoolExecutor(self.options.parallel, thread_name_prefix="mirror") as pool:
            futures = [pool.submit(self._carry, files[item.path], item.media_type) for item in order]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                if all(future.exception() is None for future in done):
                    return tuple(future.result() for future in futures)
            except BaseException:
                self.hub.pace.stop()
                raise
            finally:
                for future in futures:
                    future.cancel()
            self.hub.pace.stop()
        errors = [future.exception() for future in futures if future.done() and not future.cancelled()]
        raise first_cause(errors)

    def _carry(self, file: HubFile, media_type: str) -> Layer:
        self.hub.pace.check()
        self.progress.working_on(file.path)
        header = None
        if media_type == WEIGHT_TYPE:
            header = HeaderCollector(file.path, file.size, self._turn)
        if self._is_read_whole(file, header):
            digest = self._carry_small(file)
        elif file.sha256 is not None and self.registry.has_blob(file.sha256, file.size):
            digest = file.sha256
            if header is not None:
                self._read_header(file, header)
            self.progress.moved(file.size)
        else:
            options = self.options
            digest = Transfer(
                self.hub, self.listing.source, self.registry, file, self.progress, header, options.chunk,
                options.mount_from,
            ).run()  # fmt: skip
        if header is not None:
            if not header.complete:  # mounted: no byte came past
                self._read_header(file, header)
            found = Survey()
            header.read(found.add)
            with self._counting:
                self.survey.merge(found)
        self.progress.finished(file.path)
        return Layer(file.path, digest, file.size, media_type)

    def _is_read_whole(self, file: HubFile, header: HeaderCollector | None) -> bool:
        if file.path in self.kept or file.path in _CONFIGS:
            return True
        return header is None and file.sha256 is None and file.size <= SMALL_BYTES

    def _carry_small(self, file: HubFile) -> Digest:
        content = self.kept.get(file.path)
        if content is None:
            limit = _CONFIG_BYTES if file.path in _CONFIGS else SMALL_BYTES
            content = self.hub.read(self.listing.source, file, limit)
        if file.path in _CONFIGS:
            self.kept[file.path] = content
        else:
            self.kept.pop(file.path, None)
        digest = put_blob(self.registry, content)
        self.progress.moved(file.size)
        return digest

    def _read_header(self, file: HubFile, header: HeaderCollector) -> None:
        """The header of a file that the registry holds already: the first bytes, from the hub."""
        failures = 0
        buffer = memoryview(bytearray(min(BUFFER_BYTES, max(1, file.size))))
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

    # -- what is published ----------------------------------------------------------------------------------

    def _config(self) -> dict[str, Json]:
        for path in _CONFIGS:
            if path in self.kept:
                return model_facts.read_config(self.kept[path])
        return {}

    def _manifest(self, layers: tuple[Layer, ...], config: dict[str, Json]) -> ModelManifest:
        source = self.listing.source
        architectures = model_facts.shape_of(config).architectures
        described = ModelConfig(
            name=source.repo,
            source=f"hf://{source.repo}",
            revision=source.revision,
            architecture=architectures[0] if architectures else "unknown",
            precision=self.survey.precision,
            parameter_size=parameter_size(self.survey.parameters),
        )
        blob = described.encode(layers)
        put_blob(self.registry, blob)
        return ModelManifest(
            config=Descriptor.of(CONFIG_TYPE, blob),
            layers=layers,
            source=f"hf://{source.repo}",
            revision=source.revision,
            selection=self.options.wish.text,
        )

    def _facts(self, config: dict[str, Json]) -> tuple[model_facts.ModelFacts | None, str | None]:
        try:
            return extract(self.survey, config), None
        except (FactsContradict, MalformedConfig) as error:
            # The artifact itself is sound: its digests do not depend on what we can derive from it.
            return None, str(error)

    def _put_facts(self, subject: Descriptor, facts: model_facts.ModelFacts) -> None:
        blob = canonical_json(facts.as_json())
        put_blob(self.registry, EMPTY_BLOB)
        put_blob(self.registry, blob)
        content = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": model_facts.ARTIFACT_TYPE,
                "config": Descriptor.of(EMPTY_TYPE, EMPTY_BLOB).as_json(),
                "layers": [Descriptor.of(model_facts.ARTIFACT_TYPE, blob).as_json()],
                "subject": subject.as_json(),
            }
        )
        self.registry.put_referrer(subject.digest, content, model_facts.ARTIFACT_TYPE)

    def _require_tag_free(self, tag: str, digest: Digest) -> None:
        found = self.registry.head_manifest(tag)
        if found is not None and found != digest:
            raise TagConflict(
                f"Expected the tag {tag} of {self.registry.repository} to be free or at {digest}, found "
                f"{found}; the tag was not moved. Find out who pushed it, then remove it or mirror to "
                "another repository."
            )
