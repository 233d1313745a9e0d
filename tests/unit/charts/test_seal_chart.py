# SPDX-License-Identifier: Apache-2.0
"""What the chart brings for the seal: the resolver without a way out, the canary, and who reaches them."""

from __future__ import annotations

import re

import pytest
import yaml

from sovereign_operator.api import COMPONENT_PEER, SEALED_COMPONENTS
from sovereign_operator.config import parse_config
from tests.unit.charts.rendering import NAMESPACE, ROOT, Manifest, Rendered, render

CLUSTER_POLICY = "policy.networking.k8s.io/v1alpha2/ClusterNetworkPolicy"
CILIUM = "cilium.io/v2/CiliumNetworkPolicy"
OWN_REGISTRY = {
    "enabled": False,
    "host": "registry.example:5443",
    "writer": "push.registry.example",
    "pushSecret": "push",
    "cidrs": ["192.0.2.0/24", "2001:db8::/64"],
}


def policy(rendered: Rendered, name: str) -> Manifest:
    spec: Manifest = rendered.one("NetworkPolicy", name)["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    return spec


def pod(rendered: Rendered, name: str) -> Manifest:
    template: Manifest = rendered.one("Deployment", name)["spec"]["template"]
    return template


def test_the_resolver_answers_for_the_cluster_and_for_nothing_else() -> None:
    corefile = render(values={"clusterDomain": "lab.internal"}).one("ConfigMap", "sovereign-resolver")[
        "data"
    ]["Corefile"]
    assert "lab.internal:8053 in-addr.arpa:8053 ip6.arpa:8053 {" in corefile
    assert "kubernetes lab.internal in-addr.arpa ip6.arpa {" in corefile
    assert re.search(r"template ANY ANY \{\s+rcode NXDOMAIN\s+\}", corefile)
    plugins = set(re.findall(r"^    ([a-z]+)", corefile, re.MULTILINE))
    # Nothing that the image could not do either, and nothing that asks somebody else.
    built = set(re.findall(r"plugin/([a-z]+)\"", (ROOT / "dev/go/coredns/main.go").read_text()))
    assert plugins <= built
    assert not built & {"forward", "proxy", "erratic", "file", "auto", "etcd", "grpc"}
    assert corefile.count(" {\n") == corefile.count("}\n")
    assert re.search(r'^\.:8053 \{\n    errors\n    log \. "outside ', corefile, re.MULTILINE)


def test_model_pods_are_told_the_resolver_and_its_address() -> None:
    rendered = render(values={"resolver": {"clusterIp": "10.96.7.7"}})
    service = rendered.one("Service", "sovereign-resolver")["spec"]
    dns = parse_config(rendered.config()).dns
    assert dns.cluster_ip == service["clusterIP"] == "10.96.7.7"
    assert {p["port"] for p in service["ports"]} == {53}
    assert {p["protocol"] for p in service["ports"]} == {"UDP", "TCP"}
    labels = pod(rendered, "sovereign-resolver")["metadata"]["labels"]
    assert dns.namespace == NAMESPACE
    assert dns.pod_labels.items() <= labels.items()
    ports = pod(rendered, "sovereign-resolver")["spec"]["containers"][0]["ports"]
    assert {p["containerPort"] for p in ports} == set(dns.ports) == {8053}


def test_without_the_resolver_model_pods_ask_what_the_site_names() -> None:
    values = {"resolver": {"enabled": False}, "dns": {"clusterIp": "10.96.0.77"}}
    rendered = render(values=values)
    assert parse_config(rendered.config()).dns.cluster_ip == "10.96.0.77"
    assert parse_config(rendered.config()).dns.namespace == "kube-system"
    assert not [m for m in rendered.manifests if m["metadata"]["name"] == "sovereign-resolver"]


def test_the_charts_own_pods_stay_with_the_clusters_dns() -> None:
    for name in ("sovereign-operator", "sovereign-mirror", "sovereign-registry-gc"):
        [dns] = [
            rule
            for rule in policy(render(), name)["egress"]
            if {"protocol": "UDP", "port": 53} in rule.get("ports", [])
        ]
        assert dns["to"][0]["namespaceSelector"]["matchLabels"] == {
            "kubernetes.io/metadata.name": "kube-system"
        }


def test_only_sealed_pods_of_models_ask_the_resolver_and_it_asks_only_the_api_server() -> None:
    spec = policy(render(values={"watchNamespaces": ["b", "a"]}), "sovereign-resolver")
    [rule] = spec["ingress"]
    [peer] = rule["from"]
    [namespaces] = peer["namespaceSelector"]["matchExpressions"]
    assert namespaces["values"] == ["a", "b"]
    model, components = peer["podSelector"]["matchExpressions"]
    assert model == {"key": "sovereign.dev/model", "operator": "Exists"}
    assert components["values"] == list(SEALED_COMPONENTS)
    assert {(p["protocol"], p["port"]) for p in rule["ports"]} == {("UDP", 8053), ("TCP", 8053)}
    assert spec["egress"] == [
        {"ports": [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 6443}]}
    ]


def test_the_resolver_sees_names_and_no_content() -> None:
    rules = render().one("ClusterRole", "sovereign-resolver")["rules"]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"list", "watch"}
    assert {r for rule in rules for r in rule["resources"]} == {"endpointslices", "namespaces", "services"}


def test_a_changed_corefile_restarts_the_resolver() -> None:
    def checksum(values: Manifest) -> str:
        return str(pod(render(values=values), "sovereign-resolver")["metadata"]["annotations"])

    assert checksum({}) != checksum({"clusterDomain": "lab.internal"})


def test_the_canary_is_for_everybody_and_calls_nobody() -> None:
    spec = policy(render(), "sovereign-canary")
    assert spec["ingress"] == [{}]
    assert "egress" not in spec
    service = render().one("Service", "sovereign-canary")["spec"]
    ports = {(p["port"], p["protocol"]) for p in service["ports"]}
    assert ports == {(8443, "TCP"), (8443, "UDP"), (8053, "TCP"), (8053, "UDP")}
    assert service["ipFamilyPolicy"] == "PreferDualStack"


def test_the_operator_is_told_the_canary_and_what_to_try() -> None:
    values = {"clusterDomain": "lab.internal"}
    rendered = render(values=values)
    probe = parse_config(rendered.config()).probe
    service = rendered.one("Service", "sovereign-canary")["metadata"]
    assert probe.canary == f"{service['name']}.{service['namespace']}.svc.lab.internal"
    [metadata] = [target.target() for target in probe.targets]
    assert (metadata.name, metadata.address, metadata.port) == ("metadata", "169.254.169.254", 80)


def test_a_site_names_its_own_ways_out() -> None:
    targets = [
        {"name": "proxy", "protocol": "TCP", "address": "192.0.2.8", "port": 3128},
        {"name": "name", "protocol": "RESOLVE", "query": "probe.example"},
        {"name": "ping", "protocol": "ICMP", "address": "2001:db8::1"},
        {"name": "dns", "protocol": "DNS", "address": "192.0.2.53", "port": 53, "query": "probe.example"},
    ]
    found = parse_config(render(values={"probe": {"targets": targets}}).config()).probe.targets
    assert [target.target().as_json() for target in found] == targets


def test_the_canary_is_none_of_the_sealed_set() -> None:
    labels = pod(render(), "sovereign-canary")["metadata"]["labels"]
    assert "sovereign.dev/model" not in labels
    assert labels["sovereign.dev/component"] == "canary"
    assert labels["sovereign.dev/component"] not in SEALED_COMPONENTS
    assert COMPONENT_PEER in SEALED_COMPONENTS


def test_no_policy_selects_the_unsealed_control() -> None:
    for manifest in render().of("NetworkPolicy"):
        selector = manifest["spec"]["podSelector"]
        assert selector.get("matchLabels"), "a policy for every pod of the namespace would seal the control"
        assert selector["matchLabels"].get("sovereign.dev/component") != "control"


def test_the_admin_tier_denies_the_outside_where_the_cluster_has_one() -> None:
    assert render().of("ClusterNetworkPolicy") == []
    [found] = render(apis=(CLUSTER_POLICY,)).of("ClusterNetworkPolicy")
    spec = found["spec"]
    assert spec["tier"] == "Admin"
    assert spec["subject"]["pods"]["namespaceSelector"] == {"matchLabels": {"sovereign.dev/sealed": "true"}}
    components = spec["subject"]["pods"]["podSelector"]["matchExpressions"][1]["values"]
    assert components == list(SEALED_COMPONENTS)
    # The order decides: a CIDR matches pods as well.
    assert [(rule["action"], rule["to"]) for rule in spec["egress"]] == [
        ("Pass", [{"namespaces": {}}]),
        ("Deny", [{"networks": ["0.0.0.0/0", "::/0"]}]),
    ]


def test_the_admin_tier_leaves_the_way_to_a_registry_outside_to_the_models_policies() -> None:
    [found] = render(values={"registry": OWN_REGISTRY}, apis=(CLUSTER_POLICY,)).of("ClusterNetworkPolicy")
    assert found["spec"]["egress"][1] == {
        "name": "registry",
        "action": "Pass",
        "to": [{"networks": ["192.0.2.0/24", "2001:db8::/64"]}],
    }


def test_cilium_names_the_api_server_and_the_open_port_goes() -> None:
    assert render().of("CiliumNetworkPolicy") == []
    rendered = render(apis=(CILIUM,))
    found = {
        m["spec"]["endpointSelector"]["matchLabels"]["app.kubernetes.io/name"]: m["spec"]["egress"]
        for m in rendered.of("CiliumNetworkPolicy")
    }
    assert found.keys() == {"sovereign-operator", "sovereign-resolver"}
    for egress in found.values():
        [rule] = egress
        assert rule["toEntities"] == ["kube-apiserver"]
        assert rule["toPorts"][0]["ports"][0] == {"port": "443", "protocol": "TCP"}
    for name in found:
        assert all(rule.get("to") for rule in policy(rendered, name).get("egress", []))


def test_cilium_names_the_nodes_that_pull() -> None:
    def found(registry: Manifest, apis: tuple[str, ...] = (CILIUM,)) -> list[Manifest]:
        policies = render(values={"registry": registry}, apis=apis).of("CiliumNetworkPolicy")
        return [m["spec"] for m in policies if "ingress" in m["spec"]]

    nodes = {"nodeCidrs": ["10.0.0.0/24"]}
    [spec] = found(nodes)
    assert spec == {
        "endpointSelector": {"matchLabels": {"app.kubernetes.io/name": "sovereign-registry"}},
        "ingress": [
            {
                "fromEntities": ["host", "remote-node"],
                "toPorts": [{"ports": [{"port": "5000", "protocol": "TCP"}]}],
            }
        ],
    }
    labels = pod(render(values={"registry": nodes}), "sovereign-registry")["metadata"]["labels"]
    assert spec["endpointSelector"]["matchLabels"].items() <= labels.items()
    assert found({}) == found(nodes, ()) == found({**OWN_REGISTRY, **nodes}) == []


@pytest.mark.parametrize("apis", [(), (CILIUM, CLUSTER_POLICY)])
def test_no_pod_of_the_chart_may_go_everywhere(apis: tuple[str, ...]) -> None:
    """A rule without ports and without peers is no rule; the API server's is held by its ports."""
    for manifest in render(apis=apis).of("NetworkPolicy"):
        for rule in manifest["spec"].get("egress", []):
            assert rule, manifest["metadata"]["name"]
            assert rule.get("ports"), manifest["metadata"]["name"]


def test_prometheus_reads_the_operators_metrics_only_where_it_is_named() -> None:
    assert "ingress" not in policy(render(), "sovereign-operator")
    assert "args" not in pod(render(), "sovereign-operator")["spec"]["containers"][0]
    rendered = render(values={"prometheus": {"namespace": "monitoring"}})
    [rule] = policy(rendered, "sovereign-operator")["ingress"]
    [peer] = rule["from"]
    assert peer == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    container = pod(rendered, "sovereign-operator")["spec"]["containers"][0]
    [port] = [p["containerPort"] for p in container["ports"] if p["name"] == "metrics"]
    assert container["args"] == ["--metrics", f"0.0.0.0:{port}"]
    assert rule["ports"] == [{"protocol": "TCP", "port": port}]


def test_every_pod_of_the_chart_is_under_a_policy() -> None:
    rendered = render(values={"registry": {"verification": {"enabled": True}, "pruning": {"enabled": True}}})
    held = {
        m["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/name")
        for m in rendered.of("NetworkPolicy")
    }
    assert {name for name, _ in rendered.pod_specs()} <= held


def test_switched_off_policies_leave_none_of_any_kind() -> None:
    rendered = render(values={"networkPolicies": {"enabled": False}}, apis=(CILIUM, CLUSTER_POLICY))
    assert not [m for m in rendered.manifests if m["kind"].endswith("NetworkPolicy")]


def test_the_digests_in_the_values_are_those_of_the_pods() -> None:
    digests = yaml.safe_load((ROOT / "charts/sovereign-operator/ci/digest-values.yaml").read_text())["images"]
    rendered = render()
    assert pod(rendered, "sovereign-resolver")["spec"]["containers"][0]["image"] == digests["coredns"]
    assert pod(rendered, "sovereign-canary")["spec"]["containers"][0]["image"] == digests["airgap"]
