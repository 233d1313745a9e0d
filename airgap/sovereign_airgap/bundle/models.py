# SPDX-License-Identifier: Apache-2.0
"""Models of a bundle: a commit of the hub, by the code that mirrors use, or an artifact of a registry as it
is, with its facts and signatures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from sovereign_airgap.access import Access
from sovereign_airgap.bundle.attached import Attached, attach_facts, attached_to, facts_among, referrers_root
from sovereign_airgap.bundle.card import Card
from sovereign_airgap.bundle.index import Kind, Root
from sovereign_airgap.bundle.items import ModelItem
from sovereign_airgap.bundle.resources import Resource, licenses_of, read_resource
from sovereign_airgap.bundle.source import Survey
from sovereign_airgap.bundle.spec import ModelSpec
from sovereign_airgap.bundle.unfinished import Unfinished
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import InvalidReference, MalformedManifest, NameRequired
from sovereign_airgap.facts import read_config, require_agreement
from sovereign_airgap.hub import Hub
from sovereign_airgap.hub_model import CONFIGS, README, README_BYTES, SMALL_BYTES, HubModel
from sovereign_airgap.manifest import MANIFEST_TYPE, WEIGHT_TYPE, Descriptor, Layer, ModelManifest, commit_tag
from sovereign_airgap.pace import Pace
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import MODEL_PREFIX, HubReference, OciReference, is_tag
from sovereign_airgap.registry import Registry
from sovereign_airgap.stopping import all_at_once
from sovereign_airgap.strict_json import Json


@dataclass(slots=True)
class HubModelSource:
    """A commit of the hub."""

    spec: ModelSpec
    hub: Hub
    progress: Progress
    parallel: int = 4
    _model: HubModel | None = None
    _resource: Resource | None = None
    _repository: str = ""

    @property
    def describe(self) -> str:
        return str(self.spec.source)

    def survey(self, to: Unfinished) -> Survey:
        source = self.spec.source
        assert isinstance(source, HubReference)
        listing = self.hub.list(source)
        self._model = HubModel(self.hub, listing, self.spec.wish, to, self.progress, self.parallel)
        files = self._model.select()
        if self.spec.manifest is not None:
            self._resource = read_resource(self.spec.manifest)
            self._resource.require(f"hf://{listing.source.repo}", source.revision, self.spec.wish.text, None)
        self._repository = self.spec.repository or listing.source.default_repository()
        known = [(file.sha256, file.size) for file in files if file.sha256 is not None]
        blobs = tuple(Descriptor(WEIGHT_TYPE, digest, size) for digest, size in known)
        more = sum(file.size for file in files if file.sha256 is None)
        return Survey(_names(self._repository, self._model.tag, self._resource), len(files), blobs, more)

    def carry(self, to: Unfinished) -> tuple[ModelItem, ...]:
        assert self._model is not None
        model = self._model.carry()
        self._model = None  # a listing of thousands of files is not needed any more
        to.put_document(model.content)
        root = Root(Kind.MODEL, model.descriptor, repository=self._repository, tag=model.tag)
        attached = () if model.facts is None else (attach_facts(to, model.descriptor, model.facts),)
        item = ModelItem(
            root=root,
            manifest=model.manifest,
            config=model.config,
            facts=model.facts,
            card=Card.parse(model.readme),
            referrers=referrers_root(to, root, attached),
            licenses=licenses_of(root, model.manifest),
            resource=None if self._resource is None else self._resource.root(to, root),
            left_out=model.left_out,
            no_facts=model.no_facts,
        )
        return (item,)


@dataclass(slots=True)
class RegistryModelSource:
    """An artifact of a registry, at a digest or at the tag of a commit."""

    spec: ModelSpec
    access: Access
    pace: Pace
    progress: Progress
    parallel: int = 4
    _content: bytes = b""
    _manifest: ModelManifest | None = None
    _attached: tuple[Attached, ...] = ()
    _resource: Resource | None = None
    _repository: str = ""

    @property
    def describe(self) -> str:
        return str(self.spec.source)

    @property
    def reference(self) -> OciReference:
        assert isinstance(self.spec.source, OciReference)
        return self.spec.source

    def survey(self, to: Unfinished) -> Survey:
        with self.access.registry(self.reference, self.pace, push=False) as registry:
            self._content = registry.get_manifest(self.reference.target)
            self._manifest = manifest = ModelManifest.parse(self._content)
            self._attached = attached_to(registry, Descriptor.of(MANIFEST_TYPE, self._content))
        if not is_tag(manifest.revision):
            raise MalformedManifest(
                f"Expected {self.describe} to name its commit, found {manifest.revision[:100]!a}."
            )
        if self.spec.manifest is not None:
            self._resource = read_resource(self.spec.manifest)
            self._resource.require(
                manifest.source, manifest.revision, manifest.selection, Digest.of(self._content)
            )
        self._repository = self.spec.repository or self._default_repository(manifest)
        tag = commit_tag(manifest.revision, manifest.selection)
        blobs = (manifest.config, *(_descriptor(layer) for layer in manifest.layers))
        return Survey(_names(self._repository, tag, self._resource), len(blobs), blobs)

    def carry(self, to: Unfinished) -> tuple[ModelItem, ...]:
        manifest = self._manifest
        assert manifest is not None
        order = sorted(manifest.layers, key=lambda layer: (-layer.size, layer.path))
        with self.access.registry(self.reference, self.pace, push=False) as registry:
            calls = [partial(self._fetch, to, registry, _descriptor(layer), layer.path) for layer in order]
            calls.append(partial(self._fetch, to, registry, manifest.config, "the config"))
            all_at_once(calls, self.pace, self.parallel, "model")
            small = {layer.path: layer for layer in manifest.layers if layer.path in (*CONFIGS, README)}
            config = _config({path: _read(to, registry, small[path]) for path in CONFIGS if path in small})
            readme = small.get(README)
            shown = b"" if readme is None or readme.size > SMALL_BYTES else _read(to, registry, readme)
        facts = facts_among(self._attached)
        if facts is not None:
            require_agreement(facts, config)
        to.put_document(self._content)
        root = Root(
            Kind.MODEL,
            Descriptor.of(MANIFEST_TYPE, self._content),
            repository=self._repository,
            tag=commit_tag(manifest.revision, manifest.selection),
        )
        item = ModelItem(
            root=root,
            manifest=manifest,
            config=config,
            facts=facts,
            card=Card.parse(shown[:README_BYTES]),
            referrers=referrers_root(to, root, self._attached),
            licenses=licenses_of(root, manifest),
            resource=None if self._resource is None else self._resource.root(to, root),
        )
        return (item,)

    def _fetch(self, to: Unfinished, registry: Registry, blob: Descriptor, what: str) -> None:
        self.progress.working_on(what)
        to.fetch(registry, blob, ascii(what))
        self.progress.finished(what)

    def _default_repository(self, manifest: ModelManifest) -> str:
        if self.reference.repository.startswith(MODEL_PREFIX):
            return self.reference.repository
        try:
            return HubReference.parse(f"{manifest.source}@{manifest.revision}").default_repository()
        except (InvalidReference, NameRequired) as error:
            raise NameRequired(
                f"Expected {self.describe} below {MODEL_PREFIX}, or made from a commit of the hub, found "
                "neither; give the model a `repository` in the spec."
            ) from error


def _names(repository: str, tag: str, resource: Resource | None) -> tuple[str, ...]:
    model = f"{repository}:{tag}"
    return (model,) if resource is None else (model, resource.title)


def _descriptor(layer: Layer) -> Descriptor:
    return Descriptor(layer.media_type, layer.digest, layer.size)


def _read(to: Unfinished, registry: Registry, layer: Layer) -> bytes:
    """A small file whole: from here, or from the registry where only the base has it."""
    return to.small(registry, _descriptor(layer), ascii(layer.path), SMALL_BYTES)


def _config(contents: dict[str, bytes]) -> dict[str, Json]:
    """The first of CONFIGS that the model has, parsed."""
    return next((read_config(content) for content in contents.values()), {})
