# SPDX-License-Identifier: Apache-2.0
"""The chart's registry: two listeners over one volume, secrets, garbage collection, policies."""

from __future__ import annotations

import base64
import json

import pytest
import yaml

from sovereign_operator.config import parse_config
from tests.unit.charts.rendering import NAMESPACE, Manifest, Rendered, render

WRITER = f"sovereign-registry-writer.{NAMESPACE}.svc.cluster.local:5001"
EMPTY_DIR = {"registry": {"persistence": {"enabled": False}}}


def listener(rendered: Rendered, name: str) -> Manifest:
    text = rendered.one("ConfigMap", "sovereign-registry-config")["data"][f"{name}.yml"]
    config: Manifest = yaml.safe_load(text)
    return config


def container(rendered: Rendered, name: str) -> Manifest:
    pod = rendered.one("Deployment", "sovereign-registry")["spec"]["template"]["spec"]
    [found] = [c for c in pod["containers"] if c["name"] == name]
    assert isinstance(found, dict)
    return found


def policy(rendered: Rendered, name: str) -> Manifest:
    spec: Manifest = rendered.one("NetworkPolicy", name)["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    return spec


def test_the_writer_wants_a_password_and_the_reader_writes_nothing() -> None:
    writer, reader = listener(render(), "writer"), listener(render(), "reader")
    assert writer["auth"]["htpasswd"]["path"] == "/etc/registry-secret/htpasswd"
    assert writer["storage"]["maintenance"]["readonly"]["enabled"] is False
    assert writer["storage"]["delete"]["enabled"] is True
    assert "auth" not in reader
    assert reader["storage"]["maintenance"]["readonly"]["enabled"] is True
    assert reader["storage"]["maintenance"]["uploadpurging"]["enabled"] is False
    assert writer["http"]["relativeurls"] is reader["http"]["relativeurls"] is True
    # A cache would go on naming blobs that garbage collection removed.
    assert "cache" not in writer["storage"]
    assert "cache" not in reader["storage"]


def test_both_listeners_share_one_volume_that_the_reader_cannot_write() -> None:
    mounts = {
        name: next(m for m in container(render(), name)["volumeMounts"] if m["name"] == "models")
        for name in ("writer", "reader")
    }
    assert mounts["reader"]["readOnly"] is True
    assert "readOnly" not in mounts["writer"]
    assert mounts["reader"]["mountPath"] == mounts["writer"]["mountPath"] == "/var/lib/registry"


def test_uploads_survive_a_restart() -> None:
    for name in ("writer", "reader"):
        [secret] = [e for e in container(render(), name)["env"] if e["name"] == "REGISTRY_HTTP_SECRET"]
        assert secret["valueFrom"]["secretKeyRef"] == {
            "name": "sovereign-registry-server",
            "key": "http-secret",
        }


def test_the_push_secret_is_for_the_address_that_the_mirror_job_uses() -> None:
    rendered = render()
    secret = rendered.one("Secret", "sovereign-registry-push")
    assert secret["type"] == "kubernetes.io/dockerconfigjson"
    config = json.loads(base64.b64decode(secret["data"][".dockerconfigjson"]))
    assert list(config["auths"]) == [WRITER]
    assert yaml.safe_load(rendered.config())["registry"]["writer"] == WRITER
    entry = config["auths"][WRITER]
    assert base64.b64decode(entry["auth"]).decode() == f"{entry['username']}:{entry['password']}"
    assert len(entry["password"]) >= 32


def test_own_secrets_are_used_and_none_is_made() -> None:
    rendered = render(values={"registry": {"pushSecret": "push", "serverSecret": "server"}})
    assert rendered.of("Secret") == []
    [htpasswd] = [
        v["secret"]
        for v in rendered.one("Deployment", "sovereign-registry")["spec"]["template"]["spec"]["volumes"]
        if v["name"] == "secret"
    ]
    assert htpasswd["secretName"] == "server"


def test_weights_survive_an_uninstall() -> None:
    claim = render().one("PersistentVolumeClaim", "sovereign-registry")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_an_own_registry_leaves_nothing_of_ours() -> None:
    own = {"enabled": False, "host": "r.example", "writer": "r.example", "pushSecret": "push"}
    rendered = render(values={"registry": {**own, "cidrs": ["10.1.0.0/16"]}})
    assert not [m for m in rendered.manifests if m["metadata"]["name"].startswith("sovereign-registry")]


def test_tls_reaches_both_listeners_and_the_collector_checks_it() -> None:
    rendered = render(values={"registry": {"tls": {"secretName": "cert"}, "caConfigMap": "site-ca"}})
    for name in ("writer", "reader"):
        assert listener(rendered, name)["http"]["tls"]["certificate"] == "/etc/registry-tls/tls.crt"
        assert {"name": "tls", "mountPath": "/etc/registry-tls", "readOnly": True} in container(
            rendered, name
        )["volumeMounts"]
    assert container(rendered, "reader")["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    gate = rendered.one("CronJob", "sovereign-registry-gc")["spec"]["jobTemplate"]["spec"]["template"][
        "spec"
    ]["initContainers"][0]
    assert f"--url=https://{WRITER}/v2/" in gate["command"]
    assert "--ca=/etc/registry-ca/ca.crt" in gate["command"]


def test_the_collector_runs_only_behind_its_gate() -> None:
    job = render().one("CronJob", "sovereign-registry-gc")["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    [gate] = pod["initContainers"]
    assert gate["restartPolicy"] == "Always"
    assert gate["startupProbe"]["exec"]["command"][-1] == "closed"
    [collect] = pod["containers"]
    assert collect["args"] == ["garbage-collect", "--delete-untagged", "/etc/registry/writer.yml"]
    # Waiting for a running mirror must end by the Job's deadline, not by the probe's.
    probe = gate["startupProbe"]
    assert (
        probe["periodSeconds"] * probe["failureThreshold"]
        >= job["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    )
    assert pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]


def test_gate_and_writer_speak_of_the_same_file() -> None:
    rendered = render()
    script = rendered.one("ConfigMap", "sovereign-registry-gate")["data"]["maintenance_gate.py"]
    compile(script, "maintenance_gate.py", "exec")
    [check] = listener(rendered, "writer")["health"]["file"]
    assert f'default=Path("{check["file"]}")' in script
    assert "file" not in listener(rendered, "reader")["health"]
    # Its TCP probes leave the pod ready while the writer is closed.
    assert "tcpSocket" in container(rendered, "writer")["readinessProbe"]


def test_an_empty_dir_is_not_collected() -> None:
    rendered = render(values=EMPTY_DIR)
    assert rendered.of("CronJob") == []
    assert rendered.of("PersistentVolumeClaim") == []
    assert (
        "initContainers" not in rendered.one("Deployment", "sovereign-registry")["spec"]["template"]["spec"]
    )


def test_the_registry_answers_and_never_calls() -> None:
    spec = policy(render(values={"watchNamespaces": ["models", "research"]}), "sovereign-registry")
    assert "egress" not in spec
    by_port = {rule["ports"][0]["port"]: rule["from"] for rule in spec["ingress"]}
    assert by_port.keys() == {5000, 5001}
    assert {
        "namespaceSelector": {
            "matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["models", "research"]}
            ]
        }
    } in by_port[5000]
    # The writer is for mirror pods and the collector's gate, in this namespace.
    assert by_port[5001] == [
        {"podSelector": {"matchLabels": {"sovereign.dev/component": "mirror"}}},
        {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "sovereign-registry-gc"}}},
    ]


def test_with_admission_only_sealed_namespaces_of_a_cluster_may_pull() -> None:
    def pulling(**values: object) -> tuple[list[Manifest], list[Manifest]]:
        rendered = render(values={"clusterMode": True, **values})
        [rule] = [
            r for r in policy(rendered, "sovereign-registry")["ingress"] if r["ports"][0]["port"] == 5000
        ]
        namespaces = [peer["namespaceSelector"] for peer in rule["from"] if "namespaceSelector" in peer]
        return namespaces, [peer for peer in rule["from"] if "namespaceSelector" not in peer]

    sealed, everybody = {"matchLabels": {"sovereign.dev/sealed": "true"}}, dict[str, object]()
    assert pulling()[0] == [sealed]
    # Models are served in namespaces without the label there.
    assert pulling(admission={"enabled": False})[0] == [everybody]
    assert pulling(seal="Report")[0] == [everybody]
    # Whoever is not a model has a rule of his own.
    others = pulling(
        nodeCache={"enabled": True, "namespaces": ["models"]}, registry={"nodeCidrs": ["10.0.0.0/24"]}
    )[1]
    assert others == [
        {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "sovereign-operator"}}},
        {"podSelector": {"matchLabels": {"sovereign.dev/component": "fetch"}}},
        {"ipBlock": {"cidr": "10.0.0.0/24"}},
    ]


@pytest.mark.parametrize("allowed", [False, True])
def test_the_charts_policy_keeps_mirror_pods_inside_whatever_is_allowed(allowed: bool) -> None:
    """The way to the hub is the operator's to open, for one Job and while it runs."""
    rendered = render(values={"externalSources": {"allowed": allowed}})
    inside = policy(rendered, "sovereign-mirror")["egress"]
    assert not [peer for rule in inside for peer in rule["to"] if "ipBlock" in peer]
    assert all("to" in rule for rule in inside)


def test_the_operator_is_told_where_a_mirror_may_go() -> None:
    values = {"allowed": True, "endpoint": "http://hub.lab:8000", "extraPorts": [8001]}
    sources = parse_config(render(values={"externalSources": values}).config()).external_sources
    assert sources.cidrs == ("0.0.0.0/0", "::/0")
    assert sources.ports == (443, 8000, 8001)
    narrow = {"externalSources": {"cidrs": ["10.1.0.0/16"]}}
    assert parse_config(render(values=narrow).config()).external_sources.cidrs == ("10.1.0.0/16",)


def test_without_the_charts_policies_there_is_nothing_to_except_from() -> None:
    rendered = render(values={"networkPolicies": {"enabled": False}})
    assert parse_config(rendered.config()).external_sources.cidrs == ()


@pytest.mark.parametrize("policy_name", ["sovereign-mirror", "sovereign-operator", "sovereign-registry-gc"])
def test_every_other_policy_lets_its_pods_ask_the_dns(policy_name: str) -> None:
    egress = policy(render(), policy_name)["egress"]
    assert [
        rule
        for rule in egress
        if {"protocol": "UDP", "port": 53} in rule["ports"]
        and rule["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    ]


def test_policies_follow_the_address_of_an_own_registry() -> None:
    values = {
        "registry": {
            "enabled": False,
            "host": "r.example:5443",
            "writer": "push.example",
            "pushSecret": "push",
            "cidrs": ["10.1.0.0/16"],
        }
    }
    rendered = render(values=values)
    for name, port in (("sovereign-operator", 5443), ("sovereign-mirror", 443)):
        [rule] = [r for r in policy(rendered, name)["egress"] if r.get("to", [{}])[0].get("ipBlock")]
        assert rule == {
            "to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
            "ports": [{"protocol": "TCP", "port": port}],
        }


def test_nodes_may_pull_where_they_are_named_and_find_a_fixed_address() -> None:
    def readers(rendered: Rendered) -> list[Manifest]:
        [rule] = [
            r for r in policy(rendered, "sovereign-registry")["ingress"] if r["ports"][0]["port"] == 5000
        ]
        return [source for source in rule["from"] if "ipBlock" in source]

    assert readers(render()) == []
    assert "clusterIP" not in render().one("Service", "sovereign-registry")["spec"]
    told = render(values={"registry": {"clusterIp": "10.96.0.50", "nodeCidrs": ["10.0.0.0/24", "fd00::/64"]}})
    assert readers(told) == [{"ipBlock": {"cidr": "10.0.0.0/24"}}, {"ipBlock": {"cidr": "fd00::/64"}}]
    assert told.one("Service", "sovereign-registry")["spec"]["clusterIP"] == "10.96.0.50"
    assert "clusterIP" not in told.one("Service", "sovereign-registry-writer")["spec"]
