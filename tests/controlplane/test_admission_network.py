# SPDX-License-Identifier: Apache-2.0
"""Who may open a sealed namespace, and what may become a pod of a model there: the API server decides."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from dev.cluster import Cluster
from tests.controlplane.admission_site import (
    FIREMAN,
    GARBAGE_COLLECTOR,
    IMAGE,
    KUBERAY,
    NAMESPACE_CONTROLLER,
    OPERATOR,
    SOMEBODY,
    Gate,
    a_policy,
    a_service,
    guarded,
)
from tests.controlplane.api_server import Manifest
from tests.controlplane.operator_site import ROOT, apply_crd

NETWORK, SERVICES, TEMPLATES = (
    "sovereign-sealed-network-policies",
    "sovereign-sealed-services",
    "sovereign-sealed-templates",
)
MODEL = {"sovereign.dev/model": "m", "sovereign.dev/component": "worker"}


@pytest.fixture(scope="module")
def gate(control_plane: Cluster) -> Iterator[Gate]:
    with guarded(control_plane) as gate:
        definitions = list(yaml.safe_load_all((ROOT / "dev/kuberay/crds.yaml").read_text()))
        for document in (*definitions, a_definition("RayJob"), a_definition("RayCronJob")):
            apply_crd(gate, document)
        yield gate


def a_definition(kind: str) -> Manifest:
    """Of a Ray object that our stand-in does not know: it takes what it is given."""
    plural = f"{kind.lower()}s"
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.ray.io"},
        "spec": {
            "group": "ray.io",
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [version],
        },
    }


# --- network policies


def test_policies_of_a_sealed_namespace_are_the_operators(gate: Gate) -> None:
    owned = a_policy("owned")
    owned["metadata"]["labels"] = {"sovereign.dev/owner": "m"}
    for policy in (a_policy(), owned):
        for who in (SOMEBODY, FIREMAN, KUBERAY):
            answer = gate.tries(policy, who)
            assert answer.refused_by(NETWORK), answer.text
            assert "spec.network.clients" in answer.text
        assert gate.tries(policy, OPERATOR).code == 201


def test_policies_of_a_sealed_namespace_go_with_their_owner_and_with_the_namespace(gate: Gate) -> None:
    name = gate.makes(a_policy("standing"), OPERATOR)
    path = gate.path("NetworkPolicy", gate.sealed, name) + "?dryRun=All"
    opened = {"spec": {"egress": [{}], "policyTypes": ["Egress", "Ingress"]}}
    for who in (SOMEBODY, FIREMAN):
        assert gate.ask(who, "DELETE", path).refused_by(NETWORK)
        assert gate.merges("NetworkPolicy", name, opened, who).refused_by(NETWORK)
    collection = gate.path("NetworkPolicy", gate.sealed) + "?dryRun=All"
    assert gate.ask(SOMEBODY, "DELETE", collection).refused_by(NETWORK)
    for who in (OPERATOR, GARBAGE_COLLECTOR, NAMESPACE_CONTROLLER):
        assert gate.ask(who, "DELETE", path).code == 200
        assert gate.ask(who, "DELETE", collection).code == 200


def test_policies_elsewhere_are_everybodys(gate: Gate) -> None:
    assert gate.tries(a_policy(), namespace=gate.open).code == 201


# --- services


@pytest.mark.parametrize(
    ("service", "named"),
    [
        (a_service(type="NodePort"), "NodePort"),
        (a_service(type="LoadBalancer"), "LoadBalancer"),
        (a_service(type="ExternalName", externalName="outside.example"), "ExternalName"),
        (a_service(externalIPs=["192.0.2.7"]), "externalIPs"),
    ],
)
def test_no_service_leads_into_or_out_of_a_sealed_namespace(
    gate: Gate, service: Manifest, named: str
) -> None:
    for who in (SOMEBODY, FIREMAN, OPERATOR):
        answer = gate.tries(service, who)
        assert answer.refused_by(SERVICES), answer.text
        assert named in answer.text
    assert not gate.tries(service, namespace=gate.open).refused


def test_services_inside_are_free(gate: Gate) -> None:
    assert gate.tries(a_service()).code == 201
    assert gate.tries(a_service(clusterIP="None")).code == 201


def test_a_service_cannot_become_a_door_later(gate: Gate) -> None:
    service = a_service()
    service["metadata"]["name"] = "kept"
    name = gate.makes(service, SOMEBODY)
    assert gate.merges("Service", name, {"spec": {"type": "NodePort"}}).refused_by(SERVICES)
    assert gate.merges("Service", name, {"spec": {"externalIPs": ["192.0.2.7"]}}).refused_by(SERVICES)
    assert gate.merges("Service", name, {"metadata": {"labels": {"a": "b"}}}).code == 200


# --- what becomes a pod of a model


def a_template(labels: Manifest | None = None) -> Manifest:
    spec = {"restartPolicy": "Never", "containers": [{"name": "c", "image": IMAGE}]}
    return {"metadata": {"labels": labels or {}}, "spec": spec}


def a_job(labels: Manifest | None = None) -> Manifest:
    head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}}
    return {**head, "spec": {"suspend": True, "template": a_template(labels)}}


def a_cron_job(labels: Manifest | None = None) -> Manifest:
    spec = {"schedule": "0 0 * * *", "jobTemplate": {"spec": a_job(labels)["spec"]}}
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "c"}, "spec": spec}


def a_ray_cluster(
    head: Manifest | None = None,
    worker: Manifest | None = None,
    groups: int = 1,
    head_group: Manifest | None = None,
    worker_group: Manifest | None = None,
) -> Manifest:
    """`head` and `worker` are labels of templates; KubeRay merges those of the groups over them."""
    spec = {
        "headGroupSpec": {"rayStartParams": {}, "labels": head_group or {}, "template": a_template(head)},
        "workerGroupSpecs": [
            {
                "groupName": f"g{n}",
                "rayStartParams": {},
                "labels": worker_group or {},
                "template": a_template(worker),
            }
            for n in range(groups)
        ],
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "r"}, "spec": spec}


def a_ray_service(cluster: Manifest | None = None) -> Manifest:
    spec = {"serveConfigV2": "", "rayClusterConfig": (cluster or a_ray_cluster())["spec"]}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "r"}, "spec": spec}


def a_ray_job(cluster: Manifest | None = None, submitter: Manifest | None = None) -> Manifest:
    template = a_template(submitter)
    spec = {"rayClusterSpec": (cluster or a_ray_cluster())["spec"], "submitterPodTemplate": template}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "r"}, "spec": spec}


def a_ray_cron_job(job: Manifest | None = None) -> Manifest:
    spec = {"schedule": "@daily", "jobTemplate": (job or a_ray_job())["spec"]}
    return {"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": {"name": "r"}, "spec": spec}


CLUSTERS = {
    "the head": a_ray_cluster(head=MODEL),
    "a worker": a_ray_cluster(worker=MODEL),
    "the head's group": a_ray_cluster(head_group=MODEL),
    "a worker's group": a_ray_cluster(worker_group=MODEL),
}
CARRIERS = {
    "a Job": a_job(MODEL),
    "a CronJob": a_cron_job(MODEL),
    **{f"{where} of a RayCluster": cluster for where, cluster in CLUSTERS.items()},
    **{f"{where} of a RayService": a_ray_service(cluster) for where, cluster in CLUSTERS.items()},
    **{f"{where} of a RayJob": a_ray_job(cluster) for where, cluster in CLUSTERS.items()},
    **{f"{where} of a RayCronJob": a_ray_cron_job(a_ray_job(c)) for where, c in CLUSTERS.items()},
    "the submitter of a RayJob": a_ray_job(submitter=MODEL),
    "the submitter of a RayCronJob": a_ray_cron_job(a_ray_job(submitter=MODEL)),
}


@pytest.mark.parametrize("case", CARRIERS)
def test_nobody_else_writes_what_becomes_a_pod_of_a_model(gate: Gate, case: str) -> None:
    for who in (SOMEBODY, FIREMAN):
        answer = gate.tries(CARRIERS[case], who)
        assert answer.refused_by(TEMPLATES), answer.text
    assert gate.tries(CARRIERS[case], OPERATOR).code == 201
    assert not gate.tries(CARRIERS[case], namespace=gate.open).refused


def test_kuberay_makes_clusters_of_services_and_no_jobs_of_models(gate: Gate) -> None:
    assert gate.tries(a_ray_cluster(MODEL, MODEL), KUBERAY).code == 201
    assert gate.tries(a_job(MODEL), KUBERAY).refused_by(TEMPLATES)


@pytest.mark.parametrize(
    "manifest", [a_job(), a_cron_job(), a_ray_cluster(), a_ray_service(), a_ray_job(), a_ray_cron_job()]
)
def test_other_workloads_may_run_beside_a_model(gate: Gate, manifest: Manifest) -> None:
    assert gate.tries(manifest).code == 201


def test_a_workload_cannot_become_a_models_later(gate: Gate) -> None:
    manifest = a_ray_service()
    manifest["metadata"]["name"] = "another"
    name = gate.makes(manifest, SOMEBODY)
    for group in ({"template": {"metadata": {"labels": MODEL}}}, {"labels": MODEL}):
        change = {"spec": {"rayClusterConfig": {"headGroupSpec": group}}}
        assert gate.merges("RayService", name, change).refused_by(TEMPLATES)


def test_a_models_ray_service_is_changed_by_the_operator_alone(gate: Gate) -> None:
    manifest = a_ray_service(a_ray_cluster(MODEL, MODEL))
    manifest["metadata"]["name"] = "m"
    name = gate.makes(manifest, OPERATOR)
    image = {"spec": {"serveConfigV2": "applications: []"}}
    assert gate.merges("RayService", name, image).refused_by(TEMPLATES)
    # Whoever cleans up may still do it, and KubeRay takes its finalizer off.
    assert gate.merges("RayService", name, {"metadata": {"finalizers": ["a.example/b"]}}).code == 200
    assert gate.merges("RayService", name, image, KUBERAY).code == 200


def test_the_largest_ray_service_stays_within_the_budget_of_the_rules(gate: Gate) -> None:
    answer = gate.tries(a_ray_service(a_ray_cluster(groups=200)))
    assert answer.code == 201, answer.text
