# SPDX-License-Identifier: Apache-2.0
"""Cluster DNS as a pod: it answers for the cluster's zone and has no way to ask anybody else.

`forwarding` makes it a double of a resolver that has: it answers names below `example.` as the world would.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
from typing import Any

from dev import outside
from dev.cluster.runtime import DNS_IMAGE
from dev.cluster.state import DNS_SERVICE_IP, DOMAIN, Cluster

_LABELS = {"k8s-app": "kube-dns"}
# Reverse lookups are answered for the cluster's own ranges; every other name does not exist.
COREFILE = f"""\
.:53 {{
    errors
    health :8080
    ready :8181
    kubernetes {DOMAIN} 10.in-addr.arpa {{
        pods insecure
        ttl 5
    }}
    # more zones
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""
# Our build has no forwarding plugin, and shall not get one for a test: what a pod sees is the same.
_WORLD = f"""\
template IN A example {{
        answer "{{{{ .Name }}}} 5 IN A {outside.WEB}"
    }}
    template ANY ANY example {{
        rcode NOERROR
    }}"""


def install(cluster: Cluster) -> None:
    _apply(cluster, manifests())


def forwarding(cluster: Cluster, on: bool = True) -> None:
    """Answer outside names (everything below `example.`), or no longer; returns when that is so."""
    _apply(cluster, [_corefile(COREFILE.replace("# more zones", _WORLD) if on else COREFILE)])
    for step in (("restart",), ("status", "--timeout=60s")):
        rollout = (*cluster.kubectl, "-n", "kube-system", "rollout", *step, "deployment/coredns")
        subprocess.run(rollout, capture_output=True, text=True, check=True)


def _apply(cluster: Cluster, items: list[dict[str, Any]]) -> None:
    subprocess.run(
        [*cluster.kubectl, "apply", "--server-side", "--force-conflicts", "-f", "-"],
        input=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}),
        capture_output=True,
        text=True,
        check=True,
    )


def answers(cluster: Cluster) -> bool:
    """Ask the service's address, as a pod would, for the API server's name (needs no host network rules)."""
    query = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0)
    for label in f"kubernetes.default.svc.{DOMAIN}".split("."):
        query += bytes([len(label)]) + label.encode()
    query += struct.pack(">BHH", 0, 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(1)
        try:
            asking.sendto(query, (DNS_SERVICE_IP, 53))
            reply = asking.recv(512)
        except OSError:
            return False
    _id, flags, _questions, found, *_ = struct.unpack(">6H", reply[:12])
    return bool(flags & 0xF == 0 and found > 0)


def _named(api: str, kind: str, name: str, **rest: Any) -> dict[str, Any]:
    scope = {} if kind.startswith("ClusterRole") else {"namespace": "kube-system"}
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, **scope}, **rest}


def _corefile(text: str) -> dict[str, Any]:
    return _named("v1", "ConfigMap", "coredns", data={"Corefile": text})


def manifests() -> list[dict[str, Any]]:
    rbac = "rbac.authorization.k8s.io"
    container = {
        "name": "coredns",
        "image": DNS_IMAGE,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
        ],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "failureThreshold": 5},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
    }
    pod = {
        "serviceAccountName": "coredns",
        "dnsPolicy": "Default",
        "priorityClassName": "system-cluster-critical",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
            "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
        },
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }
    return [
        _named("v1", "ServiceAccount", "coredns"),
        _named(
            f"{rbac}/v1",
            "ClusterRole",
            "system:coredns",
            rules=[
                {
                    "apiGroups": [""],
                    "resources": ["services", "pods", "namespaces"],
                    "verbs": ["list", "watch"],
                },
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": ["list", "watch"],
                },
            ],
        ),
        _named(
            f"{rbac}/v1",
            "ClusterRoleBinding",
            "system:coredns",
            roleRef={"apiGroup": rbac, "kind": "ClusterRole", "name": "system:coredns"},
            subjects=[{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}],
        ),
        _corefile(COREFILE),
        _named(
            "apps/v1",
            "Deployment",
            "coredns",
            spec={
                "replicas": 1,
                "selector": {"matchLabels": _LABELS},
                "template": {"metadata": {"labels": _LABELS}, "spec": pod},
            },
        ),
        _named(
            "v1",
            "Service",
            "kube-dns",
            spec={
                "clusterIP": DNS_SERVICE_IP,
                "selector": _LABELS,
                "ports": [
                    {"name": "dns", "port": 53, "targetPort": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "targetPort": 53, "protocol": "TCP"},
                ],
            },
        ),
    ]
