# SPDX-License-Identifier: Apache-2.0
"""Creating a bundle: what is in it, once, and the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.hub import HubServer
from sovereign_airgap.access import Access
from sovereign_airgap.bundle.create import CreateOptions
from sovereign_airgap.bundle.index import Kind
from sovereign_airgap.bundle.layout import Directory
from sovereign_airgap.bundle.verify import verify
from sovereign_airgap.digest import Digest
from sovereign_airgap.manifest import Descriptor, Layer, ModelManifest
from sovereign_airgap.progress import Progress
from tests.unit.airgap.conftest import QUICK
from tests.unit.airgap.creations import SHARED, TWIN, Connected, Opened, digest_of, two_models
from tests.unit.airgap.models import REPO, TAKEN
from tests.unit.airgap.registry_double import RegistryDouble


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return two_models(tmp_path / "hub")


@pytest.fixture
def side(hub: HubServer, registry: RegistryDouble, tmp_path: Path) -> Connected:
    options = CreateOptions(access=Access(plain_http=True), endpoint=hub.endpoint, patience=QUICK)
    return Connected(hub, registry, tmp_path, options)


def test_two_models_arrive_whole_and_what_they_share_lies_there_once(
    side: Connected, files: dict[str, bytes]
) -> None:
    result = side.create()
    opened = Opened(result.path)
    opened.require_whole()
    models = opened.index.of_kind(Kind.MODEL)
    assert [root.repository for root in models] == ["models/org/tiny-moe", "models/org/tiny-twin"]
    assert [root.tag for root in models] == [side.hub.commit(REPO), side.hub.commit(TWIN)]
    manifest = ModelManifest.parse(opened.blob(models[0].descriptor))
    assert [layer.path for layer in manifest.layers] == list(TAKEN)
    for layer in manifest.layers:
        assert opened.blob(layer_descriptor(layer)) == files[layer.path]
    assert digest_of(files[SHARED]) in opened.blobs
    # Two models of two shards each: three downloads.
    assert len(side.downloads()) == len(set(side.downloads())) == 3
    assert verify(Directory(result.path), [], 1, Progress()).index_digest == result.index_digest
    assert result.index_digest == Digest.of((result.path / "index.json").read_bytes())
    assert not side.unfinished.exists()
    now = side.progress.snapshot()
    assert (now.phase, now.bytes_done, now.files_done) == ("done", now.bytes_total, now.files_total)


def layer_descriptor(layer: Layer) -> Descriptor:
    return Descriptor(layer.media_type, layer.digest, layer.size)
