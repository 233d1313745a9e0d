# SPDX-License-Identifier: Apache-2.0
"""The seal: everything is denied to and from a model's pods, and what serving needs is allowed by name.

One policy per reason, so that `kubectl get networkpolicy` reads like the list of what is open. They carry our
finalizer and **no owner reference**: deletion of the model in the foreground, or of its namespace, would take
them away before the pods. They are applied before the first pod exists and go after the last one is gone.

Ray, NCCL, Gloo and the data-parallel master use ephemeral ports, so the pods of one model reach one another
on all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sovereign_operator.api import (
    COMPONENT_HEAD,
    FINALIZER,
    LABEL_COMPONENT,
    LABEL_MODEL,
    LABEL_OWNER,
    SEALED_COMPONENTS,
    NetworkClient,
    SovereignModel,
)
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.rendered import with_hash
from sovereign_operator.values import Manifest

NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"
DASHBOARD_PORT: Final = 8265
HTTP_PORT: Final = 8000
METRICS_PORT: Final = 8080
HTTPS_PORT: Final = 443


def policies(model: SovereignModel, config: OperatorConfig) -> list[Manifest]:
    """All sealing policies of one model, sorted by name."""
    found = [deny_all(model), same_model(model), dns(model, config), kuberay(model, config)]
    if model.spec.network.clients:
        found.append(clients(model))
    if config.prometheus.namespace:
        found.append(metrics(model, config.prometheus.namespace))
    if model.spec.delivery.mode == "ephemeral":
        found.append(registry(model, config))
    return sorted(found, key=lambda policy: str(policy["metadata"]["name"]))


def deny_all(model: SovereignModel) -> Manifest:
    """No connection in, none out: the policy that everything else is an exception from."""
    return _policy(model, "deny-all", {"policyTypes": ["Ingress", "Egress"]})


def same_model(model: SovereignModel) -> Manifest:
    """The pods of one model among themselves, on every port."""
    peers = [{"podSelector": sealed_set(model)}]
    return _policy(model, "same-model", _both([{"from": peers}], [{"to": peers}]))


def dns(model: SovereignModel, config: OperatorConfig) -> Manifest:
    """Names of the cluster, from the resolver that the platform names."""
    ports = [_port(port, protocol) for port in sorted(config.dns.ports) for protocol in ("TCP", "UDP")]
    peers = [_pods(config.dns.namespace, config.dns.pod_labels)]
    return _policy(model, "dns", _egress([{"to": peers, "ports": ports}]))


def kuberay(model: SovereignModel, config: OperatorConfig) -> Manifest:
    """KubeRay's operator to the head: it submits the application and probes both ports."""
    peers = [_pods(config.kuberay.namespace, config.kuberay.pod_labels)]
    ports = [_port(HTTP_PORT), _port(DASHBOARD_PORT)]
    return _policy(model, "kuberay", _ingress([{"from": peers, "ports": ports}]), (COMPONENT_HEAD,))


def clients(model: SovereignModel) -> Manifest:
    """Those who may ask the model, on its HTTP port only."""
    peers = [_client(client, model.namespace) for client in model.spec.network.clients]
    return _policy(model, "clients", _ingress([{"from": peers, "ports": [_port(HTTP_PORT)]}]))


def metrics(model: SovereignModel, namespace: str) -> Manifest:
    """Prometheus, on the metrics port only."""
    return _policy(
        model, "metrics", _ingress([{"from": [_pods(namespace, {})], "ports": [_port(METRICS_PORT)]}])
    )


def registry(model: SovereignModel, config: OperatorConfig) -> Manifest:
    """Weights, from the registry's read-only listener: pods that deliver for themselves need it."""
    inside = config.registry_pods.namespace
    peers = (
        [_pods(inside, config.registry_pods.labels)]
        if inside
        else [{"ipBlock": {"cidr": cidr}} for cidr in sorted(config.registry.cidrs)]
    )
    if not peers:
        raise ValueError(
            "Expected registryPods.namespace or registry.cidrs in the operator's configuration, found "
            "neither: "
            "without one the sealed pods cannot pull weights, and an open port is no seal."
        )
    return _policy(
        model, "registry", _egress([{"to": peers, "ports": [_port(_port_of(config.registry.host))]}])
    )


def sealed_set(model: SovereignModel, components: Sequence[str] = SEALED_COMPONENTS) -> Manifest:
    """The selector of the model's own pods: both labels, so that no other pod is sealed by accident."""
    return {
        "matchLabels": {LABEL_MODEL: model.name},
        "matchExpressions": [{"key": LABEL_COMPONENT, "operator": "In", "values": sorted(components)}],
    }


def _policy(
    model: SovereignModel,
    reason: str,
    rules: Mapping[str, Any],
    components: Sequence[str] = SEALED_COMPONENTS,
) -> Manifest:
    return with_hash(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {
                "name": f"{model.name}-{reason}",
                "namespace": model.namespace,
                "labels": {
                    "app.kubernetes.io/managed-by": "sovereign-operator",
                    LABEL_OWNER: model.name,
                },
                "finalizers": [FINALIZER],
            },
            "spec": {"podSelector": sealed_set(model, components), **rules},
        }
    )


def _ingress(rules: list[Manifest]) -> Manifest:
    return {"policyTypes": ["Ingress"], "ingress": rules}


def _egress(rules: list[Manifest]) -> Manifest:
    return {"policyTypes": ["Egress"], "egress": rules}


def _both(ingress: list[Manifest], egress: list[Manifest]) -> Manifest:
    return {"policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress}


def _pods(namespace: str, labels: Mapping[str, str]) -> Manifest:
    """Pods of one namespace; all of them where no labels are given."""
    peer: Manifest = {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: namespace}}}
    if labels:
        peer["podSelector"] = {"matchLabels": dict(sorted(labels.items()))}
    return peer


def _client(client: NetworkClient, own_namespace: str) -> Manifest:
    return _pods(client.namespace or own_namespace, client.pod_labels)


def _port(port: int, protocol: str = "TCP") -> Manifest:
    return {"protocol": protocol, "port": port}


def _port_of(host: str) -> int:
    """The port of host:port, as pods see it."""
    port = host.rpartition(":")[2]
    return int(port) if port.isdecimal() else HTTPS_PORT
