# SPDX-License-Identifier: Apache-2.0
"""The KubeRay stand-in against the real API server. No kubelet here: the test says when a head pod is ready.

A head's address is one of loopback's, where a fake of Ray's dashboard listens on the real ports.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Thread
from typing import Any

import pytest

from dev.cluster import Cluster, down, up
from dev.kuberay import ROOT
from tests.controlplane.api_server import ApiServer, condition, eventually, reason

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(600)]

Manifest = dict[str, Any]
NAME = "kuberay-double"
NUMBERS = count(1)
RUNNING = {"tiny": {"status": "RUNNING", "deployments": {"Ingress": {"status": "HEALTHY"}}}}


class RayHead:
    """A fake of what a head pod answers on 8265 and 8000. Refuses every request without the token."""

    def __init__(self, address: str, token: str) -> None:
        self.address, self.token = address, token
        self.applications: dict[str, Manifest] = {}
        self.submitted: list[Manifest] = []

    @contextmanager
    def listening(self) -> Iterator[RayHead]:
        head = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/-/healthz":
                    self._answer(200, "success")
                elif self._is_allowed() and self.path == "/api/serve/applications/?api_type=declarative":
                    self._answer(200, json.dumps({"applications": head.applications}))

            def do_PUT(self) -> None:
                if self._is_allowed() and self.path == "/api/serve/applications/":
                    body = self.rfile.read(int(self.headers["Content-Length"]))
                    head.submitted.append(json.loads(body))
                    head.applications = head.applications or {"tiny": {"status": "DEPLOYING"}}
                    self._answer(200, "")

            def _is_allowed(self) -> bool:
                allowed = self.headers["x-ray-authorization"] == f"Bearer {head.token}"
                if not allowed:
                    self._answer(401, "no token")
                return allowed

            def _answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        with ExitStack() as stack:
            for port in (8265, 8000):
                server = stack.enter_context(ThreadingHTTPServer((self.address, port), Answers))
                thread = Thread(target=server.serve_forever, daemon=True)
                thread.start()
                stack.callback(thread.join)
                stack.callback(server.shutdown)
            yield self


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        made = up(NAME)
        command = [
            sys.executable,
            "-m",
            "dev.kuberay",
            "--kubeconfig",
            str(made.kubeconfig),
            "--period",
            "0.2",
        ]
        made.run_process("kuberay", command, env={"PYTHONPATH": str(ROOT)})
        yield made
    finally:
        down(NAME)


@pytest.fixture(scope="module")
def api(cluster: Cluster) -> Iterator[ApiServer]:
    api = ApiServer(cluster.kubeconfig)
    eventually(lambda: api.call("GET", "/apis/ray.io/v1/rayservices"), "the stand-in's CRDs")
    yield api
    api._client.close()


@pytest.fixture
def namespace(api: ApiServer) -> str:
    name = f"models-{next(NUMBERS)}"
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    eventually(lambda: api.get("ServiceAccount", name, "default"), "the namespace's service account")
    return name


@pytest.fixture
def heads() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def a_service(namespace: str, image: str = "registry.example/serving:1", **spec: Any) -> Manifest:
    def template(*ports: Manifest) -> Manifest:
        return {"spec": {"containers": [{"name": "ray", "image": image, "ports": list(ports)}]}}

    serve = {"name": "serve", "containerPort": 8000}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "tiny", "namespace": namespace, "annotations": {"sovereign.dev/rendered": "1"}},
        "spec": {
            "serveConfigV2": "applications: [{name: tiny}]",
            "rayClusterConfig": {
                "rayVersion": "2.60.0",
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"template": template(serve)},
                "workerGroupSpecs": [
                    {
                        "groupName": "ranks",
                        "replicas": 2,
                        "minReplicas": 2,
                        "maxReplicas": 2,
                        "template": template(),
                    }
                ],
            },
            **spec,
        },
    }


def clusters(api: ApiServer, namespace: str) -> list[Manifest]:
    return sorted(api.list("RayCluster", namespace), key=lambda c: str(c["metadata"]["creationTimestamp"]))


def pods(api: ApiServer, namespace: str, cluster: str) -> list[Manifest]:
    return api.list("Pod", namespace, f"ray.io/cluster={cluster}")


def services(api: ApiServer, namespace: str) -> dict[str, Manifest]:
    listed = api.call("GET", f"/api/v1/namespaces/{namespace}/services")["items"]
    return {s["metadata"]["name"]: s for s in listed}


def ray_service(api: ApiServer, namespace: str) -> Manifest:
    return api.get("RayService", namespace, "tiny")


def complete_cluster(api: ApiServer, namespace: str, *, beside: str = "") -> str:
    """The name of the RayCluster (another one than `beside`) when its three pods exist."""

    def look() -> str | None:
        for cluster in clusters(api, namespace):
            name = str(cluster["metadata"]["name"])
            if name != beside and len(pods(api, namespace, name)) == 3:
                return name
        return None

    return str(eventually(look, "a RayCluster with its three pods"))


def head_of(api: ApiServer, namespace: str, cluster: str) -> Manifest:
    return api.list("Pod", namespace, f"ray.io/cluster={cluster},ray.io/node-type=head")[0]


def ready_head(api: ApiServer, namespace: str, cluster: str, stack: ExitStack) -> RayHead:
    """What a kubelet would do: the head pod runs and is ready, and something answers at its address."""
    secret = api.get("Secret", namespace, cluster)
    address = f"127.0.77.{next(NUMBERS)}"
    head = RayHead(address, base64.b64decode(secret["data"]["auth_token"]).decode())
    stack.enter_context(head.listening())
    status = {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    pod = head_of(api, namespace, cluster)
    api.patch("Pod", namespace, pod["metadata"]["name"], {"status": status}, sub="status")
    return head


def publish_endpoint(api: ApiServer, namespace: str, cluster: str) -> None:
    """What the endpoint controller would do for a ready worker behind the serve Service."""
    pod = pods(api, namespace, cluster)[-1]["metadata"]
    api.call(
        "POST",
        f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "by-hand", "labels": {"kubernetes.io/service-name": "tiny-serve-svc"}},
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": ["10.244.0.9"],
                    "conditions": {"ready": True},
                    "targetRef": {
                        "kind": "Pod",
                        "name": pod["name"],
                        "namespace": namespace,
                        "uid": pod["uid"],
                    },
                }
            ],
            "ports": [{"name": "serve", "port": 8000}],
        },
    )


def test_a_ray_service_becomes_a_cluster_with_a_token_a_named_head_and_workers(
    api: ApiServer, namespace: str
) -> None:
    api.create(a_service(namespace))
    name = complete_cluster(api, namespace)
    service = ray_service(api, namespace)
    assert name.startswith("tiny-")
    assert service["metadata"]["finalizers"] == ["ray.io/rayservice-finalizer"]
    assert "kuberay-operator" in {entry["manager"] for entry in service["metadata"]["managedFields"]}
    assert service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["scaleStrategy"] == {}
    cluster = api.get("RayCluster", namespace, name)
    assert cluster["metadata"]["annotations"]["sovereign.dev/rendered"] == "1"
    assert api.get("Secret", namespace, name)["data"]["auth_token"]
    head = services(api, namespace)[f"{name}-head-svc"]
    assert head["spec"]["clusterIP"] == "None"
    roles = sorted(p["metadata"]["labels"]["ray.io/node-type"] for p in pods(api, namespace, name))
    assert roles == ["head", "worker", "worker"]
    eventually(
        lambda: ray_service(api, namespace)["status"]["pendingServiceStatus"].get("rayClusterName") == name,
        "the pending cluster in the status",
    )
    assert reason(ray_service(api, namespace), "Ready") == "Initializing"


def test_a_lost_worker_is_replaced(api: ApiServer, namespace: str) -> None:
    api.create(a_service(namespace))
    name = complete_cluster(api, namespace)
    before = {p["metadata"]["name"] for p in pods(api, namespace, name)}
    lost = next(
        p for p in pods(api, namespace, name) if p["metadata"]["labels"]["ray.io/node-type"] == "worker"
    )
    api.delete("Pod", namespace, lost["metadata"]["name"])

    def is_whole_again() -> bool:
        now = {p["metadata"]["name"] for p in pods(api, namespace, name)}
        return len(now) == 3 and lost["metadata"]["name"] not in now and len(now & before) == 2

    eventually(is_whole_again, "a new worker beside the two other pods")


def test_applications_are_submitted_with_the_token_and_their_state_is_mirrored(
    api: ApiServer, namespace: str, heads: ExitStack
) -> None:
    api.create(a_service(namespace))
    name = complete_cluster(api, namespace)
    head = ready_head(api, namespace, name, heads)
    eventually(lambda: head.submitted, "the submitted applications")
    assert head.submitted == [{"applications": [{"name": "tiny"}]}]
    assert "tiny-serve-svc" not in services(api, namespace)
    head.applications = RUNNING
    eventually(lambda: "tiny-serve-svc" in services(api, namespace), "the serve Service")
    publish_endpoint(api, namespace, name)
    eventually(lambda: reason(ray_service(api, namespace), "Ready") == "NonZeroServeEndpoints", "Ready")
    status = ray_service(api, namespace)["status"]
    assert status["serviceStatus"] == "Running"
    assert status["numServeEndpoints"] == 1
    assert status["activeServiceStatus"]["rayClusterName"] == name
    assert status["activeServiceStatus"]["applicationStatuses"]["tiny"] == {
        "status": "RUNNING",
        "serveDeploymentStatuses": {"Ingress": {"status": "HEALTHY"}},
    }
    assert head_of(api, namespace, name)["metadata"]["labels"]["ray.io/serve"] == "true"

    changed = {"spec": {"serveConfigV2": "applications: [{name: tiny, args: {}}]"}}
    api.patch("RayService", namespace, "tiny", changed)
    eventually(lambda: len(head.submitted) == 2, "the changed applications in place")
    assert [c["metadata"]["name"] for c in clusters(api, namespace)] == [name]


def test_a_changed_cluster_comes_up_beside_the_old_one_and_takes_over_when_it_serves(
    api: ApiServer, namespace: str, heads: ExitStack
) -> None:
    api.create(a_service(namespace, rayClusterDeletionDelaySeconds=0))
    old = complete_cluster(api, namespace)
    ready_head(api, namespace, old, heads).applications = RUNNING
    eventually(lambda: "tiny-serve-svc" in services(api, namespace), "the first cluster serves")
    changed = a_service(namespace, image="registry.example/serving:2")["spec"]["rayClusterConfig"]
    api.patch("RayService", namespace, "tiny", {"spec": {"rayClusterConfig": changed}})
    new = complete_cluster(api, namespace, beside=old)
    eventually(
        lambda: condition(ray_service(api, namespace), "UpgradeInProgress")["status"] == "True", "an upgrade"
    )
    assert services(api, namespace)["tiny-serve-svc"]["spec"]["selector"]["ray.io/cluster"] == old
    ready_head(api, namespace, new, heads).applications = RUNNING
    eventually(
        lambda: services(api, namespace)["tiny-serve-svc"]["spec"]["selector"]["ray.io/cluster"] == new,
        "the switch",
    )
    eventually(
        lambda: [c["metadata"]["name"] for c in clusters(api, namespace)] == [new],
        "the end of the old cluster",
    )
    eventually(lambda: not pods(api, namespace, old), "its pods are collected")
    assert services(api, namespace)["tiny-head-svc"]["spec"]["selector"]["ray.io/cluster"] == new


def test_without_upgrades_a_change_waits_for_suspend_and_resume(api: ApiServer, namespace: str) -> None:
    api.create(a_service(namespace, upgradeStrategy={"type": "None"}))
    old = complete_cluster(api, namespace)
    changed = a_service(namespace, image="registry.example/serving:2")["spec"]["rayClusterConfig"]
    api.patch("RayService", namespace, "tiny", {"spec": {"rayClusterConfig": changed}})
    generation = ray_service(api, namespace)["metadata"]["generation"]
    eventually(
        lambda: ray_service(api, namespace)["status"]["observedGeneration"] == generation,
        "the change is seen",
    )
    assert [c["metadata"]["name"] for c in clusters(api, namespace)] == [old]

    api.patch("RayService", namespace, "tiny", {"spec": {"suspend": True}})
    eventually(lambda: reason(ray_service(api, namespace), "Suspended") == "SuspendComplete", "Suspended")
    assert clusters(api, namespace) == []
    eventually(lambda: not pods(api, namespace, old), "the pods are collected")
    assert reason(ray_service(api, namespace), "Ready") == "SuspendComplete"
    assert ray_service(api, namespace)["status"]["activeServiceStatus"] == {}

    api.patch("RayService", namespace, "tiny", {"spec": {"suspend": False}})
    new = complete_cluster(api, namespace)
    assert new != old
    assert head_of(api, namespace, new)["spec"]["containers"][0]["image"] == "registry.example/serving:2"


def test_a_replica_only_change_makes_no_new_cluster(api: ApiServer, namespace: str) -> None:
    service = api.create(a_service(namespace))
    name = complete_cluster(api, namespace)
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    groups[0] |= {"replicas": 3, "maxReplicas": 3}
    api.patch("RayService", namespace, "tiny", {"spec": {"rayClusterConfig": {"workerGroupSpecs": groups}}})
    generation = ray_service(api, namespace)["metadata"]["generation"]
    eventually(
        lambda: ray_service(api, namespace)["status"]["observedGeneration"] == generation,
        "the change is seen",
    )
    assert [c["metadata"]["name"] for c in clusters(api, namespace)] == [name]
    assert len(pods(api, namespace, name)) == 3


def test_hosts_of_a_replica_come_and_go_together(api: ApiServer, namespace: str) -> None:
    service = a_service(namespace)
    group = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    group |= {"replicas": 1, "minReplicas": 1, "maxReplicas": 1, "numOfHosts": 2}
    api.create(service)
    name = complete_cluster(api, namespace)

    def workers() -> set[str]:
        found = api.list("Pod", namespace, f"ray.io/cluster={name},ray.io/node-type=worker")
        return {p["metadata"]["name"] for p in found}

    before = workers()
    api.delete("Pod", namespace, min(before))
    eventually(lambda: len(workers()) == 2 and not workers() & before, "two new hosts")
    assert f"{name}-headless" in services(api, namespace)


def test_deleting_the_ray_service_leaves_nothing(api: ApiServer, namespace: str, heads: ExitStack) -> None:
    api.create(a_service(namespace))
    name = complete_cluster(api, namespace)
    ready_head(api, namespace, name, heads).applications = RUNNING
    eventually(lambda: "tiny-serve-svc" in services(api, namespace), "the serve Service")
    api.delete("RayService", namespace, "tiny", propagation="Foreground")

    def nothing_is_left() -> bool:
        left = (
            ray_service(api, namespace),
            clusters(api, namespace),
            api.list("Pod", namespace),
            services(api, namespace),
            api.get("Secret", namespace, name),
        )
        return not any(left)

    eventually(nothing_is_left, "no RayService, RayCluster, pod, Service or Secret", seconds=60)
