# SPDX-License-Identifier: Apache-2.0
"""`python -m dev`: one door to the tools for development. Each module brings its own subcommand."""

from __future__ import annotations

import argparse
import importlib
import sys

# Where each subcommand lives; only the one that was asked for is imported.
SUBCOMMANDS = {
    "cluster": ("dev.cluster.command", "the embedded cluster: up, down, status, env, policies"),
    "binaries": ("dev.binaries", "build programs into the cache"),
    "images": ("dev.images", "build container images and push them to the embedded cluster's registry"),
    "hub": ("dev.hub", "a model hub over a folder"),
    "demo": ("dev.demo", "one manifest, one served model, one answer"),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev", description="Tools for development.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    for name, (module, summary) in SUBCOMMANDS.items():
        if name == wanted:
            importlib.import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    chosen = parser.parse_args(arguments)
    return int(chosen.run(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
