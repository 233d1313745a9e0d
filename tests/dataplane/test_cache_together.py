# SPDX-License-Identifier: Apache-2.0
"""What fetches share on a node, and what they take from each other: damage, room, locks."""

import fcntl
import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from dev.registry import free_port
from sovereign_airgap.cache.layout import IN_USE, RESERVED, USED, usage, write_number
from tests.dataplane.cache_site import (
    NodeSite,
    hang_at,
    size,
    wait_until,
    wait_until_only_one_is_missing,
)
from tests.dataplane.models import SECOND, WEIGHTS
from tests.dataplane.test_process import COMMAND
from tests.unit.airgap.cache_entries import rot

MIB = 1 << 20


@pytest.fixture
def digest(node: NodeSite) -> str:
    return node.publish("one")


# -- damage and sharing -------------------------------------------------------------------------------------


def test_a_tampered_file_is_found_by_hashing_and_repaired(node: NodeSite, digest: str) -> None:
    node.fetch(digest).done()
    files = node.files()
    rot(node.entry(digest).folder / WEIGHTS)
    assert node.fetch(digest).done().fetched == 0, "size and time are as they were"
    found = node.fetch(digest, "--verify", "always").done()
    assert (found.document["repaired"], found.fetched) == ([WEIGHTS], len(files[WEIGHTS]))
    node.assert_whole(digest, files)
    assert node.fetch(digest, "--verify", "always").done().document["repaired"] == []


def test_two_tenants_with_the_same_artifact_share_nothing(node: NodeSite, digest: str) -> None:
    files = node.files()
    for tenant in ("team-a", "team-b"):
        found = node.fetch(digest, tenant=tenant).done()
        assert (found.fetched, found.document["linkedBytes"]) == (size(files), 0)
    for tenant in ("team-a", "team-b"):
        node.assert_whole(digest, files, tenant)
        links = {
            path.stat().st_nlink for path in node.entry(digest, tenant).folder.rglob("*") if path.is_file()
        }
        assert links == {1}
    rot(node.entry(digest, "team-a").folder / WEIGHTS)
    node.assert_whole(digest, files, "team-b")


def test_two_revisions_of_a_tenant_share_their_shards(node: NodeSite, digest: str) -> None:
    first = node.files()
    shard = {WEIGHTS: first[WEIGHTS]}
    other = node.publish("two", **shard)
    second = node.files()
    node.fetch(digest).done()
    found = node.fetch(other).done()
    assert found.document["linkedBytes"] == size(
        {path: body for path, body in second.items() if first[path] == body}
    )
    assert (node.entry(digest).folder / WEIGHTS).samefile(node.entry(other).folder / WEIGHTS)
    assert not (node.entry(digest).folder / SECOND).samefile(node.entry(other).folder / SECOND)
    node.assert_whole(digest, first)
    node.assert_whole(other, second)

    # What is shared is still there when one of them goes.
    third = node.publish("three")
    found = node.fetch(third, "--budget", str(usage(node.cache.entries()) + 64 * 1024)).done()
    assert found.document["evicted"] == [f"team-a/{digest}"]
    node.assert_whole(other, second)


def test_damage_to_a_shared_shard_is_repaired_in_both(node: NodeSite, digest: str) -> None:
    first = node.files()
    other = node.publish("two", **{WEIGHTS: first[WEIGHTS]})
    second = node.files()
    node.fetch(digest).done()
    node.fetch(other).done()
    rot(node.entry(digest).folder / WEIGHTS)
    node.fetch(digest, "--verify", "always").done()
    assert not node.entry(other).complete, "a pod could start on the damaged shard"
    assert node.fetch(other).done().fetched == 0
    node.assert_whole(digest, first)
    node.assert_whole(other, second)


# -- room, and each other -----------------------------------------------------------------------------------


def test_two_fetches_at_once_stay_within_the_budget(node: NodeSite, digest: str) -> None:
    other = node.publish("other")
    files = node.files()
    budget = ("--budget", str(200 * 1024))
    hang_at(node, digest)
    first = node.start(digest, *budget, at="one")
    wait_until_only_one_is_missing(node, digest)
    failed = node.start(other, *budget, at="two").ended()
    failed.failed_as("CacheFull")
    assert "promised to other fetches" in failed.outcome.message
    node.site.registry.heal()
    first.ended().done()
    assert usage(node.cache.entries()) <= 200 * 1024
    assert node.fetch(other, *budget).done().document["evicted"] == [f"team-a/{digest}"]
    node.assert_whole(other, files)
    assert usage(node.cache.entries()) <= 200 * 1024


def test_two_fetches_of_the_same_bring_it_once(node: NodeSite, digest: str) -> None:
    hang_at(node, digest)
    first = node.start(digest, at="one")
    wait_until_only_one_is_missing(node, digest)
    port = free_port()
    second = node.start(digest, "--progress-port", str(port), at="two")
    wait_until(lambda: phase(port) == "waiting for another fetch", "it did not wait")
    node.site.registry.heal()
    assert first.ended().done().fetched == size(node.files())
    assert second.ended().done().fetched == 0
    node.assert_whole(digest, node.files())


def phase(port: int) -> str:
    """What the operator reads of a fetch that runs."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=5) as answer:
            return str(json.loads(answer.read())["phase"])
    except OSError:
        return ""


def test_a_pod_that_holds_an_artifact_keeps_it(node: NodeSite, digest: str) -> None:
    files = node.files()
    node.fetch(digest).done()
    other = node.publish("other")
    held = node.folder / "held"
    holder = subprocess.Popen(
        [COMMAND, "cache", "hold", "--tenant-dir", str(node.root / "team-a"), "--manifest", digest,
         "--held-file", str(held)]
    )  # fmt: skip
    try:
        wait_until(held.exists, "it was never held")
        failed = node.fetch(other, "--budget", str(200 * 1024))
        failed.failed_as("CacheFull")
        assert "1 entries are in use or wanted" in failed.outcome.message
        node.assert_whole(digest, files)
    finally:
        holder.terminate()
        assert holder.wait(30) == 0
    found = node.fetch(other, "--budget", str(200 * 1024)).done()
    assert found.document["evicted"] == [f"team-a/{digest}"]


def test_a_killed_holder_holds_nothing(node: NodeSite, digest: str) -> None:
    node.fetch(digest).done()
    other = node.publish("other")
    lock = node.entry(digest).folder / IN_USE
    holder = subprocess.Popen(["flock", "--shared", "--no-fork", str(lock), "sleep", "600"])
    wait_until(node.entry(digest).in_use, "it was never held")
    holder.kill()
    holder.wait()
    node.fetch(other, "--budget", str(200 * 1024)).done()
    assert not node.entry(digest).folder.exists()


@pytest.mark.parametrize("jump", [-(20 * 365 * 86400), 20 * 365 * 86400])
def test_a_clock_that_jumps_changes_no_order(node: NodeSite, digest: str, jump: int) -> None:
    node.fetch(digest).done()
    other = node.publish("other")
    node.fetch(other).done()
    third = node.publish("third")
    when = time.time() + jump
    for place in (node.entry(digest).folder, *node.entry(digest).folder.iterdir()):
        os.utime(place, (when, when))
    found = node.fetch(third, "--budget", str(usage(node.cache.entries()) + 64 * 1024)).done()
    assert found.document["evicted"] == [f"team-a/{digest}"]
    assert node.entry(other).complete


def test_what_killed_runs_left_is_swept(node: NodeSite, digest: str) -> None:
    other = node.publish("other")
    files = node.files()
    hang_at(node, digest)
    running = node.start(digest)
    wait_until_only_one_is_missing(node, digest)
    running.kill()
    node.site.registry.heal()
    killed = node.entry(digest).folder
    write_number(killed / RESERVED, 1 << 50)
    evicted = node.root / "team-b" / ".evicted-0123456789abcdef"
    evicted.mkdir(parents=True)
    (evicted / "shard").write_bytes(b"x" * MIB)

    node.fetch(other, "--budget", str(MIB)).done()
    assert not evicted.exists()
    assert not (killed / RESERVED).exists()
    assert not list(killed.glob("*.partial"))
    node.assert_whole(other, files)


def test_an_eviction_and_a_pod_that_starts_never_both_have_it(node: NodeSite, digest: str) -> None:
    """Real processes, again and again: either the pod holds a whole artifact, or it finds none."""
    node.fetch(digest).done()
    files = node.files()
    other = node.publish("other")
    tenant = node.root / "team-a"
    for round_ in range(6):
        held = node.folder / f"held-{round_}"
        holder = subprocess.Popen(
            [COMMAND, "cache", "hold", "--tenant-dir", str(tenant), "--manifest", digest, "--seconds", "1",
             "--held-file", str(held)],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(round_ * 0.1)
        fetched = node.fetch(other, "--budget", str(200 * 1024))
        wait_until(lambda held=held, holder=holder: held.exists() or holder.poll() is not None, "it hangs")
        if holder.poll() is None:
            fetched.failed_as("CacheFull")
            node.assert_whole(digest, files)
            holder.terminate()
        else:
            assert fetched.outcome.code == 0
            assert not node.entry(digest).folder.exists()
        holder.wait(30)
        node.fetch(digest, "--budget", str(200 * 1024)).done()


def test_the_number_of_the_last_fetch_outlives_a_lost_sequence(node: NodeSite, digest: str) -> None:
    node.fetch(digest).done()
    write_number(node.entry(digest).folder / USED, 70)
    (node.root / ".sequence").unlink()
    node.fetch(digest).done()
    assert node.entry(digest).used == 71


def test_a_cache_whose_lock_somebody_keeps_is_waited_for(node: NodeSite, digest: str) -> None:
    lock = node.root / ".lock"
    with lock.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        running = node.start(digest)
        opened = Path(f"/proc/{running.command.process.pid}/fd")
        wait_until(
            lambda: lock in [each.resolve() for each in opened.iterdir()], "it did not ask for the lock"
        )
        running.command.process.send_signal(signal.SIGTERM)
        running.ended().failed_as("Interrupted")
    node.fetch(digest).done()
