# SPDX-License-Identifier: Apache-2.0
"""The node's cache with a real registry and real processes that are killed or have bad disks."""

import os
import signal
import subprocess
import time

import pytest

from sovereign_airgap.cache.layout import RESERVED
from sovereign_airgap.marker import CONFIG_MARKER, MARKER
from tests.dataplane.cache_site import NodeSite, a_disk, hang_at, wait_until, wait_until_only_one_is_missing
from tests.dataplane.models import WEIGHTS
from tests.unit.faults.proxy import Answer

MIB = 1 << 20


@pytest.fixture
def digest(node: NodeSite) -> str:
    return node.publish("one")


# -- ends ---------------------------------------------------------------------------------------------------


def test_a_fetch_that_is_killed_goes_on_with_the_missing_bytes_only(node: NodeSite, digest: str) -> None:
    hang_at(node, digest)
    running = node.start(digest)
    wait_until_only_one_is_missing(node, digest)
    running.kill()
    entry, files = node.entry(digest), node.files()
    assert not entry.complete
    assert list(entry.folder.glob("*.partial")), "it was not in the middle of a file"
    assert (entry.folder / RESERVED).exists()

    node.site.registry.heal()
    assert node.fetch(digest).done().fetched == len(files[WEIGHTS])
    node.assert_whole(digest, files)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_fetch_that_is_ended_goes_on_later(node: NodeSite, digest: str, number: signal.Signals) -> None:
    hang_at(node, digest)
    running = node.start(digest)
    wait_until_only_one_is_missing(node, digest)
    begun = time.monotonic()
    running.command.process.send_signal(number)
    running.ended().failed_as("Interrupted")
    assert time.monotonic() - begun < 10
    entry = node.entry(digest)
    assert not list(entry.folder.glob("*.partial"))
    assert not (entry.folder / RESERVED).exists()

    node.site.registry.heal()
    assert node.fetch(digest).done().fetched == len(node.files()[WEIGHTS])
    node.assert_whole(digest, node.files())


def test_what_is_complete_needs_no_registry(node: NodeSite, digest: str) -> None:
    node.fetch(digest).done()
    node.site.registry.break_(Answer(500))
    asked = len(node.site.registry.asked)
    assert node.fetch(digest).done().fetched == 0
    assert node.fetch(digest, "--config-only").done().fetched == 0
    assert len(node.site.registry.asked) == asked
    node.fetch(digest, "--verify", "always", "--attempts", "2").failed_as("RegistryUnavailable")
    assert node.entry(digest).complete, "an outage says nothing about what is there"


@pytest.mark.parametrize("name", [MARKER, CONFIG_MARKER])
def test_a_pipe_in_the_place_of_a_marker_is_replaced_and_not_waited_for(
    node: NodeSite, digest: str, name: str
) -> None:
    node.fetch(digest).done()
    marker = node.entry(digest).folder / name
    marker.unlink()
    os.mkfifo(marker)
    assert node.fetch(digest).done().fetched == 0
    assert marker.is_file()
    node.assert_whole(digest, node.files())


def test_root_without_any_capability_on_a_read_only_system_is_enough(node: NodeSite, digest: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    script = (
        'mount --bind "$0" "$0" && mount -o remount,bind,ro / && '
        "exec setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all --no-new-privs -- "
        """sh -c 'grep -q "CapEff:.0000000000000000" /proc/self/status && """
        """! touch /x 2>/dev/null && exec "$@"' sh "$@" """
    )
    old = node.publish("old")
    node.publish("one")
    files = node.files()
    node.within = ["unshare", "--mount", "sh", "-c", script, str(node.folder)]
    node.fetch(old).done()
    node.fetch(digest, "--budget", str(200 * 1024)).done()
    node.within = ()
    node.assert_whole(digest, files)
    os.truncate(node.entry(digest).folder / WEIGHTS, 5)
    node.within = ["unshare", "--mount", "sh", "-c", script, str(node.folder)]
    assert node.fetch(digest).done().document["repaired"] == [WEIGHTS]


# -- disks --------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_full_at_every_size_until_it_is_large_enough(
    node: NodeSite, digest: str
) -> None:
    files = node.files()
    with a_disk(node, "size=4k") as disk:
        for size in ("4k", "12k", "20k", "64k", "512k", "1100k"):
            disk.change(f"size={size}")
            failed = node.fetch(digest)
            failed.failed_as("CacheFull")
            assert any(word in failed.outcome.message for word in ("free", "No space"))
        disk.change("size=1300k")
        node.fetch(digest).done()
        node.assert_whole(digest, files)


def test_a_disk_without_inodes_is_full_at_each_file_that_is_made(node: NodeSite, digest: str) -> None:
    """The free bytes say nothing of this, so that no look beforehand helps: it is met while writing."""
    files = node.files()
    with a_disk(node, "size=8m,nr_inodes=2") as disk:
        refused = 0
        for inodes in range(2, 40, 2):
            disk.change(f"nr_inodes={inodes}")
            found = node.fetch(digest, "--parallel", "1")
            if found.outcome.code == 0:
                break
            found.failed_as("CacheFull")
            assert "No space left on device" in found.outcome.message
            refused += 1
        assert refused > 6
        node.assert_whole(digest, files)


def test_a_disk_that_somebody_else_fills_meanwhile(node: NodeSite, digest: str) -> None:
    files = node.files()
    with a_disk(node, "size=4m") as disk:
        hang_at(node, digest)
        running = node.start(digest, "--parallel", "1")
        wait_until(lambda: node.site.registry.struck > 0, "the request never came")
        subprocess.run([*disk.within, "sh", "-c", 'cat /dev/zero > "$0/fill"', str(node.root)],
                       capture_output=True, check=False)  # fmt: skip
        node.site.registry.heal()
        failed = running.ended()
        failed.failed_as("CacheFull")
        assert " are free)" in failed.outcome.message
        node.fetch(digest).failed_as("CacheFull")
        node.look("rm", str(node.root / "fill"))
        node.fetch(digest).done()
        node.assert_whole(digest, files)


def test_a_disk_that_went_read_only(node: NodeSite, digest: str) -> None:
    files = node.files()
    other = node.publish("other")
    with a_disk(node, "size=8m") as disk:
        node.fetch(digest).done()
        disk.change("ro")
        for wanted in (digest, other):
            failed = node.fetch(wanted)
            failed.failed_as("DiskFailed")
            assert "Read-only file system" in failed.outcome.message
        disk.change("rw")
        assert node.fetch(digest).done().fetched == 0
        node.fetch(other).done()
        node.assert_whole(digest, files)


def test_a_cache_that_is_not_there_or_no_folder_is_wrong_usage(node: NodeSite, digest: str) -> None:
    node.root.rmdir()
    node.fetch(digest).failed_as("Usage", 2)
    node.root.write_text("mine")
    node.fetch(digest).failed_as("Usage", 2)
    assert node.root.read_text() == "mine"


def test_a_tenants_folder_that_is_a_file(node: NodeSite, digest: str) -> None:
    (node.root / "team-a").write_text("mine")
    failed = node.fetch(digest)
    assert failed.outcome.code != 0
    assert failed.outcome.reason in ("DiskFailed", "UnsafeFileName")
    assert (node.root / "team-a").read_text() == "mine"
    (node.root / "team-a").unlink()
    node.fetch(digest).done()
