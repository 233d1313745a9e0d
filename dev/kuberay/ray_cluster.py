# SPDX-License-Identifier: Apache-2.0
"""Makes a RayCluster's Secret, Services and pods be what its spec says, and says so in its status."""

from __future__ import annotations

import base64
import secrets
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from dev.kuberay import names
from dev.kuberay.api import Api
from dev.kuberay.conditions import is_true, set_condition
from dev.kuberay.pods import Host, desired_workers, head_pod, owner_reference, worker_pod
from dev.kuberay.services import cluster_head_service, headless_worker_service

Manifest = dict[str, Any]


def reconcile_cluster(api: Api, cluster: Manifest, now: str) -> None:
    """One round. Pods that are going still count: a new one takes their place only when they are gone."""
    if cluster["metadata"].get("deletionTimestamp"):
        return
    namespace, name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
    _ensure(api, auth_secret(cluster))
    _ensure(api, cluster_head_service(cluster))
    groups = cluster["spec"].get("workerGroupSpecs", [])
    if any(group.get("numOfHosts", 1) > 1 for group in groups):
        _ensure(api, headless_worker_service(cluster))
    pods = api.list("Pod", namespace, **{names.LABEL_CLUSTER: name})
    _reconcile_head(api, cluster, pods)
    for group in groups:
        members = [p for p in pods if p["metadata"]["labels"].get(names.LABEL_GROUP) == group["groupName"]]
        _reconcile_group(api, cluster, group, members)
    status = cluster_status(cluster, api.list("Pod", namespace, **{names.LABEL_CLUSTER: name}), now)
    if not same_status(status, cluster.get("status", {})):
        api.replace_status({**cluster, "status": status | {"lastUpdateTime": now}})


def auth_secret(cluster: Manifest) -> Manifest | None:
    """The token of `authOptions.mode: token`; none where the user brings a Secret or wants no token."""
    options = cluster["spec"].get("authOptions", {})
    if options.get("mode") != "token" or options.get("secretName"):
        return None
    metadata = cluster["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names.object_name(metadata["name"]),
            "namespace": metadata["namespace"],
            "labels": {names.LABEL_CLUSTER: metadata["name"]},
            "ownerReferences": [owner_reference(cluster)],
        },
        "stringData": {names.TOKEN_KEY: base64.b64encode(secrets.token_bytes(32)).decode()},
    }


def auth_token(api: Api, cluster: Manifest) -> str | None:
    options = cluster["spec"].get("authOptions", {})
    if options.get("mode") != "token":
        return None
    name = options.get("secretName") or names.object_name(cluster["metadata"]["name"])
    secret = api.get("Secret", cluster["metadata"]["namespace"], name)
    return base64.b64decode(secret["data"][names.TOKEN_KEY]).decode() if secret else None


def _ensure(api: Api, manifest: Manifest | None) -> None:
    if manifest is None:
        return
    metadata = manifest["metadata"]
    if api.get(manifest["kind"], metadata["namespace"], metadata["name"]) is None:
        api.create(manifest)


def _reconcile_head(api: Api, cluster: Manifest, pods: list[Manifest]) -> None:
    heads = [p for p in pods if p["metadata"]["labels"].get(names.LABEL_NODE_TYPE) == names.HEAD]
    if not heads:
        api.create(head_pod(cluster))
    for head in heads:
        if is_finished(head):
            api.delete(head, why="it has ended")


def _reconcile_group(api: Api, cluster: Manifest, group: Manifest, pods: list[Manifest]) -> None:
    hosts = max(1, group.get("numOfHosts", 1))
    replicas = replicas_of(pods, hosts)
    broken = {
        key: members
        for key, members in replicas.items()
        if len(members) < hosts or any(is_finished(pod) for pod in members)
    }
    # A replica over several hosts is one process group: with one host gone the others go, too.
    for key, members in broken.items():
        for pod in members:
            api.delete(pod, why=f"replica {key} is incomplete or has ended")
    if broken:
        return
    wanted = desired_workers(group) // hosts
    for key in sorted(replicas)[wanted:]:
        for pod in replicas[key]:
            api.delete(pod, why=f"{wanted} replicas of {group['groupName']} are wanted")
    for index in free_indices(pods, wanted - len(replicas)):
        replica = f"{group['groupName']}-{names.random_suffix()}"
        for host in range(hosts):
            api.create(worker_pod(cluster, group, Host(index, host, replica)))


def replicas_of(pods: Iterable[Manifest], hosts: int) -> dict[str, list[Manifest]]:
    """Pods by replica: each its own where a replica is one host."""
    result: dict[str, list[Manifest]] = defaultdict(list)
    for pod in pods:
        key = (
            pod["metadata"]["labels"].get(names.LABEL_REPLICA_NAME, "")
            if hosts > 1
            else pod["metadata"]["name"]
        )
        result[key].append(pod)
    return dict(result)


def free_indices(pods: Iterable[Manifest], count: int) -> list[int]:
    """The lowest replica indices that no pod has."""
    taken = {pod["metadata"]["labels"].get(names.LABEL_REPLICA_INDEX) for pod in pods}
    free: list[int] = []
    index = 0
    while len(free) < count:
        if str(index) not in taken:
            free.append(index)
        index += 1
    return free


def is_finished(pod: Manifest) -> bool:
    """The pod will not run again: by its phase, or its Ray container ended and may not restart."""
    status = pod.get("status", {})
    if status.get("phase") in ("Failed", "Succeeded"):
        return True
    if pod["spec"].get("restartPolicy", "Always") != "Never":
        return False
    ray = pod["spec"]["containers"][0]["name"]
    return any("terminated" in s["state"] for s in status.get("containerStatuses", []) if s["name"] == ray)


def is_ready(pod: Manifest) -> bool:
    status = pod.get("status", {})
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
    return ready and status.get("phase") == "Running"


def cluster_status(cluster: Manifest, pods: list[Manifest], now: str) -> Manifest:
    """A RayCluster's status from its pods. Pure; `lastUpdateTime` is left to the caller."""
    status: Manifest = {k: v for k, v in cluster.get("status", {}).items() if k != "lastUpdateTime"}
    status["conditions"] = [dict(condition) for condition in status.get("conditions", [])]
    groups = cluster["spec"].get("workerGroupSpecs", [])
    workers = [p for p in pods if p["metadata"]["labels"].get(names.LABEL_NODE_TYPE) == names.WORKER]
    heads = [p for p in pods if p["metadata"]["labels"].get(names.LABEL_NODE_TYPE) == names.HEAD]
    desired = sum(desired_workers(group) for group in groups)
    status |= {
        "observedGeneration": cluster["metadata"].get("generation", 0),
        "desiredWorkerReplicas": desired,
        "readyWorkerReplicas": sum(is_ready(p) for p in workers),
        "availableWorkerReplicas": sum(p.get("status", {}).get("phase") == "Running" for p in workers),
    }
    all_ready = bool(pods) and all(is_ready(p) for p in pods)
    if all_ready and len(pods) == desired + 1:
        status["state"] = "ready"
    head = heads[0] if heads else None
    if head is None:
        set_condition(status, "HeadPodReady", False, "HeadPodNotFound", "Head Pod not found", now=now)
        status.pop("head", None)
    else:
        reason = "HeadPodRunningAndReady" if is_ready(head) else "ContainersNotReady"
        set_condition(status, "HeadPodReady", is_ready(head), reason, "", now=now)
        status["head"] = {
            "podName": head["metadata"]["name"],
            "podIP": head.get("status", {}).get("podIP", ""),
            "serviceIP": head.get("status", {}).get("podIP", ""),
            "serviceName": names.head_service(cluster["metadata"]["name"]),
        }
    if not is_true(status, "RayClusterProvisioned"):
        if all_ready:
            reason, message = "AllPodRunningAndReadyFirstTime", "All Ray Pods are ready for the first time"
        else:
            reason, message = (
                "RayClusterPodsProvisioning",
                "RayCluster Pods are being provisioned for first time",
            )
        set_condition(status, "RayClusterProvisioned", all_ready, reason, message, now=now)
    return status


def same_status(left: Manifest, right: Manifest) -> bool:
    """Time stamps alone are no difference: without this every round would write."""
    ignored = {"lastUpdateTime"}
    return {k: v for k, v in left.items() if k not in ignored} == {
        k: v for k, v in right.items() if k not in ignored
    }
