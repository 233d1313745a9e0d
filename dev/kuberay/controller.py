# SPDX-License-Identifier: Apache-2.0
"""The loop of the stand-in: look at everything, put right what differs, look again. No watches."""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from dev.kuberay import identity
from dev.kuberay.api import Api, Conflict
from dev.kuberay.ray_cluster import reconcile_cluster
from dev.kuberay.ray_service import RayServices
from dev.kuberay.serve import DashboardError

Manifest = dict[str, Any]
log = logging.getLogger("kuberay")

CRDS = Path(__file__).with_name("crds.yaml")
LONGEST_PAUSE_SECONDS = 30.0


@dataclass
class Backoff:
    """What fails is tried again after 1, 2, 4 … at most 30 seconds; an error is logged when it changes."""

    clock: Callable[[], float] = time.monotonic
    failures: dict[str, tuple[int, float, str]] = field(default_factory=dict)

    def is_due(self, key: str) -> bool:
        return self.clock() >= self.failures.get(key, (0, 0.0, ""))[1]

    def failed(self, key: str, error: Exception) -> None:
        count, _, last = self.failures.get(key, (0, 0.0, ""))
        text = _sentence(error)
        if text != last:
            log.warning("%s: %s", key, text)
        self.failures[key] = (count + 1, self.clock() + min(2.0**count, LONGEST_PAUSE_SECONDS), text)

    def succeeded(self, key: str) -> None:
        self.failures.pop(key, None)


def _sentence(error: Exception) -> str:
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}: {str(error.body)[:500]}"
    return f"{type(error).__name__}: {error}"


class Controller:
    """Works as `api`'s user; `administrator` makes that user and the kinds that it works on."""

    def __init__(self, api: Api, administrator: Api) -> None:
        self._api, self._administrator = api, administrator
        self._services = RayServices(api)
        self._backoff = Backoff()

    def install(self) -> None:
        """CRDs of ours only where there are none: a cluster that has KubeRay's keeps them."""
        for manifest in (*identity.manifests(), *yaml.safe_load_all(CRDS.read_text())):
            self._administrator.create(manifest)

    def round(self) -> None:
        for service in self._api.list("RayService"):
            self._one(service, lambda s=service: self._services.reconcile(s, _now()))  # type: ignore[misc]
        for cluster in self._api.list("RayCluster"):
            self._one(cluster, lambda c=cluster: reconcile_cluster(self._api, c, _now()))  # type: ignore[misc]

    def run(self, stop: threading.Event, period: float) -> None:
        """Until `stop`; an API server that is away is waited for."""
        log.info("the KubeRay stand-in runs (a test double)")
        installed = False
        while not stop.is_set():
            try:
                if not installed:
                    self.install()
                    installed = True
                self.round()
                self._backoff.succeeded("API server")
            except (ApiException, HTTPError) as error:
                self._backoff.failed("API server", error)
            stop.wait(period)

    def _one(self, thing: Manifest, reconcile: Callable[[], None]) -> None:
        metadata = thing["metadata"]
        key = f"{thing['kind']} {metadata['namespace']}/{metadata['name']}"
        if not self._backoff.is_due(key):
            return
        try:
            reconcile()
        except Conflict:
            return
        except (ApiException, DashboardError, HTTPError) as error:
            self._backoff.failed(key, error)
        else:
            self._backoff.succeeded(key)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
