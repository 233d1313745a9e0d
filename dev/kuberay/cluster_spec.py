# SPDX-License-Identifier: Apache-2.0
"""When a changed RayService means another RayCluster: the hash KubeRay compares, what it leaves out. Pure."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

from dev.kuberay import names
from dev.kuberay.pods import owner_reference

Manifest = dict[str, Any]

MUTED_IN_GROUPS = ("replicas", "minReplicas", "maxReplicas")
MUTED_IN_PODS = ("tolerations", "schedulingGates")


def spec_hash(spec: Manifest, worker_groups: int | None = None) -> str:
    """Replica counts, tolerations and scheduling gates are left out; `worker_groups` cuts the list."""
    muted = copy.deepcopy(spec)
    muted.pop("suspend", None)
    muted.pop("upgradeStrategy", None)
    groups = muted.get("workerGroupSpecs", [])[:worker_groups]
    muted["workerGroupSpecs"] = groups
    for group in groups:
        for field in MUTED_IN_GROUPS:
            group.pop(field, None)
        group.get("scaleStrategy", {}).pop("workersToDelete", None)
    for group in (muted["headGroupSpec"], *groups):
        for field in MUTED_IN_PODS:
            group["template"]["spec"].pop(field, None)
    return hashlib.sha256(json.dumps(_without_empty(muted), sort_keys=True).encode()).hexdigest()[:40]


def _without_empty(value: Any) -> Any:
    """KubeRay hashes Go values: there, an absent map and an empty one are the same."""
    if isinstance(value, dict):
        kept = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, {}, [])}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


def is_same_cluster(service: Manifest, cluster: Manifest) -> bool:
    """Nothing that KubeRay looks at differs."""
    goal = spec_hash(service["spec"]["rayClusterConfig"])
    return bool(cluster["metadata"].get("annotations", {}).get(names.ANNOTATION_HASH) == goal)


def is_extended_cluster(service: Manifest, cluster: Manifest) -> bool:
    """Worker groups were added at the end and nothing else differs: the one change KubeRay makes in place."""
    annotations = cluster["metadata"].get("annotations", {})
    known = int(annotations.get(names.ANNOTATION_WORKER_GROUPS, 0))
    config = service["spec"]["rayClusterConfig"]
    if len(config.get("workerGroupSpecs", [])) < known:
        return False
    return bool(annotations.get(names.ANNOTATION_HASH) == spec_hash(config, known))


def needs_new_cluster(service: Manifest, active: Manifest | None, pending: Manifest | None) -> bool:
    """The first cluster always; after that only with zero-downtime upgrades, which are KubeRay's default."""
    newest = pending or active
    if newest is None:
        return True
    if is_same_cluster(service, newest) or is_extended_cluster(service, newest):
        return False
    return bool((service["spec"].get("upgradeStrategy") or {}).get("type", "NewCluster") == "NewCluster")


def ray_cluster(service: Manifest, name: str) -> Manifest:
    metadata, config = service["metadata"], copy.deepcopy(service["spec"]["rayClusterConfig"])
    return {
        "apiVersion": names.GROUP_VERSION,
        "kind": "RayCluster",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": {
                **metadata.get("labels", {}),
                names.LABEL_CREATOR_NAME: metadata["name"],
                names.LABEL_CREATOR_KIND: "RayService",
            },
            "annotations": {
                **metadata.get("annotations", {}),
                names.ANNOTATION_HASH: spec_hash(config),
                names.ANNOTATION_WORKER_GROUPS: str(len(config.get("workerGroupSpecs", []))),
                names.ANNOTATION_VERSION: names.KUBERAY_VERSION,
            },
            "ownerReferences": [owner_reference(service)],
        },
        "spec": config,
    }


def as_typed_client_writes(service: Manifest) -> Manifest:
    """A copy as a typed Go client sends it back: structs that are never omitted, canonical quantities.

    With this Update KubeRay becomes a field manager of what others wrote: they must not compare whole trees.
    """
    written = copy.deepcopy(service)
    config = written["spec"]["rayClusterConfig"]
    for group in config.get("workerGroupSpecs", []):
        group.setdefault("scaleStrategy", {})
        group.setdefault("rayStartParams", {})
    for group in (config["headGroupSpec"], *config.get("workerGroupSpecs", [])):
        group["template"].setdefault("metadata", {})
        for container in (
            *group["template"]["spec"].get("initContainers", []),
            *group["template"]["spec"]["containers"],
        ):
            container["name"] = container.get("name", "")
            resources = container.setdefault("resources", {})
            for amounts in resources.values():
                for name, quantity in amounts.items() if isinstance(amounts, dict) else ():
                    amounts[name] = _canonical(str(quantity))
    return written


def _canonical(quantity: str) -> str:
    """1000m becomes 1, 1024Mi becomes 1Gi: the shortest form with the same kind of suffix."""
    for small, step, large in (("m", 1000, ""), ("Ki", 1024, "Mi"), ("Mi", 1024, "Gi"), ("Gi", 1024, "Ti")):
        if quantity.endswith(small) and quantity.removesuffix(small).isdigit():
            amount = int(quantity.removesuffix(small))
            if amount and amount % step == 0:
                return _canonical(f"{amount // step}{large}") if large else str(amount // step)
    return quantity


def invalid(service: Manifest) -> str | None:
    """Why KubeRay would refuse it, or None: of its rules those that a rendered RayService could break."""
    name, spec = service["metadata"]["name"], service["spec"]
    config = spec["rayClusterConfig"]
    if len(name) > 47:
        return "The RayService metadata is invalid: RayService name should be no more than 47 characters"
    if not config["headGroupSpec"]["template"]["spec"].get("containers"):
        return "The RayService spec is invalid: headGroupSpec should have at least one container"
    for group in config.get("workerGroupSpecs", []):
        if not group["template"]["spec"].get("containers"):
            return f"The RayService spec is invalid: group {group['groupName']} should have a container"
    version = config.get("rayVersion", "")
    if config.get("authOptions", {}).get("mode") == "token":
        parts = version.split(".")
        if len(parts) < 2 or tuple(int(part) for part in parts[:2]) < (2, 52):
            return f"authOptions.mode is 'token' but minimum Ray version is 2.52.0, got {version!r}"
    strategy = (spec.get("upgradeStrategy") or {}).get("type", "NewCluster")
    if strategy not in ("NewCluster", "None"):
        return f"The stand-in knows the upgrade strategies NewCluster and None, got {strategy}"
    return None
