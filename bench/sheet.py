# SPDX-License-Identifier: Apache-2.0
"""What benchmarks of several races have in common: their options, and how they tell what they found."""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.measure import MIB
from bench.ratios import Outcome, Promise, kept_or_not, races

_TELLING = 512 * MIB  # from here on times are of moving bytes


def parser(program: str, says: str | None, choices: Sequence[str], room: int) -> argparse.ArgumentParser:
    """`choices` are for --only; `room`: how many times the size has to fit into --work."""
    made = argparse.ArgumentParser(prog=program, description=says)
    made.add_argument("--size", type=size, default=2048 * MIB, help="of each model (default: 2048MiB)")
    made.add_argument("--files", type=int, default=8, help="in each model (default: %(default)s)")
    made.add_argument(
        "--repeat", type=int, default=3, help="counted turns after a warm-up (default: %(default)s)"
    )
    made.add_argument(
        "--workers", type=int, default=4, help="files at once, for the floors (default: %(default)s)"
    )
    made.add_argument("--only", action="append", choices=choices, help="repeatable")
    made.add_argument("--work", type=Path, help=f"a folder with room for {room} times the size")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    return made


def size(text: str) -> int:
    """Bytes of `<number>MiB`."""
    return int(text.removesuffix("MiB")) * MIB


def show_races(outcomes: Sequence[Outcome], options: argparse.Namespace, console: Console) -> None:
    if outcomes:
        what = f"{options.size // MIB} MiB in {options.files} files"
        console.print(races(outcomes, f"{what}, median of {options.repeat}"))
    for outcome in outcomes:
        console.print(f"floor of {outcome.verb}: {outcome.floor}", highlight=False)
        for name, why in outcome.absent:
            console.print(f"absent from {outcome.verb}: {name}: {why}", highlight=False, markup=False)


def show_promises(found: Sequence[Promise], options: argparse.Namespace, console: Console) -> None:
    console.print(kept_or_not(found))
    if options.size < _TELLING:
        console.print("At this size the times are of starting programs: only memory and bytes say something.")


def report(benchmark: str, options: argparse.Namespace, numbers: dict[str, object]) -> None:
    """One line of JSON on the standard output, and in --json."""
    about: dict[str, object] = {
        "benchmark": benchmark,
        "bytes": options.size,
        "files": options.files,
        "workers": options.workers,
        "repeat": options.repeat,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    told = about | numbers
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told))


def exit_code(found: Sequence[Promise]) -> int:
    """Times depend on the machine; memory and bytes do not."""
    return 1 if any(promise.exact and promise.kept is False for promise in found) else 0
