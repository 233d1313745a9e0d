# SPDX-License-Identifier: Apache-2.0
"""Ray's REST API on the head pod: submits the Serve applications, reads what became of them."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

import yaml

from dev.kuberay.names import DASHBOARD_PORT, SERVE_PORT

Manifest = dict[str, Any]

APPLICATIONS = "/api/serve/applications/"
TIMEOUT_SECONDS = 10


class DashboardError(Exception):
    """The head does not answer, or refuses; tried again at the next round."""


class Dashboard:
    """The dashboard of one head pod. Straight to the pod's address, never through a proxy of the machine."""

    def __init__(self, address: str, token: str | None) -> None:
        self._root = f"http://{address}:{DASHBOARD_PORT}"
        self._headers = {"x-ray-authorization": f"Bearer {token}"} if token else {}

    def submit(self, serve_config: str) -> None:
        body = json.dumps(yaml.safe_load(serve_config)).encode()
        self._call("PUT", APPLICATIONS, body)

    def applications(self) -> dict[str, Manifest]:
        """Name -> status, as the RayService's status has it."""
        said = self._call("GET", f"{APPLICATIONS}?api_type=declarative")
        try:
            answer = json.loads(said)
        except ValueError as error:
            raise DashboardError(f"GET {APPLICATIONS} answered no JSON: {said[:200]!r}") from error
        return {
            name or "default": application_status(app) for name, app in answer.get("applications", {}).items()
        }

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {**self._headers, "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._root}{path}", method=method, data=body, headers=headers)
        try:
            with _direct().open(request, timeout=TIMEOUT_SECONDS) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            raise DashboardError(f"{method} {path} answered {error.code}: {said}") from error
        except (OSError, http.client.HTTPException) as error:  # the latter where a head dies while it answers
            raise DashboardError(f"{method} {path}: {error!r}") from error


def application_status(application: Manifest) -> Manifest:
    """One entry of `applicationStatuses`; empty messages are left out, as Go's omitempty does."""
    deployments = application.get("deployments", {})
    return _present(
        status=application.get("status"),
        message=application.get("message"),
        serveDeploymentStatuses={
            name: _present(status=deployment.get("status"), message=deployment.get("message"))
            for name, deployment in sorted(deployments.items())
        },
    )


def are_running(applications: dict[str, Manifest]) -> bool:
    return bool(applications) and all(app.get("status") == "RUNNING" for app in applications.values())


def proxy_is_healthy(address: str) -> bool:
    """The head's HTTP proxy: the head has no readiness probe for it, the controller asks at every round."""
    try:
        with _direct().open(f"http://{address}:{SERVE_PORT}/-/healthz", timeout=2) as answer:
            return int(answer.status) == 200
    except (OSError, http.client.HTTPException):
        return False


def _direct() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _present(**fields: Any) -> Manifest:
    return {name: value for name, value in fields.items() if value}
