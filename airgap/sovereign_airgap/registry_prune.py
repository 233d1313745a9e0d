# SPDX-License-Identifier: Apache-2.0
"""The verb `registry prune`: which tags and manifests nobody needs, and what removing them frees.

What is in use is said by whoever knows it: references, patterns of tags, the bundles that are loaded. Nothing
is guessed, and a reference that the registry does not hold ends the run before anything is removed, because
it may be a misspelt one that is in use. Only names are deleted here; the bytes go with the next garbage
collection.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http import HTTPStatus

from rich.console import Console
from rich.table import Table

from sovereign_airgap import catalogue, oci
from sovereign_airgap.access import Access
from sovereign_airgap.blobs import read_blob
from sovereign_airgap.bundle import state as states
from sovereign_airgap.bundle.cargo import STATE_REPOSITORY
from sovereign_airgap.bundle.claim import TAG_PREFIX, Claim, claimed
from sovereign_airgap.bundle.index import INDEX_BYTES, Index
from sovereign_airgap.bundle.place import Place, opened
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import ArtifactNotFound, InvalidReference, RegistryForbidden
from sovereign_airgap.manifest import fallback_tag
from sovereign_airgap.pace import Pace, Patience
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import OciReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.strict_json import Json

_FALLBACK = "sha256-"
_MAX_DEPTH = 4


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """`repositories` and `keep_tags` are patterns (`*` also matches a slash), the latter of `REPO:TAG`."""

    access: Access = field(default_factory=Access)
    repositories: tuple[str, ...] = ("models/*",)
    keep: tuple[OciReference, ...] = ()
    keep_tags: tuple[str, ...] = ()
    keep_loaded: bool = False
    delete: bool = False
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest with the tags that name it. `why` says what keeps it, empty where nothing does; `size` is
    what all of its blobs take, in bytes."""

    repository: str
    digest: Digest
    tags: tuple[str, ...]
    size: int
    why: str = ""

    def as_json(self) -> dict[str, Json]:
        return {
            "repository": self.repository,
            "digest": str(self.digest),
            "tags": list(self.tags),
            "bytes": self.size,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes and what stays. `freed` counts each blob once, and only those that nothing else needs.

    `deletions` are (repository, digest), parents before their children.
    """

    doomed: tuple[Artifact, ...]
    kept: tuple[Artifact, ...]
    freed: int
    deletions: tuple[tuple[str, Digest], ...]

    @property
    def untagged(self) -> tuple[Artifact, ...]:
        """What is in use and has no tag: a garbage collection that deletes untagged manifests takes it."""
        return tuple(artifact for artifact in self.kept if not artifact.tags)

    def as_json(self) -> dict[str, Json]:
        return {
            "remove": [artifact.as_json() for artifact in self.doomed],
            "keep": [artifact.as_json() for artifact in self.kept],
            "freedBytes": self.freed,
            "keptWithoutTag": [f"{each.repository}@{each.digest}" for each in self.untagged],
        }


def prune(target: OciReference, options: PruneOptions, progress: Progress) -> Plan:
    """Plans, and with `delete` removes; raises a SovereignError. Loads into the same place wait meanwhile."""
    whole = OciReference(target.host)
    with Pace(options.patience) as pace, opened(whole, options.access, pace, deletes=True) as place:
        if not options.delete:
            return _Pruning(place, target, options, progress).plan()
        state = f"{target.repository}/{STATE_REPOSITORY}" if target.repository else STATE_REPOSITORY
        with claimed(place.repository(state), "a prune") as claim:
            pruning = _Pruning(place, target, options, progress)
            plan = pruning.plan()
            pruning.carry_out(plan, claim)
            return plan


@dataclass(slots=True)
class _Reach:
    """What a manifest leads to within its repository: manifests in order, blobs with their sizes."""

    manifests: list[Digest] = field(default_factory=list)
    blobs: dict[Digest, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(self.blobs.values())


@dataclass(slots=True)
class _Holding:
    """One repository: its tags by digest, and why a digest stays."""

    name: str
    registry: Registry
    tags: dict[Digest, list[str]] = field(default_factory=dict)
    why: dict[Digest, str] = field(default_factory=dict)

    def keep(self, digest: Digest, why: str) -> None:
        self.why.setdefault(digest, why)


@dataclass(slots=True)
class _Pruning:
    place: Place
    target: OciReference
    options: PruneOptions
    progress: Progress

    def plan(self) -> Plan:
        self.progress.enter("looking")
        holdings = {holding.name: holding for holding in self._holdings()}
        self._keep_named(holdings)
        if self.options.keep_loaded:
            self._keep_loaded(holdings)
        doomed: list[Artifact] = []
        kept: list[Artifact] = []
        stays: dict[Digest, int] = {}
        goes: dict[Digest, int] = {}
        deletions: list[tuple[str, Digest]] = []
        for holding in holdings.values():
            self._keep_referrers(holding)
            staying: set[Digest] = set()
            for digest, why in sorted(holding.why.items()):
                reach = self._reach(holding, digest)
                stays |= reach.blobs
                staying |= set(reach.manifests)
                tags = tuple(sorted(holding.tags.get(digest, ())))
                kept.append(Artifact(holding.name, digest, tags, reach.size, why))
            for digest in sorted(holding.tags.keys() - holding.why.keys()):
                reach = self._reach(holding, digest)
                goes |= reach.blobs
                # A manifest may be tagged by itself and be a child of one that stays.
                going = [each for each in reach.manifests if each not in staying]
                deletions += [(holding.name, each) for each in going]
                tags = tuple(sorted(holding.tags[digest]))
                doomed.append(Artifact(holding.name, digest, tags, reach.size))
        freed = sum(size for digest, size in goes.items() if digest not in stays)
        shown = [artifact for artifact in kept if self._is_ours(artifact.repository)]
        return Plan(tuple(doomed), tuple(shown), freed, tuple(dict.fromkeys(deletions)))

    def carry_out(self, plan: Plan, claim: Claim) -> None:
        self.progress.enter("removing")
        self.progress.expect(len(plan.doomed), 0)
        for artifact in plan.doomed:
            registry = self.place.repository(artifact.repository)
            for tag in artifact.tags:
                claim.require()
                if registry.head_manifest(tag) == artifact.digest:  # else it was moved since
                    _delete(registry, tag)
            self.progress.finished(artifact.repository)
        for repository, digest in plan.deletions:
            claim.require()
            _delete(self.place.repository(repository), str(digest), must=True)

    # -- what is there --------------------------------------------------------------------------------------

    def _holdings(self) -> Iterable[_Holding]:
        """Every repository: of those that are not looked at, everything stays."""
        for name in catalogue.repositories(self.place.repository(STATE_REPOSITORY)):
            holding = _Holding(name, self.place.repository(name))
            for tag in catalogue.tags(holding.registry):
                digest = None if tag.startswith(TAG_PREFIX) else holding.registry.head_manifest(tag)
                if digest is not None:
                    holding.tags.setdefault(digest, []).append(tag)
                    self._keep_tag(holding, tag, digest)
            yield holding

    def _keep_tag(self, holding: _Holding, tag: str, digest: Digest) -> None:
        if not self._is_ours(holding.name):
            holding.keep(digest, "not looked at")
        for pattern in self.options.keep_tags:
            if fnmatchcase(f"{holding.name}:{tag}", pattern):
                holding.keep(digest, f"--keep-tags {pattern}")

    def _is_ours(self, name: str) -> bool:
        prefix = f"{self.target.repository}/" if self.target.repository else ""
        below = name.removeprefix(prefix)
        if not name.startswith(prefix) or name.endswith(STATE_REPOSITORY):
            return False
        return any(fnmatchcase(below, pattern) for pattern in self.options.repositories)

    # -- what stays -----------------------------------------------------------------------------------------

    def _keep_named(self, holdings: dict[str, _Holding]) -> None:
        for wanted in self.options.keep:
            holding = holdings.get(wanted.repository)
            found = None if holding is None else holding.registry.head_manifest(wanted.target)
            if holding is None or found is None or wanted.digest not in (None, found):
                raise ArtifactNotFound(
                    f"Expected {wanted.name} to be in the registry, because it is to be kept, found none; "
                    "nothing was removed. Take it out of the list, or correct its name."
                )
            holding.keep(found, f"--keep {wanted.name.partition('/')[2]}")

    def _keep_loaded(self, holdings: dict[str, _Holding]) -> None:
        prefix = f"{self.target.repository}/" if self.target.repository else ""
        state = self.place.repository(prefix + STATE_REPOSITORY)
        for name in catalogue.tags(state):
            record = None if name.startswith(TAG_PREFIX) else states.recorded(state, name)
            if record is None or record.index_blob is None:
                continue
            index = Index.parse(read_blob(state, record.index_blob, f"the index of {name}", INDEX_BYTES))
            for root in index.roots:
                holding = holdings.get(prefix + root.repository)
                if holding is not None and root.descriptor.digest in holding.tags:
                    holding.keep(root.descriptor.digest, f"the bundle {name} {index.version}")

    def _keep_referrers(self, holding: _Holding) -> None:
        """Facts and signatures stay with what they are about, and go with it."""
        for digest, tags in holding.tags.items():
            for subject in holding.why.keys() & {each for each in map(_subject, tags) if each is not None}:
                holding.keep(digest, f"about {subject}")

    # -- what that is ---------------------------------------------------------------------------------------

    def _reach(self, holding: _Holding, digest: Digest) -> _Reach:
        found = _Reach()

        def visit(manifest: Digest, depth: int) -> None:
            if manifest in found.blobs or depth > _MAX_DEPTH:
                return
            content = holding.registry.find_manifest(str(manifest))
            if content is None:
                return  # an index with absent children
            found.manifests.append(manifest)
            found.blobs[manifest] = len(content)
            for child in oci.read(content, oci.media_type_of(content)).children:
                if child.media_type in oci.DOCUMENT_TYPES:
                    visit(child.digest, depth + 1)
                else:
                    found.blobs[child.digest] = child.size

        visit(digest, 1)
        return found


def keep_reference(text: str, host: str) -> OciReference:
    """Reads what `--keep` takes: `REPO@sha256:…`, `REPO:TAG`, or either with this registry's host."""
    words = text.removeprefix("oci://")
    try:
        found = OciReference.parse(words if words.startswith(f"{host}/") else f"{host}/{words}")
    except InvalidReference as error:
        raise InvalidReference(f"Expected REPO@sha256:… or REPO:TAG, found {text[:300]!a}.") from error
    if not found.repository or (found.tag is None and found.digest is None):
        raise InvalidReference(f"Expected REPO@sha256:… or REPO:TAG, found {text[:300]!a}.")
    return found


def show(plan: Plan, deleted: bool, console: Console) -> None:
    """Prints the plan for people."""
    table = Table("", "Artifact", "Tags", "Bytes", "Why", box=None, pad_edge=False)
    table.columns[3].justify = "right"
    word = "removed" if deleted else "goes"
    for artifact in (*plan.doomed, *plan.kept):
        name = f"{artifact.repository}@{artifact.digest.hex[:12]}"
        state = "stays" if artifact.why else word
        table.add_row(state, name, ", ".join(artifact.tags) or "none", f"{artifact.size:,}", artifact.why)
    console.print(table)
    console.print(f"{plan.freed:,} bytes that nothing else needs, in {len(plan.doomed):,} artifacts")


def _subject(tag: str) -> Digest | None:
    try:
        digest = Digest(tag.removeprefix(_FALLBACK))
    except InvalidReference:
        return None
    return digest if tag == fallback_tag(digest) else None


def _delete(registry: Registry, target: str, must: bool = False) -> None:
    """Deletes a tag or a manifest. A registry that deletes no tags loses them with their manifest."""
    reply = registry.ask("DELETE", registry.url(f"manifests/{target}"))
    if reply.status in (HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND):
        return
    if must and reply.status == HTTPStatus.METHOD_NOT_ALLOWED:
        raise RegistryForbidden(
            f"Expected {registry.origin} to delete manifests, but it does not; enable deletion "
            "(storage.delete.enabled) in its configuration."
        )
    if must:
        raise registry.unexpected(f"DELETE of the manifest {target}", reply.status, reply.body)
