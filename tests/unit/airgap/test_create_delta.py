# SPDX-License-Identifier: Apache-2.0
"""A delta carries what changed, can be followed on its own, and names its base."""

from __future__ import annotations

from pathlib import Path

import pytest

from sovereign_airgap.bundle.graph import reach
from sovereign_airgap.bundle.index import Kind
from sovereign_airgap.bundle.layout import Directory, read_blob
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.spec import BundleSpec
from sovereign_airgap.bundle.verify import verify
from sovereign_airgap.errors import BundleDefective, DigestMismatch, OlderVersion, SovereignError, WrongBase
from sovereign_airgap.mirror import MirrorOptions, mirror
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import HubReference, OciReference
from tests.unit.airgap.conftest import QUICK
from tests.unit.airgap.creations import SHARED, TWIN, Connected, Opened, digest_of, push_image, two_models
from tests.unit.airgap.models import REPO, write
from tests.unit.faults.corrupter import flip


@pytest.fixture
def old(side: Connected) -> Path:
    """A bundle of the first model, a file and an image."""
    push_image(side.registry, "1.2", seed="old")
    write(side.folder, {"same.txt": b"same" * 5000, "changed.txt": b"old"})
    return side.create(side.folder / "old", spec_of(side, [REPO], "1.2")).path


def spec_of(side: Connected, repos: list[str], tag: str) -> BundleSpec:
    files = [{"path": str(side.folder / name)} for name in ("same.txt", "changed.txt")]
    images = [{"reference": f"{side.registry.host}/tools/pause:{tag}"}]
    return side.spec(models=[{"source": side.source(repo)} for repo in repos], images=images, files=files)


def documents_of(bundle: Path) -> set[str]:
    reader, found = Directory(bundle), set()
    for root in Opened(bundle).index.roots:
        reached = reach(root, lambda each: read_blob(reader, each.digest, each.size))
        found |= {str(document.descriptor.digest) for document in reached.documents}
    return found


def test_a_delta_carries_only_what_its_base_lacks_and_names_it(
    side: Connected, old: Path, models: dict[str, bytes]
) -> None:
    push_image(side.registry, "1.3", seed="old", layers=3)
    write(side.folder, {"changed.txt": b"new"})
    spec = spec_of(side, [REPO, TWIN], "1.3")
    side.hub.requests.clear()
    side.registry.seen.clear()
    delta = side.create(spec=spec, base=open_bundle(old))
    assert delta.base == verify(Directory(old), [], 1, Progress()).index_digest
    assert Opened(delta.path).index.base == delta.base
    assert delta.version == 2
    # Only documents, by which a delta is followed, may be in both.
    both = Opened(delta.path).blobs & Opened(old).blobs
    assert both <= documents_of(delta.path)
    assert digest_of(models[SHARED]) not in Opened(delta.path).blobs
    assert digest_of(b"same" * 5000) not in Opened(delta.path).blobs
    assert digest_of(b"new") in Opened(delta.path).blobs
    found = verify(Directory(delta.path), [], 1, Progress(), base=Directory(old))
    assert found.absent == len(absent(delta.path))
    assert absent(delta.path) <= Opened(old).blobs


def test_of_shards_that_the_base_has_only_the_headers_are_read(side: Connected) -> None:
    files = two_models(side.folder / "hub", width=2048)
    old = side.create(side.folder / "old", side.spec(models=[{"source": side.source(REPO)}]))
    side.hub.requests.clear()
    side.create(base=open_bundle(old.path))
    known = {digest_of(content).removeprefix("sha256:") for content in files.values()}
    asked = [request for request in side.hub.requests if request.origin == "storage"]
    of_base = [each.range for each in asked if any(digest in each.path for digest in known)]
    assert of_base == ["bytes=0-65535"] * 3
    assert len(asked) == 4


def absent(bundle: Path) -> set[str]:
    """What the roots need and the bundle has not."""
    reader, found = Directory(bundle), set()
    for root in Opened(bundle).index.roots:
        reached = reach(root, lambda each: read_blob(reader, each.digest, each.size))
        found |= {str(blob.digest) for blob in reached.blobs}
    return found - Opened(bundle).blobs


def test_a_delta_and_its_base_make_the_bundle_that_would_have_been_made(side: Connected, old: Path) -> None:
    write(side.folder, {"changed.txt": b"new"})
    spec = spec_of(side, [REPO, TWIN], "1.2").model_copy(update={"version": 2})
    whole = Opened(side.create(side.folder / "whole", spec).path)
    delta = Opened(side.create(spec=spec, base=open_bundle(old)).path)
    needed = {blob for blob in whole.blobs if blob not in delta.blobs}
    assert needed - Opened(old).blobs == {
        # The contents say that it is a delta; nothing else differs.
        str(whole.root(Kind.FILE, "CONTENTS.txt").descriptor.digest)
    }
    without = [root for root in whole.index.roots if root.title != "CONTENTS.txt"]
    assert without == [root for root in delta.index.roots if root.title != "CONTENTS.txt"]


def test_a_delta_that_changes_nothing_carries_no_weights(side: Connected, old: Path) -> None:
    delta = side.create(spec=spec_of(side, [REPO], "1.2"), base=open_bundle(old))
    assert Opened(delta.path).blobs & Opened(old).blobs <= documents_of(delta.path)
    assert delta.size < 64 * 1024


def test_a_delta_of_a_delta_and_of_parts_lacks_what_both_have(side: Connected, old: Path) -> None:
    first = side.create(spec=spec_of(side, [REPO, TWIN], "1.2"), base=open_bundle(old), part_size=16 * 1024)
    write(side.folder, {"changed.txt": b"newer"})
    second = side.create(
        side.folder / "second", spec_of(side, [REPO, TWIN], "1.2"), base=open_bundle(first.path)
    )
    assert second.base == first.index_digest
    assert second.version == 3
    assert digest_of(b"newer") in Opened(second.path).blobs
    assert digest_of(b"same" * 5000) not in Opened(second.path).blobs
    assert second.size < 64 * 1024


def test_a_delta_of_a_registry_needs_the_same_bytes(side: Connected, old: Path) -> None:
    options = MirrorOptions(side.options.access, side.hub.endpoint, patience=QUICK)
    sources = []
    for repo in (REPO, TWIN):
        source = HubReference(repo, side.hub.commit(repo))
        made = mirror(source, OciReference(side.registry.host), options, Progress())
        sources.append({"source": str(made.reference)})
    spec = spec_of(side, [REPO, TWIN], "1.2")
    of_hub = side.create(spec=spec, base=open_bundle(old))
    of_registry = side.create(
        side.folder / "other",
        side.spec(models=sources, images=spec.images, files=spec.files),
        base=open_bundle(old),
    )
    assert of_registry.index_digest == of_hub.index_digest
    assert Opened(of_registry.path).blobs == Opened(of_hub.path).blobs


def test_a_base_that_no_site_could_have_is_refused_before_any_byte(side: Connected, old: Path) -> None:
    side.hub.requests.clear()
    spec = spec_of(side, [REPO], "1.2")
    for kind, told, changes in (
        (WrongBase, "to have its name, found other", {"name": "other"}),
        (OlderVersion, "above 1, which its base has, found 1", {"version": 1}),
    ):
        refused: type[SovereignError] = kind
        with pytest.raises(refused, match=told):
            side.create(spec=spec.model_copy(update=changes), base=open_bundle(old))
    (side.folder / "nothing").mkdir()
    with pytest.raises(BundleDefective, match="Expected a bundle in"):
        side.create(spec=spec, base=open_bundle(side.folder / "nothing"))
    model = Opened(old).index.of_kind(Kind.MODEL)[0].descriptor
    flip(old / "blobs/sha256" / model.digest.hex)
    with pytest.raises(DigestMismatch):
        side.create(spec=spec, base=open_bundle(old))
    assert not side.hub.requests
    assert not side.out.exists()
    assert not side.unfinished.exists()
