# SPDX-License-Identifier: Apache-2.0
"""The one way out of the cluster: what the pod of one mirror Job may reach at the hub while it runs.

The chart's policy of mirror pods knows the registry and names only. This one adds the hub's ports for the
pods of exactly one Job: its selector is the Job's uid, so it opens nothing for a Job of the same name that
comes later, and the Job owns it, so that it goes with the Job whoever deletes that.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from sovereign_operator.api import COMPONENT_MIRROR, LABEL_COMPONENT, LABEL_OWNER, LABEL_OWNER_NAMESPACE
from sovereign_operator.config import ExternalSources
from sovereign_operator.desired.rendered import with_hash
from sovereign_operator.values import Manifest

# The Job controller's label on the pods that it makes.
LABEL_CONTROLLER: Final = "batch.kubernetes.io/controller-uid"
# Cloud metadata answers there, with credentials for whoever asks.
METADATA: Final = ("169.254.0.0/16", "fd00:ec2::254/128", "fe80::/10")


def mirror_exception(job: Manifest, sources: ExternalSources) -> Manifest:
    """The policy for the pods of this live Job. Without addresses there is none to render: see `sources`."""
    metadata = job["metadata"]
    labels = {
        "app.kubernetes.io/managed-by": "sovereign-operator",
        LABEL_COMPONENT: COMPONENT_MIRROR,
        LABEL_OWNER: metadata["labels"][LABEL_OWNER],
        LABEL_OWNER_NAMESPACE: metadata["labels"][LABEL_OWNER_NAMESPACE],
    }
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
    selector = {LABEL_COMPONENT: COMPONENT_MIRROR, LABEL_CONTROLLER: metadata["uid"]}
    rule = {
        "to": [{"ipBlock": _block(cidr)} for cidr in sources.cidrs],
        "ports": [{"protocol": "TCP", "port": port} for port in sources.ports],
    }
    return with_hash(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "labels": labels,
                "ownerReferences": [owner],
            },
            "spec": {
                "podSelector": {"matchLabels": selector},
                "policyTypes": ["Egress"],
                "egress": [rule],
            },
        }
    )


def _block(cidr: str) -> Manifest:
    """An address range, and what of the metadata services lies in it left out."""
    network = ip_network(cidr)
    left_out = [inner for inner in METADATA if _is_part(ip_network(inner), network)]
    return {"cidr": cidr, "except": left_out} if left_out else {"cidr": cidr}


def _is_part(inner: IPv4Network | IPv6Network, outer: IPv4Network | IPv6Network) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner != outer and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner != outer and inner.subnet_of(outer)
