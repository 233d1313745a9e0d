# SPDX-License-Identifier: Apache-2.0
"""The load as a process: killed at five points, interrupted, run twice at a time."""

import signal
import time
from pathlib import Path

import pytest

from tests.dataplane.bundle_site import (
    WIDTH,
    BundleSite,
    a_bundle_site,
    a_load,
    assert_succeeds_now,
    wait_until_struck,
)
from tests.dataplane.test_outages import assert_told_well
from tests.unit.airgap.bundles import COMMIT_ONE, COMMIT_TWO, NAME, a_bundle
from tests.unit.faults.proxy import Silence


@pytest.fixture
def site(bundle_site: BundleSite) -> BundleSite:
    return bundle_site


# -- kill -9 of the load ------------------------------------------------------------------------------------

POINTS: dict[str, tuple[str, str, int]] = {
    # name: (method, path, how many such requests pass before it dies in the next)
    "while it comes to the door": ("PUT", "/sovereign/state/manifests/_loading", 0),
    "while it sends a blob": ("PATCH", "/blobs/uploads/", 3),
    "between the blobs and the manifests": ("PUT", "/manifests/sha256", 0),
    "between the record and the tags": ("PUT", f"/sovereign/state/manifests/{NAME}", 0),
    "between two tags": ("PUT", f"/manifests/{COMMIT_ONE}", 0),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_load_that_is_killed_leaves_only_whole_tags_and_the_next_goes_on(
    site: BundleSite, tmp_path: Path, point: str
) -> None:
    method, path, before = POINTS[point]
    site.registry.break_(Silence(), method=method, path=path, after=before, times=1)
    command = a_load(site, tmp_path)
    wait_until_struck(site.registry)

    command.process.kill()
    command.process.communicate(timeout=30)

    site.assert_tags_are_whole()
    held = site.held_bytes()
    assert bool(site.tagged()) == (point == "between two tags")
    site.registry.heal()
    begun = time.monotonic()
    done = a_load(site, tmp_path).ended()
    assert (done.reason, done.code) == ("Loaded", 0), done
    assert time.monotonic() - begun < 30, "it waited for the dead run's claim to end"
    total = sum(path.stat().st_size for path in (site.bundle / "blobs/sha256").iterdir())
    sent = int(done.message.partition("(")[2].partition(" bytes")[0])
    assert sent <= total - held
    site.assert_loaded()


def test_a_second_load_into_the_same_place_fails_fast(site: BundleSite, tmp_path: Path) -> None:
    site.registry.break_(Silence(), method="PATCH", times=1)
    first = a_load(site, tmp_path)
    wait_until_struck(site.registry)

    second = site.load()

    assert (second.reason, second.code) == ("LoadInProgress", 1), second
    assert f"the load of {NAME} 1" in second.message
    assert_told_well(second)
    first.process.send_signal(signal.SIGTERM)
    ended = first.ended()
    assert (ended.reason, ended.code) == ("Interrupted", 1), ended
    assert site.tagged() == []
    assert_succeeds_now(site)


def test_two_loads_into_two_places_do_not_mind_each_other(site: BundleSite, tmp_path: Path) -> None:
    site.registry.break_(Silence(), method="PATCH", times=1)
    first = a_load(site, tmp_path)
    wait_until_struck(site.registry)
    with a_bundle_site(site.bundle, site.server, f"{site.prefix}/elsewhere") as other:
        assert other.load().code == 0
        other.assert_loaded()
    first.process.kill()
    first.process.communicate(timeout=30)


def test_of_two_loads_that_begin_together_one_ends_well(site: BundleSite, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    ended = [command.ended() for command in [a_load(site, folder) for folder in folders]]
    assert "Loaded" in [each.reason for each in ended], ended
    assert {each.reason for each in ended} <= {"Loaded", "LoadInProgress"}
    site.assert_loaded()


def test_a_newer_bundle_moves_tags_and_an_older_one_does_not_come_back(
    site: BundleSite, tmp_path: Path
) -> None:
    assert site.load().code == 0
    newer = a_bundle(tmp_path / "newer", version=2, width=WIDTH)
    assert site.load(newer).code == 0
    refused = site.load()
    assert (refused.reason, refused.code) == ("OlderVersion", 3), refused
    assert_told_well(refused)
    site.assert_loaded()
    assert {root.tag for root in site.tagged()} >= {COMMIT_ONE, COMMIT_TWO}
