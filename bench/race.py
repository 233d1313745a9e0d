# SPDX-License-Identifier: Apache-2.0
"""One contest: its entrants turn by turn over the same ground, in one run."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench import ground as grounds
from bench import page_cache
from bench.entrants import Contest, Entrant
from bench.ground import Ground
from bench.measure import ContestantFailed
from bench.ratios import Outcome, Result, Role, Taken
from dev.registry import LocalRegistry

_FIXED_TURNS = 3


def race(contest: Contest, large: Ground, small: Ground, repeat: int, console: Console) -> Outcome:
    """`repeat` counted turns over `large` after a warm-up. A peer that fails over `small` is absent."""
    taking: list[Entrant] = []
    absent: list[tuple[str, str]] = []
    fixed: dict[str, float] = {}
    for entrant in contest.entrants:
        why = entrant.absent
        if why is None:
            try:
                turns = [_turn(contest, entrant, small).run.seconds for _ in range(_FIXED_TURNS)]
                fixed[entrant.name] = statistics.median(turns)
            except ContestantFailed as failure:
                if entrant.role is not Role.PEER:
                    raise
                why = str(failure)
        if why is None:
            taking.append(entrant)
        else:
            absent.append((entrant.name, why))
    taken: dict[str, list[Taken]] = {entrant.name: [] for entrant in taking}
    for turn in range(repeat + 1):
        # Everybody in turn, beginning with another one each time: what drifts, drifts for all.
        first = turn % len(taking)
        for entrant in taking[first:] + taking[:first]:
            one = _turn(contest, entrant, large)
            kept = f"turn {turn}" if turn else "warm-up"
            console.print(f"{contest.verb:8} {kept:8} {entrant.name:28} {one.run.seconds:7.2f} s")
            if turn:
                taken[entrant.name].append(one)
    results = tuple(
        Result(entrant.name, entrant.does, entrant.role, tuple(taken[entrant.name]), fixed[entrant.name])
        for entrant in taking
    )
    return Outcome(contest.verb, contest.floor, contest.size(large), results, tuple(absent))


def _turn(contest: Contest, entrant: Entrant, ground: Ground) -> Taken:
    empty = ground.work / "registry"
    cold = list(contest.cold(ground))
    try:
        grounds.settle(ground.work)
        grounds.warm(contest.warm(ground))
        grounds.evict(cold)
        if not contest.stores:
            run = entrant.go(ground)
            cached = _cached(ground, cold)
            began = time.monotonic()
            grounds.settle(ground.work)
            flush = time.monotonic() - began
            if contest.writes:
                grounds.require_written(entrant.name, ground.out, contest.size(ground))
            return Taken(run, flush, cached)
        with LocalRegistry(empty) as registry:
            run = entrant.go(replace(ground, registry=registry.host))
            cached = _cached(ground, cold)
            grounds.require_stored(entrant.name, ground.model, registry)
            return Taken(run, cached=cached)
    finally:
        grounds.remove(ground.out)
        grounds.remove(empty)


def _cached(ground: Ground, cold: Iterable[Path]) -> int:
    """What was not there before: pages of what the entrant wrote, and of what it found on the disk only."""
    written = grounds.files_below(ground.out) if ground.out.is_dir() else []
    return page_cache.resident([*written, *cold])
