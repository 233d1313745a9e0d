# SPDX-License-Identifier: Apache-2.0
"""`make bench-mirror`: hub to registry for 2 GiB in 8 files, ours against a floor and against other tools.

Everything runs on this machine in one run: the hub double, a real registry started empty for each turn, and
the contestants turn by turn, repeatedly. Ratios matter, absolute numbers belong to the machine.
"""

import argparse
import json
import platform
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import sheet, stage
from bench.contestants import Contestant, Course, Floor, Ours, everybody
from bench.measure import MIB, ContestantFailed, Run
from dev.hub import HubServer
from dev.registry import LocalRegistry

RSS_LIMIT = 150 * MIB


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through every `finally`: nothing stays behind
    contestants: list[Contestant] = []
    for contestant in everybody():
        if options.only and contestant.name not in options.only:
            continue
        why = contestant.missing()
        if why is None:
            contestants.append(contestant)
        else:
            console.print(f"[yellow]{contestant.name} does not take part: {why}")
    with tempfile.TemporaryDirectory(dir=options.work, prefix="bench-mirror-") as work:
        needed = 5 * options.size
        if (free := shutil.disk_usage(work).free) < needed:
            console.print(f"{work} has {free // MIB} MiB free, {needed // MIB} MiB are needed; give --work.")
            return 2
        runs = _race(contestants, options, Path(work), console)
    console.print(_table(runs, contestants, options))
    report = _report(runs, options)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    peak = max((one.peak_rss for one in runs.get(Ours.name, [])), default=0)
    if peak > RSS_LIMIT:
        console.print(f"[red]Peak memory is {peak / MIB:.0f} MiB; the promise is {RSS_LIMIT // MIB} MiB.")
        return 1
    return 0


def _race(
    contestants: list[Contestant], options: argparse.Namespace, work: Path, console: Console
) -> dict[str, list[Run]]:
    console.print(f"making {options.size // MIB} MiB in {options.files} files")
    made = stage.build(work, options.size, options.files)
    runs: dict[str, list[Run]] = {contestant.name: [] for contestant in contestants}
    with HubServer(made.hub_folder) as hub:
        for turn in range(options.repeat + 1):
            # Everybody in turn, beginning with another one each time: what drifts, drifts for all.
            first = turn % len(contestants)
            for contestant in contestants[first:] + contestants[:first]:
                taken = _one(contestant, Course(made, hub, "", work, options.workers), work)
                kept = "warm-up" if turn == 0 else f"turn {turn}"
                console.print(f"{kept:8} {contestant.name:28} {taken.seconds:7.2f} s")
                if turn:
                    runs[contestant.name].append(taken)
    return runs


def _one(contestant: Contestant, course: Course, work: Path) -> Run:
    folder = work / "registry"
    try:
        with LocalRegistry(folder) as registry:
            given = Course(course.stage, course.hub, registry.host, work, course.workers)
            taken = contestant.go(given)
            _require_arrival(contestant, course.stage, registry)
            return taken
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_arrival(contestant: Contestant, made: stage.Stage, registry: LocalRegistry) -> None:
    for path, digest in zip(made.weights, made.digests, strict=True):
        stored = registry.blob_path(digest)
        if not stored.is_file() or stored.stat().st_size != path.stat().st_size:
            raise ContestantFailed(f"{contestant.name} did not bring {path.name} into the registry")


def _table(runs: dict[str, list[Run]], contestants: list[Contestant], options: argparse.Namespace) -> Table:
    table = Table(title=f"{options.size // MIB} MiB in {options.files} files, median of {options.repeat}")
    for column in ("", "what it does", "s", "MB/s", "of the floor", "CPU s", "peak MiB"):
        table.add_column(column, justify="left" if column in ("", "what it does") else "right")
    ratios = _ratios(runs)
    for contestant in contestants:
        taken = runs[contestant.name]
        seconds = _seconds(taken)
        ratio = ratios.get(contestant.name)
        table.add_row(
            contestant.name,
            contestant.moves,
            f"{seconds:.2f}",
            f"{options.size / seconds / 1e6:.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            f"{statistics.median(one.cpu_seconds for one in taken):.2f}",
            f"{max(one.peak_rss for one in taken) / MIB:.0f}",
            style="bold" if contestant.name == Ours.name else "",
        )
    return table


def _seconds(taken: list[Run]) -> float:
    return statistics.median(one.seconds for one in taken)


def _ratios(runs: dict[str, list[Run]]) -> dict[str, float]:
    """Throughput as a part of the floor's: 1 is as fast, 0.5 takes twice as long."""
    floor = runs.get(Floor.name)
    return {name: _seconds(floor) / _seconds(taken) for name, taken in runs.items()} if floor else {}


def _report(runs: dict[str, list[Run]], options: argparse.Namespace) -> dict[str, object]:
    return {
        "benchmark": "mirror",
        "bytes": options.size,
        "files": options.files,
        "workers": options.workers,
        "python": platform.python_version(),
        "ratioToFloor": {name: round(ratio, 3) for name, ratio in _ratios(runs).items()},
        "runs": {
            name: [
                {
                    "seconds": round(one.seconds, 3),
                    "cpuSeconds": round(one.cpu_seconds, 3),
                    "peakRss": one.peak_rss,
                }
                for one in taken
            ]
            for name, taken in runs.items()
        },
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.mirror", description=__doc__)
    parser.add_argument(
        "--size", type=sheet.size, default=2048 * MIB, help="all files together (default: 2048MiB)"
    )
    parser.add_argument("--files", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="counted turns after a warm-up (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=4, help="files at once, for the floor (default: %(default)s)"
    )
    parser.add_argument("--only", action="append", help="a contestant's name (repeatable)")
    parser.add_argument("--work", type=Path, help="a folder with room for five times the size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
