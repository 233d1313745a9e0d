# SPDX-License-Identifier: Apache-2.0
"""`python -m dev.kuberay --kubeconfig FILE` runs the KubeRay stand-in, a test double, until a signal."""

from __future__ import annotations

import argparse
import logging
import signal
import threading

from dev.kuberay import identity
from dev.kuberay.api import Api
from dev.kuberay.controller import Controller


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.kuberay", description=__doc__)
    parser.add_argument("--kubeconfig", required=True, help="never the current context: always a file")
    parser.add_argument("--period", type=float, default=1.0, help="seconds between two rounds (default: 1)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    controller = Controller(Api(arguments.kubeconfig, identity.USER), Api(arguments.kubeconfig))
    controller.run(stop, arguments.period)


if __name__ == "__main__":
    main()
