# SPDX-License-Identifier: Apache-2.0
"""What the runs of a benchmark mean: ratios to the floor and to the best peer, and the promises. Pure."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.table import Table

from bench.measure import MIB, Run

RSS_LIMIT = 150 * MIB
DELTA_SPARE = MIB
ONE_COPY = 1.05  # the index, the bill and the names of files are written beside the blobs


class Role(StrEnum):
    FLOOR = "floor"  # the bare pipe that the verb is compared with
    BOUND = "bound"  # the disk alone, or the cores alone: the slower of the two cannot be beaten
    OURS = "ours"
    PEER = "peer"  # does the same, or less; counts as one to beat
    ASIDE = "aside"  # shown, but does another thing: it was given half of the way, or starts elsewhere


@dataclass(frozen=True)
class Taken:
    """One counted run. `flush` (seconds) is what syncing the disk took after it ended.

    `cached`: bytes that it left in the page cache, of what it wrote and of what it had to read from the disk.
    """

    run: Run
    flush: float = 0.0
    cached: int = 0


@dataclass(frozen=True)
class Result:
    """All counted runs of one entrant. `fixed`: its seconds over next to no bytes, None if not measured."""

    name: str
    does: str
    role: Role
    taken: tuple[Taken, ...]
    fixed: float | None = None

    @property
    def seconds(self) -> float:
        return statistics.median(one.run.seconds for one in self.taken)

    @property
    def on_disk_seconds(self) -> float:
        """Until the bytes are on the disk: what an entrant left in the page cache is on its account."""
        return statistics.median(one.run.seconds + one.flush for one in self.taken)

    @property
    def cpu_seconds(self) -> float:
        return statistics.median(one.run.cpu_seconds for one in self.taken)

    @property
    def peak_rss(self) -> int:
        return max(one.run.peak_rss for one in self.taken)

    @property
    def written(self) -> int:
        return max(one.run.written for one in self.taken)

    @property
    def cached(self) -> int:
        return max(one.cached for one in self.taken)

    @property
    def moving_seconds(self) -> float | None:
        """Without what does not grow with the bytes; None where that was not measured or is all there is."""
        left = self.seconds - (self.fixed or 0.0)
        return left if self.fixed is not None and left > 0 else None


@dataclass(frozen=True)
class Outcome:
    """One verb: `size` bytes that everybody had to move, and the sentence that says what the floor was."""

    verb: str
    floor: str
    size: int
    results: tuple[Result, ...]
    absent: tuple[tuple[str, str], ...] = ()
    """Who could not take part, and why."""

    def of(self, role: Role) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.role is role)

    @property
    def ours(self) -> Result | None:
        return next(iter(self.of(Role.OURS)), None)

    def to_floor(self, result: Result) -> float | None:
        """Throughput as a part of the floor's: 1 is as fast, 0.5 takes twice as long."""
        return next((floor.seconds / result.seconds for floor in self.of(Role.FLOOR)), None)

    def moving_to_floor(self, result: Result) -> float | None:
        """The same without fixed costs: what the ratio tends to as the bytes grow."""
        mine = result.moving_seconds
        theirs = next((floor.moving_seconds for floor in self.of(Role.FLOOR)), None)
        return None if mine is None or theirs is None else theirs / mine

    def to_bound(self, result: Result) -> float | None:
        """Throughput as a part of what the disk reads or the cores hash, whichever is less."""
        bounds = [bound.seconds for bound in self.of(Role.BOUND)]
        return max(bounds) / result.seconds if bounds else None

    def to_best(self, result: Result, role: Role = Role.PEER, on_disk: bool = False) -> float | None:
        """How many times as fast as the fastest of a role."""
        others = self.of(role)
        if not others:
            return None
        if on_disk:
            return min(other.on_disk_seconds for other in others) / result.on_disk_seconds
        return min(other.seconds for other in others) / result.seconds


@dataclass(frozen=True)
class Bytes:
    """What was counted, not timed. `bundle` and `pair`: (bytes written, bytes in the bundle) by create of one
    model and of two; `delta`: bytes in the delta; `changed`: of the blobs that the base lacks."""

    bundle: tuple[int, int]
    pair: tuple[int, int]
    delta: int
    changed: int


@dataclass(frozen=True)
class Promise:
    """`kept` is None where it could not be looked at. `exact` ones do not depend on the machine's mood."""

    what: str
    wanted: str
    found: str
    kept: bool | None
    exact: bool = False


def promises(outcomes: Iterable[Outcome], counted: Bytes | None) -> tuple[Promise, ...]:
    by_verb = {outcome.verb: outcome for outcome in outcomes}
    found: list[Promise] = []

    def at_least(verb: str, what: str, least: float, ratio: float | None, more: str = "") -> None:
        shown = "nobody to compare with" if ratio is None else f"{ratio:.2f}{more}"
        kept = None if ratio is None else ratio >= least
        found.append(Promise(f"{verb}: {what}", f">= {least:g}", shown, kept))

    if (mirror := by_verb.get("mirror")) and (ours := mirror.ours):
        at_least("mirror", "of the floor", 0.8, mirror.to_floor(ours))
        at_least("mirror", "times the best two-step pipeline", 2, mirror.to_best(ours))
    for verb in ("pull", "load"):
        if (outcome := by_verb.get(verb)) and (ours := outcome.ours):
            flushed = outcome.to_best(ours, on_disk=True)
            more = f" ({flushed:.2f} until it is on the disk)" if flushed and verb == "pull" else ""
            at_least(verb, "times the best peer", 1.5, outcome.to_best(ours), more)
    if (verify := by_verb.get("verify")) and (ours := verify.ours):
        moving = verify.moving_to_floor(ours)
        more = "" if moving is None else f" ({moving:.2f} of the floor without fixed costs)"
        at_least("verify", "of what the cores hash or the disk reads", 0.9, verify.to_bound(ours), more)
    for outcome in by_verb.values():
        if ours := outcome.ours:
            peak = f"{ours.peak_rss / MIB:.0f} MiB"
            what = f"{outcome.verb}: peak memory"
            found.append(
                Promise(what, f"<= {RSS_LIMIT // MIB} MiB", peak, ours.peak_rss <= RSS_LIMIT, exact=True)
            )
    return (*found, *(_counted(counted) if counted else ()))


def _counted(counted: Bytes) -> Iterable[Promise]:
    for what, (written, held) in (("one model", counted.bundle), ("two models", counted.pair)):
        ratio = written / held
        yield Promise(
            f"create of {what}: bytes written for each byte of the bundle",
            f"<= {ONE_COPY}",
            f"{ratio:.3f} ({written / MIB:.1f} of {held / MIB:.1f} MiB)",
            ratio <= ONE_COPY,
            exact=True,
        )
    spare = counted.delta - counted.changed
    yield Promise(
        "delta: bytes beside the changed blobs",
        f"<= {DELTA_SPARE // MIB} MiB",
        f"{spare / MIB:.3f} MiB ({counted.delta / MIB:.1f} with {counted.changed / MIB:.1f} MiB changed)",
        spare <= DELTA_SPARE,
        exact=True,
    )


def races(outcomes: Sequence[Outcome], title: str) -> Table:
    """Who took how long at what."""
    table = Table(title=title)
    for column in ("verb", "", "what it does"):
        table.add_column(column)
    for column in ("s", "flush", "fixed", "MB/s", "of floor", "w/o fixed", "ours is x", "CPU s", "peak MiB"):
        table.add_column(column, justify="right")
    for column in ("written", "cached"):
        table.add_column(column, justify="right")
    for outcome in outcomes:
        for result in outcome.results:
            table.add_row(
                outcome.verb, result.name, result.does, *_cells(outcome, result), style=_style(result)
            )
        table.add_section()
    return table


def _cells(outcome: Outcome, result: Result) -> tuple[str, ...]:
    ours = outcome.ours
    times = None if ours is None or ours is result else result.seconds / ours.seconds
    flush = result.on_disk_seconds - result.seconds
    return (
        f"{result.seconds:.2f}",
        f"{flush:.2f}" if flush >= 0.005 else "",
        _ratio(result.fixed),
        f"{outcome.size / result.seconds / 1e6:.0f}",
        _ratio(outcome.to_floor(result)),
        _ratio(outcome.moving_to_floor(result)),
        _ratio(times),
        f"{result.cpu_seconds:.2f}",
        f"{result.peak_rss / MIB:.0f}",
        _part(result.written, outcome.size),
        _part(result.cached, outcome.size),
    )


def _part(count: int, size: int) -> str:
    return f"{count / size:.2f}" if count > size / 100 else ""


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _style(result: Result) -> str:
    return {Role.OURS: "bold", Role.ASIDE: "dim"}.get(result.role, "")


def kept_or_not(found: Sequence[Promise]) -> Table:
    table = Table(title="promises")
    for column in ("", "wanted", "found", "kept"):
        table.add_column(column)
    for promise in found:
        kept = {True: "yes", False: "[red]no", None: "-"}[promise.kept]
        table.add_row(promise.what, promise.wanted, promise.found, kept)
    return table


def as_json(outcomes: Sequence[Outcome], found: Sequence[Promise]) -> dict[str, object]:
    return {
        "verbs": {
            outcome.verb: {
                "bytes": outcome.size,
                "floor": outcome.floor,
                "entrants": {result.name: _entry(outcome, result) for result in outcome.results},
                "absent": dict(outcome.absent),
            }
            for outcome in outcomes
        },
        "promises": [
            {"what": each.what, "wanted": each.wanted, "found": each.found, "kept": each.kept}
            for each in found
        ],
    }


def _entry(outcome: Outcome, result: Result) -> dict[str, object]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 3)

    return {
        "role": str(result.role),
        "seconds": [round(one.run.seconds, 3) for one in result.taken],
        "flushSeconds": [round(one.flush, 3) for one in result.taken],
        "fixedSeconds": rounded(result.fixed),
        "cpuSeconds": rounded(result.cpu_seconds),
        "peakRss": result.peak_rss,
        "bytesWritten": result.written,
        "bytesLeftInPageCache": result.cached,
        "ratioToFloor": rounded(outcome.to_floor(result)),
        "ratioToFloorWithoutFixed": rounded(outcome.moving_to_floor(result)),
    }
