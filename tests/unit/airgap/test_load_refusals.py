# SPDX-License-Identifier: Apache-2.0
"""Loading: what is refused, before a byte is sent or at the latest before a tag moves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sovereign_airgap.bundle import signatures
from sovereign_airgap.bundle.layout import INDEX, blob_path, signature_path
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import (
    BomContradicts,
    BundleDefective,
    DigestMismatch,
    NotSigned,
    OlderVersion,
    SignatureInvalid,
    SizeMismatch,
    SovereignError,
    TagConflict,
)
from sovereign_airgap.manifest import MANIFEST_TYPE, canonical_json
from tests.unit.airgap.bundles import (
    BOM,
    COMMIT_ONE,
    COMMIT_TWO,
    IMAGE,
    MODEL_ONE,
    MODEL_TWO,
    NAME,
    a_bundle,
    a_root,
)
from tests.unit.airgap.loading import SHARD, Load, blob_of, claims, flip, tags
from tests.unit.airgap.registry_double import RegistryDouble
from tests.unit.airgap.signers import ANNA, BERT, CARA, FOREIGN, WHEN

# -- refused before a tag moves -----------------------------------------------------------------------------


def remove(bundle: Path) -> None:
    (bundle / blob_path(blob_of(bundle, MODEL_ONE, SHARD))).unlink()


def shorten(bundle: Path) -> None:
    path = bundle / blob_path(blob_of(bundle, MODEL_ONE, SHARD))
    os.truncate(path, path.stat().st_size - 1)


def lengthen(bundle: Path) -> None:
    with (bundle / blob_path(blob_of(bundle, MODEL_ONE, SHARD))).open("ab") as file:
        file.write(b"\0")


def surplus_blob(bundle: Path) -> None:
    (bundle / blob_path(Digest.of(b"surplus"))).write_bytes(b"surplus")


def surplus_file(bundle: Path) -> None:
    (bundle / "autorun.inf").write_bytes(b"")


def link(bundle: Path) -> None:
    path = bundle / blob_path(blob_of(bundle, MODEL_ONE, SHARD))
    path.rename(bundle.parent / "elsewhere")
    path.symlink_to(bundle.parent / "elsewhere")


def damage_manifest(bundle: Path) -> None:
    flip(bundle / blob_path(a_root(bundle, MODEL_ONE).descriptor.digest), at=100)


def take_the_records_name(bundle: Path) -> None:
    index = (bundle / INDEX).read_bytes()
    (bundle / INDEX).write_bytes(index.replace(f"{IMAGE}:v1".encode(), b"sovereign/state:v1"))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (remove, BundleDefective),
        (shorten, SizeMismatch),
        (lengthen, SizeMismatch),
        (surplus_blob, BundleDefective),
        (surplus_file, BundleDefective),
        (link, BundleDefective),
        (damage_manifest, DigestMismatch),
        (take_the_records_name, BundleDefective),
    ],
)
def test_a_defect_that_needs_no_hashing_is_found_before_the_first_request(
    load: Load,
    bundle: Path,
    place: RegistryDouble,
    spoil: Callable[[Path], None],
    error: type[SovereignError],
) -> None:
    spoil(bundle)
    with pytest.raises(error):
        load(bundle)
    assert place.seen == []


def test_a_flipped_bit_never_becomes_a_blob_and_the_rest_is_not_sent_again(
    load: Load, bundle: Path, place: RegistryDouble
) -> None:
    shard = blob_of(bundle, MODEL_ONE, SHARD)
    flip(bundle / blob_path(shard))
    with pytest.raises(DigestMismatch) as caught:
        load(bundle, parallel=1)
    assert blob_path(shard) in str(caught.value)
    assert str(shard) not in place.blobs
    assert tags(place) == []
    assert f"sovereign/state/{NAME}" not in place.tags
    assert claims(place) == []
    assert place.uploads == {}

    flip(bundle / blob_path(shard))
    held = sum(len(content) for content in place.blobs.values())
    pushed = place.pushed_bytes
    load(bundle)
    total = sum(len(content) for content in place.blobs.values())
    assert place.pushed_bytes - pushed <= total - held
    assert COMMIT_ONE in str(tags(place))


def test_a_small_flipped_bit_is_noticed_too(load: Load, bundle: Path, place: RegistryDouble) -> None:
    flip(bundle / blob_path(blob_of(bundle, MODEL_ONE, "config.json")), at=10)
    with pytest.raises(DigestMismatch):
        load(bundle)
    assert tags(place) == []


def test_a_commit_tag_that_points_elsewhere_is_refused_before_any_byte(
    load: Load, bundle: Path, place: RegistryDouble
) -> None:
    place.manifests[f"{MODEL_TWO}/{COMMIT_TWO}"] = (b"{}", MANIFEST_TYPE)
    before = dict(place.tags)
    with pytest.raises(TagConflict):
        load(bundle)
    assert tags(place) == sorted(before)
    assert place.tags[f"{MODEL_TWO}/{COMMIT_TWO}"] == before[f"{MODEL_TWO}/{COMMIT_TWO}"]
    assert place.pushed_bytes == 0


def test_keys_are_asked_for_where_a_signature_is_required(
    load: Load, bundle: Path, place: RegistryDouble
) -> None:
    with pytest.raises(NotSigned):
        load(bundle, require_signature=True)
    assert place.seen == []


# -- what vouches for it ------------------------------------------------------------------------------------


def a_bill_of_something_else(bundle: Path) -> None:
    index = json.loads((bundle / INDEX).read_bytes())
    [entry] = [each for each in index["manifests"] if BOM in each["annotations"].values()]
    (bundle / blob_path(Digest.parse(entry["digest"]))).unlink()
    content = canonical_json({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1})
    entry |= {"digest": str(Digest.of(content)), "size": len(content)}
    (bundle / blob_path(Digest.of(content))).write_bytes(content)
    (bundle / INDEX).write_bytes(json.dumps(index).encode())


def test_a_bill_of_something_else_is_refused_before_the_first_request(
    load: Load, bundle: Path, place: RegistryDouble
) -> None:
    a_bill_of_something_else(bundle)
    with pytest.raises(BomContradicts):
        load(bundle)
    assert place.seen == []


def test_with_keys_the_record_says_who_has_signed(load: Load, bundle: Path, place: RegistryDouble) -> None:
    for key in (ANNA, CARA):
        signatures.sign(bundle, key, WHEN)
    found = load(bundle, keys=(ANNA.public, BERT.public, CARA.public), threshold=2, require_signature=True)
    assert found.signed_by == tuple(sorted((ANNA.key_id, CARA.key_id)))
    record = json.loads(place.manifests[f"sovereign/state/{NAME}"][0])
    state = json.loads(place.blobs[record["config"]["digest"]])
    assert state["keys"].keys() == {ANNA.key_id, CARA.key_id}
    titles = {
        layer.get("annotations", {}).get("org.opencontainers.image.title") for layer in record["layers"]
    }
    assert {f"signatures/{key.key_id}.dsse.json" for key in (ANNA, CARA)} <= titles


def unsigned(bundle: Path) -> None:
    """Nobody has signed."""


def by_a_stranger(bundle: Path) -> None:
    signatures.sign(bundle, FOREIGN, WHEN)


def below_threshold(bundle: Path) -> None:
    signatures.sign(bundle, ANNA, WHEN)


def over_another_index(bundle: Path) -> None:
    for key in (ANNA, BERT):
        signatures.sign(bundle, key, WHEN)
    index = (bundle / INDEX).read_bytes()
    (bundle / INDEX).write_bytes(index.replace(b'.version":"1"', b'.version":"2"'))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (unsigned, NotSigned),
        (by_a_stranger, NotSigned),
        (below_threshold, NotSigned),
        (over_another_index, SignatureInvalid),
    ],
)
def test_nothing_is_sent_unless_enough_keys_have_signed_this_very_index(
    load: Load,
    bundle: Path,
    place: RegistryDouble,
    spoil: Callable[[Path], None],
    error: type[SovereignError],
) -> None:
    spoil(bundle)
    with pytest.raises(error):
        load(bundle, keys=(ANNA.public, BERT.public), threshold=2)
    assert place.seen == []


def test_a_medium_that_changes_its_index_after_the_signature_was_read_gains_nothing(
    load: Load, bundle: Path, place: RegistryDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    signatures.sign(bundle, ANNA, WHEN)
    signed_index = (bundle / INDEX).read_bytes()
    honest = signatures.signed_by

    def then_swap(*given: object) -> tuple[str, ...]:
        found = honest(*given)  # type: ignore[arg-type]
        (bundle / INDEX).write_bytes(signed_index.replace(f"{IMAGE}:v1".encode(), b"sovereign/evil:v1"))
        return found

    monkeypatch.setattr(signatures, "signed_by", then_swap)
    load(bundle, keys=(ANNA.public,))
    assert f"{IMAGE}/v1" in place.tags
    assert "sovereign/evil/v1" not in place.tags


def test_a_key_that_has_vouched_for_a_newer_version_takes_no_older_one(
    load: Load, tmp_path: Path, place: RegistryDouble
) -> None:
    old, new = a_bundle(tmp_path / "1"), a_bundle(tmp_path / "2", version=2)
    signatures.sign(old, ANNA, WHEN)
    signatures.sign(old, BERT, WHEN)
    signatures.sign(new, ANNA, WHEN)
    load(new, keys=(ANNA.public,))
    with pytest.raises(OlderVersion):
        load(old, keys=(ANNA.public, BERT.public))
    with pytest.raises(OlderVersion):
        load(old)
    # Where only another signer is trusted, his versions alone count.
    load(old, keys=(BERT.public,))
    with pytest.raises(OlderVersion):
        load(old, keys=(ANNA.public,))


def test_an_older_version_is_no_newer_for_a_signature_that_was_removed(load: Load, tmp_path: Path) -> None:
    old, new = a_bundle(tmp_path / "1"), a_bundle(tmp_path / "2", version=2)
    for key in (ANNA, BERT):
        signatures.sign(old, key, WHEN)
    signatures.sign(new, ANNA, WHEN)
    load(new, keys=(ANNA.public, BERT.public))
    (old / signature_path(ANNA.key_id)).unlink()
    with pytest.raises(OlderVersion):
        load(old, keys=(ANNA.public, BERT.public), require_signature=True)


def test_after_a_rotation_the_old_key_is_no_way_back(load: Load, tmp_path: Path) -> None:
    four, five = a_bundle(tmp_path / "4", version=4), a_bundle(tmp_path / "5", version=5)
    signatures.sign(four, ANNA, WHEN)
    signatures.sign(five, BERT, WHEN)
    load(four, keys=(ANNA.public,))
    load(five, keys=(ANNA.public, BERT.public))
    with pytest.raises(OlderVersion):
        load(four, keys=(ANNA.public, BERT.public))
