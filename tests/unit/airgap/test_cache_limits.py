# SPDX-License-Identifier: Apache-2.0
"""Fetches that need room, or meet another one: the budget holds, and who is needed stays."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sovereign_airgap.cache.eviction import evict
from sovereign_airgap.cache.fetch import FetchResult
from sovereign_airgap.cache.hold import shared
from sovereign_airgap.cache.layout import IN_USE, RESERVED, usage
from sovereign_airgap.cache.locks import alone
from sovereign_airgap.errors import (
    CacheBusy,
    CacheFull,
)
from tests.unit.airgap.cache_entries import an_entry, rot
from tests.unit.airgap.cache_node import (
    MIB,
    SHARD,
    Node,
    an_artifact,
    digest_of,
    size_of,
)
from tests.unit.airgap.models import some_bytes
from tests.unit.airgap.shelf import FILES


def test_whatever_was_used_longest_ago_goes_first(node: Node) -> None:
    a, b, c = (an_artifact(node, name) for name in "abc")
    for reference in (a, b):
        node.fetch(reference)
    node.fetch(a)
    found = node.fetch(c, budget=5 * MIB // 2)
    assert found.evicted == (f"team-a/{b.digest}",)
    assert node.entry(a).complete
    assert not node.entry(b).folder.exists()
    assert usage(node.cache.entries()) <= 5 * MIB // 2


def test_what_is_wanted_held_or_written_stays_and_then_there_is_no_room(node: Node) -> None:
    a, b, c, d = (an_artifact(node, name) for name in "abcd")
    for reference, tenant in ((a, "team-a"), (b, "team-b"), (c, "team-a")):
        node.fetch(reference, tenant)
    keep = (digest_of(b),)
    before = node.shelf.gets
    with (node.entry(a).folder / IN_USE).open("rb") as held, alone(node.entry(c).folder):
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(CacheFull, match="3 entries are in use or wanted"):
            node.fetch(d, budget=7 * MIB // 2, keep=keep)
        assert node.shelf.gets == before, "no byte came"
        assert not (node.entry(d).folder / RESERVED).exists()
    assert len(node.fetch(d, budget=7 * MIB // 2, keep=keep).evicted) == 1
    assert node.entry(b, "team-b").complete


def test_an_artifact_that_cannot_fit_at_all_evicts_nobody(node: Node) -> None:
    a, large = an_artifact(node, "a"), an_artifact(node, "large", 4 * MIB)
    node.fetch(a)
    with pytest.raises(CacheFull):
        node.fetch(large, budget=3 * MIB)
    with pytest.raises(CacheFull):
        node.fetch(large, reserve=1 << 60)
    assert node.entry(a).complete


def test_what_is_there_or_shared_needs_no_room(node: Node) -> None:
    a, b, c = (an_artifact(node, name) for name in "abc")
    node.fetch(a)
    node.fetch(b, budget=9 * MIB // 4)
    node.fetch(a, budget=1)
    with pytest.raises(CacheFull):
        node.fetch(c, budget=1)
    files = {
        "config.json": b"{}",
        SHARD: some_bytes(1024, "a") * 1024,
        "twin.safetensors": some_bytes(1024, "b") * 1024,
    }
    assert node.fetch(node.shelf.put(files), budget=9 * MIB // 4).fetched == 0


def test_what_is_damaged_takes_no_room_while_it_is_repaired(node: Node) -> None:
    node.fetch()
    just_enough = usage([node.entry()])
    rot(node.entry().folder / SHARD)
    assert node.fetch(budget=just_enough, verify_always=True).repaired == (SHARD,)
    node.require_whole(node.entry())


def test_a_pod_keeps_the_damaged_file_that_it_has_open(node: Node) -> None:
    node.fetch()
    shard = node.entry().folder / SHARD
    rot(shard)
    damaged = shard.read_bytes()
    with shard.open("rb") as held:
        assert node.fetch(verify_always=True).repaired == (SHARD,)
        assert held.read() == damaged
    node.require_whole(node.entry())


def test_what_is_complete_needs_no_byte_of_a_full_disk(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    node.fetch()
    used = node.entry().used
    monkeypatch.setattr(os, "write", full)
    assert node.fetch().fetched == 0
    assert node.entry().used == used, "it counts as older than it is"
    with pytest.raises(CacheFull):
        node.fetch(node.other)


def test_a_disk_that_fills_up_is_told_with_numbers(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def full(descriptor: int, view: memoryview) -> int:
        if len(view) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, view)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CacheFull, match=r"takes \d+ bytes of a budget of 1073741824, \d+ are free") as caught:
        node.fetch(budget=1 << 30)
    assert caught.value.retryable
    monkeypatch.undo()
    node.fetch(budget=1 << 30)
    node.require_whole(node.entry())


# -- at the same time ---------------------------------------------------------------------------------------


def test_two_fetches_never_write_to_one_entry(node: Node) -> None:
    node.fetch(config_only=True)
    with alone(node.entry().folder), pytest.raises(CacheBusy, match=r"at work for 0\.3 seconds"):
        node.fetch(seconds=0.3)
    node.fetch()
    node.require_whole(node.entry())


def test_a_fetch_waits_for_another_one_of_the_same_artifact(node: Node) -> None:
    entered = threading.Event()

    def hold(handler: object) -> bool:
        entered.set()
        released.wait(20)
        return False

    released = threading.Event()
    node.shelf.registry.next("GET blobs", hold)  # type: ignore[arg-type]
    results: list[FetchResult] = []
    threads = [threading.Thread(target=lambda: results.append(node.fetch())) for _ in range(2)]
    threads[0].start()
    assert entered.wait(20)
    threads[1].start()
    while node.progress.snapshot().phase != "waiting for another fetch":
        assert threads[1].is_alive()
        entered.wait(0.01)
    released.set()
    for thread in threads:
        thread.join(30)
    assert sorted(found.fetched for found in results) == [0, size_of(FILES)]
    node.require_whole(node.entry())


def test_two_fetches_at_once_do_not_overrun_the_budget(node: Node) -> None:
    old, a, b = (an_artifact(node, name) for name in ("old", "a", "b"))
    node.fetch(old)
    entered, released = threading.Event(), threading.Event()

    def hold(handler: object) -> bool:
        entered.set()
        released.wait(20)
        return False

    node.shelf.registry.next("GET blobs", hold, hold)  # type: ignore[arg-type]
    budget = 5 * MIB // 2
    first = threading.Thread(target=lambda: node.fetch(a, budget=budget))
    first.start()
    assert entered.wait(20)
    assert node.entry(a).reserved >= MIB
    with pytest.raises(CacheFull, match=r"\d{7} are promised"):
        node.fetch(b, budget=budget, keep=(digest_of(old),))
    released.set()
    first.join(30)
    assert node.entry(a).complete
    assert node.fetch(b, budget=budget).evicted == (f"team-a/{old.digest}",)


def test_an_eviction_and_a_pod_never_both_have_an_entry(tmp_path: Path) -> None:
    """Threads at the same entry without any agreement but its locks; whoever holds it finds it whole."""
    rounds, gone = 60, threading.Event()
    held: list[dict[str, bytes]] = []

    def hold(folder: Path) -> None:
        while not gone.is_set():
            with shared(folder) as is_ours:
                if is_ours:
                    held.append({path: (folder / path).read_bytes() for path in FILES})
            gone.wait(random.random() / 1000)

    for _ in range(rounds):
        entry = an_entry(tmp_path, files=FILES)
        gone.clear()
        with ThreadPoolExecutor(2) as pods:
            pending = [pods.submit(hold, entry.folder) for _ in range(2)]
            while not evict(entry):
                time.sleep(0.0001)
            gone.set()
            for each in pending:
                each.result()  # raises what it met
    assert len(held) > rounds // 2
    assert all(found == FILES for found in held)
