# SPDX-License-Identifier: Apache-2.0
"""`make bench-airgap`: every verb that moves bytes, against a bare pipe over the same bytes and other tools.

Everything runs on this machine in one run: the hub double, real registries, and the entrants of each verb
turn by turn. Ratios matter, absolute numbers belong to the machine. Sources of network verbs are in the page
cache, sources on disk are not; the disk is quiet before each turn. `flush` is how long it took to bring what
an entrant left in the page cache to the disk, `cached` how much was there, as a part of the bytes moved;
`fixed` is its time over a twin of 1 MiB, what does not grow with the bytes.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import ground as grounds
from bench.entrants import Tools, contests
from bench.ground import Ground
from bench.measure import MIB
from bench.race import race
from bench.ratios import Bytes, Outcome, Promise, as_json, kept_or_not, promises, races
from bench.stage import Stage

VERBS = ("create", "verify", "split", "load", "pull", "delta", "mirror")
_ROOM = 7  # copies of a model at a time: hub, bundle, parts, two registries, what entrants write
_TELLING = 512 * MIB  # from here on times are of moving bytes


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 170)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through every `finally`: nothing stays behind
    with tempfile.TemporaryDirectory(dir=options.work, prefix="bench-airgap-") as folder:
        work = Path(folder)
        free = os.statvfs(work).f_bavail * os.statvfs(work).f_frsize
        if free < (needed := _ROOM * options.size):
            console.print(f"{work} has {free // MIB} MiB free, {needed // MIB} MiB are needed; give --work.")
            return 2
        outcomes, counted = _measure(options, work, console)
    found = promises(outcomes, counted)
    _show(outcomes, found, options, console)
    report = {**_about(options), **as_json(outcomes, found)}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    # Times depend on the machine; memory and bytes do not.
    return 1 if any(promise.exact and promise.kept is False for promise in found) else 0


def _measure(
    options: argparse.Namespace, work: Path, console: Console
) -> tuple[tuple[Outcome, ...], Bytes | None]:
    console.print(f"making two models of {options.size // MIB} MiB in {options.files} files")
    wanted = options.only or VERBS
    with (
        grounds.opened(work / "large", options.size, options.files, options.workers) as large,
        grounds.opened(work / "small", MIB, options.files, options.workers) as small,
    ):
        racing = [contest for contest in contests(Tools(work / "oras")) if contest.verb in wanted]
        outcomes = tuple(race(contest, large, small, options.repeat, console) for contest in racing)
        return outcomes, _count(large) if {"create", "delta"} & set(wanted) else None


def _count(ground: Ground) -> Bytes:
    """What create writes for one model, for two that share files, and for a delta; and what it holds then."""
    both = (ground.model, ground.sibling)

    def made(*models: Stage, since: Path | None = None) -> tuple[int, int]:
        try:
            written = grounds.create(ground, ground.out, *models, since=since).written
            return written, grounds.size_below(ground.out)
        finally:
            grounds.remove(ground.out)

    return Bytes(
        bundle=made(ground.model),
        pair=made(*both),
        delta=made(*both, since=ground.bundle)[1],
        changed=ground.sibling.weights[-1].stat().st_size,
    )


def _show(
    outcomes: Sequence[Outcome], found: Sequence[Promise], options: argparse.Namespace, console: Console
) -> None:
    size = f"{options.size // MIB} MiB in {options.files} files"
    console.print(races(outcomes, f"{size}, median of {options.repeat}"))
    for outcome in outcomes:
        console.print(f"floor of {outcome.verb}: {outcome.floor}", highlight=False)
        for name, why in outcome.absent:
            console.print(f"absent from {outcome.verb}: {name}: {why}", highlight=False, markup=False)
    console.print(kept_or_not(found))
    if options.size < _TELLING:
        console.print("At this size the times are of starting programs: only memory and bytes say something.")


def _about(options: argparse.Namespace) -> dict[str, object]:
    return {
        "benchmark": "airgap",
        "bytes": options.size,
        "files": options.files,
        "workers": options.workers,
        "repeat": options.repeat,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.airgap", description=__doc__)
    parser.add_argument("--size", type=_bytes, default=2048 * MIB, help="of each model (default: 2048MiB)")
    parser.add_argument("--files", type=int, default=8, help="in each model (default: %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="counted turns after a warm-up (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=4, help="files at once, for the floors (default: %(default)s)"
    )
    parser.add_argument("--only", action="append", choices=VERBS, help="a verb (repeatable)")
    parser.add_argument("--work", type=Path, help=f"a folder with room for {_ROOM} times the size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    return parser


def _bytes(text: str) -> int:
    return int(text.removesuffix("MiB")) * MIB


if __name__ == "__main__":
    sys.exit(main())
