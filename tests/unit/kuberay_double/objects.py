# SPDX-License-Identifier: Apache-2.0
"""RayServices, groups and templates as the tests of the KubeRay stand-in need them."""

from typing import Any

from dev.kuberay.cluster_spec import (
    ray_cluster,
)

Manifest = dict[str, Any]


def a_template(**container: Any) -> Manifest:
    ray = {
        "name": "ray",
        "image": "registry.example/serving@sha256:0",
        "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
        "securityContext": {"runAsNonRoot": True},
        "resources": {"limits": {"memory": "4Gi"}, "requests": {"cpu": "500m"}},
        **container,
    }
    return {"metadata": {"labels": {"sovereign.dev/model": "tiny"}}, "spec": {"containers": [ray]}}


def a_group(**fields: Any) -> Manifest:
    return {
        "groupName": "ranks",
        "replicas": 2,
        "minReplicas": 2,
        "maxReplicas": 2,
        "numOfHosts": 1,
        "rayStartParams": {"num-cpus": "3"},
        "template": a_template(ports=[{"name": "serve", "containerPort": 8000}]),
        **fields,
    }


def a_service(**spec: Any) -> Manifest:
    config = {
        "rayVersion": "2.60.0",
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "include-dashboard": "true"},
            "template": a_template(
                ports=[{"name": "dashboard", "containerPort": 8265}, {"name": "serve", "containerPort": 8000}]
            ),
        },
        "workerGroupSpecs": [a_group()],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": "tiny",
            "namespace": "models",
            "uid": "u-1",
            "generation": 3,
            "annotations": {"sovereign.dev/rendered": "abc"},
        },
        "spec": {"serveConfigV2": "applications: []", "rayClusterConfig": config, **spec},
    }


def a_cluster(service: Manifest | None = None) -> Manifest:
    cluster = ray_cluster(service or a_service(), "tiny-abcde")
    cluster["metadata"]["uid"] = "u-2"
    return cluster
