# SPDX-License-Identifier: Apache-2.0
"""The head and worker pods of a RayCluster, as KubeRay v1.7.0 renders them. Pure.

Left out, because our RayService never asks for it: autoscaler, GCS fault tolerance, TLS, history server.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dev.kuberay import names
from dev.kuberay.quantities import whole

Manifest = dict[str, Any]

BASH = ["/bin/bash", "-c", "--"]
ULIMIT = "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}"
# `ray start` takes a value for these; other parameters that are true or false become bare switches.
PARAMETERS_WITH_BOOLEAN_VALUE = frozenset({"log-color", "include-dashboard", "include-log-monitor"})
SHARED_MEMORY = "shared-mem"

WAIT_FOR_GCS = """
SECONDS=0
while true; do
  if (( SECONDS <= 120 )); then
    if ray health-check --address {address} > /dev/null 2>&1; then
      echo "GCS is ready."
      break
    fi
    echo "$SECONDS seconds elapsed: Waiting for GCS to be ready."
  else
    if ray health-check --address {address}; then
      echo "GCS is ready. Any error messages above can be safely ignored."
      break
    fi
    echo "$SECONDS seconds elapsed: Still waiting for GCS to be ready."
  fi
  sleep 5
done
"""


@dataclass(frozen=True)
class Host:
    """Where a worker pod stands in its group: replica `index`, and which `host` of it."""

    index: int
    host: int = 0
    replica_name: str = ""


def head_pod(cluster: Manifest) -> Manifest:
    spec = cluster["spec"]["headGroupSpec"]
    return _pod(
        cluster, spec, names.HEAD, names.HEAD_GROUP, names.pod_prefix(cluster["metadata"]["name"], names.HEAD)
    )


def worker_pod(cluster: Manifest, group: Manifest, host: Host) -> Manifest:
    name = group["groupName"]
    prefix = names.pod_prefix(f"{cluster['metadata']['name']}-{name}", names.WORKER)
    pod = _pod(cluster, group, names.WORKER, name, prefix)
    labels = pod["metadata"]["labels"]
    labels[names.LABEL_REPLICA_INDEX] = str(host.index)
    if group.get("numOfHosts", 1) > 1:
        labels[names.LABEL_REPLICA_NAME] = host.replica_name
        labels[names.LABEL_HOST_INDEX] = str(host.host)
    return pod


def desired_workers(group: Manifest) -> int:
    """Pods of a worker group: replicas within [minReplicas, maxReplicas], times hosts per replica."""
    replicas = max(group.get("replicas", 0), group.get("minReplicas", 0))
    return int(min(replicas, group.get("maxReplicas", replicas)) * max(1, group.get("numOfHosts", 1)))


def _pod(cluster: Manifest, group: Manifest, node_type: str, group_name: str, prefix: str) -> Manifest:
    metadata = cluster["metadata"]
    template = copy.deepcopy(group["template"])
    spec = template["spec"]
    ray = spec["containers"][0]
    address = names.head_address(metadata["name"], metadata["namespace"])
    gcs_port = str(cluster["spec"]["headGroupSpec"].get("rayStartParams", {}).get("port", names.GCS_PORT))
    # The init container gets the Ray container's environment as the user wrote it, before anything is added.
    if node_type == names.WORKER:
        spec.setdefault("initContainers", []).append(_wait_for_gcs(ray, f"{address}:{gcs_port}"))
    if not any(port.get("name") == "metrics" for port in ray.get("ports", [])):
        ray.setdefault("ports", []).append({"name": "metrics", "containerPort": names.METRICS_PORT})
    if cluster["spec"].get("authOptions", {}).get("mode") == "token":
        for container in (ray, *(c for c in spec.get("initContainers", []) if c["name"] == "wait-gcs-ready")):
            _add_environment(container, _token_environment(cluster))
    parameters = _start_parameters(group.get("rayStartParams") or {}, node_type, f"{address}:{gcs_port}", ray)
    if "plasma-directory" not in parameters:
        _add_shared_memory(spec, ray)
    start = f"ray start {'--head ' if node_type == names.HEAD else ''}{_flags(parameters)}"
    if (template.get("metadata", {}).get("annotations") or {}).get(
        "ray.io/overwrite-container-cmd"
    ) != "true":
        users = "".join(f" {word} " for word in (*ray.get("command", ()), *ray.get("args", ())))
        if "ray start" not in users:
            ray["command"] = list(BASH)
            ray["args"] = [f"{users} && {ULIMIT}; {start}" if users else f"{ULIMIT}; {start}"]
    for container in spec.get("initContainers", []):
        container.setdefault("env", []).extend(_address_environment(address))
    _add_environment(ray, _ray_environment(node_type, address, gcs_port, start))
    _add_probes(ray, node_type, parameters, cluster["spec"].get("rayVersion", ""))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": prefix,
            "namespace": metadata["namespace"],
            "labels": _labels(metadata["name"], node_type, group_name, group),
            "annotations": dict((template.get("metadata") or {}).get("annotations") or {})
            | ({names.ANNOTATION_FAULT_TOLERANT: "false"} if node_type == names.HEAD else {}),
            "ownerReferences": [owner_reference(cluster)],
        },
        "spec": spec,
    }


def owner_reference(owner: Manifest) -> Manifest:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _labels(cluster: str, node_type: str, group_name: str, group: Manifest) -> dict[str, str]:
    """The group's own labels win over those of its template, as in KubeRay's mergeLabels."""
    fixed = {names.LABEL_NODE_TYPE: node_type, names.LABEL_GROUP: group_name, names.LABEL_CLUSTER: cluster}
    return {
        names.LABEL_IS_RAY_NODE: "yes",
        names.LABEL_IDENTIFIER: names.label_value(f"{cluster}-{node_type}"),
        **names.APPLICATION_LABELS,
        **((group["template"].get("metadata") or {}).get("labels") or {}),
        **(group.get("labels") or {}),
        **fixed,
        # A worker's readiness probe decides; the head has none for Serve, so the controller sets its label.
        names.LABEL_SERVE: "false" if node_type == names.HEAD else "true",
    }


def _wait_for_gcs(ray: Manifest, address: str) -> Manifest:
    small = {"cpu": "200m", "memory": "256Mi"}
    container = {
        "name": "wait-gcs-ready",
        "image": ray["image"],
        "command": list(BASH),
        "args": [WAIT_FOR_GCS.format(address=address)],
        "env": copy.deepcopy(ray.get("env", [])),
        "volumeMounts": copy.deepcopy(ray.get("volumeMounts", [])),
        "resources": {"limits": small, "requests": dict(small)},
    }
    for field in ("imagePullPolicy", "securityContext"):
        if field in ray:
            container[field] = copy.deepcopy(ray[field])
    return container


def _start_parameters(
    given: Mapping[str, str], node_type: str, address: str, ray: Manifest
) -> dict[str, str]:
    parameters = dict(given)
    if node_type == names.WORKER:
        parameters.setdefault("address", address)
    else:
        parameters.setdefault("dashboard-host", "0.0.0.0")
    parameters.setdefault("metrics-export-port", str(names.METRICS_PORT))
    parameters["block"] = "true"
    parameters.setdefault("dashboard-agent-listen-port", str(names.AGENT_PORT))
    resources = ray.get("resources", {})
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    cpu = whole(limits.get("cpu", "0")) or whole(requests.get("cpu", "0"))
    if cpu:
        parameters.setdefault("num-cpus", str(cpu))
    if memory := whole(limits.get("memory", "0")):
        parameters.setdefault("memory", str(memory))
    for name in sorted(limits):
        # Only resources that end in "gpu" count as GPUs for Ray.
        if name.endswith("gpu") and whole(limits[name]):
            parameters.setdefault("num-gpus", str(whole(limits[name])))
    return parameters


def _flags(parameters: Mapping[str, str]) -> str:
    words = []
    for option, value in sorted(parameters.items()):
        if value.lower() in ("true", "false") and option not in PARAMETERS_WITH_BOOLEAN_VALUE:
            if value.lower() == "true":
                words.append(f" --{option} ")
        else:
            words.append(f" --{option}={value} ")
    return "".join(words)


def _field(path: str) -> Manifest:
    return {"fieldRef": {"fieldPath": path}}


def _add_environment(container: Manifest, variables: list[Manifest]) -> None:
    """Appends what the user has not set."""
    environment = container.setdefault("env", [])
    known = {variable["name"] for variable in environment}
    environment.extend(v for v in variables if v["name"] not in known)


def _address_environment(address: str) -> list[Manifest]:
    return [{"name": "FQ_RAY_IP", "value": address}, {"name": "RAY_IP", "value": address.split(".")[0]}]


def _token_environment(cluster: Manifest) -> list[Manifest]:
    secret = cluster["spec"]["authOptions"].get("secretName") or names.object_name(
        cluster["metadata"]["name"]
    )
    return [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret, "key": names.TOKEN_KEY}}},
    ]


def _ray_environment(node_type: str, address: str, gcs_port: str, start: str) -> list[Manifest]:
    head = node_type == names.HEAD
    environment: list[Manifest] = [] if head else _address_environment(address)
    environment += [
        {"name": "RAY_CLUSTER_NAME", "valueFrom": _field(f"metadata.labels['{names.LABEL_CLUSTER}']")},
        {"name": "RAY_CLUSTER_NAMESPACE", "valueFrom": _field("metadata.namespace")},
        {"name": "RAY_CLOUD_INSTANCE_ID", "valueFrom": _field("metadata.name")},
        {"name": "RAY_NODE_TYPE_NAME", "valueFrom": _field(f"metadata.labels['{names.LABEL_GROUP}']")},
        {"name": "KUBERAY_GEN_RAY_START_CMD", "value": start},
        {"name": "RAY_PORT", "value": gcs_port},
        {"name": "RAY_timeout_ms_task_wait_for_death_info", "value": "0"},
        {"name": "RAY_gcs_server_request_timeout_seconds", "value": "5"},
        {"name": "RAY_SERVE_KV_TIMEOUT_S", "value": "5"},
        {"name": "RAY_ADDRESS", "value": f"{'127.0.0.1' if head else address}:{gcs_port}"},
        {"name": "RAY_USAGE_STATS_KUBERAY_IN_USE", "value": "1"},
    ]
    if head:
        tags = f"kuberay_version={names.KUBERAY_VERSION};kuberay_crd=RayService"
        environment.append({"name": "RAY_USAGE_STATS_EXTRA_TAGS", "value": tags})
    environment.append({"name": "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE", "value": "1"})
    return environment


def _add_shared_memory(spec: Manifest, ray: Manifest) -> None:
    if any(mount["mountPath"] == "/dev/shm" for mount in ray.get("volumeMounts", [])):
        return
    if not any(volume["name"] == SHARED_MEMORY for volume in spec.get("volumes", [])):
        medium: Manifest = {"medium": "Memory"}
        resources = ray.get("resources", {})
        if size := resources.get("requests", {}).get("memory") or resources.get("limits", {}).get("memory"):
            medium["sizeLimit"] = size
        spec.setdefault("volumes", []).append({"name": SHARED_MEMORY, "emptyDir": medium})
    ray.setdefault("volumeMounts", []).append({"name": SHARED_MEMORY, "mountPath": "/dev/shm"})


def _add_probes(ray: Manifest, node_type: str, parameters: Mapping[str, str], ray_version: str) -> None:
    agent = int(parameters["dashboard-agent-listen-port"])
    commands = [_wget(2, agent, "api/local_raylet_healthz")]
    if node_type == names.HEAD:
        commands.append(
            _wget(10, int(parameters.get("dashboard-port", names.DASHBOARD_PORT)), "api/gcs_healthz")
        )
    if _version(ray_version) >= (2, 53):
        check: Manifest = {"httpGet": {"path": "/api/healthz", "port": agent}}
    else:
        check = _exec(commands)
    timeout = 5 if node_type == names.HEAD else 2
    common = {"timeoutSeconds": timeout, "periodSeconds": 5, "successThreshold": 1}
    ray.setdefault("livenessProbe", {**check, **common, "initialDelaySeconds": 30, "failureThreshold": 120})
    if "readinessProbe" in ray:
        return
    ray["readinessProbe"] = {**check, **common, "initialDelaySeconds": 10, "failureThreshold": 10}
    if node_type == names.WORKER:
        serve = next((p["containerPort"] for p in ray["ports"] if p.get("name") == "serve"), names.SERVE_PORT)
        commands.append(_wget(10, serve, "-/healthz"))
        ray["readinessProbe"] = {
            **_exec(commands),
            **common,
            "initialDelaySeconds": 10,
            "failureThreshold": 1,
        }


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")[:2]
    return (
        tuple(int(part) for part in parts) if len(parts) == 2 and all(p.isdigit() for p in parts) else (0, 0)
    )


def _wget(timeout: int, port: int, path: str) -> str:
    return f"wget --tries 1 -T {timeout} -q -O- http://localhost:{port}/{path} | grep success"


def _exec(commands: list[str]) -> Manifest:
    return {"exec": {"command": ["bash", "-c", " && ".join(commands)]}}
