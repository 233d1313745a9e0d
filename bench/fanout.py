# SPDX-License-Identifier: Apache-2.0
"""Whether nodes should fetch from nodes: it is not built, so what it would bring is measured from outside.

Each node is a network namespace in which the real `cache fetch` runs, and so is the registry's end; they are
joined by a bridge, and no link leads out of them. Links have a rate (bench.relay), chosen so low that they
rule and not the few cores and the one disk that all nodes share here. Two ways for all nodes to get a model:

    registry   everybody from the registry, at the same time
    tree       one from the registry, then each that has it gives it to one that has not: 1, 2, 4 ...

A node that gives is stood for by a registry of its own with the same blobs, behind the node's own link: a
listener that no node has today. What choosing, finding and trusting a peer would cost is not in the figures.
"""

import ctypes
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import ground as grounds
from bench import node
from bench.ground import VENV, Ground
from bench.measure import MIB, run
from bench.relay import Link, Relay
from dev.registry import LocalRegistry

WIDTHS = (1, 4)
"""The registry's link, in links of a node."""
_PORT = 5000
_REGISTRY = "198.51.100.1"  # RFC 5737; these namespaces know no other network
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Spread:
    """How long all `nodes` took, each way, every turn. `copy`: seconds of one copy on a node's link."""

    width: int
    nodes: int
    copy: float
    registry: tuple[float, ...]
    tree: tuple[float, ...]

    @property
    def gain(self) -> float:
        """How many times as fast the tree is."""
        return statistics.median(self.registry) / statistics.median(self.tree)

    @property
    def links_alone(self) -> tuple[float, float]:
        """What the links allow, without programs that start, hash and write: registry, tree."""
        return self.copy * max(1, self.nodes / self.width), self.copy * (1 + len(rounds(self.nodes)))


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Who gives to whom, round by round; node 0 has the model. Everybody who has it gives it once a round."""
    planned = []
    having = 1
    while having < nodes:
        receiving = range(having, min(2 * having, nodes))
        planned.append(list(enumerate(receiving)))
        having += len(receiving)
    return planned


def absent() -> str | None:
    """Why it cannot be measured here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return None if shutil.which("ip") else "ip is not installed"


def measure(ground: Ground, nodes: int, rate: int, repeat: int, console: Console) -> tuple[Spread, ...]:
    """`rate`: bytes a second of a node's link, each way."""
    found: dict[tuple[int, str], list[float]] = {(width, way): [] for width in WIDTHS for way in _WAYS}
    with _lab(nodes) as lab, ExitStack() as stack:
        givers = [stack.enter_context(_giver(ground, number)) for number in range(nodes)]
        for turn in range(repeat):
            ways = list(found)
            first = turn % len(ways)
            for width, way in ways[first:] + ways[:first]:
                seconds = _one(ground, lab, givers, width, way, rate)
                found[width, way].append(seconds)
                console.print(
                    f"fan-out  turn {turn + 1}   {way}, registry's link x {width}: {seconds:7.2f} s"
                )
    size = ground.model.size
    return tuple(
        Spread(width, nodes, size / rate, tuple(found[width, "registry"]), tuple(found[width, "tree"]))
        for width in WIDTHS
    )


def table(spreads: Sequence[Spread], size: int, rate: int) -> Table:
    of = f"median of {len(spreads[0].tree)}"
    title = f"{spreads[0].nodes} nodes, {size // MIB} MiB each, links of {rate / MIB:g} MiB/s, {of}"
    shown = Table(title=title)
    shown.add_column("registry's link")
    for column in ("all from registry s", "links alone", "tree s", "links alone", "tree is x", "links alone"):
        shown.add_column(column, justify="right")
    for each in spreads:
        direct, tree = each.links_alone
        shown.add_row(
            "as a node's" if each.width == 1 else f"{each.width} times a node's",
            f"{statistics.median(each.registry):.1f}",
            f"{direct:.1f}",
            f"{statistics.median(each.tree):.1f}",
            f"{tree:.1f}",
            f"{each.gain:.2f}",
            f"{direct / tree:.2f}",
        )
    return shown


def as_json(spreads: Sequence[Spread]) -> list[dict[str, object]]:
    return [
        {
            "registryLink": each.width,
            "nodes": each.nodes,
            "registrySeconds": [round(one, 3) for one in each.registry],
            "treeSeconds": [round(one, 3) for one in each.tree],
            "linksAloneSeconds": [round(one, 3) for one in each.links_alone],
            "treeTimesAsFast": round(each.gain, 3),
        }
        for each in spreads
    ]


# -- one turn -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lab:
    """Namespaces by name; every node is at `address` of its number."""

    registry: str
    nodes: tuple[str, ...]

    def address(self, number: int) -> str:
        return f"198.51.100.{10 + number}"


def _one(
    ground: Ground, lab: _Lab, givers: Sequence[LocalRegistry], width: int, way: str, rate: int
) -> float:
    into = {lab.address(number): Link(rate) for number in range(len(lab.nodes))}
    ends = [
        (lab.registry, _REGISTRY, ground.full, Link(rate * width)),
        *((name, lab.address(at), givers[at], Link(rate)) for at, name in enumerate(lab.nodes)),
    ]
    with ExitStack() as stack:
        grounds.settle(ground.work)
        grounds.warm(ground.stored())
        stack.callback(grounds.remove, ground.out)
        hosts = []
        for name, address, served, out in ends:
            listening = _listening(name, address)
            relay = Relay(listening, ("127.0.0.1", served.port), out, into.__getitem__)
            hosts.append(stack.enter_context(relay).host)
        began = time.monotonic()
        _WAYS[way](partial(_fetch, ground, lab), hosts[0], hosts[1:])
        seconds = time.monotonic() - began
        for number in range(len(lab.nodes)):
            grounds.require_written(f"node {number}", _folder(ground, number), ground.model.size)
        return seconds


def _from_registry(fetch: "partial[None]", registry: str, nodes: Sequence[str]) -> None:
    _all_at_once([partial(fetch, number, registry) for number in range(len(nodes))])


def _from_tree(fetch: "partial[None]", registry: str, nodes: Sequence[str]) -> None:
    fetch(0, registry)
    for planned in rounds(len(nodes)):
        _all_at_once([partial(fetch, receiver, nodes[giver]) for giver, receiver in planned])


_WAYS = {"registry": _from_registry, "tree": _from_tree}


def _all_at_once(calls: Sequence["partial[None]"]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        for ended in [pool.submit(call) for call in calls]:
            ended.result()


def _fetch(ground: Ground, lab: _Lab, number: int, host: str) -> None:
    root = _folder(ground, number)
    root.mkdir(parents=True)
    reference = f"{host}/models/{ground.model.repo}@{ground.digest}"
    program = str(VENV / "sovereign-airgap")
    command = [program, *node.fetch_command(reference, root), "--progress", "none"]
    run(["ip", "netns", "exec", lab.nodes[number], *command])


def _folder(ground: Ground, number: int) -> Path:
    return ground.out / str(number)


@contextmanager
def _giver(ground: Ground, number: int) -> Iterator[LocalRegistry]:
    """Another registry process with the same blobs: other names of the same files."""
    folder = ground.work / f"giver-{number}"
    shutil.copytree(ground.full.folder / "data", folder / "data", copy_function=os.link)
    with LocalRegistry(folder) as registry:
        yield registry


# -- namespaces -----------------------------------------------------------------------------------------


@contextmanager
def _lab(nodes: int) -> Iterator[_Lab]:
    """Removes by name what it made, and nothing else; links go with their namespaces."""
    prefix = f"sov-fanout-{os.getpid()}"
    lab = _Lab(f"{prefix}-registry", tuple(f"{prefix}-{number}" for number in range(nodes)))
    with ExitStack() as made:
        for name in (lab.registry, *lab.nodes):
            _ip("netns", "add", name)
            made.callback(_ip, "netns", "delete", name)
            _ip("-n", name, "link", "set", "lo", "up")
        inside = ("-n", lab.registry)
        _ip(*inside, "link", "add", "switch", "type", "bridge")
        _ip(*inside, "address", "add", f"{_REGISTRY}/24", "dev", "switch")
        _ip(*inside, "link", "set", "switch", "up")
        for number, name in enumerate(lab.nodes):
            port = f"node{number}"
            _ip(*inside, *f"link add {port} type veth peer name eth0 netns {name}".split())
            _ip(*inside, "link", "set", port, "master", "switch", "up")
            _ip("-n", name, "address", "add", f"{lab.address(number)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
        yield lab


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, stdin=subprocess.DEVNULL, timeout=30)


def _listening(namespace: str, address: str) -> socket.socket:
    """A thread of its own goes there and ends; a socket stays where it was made."""

    def there() -> socket.socket:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/run/netns/{namespace}").open("rb") as handle:
            if libc.setns(handle.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), namespace)
        return socket.create_server((address, _PORT))

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(there).result()
