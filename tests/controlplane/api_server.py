# SPDX-License-Identifier: Apache-2.0
"""A test's hands on the real API server: plain dicts, and waiting for a condition instead of sleeping."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx2

Manifest = dict[str, Any]

PLURALS = {
    "SovereignModel": "apis/sovereign.dev/v1alpha1:sovereignmodels",
    "RayService": "apis/ray.io/v1:rayservices",
    "RayCluster": "apis/ray.io/v1:rayclusters",
    "NetworkPolicy": "apis/networking.k8s.io/v1:networkpolicies",
    "Job": "apis/batch/v1:jobs",
    "Pod": "api/v1:pods",
    "Secret": "api/v1:secrets",
    "Service": "api/v1:services",
    "Event": "api/v1:events",
    "Node": "api/v1:nodes",
    "Namespace": "api/v1:namespaces",
    "ResourceQuota": "api/v1:resourcequotas",
    "ServiceAccount": "api/v1:serviceaccounts",
    "Role": "apis/rbac.authorization.k8s.io/v1:roles",
    "RoleBinding": "apis/rbac.authorization.k8s.io/v1:rolebindings",
    "ClusterRole": "apis/rbac.authorization.k8s.io/v1:clusterroles",
    "ClusterRoleBinding": "apis/rbac.authorization.k8s.io/v1:clusterrolebindings",
    "CustomResourceDefinition": "apis/apiextensions.k8s.io/v1:customresourcedefinitions",
}
CLUSTER_SCOPED = {"Node", "Namespace", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}


class ApiServer:
    """The API server of a kubeconfig that the test itself created."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.server: str = cluster["server"]
        self.authority = cluster["certificate-authority-data"]
        self._client = httpx2.Client(
            base_url=self.server,
            verify=ssl.create_default_context(cadata=authority),
            headers={"Authorization": f"Bearer {config['users'][0]['user']['token']}"},
            timeout=120.0,  # a loaded machine takes its time with a definition of a megabyte
            trust_env=False,
        )

    def close(self) -> None:
        self._client.close()

    def path(self, kind: str, namespace: str | None, name: str | None = None) -> str:
        group, _, plural = PLURALS[kind].partition(":")
        inside = "" if kind in CLUSTER_SCOPED or namespace is None else f"namespaces/{namespace}/"
        return f"/{group}/{inside}{plural}" + (f"/{name}" if name else "")

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Manifest:
        answer = self._asked(method, path, body, headers)
        if answer.status_code == 404 and method in ("GET", "DELETE"):
            return {}
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text[:800]}"
        found: Manifest = answer.json()
        return found

    def _asked(self, method: str, path: str, body: Any, headers: dict[str, str]) -> httpx2.Response:
        """As every Kubernetes client does: on 429 (a cache that still fills) ask again when told to."""
        for _ in range(30):
            answer = self._client.request(method, path, json=body, headers=headers)
            if answer.status_code != 429:
                break
            time.sleep(float(answer.headers.get("Retry-After", 1)))
        return answer

    def serves(self, path: str) -> bool:
        return bool(self._client.get(path).status_code == 200)

    def get(self, kind: str, namespace: str | None, name: str) -> Manifest:
        """The object, or {} where there is none."""
        return self.call("GET", self.path(kind, namespace, name))

    def list(self, kind: str, namespace: str | None, selector: str = "") -> list[Manifest]:
        query = f"?labelSelector={selector}" if selector else ""
        items: list[Manifest] = self.call("GET", self.path(kind, namespace) + query).get("items") or []
        return items

    def create(self, manifest: Manifest) -> Manifest:
        metadata = manifest["metadata"]
        return self.call("POST", self.path(manifest["kind"], metadata.get("namespace")), manifest)

    def would_take(self, manifest: Manifest) -> bool:
        """Whether `create` would succeed now."""
        path = self.path(manifest["kind"], manifest["metadata"].get("namespace"))
        return self._asked("POST", f"{path}?dryRun=All", manifest, {}).status_code < 300

    def patch(
        self,
        kind: str,
        namespace: str | None,
        name: str,
        patch: Manifest,
        sub: str = "",
        manager: str = "test",
    ) -> Manifest:
        path = self.path(kind, namespace, name) + (f"/{sub}" if sub else "") + f"?fieldManager={manager}"
        return self.call("PATCH", path, patch, **{"Content-Type": "application/merge-patch+json"})

    def changes(self, kind: str, namespace: str) -> Generator[Manifest]:
        """The objects of a namespace, each time that one of them changes, from now on."""
        version = self.call("GET", self.path(kind, namespace))["metadata"]["resourceVersion"]
        return self._stream(f"{self.path(kind, namespace)}?watch=true&resourceVersion={version}")

    def _stream(self, path: str) -> Generator[Manifest]:
        with self._client.stream("GET", path, timeout=60) as answer:
            for line in answer.iter_lines():
                yield json.loads(line)["object"]

    def delete(self, kind: str, namespace: str | None, name: str, propagation: str = "Background") -> None:
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        self.call("DELETE", self.path(kind, namespace, name), {**options, "gracePeriodSeconds": 0})

    def token(self, namespace: str, account: str) -> str:
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str(self.call("POST", path, request)["status"]["token"])

    def kubeconfig(self, token: str) -> Manifest:
        """What a program needs to ask this server as the owner of that token."""
        cluster = {"server": self.server, "certificate-authority-data": self.authority}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }

    def metrics(self) -> str:
        return self._client.get("/metrics").text


def eventually(look: Callable[[], Any], what: str, seconds: float = 90.0) -> Any:
    """The first truthy answer; fails with `what` when none comes in time."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def condition(body: Manifest, kind: str) -> Manifest:
    for each in (body.get("status") or {}).get("conditions") or []:
        if each["type"] == kind:
            return dict(each)
    return {}


def reason(body: Manifest, kind: str) -> str:
    return str(condition(body, kind).get("reason", ""))
