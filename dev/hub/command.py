# SPDX-License-Identifier: Apache-2.0
"""`python -m dev hub DIR --port N`: the hub double as a process that prints its endpoint and serves."""

import argparse
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dev.hub.server import HubServer

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(subparsers: "Subparsers") -> None:
    parser = subparsers.add_parser("hub", help="serve a folder org/name/… as the model hub does (a double)")
    _add_arguments(parser)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.hub", description="A double of the model hub.")
    _add_arguments(parser)
    return _serve(parser.parse_args(arguments))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, metavar="DIR", help="the folder that holds org/name/…")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port of the hub (default: a free one)")
    parser.add_argument("--storage-port", type=int, help="its storage origin (default: PORT + 1, or free)")
    parser.add_argument("--storage-url", help="the storage's address in redirects, where it is not HOST:PORT")
    parser.add_argument(
        "--tls", nargs=2, type=Path, metavar=("CERT", "KEY"), help="serve https with these PEM files"
    )
    parser.add_argument("--token", action="append", default=[], help="a token that is signed in (repeatable)")
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    root: Path = options.dir
    if not root.is_dir():
        print(f"{root} is not a folder; the hub double serves a folder that holds org/name/…")
        return 2
    port: int = options.port
    storage_port = options.storage_port if options.storage_port is not None else (port + 1 if port else 0)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with HubServer(
        root,
        host=options.host,
        port=port,
        storage_port=storage_port,
        storage_url=options.storage_url,
        tls=tuple(options.tls) if options.tls else None,
        tokens=frozenset(options.token),
    ) as hub:
        print(hub.endpoint, flush=True)
        ended.wait()
    return 0
