# SPDX-License-Identifier: Apache-2.0
"""The verb `bundle create`: what a spec names becomes a bundle, in one copy.

Order: look at everything, carry the blobs, then the bill of materials, then freeze the index, then sign. All
of it happens beside the final path, which appears by one rename; so however a run ends, nothing that looks
like a bundle is there before it is one, and the next run goes on with the blobs that verify.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from sovereign_airgap.access import Access
from sovereign_airgap.bundle import bom, contents
from sovereign_airgap.bundle.charts import ChartSource
from sovereign_airgap.bundle.delta_base import Base
from sovereign_airgap.bundle.files import FileSource
from sovereign_airgap.bundle.graph import needed
from sovereign_airgap.bundle.images import DEFAULT_PLATFORM, ImageSource
from sovereign_airgap.bundle.index import BOM_TYPE, INDEX_BYTES, MAX_ROOTS, Index, Kind, Root
from sovereign_airgap.bundle.items import Item, ModelItem
from sovereign_airgap.bundle.layout import (
    CONTENTS,
    INDEX,
    BundleReader,
    Directory,
    blob_digest,
    read,
    read_blob,
)
from sovereign_airgap.bundle.models import HubModelSource, RegistryModelSource
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.signatures import sign
from sovereign_airgap.bundle.source import Source
from sovereign_airgap.bundle.spec import BundleSpec
from sovereign_airgap.bundle.unfinished import Unfinished
from sovereign_airgap.bundle.workplace import Workplace
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import InvalidSpec
from sovereign_airgap.hub import WINDOW_BYTES, Hub
from sovereign_airgap.manifest import Descriptor
from sovereign_airgap.names import require_safe_set
from sovereign_airgap.pace import Pace, Patience
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import PUBLIC_ENDPOINT, HubReference
from sovereign_airgap.signing.keys import PrivateKey
from sovereign_airgap.wire import Wire, tls_context

_CONTENTS_TYPE = "text/plain"


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """All wishes beside the spec; the defaults are fit for production.

    `base` makes a delta to it. `part_size` (bytes) makes parts instead of a directory. `key` signs, with the
    time `created` (default: now).
    """

    access: Access = field(default_factory=Access)
    endpoint: str = PUBLIC_ENDPOINT
    hub_ca: Path | None = None
    token: str | None = field(default=None, repr=False)
    patience: Patience = field(default_factory=Patience)
    platform: str = DEFAULT_PLATFORM
    base: BundleReader | None = None
    part_size: int | None = None
    key: PrivateKey | None = field(default=None, repr=False)
    created: datetime | None = None
    parallel: int = 4
    window: int = WINDOW_BYTES
    direct: bool = True


@dataclass(frozen=True, slots=True)
class CreateResult:
    """What lies at `path` now: a directory, or a folder of parts. `size` in bytes, of the `blobs` in it.
    `notes` say what stayed behind, and which model has no facts."""

    path: Path
    name: str
    version: int
    index_digest: Digest
    blobs: int
    size: int
    base: Digest | None
    notes: tuple[str, ...]


def create(spec: BundleSpec, out: Path, options: CreateOptions, progress: Progress) -> CreateResult:
    """Makes the bundle at `out`; raises a SovereignError, and then nothing is at `out`."""
    base = None if options.base is None else Base.read(options.base)
    if base is not None:
        spec = spec.model_copy(update={"version": base.version_after(spec.name, spec.version)})
    task = f"{spec!r} {options.platform} {base and base.digest} {options.key and options.key.key_id}"
    place = Workplace(out, task, options.part_size)
    notes: list[str] = []
    with place.entered():
        if not place.is_frozen():
            with Pace(options.patience) as pace:
                to = Unfinished(
                    place.bundle, pace, progress, {} if base is None else base.sizes, options.direct
                )
                to.begin()
                with _sources(spec, options, pace, progress) as sources:
                    items = _carried(sources, to, progress)
                notes += _notes(items)
                progress.enter("publishing")
                _freeze(spec, base, items, to)
            if options.key is not None:
                sign(place.bundle, options.key, options.created or datetime.now(UTC))
        place.publish(progress)
    progress.enter("done")
    return _result(out, notes)


@contextmanager
def _sources(
    spec: BundleSpec, options: CreateOptions, pace: Pace, progress: Progress
) -> Iterator[Sequence[Source]]:
    """One source for each thing that the spec names, in its order."""
    with ExitStack() as stack:
        hub: Hub | None = None
        found: list[Source] = []
        for model in spec.models:
            if isinstance(model.source, HubReference):
                if hub is None:
                    wire = Wire(pace, tls_context(options.hub_ca), "--hub-ca")
                    stack.callback(wire.close)
                    hub = Hub(options.endpoint, wire, pace, options.token, options.window)
                found.append(HubModelSource(model, hub, progress, options.parallel))
            else:
                found.append(RegistryModelSource(model, options.access, pace, progress, options.parallel))
        for image in spec.images:
            platform = image.platform or options.platform
            found.append(
                ImageSource(image.reference, platform, options.access, pace, progress, options.parallel)
            )
        found += [ChartSource(chart.path, progress) for chart in spec.charts]
        found += [FileSource(file, progress) for file in spec.files]
        yield found


def _carried(sources: Sequence[Source], to: Unfinished, progress: Progress) -> list[Item]:
    """Looks at everything before the first large byte, then brings it."""
    progress.enter("looking")
    surveys = []
    for source in sources:
        progress.working_on(source.describe)
        surveys.append(source.survey(to))
    _require_distinct(name for survey in surveys for name in survey.names)
    to.require_room(
        (blob for survey in surveys for blob in survey.blobs), sum(survey.more for survey in surveys)
    )
    progress.expect(sum(survey.files for survey in surveys), sum(survey.size for survey in surveys))
    progress.enter("carrying")
    return [item for source in sources for item in source.carry(to)]


def _freeze(spec: BundleSpec, base: Base | None, items: Sequence[Item], to: Unfinished) -> None:
    """The bill, the text for people, the index; from here on it is a bundle."""
    name, version = spec.name, spec.version or 1
    items = _with_own_licenses(items)
    digest = None if base is None else base.digest
    bill = bom.build(name, version, items)
    to.put_document(bill)
    text = contents.render(name, version, items, digest)
    to.put_document(text)
    roots = [
        *(root for item in items for root in item.roots),
        Root(Kind.FILE, Descriptor.of(BOM_TYPE, bill), title=bom.BOM_TITLE),
        Root(Kind.FILE, Descriptor.of(_CONTENTS_TYPE, text), title=CONTENTS),
    ]
    if len(roots) > MAX_ROOTS:
        raise InvalidSpec(f"Expected at most {MAX_ROOTS} things in a bundle, found {len(roots)}; make two.")
    _require_distinct(root.name for root in roots if root.kind is not Kind.REFERRERS)
    require_safe_set(root.title for root in roots if root.kind is Kind.FILE)
    index = Index(name, version, tuple(roots), digest)
    reader = Directory(to.directory)
    wanted = needed(index, lambda document: read_blob(reader, document.digest, document.size))
    for blob, size in wanted.items():
        assert to.has_blob(blob, size), f"{blob} was never carried"
    to.freeze(index.encode(), text, wanted)


def _with_own_licenses(items: Sequence[Item]) -> list[Item]:
    """Two commits of one model have two licences: their titles then name the commit too."""
    count = Counter(item.root.repository for item in items if isinstance(item, ModelItem))
    found: list[Item] = []
    for item in items:
        if isinstance(item, ModelItem) and count[item.root.repository] > 1:
            prefix = f"licenses/{item.root.repository}/"
            licenses = tuple(
                replace(root, title=f"{prefix}{item.root.tag}/{root.title.removeprefix(prefix)}")
                for root in item.licenses
            )
            item = replace(item, licenses=licenses)
        found.append(item)
    return found


def _require_distinct(names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InvalidSpec(
            f"Expected every name once, found {min(twice)!a} twice; name it once, or another way."
        )


def _notes(items: Sequence[Item]) -> Iterator[str]:
    for item in items:
        if isinstance(item, ModelItem):
            for file in item.left_out:
                yield f"left out: {item.root.repository}: {ascii(file.path)[1:-1]} {file.why}"
            if item.no_facts is not None:
                yield f"no facts: {item.root.repository}: {item.no_facts}"


def _result(out: Path, notes: Sequence[str]) -> CreateResult:
    reader = open_bundle(out)
    content = read(reader, INDEX, INDEX_BYTES)
    index = Index.parse(content)
    sizes = [entry.size for entry in reader.entries() if blob_digest(entry.path) is not None]
    return CreateResult(
        out, index.name, index.version, Digest.of(content), len(sizes), sum(sizes), index.base, tuple(notes)
    )
