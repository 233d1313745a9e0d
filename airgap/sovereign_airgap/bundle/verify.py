# SPDX-License-Identifier: Apache-2.0
"""The verb `bundle verify`: whether a bundle is, bit for bit, what its signed index says, and nothing else.

Every check names what it finds and the next one goes on, so that one run tells all that must be copied
again. Cheap checks come first, then every blob is hashed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sovereign_airgap.bundle import bom, signatures
from sovereign_airgap.bundle.defects import Defect, Findings
from sovereign_airgap.bundle.graph import MAX_BLOBS, Reach, reach
from sovereign_airgap.bundle.hashing import hash_all
from sovereign_airgap.bundle.index import INDEX_BYTES, Index, Kind, Root
from sovereign_airgap.bundle.layout import (
    CONTENTS,
    INDEX,
    OCI_LAYOUT,
    OCI_LAYOUT_CONTENT,
    BundleReader,
    blob_digest,
    blob_path,
    read,
    read_blob,
    signature_key_id,
)
from sovereign_airgap.bundle.part_damage import SIGNATURES, name_damaged_parts
from sovereign_airgap.bundle.parts import Parts
from sovereign_airgap.bundle.report import Report, Verified
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import (
    BomContradicts,
    BundleDefective,
    DigestMismatch,
    KeyUnusable,
    MalformedManifest,
    SizeMismatch,
    SovereignError,
    WrongBase,
)
from sovereign_airgap.manifest import Descriptor, ModelManifest, fallback_tag
from sovereign_airgap.progress import Progress
from sovereign_airgap.signing.dsse import ENVELOPE_BYTES, Envelope
from sovereign_airgap.signing.keys import PublicKey

_CONTENTS_BYTES = 16 * 1024 * 1024
_CHART_CONFIG_TYPE = "application/vnd.cncf.helm.config.v1+json"


def verify(
    reader: BundleReader,
    keys: Sequence[PublicKey],
    threshold: int,
    progress: Progress,
    parallel: int | None = None,
    base: BundleReader | None = None,
) -> Verified:
    """Raises BundleDefective naming every defect, or the class of their reason where all have the same one;
    KeyUnusable where there are fewer keys than must have signed."""
    return examine(reader, keys, threshold, progress, parallel, base).verified


def find_defects(
    reader: BundleReader,
    keys: Sequence[PublicKey],
    threshold: int,
    progress: Progress,
    parallel: int | None = None,
    base: BundleReader | None = None,
) -> list[Defect]:
    """The defects alone, by path, at most 200."""
    return list(examine(reader, keys, threshold, progress, parallel, base).defects)


def examine(
    reader: BundleReader,
    keys: Sequence[PublicKey],
    threshold: int,
    progress: Progress,
    parallel: int | None = None,
    base: BundleReader | None = None,
) -> Report:
    """Looks at all of a bundle. Of a delta, blobs that its base has are looked for in `base` where it is
    given; they are not hashed there."""
    return _Examination(reader, keys, threshold, progress, parallel, base).run()


@dataclass(slots=True)
class _Examination:
    reader: BundleReader
    keys: Sequence[PublicKey]
    threshold: int
    progress: Progress
    parallel: int | None
    base: BundleReader | None
    findings: Findings = field(default_factory=Findings)
    sizes: dict[str, int] = field(default_factory=dict)
    index: Index | None = None
    index_digest: Digest | None = None
    needed: dict[str, int] = field(default_factory=dict)
    absent: int = 0
    signed_by: tuple[str, ...] = ()

    def run(self) -> Report:
        self.progress.enter("reading the index")
        hashed: list[str] = []
        if self._list_paths():
            self._check_layout()
            content = self._read_index()
            if self.index is not None:
                self._check_base(self.index)
                if not [root for root in self.index.roots if not self._follow(root)]:
                    self._find_surplus()
                    self._check_bom(self.index)
                self._check_contents(self.index)
                self._check_signatures(content)
            hashed = self._hash_blobs()
        self._name_parts()
        defects, more = self.findings.all()
        self.progress.enter("done")
        size = sum(self.sizes[path] for path in hashed)
        return Report(
            self.reader.describe, self.index, self.index_digest, len(hashed), size, self.absent,
            self.signed_by, defects, more,
        )  # fmt: skip

    # -- paths ----------------------------------------------------------------------------------------------

    def _list_paths(self) -> bool:
        try:
            for entry in self.reader.entries():
                if entry.defect is None:
                    self.sizes[entry.path] = entry.size
                else:
                    self.findings.add(entry.path, f"is {entry.defect}; remove it")
        except SovereignError as error:
            self.findings.error(self.reader.describe, error)
            return False
        return True

    def _check_layout(self) -> None:
        content = self._small(OCI_LAYOUT, len(OCI_LAYOUT_CONTENT))
        if content is not None and content != OCI_LAYOUT_CONTENT:
            self.findings.add(OCI_LAYOUT, "is not that of a bundle; copy it again")

    def _small(self, path: str, limit: int) -> bytes | None:
        """A file that is read whole; None where a defect says why not."""
        if path not in self.sizes:
            self.findings.add(path, "is missing; copy it again")
            return None
        try:
            return read(self.reader, path, limit)
        except SovereignError as error:
            self.findings.error(path, error)
            return None

    # -- the index and what it needs ------------------------------------------------------------------------

    def _read_index(self) -> bytes:
        content = self._small(INDEX, INDEX_BYTES)
        if content is None:
            return b""
        self.index_digest = Digest.of(content)
        if isinstance(self.reader, Parts) and self.reader.list.index != self.index_digest:
            self.findings.add(
                INDEX,
                f"should be {self.reader.list.index} as the list of parts says, is {self.index_digest}: one "
                "of them is of another bundle, or damaged",
                DigestMismatch.reason,
            )
        try:
            self.index = Index.parse(content)
        except SovereignError as error:
            self.findings.error(INDEX, error)
        return content

    def _check_base(self, index: Index) -> None:
        if self.base is None:
            return
        try:
            found = Digest.of(read(self.base, INDEX, INDEX_BYTES))
        except SovereignError as error:
            self.findings.error(self.base.describe, error)
            return
        if found != index.base:
            wanted = index.base or "no base: this is a whole bundle"
            self.findings.add(
                self.base.describe, f"is the bundle {found}; expected {wanted}", WrongBase.reason
            )
            self.base = None  # what it lacks says nothing

    def _follow(self, root: Root) -> bool:
        """Whether the root could be followed to its end; names what is missing or odd on the way."""
        try:
            found = reach(root, self._document)
            for descriptor in (*found.blobs, *(document.descriptor for document in found.documents)):
                self._need(root, descriptor)
            self._check_kind(root, found)
        except _Named:
            return False
        except SovereignError as error:
            self.findings.error(root.name, error)
            return False
        return True

    def _document(self, descriptor: Descriptor) -> bytes:
        """A manifest; what is wrong with the file is said of the file, not of every root that needs it."""
        path = blob_path(descriptor.digest)
        size = self.sizes.get(path)
        if size is None:
            self.findings.add(path, "is missing: a manifest; copy it again")
        elif size != descriptor.size:
            self.findings.add(path, _wrong_size(descriptor.size, size), SizeMismatch.reason)
        else:
            try:
                return read_blob(self.reader, descriptor.digest, descriptor.size)
            except SovereignError as error:
                self.findings.error(path, error)
        raise _Named

    def _need(self, root: Root, descriptor: Descriptor) -> None:
        path = blob_path(descriptor.digest)
        if path in self.needed:
            if self.needed[path] != descriptor.size:
                self.findings.add(
                    root.name,
                    f"gives {descriptor.digest} {descriptor.size} bytes, another root {self.needed[path]}",
                )
            return
        self.needed[path] = descriptor.size
        if len(self.needed) > MAX_BLOBS:
            raise BundleDefective(f"Expected at most {MAX_BLOBS} blobs in a bundle, found more.")
        size = self.sizes.get(path)
        if size is None and self.index is not None and self.index.base is not None:
            size = descriptor.size if self.base is None else self.base.size(path)
            self.absent += size is not None
        if size is None:
            self.findings.add(path, f"is missing, and {root.name} needs it; copy it again")
        elif size != descriptor.size:
            self.findings.add(path, _wrong_size(descriptor.size, size), SizeMismatch.reason)

    def _check_kind(self, root: Root, found: Reach) -> None:
        """Whether a root is what it is called; raises MalformedManifest or UnsafeFileName."""
        if not found.documents:
            return
        top = found.documents[-1]
        match root.kind:
            case Kind.MODEL:
                ModelManifest.parse(top.content)
            case Kind.REFERRERS:
                subjects = {
                    None if document.read.subject is None else fallback_tag(document.read.subject.digest)
                    for document in found.documents[:-1]
                }
                if not top.read.is_index or subjects - {root.tag}:
                    raise MalformedManifest(f"Expected an index of what refers to {root.tag}, found another.")
            case Kind.CHART:
                children = top.read.children
                if top.read.is_index or children[0].media_type != _CHART_CONFIG_TYPE:
                    raise MalformedManifest("Expected the manifest of a Helm chart, found another one.")

    def _find_surplus(self) -> None:
        for path in self.sizes:
            if blob_digest(path) is not None and path not in self.needed:
                self.findings.add(path, "is needed by nothing in the index; remove it")

    # -- what describes and vouches for it ------------------------------------------------------------------

    def _check_contents(self, index: Index) -> None:
        """CONTENTS.txt is no blob and not signed, so the index carries its digest."""
        wanted = next((root for root in index.of_kind(Kind.FILE) if root.title == CONTENTS), None)
        if wanted is None:
            if CONTENTS in self.sizes:
                self.findings.add(CONTENTS, "is not in the index, so nothing vouches for it; remove it")
            return
        content = self._small(CONTENTS, _CONTENTS_BYTES)
        if content is not None and Digest.of(content) != wanted.descriptor.digest:
            self.findings.add(CONTENTS, "is not what the index says; copy it again", DigestMismatch.reason)

    def _check_bom(self, index: Index) -> None:
        root = next((root for root in index.of_kind(Kind.FILE) if root.title == bom.BOM_TITLE), None)
        if root is None:
            self.findings.add(bom.BOM_TITLE, "is missing in the index; create the bundle again")
            return
        path = blob_path(root.descriptor.digest)
        if self.findings.has(path):
            return
        try:
            if root.descriptor.size > bom.BOM_BYTES:
                raise BomContradicts(f"Expected at most {bom.BOM_BYTES} bytes, found {root.descriptor.size}.")
            content = read_blob(self.reader, root.descriptor.digest, root.descriptor.size)
        except SovereignError as error:
            self.findings.error(path, error)
            return
        for at, defect in enumerate(bom.check(content, index, self._document), 1):
            self.findings.add(f"{bom.BOM_TITLE} ({at})", defect, BomContradicts.reason)

    def _check_signatures(self, content: bytes) -> None:
        if self.keys:
            try:
                self.signed_by = signatures.signed_by(self.reader, content, self.keys, self.threshold)
            except KeyUnusable:
                raise
            except SovereignError as error:
                self.findings.error(SIGNATURES, error)
            return
        for path in self.sizes:  # without keys nothing is proven; but a broken file is a broken copy
            if signature_key_id(path) is not None and (envelope := self._small(path, ENVELOPE_BYTES)):
                try:
                    Envelope.parse(envelope)
                except SovereignError as error:
                    self.findings.error(path, error)

    # -- every byte -----------------------------------------------------------------------------------------

    def _hash_blobs(self) -> list[str]:
        """Hashes every blob that is there, needed or not; returns the paths of those that are right."""
        sizes = {
            path: size
            for path, size in self.sizes.items()
            if blob_digest(path) is not None and not self._is_cut(path)
        }
        self.progress.expect(len(sizes), sum(sizes.values()))
        self.progress.enter("hashing")
        right: list[str] = []

        def found(path: str, result: Digest | SovereignError) -> None:
            wanted = blob_digest(path)
            if isinstance(result, SovereignError):
                self.findings.error(path, result)
            elif result != wanted:
                self.findings.add(path, f"holds bytes of {result}; copy it again", DigestMismatch.reason)
            else:
                right.append(path)
            self.progress.finished(path)

        hash_all(sizes, self.reader.ranges, self.parallel, found, self.progress.moved)
        return right

    def _is_cut(self, path: str) -> bool:
        """Whether its size alone says that it cannot be right."""
        return self.needed.get(path, self.sizes[path]) != self.sizes[path]

    def _name_parts(self) -> None:
        """In parts, what a damaged part explains is said of the part: that is what must be copied again."""
        if isinstance(self.reader, Parts) and self.findings.paths:
            self.progress.enter("looking for the damaged parts")
            name_damaged_parts(self.reader, self.findings, self.parallel, self.progress)


class _Named(BundleDefective):
    """The defect is in the findings already."""


def _wrong_size(wanted: int, found: int) -> str:
    way = "cut" if found < wanted else "too long"
    return f"is {way}: expected {wanted} bytes, found {found}; copy it again"
