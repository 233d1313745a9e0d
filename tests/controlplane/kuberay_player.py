# SPDX-License-Identifier: Apache-2.0
"""Plays KubeRay and the kubelet where there are neither: the test calls it, and it does what they would do.

It follows KubeRay 1.7 in what the operator can see: a RayCluster copies labels and annotations of the
RayService at its creation, upgrade type None never touches an existing cluster, suspend removes clusters
and pods.
"""

from __future__ import annotations

import uuid

from tests.controlplane.api_server import ApiServer, Manifest

FINALIZER = "ray.io/rayservice-finalizer"

RUNNING = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


class KubeRayPlayer:
    def __init__(self, api: ApiServer, namespace: str, name: str) -> None:
        self.api, self.namespace, self.name = api, namespace, name

    def service(self) -> Manifest:
        return self.api.get("RayService", self.namespace, self.name)

    def clusters(self) -> list[Manifest]:
        return self.api.list("RayCluster", self.namespace, f"sovereign.dev/owner={self.name}")

    def pods(self) -> list[Manifest]:
        """Head and workers; the pods of a probe carry the model's label too and are not KubeRay's."""
        others = ",".join(f"sovereign.dev/component!={each}" for each in ("peer", "prober"))
        return self.api.list("Pod", self.namespace, f"sovereign.dev/model={self.name},{others}")

    def start(self) -> Manifest:
        """A new cluster with running pods that serve: the whole way to Ready."""
        service = self.service()
        cluster = self.create_cluster(service)
        self.create_pods(service, cluster["metadata"]["name"])
        self.report_serving(cluster["metadata"]["name"])
        return cluster

    def create_cluster(self, service: Manifest) -> Manifest:
        metadata = service["metadata"]
        annotations = {
            key: value
            for key, value in (metadata.get("annotations") or {}).items()
            if not key.startswith("kubectl")
        }
        return self.api.create(
            {
                "apiVersion": "ray.io/v1",
                "kind": "RayCluster",
                "metadata": {
                    "name": f"{self.name}-{uuid.uuid4().hex[:5]}",
                    "namespace": self.namespace,
                    "labels": metadata["labels"],
                    "annotations": annotations,
                    "ownerReferences": [
                        {
                            "apiVersion": "ray.io/v1",
                            "kind": "RayService",
                            "name": self.name,
                            "uid": metadata["uid"],
                            "controller": True,
                            "blockOwnerDeletion": True,
                        }
                    ],
                },
                "spec": service["spec"]["rayClusterConfig"],
            }
        )

    def create_pods(self, service: Manifest, cluster: str) -> None:
        config = service["spec"]["rayClusterConfig"]
        self.create_pod(f"{cluster}-head", config["headGroupSpec"]["template"])
        for group in config["workerGroupSpecs"]:
            for number in range(group["replicas"] * group.get("numOfHosts", 1)):
                self.create_pod(f"{cluster}-worker-{number}", group["template"])

    def create_pod(self, name: str, template: Manifest) -> None:
        """A running pod that no scheduler takes, so that deleting it needs no kubelet."""
        metadata = {**template["metadata"], "name": name, "namespace": self.namespace}
        container = {"name": "ray", "image": "none.invalid/none"}
        self.api.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": metadata,
                "spec": {"schedulerName": "nobody", "containers": [container]},
            }
        )
        self.api.patch("Pod", self.namespace, name, {"status": RUNNING}, "status")

    def report_serving(
        self, cluster: str, deployment: str = "HEALTHY", generation: int | None = None
    ) -> None:
        app = {
            "status": "RUNNING",
            "serveDeploymentStatuses": {"LLMServer": {"status": deployment, "message": "as played"}},
        }
        seen = generation or self.service()["metadata"]["generation"]
        self.report(
            {
                "observedGeneration": seen,
                "numServeEndpoints": 2,
                "serviceStatus": "Running",
                "conditions": [self.condition("Ready", "True", "NonZeroServeEndpoints")],
                "activeServiceStatus": {
                    "rayClusterName": cluster,
                    "applicationStatuses": {self.name: app},
                },
            }
        )

    def report(self, status: Manifest) -> None:
        self.api.patch(
            "RayService", self.namespace, self.name, {"status": status}, "status", manager="manager"
        )

    def stop(self) -> None:
        """What suspend (or the deletion of the RayService) does: clusters and pods go."""
        self.delete_clusters()
        self.stop_pods()
        if self.service():
            self.report(
                {
                    "conditions": [self.condition("Ready", "False", "SuspendComplete")],
                    "activeServiceStatus": None,
                    "serviceStatus": None,
                    "observedGeneration": self.service()["metadata"]["generation"],
                }
            )

    def delete_clusters(self) -> None:
        for cluster in self.clusters():
            self.api.delete("RayCluster", self.namespace, cluster["metadata"]["name"])

    def stop_pods(self) -> None:
        for pod in self.pods():
            self.api.delete("Pod", self.namespace, pod["metadata"]["name"])

    @staticmethod
    def condition(kind: str, status: str, reason: str, message: str = "as played") -> Manifest:
        return {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
