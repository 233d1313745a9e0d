# SPDX-License-Identifier: Apache-2.0
"""The charts on a real API server: installed by helm, asked for rights, upgraded, uninstalled."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.kubectl import Kubectl, KubectlFailed, Manifest
from tests.unit.charts.rendering import CHARTS, DIGEST_VALUES, POD_OWNERS, Rendered

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(1500)]

SYSTEM, MODELS, OTHER = "sovereign-system", "models", "other"
OPERATOR = f"system:serviceaccount:{SYSTEM}:sovereign-operator"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
FINALIZER = "sovereign.dev/seal"

Right = tuple[str, str, str | None]  # verb, resource (name.group/subresource), namespace


class Site:
    """A control plane with the charts on it."""

    def __init__(self, cluster: Any) -> None:
        self.kubectl = Kubectl(tuple(cluster.kubectl))
        self._helm = (str(cluster.helm), "--kubeconfig", str(cluster.kubeconfig), "--namespace", SYSTEM)

    def helm(self, *arguments: str, values: Manifest | None = None) -> str:
        done = subprocess.run(
            [*self._helm, *arguments, *(["--values", "-"] if values is not None else [])],
            input=json.dumps(values) if values is not None else "",
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self, values: Manifest | None = None) -> None:
        chart = str(CHARTS / "sovereign-operator")
        defaults = ("--values", str(DIGEST_VALUES))
        self.helm("upgrade", "--install", "sovereign-operator", chart, *defaults, values=values or {})

    def namespace(self, name: str, **labels: str) -> None:
        self.kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": {**RESTRICTED, **labels}},
            }
        )

    def can(self, verb: str, resource: str, namespace: str | None, who: str = OPERATOR) -> bool:
        return self.allowed([(verb, resource, namespace)], who)[0]

    def allowed(self, rights: Sequence[Right], who: str = OPERATOR) -> list[bool]:
        """What `kubectl auth can-i` would answer, for many questions in one request of kubectl."""
        reviews = [
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {"user": who, "resourceAttributes": _attributes(*right)},
            }
            for right in rights
        ]
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
        line = 'go-template={{.status.allowed}}{{"\\n"}}'
        answers = self.kubectl("create", "-o", line, "-f", "-", stdin=document).split()
        assert len(answers) == len(rights)
        assert set(answers) <= {"true", "false"}, answers
        return [answer == "true" for answer in answers]

    def role_rights(self, namespace: str | None) -> Iterator[tuple[str, str]]:
        """(verb, resource) of every rule that is bound to the operator there."""
        kind = "role" if namespace else "clusterrole"
        arguments = ["-n", namespace] if namespace else []
        selector = "app.kubernetes.io/part-of=sovereign"
        for role in self.kubectl.items(kind, *arguments, "-l", selector):
            if role["metadata"]["name"].startswith("sovereign-operator"):
                for rule in role["rules"]:
                    for resource in rule["resources"]:
                        for group in rule["apiGroups"]:
                            for verb in rule["verbs"]:
                                name, _, sub = resource.partition("/")
                                full = f"{name}.{group}" if group else name
                                yield verb, f"{full}/{sub}" if sub else full


def _attributes(verb: str, resource: str, namespace: str | None) -> Manifest:
    """`name.group/subresource` taken apart; an empty namespace asks for the whole cluster."""
    full, _, subresource = resource.partition("/")
    name, _, group = full.partition(".")
    where = namespace or ""
    return {"verb": verb, "group": group, "resource": name, "subresource": subresource, "namespace": where}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    from dev.cluster import down, up

    cluster = up(f"charts-{uuid.uuid4().hex[:8]}")
    try:
        site = Site(cluster)
        for name in (SYSTEM, MODELS, OTHER):
            site.namespace(name)
        site.helm("upgrade", "--install", "sovereign-crds", str(CHARTS / "sovereign-crds"))
        site.install()
        site.kubectl(
            "wait", "--for=condition=Established", "crd/sovereignmodels.sovereign.dev", "--timeout=30s"
        )
        yield site
    finally:
        down(cluster.name)


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.2)


ALLOWED: list[Right] = [
    ("list", "nodes", None),
    ("get", "secrets", MODELS),
    ("create", "jobs.batch", SYSTEM),
    ("watch", "pods", SYSTEM),
    ("create", "secrets", SYSTEM),
    ("patch", "sovereignmodels.sovereign.dev", MODELS),
    ("patch", "sovereignmodels.sovereign.dev/status", MODELS),
    ("create", "networkpolicies.networking.k8s.io", MODELS),
    *((verb, "networkpolicies.networking.k8s.io", SYSTEM) for verb in ("create", "patch", "delete", "watch")),
    ("create", "events", MODELS),
    ("get", "namespaces", MODELS),
    ("create", "pods", MODELS),
    ("create", "services", MODELS),
    ("create", "jobs.batch", MODELS),
]
FORBIDDEN: list[Right] = [
    *(
        (verb, "secrets", namespace)
        for verb in ("list", "watch", "update", "delete")
        for namespace in (SYSTEM, MODELS, OTHER, None)
    ),
    ("get", "secrets", SYSTEM),
    ("get", "secrets", OTHER),
    ("get", "secrets", None),
    ("create", "secrets", MODELS),
    *(
        (verb, f"pods/{sub}", namespace)
        for verb, sub in (("create", "exec"), ("get", "exec"), ("get", "log"), ("create", "attach"))
        for namespace in (SYSTEM, MODELS, OTHER, None)
    ),
    *((verb, "pods", namespace) for verb in ("create", "delete") for namespace in (SYSTEM, OTHER, None)),
    *((verb, "pods", namespace) for verb in ("patch", "update") for namespace in (SYSTEM, MODELS, None)),
    *((verb, "namespaces", None) for verb in ("get", "list", "create", "patch", "delete")),
    *((verb, "namespaces", MODELS) for verb in ("list", "patch", "update", "delete")),
    ("get", "namespaces", OTHER),
    *((verb, "services", namespace) for verb in ("create", "patch") for namespace in (SYSTEM, OTHER, None)),
    ("delete", "services", MODELS),
    *(
        (verb, f"{resource}.rbac.authorization.k8s.io", None)
        for verb in ("create", "update", "patch", "bind", "escalate")
        for resource in ("roles", "rolebindings", "clusterroles", "clusterrolebindings")
    ),
    ("patch", "nodes", None),
    ("impersonate", "users", None),
    ("create", "serviceaccounts/token", SYSTEM),
    ("create", "jobs.batch", OTHER),
    *((verb, "jobs.batch", namespace) for verb in ("patch", "update") for namespace in (SYSTEM, MODELS)),
    ("create", "networkpolicies.networking.k8s.io", OTHER),
    ("update", "networkpolicies.networking.k8s.io", SYSTEM),
    ("patch", "validatingadmissionpolicies.admissionregistration.k8s.io", None),
]


def test_the_operator_may_do_what_it_needs_and_nothing_else(site: Site) -> None:
    assert [right for right, yes in zip(ALLOWED, site.allowed(ALLOWED), strict=True) if not yes] == []
    assert [right for right, yes in zip(FORBIDDEN, site.allowed(FORBIDDEN), strict=True) if yes] == []


def test_every_rendered_rule_is_in_force(site: Site) -> None:
    """A misspelt resource in a Role is accepted by the API server and does nothing."""
    known = set(site.kubectl("api-resources", "-o", "name").split())
    for namespace in (None, SYSTEM, MODELS):
        rights = [(verb, resource, namespace) for verb, resource in sorted(site.role_rights(namespace))]
        assert rights
        assert all(site.allowed(rights))
        resources = {resource.split("/")[0] for _, resource, _ in rights}
        assert {name for name in resources - known if not name.endswith(".ray.io")} == set()


def test_people_get_models_through_the_clusters_own_roles(site: Site) -> None:
    for role in ("view", "edit"):
        site.kubectl(
            "-n", MODELS, "create", "rolebinding", f"people-{role}", f"--clusterrole={role}", f"--user={role}"
        )
    models, status = "sovereignmodels.sovereign.dev", "sovereignmodels.sovereign.dev/status"
    wait_for("the aggregation", lambda: site.can("create", models, MODELS, "edit"))
    assert site.can("get", models, MODELS, "view")
    assert not site.can("create", models, MODELS, "view")
    assert not site.can("get", models, OTHER, "view")
    assert not site.can("patch", status, MODELS, "edit")


VARIANTS: dict[str, Manifest] = {
    "default": {},
    "cluster mode": {"clusterMode": True},
    "TLS": {"registry": {"tls": {"secretName": "registry-tls"}, "caConfigMap": "site-ca"}},
    "emptyDir": {"registry": {"persistence": {"enabled": False}}},
    "registries": {"admission": {"registries": ["registry.example", "127.0.0.1:5000/llm"]}},
    "no seal": {"resolver": {"enabled": False}, "admission": {"enabled": False}, "seal": "Report"},
    "external sources": {"externalSources": {"allowed": True, "endpoint": "http://hub.lab:8000"}},
    "node cache": {"nodeCache": {"enabled": True, "budget": "2Ti"}},
}


def _rendered(site: Site, values: Manifest) -> Rendered:
    chart = str(CHARTS / "sovereign-operator")
    text = site.helm("template", "sovereign-operator", chart, "--values", str(DIGEST_VALUES), values=values)
    return Rendered(tuple(m for m in yaml.safe_load_all(text) if m))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_api_server_takes_every_manifest_strictly(site: Site, variant: str) -> None:
    manifests = _rendered(site, VARIANTS[variant]).manifests
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    site.kubectl(
        "apply", "--server-side", "--force-conflicts", "--field-manager=helm", "--dry-run=server",
        "--validate=strict", "-f", "-", stdin=document,
    )  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_pod_passes_restricted_pod_security(site: Site, variant: str) -> None:
    rendered = _rendered(site, VARIANTS[variant])
    pods: list[Manifest] = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": SYSTEM}, "spec": spec}
        for name, spec in rendered.pod_specs()
    ]
    assert len(pods) == sum(m["kind"] in POD_OWNERS for m in rendered.manifests) >= 2
    for pod in pods:
        site.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
    pod = pods[0]
    del pod["spec"]["securityContext"]["seccompProfile"]
    with pytest.raises(KubectlFailed, match="violates PodSecurity"):
        site.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))


def test_an_upgrade_keeps_the_passwords(site: Site) -> None:
    def secrets() -> dict[str, Manifest]:
        names = ("sovereign-registry-push", "sovereign-registry-server")
        return {name: site.kubectl.get("-n", SYSTEM, "secret", name)["data"] for name in names}

    before = secrets()
    site.install({"resyncSeconds": 301})
    assert secrets() == before
    config = site.kubectl.get("-n", SYSTEM, "configmap", "sovereign-operator-config")["data"]["config.yaml"]
    assert "resyncSeconds: 301" in config


def test_a_lost_htpasswd_is_made_again_for_the_password_in_use(site: Site) -> None:
    push = site.kubectl.get("-n", SYSTEM, "secret", "sovereign-registry-push")["data"]
    old = site.kubectl.get("-n", SYSTEM, "secret", "sovereign-registry-server")["data"]
    site.kubectl("-n", SYSTEM, "delete", "secret", "sovereign-registry-server")
    site.install()
    assert site.kubectl.get("-n", SYSTEM, "secret", "sovereign-registry-push")["data"] == push
    assert site.kubectl.get("-n", SYSTEM, "secret", "sovereign-registry-server")["data"] != old


def a_policy(name: str, namespace: str, owned: bool) -> Manifest:
    metadata: Manifest = {"name": name, "namespace": namespace, "finalizers": [FINALIZER] if owned else []}
    if owned:
        metadata["labels"] = {"sovereign.dev/owner": "m"}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
    }


def test_the_operator_changes_only_its_own_network_policies(site: Site) -> None:
    as_operator = (f"--as={OPERATOR}", "-n", OTHER)
    site.kubectl.apply(a_policy("theirs", OTHER, owned=False), a_policy("ours", OTHER, owned=True))
    open_everything = '{"spec": {"egress": [{}]}}'
    # The admission policy takes a moment to come into force.
    refused = "changes and deletes only network policies that carry its label"

    def is_refused() -> bool:
        try:
            site.kubectl(
                "patch", "networkpolicy/theirs", *as_operator, "--dry-run=server", "--type=merge", "-p", "{}"
            )
        except KubectlFailed as error:
            return refused in str(error)
        return False

    wait_for("the admission policy", is_refused)
    label_it = '{"metadata": {"labels": {"sovereign.dev/owner": "m"}}}'
    for patch in (open_everything, label_it):
        with pytest.raises(KubectlFailed, match=refused):
            site.kubectl("patch", "networkpolicy/theirs", *as_operator, "--type=merge", "-p", patch)
    with pytest.raises(KubectlFailed, match=refused):
        site.kubectl("delete", "networkpolicy/theirs", *as_operator, "--wait=false")
    release = '{"metadata": {"finalizers": null}}'
    site.kubectl("patch", "networkpolicy/ours", *as_operator, "--type=merge", "-p", release)
    site.kubectl("delete", "networkpolicy/ours", *as_operator)


def test_a_namespace_with_models_can_be_deleted(site: Site) -> None:
    """The namespace takes the operator's Role with it; what is left must still be released."""
    doomed = "doomed"
    site.namespace(doomed)
    site.install({"watchNamespaces": [MODELS, doomed]})
    model = {
        "apiVersion": "sovereign.dev/v1alpha1",
        "kind": "SovereignModel",
        "metadata": {"name": "m", "namespace": doomed, "finalizers": [FINALIZER]},
        "spec": {
            "source": {"artifact": {"reference": f"models/org/name@sha256:{'0' * 64}"}},
            "serving": {"image": f"registry.example/serving@sha256:{'0' * 64}"},
            "placement": {"accelerator": {"resource": "nvidia.com/gpu"}},
        },
    }
    site.kubectl.apply(model, a_policy("m-deny-all", doomed, owned=True))
    site.kubectl("delete", "namespace", doomed, "--wait=false")
    wait_for(
        "the Role to go", lambda: site.kubectl.find("-n", doomed, "role", "sovereign-operator-models") is None
    )
    wait_for(
        "the model to be deleted",
        lambda: "deletionTimestamp" in site.kubectl.get("-n", doomed, "sovereignmodel", "m")["metadata"],
    )
    assert not site.can("get", "secrets", doomed)
    as_operator = (f"--as={OPERATOR}", "-n", doomed)
    assert site.kubectl("get", "pods", *as_operator, "-o", "name") == ""
    release = '{"metadata": {"finalizers": null}}'
    site.kubectl("patch", "networkpolicy/m-deny-all", *as_operator, "--type=merge", "-p", release)
    site.kubectl("patch", "sovereignmodel/m", *as_operator, "--type=merge", "-p", release)
    wait_for("the namespace to be gone", lambda: site.kubectl.find("namespace", doomed) is None)
    site.install()


def a_claim_for(volume: str, namespace: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "sovereign-cache", "namespace": namespace},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": volume,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def test_a_tenants_node_cache_is_for_its_own_claim_whoever_asked_first(site: Site) -> None:
    def phase(namespace: str) -> str:
        claim = site.kubectl.get("-n", namespace, "persistentvolumeclaim", "sovereign-cache")
        return str(claim.get("status", {}).get("phase", ""))

    site.kubectl.apply(a_claim_for("sovereign-cache-models", OTHER))
    wait_for("the thief to be looked at", lambda: phase(OTHER) == "Pending")
    site.install({"nodeCache": {"enabled": True}})
    wait_for("the claim to be bound", lambda: phase(MODELS) == "Bound")
    own = site.kubectl.get("-n", MODELS, "persistentvolumeclaim", "sovereign-cache")
    volume = site.kubectl.get("persistentvolume", "sovereign-cache-models")
    assert volume["spec"]["claimRef"]["uid"] == own["metadata"]["uid"]
    assert phase(OTHER) == "Pending"
    # And an upgrade changes nothing that cannot be changed.
    site.install({"nodeCache": {"enabled": True, "budget": "1Ti", "reserve": "1Gi"}})
    assert phase(MODELS) == "Bound"
    site.kubectl("-n", OTHER, "delete", "persistentvolumeclaim", "sovereign-cache", "--wait=false")
    site.install()
    assert site.kubectl.find("persistentvolume", "sovereign-cache-models") is None


def test_a_namespace_that_is_made_again_gets_a_volume_again(site: Site) -> None:
    """A volume whose claim is gone is bound to no other: it has to go with the namespace."""
    name, volume = "made-again", "sovereign-cache-made-again"
    values = {"watchNamespaces": [MODELS, name], "nodeCache": {"enabled": True}}

    def bound() -> bool:
        claim = site.kubectl.find("-n", name, "persistentvolumeclaim", "sovereign-cache")
        return claim is not None and claim.get("status", {}).get("phase") == "Bound"

    for _ in range(2):
        site.namespace(name)
        site.install(values)
        wait_for("the claim to be bound", bound)
        site.kubectl("delete", "namespace", name, "--timeout=60s")
        wait_for("its volume to go with it", lambda: site.kubectl.find("persistentvolume", volume) is None)
    site.install()


def test_uninstalling_keeps_the_api_and_the_weights(site: Site) -> None:
    site.helm("uninstall", "sovereign-operator")
    site.helm("uninstall", "sovereign-crds")
    assert site.kubectl.find("crd", "sovereignmodels.sovereign.dev")
    assert site.kubectl.find("-n", SYSTEM, "persistentvolumeclaim", "sovereign-registry")
    left = site.kubectl.items("clusterrole", "-l", "app.kubernetes.io/part-of=sovereign")
    assert left == []
    # And it can be installed again over what stayed.
    site.helm("upgrade", "--install", "sovereign-crds", str(CHARTS / "sovereign-crds"), "--take-ownership")
    site.install()


def test_the_charts_package(site: Site, tmp_path: Path) -> None:
    for chart in ("sovereign-crds", "sovereign-operator"):
        site.helm("package", str(CHARTS / chart), "--destination", str(tmp_path))
    assert len(list(tmp_path.glob("*.tgz"))) == 2
