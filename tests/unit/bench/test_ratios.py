# SPDX-License-Identifier: Apache-2.0
"""What `bench-airgap` makes of its runs, and which promises it says are kept."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench.measure import MIB, Run
from bench.ratios import Bytes, Outcome, Promise, Result, Role, Taken, as_json, promises, races

SIZE = 2048 * MIB


def a_result(
    role: Role, *seconds: float, fixed: float | None = None, flush: float = 0.0, rss: int = 100 * MIB
) -> Result:
    taken = tuple(Taken(Run(one, one, rss, SIZE), flush) for one in seconds)
    return Result(str(role), "moves bytes", role, taken, fixed)


def an_outcome(verb: str, *results: Result) -> Outcome:
    return Outcome(verb, "a bare pipe", SIZE, results)


def counted(
    bundle: tuple[int, int] = (SIZE, SIZE), delta: int = 256 * MIB, changed: int = 256 * MIB
) -> Bytes:
    return Bytes(bundle, (SIZE, SIZE), delta, changed)


def one(found: tuple[Promise, ...], what: str) -> Promise:
    (promise,) = [promise for promise in found if what in promise.what]
    return promise


def test_the_ratio_to_the_floor_is_of_medians_and_one_means_as_fast() -> None:
    ours = a_result(Role.OURS, 9.0, 2.0, 2.5)
    outcome = an_outcome("pull", a_result(Role.FLOOR, 2.0, 2.0, 50.0), ours)
    assert outcome.to_floor(ours) == pytest.approx(0.8)


def test_without_fixed_costs_the_ratio_is_of_what_grows_with_the_bytes() -> None:
    ours = a_result(Role.OURS, 2.5, fixed=0.5)
    outcome = an_outcome("pull", a_result(Role.FLOOR, 1.7, fixed=0.1), ours)
    assert outcome.moving_to_floor(ours) == pytest.approx(0.8)


@pytest.mark.parametrize(("fixed", "why"), [(None, "not measured"), (3.0, "more than the whole run")])
def test_without_sensible_fixed_costs_there_is_no_such_ratio(fixed: float | None, why: str) -> None:
    ours = a_result(Role.OURS, 2.5, fixed=fixed)
    assert an_outcome("pull", a_result(Role.FLOOR, 1.7, fixed=0.1), ours).moving_to_floor(ours) is None, why


def test_the_bound_is_the_slower_of_disk_and_cores() -> None:
    ours = a_result(Role.OURS, 2.0)
    outcome = an_outcome("verify", a_result(Role.BOUND, 1.0), a_result(Role.BOUND, 1.9), ours)
    assert outcome.to_bound(ours) == pytest.approx(0.95)
    assert one(promises([outcome], None), "cores hash").kept is True


def test_the_best_peer_counts_and_who_was_given_half_of_the_way_does_not() -> None:
    ours = a_result(Role.OURS, 1.0)
    others = (a_result(Role.PEER, 4.0), a_result(Role.PEER, 1.4, flush=2.0), a_result(Role.ASIDE, 0.1))
    outcome = an_outcome("pull", ours, *others)
    assert outcome.to_best(ours) == pytest.approx(1.4)
    assert outcome.to_best(ours, on_disk=True) == pytest.approx(3.4)
    promise = one(promises([outcome], None), "best peer")
    assert (promise.kept, promise.found) == (False, "1.40 (3.40 until it is on the disk)")


def test_without_a_peer_on_the_machine_a_promise_is_neither_kept_nor_broken() -> None:
    outcome = an_outcome("load", a_result(Role.FLOOR, 1.0), a_result(Role.OURS, 1.0))
    promise = one(promises([outcome], None), "best peer")
    assert (promise.kept, promise.exact) == (None, False)


@pytest.mark.parametrize(("rss", "kept"), [(150 * MIB, True), (150 * MIB + 1, False)])
def test_peak_memory_is_promised_for_every_verb(rss: int, kept: bool) -> None:
    outcome = an_outcome("split", a_result(Role.OURS, 1.0, rss=rss))
    promise = one(promises([outcome], None), "split: peak memory")
    assert (promise.kept, promise.exact) == (kept, True)


@pytest.mark.parametrize(("spare", "kept"), [(MIB, True), (MIB + 1, False)])
def test_a_delta_may_hold_one_mebibyte_beside_what_changed(spare: int, kept: bool) -> None:
    found = promises([], counted(delta=256 * MIB + spare))
    assert one(found, "delta").kept is kept


@pytest.mark.parametrize(("copies", "kept"), [(1.01, True), (2.0, False)])
def test_create_may_write_one_copy_not_two(copies: float, kept: bool) -> None:
    found = promises([], counted(bundle=(int(copies * SIZE), SIZE)))
    assert one(found, "one model").kept is kept


def test_the_table_and_the_report_name_everybody_with_their_ratio() -> None:
    ours = a_result(Role.OURS, 2.5, fixed=0.5)
    outcome = an_outcome("load", a_result(Role.FLOOR, 2.0), ours, a_result(Role.PEER, 5.0))
    shown = io.StringIO()
    Console(file=shown, width=200).print(races([outcome], "title"))
    row = next(line for line in shown.getvalue().splitlines() if "ours" in line and "load" in line)
    assert "0.80" in row
    assert "859" in row, "MB/s"
    verbs = as_json([outcome], promises([outcome], None))["verbs"]
    assert isinstance(verbs, dict)
    assert verbs["load"]["floor"] == "a bare pipe"
    assert verbs["load"]["entrants"]["ours"]["ratioToFloor"] == 0.8
