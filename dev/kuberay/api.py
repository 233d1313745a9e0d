# SPDX-License-Identifier: Apache-2.0
"""The stand-in's access to the Kubernetes API: plain dicts in and out, one log line per write."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from kubernetes import config
from kubernetes.client.exceptions import ApiException

from dev.kuberay.names import FIELD_MANAGER, GROUP_VERSION

Manifest = dict[str, Any]

log = logging.getLogger("kuberay")

PLURALS = {
    "Pod": "pods",
    "Service": "services",
    "Secret": "secrets",
    "EndpointSlice": "endpointslices",
    "RayService": "rayservices",
    "RayCluster": "rayclusters",
    "CustomResourceDefinition": "customresourcedefinitions",
    "Namespace": "namespaces",
    "ServiceAccount": "serviceaccounts",
    "ClusterRoleBinding": "clusterrolebindings",
}
GROUP_VERSIONS = {
    "EndpointSlice": "discovery.k8s.io/v1",
    "RayService": GROUP_VERSION,
    "RayCluster": GROUP_VERSION,
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
}


class Conflict(Exception):
    """Somebody else was faster: look again."""


class Api:
    """`user` is who the requests are made as; None leaves it to the kubeconfig."""

    def __init__(self, kubeconfig: str, user: str | None = None) -> None:
        self._client: Any = config.new_client_from_config(kubeconfig)
        # The server adds the groups of a service account itself where none are named.
        self._headers = {"Impersonate-User": user} if user else {}

    def list(self, kind: str, namespace: str | None = None, **labels: str) -> list[Manifest]:
        query = [("labelSelector", ",".join(f"{k}={v}" for k, v in labels.items()))] if labels else []
        answer = self._call("GET", _path(kind, namespace), query=query)
        # Items of a list carry neither kind nor version.
        head = {"apiVersion": answer["apiVersion"], "kind": kind}
        return [{**head, **item} for item in answer["items"]]

    def get(self, kind: str, namespace: str | None, name: str) -> Manifest | None:
        try:
            return self._call("GET", _path(kind, namespace, name))
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def create(self, manifest: Manifest) -> Manifest:
        """Creates; an object that is already there is left as it is."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        try:
            made = self._call("POST", _path(kind, metadata.get("namespace")), manifest)
        except ApiException as error:
            if error.status != 409:
                raise
            return manifest
        log.info("create %s %s", kind, _where(made))
        return made

    def replace(self, manifest: Manifest, *, why: str) -> Manifest:
        """A full Update of what was read: its fields become this manager's, as with KubeRay's own client."""
        log.info("update %s %s: %s", manifest["kind"], _where(manifest), why)
        return self._write("PUT", manifest)

    def replace_status(self, manifest: Manifest) -> Manifest:
        log.info("status %s %s", manifest["kind"], _where(manifest))
        return self._write("PUT", manifest, "/status")

    def delete(self, manifest: Manifest, *, why: str) -> None:
        kind, metadata = manifest["kind"], manifest["metadata"]
        if metadata.get("deletionTimestamp"):
            return
        body = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
        try:
            self._call("DELETE", _path(kind, metadata.get("namespace"), metadata["name"]), body)
        except ApiException as error:
            if error.status not in (404, 409):
                raise
            return
        log.info("delete %s %s: %s", kind, _where(manifest), why)

    def _write(self, method: str, manifest: Manifest, part: str = "") -> Manifest:
        metadata = manifest["metadata"]
        try:
            return self._call(
                method, _path(manifest["kind"], metadata["namespace"], metadata["name"]) + part, manifest
            )
        except ApiException as error:
            if error.status in (404, 409):
                raise Conflict(f"{manifest['kind']} {_where(manifest)} changed meanwhile") from error
            raise

    def _call(
        self,
        method: str,
        path: str,
        body: Manifest | None = None,
        query: Sequence[tuple[str, str]] = (),
    ) -> Manifest:
        parameters = [*query]
        if method in ("POST", "PUT"):
            parameters.append(("fieldManager", FIELD_MANAGER))
        headers = {"Accept": "application/json", "Content-Type": "application/json", **self._headers}
        request = self._client.param_serialize(
            method,
            path,
            query_params=parameters,
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        response = self._client.call_api(*request, _request_timeout=30)
        data = response.read()
        if not 200 <= response.status <= 299:
            raise ApiException.from_response(http_resp=response, body=data.decode(), data=None)
        result: Manifest = json.loads(data)
        return result


def _path(kind: str, namespace: str | None = None, name: str | None = None) -> str:
    version = GROUP_VERSIONS.get(kind, "v1")
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    return "/".join(
        part for part in (root, namespace and f"namespaces/{namespace}", PLURALS[kind], name) if part
    )


def _where(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata.get('name', metadata.get('generateName'))}"
