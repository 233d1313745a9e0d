# SPDX-License-Identifier: Apache-2.0
"""The agent's view of the API server: whole lists, and watches that only say that something changed."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from dev.policy.world import Manifest

NAMESPACES, PODS = "/api/v1/namespaces", "/api/v1/pods"
POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"
WATCH_SECONDS = 300
_PATIENCE = 10.0


class ApiServerAway(OSError):
    """The API server did not answer, or not with success; the text says what it said."""


class Lists:
    """One connection to the server of a kubeconfig that holds a token, kept from call to call."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._address = urlsplit(cluster["server"])
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._context = ssl.create_default_context(cadata=authority)
        self._headers = {"Authorization": f"Bearer {user['token']}", "Accept": "application/json"}
        self._kept: http.client.HTTPSConnection | None = None

    def items(self, path: str) -> list[Manifest]:
        """Everything of a kind as it is now: the server asks etcd, so nothing older can be seen later."""
        try:
            connection = self._kept = self._kept or self._connection(_PATIENCE)
            connection.request("GET", path, headers=self._headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._kept = None
            raise ApiServerAway(f"GET {path}: {error!r}") from error
        if response.status != http.client.OK:
            raise ApiServerAway(f"GET {path}: {response.status} {body[:200]!r}")
        found: list[Manifest] = json.loads(body)["items"]
        return found

    def changes(self, path: str) -> Iterator[None]:
        """One value for each change from now on, on a connection of its own; ends when the server ends it."""
        connection = self._connection(WATCH_SECONDS + _PATIENCE)
        try:
            connection.request("GET", f"{path}?watch=1&timeoutSeconds={WATCH_SECONDS}", headers=self._headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise ApiServerAway(f"watch {path}: {response.status}")
            while response.readline():
                yield None
        except (OSError, http.client.HTTPException) as error:
            raise ApiServerAway(f"watch {path}: {error!r}") from error
        finally:
            connection.close()

    def _connection(self, seconds: float) -> http.client.HTTPSConnection:
        host, port = self._address.hostname or "", self._address.port
        return http.client.HTTPSConnection(host, port, timeout=seconds, context=self._context)
