# SPDX-License-Identifier: Apache-2.0
"""`make bench-airgap`: every verb that moves bytes, against a bare pipe over the same bytes and other tools.

Everything runs on this machine in one run: the hub double, real registries, and the entrants of each verb
turn by turn. Ratios matter, absolute numbers belong to the machine. Sources of network verbs are in the page
cache, sources on disk are not; the disk is quiet before each turn. `flush` is how long it took to bring what
an entrant left in the page cache to the disk, `cached` how much was there, as a part of the bytes moved;
`fixed` is its time over a twin of 1 MiB, what does not grow with the bytes.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import ground as grounds
from bench import sheet
from bench.entrants import Tools, contests
from bench.ground import Ground
from bench.measure import MIB
from bench.race import race
from bench.ratios import Bytes, Outcome, as_json, promises
from bench.stage import Stage

VERBS = ("create", "verify", "split", "load", "pull", "delta", "mirror")
_ROOM = 7  # copies of a model at a time: hub, bundle, parts, two registries, what entrants write


def main(arguments: Sequence[str] | None = None) -> int:
    options = sheet.parser("python -m bench.airgap", __doc__, VERBS, _ROOM).parse_args(arguments)
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
    sheet.show_races(outcomes, options, console)
    sheet.show_promises(found, options, console)
    sheet.report("airgap", options, as_json(outcomes, found))
    return sheet.exit_code(found)


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


if __name__ == "__main__":
    sys.exit(main())
