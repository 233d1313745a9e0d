# SPDX-License-Identifier: Apache-2.0
"""The bundles that tests make by hand are what the format says."""

from __future__ import annotations

from pathlib import Path

from sovereign_airgap.bundle.graph import needed
from sovereign_airgap.bundle.index import Kind
from sovereign_airgap.bundle.layout import Directory, read_blob
from sovereign_airgap.manifest import Descriptor, ModelManifest
from tests.unit.airgap.bundles import MODEL_ONE, MODEL_TWO, a_bundle, a_root, index_of


def test_the_usual_bundle_holds_exactly_what_its_roots_need(tmp_path: Path) -> None:
    reader = Directory(a_bundle(tmp_path))
    index = index_of(tmp_path)

    def document(descriptor: Descriptor) -> bytes:
        return read_blob(reader, descriptor.digest, descriptor.size)

    entries = list(reader.entries())
    assert not [entry for entry in entries if entry.defect]
    assert {entry.digest: entry.size for entry in entries if entry.digest} == needed(index, document)
    assert {root.kind for root in index.roots} == set(Kind)


def test_the_two_models_share_shards(tmp_path: Path) -> None:
    reader = Directory(a_bundle(tmp_path))
    shards = []
    for name in (MODEL_ONE, MODEL_TWO):
        descriptor = a_root(tmp_path, name).descriptor
        manifest = ModelManifest.parse(read_blob(reader, descriptor.digest, descriptor.size))
        shards.append({layer.digest for layer in manifest.layers if layer.is_weight})

    assert len(shards[0] & shards[1]) == 2
    assert len(shards[0] | shards[1]) == 4


def test_the_usual_bundle_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    one, two = a_bundle(tmp_path / "one"), a_bundle(tmp_path / "two")
    assert [entry.path for entry in Directory(one).entries()] == [
        entry.path for entry in Directory(two).entries()
    ]
