# SPDX-License-Identifier: Apache-2.0
"""Loading: no way back to an older version, and deltas that find their base."""

from __future__ import annotations

from pathlib import Path

import pytest

from sovereign_airgap.bundle.layout import Directory
from sovereign_airgap.errors import (
    OlderVersion,
    WrongBase,
)
from tests.unit.airgap.bundles import (
    COMMIT_ONE,
    COMMIT_TWO,
    MODEL_ONE,
    MODEL_TWO,
    Draft,
    a_bundle,
    index_digest,
    model_files,
)
from tests.unit.airgap.loading import SHARD, WIDTH, Load, claims, documents
from tests.unit.airgap.registry_double import RegistryDouble

# -- versions -----------------------------------------------------------------------------------------------


def test_an_older_version_is_refused_unless_wished(load: Load, tmp_path: Path, place: RegistryDouble) -> None:
    old, new = a_bundle(tmp_path / "1"), a_bundle(tmp_path / "2", version=2)
    load(old)
    load(new)
    before = dict(place.tags)

    with pytest.raises(OlderVersion):
        load(old)
    assert place.tags == before

    load(old, allow_downgrade=True)
    load(new)
    with pytest.raises(OlderVersion):
        load(old)


def test_one_version_is_one_bundle(load: Load, tmp_path: Path) -> None:
    load(a_bundle(tmp_path / "1"))
    with pytest.raises(OlderVersion):
        load(a_bundle(tmp_path / "another", width=32))


def test_another_bundle_has_versions_of_its_own(load: Load, tmp_path: Path) -> None:
    load(a_bundle(tmp_path / "1", version=7))
    load(a_bundle(tmp_path / "2", name="another"))


# -- deltas -------------------------------------------------------------------------------------------------


def a_delta(directory: Path, base: Path, version: int = 2) -> Path:
    """What `base` has, under a new version, with one new image; blobs of the base are left out."""
    draft = Draft(directory)
    for repository, commit in ((MODEL_ONE, COMMIT_ONE), (MODEL_TWO, COMMIT_TWO)):
        draft.model(repository, commit, model_files(repository, width=WIDTH))
    # Its layer is a shard of the base, in a repository that the base does not know.
    shard = model_files(MODEL_ONE, width=WIDTH)[SHARD]
    draft.image("sovereign/new", layer=shard)
    draft.finish(version=version, base=index_digest(base))
    kept = documents(directory)
    for path in (directory / "blobs/sha256").iterdir():
        if path.name not in kept and (base / "blobs/sha256" / path.name).exists():
            path.unlink()
    return directory


def test_a_delta_loads_after_its_base_and_mounts_what_it_leaves_out(
    load: Load, bundle: Path, place: RegistryDouble, tmp_path: Path
) -> None:
    load(bundle)
    pushed = place.pushed_bytes
    found = load(a_delta(tmp_path / "delta", bundle))
    assert place.pushed_bytes == pushed
    assert "sovereign/new/v1" in place.tags
    assert found.mounted >= 1
    assert load(tmp_path / "delta").tags_moved == 0


def test_a_delta_without_its_base_is_refused(
    load: Load, bundle: Path, place: RegistryDouble, tmp_path: Path
) -> None:
    delta = a_delta(tmp_path / "delta", bundle)
    with pytest.raises(WrongBase):
        load(delta)
    load(a_bundle(tmp_path / "other", width=32))
    before = dict(place.tags)
    with pytest.raises(WrongBase):
        load(delta)
    assert place.tags == before
    assert claims(place) == []


def test_a_delta_takes_what_it_lacks_from_a_base_on_disk(
    load: Load, bundle: Path, place: RegistryDouble, tmp_path: Path
) -> None:
    delta = a_delta(tmp_path / "delta", bundle)
    with pytest.raises(WrongBase):
        load(delta, base=Directory(a_bundle(tmp_path / "other", width=32)))
    assert place.seen == []
    load(delta, base=Directory(bundle))
    assert "sovereign/new/v1" in place.tags
