# SPDX-License-Identifier: Apache-2.0
"""Bundles whose every digest is right, and which are refused because of what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sovereign_airgap.bundle.index import BOM_TYPE, Index, Kind, Root
from sovereign_airgap.bundle.layout import CONTENTS, INDEX, blob_path
from sovereign_airgap.bundle.split import split
from sovereign_airgap.manifest import INDEX_TYPE, MANIFEST_TYPE, Descriptor, canonical_json
from sovereign_airgap.strict_json import Json
from tests.unit.airgap.bundles import (
    BOM,
    COMMIT_ONE,
    IMAGE_CONFIG_TYPE,
    IMAGE_LAYER_TYPE,
    Draft,
    a_bundle,
    a_root,
    index_of,
    model_files,
)
from tests.unit.airgap.verifying import found_in


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return a_bundle(tmp_path / "bundle")


# -- manifests that lie -------------------------------------------------------------------------------------


def raw_manifest(draft: Draft, content: bytes, *, media_type: str = MANIFEST_TYPE) -> Root:
    return draft.root(Kind.IMAGE, draft.blob(content, media_type), "images/bad", "v1")


def a_manifest(draft: Draft, **changes: Json) -> dict[str, Json]:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": draft.blob(b"{}", IMAGE_CONFIG_TYPE).as_json(),
        "layers": [draft.blob(b"layer", IMAGE_LAYER_TYPE).as_json()],
        **changes,
    }


def changed_layer(**changes: Json) -> Callable[[Draft], Root]:
    def build(draft: Draft) -> Root:
        layer = {**draft.blob(b"layer", IMAGE_LAYER_TYPE).as_json(), **changes}
        return raw_manifest(draft, json.dumps(a_manifest(draft, layers=[layer])).encode())

    return build


def too_large(draft: Draft) -> Root:
    return raw_manifest(draft, canonical_json(a_manifest(draft, annotations={"x": "y" * (4 << 20)})))


def duplicate_keys(draft: Draft) -> Root:
    text = json.dumps(a_manifest(draft))
    return raw_manifest(
        draft, text.replace('"schemaVersion": 2', '"schemaVersion": 2, "layers": []').encode()
    )


def recursion(draft: Draft) -> Root:
    inner = draft.manifest(draft.blob(b"{}", IMAGE_CONFIG_TYPE), [])
    for _ in range(6):
        inner = draft.index_of([inner])
    return draft.root(Kind.IMAGE, inner, "images/bad", "v1")


def wrong_type(draft: Draft) -> Root:
    return raw_manifest(draft, canonical_json(a_manifest(draft, mediaType=INDEX_TYPE)))


def two_sizes_in_one(draft: Draft) -> Root:
    layer = draft.blob(b"layer", IMAGE_LAYER_TYPE)
    other = Descriptor(IMAGE_LAYER_TYPE, layer.digest, layer.size + 1)
    return draft.root(Kind.IMAGE, draft.manifest(draft.blob(b"{}"), [layer, other]), "images/bad", "v1")


def two_sizes_in_two(draft: Draft) -> Root:
    layer = draft.blob(b"image layer", IMAGE_LAYER_TYPE)
    other = Descriptor(IMAGE_LAYER_TYPE, layer.digest, layer.size + 1)
    draft.image()
    return draft.root(Kind.IMAGE, draft.manifest(draft.blob(b"{}"), [other]), "images/bad", "v1")


def missing_platform(draft: Draft) -> Root:
    absent = Descriptor.of(MANIFEST_TYPE, b"of a platform that nobody copied")
    return draft.root(Kind.IMAGE, draft.index_of([absent]), "images/bad", "v1")


def model_that_is_an_image(draft: Draft) -> Root:
    return draft.root(Kind.MODEL, draft.image().descriptor, "models/bad", "v1")


def model_that_climbs(draft: Draft) -> Root:
    return draft.model("models/bad", COMMIT_ONE, {"../../etc/passwd": b"x"})


def chart_that_is_an_image(draft: Draft) -> Root:
    return draft.root(Kind.CHART, draft.image().descriptor, "charts/bad", "1")


def referrers_of_another(draft: Draft) -> Root:
    model = draft.model("models/bad", COMMIT_ONE, model_files("bad"))
    found = next(root for root in draft.roots if root.kind is Kind.REFERRERS)
    draft.roots.remove(found)
    assert model
    return draft.root(Kind.REFERRERS, found.descriptor, "models/bad", "sha256-" + "a" * 64)


# What is built, the name of the defect's path, and its reason.
LIES: dict[str, tuple[Callable[[Draft], Root], str, str]] = {
    "a manifest over 4 MiB": (too_large, "images/bad:v1", "BundleDefective"),
    "duplicate keys": (duplicate_keys, "images/bad:v1", "MalformedManifest"),
    "endless indexes": (recursion, "images/bad:v1", "BundleDefective"),
    "a manifest that says it is an index": (wrong_type, "images/bad:v1", "MalformedManifest"),
    "a negative size": (changed_layer(size=-5), "images/bad:v1", "MalformedManifest"),
    "a huge size": (changed_layer(size=1 << 60), "images/bad:v1", "MalformedManifest"),
    "a size as a fraction": (changed_layer(size=5.5), "images/bad:v1", "MalformedManifest"),
    "a malformed digest": (changed_layer(digest="sha256:xyz"), "images/bad:v1", "MalformedManifest"),
    "a digest that climbs": (
        changed_layer(digest="sha256:" + "../" * 21 + "a"), "images/bad:v1", "MalformedManifest"
    ),
    "a digest of another kind": (
        changed_layer(digest="md5:" + "a" * 32), "images/bad:v1", "MalformedManifest"
    ),
    "a petabyte that is not there": (changed_layer(size=1 << 50), "blobs/sha256/", "SizeMismatch"),
    "two sizes in one manifest": (two_sizes_in_one, "images/bad:v1", "BundleDefective"),
    "two sizes in two manifests": (two_sizes_in_two, "", "BundleDefective"),
    "a platform that is missing": (missing_platform, "blobs/sha256/", "BundleDefective"),
    "a model that is an image": (model_that_is_an_image, "models/bad:v1", "MalformedManifest"),
    "a model whose file climbs": (model_that_climbs, f"models/bad:{COMMIT_ONE}", "UnsafeFileName"),
    "a chart that is an image": (chart_that_is_an_image, "charts/bad:1", "MalformedManifest"),
    "referrers of another model": (referrers_of_another, "models/bad:sha256-", "MalformedManifest"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_bundle_that_lies_is_refused_with_every_digest_right(tmp_path: Path, name: str) -> None:
    build, path, reason = LIES[name]
    draft = Draft(tmp_path / "bundle")
    build(draft)
    bundle = draft.finish()
    found = found_in(bundle)
    assert any(each.startswith(path) and why == reason for each, (why, _) in found.items()), found
    # In parts it is as bad, and no part is blamed for it.
    parts = split(bundle, tmp_path / "parts", 1 << 20).path
    assert found_in(parts).keys() == found.keys()


# -- what describes it --------------------------------------------------------------------------------------


def with_bom(tmp_path: Path, change: Callable[[dict[str, Json]], bytes]) -> Path:
    """A bundle whose bill of materials was changed before the index was frozen."""
    good = a_bundle(tmp_path / "good")
    document = json.loads((good / blob_path(a_root(good, BOM).descriptor.digest)).read_bytes())
    draft = Draft(tmp_path / "bundle")
    for root in index_of(good).roots:
        if root.title not in (BOM, CONTENTS):
            draft.roots.append(root)
    for blob in (good / "blobs/sha256").iterdir():
        if blob.name not in (
            a_root(good, BOM).descriptor.digest.hex,
            a_root(good, CONTENTS).descriptor.digest.hex,
        ):
            draft.blob(blob.read_bytes())
    draft.file(BOM, change(document), BOM_TYPE)
    return draft.finish()


def without_a_component(document: dict[str, Json]) -> bytes:
    components = document["components"]
    assert isinstance(components, list)
    components.pop()
    return canonical_json(document)


def with_a_component(document: dict[str, Json]) -> bytes:
    components = document["components"]
    assert isinstance(components, list)
    components.append({"type": "container", "name": "more", "bom-ref": "image/more:v1"})
    return canonical_json(document)


@pytest.mark.parametrize(
    "change",
    [
        without_a_component,
        with_a_component,
        lambda document: json.dumps(document).replace(COMMIT_ONE, "9" * 40).encode(),
        lambda document: json.dumps(document).replace('"site"', '"other"').encode(),
        lambda document: b"{}",
        lambda document: b'{"a":1,"a":1}',
        lambda document: b"",
    ],
    ids=[
        "lacks one",
        "one more",
        "another commit",
        "of another bundle",
        "empty",
        "duplicate keys",
        "no bytes",
    ],
)
def test_a_bill_of_materials_that_contradicts_the_bundle_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Json]], bytes]
) -> None:
    found = found_in(with_bom(tmp_path, change))
    assert found and {reason for reason, _ in found.values()} == {"BomContradicts"}
    assert all(path.startswith(BOM) for path in found)


def test_the_bill_of_materials_as_it_was_made_agrees(tmp_path: Path) -> None:
    assert not found_in(with_bom(tmp_path, lambda document: canonical_json(document)))


def rewritten(bundle: Path, roots: tuple[Root, ...]) -> Path:
    index = index_of(bundle)
    (bundle / INDEX).write_bytes(Index(index.name, index.version, roots).encode())
    return bundle


def test_a_bundle_without_a_bill_of_materials_is_refused(bundle: Path) -> None:
    blob = bundle / blob_path(a_root(bundle, BOM).descriptor.digest)
    blob.unlink()
    rewritten(bundle, tuple(root for root in index_of(bundle).roots if root.title != BOM))
    assert set(found_in(bundle)) == {BOM}


def test_a_table_of_contents_that_nothing_vouches_for_is_refused(bundle: Path) -> None:
    (bundle / blob_path(a_root(bundle, CONTENTS).descriptor.digest)).unlink()
    rewritten(bundle, tuple(root for root in index_of(bundle).roots if root.title != CONTENTS))
    assert set(found_in(bundle)) == {CONTENTS}
