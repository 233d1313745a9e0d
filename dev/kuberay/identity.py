# SPDX-License-Identifier: Apache-2.0
"""Who the stand-in is to the API server: KubeRay's own service account, as admission rules expect.

It runs beside the cluster with an administrator's token, so it makes that account and then speaks as it.
"""

from __future__ import annotations

from typing import Any

NAMESPACE, ACCOUNT = "kuberay-system", "kuberay-operator"
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
_RBAC = "rbac.authorization.k8s.io"

Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    """The account and its rights, in the order in which they can be made."""
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": ACCOUNT, "namespace": NAMESPACE},
        },
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": ACCOUNT},
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}],
        },
    ]
