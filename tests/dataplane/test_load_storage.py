# SPDX-License-Identifier: Apache-2.0
"""Loading into a registry that dies, restarts or loses bytes on its disk: what was verified is kept, what
went bad is found and brought again."""

import dataclasses
import threading
from pathlib import Path

import pytest

from tests.dataplane.bundle_site import (
    BundleSite,
    a_load,
    assert_succeeds_now,
    wait_until_struck,
)
from tests.dataplane.site import Outcome
from tests.dataplane.test_outages import assert_told_well
from tests.dataplane.test_process import start, wait_for_a_request
from tests.unit.airgap.bundles import COMMIT_ONE, COMMIT_TWO, MODEL_ONE
from tests.unit.faults.proxy import Silence


@pytest.fixture
def own(own_site: BundleSite) -> BundleSite:
    return own_site


def test_a_blob_that_goes_between_the_look_and_the_manifest_is_brought_again(own: BundleSite) -> None:
    own.registry.break_(Silence(), method="GET", path=f"{MODEL_ONE}/manifests/sha256", times=1)
    own.patience = dataclasses.replace(own.patience, stall=3.0)
    outcomes: list[Outcome] = []
    loading = threading.Thread(target=lambda: outcomes.append(own.load()))
    loading.start()
    wait_for_a_request(own.registry, "GET", f"{MODEL_ONE}/manifests/sha256")
    own.server.blob_path(str(own.shard)).unlink()
    own.registry.heal()
    loading.join(60)

    assert [outcome.code for outcome in outcomes] == [0], outcomes
    own.assert_loaded()


@pytest.mark.parametrize("damage", ["shortened", "lengthened", "emptied"])
def test_a_blob_of_another_length_on_the_registrys_disk_is_named(own: BundleSite, damage: str) -> None:
    assert own.load().code == 0
    path = own.server.blob_path(str(own.shard))
    content = path.read_bytes()
    path.write_bytes({"shortened": content[:-1], "lengthened": content + b"\0", "emptied": b""}[damage])

    failed = own.load()

    assert (failed.reason, failed.code) == ("RegistryBlobCorrupt", 3), failed
    assert str(own.shard) in failed.message
    assert "registry verify --repair" in failed.message
    assert_told_well(failed)


def test_a_manifest_that_rots_on_the_registrys_disk_is_named(own: BundleSite) -> None:
    assert own.load().code == 0
    [root] = [root for root in own.roots if root.tag == COMMIT_ONE]
    path = own.server.blob_path(str(root.descriptor.digest))
    path.write_bytes(path.read_bytes().replace(b"tiny-one", b"tiny-0ne"))

    failed = own.load()

    assert (failed.reason, failed.code) == ("DigestMismatch", 3), failed
    assert_told_well(failed)


def test_a_registry_that_restarts_in_the_middle_of_an_upload(own: BundleSite) -> None:
    own.patience = dataclasses.replace(own.patience, stall=1.0, attempts=20, longest_pause=1.0)
    own.registry.break_(Silence(), method="PATCH", times=1)
    outcomes: list[Outcome] = []
    loading = threading.Thread(target=lambda: outcomes.append(own.load()))
    loading.start()
    wait_for_a_request(own.registry, "PATCH")
    own.server.stop()
    own.server.start()
    loading.join(60)

    assert [outcome.code for outcome in outcomes] == [0], outcomes
    own.assert_loaded()


def test_a_registry_that_dies_and_comes_back_later_has_kept_what_was_verified(
    own: BundleSite, tmp_path: Path
) -> None:
    own.registry.break_(Silence(), method="PUT", path="/blobs/uploads/", after=8, times=1)
    # A process of its own: while it lives, nobody may take over what it has claimed.
    command = a_load(own, tmp_path, "--attempts", "2", "--longest-pause", "0.1")
    wait_until_struck(own.registry)
    own.server.kill()
    own.registry.heal()
    ended = command.ended()
    assert (ended.reason, ended.code) == ("RegistryUnavailable", 1), ended

    own.server.start()
    assert own.tagged() == []
    assert_succeeds_now(own)


@pytest.mark.parametrize("at", ["the start", "the middle", "the end"])
def test_what_rotted_on_the_registrys_disk_is_found_removed_and_loaded_again(
    own: BundleSite, tmp_path: Path, at: str
) -> None:
    assert own.load().code == 0
    path = own.server.blob_path(str(own.shard))
    content = bytearray(path.read_bytes())
    content[{"the start": 0, "the middle": len(content) // 2, "the end": -1}[at]] ^= 1
    path.write_bytes(content)
    assert own.load().code == 0, "a load sees the blob's name and length only"
    storage = str(own.server.folder / "data")

    found = start(tmp_path, "registry", "verify", storage).ended()
    assert (found.reason, found.code) == ("RegistryDamaged", 3), found
    repaired = start(tmp_path, "registry", "verify", storage, "--repair").ended()
    assert (repaired.reason, repaired.code) == ("RegistryDamaged", 3), repaired
    assert COMMIT_ONE in repaired.message
    assert COMMIT_TWO in repaired.message
    assert_told_well(repaired)

    assert own.load().code == 0
    assert own.loaded is not None
    assert own.loaded.sent_bytes == len(content), "more than the damaged blob was sent"
    own.assert_loaded()
    whole = start(tmp_path, "registry", "verify", storage).ended()
    assert (whole.reason, whole.code) == ("Verified", 0), whole


def test_a_manifest_that_rotted_is_found_removed_and_loaded_again(own: BundleSite, tmp_path: Path) -> None:
    assert own.load().code == 0
    [root] = [root for root in own.roots if root.tag == COMMIT_ONE]
    path = own.server.blob_path(str(root.descriptor.digest))
    path.write_bytes(path.read_bytes().replace(b"tiny-one", b"tiny-0ne"))
    storage = str(own.server.folder / "data")

    assert start(tmp_path, "registry", "verify", storage, "--repair").ended().code == 3

    assert own.tag(root) is None
    assert own.load().code == 0
    own.assert_loaded()
    assert start(tmp_path, "registry", "verify", storage).ended().code == 0
