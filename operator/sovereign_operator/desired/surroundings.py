# SPDX-License-Identifier: Apache-2.0
"""What the pods of one model share whatever they do: the nodes they may run on, and who tells them names.

A probe proves something about a model's pods only where it runs on their nodes and asks their resolver.
"""

from __future__ import annotations

from collections.abc import Sequence

from sovereign_operator.api import SovereignModel, Toleration
from sovereign_operator.config import OperatorConfig
from sovereign_operator.values import Manifest


def on_nodes(model: SovereignModel) -> Manifest:
    """Node selector and tolerations of every pod of the model; absent where none are asked for."""
    place: Manifest = {}
    if model.spec.placement.node_selector:
        place["nodeSelector"] = dict(sorted(model.spec.placement.node_selector.items()))
    if model.spec.placement.tolerations:
        place["tolerations"] = [_toleration(toleration) for toleration in model.spec.placement.tolerations]
    return place


def on_worker_nodes(model: SovereignModel, config: OperatorConfig) -> Manifest:
    """The same, narrowed to the product that the workers ask for."""
    place = on_nodes(model)
    product = model.spec.placement.accelerator.product
    if product is not None:
        selector = place.get("nodeSelector", {}) | {config.product_label: product}
        place["nodeSelector"] = dict(sorted(selector.items()))
    return place


def preferring(nodes: Sequence[str]) -> Manifest:
    """A preference for these nodes, by name: the scheduler may know better. Absent where there are none."""
    if not nodes:
        return {}
    terms = [
        {
            "weight": 100,
            "preference": {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]},
        }
        for node in sorted(nodes)
    ]
    return {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}}}


def resolver(model: SovereignModel, config: OperatorConfig) -> Manifest:
    """Names from the sealed resolver only, where there is one: a cluster DNS that forwards is a way out."""
    if not config.dns.cluster_ip:
        return {}
    service = f"svc.{config.cluster_domain}"
    return {
        "dnsPolicy": "None",
        "dnsConfig": {
            "nameservers": [config.dns.cluster_ip],
            "searches": [f"{model.namespace}.{service}", service, config.cluster_domain],
            "options": [{"name": "ndots", "value": "5"}],
        },
    }


def _toleration(toleration: Toleration) -> Manifest:
    rendered: Manifest = toleration.model_dump(exclude_none=True)
    return {key: value for key, value in rendered.items() if value}
