# SPDX-License-Identifier: Apache-2.0
"""Who leaves a node's cache: a table of situations, and what always holds."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.cache.eviction import evict, make_room, survey, sweep
from sovereign_airgap.cache.layout import IN_USE, RESERVED, USED, Blocks, Cache, Entry, usage, write_number
from sovereign_airgap.cache.locks import alone
from sovereign_airgap.cache.room import SPARE_BYTES, Limits, Occupant, choose, freed_by, on_disk, taken
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import CacheFull
from tests.unit.airgap.cache_entries import ONE, OTHER, SHARD, an_entry

MIB = 1 << 20
PLENTY = 1 << 50


def entry(name: str, tenant: str = "team-a") -> Entry:
    return Entry(tenant, Digest.of(name.encode()), Path("/cache", tenant, name))


WANTED = entry("wanted")


def an_occupant(name: str, size: int = 10, used: int = 1, **changes: object) -> Occupant:
    """An entry of `size` MiB in one file."""
    made = Occupant(entry(name), {(1, hash(name)): Blocks(size * MIB, 1)}, used=used)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def sharing(name: str, *files: tuple[int, int, int], used: int = 1) -> Occupant:
    """An entry of files (inode, MiB, links)."""
    blocks = {(1, inode): Blocks(size * MIB, links) for inode, size, links in files}
    return Occupant(entry(name), blocks, used=used)


def going(occupants: list[Occupant], need: int, free: int = PLENTY, **limits: int) -> list[str]:
    chosen = choose(WANTED, occupants, need * MIB, free, Limits(**{k: v * MIB for k, v in limits.items()}))
    return [each.entry.folder.name for each in chosen]


OLD, NEW = an_occupant("old", used=1), an_occupant("new", used=2)
PARTIAL = an_occupant("partial", used=9, complete=False)


@pytest.mark.parametrize(
    ("occupants", "need", "budget", "expected"),
    [
        ([], 10, 10, []),
        ([OLD, NEW], 10, 30, []),
        ([OLD, NEW], 0, 1, []),
        ([OLD, NEW], 10, 0, []),
        ([OLD, NEW], 11, 30, ["old"]),
        ([NEW, OLD], 20, 30, ["old"]),
        ([OLD, NEW], 21, 30, ["old", "new"]),
        ([OLD, NEW, PARTIAL], 10, 30, ["partial"]),
        ([OLD, NEW, PARTIAL], 20, 30, ["partial", "old"]),
        ([dataclasses.replace(OLD, stays=True), NEW], 11, 30, ["new"]),
        ([dataclasses.replace(OLD, being_written=True), NEW], 11, 30, ["new"]),
        ([an_occupant("wanted", used=0), NEW], 11, 30, ["new"]),
        # A small one goes only where that helps.
        ([an_occupant("small", 1, used=1), an_occupant("large", 20, used=2)], 10, 30, ["small"]),
        ([an_occupant("small", 1, used=1), an_occupant("large", 20, used=2)], 15, 30, ["large"]),
    ],
)
def test_the_oldest_go_and_as_few_as_possible(
    occupants: list[Occupant], need: int, budget: int, expected: list[str]
) -> None:
    assert going(occupants, need, budget=budget) == expected


def test_without_a_budget_the_disk_is_the_bound() -> None:
    spare = SPARE_BYTES
    assert going([OLD, NEW], 10, free=10 * MIB + spare) == []
    assert going([OLD, NEW], 10, free=10 * MIB + spare - 1) == ["old"]
    assert going([OLD, NEW], 10, free=15 * MIB + spare, reserve=5) == []
    assert going([OLD, NEW], 10, free=15 * MIB + spare - 1, reserve=5) == ["old"]


def test_a_budget_does_not_help_where_the_disk_is_smaller() -> None:
    assert going([OLD, NEW], 10, free=MIB, budget=1000) == ["old"]
    with pytest.raises(CacheFull):
        going([OLD, NEW], 50, free=MIB, budget=1000)


def test_what_two_share_comes_free_with_the_second_of_them() -> None:
    one, two = sharing("one", (7, 10, 2), (8, 1, 1), used=1), sharing("two", (7, 10, 2), (9, 1, 1), used=2)
    three = sharing("three", (5, 10, 1), used=3)
    assert taken([one, two, three]) == 22 * MIB
    assert freed_by([one]) == MIB
    assert freed_by([one, two]) == 12 * MIB
    # Taking `one` alone gives a MiB back: with `two` it helps.
    assert going([one, two, three], 10, budget=22) == ["one", "two"]
    assert going([one, dataclasses.replace(two, stays=True), three], 10, budget=22) == ["three"]


def test_a_file_that_somebody_linked_elsewhere_does_not_come_free() -> None:
    with pytest.raises(CacheFull):
        going([sharing("one", (7, 10, 2))], 10, budget=10)


def test_many_who_have_to_go_are_not_looked_at_over_and_over() -> None:
    looks = 0

    class Counted(dict[tuple[int, int], Blocks]):
        def items(self) -> Any:
            nonlocal looks
            looks += 1
            return super().items()

    occupants = [Occupant(entry(str(at)), Counted({(1, at): Blocks(MIB, 1)}), used=at) for at in range(200)]
    assert len(going(occupants, 150, budget=200)) == 150
    assert looks <= 3 * 200, "each comes once, may leave again, and come back"


def test_what_other_fetches_have_reserved_is_taken() -> None:
    writing = an_occupant("writing", 1, being_written=True, reserved=20 * MIB)
    assert going([writing, OLD], 10, budget=40) == []
    assert going([writing, OLD], 11, budget=40) == ["old"]
    assert going([writing, OLD], 10, free=29 * MIB + SPARE_BYTES) == []
    assert going([writing, OLD], 10, free=29 * MIB + SPARE_BYTES - 1) == ["old"]
    # It has more than it said, or it ended: then only what is there counts.
    more = an_occupant("writing", 25, being_written=True, reserved=20 * MIB)
    ended = an_occupant("ended", 1, reserved=20 * MIB)
    assert going([more, OLD], 5, budget=40) == []
    assert going([ended, OLD], 29, budget=40) == []
    # The wanted one's own reservation is what is asked for now.
    again = an_occupant("wanted", 1, being_written=True, reserved=20 * MIB)
    assert going([again, OLD], 19, budget=30) == []


def test_nobody_goes_where_all_of_them_would_not_be_enough() -> None:
    with pytest.raises(CacheFull) as caught:
        going([OLD, dataclasses.replace(NEW, stays=True)], 21, budget=30, free=123)
    told = str(caught.value)
    assert caught.value.retryable
    for number in (21 * MIB, 20 * MIB, 30 * MIB, 10 * MIB, 123):
        assert str(number) in told
    assert str(WANTED) in told
    assert "1 entries are in use or wanted" in told
    assert len(told) < 1000


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Occupant], int, int, Limits]:
    inodes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=8))
    owners = [draw(st.sets(st.integers(0, 5), min_size=1)) for _ in inodes]
    occupants = [
        Occupant(
            entry(str(name)),
            {
                (1, at): Blocks(size * MIB, len(owners[at]))
                for at, size in enumerate(inodes)
                if name in owners[at]
            },
            complete=draw(st.booleans()),
            used=draw(st.integers(0, 3)),
            reserved=draw(st.integers(0, 50)) * MIB,
            being_written=draw(st.booleans()),
            stays=draw(st.booleans()),
        )
        for name in range(6)
    ]
    limits = Limits(draw(st.integers(0, 200)) * MIB, draw(st.integers(0, 10)) * MIB)
    return occupants, draw(st.integers(0, 60)) * MIB, draw(st.integers(0, 120)) * MIB, limits


@given(situations())
def test_whoever_goes_may_go_is_needed_and_is_enough(
    situation: tuple[list[Occupant], int, int, Limits],
) -> None:
    occupants, need, free, limits = situation
    candidates = [each for each in occupants if each.may_go]

    def fits(gone: list[Occupant]) -> bool:
        left = [each for each in occupants if each not in gone]
        to_come = sum(each.to_come for each in left)
        in_budget = not limits.budget or taken(left) + to_come + need <= limits.budget
        return in_budget and free + freed_by(gone) - to_come - limits.reserve - SPARE_BYTES >= need

    try:
        chosen = list(choose(WANTED, occupants, need, free, limits))
    except CacheFull:
        assert not fits(candidates)
        return
    assert all(each in candidates for each in chosen)
    assert not need or fits(chosen)
    for each in chosen:
        assert not fits([other for other in chosen if other is not each]), "one of them went in vain"


def test_sizes_are_counted_in_blocks() -> None:
    assert on_disk([]) == on_disk([0]) == 0
    assert on_disk([1, 4096, 4097]) == 4 * 4096


# -- on a disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    (tmp_path / "cache").mkdir()
    return Cache(tmp_path / "cache")


def test_an_entry_leaves_with_all_that_it_has(cache: Cache) -> None:
    one, two = an_entry(cache.root), an_entry(cache.root, "team-b")
    assert evict(one)
    assert cache.entries() == [two]
    assert list((cache.root / "team-a").iterdir()) == [], "the tenant's folder stays: pods mount it"


def test_an_entry_that_a_pod_holds_stays(cache: Cache) -> None:
    entry = an_entry(cache.root)
    with (entry.folder / IN_USE).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert not evict(entry)
    with alone(entry.folder):
        assert not evict(entry)
    assert entry.complete
    assert evict(entry)


def test_whoever_waited_for_an_evicted_entry_finds_that_its_path_leads_elsewhere(cache: Cache) -> None:
    entry = an_entry(cache.root)
    with (entry.folder / IN_USE).open("rb") as waiting:
        assert evict(entry)
        fcntl.flock(waiting, fcntl.LOCK_SH)
        assert not (entry.folder / IN_USE).exists()


def test_a_survey_tells_what_the_decision_asks(cache: Cache) -> None:
    one = an_entry(cache.root)
    two = an_entry(cache.root, "team-b", "other", complete=False)
    write_number(one.folder / USED, 7)
    write_number(two.folder / RESERVED, 70)
    with (one.folder / IN_USE).open("rb") as held, alone(two.folder):
        fcntl.flock(held, fcntl.LOCK_SH)
        first, second = survey(cache)
    assert (first.entry, first.complete, first.used, first.stays) == (one, True, 7, True)
    assert (first.size, first.being_written) == (usage([one]), False)
    assert (second.complete, second.reserved, second.stays, second.being_written) == (False, 70, False, True)
    assert [each.stays for each in survey(cache, {OTHER})] == [False, True]


def test_a_file_with_two_names_in_one_entry_comes_free_with_it(cache: Cache) -> None:
    twins = an_entry(cache.root)
    shard = twins.folder / SHARD
    (twins.folder / "twin.safetensors").hardlink_to(shard)
    (alone_with_it,) = survey(cache)
    assert freed_by([alone_with_it]) == taken([alone_with_it]) == usage([twins])

    sibling = an_entry(cache.root, name="other")
    (sibling.folder / SHARD).unlink()
    (sibling.folder / SHARD).hardlink_to(shard)
    both = survey(cache)
    assert freed_by(both) == taken(both)
    shared = shard.stat().st_blocks * 512
    assert [freed_by([each]) for each in both] == [each.size - shared for each in both]


def test_another_one_goes_where_a_pod_came_in_between(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = an_entry(cache.root), an_entry(cache.root, name="other")
    write_number(one.folder / USED, 1)
    write_number(two.folder / USED, 2)
    wanted = cache.entry("team-b", ONE)
    limits = Limits(budget=usage([one, two]) + MIB)
    with (one.folder / IN_USE).open("rb") as held:
        monkeypatch.setattr(Entry, "in_use", lambda _: False)  # as it was when the decision was made
        fcntl.flock(held, fcntl.LOCK_SH)
        assert make_room(cache, wanted, MIB + 4096, limits, ()) == (two,)
        with pytest.raises(CacheFull):
            make_room(cache, wanted, 2 * MIB, limits, ())
    assert cache.entries() == [one]


@pytest.mark.parametrize("jump", [-(10**9), 10**9])
def test_a_clock_that_jumps_changes_nothing(cache: Cache, jump: int) -> None:
    one, two = an_entry(cache.root), an_entry(cache.root, name="other")
    write_number(one.folder / USED, 1)
    write_number(two.folder / USED, 2)
    for path in (one.folder, one.folder / USED, one.folder / IN_USE):
        os.utime(path, (time.time() + jump, time.time() + jump))
    limits = Limits(budget=usage([one, two]))
    assert make_room(cache, cache.entry("team-b", ONE), 4096, limits, ()) == (one,)


def test_what_killed_runs_left_is_swept_but_not_what_is_being_written(cache: Cache, tmp_path: Path) -> None:
    stale, live = an_entry(cache.root), an_entry(cache.root, name="other")
    evicted = cache.root / "team-a" / ".evicted-0123"
    for path in (evicted / "sub" / "file", cache.root / ".sovereign-00.partial"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    (cache.root / "team-a" / ".evicted-link").symlink_to(tmp_path)
    for entry in (stale, live):
        write_number(entry.folder / RESERVED, 10**12)
        (entry.folder / "original" / ".sovereign-00.partial").write_bytes(b"half")
    with alone(live.folder):
        sweep(cache)
    assert not evicted.exists()
    assert not list(cache.root.glob(".sovereign-*"))
    assert tmp_path.exists()
    assert not (stale.folder / RESERVED).exists()
    assert not list(stale.folder.rglob("*.partial"))
    assert live.reserved == 10**12
    assert list(live.folder.rglob("*.partial"))
    assert stale.complete
