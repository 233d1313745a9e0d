# SPDX-License-Identifier: Apache-2.0
"""The process: configuration, logs, one connection, the work queue, and kopf's watches under a
supervisor.

kopf resolves what to watch once, at its start. When KubeRay appears or goes, or a watch dies, the watches
are rebuilt inside the process while the queue holds still; nothing else is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import aiohttp
import yaml
from pydantic import ValidationError

from sovereign_operator import handlers, metrics
from sovereign_operator.carry_out import Executor
from sovereign_operator.cluster import Cluster, connected
from sovereign_operator.config import CONFIG_ENVIRONMENT, DEFAULT_CONFIG_PATH, OperatorConfig, parse_config
from sovereign_operator.indices import Indices, Key, NodeWatch
from sovereign_operator.kuberay import KubeRayState
from sovereign_operator.observe import Senses
from sovereign_operator.progress import ProgressReader
from sovereign_operator.reconcile import Reconciler
from sovereign_operator.registry import RegistryReader
from sovereign_operator.supervision import supervise
from sovereign_operator.system_watch import SystemWatch
from sovereign_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

EXIT_USAGE: Final = 2
# One line never floods a log: messages of others (API servers, schedulers) come in any length.
MAX_LINE: Final = 2000


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname, "logger": record.name, "message": _cut(text)}
        return json.dumps(line, ensure_ascii=False)


class PlainLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _cut(super().format(record))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}… ({len(text)} characters)"


def configure_logs(form: str, level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    plain = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(JsonLines() if form == "json" else PlainLines(plain))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # kopf tells of every event that it handles; we tell of what we do.
    for name in ("kopf", "aiohttp.access", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


async def run(config: OperatorConfig, liveness: str | None, gauges: str) -> None:
    """Runs until the process is told to stop."""
    async with connected() as cluster, aiohttp.ClientSession() as session:
        await operate(config, cluster, session, liveness, gauges)


async def operate(
    config: OperatorConfig,
    cluster: Cluster,
    session: aiohttp.ClientSession,
    liveness: str | None,
    gauges: str = "",
) -> None:
    indices, kuberay = Indices(), KubeRayState(cluster.openapi)
    senses = Senses(
        cluster, indices, RegistryReader(session, config.registry), ProgressReader(session), kuberay, config
    )
    reconciler = Reconciler(senses, Executor(cluster, kuberay, config.system_namespace))
    queue: WorkQueue[Key] = WorkQueue(
        reconciler, known=indices.keys, resync_seconds=float(config.resync_seconds)
    )
    listings = handlers.Listings()
    nodes = NodeWatch(config.product_label, queue.add_all)
    registry = handlers.registry(queue, indices, nodes, listings)

    def share(key: Key) -> None:
        for each in indices.sharing(key):
            queue.add(each)

    system = SystemWatch(cluster, config.system_namespace, queue.add, share)
    indices.jobs, indices.job_pods, indices.exceptions = system.jobs, system.pods, system.exceptions
    indices.fetch_jobs, indices.fetch_pods = system.fetch_jobs, system.fetch_pods
    await queue.hold()  # the first event of kopf opens it: then everything was listed
    async with queue.working(), system.running(), metrics.served(gauges, indices.all_models):
        await supervise(config, queue, registry, cluster.served, listings.relisted, liveness)


def read_config(path: Path) -> OperatorConfig:
    """Raises SystemExit with a sentence where the file is missing or wrong."""
    try:
        return parse_config(path.read_text(encoding="utf-8"))
    except OSError as error:
        sys.stderr.write(f"Expected the operator's configuration at {path}: {error.strerror}.\n")
    except (ValidationError, yaml.YAMLError) as error:
        sys.stderr.write(f"{path} is not a valid configuration: {error}\n")
    raise SystemExit(EXIT_USAGE)


def main(arguments: list[str] | None = None) -> None:
    """The console script `sovereign-operator`."""
    parser = argparse.ArgumentParser(
        prog="sovereign-operator",
        description="Serves SovereignModel objects. The API server comes from KUBECONFIG "
        "or from the pod's service account.",
    )
    place = Path(os.environ.get(CONFIG_ENVIRONMENT, str(DEFAULT_CONFIG_PATH)))
    parser.add_argument(
        "--config", type=Path, default=place, help=f"configuration file (${CONFIG_ENVIRONMENT})"
    )
    parser.add_argument("--log-format", choices=("json", "plain"), default="json")
    parser.add_argument("--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO")
    parser.add_argument(
        "--liveness",
        default="http://0.0.0.0:8080/healthz",
        help="address of the health endpoint; empty: none",
    )
    parser.add_argument(
        "--metrics",
        default="",
        metavar="HOST:PORT",
        help="where Prometheus finds /metrics (default: nowhere)",
    )
    options = parser.parse_args(arguments)
    configure_logs(options.log_format, options.log_level)
    asyncio.run(run(read_config(options.config), options.liveness or None, options.metrics))


if __name__ == "__main__":
    main()
