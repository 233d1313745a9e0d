# SPDX-License-Identifier: Apache-2.0
"""Builds the images of images/*/Containerfile and pushes them to the registry of the embedded cluster.

An image is rebuilt only when its inputs changed, and pushed only when the registry lacks its digest.
"""

from __future__ import annotations

import argparse

from dev.images.build import build_and_push
from dev.images.catalogue import CATALOGUE, Image
from dev.images.errors import BuildFailed

__all__ = ["CATALOGUE", "BuildFailed", "Image", "add_parser", "build_and_push"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Registers `images` with the dispatcher of `python -m dev`."""
    parser = subparsers.add_parser("images", help="build the images and push them to a registry")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(CATALOGUE)}; default: those of the demo"
    )
    parser.add_argument("--registry", metavar="HOST:PORT", help="plain HTTP; default: the embedded cluster's")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    names = arguments.names or ["operator", "airgap", "registry", "coredns", "serving-cpu", "demo-hub"]
    try:
        registry = arguments.registry or _embedded_registry()
        references = build_and_push(names, registry, progress=lambda line: print(line, flush=True))
    except BuildFailed as failure:
        print(failure)
        return 1
    for name, reference in references.items():
        print(f"{name}\t{reference}")
    return 0


def _embedded_registry() -> str:
    from dev.cluster import load
    from dev.cluster.lifecycle import DEFAULT_NAME

    if (cluster := load(DEFAULT_NAME)) is None:
        raise BuildFailed(
            "no --registry given and no embedded cluster found: python -m dev cluster up --node"
        )
    return cluster.images
