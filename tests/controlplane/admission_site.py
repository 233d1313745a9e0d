# SPDX-License-Identifier: Apache-2.0
"""The chart's admission policies on a real API server, and people and controllers who ask it for things.

Nothing runs there: a request that is let through ends in an answer that is not a refusal of the policies.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from dev.binaries import binary
from dev.cluster import Cluster
from tests.controlplane.api_server import PLURALS, ApiServer, Manifest, eventually
from tests.unit.charts.rendering import CHARTS, DIGEST_VALUES

SYSTEM = "sovereign-system"
REGISTRIES = ("registry.example/llm", "127.0.0.1:5000")
DIGEST = "sha256:" + "7" * 64
IMAGE = f"registry.example/llm/serving@{DIGEST}"

OPERATOR = f"system:serviceaccount:{SYSTEM}:sovereign-operator"
KUBERAY = "system:serviceaccount:kuberay-system:kuberay-operator"
JOB_CONTROLLER = "system:serviceaccount:kube-system:job-controller"
GARBAGE_COLLECTOR = "system:serviceaccount:kube-system:generic-garbage-collector"
NAMESPACE_CONTROLLER = "system:serviceaccount:kube-system:namespace-controller"
# May do everything but break the seal.
SOMEBODY = "somebody"
# May break it, in the sealed namespace.
FIREMAN = "fireman"
_RIGHTS = "admission-test-everything-else"

# As the chart's templates call them; the binding has the same name. All hold in sealed namespaces.
POLICIES = (
    "sovereign-sealed-access",
    "sovereign-sealed-cache",
    "sovereign-sealed-label",
    "sovereign-sealed-network-policies",
    "sovereign-sealed-pods",
    "sovereign-sealed-services",
    "sovereign-sealed-set",
    "sovereign-sealed-templates",
)
# And these in the release's own, where there is a node cache.
FETCH_POLICIES = ("sovereign-fetch-jobs", "sovereign-fetch-pods")
_ADMISSION = "apis/admissionregistration.k8s.io/v1"
_KINDS = {
    "ValidatingAdmissionPolicy": f"{_ADMISSION}/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": f"{_ADMISSION}/validatingadmissionpolicybindings",
    "ClusterRole": "apis/rbac.authorization.k8s.io/v1/clusterroles",
}
PLURALS.update(
    {
        "Service": "api/v1:services",
        "CronJob": "apis/batch/v1:cronjobs",
        "PersistentVolumeClaim": "api/v1:persistentvolumeclaims",
        "Binding": "api/v1:bindings",
        "RayJob": "apis/ray.io/v1:rayjobs",
        "RayCronJob": "apis/ray.io/v1:raycronjobs",
    }
)


@dataclass(frozen=True)
class Answer:
    """What the API server said to one request."""

    code: int
    text: str

    def refused_by(self, policy: str) -> bool:
        return self.code in (403, 422) and f"ValidatingAdmissionPolicy '{policy}'" in self.text

    @property
    def refused(self) -> bool:
        return "ValidatingAdmissionPolicy '" in self.text


class Gate(ApiServer):
    """An API server that the policies guard: `sealed` is under them, `open` is not."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.kubeconfig)
        self.audit_log = cluster.audit_log
        tag = uuid.uuid4().hex[:6]
        self.sealed, self.open = f"sealed-{tag}", f"open-{tag}"

    def ask(self, who: str, method: str, path: str, body: Any = None, media: str = "") -> Answer:
        """One request as that user; its answer, whatever it is."""
        headers = {"Impersonate-User": who}
        if media:
            headers["Content-Type"] = media
        answer = self._asked(method, path, body, headers)
        return Answer(answer.status_code, answer.text)

    def tries(self, manifest: Manifest, who: str = SOMEBODY, namespace: str = "") -> Answer:
        """Creating it, as far as the API server goes without keeping it."""
        where = namespace or self.sealed
        named = {**manifest, "metadata": {**manifest["metadata"], "namespace": where}}
        return self.ask(who, "POST", self.path(manifest["kind"], where) + "?dryRun=All", named)

    def makes(self, manifest: Manifest, who: str) -> str:
        """Creates it in the sealed namespace; the name."""
        named = {**manifest, "metadata": {**manifest["metadata"], "namespace": self.sealed}}
        answer = self.ask(who, "POST", self.path(manifest["kind"], self.sealed), named)
        assert answer.code == 201, answer.text
        return str(manifest["metadata"]["name"])

    def merges(self, kind: str, name: str, patch: Manifest, who: str = SOMEBODY, sub: str = "") -> Answer:
        """A merge patch that is tried and not kept."""
        namespace = None if kind == "Namespace" else self.sealed
        path = self.path(kind, namespace, name) + (f"/{sub}" if sub else "") + "?dryRun=All"
        return self.ask(who, "PATCH", path, patch, "application/merge-patch+json")

    def type_warnings(self, policy: str) -> list[Manifest]:
        """What the API server's type check says against a policy, once it has looked at its expressions."""
        path = f"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{policy}"

        def checked() -> Manifest:
            found = self.call("GET", path)
            status: Manifest = found.get("status") or {}
            return status if status.get("observedGeneration") == found["metadata"]["generation"] else {}

        status = eventually(checked, f"the controller looked at {policy}")
        return list(status.get("typeChecking", {}).get("expressionWarnings") or [])


def rendered(
    *settings: str, system: str = SYSTEM, names: Sequence[str] = (*POLICIES, "sovereign-break-glass")
) -> list[Manifest]:
    """The chart's admission policies and the role that goes with them, for a release in `system`."""
    chart = str(CHARTS / "sovereign-operator")
    command = [str(binary("helm")), "template", "x", chart, "--namespace", system, "-f", str(DIGEST_VALUES)]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return [
        document
        for document in yaml.safe_load_all(done.stdout)
        if document and document["metadata"]["name"] in names
    ]


@contextmanager
def guarded(cluster: Cluster) -> Iterator[Gate]:
    """A gate with every policy in force; all of it is gone afterwards."""
    gate = Gate(cluster)
    manifests = [*rendered(f"admission.registries={{{','.join(REGISTRIES)}}}"), *_rights()]
    try:
        gate.create(_namespace(gate.sealed, {"sovereign.dev/sealed": "true"}))
        gate.create(_namespace(gate.open, {}))
        with in_force(gate, manifests):
            gate.create(_break_glass(gate.sealed))
            _await_enforcement(gate)
            yield gate
    finally:
        for namespace in (gate.sealed, gate.open):
            gate.delete("Namespace", None, namespace)
        gate.close()


@contextmanager
def in_force(api: ApiServer, manifests: list[Manifest]) -> Iterator[None]:
    """These cluster-wide objects, gone afterwards. It takes moments until a policy among them decides."""
    made: list[str] = []
    try:
        for manifest in manifests:
            made.append(_path(manifest))
            api.call("POST", made[-1].rpartition("/")[0], manifest)
        yield
    finally:
        for path in made:
            api.call("DELETE", path)


def a_pod(name: str = "p", labels: Manifest | None = None, **spec: Any) -> Manifest:
    """A pod as it should be; `container` changes its container."""
    container = {"name": "main", "image": IMAGE, **spec.pop("container", {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"automountServiceAccountToken": False, "containers": [container], **spec},
    }


def a_service(**spec: Any) -> Manifest:
    port = {"port": 80}
    spec = {"ports": [port], "selector": {"a": "b"}, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec}


def a_claim(name: str = "weights", **spec: Any) -> Manifest:
    """A claim as anybody makes one."""
    wish = {"resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteOnce"]}
    head = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}}
    return {**head, "spec": {**wish, **spec}}


def a_policy(name: str = "mine") -> Manifest:
    """A network policy that opens everything."""
    spec = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}
    head = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    return {**head, "metadata": {"name": name}, "spec": spec}


def _await_enforcement(gate: Gate) -> None:
    """A policy is in force some moments after it was created: until one request is refused by each."""
    # Without the account that its controller makes, no pod is taken.
    eventually(lambda: gate.get("ServiceAccount", gate.open, "default"), "the namespace's account is there")
    gate.create({**a_pod("waiting"), "metadata": {"name": "waiting", "namespace": gate.open}})
    label = {"sovereign.dev/model": "m"}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "j"},
        "spec": {
            "template": {
                "metadata": {"labels": label},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": IMAGE}]},
            }
        },
    }
    bad = {
        "sovereign-sealed-pods": lambda: gate.tries(a_pod(hostNetwork=True)),
        "sovereign-sealed-cache": lambda: gate.tries(a_claim("sovereign-cache")),
        "sovereign-sealed-set": lambda: gate.tries(a_pod(labels=label)),
        "sovereign-sealed-templates": lambda: gate.tries(job),
        "sovereign-sealed-network-policies": lambda: gate.tries(a_policy()),
        "sovereign-sealed-services": lambda: gate.tries(a_service(type="NodePort")),
        "sovereign-sealed-access": lambda: gate.ask(
            SOMEBODY, "POST", gate.path("Pod", gate.sealed, "none") + "/attach"
        ),
        "sovereign-sealed-label": lambda: gate.merges(
            "Namespace", gate.sealed, {"metadata": {"labels": {"sovereign.dev/sealed": None}}}
        ),
    }
    assert tuple(sorted(bad)) == POLICIES
    for policy, attempt in bad.items():
        eventually(partial(_refuses, policy, attempt), f"{policy} refuses", 60)


def _refuses(policy: str, attempt: Callable[[], Answer]) -> bool:
    return attempt().refused_by(policy)


def _path(manifest: Manifest) -> str:
    plural = _KINDS.get(manifest["kind"], "apis/rbac.authorization.k8s.io/v1/clusterrolebindings")
    return f"/{plural}/{manifest['metadata']['name']}"


def _namespace(name: str, labels: dict[str, str]) -> Manifest:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _rights() -> list[Manifest]:
    """Everything outside of our own group, for all who ask here: what is refused is refused by a policy."""
    rbac = "rbac.authorization.k8s.io"
    groups = ["", "apps", "batch", "networking.k8s.io", "ray.io", "cilium.io"]
    users = (OPERATOR, KUBERAY, JOB_CONTROLLER, GARBAGE_COLLECTOR, NAMESPACE_CONTROLLER, SOMEBODY, FIREMAN)
    return [
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": _RIGHTS},
            "rules": [{"apiGroups": groups, "resources": ["*"], "verbs": ["*"]}],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": _RIGHTS},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": _RIGHTS},
            "subjects": [{"apiGroup": rbac, "kind": "User", "name": user} for user in users],
        },
    ]


def _break_glass(namespace: str) -> Manifest:
    rbac = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{rbac}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "fire", "namespace": namespace},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "sovereign-break-glass"},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": FIREMAN}],
    }


def audited(gate: Gate, annotation: str) -> list[str]:
    """What the audit log says under this annotation, oldest first."""
    found = []
    with gate.audit_log.open("rb") as log:
        for line in log:
            if annotation.encode() in line and line.endswith(b"\n"):
                found.append(str(json.loads(line)["annotations"].get(annotation, "")))
    return [text for text in found if text]
