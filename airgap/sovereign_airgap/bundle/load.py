# SPDX-License-Identifier: Apache-2.0
"""The verb `load`: a bundle becomes repositories of a registry, and trusts nothing on the way.

Order is the safety here: the signature before the first request, a claim on the place before any change,
every blob before any manifest, every manifest before any tag, the record of what was loaded before the tags,
and the models' tags last of all. Whatever breaks before that has moved no tag, and the next run sends only
what is not there yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sovereign_airgap import oci
from sovereign_airgap.access import Access
from sovereign_airgap.blobs import read_blob
from sovereign_airgap.bundle import state as states
from sovereign_airgap.bundle.cargo import STATE_REPOSITORY, Cargo, Consignment, survey
from sovereign_airgap.bundle.claim import Claim, claimed
from sovereign_airgap.bundle.index import INDEX_BYTES, Index, Kind, Root
from sovereign_airgap.bundle.layout import INDEX, BundleReader, read, signature_path
from sovereign_airgap.bundle.place import Place, opened
from sovereign_airgap.bundle.referrers import merged
from sovereign_airgap.bundle.shipping import Shipping
from sovereign_airgap.errors import NotSigned, RegistryUnavailable, SizeMismatch, TagConflict, WrongBase
from sovereign_airgap.manifest import INDEX_TYPE, TITLE, Descriptor
from sovereign_airgap.pace import Pace, Patience
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import OciReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.strict_json import Json
from sovereign_airgap.uploads import CHUNK_BYTES, put_blob

if TYPE_CHECKING:
    from sovereign_airgap.signing.keys import PublicKey

_SIGNATURE_BYTES = 1024 * 1024
_SIGNATURE_TYPE = "application/vnd.in-toto+json"
# How often blobs that were collected under our feet are brought again for one manifest.
_REPAIRS = 3
# What models need comes before them.
_TAG_ORDER = (Kind.IMAGE, Kind.CHART, Kind.REFERRERS, Kind.MODEL)


# The bytes of a root's blob, of at most so many bytes, compared with its digest.
Fetch = Callable[[Root, Descriptor, int], bytes]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """All wishes of a load; `base` is a delta's base on disk, where the registry does not hold it."""

    access: Access = field(default_factory=Access)
    keys: tuple[PublicKey, ...] = ()
    threshold: int = 1
    require_signature: bool = False
    allow_downgrade: bool = False
    base: BundleReader | None = None
    patience: Patience = field(default_factory=Patience)
    parallel: int = 4
    chunk: int = CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Placed:
    """One root, and where in the registry it is now."""

    root: Root
    reference: OciReference


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is in the registry now, and what that took. `signed_by` is empty where no keys were given."""

    target: OciReference
    cargo: Cargo
    placed: tuple[Placed, ...]
    signed_by: tuple[str, ...]
    sent: int
    sent_bytes: int
    mounted: int
    present: int
    tags_moved: int


@contextmanager
def fetching(loaded: Loaded, options: LoadOptions) -> Iterator[Fetch]:
    """Reads small blobs of what was loaded, from the registry where a delta left them to its base."""
    stock = loaded.cargo.stock
    with Pace(options.patience) as pace, opened(loaded.target, options.access, pace) as place:

        def fetch(root: Root, blob: Descriptor, limit: int) -> bytes:
            if stock.holder(blob.digest) is None:
                repository = place.repository(root.repository or STATE_REPOSITORY)
                return read_blob(repository, blob, root.name, limit)
            if blob.size > limit:
                raise SizeMismatch(f"{root.name}: expected at most {limit} bytes, found {blob.size}.")
            return stock.read(blob)

        yield fetch


def load(reader: BundleReader, target: OciReference, options: LoadOptions, progress: Progress) -> Loaded:
    """Loads a bundle below `target` (host and prefix); raises a SovereignError, and then the same call goes
    on from what the registry holds."""
    progress.enter("checking")
    # Read once: a medium that gives other bytes the second time must not get them past the signature.
    content = read(reader, INDEX, INDEX_BYTES)
    signed_by = _signatures(reader, content, options)
    cargo = survey(reader, content, options.base)
    with Pace(options.patience) as pace, opened(target, options.access, pace) as place:
        for consignment in cargo.consignments:
            place.full_name(consignment.root.repository or STATE_REPOSITORY)
        what = f"the load of {cargo.index.name} {cargo.index.version}"
        with claimed(place.repository(STATE_REPOSITORY), what) as claim:
            return _Load(place, cargo, options, progress, claim, signed_by).run(target)


def _signatures(reader: BundleReader, index_content: bytes, options: LoadOptions) -> tuple[str, ...]:
    """The ids of the keys that have signed; raises NotSigned or SignatureInvalid."""
    if not options.keys:
        if options.require_signature:
            raise NotSigned(
                "Expected keys to check the bundle's signature with, found none; give them with --key."
            )
        return ()
    from sovereign_airgap.bundle.signatures import signed_by  # late: without keys no cryptography is loaded

    return signed_by(reader, index_content, options.keys, options.threshold)


@dataclass(slots=True)
class _Load:
    place: Place
    cargo: Cargo
    options: LoadOptions
    progress: Progress
    claim: Claim
    signed_by: tuple[str, ...]
    _shipping: Shipping = field(init=False)
    _moved: int = field(init=False, default=0)

    def run(self, target: OciReference) -> Loaded:
        index, digest = self.cargo.index, self.cargo.index_digest
        record = states.recorded(self._state, index.name)
        if not self.options.allow_downgrade:
            trusted = [key.key_id for key in self.options.keys]
            states.require_not_older(record.state if record else None, index, digest, trusted)
        self._require_base(record)
        self._require_free_tags()
        self._shipping = Shipping(
            self.place,
            self.cargo.stock,
            self.progress,
            self.options.parallel,
            self.options.chunk,
            self._base_repositories(record),
        )
        self.progress.expect(len(self.cargo.shipments), self.cargo.size)
        self.progress.enter("loading")
        self._shipping.ship_all(self.cargo.shipments)
        self.progress.enter("publishing")
        for consignment in self.cargo.consignments:
            self._put_documents(consignment)
        self._record(record)
        for kind in _TAG_ORDER:
            for consignment in self.cargo.consignments:
                if consignment.root.kind is kind:
                    self._tag(consignment)
        self.progress.enter("done")
        tally = self._shipping.tally
        return Loaded(
            target=target,
            cargo=self.cargo,
            placed=tuple(
                Placed(root, OciReference(self.place.host, self._name(root), digest=root.descriptor.digest))
                for root in index.roots
                if root.kind is not Kind.FILE
            ),
            signed_by=self.signed_by,
            sent=tally.sent,
            sent_bytes=tally.sent_bytes,
            mounted=tally.mounted,
            present=tally.present,
            tags_moved=self._moved,
        )

    @property
    def _state(self) -> Registry:
        return self.place.repository(STATE_REPOSITORY)

    def _name(self, root: Root) -> str:
        return self.place.full_name(root.repository)

    # -- before the bytes -----------------------------------------------------------------------------------

    def _require_base(self, record: states.Record | None) -> None:
        base = self.cargo.index.base
        if base is None or self.options.base is not None:
            return
        found = None if record is None else record.state.index
        # Our own digest is there where an earlier run was ended between the record and the last tag.
        if found not in (base, self.cargo.index_digest):
            raise WrongBase(
                f"Expected the base {base} of this delta to be what {self.place} was loaded with, found "
                f"{found or 'nothing'}; load that base first, or give it with --base."
            )

    def _base_repositories(self, record: states.Record | None) -> tuple[str, ...]:
        if self.cargo.index.base is None or record is None or record.index_blob is None:
            return ()
        content = read_blob(self._state, record.index_blob, "the index of the base", INDEX_BYTES)
        return tuple(sorted({root.repository or STATE_REPOSITORY for root in Index.parse(content).roots}))

    def _require_free_tags(self) -> None:
        """A model's tag is its commit and never moves: better to say so before the bytes than after."""
        for root in self.cargo.index.of_kind(Kind.MODEL):
            self._tag_is_right(root)

    def _tag_is_right(self, root: Root) -> bool:
        registry = self.place.repository(root.repository)
        found = registry.head_manifest(root.tag)
        if found is not None and found != root.descriptor.digest and root.kind is Kind.MODEL:
            raise TagConflict(
                f"Expected the tag {root.tag} of {registry.repository} to be free or at "
                f"{root.descriptor.digest}, found {found}; the tag was not moved. Find out who pushed it, "
                "then remove it or load below another prefix."
            )
        return found == root.descriptor.digest

    # -- documents ------------------------------------------------------------------------------------------

    def _put_documents(self, consignment: Consignment) -> None:
        root = consignment.root
        if root.kind is Kind.FILE:
            return
        registry = self.place.repository(root.repository)
        for document in consignment.documents:
            if root.kind is Kind.REFERRERS and document == root.descriptor:
                continue  # the list itself is merged into the registry's own
            # Reading it back also tells a manifest that went bad on the registry's disk.
            if registry.find_manifest(str(document.digest)) is None:
                self._put_document(consignment, registry, document)

    def _put_document(self, consignment: Consignment, registry: Registry, document: Descriptor) -> None:
        content = self.cargo.stock.read(document)
        for repairs in range(_REPAIRS + 1):
            try:
                registry.put_manifest(str(document.digest), content, document.media_type)
                return
            except RegistryUnavailable:
                # A blob may have been collected since it was seen. Where all are there, it is something else.
                if repairs == _REPAIRS or not self._bring_again(consignment):
                    raise

    def _bring_again(self, consignment: Consignment) -> bool:
        """Brings those of the root's blobs that are gone; False where none was."""
        before = self._shipping.tally.sent + self._shipping.tally.mounted
        for shipment in self.cargo.shipments:
            if shipment.digest in consignment.blobs:
                self._shipping.ship(shipment)
        return self._shipping.tally.sent + self._shipping.tally.mounted > before

    # -- what is published ----------------------------------------------------------------------------------

    def _record(self, record: states.Record | None) -> None:
        """Before the tags: a run that ends between the two must not be a way back to an older version."""
        before = record.state if record else None
        state = states.after(before, self.cargo.index, self.cargo.index_digest, self.signed_by)
        if state == before:
            return
        reader = self.cargo.stock.readers[0]
        layers: list[dict[str, Json]] = [
            {**root.descriptor.as_json(), "annotations": {TITLE: root.title}}
            for root in self.cargo.index.of_kind(Kind.FILE)
        ]
        for key_id in sorted(self.signed_by):
            path = signature_path(key_id)
            content = read(reader, path, _SIGNATURE_BYTES)
            put_blob(self._state, content)
            envelope = Descriptor.of(_SIGNATURE_TYPE, content).as_json()
            layers.append({**envelope, "annotations": {TITLE: path}})
        self.claim.require()
        states.record(self._state, state, self.cargo.index_content, layers)

    def _tag(self, consignment: Consignment) -> None:
        root = consignment.root
        registry = self.place.repository(root.repository)
        if root.kind is Kind.REFERRERS:
            self._tag_referrers(consignment, registry)
        elif not self._tag_is_right(root):
            self.claim.require()
            registry.put_manifest(
                root.tag, self.cargo.stock.read(root.descriptor), root.descriptor.media_type
            )
            self._moved += 1

    def _tag_referrers(self, consignment: Consignment, registry: Registry) -> None:
        root = consignment.root
        before = registry.find_manifest(root.tag)
        content = merged(
            before,
            self.cargo.stock.read(root.descriptor),
            self._artifact_types(consignment),
            lambda digest: registry.head_manifest(str(digest)) is not None,
        )
        if content != before:
            self.claim.require()
            registry.put_manifest(root.tag, content, INDEX_TYPE)
            self._moved += 1

    def _artifact_types(self, consignment: Consignment) -> dict[str, str]:
        found: dict[str, str] = {}
        for descriptor in consignment.documents:
            document = oci.read(self.cargo.stock.read(descriptor), descriptor.media_type)
            if document.artifact_type is not None:
                found[str(descriptor.digest)] = document.artifact_type
        return found
