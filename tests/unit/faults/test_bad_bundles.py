# SPDX-License-Identifier: Apache-2.0
"""Bundles that something happened to, and indexes that are none: each refused, and by name.

What is repaired afterwards verifies again: nothing is remembered of a bad copy.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sovereign_airgap.bundle.index import INDEX_BYTES
from sovereign_airgap.bundle.layout import CONTENTS, INDEX, OCI_LAYOUT, blob_path
from sovereign_airgap.bundle.split import split
from sovereign_airgap.errors import Refusal
from sovereign_airgap.manifest import INDEX_TYPE, MANIFEST_TYPE, WEIGHT_TYPE
from tests.unit.airgap.bundles import (
    BOM,
    CHART,
    COMMIT_ONE,
    IMAGE,
    LICENCE,
    MODEL_ONE,
    a_bundle,
    a_root,
)
from tests.unit.airgap.verifying import found_in, signed
from tests.unit.faults import corrupter


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return a_bundle(tmp_path / "bundle")


# -- damaged and disguised ----------------------------------------------------------------------------------


def a_shard(bundle: Path) -> str:
    manifest = json.loads((bundle / blob_path(a_root(bundle, MODEL_ONE).descriptor.digest)).read_bytes())
    last = [layer for layer in manifest["layers"] if layer["mediaType"] == WEIGHT_TYPE][-1]
    return "blobs/sha256/" + str(last["digest"]).removeprefix("sha256:")


def root_blob(name: str) -> Callable[[Path], str]:
    return lambda bundle: blob_path(a_root(bundle, name).descriptor.digest)


PLACES: dict[str, Callable[[Path], str]] = {
    "a shard": a_shard,
    "a model's manifest": root_blob(MODEL_ONE),
    "an image's manifest": root_blob(IMAGE),
    "a chart's manifest": root_blob(CHART),
    "a licence": root_blob(LICENCE),
    "the bill of materials": root_blob(BOM),
    CONTENTS: lambda bundle: CONTENTS,
    OCI_LAYOUT: lambda bundle: OCI_LAYOUT,
    INDEX: lambda bundle: INDEX,
}
CHANGES = {**corrupter.DAMAGES, **corrupter.DISGUISES}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_happens_to_a_file_is_named_by_its_path(bundle: Path, place: str, change: str) -> None:
    key = signed(bundle)
    path = PLACES[place](bundle)
    CHANGES[change](bundle / path)
    named = {each.rstrip("/") for each in found_in(bundle, key)}
    # One damage is one defect. An index that still says something else has lost its signature.
    assert named == {path} or (place == INDEX and named == {"signatures"})


@pytest.mark.parametrize("place", PLACES)
def test_a_file_copied_again_makes_the_bundle_whole(bundle: Path, place: str, tmp_path: Path) -> None:
    again = a_bundle(tmp_path / "again")
    key = signed(bundle)
    path = PLACES[place](bundle)
    for change in corrupter.DAMAGES.values():
        change(bundle / path)
        assert found_in(bundle, key)
        shutil.copy(again / path, bundle / path)
        assert not found_in(bundle, key)


def test_a_shard_in_place_of_another_is_two_defects(bundle: Path) -> None:
    one, two = bundle / a_shard(bundle), bundle / blob_path(a_root(bundle, LICENCE).descriptor.digest)
    corrupter.swap(one, two)
    assert set(found_in(bundle)) == {f"blobs/sha256/{one.name}", f"blobs/sha256/{two.name}"}


@pytest.mark.parametrize(
    "path",
    [
        "surplus.txt", ".hidden", "INDEX.JSON", "index.json.bak", "blobs/surplus", "blobs/sha256/surplus",
        "blobs/sha256/" + "a" * 63, "blobs/sha256/" + "A" * 64, "blobs/sha256/" + "a" * 64 + ".partial",
        "blobs/sha512/" + "a" * 64, "signatures/key.pem", "signatures/" + "a" * 64 + ".json", "new/file",
        ".sovereign-0.partial",
    ],
)  # fmt: skip
def test_a_surplus_file_is_refused_wherever_it_lies(bundle: Path, path: str) -> None:
    (bundle / path).parent.mkdir(parents=True, exist_ok=True)
    (bundle / path).write_bytes(b"")
    (name,) = found_in(bundle)
    assert path.startswith(name)


def test_a_folder_of_blobs_behind_a_link_is_not_followed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "blobs").rename(tmp_path / "blobs")
    (bundle / "blobs").symlink_to(tmp_path / "blobs")
    found = found_in(bundle)
    assert "symbolic link" in found["blobs"][1]
    assert any("is missing" in what for _, what in found.values())


# -- an index that lies -------------------------------------------------------------------------------------

DIGEST = b'"digest":"sha256:'
BAD_INDEXES: dict[str, tuple[bytes, bytes]] = {
    "duplicate key": (b'"schemaVersion":2', b'"schemaVersion":2,"schemaVersion":2'),
    "duplicate digest": (DIGEST, b'"digest":"sha256:' + b"0" * 64 + b'","digest":"sha256:'),
    "digest of another kind": (DIGEST, b'"digest":"sha512:'),
    "digest with a path": (DIGEST, b'"digest":"sha256:../'),
    "digest in capitals": (DIGEST, b'"digest":"SHA256:'),
    "no digest": (DIGEST, b'"digester":"sha256:'),
    "negative size": (b'"size":', b'"size":-'),
    "huge size": (b'"size":', b'"size":99999999999999999999'),
    "size as text": (b'"size":', b'"size":"1","was":'),
    "no size": (b'"size":', b'"sizes":'),
    "not a number": (b'"size":', b'"size":NaN,"was":'),
    "unknown kind": (b'"dev.sovereign.kind":"image"', b'"dev.sovereign.kind":"disk"'),
    "no kind": (b'"dev.sovereign.kind":"image",', b""),
    "a title that climbs": (b'image.title":"', b'image.title":"../'),
    "an absolute title": (b'image.title":"', b'image.title":"/'),
    "a title with a backslash": (b'image.title":"', b'image.title":"\\\\'),
    "a title with NUL": (b'image.title":"', b'image.title":"\\u0000'),
    "a title that is a device": (b'image.title":"', b'image.title":"con/'),
    "a repository in capitals": (b'ref.name":"models/', b'ref.name":"Models/'),
    "a tag too many": (b'ref.name":"', b'ref.name":":'),
    "a name twice": (f'"{IMAGE}:v1"'.encode(), f'"{MODEL_ONE}:{COMMIT_ONE}"'.encode()),
    "no bundle's name": (b'"dev.sovereign.bundle":"site",', b""),
    "a bundle's name that climbs": (b'"dev.sovereign.bundle":"site"', b'"dev.sovereign.bundle":"../site"'),
    "version nought": (b'bundle.version":"1"', b'bundle.version":"0"'),
    "a version with a sign": (b'bundle.version":"1"', b'bundle.version":"-1"'),
    "a base that is no digest": (
        b'"dev.sovereign.bundle":',
        b'"dev.sovereign.base":"x","dev.sovereign.bundle":',
    ),
    "annotations that are no texts": (b'"dev.sovereign.kind":"image"', b'"dev.sovereign.kind":["image"]'),
    "an image's index": (b'"schemaVersion":2', b'"schemaVersion":1'),
    "another type": (INDEX_TYPE.encode(), MANIFEST_TYPE.encode()),
    "a byte order mark": (b"{", b"\xef\xbb\xbf{"),
    "cut": (b"{", b""),
    "too large": (b"{", b"{" + b" " * INDEX_BYTES),
    "endless nesting": (b"{", b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b","),
    "too many roots": (b'"manifests":[', b'"manifests":[' + b"{}," * 5000),
}


@pytest.mark.parametrize("name", BAD_INDEXES)
def test_an_index_that_is_no_bundles_is_the_one_defect(bundle: Path, name: str, tmp_path: Path) -> None:
    old, new = BAD_INDEXES[name]
    content = (bundle / INDEX).read_bytes()
    assert old in content
    where = content.rindex(old) if name == "another type" else content.index(old)
    (bundle / INDEX).write_bytes(content[:where] + new + content[where + len(old) :])
    assert set(found_in(bundle)) == {INDEX}
    with pytest.raises(Refusal):
        split(bundle, tmp_path / "parts")
