# SPDX-License-Identifier: Apache-2.0
"""`python -m dev cluster up | down | status | env | policies`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable

from dev.cluster import state
from dev.cluster.errors import ClusterError
from dev.cluster.lifecycle import DEFAULT_NAME, down, status, up


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("cluster", help="the embedded cluster: a real Kubernetes without Docker")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, run, summary in (
        ("up", _up, "start it; what runs already is kept"),
        ("down", _down, "end everything it started and remove its folder"),
        ("status", _status, "what runs; exit 1 if the API does not answer"),
        ("env", _env, 'print shell exports: eval "$(python -m dev cluster env)"'),
        ("policies", _policies, "enforce network policies on the node, or enforce nothing"),
    ):
        verb = verbs.add_parser(name, help=summary, description=summary)
        verb.add_argument("--name", default=DEFAULT_NAME, help=f"default: {DEFAULT_NAME}")
        verb.set_defaults(run=_reporting_errors(run))
        if name == "up":
            verb.add_argument("--node", action="store_true", help="with a node that runs pods (root, Linux)")
            verb.add_argument(
                "--no-policies", action="store_true", help="the node enforces no network policy"
            )
        if name == "policies":
            verb.add_argument("state", choices=("on", "off"))


def _reporting_errors(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def reported(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except ClusterError as error:
            print(error, file=sys.stderr)
            return 1

    return reported


def _uses_kind() -> bool:
    return os.environ.get("CLUSTER", "embedded") == "kind"


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _up(arguments: argparse.Namespace) -> int:
    if _uses_kind():
        import dev.cluster.kind as kind

        print(f"kubeconfig: {kind.up(arguments.name, _say)}")
        return 0
    started = time.monotonic()
    policies = False if arguments.no_policies else None
    cluster = up(arguments.name, node=arguments.node, progress=_say, policies=policies)
    print(f"cluster {cluster.name} is up after {time.monotonic() - started:.1f} s")
    print(f"kubeconfig: {cluster.kubeconfig}")
    if cluster.settings.node:
        print(f"images:     {cluster.images}")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    if _uses_kind():
        import dev.cluster.kind as kind

        kind.down(arguments.name, _say)
        return 0
    if state.load(arguments.name) is None:
        print(f"There is no cluster {arguments.name}.")
        return 0
    down(arguments.name, progress=_say)
    print(f"cluster {arguments.name} is gone")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    parts = status(arguments.name)
    if not parts:
        known = ", ".join(state.names()) or "none"
        print(f"There is no cluster {arguments.name} (clusters here: {known}).")
        return 1
    for part in parts:
        print(f"{part.name:<26} {'running' if part.alive else 'down':<8} {part.detail}")
    return 0 if parts[0].alive else 1


def _policies(arguments: argparse.Namespace) -> int:
    cluster = state.load(arguments.name)
    if cluster is None or not cluster.settings.node:
        raise ClusterError(
            f"There is no cluster {arguments.name} with a node; `python -m dev cluster up --node` starts one."
        )
    from dev import policy

    (policy.start if arguments.state == "on" else policy.stop)(cluster)
    print(f"network policies are {'enforced' if arguments.state == 'on' else 'not enforced'}")
    return 0


def _env(arguments: argparse.Namespace) -> int:
    cluster = state.load(arguments.name)
    if cluster is None:
        raise ClusterError(f"There is no cluster {arguments.name}; start it with `python -m dev cluster up`.")
    exports = {"KUBECONFIG": str(cluster.kubeconfig)}
    if cluster.settings.node:
        exports["SOVEREIGN_IMAGES"] = cluster.images
    for key, value in exports.items():
        print(f"export {key}={shlex.quote(value)}")
    folder = shlex.quote(str(cluster.kubectl[0].rpartition("/")[0]))
    print(f'export PATH={folder}:"$PATH"')
    return 0
