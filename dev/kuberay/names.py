# SPDX-License-Identifier: Apache-2.0
"""Labels, annotations, ports and names as KubeRay v1.7.0 uses them: others select by them."""

from __future__ import annotations

import secrets

GROUP_VERSION = "ray.io/v1"
FIELD_MANAGER = "kuberay-operator"
KUBERAY_VERSION = "v1.7.0"
FINALIZER = "ray.io/rayservice-finalizer"

LABEL_CLUSTER = "ray.io/cluster"
LABEL_NODE_TYPE = "ray.io/node-type"
LABEL_GROUP = "ray.io/group"
LABEL_IS_RAY_NODE = "ray.io/is-ray-node"
LABEL_IDENTIFIER = "ray.io/identifier"
LABEL_SERVE = "ray.io/serve"
LABEL_HEADLESS = "ray.io/headless-worker-svc"
LABEL_CREATOR_NAME = "ray.io/originated-from-cr-name"
LABEL_CREATOR_KIND = "ray.io/originated-from-crd"
LABEL_REPLICA_NAME = "ray.io/worker-group-replica-name"
LABEL_REPLICA_INDEX = "ray.io/worker-group-replica-index"
LABEL_HOST_INDEX = "ray.io/replica-host-index"
APPLICATION_LABELS = {
    "app.kubernetes.io/name": "kuberay",
    "app.kubernetes.io/created-by": "kuberay-operator",
}

ANNOTATION_HASH = "ray.io/hash-without-replicas-and-workers-to-delete"
ANNOTATION_WORKER_GROUPS = "ray.io/num-worker-groups"
ANNOTATION_VERSION = "ray.io/kuberay-version"
ANNOTATION_FAULT_TOLERANT = "ray.io/ft-enabled"

HEAD, WORKER = "head", "worker"
HEAD_GROUP = "headgroup"
GCS_PORT, DASHBOARD_PORT, CLIENT_PORT, METRICS_PORT, SERVE_PORT, AGENT_PORT = (
    6379,
    8265,
    10001,
    8080,
    8000,
    52365,
)
DEFAULT_PORTS = {
    "client": CLIENT_PORT,
    "dashboard": DASHBOARD_PORT,
    "gcs-server": GCS_PORT,
    "metrics": METRICS_PORT,
    "serve": SERVE_PORT,
}
TOKEN_KEY = "auth_token"
CLUSTER_DOMAIN = "cluster.local"

# Kubernetes leaves out vowels and the digits that look like letters, so that no words come out.
_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def random_suffix() -> str:
    return "".join(secrets.choice(_SUFFIX_ALPHABET) for _ in range(5))


def head_service(owner: str) -> str:
    return f"{owner}-head-svc"


def serve_service(owner: str) -> str:
    return f"{owner}-serve-svc"


def head_address(cluster: str, namespace: str) -> str:
    return f"{head_service(cluster)}.{namespace}.svc.{CLUSTER_DOMAIN}"


def pod_prefix(name: str, node_type: str) -> str:
    """A generateName: at most 50 characters of the name, so that the whole stays under 63."""
    return f"{name[:50]}-{node_type}-".lower()


def object_name(name: str) -> str:
    """At most the last 50 characters, beginning with a letter."""
    name = name[-50:]
    return name if name[0].isalpha() else f"r{name[1:]}"


def label_value(name: str) -> str:
    name = name[-63:]
    return name if name[0].isalnum() else f"r{name[1:]}"
