# SPDX-License-Identifier: Apache-2.0
"""The verb `mirror`: one commit of the hub becomes one artifact in the registry.

Order is the safety here: listing and selection before any byte, every blob before the manifest, the facts
before the tag, the tag last. Whatever breaks before that leaves no tag behind, and the next run skips what
is complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sovereign_airgap import facts as model_facts
from sovereign_airgap.access import Access
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import TagConflict
from sovereign_airgap.hub import WINDOW_BYTES, Hub
from sovereign_airgap.hub_model import Assembled, HubModel, put_facts
from sovereign_airgap.pace import Pace, Patience
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import PUBLIC_ENDPOINT, HubReference, OciReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.selection import LeftOut, Wish
from sovereign_airgap.transfer import RegistryStore
from sovereign_airgap.uploads import CHUNK_BYTES
from sovereign_airgap.wire import Wire, tls_context


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
                store = RegistryStore(registry, progress, options.chunk, options.mount_from)
                model = HubModel(hub, listing, options.wish, store, progress, options.parallel)
                progress.enter("selecting")
                files = model.select()
                progress.expect(len(files), sum(file.size for file in files))
                progress.enter("mirroring")
                assembled = model.carry()
                progress.enter("publishing")
                _publish(assembled, store, target.tag)
                progress.enter("done")
                return _result(assembled, target)
        finally:
            wire.close()


def _publish(model: Assembled, store: RegistryStore, extra_tag: str | None) -> None:
    registry, digest = store.registry, model.descriptor.digest
    _require_tag_free(registry, model.tag, digest)
    if model.facts is not None:
        manifest = put_facts(store, model.descriptor, model.facts)
        registry.put_referrer(digest, manifest, model_facts.ARTIFACT_TYPE)
    # From here on the artifact exists for readers.
    registry.put_manifest(model.tag, model.content)
    if extra_tag is not None and extra_tag != model.tag:
        registry.put_manifest(extra_tag, model.content)


def _require_tag_free(registry: Registry, tag: str, digest: Digest) -> None:
    found = registry.head_manifest(tag)
    if found is not None and found != digest:
        raise TagConflict(
            f"Expected the tag {tag} of {registry.repository} to be free or at {digest}, found "
            f"{found}; the tag was not moved. Find out who pushed it, then remove it or mirror to "
            "another repository."
        )


def _result(model: Assembled, target: OciReference) -> MirrorResult:
    digest = model.descriptor.digest
    return MirrorResult(
        reference=target.with_digest(digest),
        tag=model.tag,
        digest=digest,
        size=model.manifest.size,
        files=len(model.manifest.layers),
        source=model.source,
        left_out=model.left_out,
        facts=model.facts,
        no_facts=model.no_facts,
    )
