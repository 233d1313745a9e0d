# SPDX-License-Identifier: Apache-2.0
"""The Services around a RayCluster and a RayService, as KubeRay v1.7.0 renders them. Pure."""

from __future__ import annotations

from typing import Any

from dev.kuberay import names
from dev.kuberay.pods import owner_reference

Manifest = dict[str, Any]


def cluster_head_service(cluster: Manifest) -> Manifest:
    """The head's stable name. Workers wait for it, so it publishes a head that is not ready yet."""
    name = cluster["metadata"]["name"]
    selector = _head_selector(cluster)
    return _service(
        names.head_service(name),
        cluster,
        dict(selector),
        {
            "selector": selector,
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "ports": [
                {"name": n, "port": p, "appProtocol": "tcp"} for n, p in sorted(_ports(cluster).items())
            ],
        },
    )


def headless_worker_service(cluster: Manifest) -> Manifest:
    """Addresses of the hosts of one replica, only where a replica spans several."""
    name = cluster["metadata"]["name"]
    selector = {names.LABEL_CLUSTER: name, names.LABEL_NODE_TYPE: names.WORKER}
    spec = {"selector": selector, "clusterIP": "None", "publishNotReadyAddresses": True}
    return _service(f"{name}-headless", cluster, {names.LABEL_HEADLESS: name}, spec)


def service_head_service(service: Manifest, cluster: Manifest) -> Manifest:
    """The RayService's own name for the head of the cluster that serves."""
    name = service["metadata"]["name"]
    labels = {
        **_created_by(name),
        names.LABEL_NODE_TYPE: names.HEAD,
        names.LABEL_IDENTIFIER: names.label_value(f"{name}-{names.HEAD}"),
    }
    return _service(names.head_service(name), service, labels, cluster_head_service(cluster)["spec"])


def serve_service(service: Manifest, cluster: Manifest) -> Manifest:
    """What clients talk to: the pods of the cluster that serves whose HTTP proxy is healthy."""
    name = service["metadata"]["name"]
    selector = {names.LABEL_CLUSTER: cluster["metadata"]["name"], names.LABEL_SERVE: "true"}
    ports = [
        {"name": port, "port": number}
        for port, number in sorted(_ports(cluster).items())
        if port == "serve" or port.startswith("serve-")
    ]
    labels = {**_created_by(name), names.LABEL_SERVE: f"{name}-serve"}
    return _service(names.serve_service(name), service, labels, {"selector": selector, "ports": ports})


def _created_by(name: str) -> dict[str, str]:
    return {names.LABEL_CREATOR_NAME: name, names.LABEL_CREATOR_KIND: "RayService"}


def _head_selector(cluster: Manifest) -> dict[str, str]:
    name = cluster["metadata"]["name"]
    template = cluster["spec"]["headGroupSpec"]["template"]
    given = ((template.get("metadata") or {}).get("labels") or {}).get("app.kubernetes.io/name")
    return {
        names.LABEL_CLUSTER: name,
        names.LABEL_NODE_TYPE: names.HEAD,
        names.LABEL_IDENTIFIER: names.label_value(f"{name}-{names.HEAD}"),
        **names.APPLICATION_LABELS,
        **({"app.kubernetes.io/name": given} if given else {}),
    }


def _ports(cluster: Manifest) -> dict[str, int]:
    container = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    declared = {
        p.get("name") or f"{p['containerPort']}-port": p["containerPort"] for p in container.get("ports", [])
    }
    return {"metrics": names.METRICS_PORT, **(declared or names.DEFAULT_PORTS)}


def _service(name: str, owner: Manifest, labels: dict[str, str], spec: Manifest) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": owner["metadata"]["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": spec,
    }
