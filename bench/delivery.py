# SPDX-License-Identifier: Apache-2.0
"""`make bench-delivery`: weights on a node, from the registry, from what is there already, from other nodes.

    deliver    a fetch Job's work against a bare pipe over the same bytes, other tools, and `pull`
    restart    what a pod waits for on a node that has the model, against a pull into an emptyDir
    revision   a model that shares all shards but one with what the node has, against a pipe for that one
    fan-out    several nodes from the registry, or from node to node (bench.fanout)

Everything runs on this machine in one run, turn by turn. Ratios matter, absolute numbers belong to the
machine. The registry's files are in the page cache, the node's are not; the disk is quiet before each turn.
`cached` is what an entrant left in the page cache, which its container is charged for, as a part of the
bytes moved; `fixed` is its time over a twin of 1 MiB. Pods are not started: scheduling, mounting and the two
seconds between a startup probe's looks come on top, for every entrant.
"""

import argparse
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench import fanout, node, sheet
from bench import ground as grounds
from bench.entrants import Tools
from bench.fanout import Spread
from bench.ground import Ground
from bench.measure import MIB
from bench.race import race
from bench.ratios import DELTA_SPARE, Outcome, Promise, Role, as_json, promises
from bench.relay import Relay

VERBS = ("deliver", "restart", "revision")
FAN_OUT = "fan-out"
_ROOM = 6  # copies of a model at a time: hub, registry, the node's cache, what entrants write, changed shards


@dataclass(frozen=True)
class Crossed:
    """Bytes that a registry sent, counted on the way and not by us: headers and manifests included."""

    first: int
    """For a node that has nothing."""
    restart: int
    """For a fetch of what the node has and a pod that starts on it."""
    revision: int
    """For the next revision."""
    changed: int
    """Of the one shard that the node has not."""


@dataclass(frozen=True)
class Found:
    outcomes: tuple[Outcome, ...]
    crossed: Crossed
    spreads: tuple[Spread, ...]
    no_fan_out: str | None
    """Why there are no spreads."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 170)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through every `finally`: nothing stays behind
    with tempfile.TemporaryDirectory(dir=options.work, prefix="bench-delivery-") as folder:
        work = Path(folder)
        free = os.statvfs(work).f_bavail * os.statvfs(work).f_frsize
        spread = (options.nodes + 4) * options.spread_size
        if free < (needed := max(_ROOM * options.size, spread)):
            console.print(f"{work} has {free // MIB} MiB free, {needed // MIB} MiB are needed; give --work.")
            return 2
        found = _measure(options, work, console)
    promised = (*promises(found.outcomes, None), *said(found))
    sheet.show_races(found.outcomes, options, console)
    _show_fan_out(found, options, console)
    sheet.show_promises(promised, options, console)
    link = {"spreadBytes": options.spread_size, "linkBytesPerSecond": options.link}
    spreads = {"fanOut": fanout.as_json(found.spreads)}
    sheet.report("delivery", options, link | as_json(found.outcomes, promised) | spreads)
    return sheet.exit_code(promised)


def said(found: Found) -> tuple[Promise, ...]:
    """What the runs say beside what every verb promises. Nobody promised a time: `wanted` is empty there."""
    by_verb = {outcome.verb: outcome for outcome in found.outcomes}
    rows: list[Promise] = []

    def told(what: str, ratio: float | None, more: str = "") -> None:
        if ratio is not None:
            rows.append(Promise(what, "", f"{ratio:.2f}{more}", None))

    if (deliver := by_verb.get("deliver")) and (ours := deliver.ours):
        moving = deliver.moving_to_floor(ours)
        more = "" if moving is None else f" ({moving:.2f} without fixed costs)"
        told("deliver: of the bare pipe and write", deliver.to_floor(ours), more)
        flushed = deliver.to_best(ours, on_disk=True)
        more = "" if flushed is None else f" ({flushed:.2f} until it is on the disk)"
        told("deliver: times the best peer", deliver.to_best(ours), more)
    if (restart := by_verb.get("restart")) and (ours := restart.ours):
        told("restart: times a pull into an emptyDir, compared", restart.to_best(ours))
        for hashed in restart.of(Role.ASIDE)[:1]:
            told("restart: times a pull into an emptyDir, hashed again", restart.to_best(hashed))
    if (revision := by_verb.get("revision")) and (ours := revision.ours):
        told("revision: of a bare pipe for what changed", revision.to_floor(ours))
        told("revision: times a fetch into an empty cache", revision.to_best(ours, Role.ASIDE))
    for spread in found.spreads:
        direct, tree = spread.links_alone
        what = f"{spread.nodes} nodes, registry's link x {spread.width}: a tree is times as fast"
        told(f"fan-out: {what}", spread.gain, f" (links alone: {direct / tree:.2f})")
    return (*rows, *_counted(found.crossed))


def _counted(crossed: Crossed) -> tuple[Promise, ...]:
    spare = crossed.revision - crossed.changed
    came = f"{crossed.revision / MIB:.1f} of {crossed.first / MIB:.1f} MiB came"
    return (
        Promise(
            "restart: bytes from the registry", "0", str(crossed.restart), crossed.restart == 0, exact=True
        ),
        Promise(
            "revision: bytes beside the changed shard",
            f"<= {DELTA_SPARE // MIB} MiB",
            f"{spare / MIB:.3f} MiB ({came})",
            spare <= DELTA_SPARE,
            exact=True,
        ),
    )


def _measure(options: argparse.Namespace, work: Path, console: Console) -> Found:
    wanted = options.only or (*VERBS, FAN_OUT)
    console.print(f"making two models of {options.size // MIB} MiB in {options.files} files")
    with (
        node.opened(work / "large", options.size, options.files, options.workers) as large,
        node.opened(work / "small", MIB, options.files, options.workers) as small,
    ):
        racing = [contest for contest in node.contests(Tools(work / "oras")) if contest.verb in wanted]
        outcomes = tuple(race(contest, large, small, options.repeat, console) for contest in racing)
        crossed = _count(large)
    grounds.remove(work / "large")
    why = fanout.absent() if FAN_OUT in wanted else "it was not asked for"
    if why is not None:
        return Found(outcomes, crossed, (), why)
    console.print(f"making a model of {options.spread_size // MIB} MiB for {options.nodes} nodes")
    with grounds.mirrored(work / "spread", options.spread_size, options.files, options.workers) as ground:
        spreads = fanout.measure(ground, options.nodes, options.link, options.repeat, console)
    return Found(outcomes, crossed, spreads, None)


def _count(ground: Ground) -> Crossed:
    listening = socket.create_server(("127.0.0.1", 0))
    with Relay(listening, ("127.0.0.1", ground.full.port)) as relay:

        def crossed(next_revision: bool = False) -> int:
            before = relay.sent
            node.fetch(ground, ground.out, relay.host, next_revision)
            return relay.sent - before

        try:
            first = crossed()
            restart = crossed()
            before = relay.sent
            node.hold(ground, "changed")
            restart += relay.sent - before
            revision = crossed(next_revision=True)
        finally:
            grounds.remove(ground.out)
    return Crossed(first, restart, revision, node.changed(ground).stat().st_size)


def _show_fan_out(found: Found, options: argparse.Namespace, console: Console) -> None:
    if found.spreads:
        console.print(fanout.table(found.spreads, options.spread_size, options.link))
    else:
        console.print(f"absent: {FAN_OUT}: {found.no_fan_out}", highlight=False, markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = sheet.parser("python -m bench.delivery", __doc__, (*VERBS, FAN_OUT), _ROOM)
    parser.add_argument("--nodes", type=int, default=4, help="of the fan-out (default: %(default)s)")
    parser.add_argument(
        "--spread-size", type=sheet.size, default=128 * MIB, help="of the fan-out's model (default: 128MiB)"
    )
    parser.add_argument(
        "--link", type=sheet.size, default=16 * MIB, help="a node's link, each second (default: 16MiB)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
