# SPDX-License-Identifier: Apache-2.0
"""`python -m dev.policy --cluster NAME` runs the policy agent, a test double, until a signal."""

from __future__ import annotations

import argparse
import logging
import signal

from dev.cluster import network, state
from dev.policy import folder, tables_of
from dev.policy.agent import Agent
from dev.policy.rules import Place


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.policy", description=__doc__)
    parser.add_argument("--cluster", required=True, help="an embedded cluster with a node")
    parser.add_argument(
        "--lag-seconds", type=float, default=0.0, help="new pods are open that long (default: 0)"
    )
    parser.add_argument("--hole", action="append", default=[], help="an nft match that always passes")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    cluster = state.load(arguments.cluster)
    if cluster is None:
        parser.error(f"there is no cluster {arguments.cluster}")
    place = Place(network.BRIDGE, cluster.api_port, tuple(arguments.hole))
    agent = Agent(cluster.kubeconfig, folder(cluster), tables_of(cluster), place, arguments.lag_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    agent.run()


if __name__ == "__main__":
    main()
