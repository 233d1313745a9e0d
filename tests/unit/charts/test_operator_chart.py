# SPDX-License-Identifier: Apache-2.0
"""What the chart promises, checked on what helm renders: configuration, pods, refused values."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from sovereign_operator.config import NodeCacheConfig, parse_config
from tests.unit.charts.rendering import (
    CHARTS,
    DIGEST_VALUES,
    NAMESPACE,
    Manifest,
    Rendered,
    helm,
    refusal,
    render,
)

DIGEST = "sha256:" + "1" * 64
OWN_REGISTRY: Manifest = {
    "registry": {
        "enabled": False,
        "host": "registry.example:5443",
        "writer": "push.registry.example",
        "pushSecret": "push",
        "caConfigMap": "site-ca",
        "cidrs": ["10.1.0.0/16"],
    }
}
VARIANTS: dict[str, Manifest] = {
    "default": {},
    "cluster mode": {"clusterMode": True},
    "two namespaces": {"watchNamespaces": ["research", "models"]},
    "own registry": OWN_REGISTRY,
    "TLS": {"registry": {"tls": {"secretName": "registry-tls"}, "caConfigMap": "site-ca"}},
    "emptyDir": {"registry": {"persistence": {"enabled": False}}},
    "external sources": {
        "externalSources": {"allowed": True, "endpoint": "http://hub.lab:8000", "extraPorts": [8001]}
    },
    "no resolver": {"resolver": {"enabled": False}},
    "node cache": {"nodeCache": {"enabled": True, "path": "/mnt/nvme", "budget": "2Ti", "reserve": "50Gi"}},
    "everything set": {
        "images": {"pullSecrets": ["pull"]},
        "resolver": {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]},
        "operator": {
            "nodeSelector": {"a": "b"},
            "tolerations": [{"operator": "Exists"}],
            "priorityClassName": "high",
        },
        "prometheus": {"namespace": "monitoring"},
        "networkPolicies": {"apiServer": {"cidrs": ["10.0.0.1/32"], "ports": [6443]}},
        "registry": {
            "pushSecret": "push",
            "serverSecret": "server",
            "persistence": {"storageClass": "fast"},
            "verification": {"enabled": True, "repair": True},
            "pruning": {"enabled": True},
        },
        "seal": "Report",
        "probe": {"timeoutSeconds": 0.5, "targets": []},
        "admission": {"registries": ["registry.example"], "podCreators": ["system:serviceaccount:ray:ray"]},
    },
}


@pytest.fixture(params=VARIANTS, scope="module")
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return render(values=VARIANTS[request.param])


def test_the_configuration_is_what_the_operator_reads(rendered: Rendered) -> None:
    config = parse_config(rendered.config())  # refuses unknown keys
    assert config.system_namespace == NAMESPACE
    assert "@sha256:" in config.images.airgap


def test_the_configuration_says_what_the_values_say() -> None:
    config = parse_config(
        render(values={**VARIANTS["everything set"], "watchNamespaces": ["b", "a"]}).config()
    )
    assert config.watch_namespaces == ("a", "b")
    assert config.prometheus.namespace == "monitoring"
    assert config.seal == "Report"
    assert (config.probe.timeout_seconds, config.probe.targets) == (0.5, ())
    assert config.registry.push_secret == "push"
    assert config.registry_pods.namespace == NAMESPACE

    own = parse_config(render(values=OWN_REGISTRY).config())
    assert own.registry.host == "registry.example:5443"
    assert own.registry.writer == "push.registry.example"
    assert own.registry.ca_config_map == "site-ca"
    assert not own.registry.plain_http
    assert own.registry_pods.namespace is None
    assert own.registry.cidrs == ("10.1.0.0/16",)


def test_defaults_of_the_chart_are_defaults_of_the_operator() -> None:
    """A value that is missing from the file must not mean something else than the chart's default."""
    config = parse_config(render(values={"resolver": {"enabled": False}}).config())
    bare = parse_config(yaml.safe_dump({"registry": {"host": "h", "writer": "w"}, "images": {"airgap": "a"}}))
    for field in (
        "seal",
        "product_label",
        "kuberay",
        "dns",
        "prometheus",
        "cluster_domain",
        "resync_seconds",
    ):
        assert getattr(config, field) == getattr(bare, field), field
    for field in ("interval_seconds", "timeout_seconds", "settle_seconds", "deadline_seconds"):
        assert getattr(config.probe, field) == getattr(bare.probe, field), field
    # Nothing is opened but what the chart names.
    assert config.external_sources.model_copy(update={"cidrs": ()}) == bare.external_sources
    assert config.registry.push_secret == bare.registry.push_secret
    assert config.registry_pods.labels == bare.registry_pods.labels


def test_a_node_cache_is_offered_only_where_the_chart_has_made_its_volumes() -> None:
    assert parse_config(render().config()).node_cache is None
    cache = parse_config(render(values=VARIANTS["node cache"]).config()).node_cache
    assert cache is not None
    assert (cache.path, cache.budget_bytes, cache.reserve_bytes) == ("/mnt/nvme", 2 * 1024**4, 50 * 1024**3)
    bare = parse_config(render(values={"nodeCache": {"enabled": True}}).config()).node_cache
    assert bare == NodeCacheConfig(), "defaults of the chart are defaults of the operator"


def test_cluster_mode_watches_everything() -> None:
    assert parse_config(render(values={"clusterMode": True}).config()).watch_namespaces == ()


def test_tls_of_the_registry_is_what_the_operator_is_told() -> None:
    assert parse_config(render().config()).registry.plain_http
    assert not parse_config(render(values=VARIANTS["TLS"]).config()).registry.plain_http


def test_the_operator_trusts_the_authority_of_the_registry() -> None:
    pod = render(values=VARIANTS["TLS"]).one("Deployment", "sovereign-operator")["spec"]["template"]["spec"]
    assert {"name": "SSL_CERT_FILE", "value": "/etc/registry-ca/ca.crt"} in pod["containers"][0]["env"]
    assert {"name": "registry-ca", "configMap": {"name": "site-ca"}} in pod["volumes"]


def test_a_changed_configuration_restarts_the_operator() -> None:
    def checksum(values: dict[str, object]) -> str:
        template = render(values=values).one("Deployment", "sovereign-operator")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({"operator": {"podAnnotations": {"a": "b"}}})
    assert checksum({}) != checksum({"seal": "Report"})


def test_there_is_one_operator_and_never_two() -> None:
    spec = render().one("Deployment", "sovereign-operator")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


def test_every_pod_is_restricted(rendered: Rendered) -> None:
    for name, pod in rendered.pod_specs():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        for volume in pod.get("volumes", []):
            assert volume.keys() - {"name"} <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}, (
                name
            )
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            own = container["securityContext"]
            assert own == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, (name, container["name"])
            assert {"requests", "limits"} <= container["resources"].keys(), (name, container["name"])


def test_only_the_operator_and_the_resolver_have_a_token(rendered: Rendered) -> None:
    for name, pod in rendered.pod_specs():
        asks_the_api = name in ("sovereign-operator", "sovereign-resolver")
        assert pod["automountServiceAccountToken"] is asks_the_api, name


def test_every_image_is_pinned(rendered: Rendered) -> None:
    for _, pod in rendered.pod_specs():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", container["image"])


def test_long_running_containers_are_probed() -> None:
    for name, pod in render().pod_specs():
        for container in pod["containers"]:
            if pod.get("restartPolicy") != "Never":
                assert {"livenessProbe", "readinessProbe"} <= container.keys(), (name, container["name"])


def test_everything_lies_in_the_release_or_in_a_watched_namespace() -> None:
    for manifest in render(values={"watchNamespaces": ["one", "two"]}).manifests:
        assert manifest["metadata"].get("namespace", NAMESPACE) in (NAMESPACE, "one", "two")


def test_the_charts_pass_lint() -> None:
    for chart, values in (("sovereign-operator", DIGEST_VALUES), ("sovereign-crds", None)):
        done = helm("lint", "--strict", str(CHARTS / chart), *(["--values", str(values)] if values else []))
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("release", ["123", "true"])
def test_every_label_is_text_whatever_the_release_is_called(release: str) -> None:
    chart = str(CHARTS / "sovereign-operator")
    done = helm("template", release, chart, "--namespace", NAMESPACE, "--values", str(DIGEST_VALUES))
    assert done.returncode == 0, done.stderr
    for manifest in filter(None, yaml.safe_load_all(done.stdout)):
        labels = manifest["metadata"].get("labels", {})
        assert labels.get("app.kubernetes.io/instance", release) == release, manifest["metadata"]["name"]
        assert all(isinstance(value, str) for value in labels.values()), manifest["metadata"]["name"]


REFUSED: dict[str, tuple[Manifest, str]] = {
    "a tag instead of a digest": ({"images": {"operator": "registry.example/operator:v1"}}, "operator"),
    "a misspelt key": ({"watchNamespace": ["models"]}, "watchNamespace"),
    "no namespace to watch": ({"watchNamespaces": []}, "watchNamespaces"),
    "a target that nobody knows how to try": (
        {"probe": {"targets": [{"name": "x", "protocol": "SCTP", "address": "192.0.2.1"}]}},
        "protocol",
    ),
    "a registry with a scheme": ({"admission": {"registries": ["https://registry.example"]}}, "registries"),
    "no operator image": ({"images": {"operator": ""}}, "images.operator is needed"),
    "no resolver image": ({"images": {"coredns": ""}}, "images.coredns is needed"),
    "no address for the resolver and no cluster to ask": (
        {"resolver": {"clusterIp": ""}},
        "resolver.clusterIp is needed",
    ),
    "no registry image": ({"images": {"registry": ""}}, "images.registry is needed"),
    "a push secret without its other half": ({"registry": {"pushSecret": "push"}}, "go together"),
    "an own registry without its address": ({"registry": {"enabled": False}}, "host"),
    "an own registry that could be anywhere": (
        {"registry": {**OWN_REGISTRY["registry"], "cidrs": ["0.0.0.0/0"]}},
        "cidrs",
    ),
    "a claim that only one pod may use": (
        {"registry": {"persistence": {"accessModes": ["ReadWriteOncePod"]}}},
        "accessModes",
    ),
    "an endpoint with a path": ({"externalSources": {"endpoint": "https://hub.example/api"}}, "endpoint"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_values_are_named(case: str) -> None:
    values, named = REFUSED[case]
    assert named in refusal(values)


def test_tags_are_taken_where_digests_are_not_required() -> None:
    values = {"images": {"requireDigest": False, "operator": "registry.example/operator:v1"}}
    rendered = render(values=values)
    assert not parse_config(rendered.config()).images.require_digest
    image = rendered.one("Deployment", "sovereign-operator")["spec"]["template"]["spec"]["containers"][0][
        "image"
    ]
    assert image == "registry.example/operator:v1"


def test_the_schema_needs_no_network_and_knows_every_value() -> None:
    schema = json.loads((CHARTS / "sovereign-operator" / "values.schema.json").read_text())
    references = re.findall(r'"\$ref": "([^"]+)"', json.dumps(schema))
    assert references
    assert all(reference.startswith("#/") for reference in references)

    values = yaml.safe_load((CHARTS / "sovereign-operator" / "values.yaml").read_text())
    _every_key_is_a_string(values)
    assert values.keys() == schema["properties"].keys() - {"global"}


def _every_key_is_a_string(value: object) -> None:
    """A key `on` or `n` would be read as a boolean."""
    if isinstance(value, dict):
        for key, child in value.items():
            assert isinstance(key, str), key
            assert key not in ("n", "y", "on", "off"), key
            _every_key_is_a_string(child)
