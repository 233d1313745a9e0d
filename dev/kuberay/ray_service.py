# SPDX-License-Identifier: Apache-2.0
"""Makes a RayService be served: a RayCluster, a second one during an upgrade, Serve applications, status.

It follows KubeRay v1.7.0 step by step, because the operator's tests are worth as much as this resembles it.
Left out: incremental upgrades (they want a Gateway and the autoscaler), the initializing timeout, ingresses,
events.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dev.kuberay import names, suspension
from dev.kuberay.api import Api
from dev.kuberay.cluster_spec import (
    as_typed_client_writes,
    invalid,
    is_extended_cluster,
    is_same_cluster,
    needs_new_cluster,
    ray_cluster,
)
from dev.kuberay.conditions import is_true, reason_of, set_condition
from dev.kuberay.ray_cluster import auth_token, is_ready, same_status
from dev.kuberay.serve import Dashboard, are_running, proxy_is_healthy
from dev.kuberay.services import serve_service, service_head_service
from dev.kuberay.suspension import Step

Manifest = dict[str, Any]
log = logging.getLogger("kuberay")

DELETION_DELAY_SECONDS = 60


@dataclass
class RayServices:
    """Remembers, like KubeRay, only what may be forgotten: submitted configurations and planned deletions."""

    api: Api
    clock: Callable[[], float] = time.monotonic
    submitted: dict[str, str] = field(default_factory=dict)
    delete_at: dict[str, float] = field(default_factory=dict)

    def reconcile(self, service: Manifest, now: str) -> None:
        clusters = self._owned("RayCluster", service)
        left_over = self._clean_up(service, clusters)
        if service["metadata"].get("deletionTimestamp"):
            if not left_over:
                self._release(service)
            return
        if names.FINALIZER not in service["metadata"].get("finalizers", []):
            held = as_typed_client_writes(service)
            held["metadata"].setdefault("finalizers", []).append(names.FINALIZER)
            self.api.replace(held, why="finalizer")
            return
        status = copy.deepcopy(service.get("status", {}))
        if (why := invalid(service)) is not None:
            set_condition(status, "Ready", False, "ValidationFailed", why, now=now)
        elif not self._suspension_drives(service, status, now):
            self._run(service, status, now)
        if not same_status(status, service.get("status", {})):
            self.api.replace_status({**service, "status": status | {"lastUpdateTime": now}})

    def _owned(self, kind: str, service: Manifest) -> list[Manifest]:
        labels = {
            names.LABEL_CREATOR_NAME: service["metadata"]["name"],
            names.LABEL_CREATOR_KIND: "RayService",
        }
        return self.api.list(kind, service["metadata"]["namespace"], **labels)

    def _clean_up(self, service: Manifest, clusters: list[Manifest]) -> bool:
        """Deletes clusters that are neither active nor pending, after a delay; true while there are any."""
        status, deleting = service.get("status", {}), bool(service["metadata"].get("deletionTimestamp"))
        used = {
            status.get(which, {}).get("rayClusterName")
            for which in ("activeServiceStatus", "pendingServiceStatus")
        }
        dangling = [c for c in clusters if deleting or c["metadata"]["name"] not in used]
        delay = service["spec"].get("rayClusterDeletionDelaySeconds", DELETION_DELAY_SECONDS)
        for cluster in dangling:
            due = self.delete_at.setdefault(cluster["metadata"]["uid"], self.clock() + delay)
            if deleting:
                self.api.delete(cluster, why="the RayService is being deleted")
            elif self.clock() >= due:
                self.api.delete(cluster, why=f"unused for {delay} s")
        return bool(dangling)

    def _release(self, service: Manifest) -> None:
        finalizers = service["metadata"].get("finalizers", [])
        if names.FINALIZER in finalizers:
            released = copy.deepcopy(service)
            released["metadata"]["finalizers"] = [f for f in finalizers if f != names.FINALIZER]
            self.api.replace(released, why="no RayClusters are left")

    def _suspension_drives(self, service: Manifest, status: Manifest, now: str) -> bool:
        """One step of the suspension; true when the rest of the round must not happen."""
        generation = service["metadata"]["generation"]
        match suspension.next_step(service):
            case Step.RUN:
                return False
            case Step.BEGIN:
                suspension.begin(status, generation, now)
            case Step.DELETE:
                owned = [*self._owned("RayCluster", service), *self._owned("Service", service)]
                for thing in owned:
                    self.api.delete(thing, why="suspended")
                (suspension.waiting if owned else suspension.finish)(status, now)
            case Step.RESUME:
                suspension.resume(status, generation, now)
        return True

    def _run(self, service: Manifest, status: Manifest, now: str) -> None:
        active, pending = (self._cluster(service, status, which) for which in ("active", "pending"))
        if status.get("pendingServiceStatus", {}).get("rayClusterName") and pending is None:
            name = status["pendingServiceStatus"]["rayClusterName"]
            pending = self.api.create(ray_cluster(service, name))
        for cluster in (pending or active,):
            if cluster and not is_same_cluster(service, cluster) and is_extended_cluster(service, cluster):
                self._extend(service, cluster)
        for cluster in (active, pending):
            self._label_head(service, cluster)
        serving: dict[str, dict[str, Manifest]] = {"active": {}, "pending": {}}
        ready_cluster = None
        target = pending or active
        if target is not None and (pending is not None or not needs_new_cluster(service, active, None)):
            applications = self._serve(service, target)
            serving["pending" if pending is not None else "active"] = applications
            ready_cluster = target if are_running(applications) else None
        if ready_cluster is not None:
            self._point_services_at(service, ready_cluster)
        self._write(service, status, active, pending, serving, ready_cluster, now)

    def _cluster(self, service: Manifest, status: Manifest, which: str) -> Manifest | None:
        name = status.get(f"{which}ServiceStatus", {}).get("rayClusterName")
        return self.api.get("RayCluster", service["metadata"]["namespace"], name) if name else None

    def _extend(self, service: Manifest, cluster: Manifest) -> None:
        goal = ray_cluster(service, cluster["metadata"]["name"])
        for part in ("labels", "annotations"):
            cluster["metadata"][part] = goal["metadata"][part]
        self.api.replace({**cluster, "spec": goal["spec"]}, why="worker groups were added")

    def _head(self, cluster: Manifest) -> Manifest | None:
        labels = {names.LABEL_CLUSTER: cluster["metadata"]["name"], names.LABEL_NODE_TYPE: names.HEAD}
        return next(iter(self.api.list("Pod", cluster["metadata"]["namespace"], **labels)), None)

    def _label_head(self, service: Manifest, cluster: Manifest | None) -> None:
        head = self._head(cluster) if cluster else None
        address = (head or {}).get("status", {}).get("podIP")
        if head is None or not address:
            return
        excluded = service["spec"].get("excludeHeadPodFromServeSvc", False)
        label = "true" if not excluded and proxy_is_healthy(address) else "false"
        if head["metadata"]["labels"].get(names.LABEL_SERVE) != label:
            head["metadata"]["labels"][names.LABEL_SERVE] = label
            self.api.replace(head, why=f"{names.LABEL_SERVE}={label}")

    def _serve(self, service: Manifest, cluster: Manifest) -> dict[str, Manifest]:
        """Submits what has not been submitted and returns what Ray says about it."""
        head = self._head(cluster)
        if head is None or not is_ready(head):
            return {}
        dashboard = Dashboard(head["status"]["podIP"], auth_token(self.api, cluster))
        applications = dashboard.applications()
        config, uid = service["spec"].get("serveConfigV2", ""), cluster["metadata"]["uid"]
        # No application at all: the head was replaced and Ray has forgotten them.
        if self.submitted.get(uid) != config or not applications:
            log.info("submit Serve applications to %s", cluster["metadata"]["name"])
            dashboard.submit(config)
            self.submitted[uid] = config
        return applications

    def _point_services_at(self, service: Manifest, cluster: Manifest) -> None:
        for goal in (service_head_service(service, cluster), serve_service(service, cluster)):
            metadata = goal["metadata"]
            live = self.api.get("Service", metadata["namespace"], metadata["name"])
            if live is None:
                self.api.create(goal)
            elif live["spec"]["selector"].get(names.LABEL_CLUSTER) != cluster["metadata"]["name"]:
                address = {k: live["spec"][k] for k in ("clusterIP", "clusterIPs") if k in live["spec"]}
                self.api.replace(
                    {**live, "spec": goal["spec"] | address}, why=f"now {cluster['metadata']['name']}"
                )

    def _endpoints(self, service: Manifest) -> int:
        """Ready pods behind the serve Service, each once."""
        label = {"kubernetes.io/service-name": names.serve_service(service["metadata"]["name"])}
        slices = self.api.list("EndpointSlice", service["metadata"]["namespace"], **label)
        endpoints = [
            e for s in slices for e in s.get("endpoints") or [] if e.get("conditions", {}).get("ready")
        ]
        return len({e["targetRef"]["uid"] for e in endpoints if e.get("targetRef")})

    def _write(
        self,
        service: Manifest,
        status: Manifest,
        active: Manifest | None,
        pending: Manifest | None,
        serving: dict[str, dict[str, Manifest]],
        ready_cluster: Manifest | None,
        now: str,
    ) -> None:
        status["observedGeneration"] = service["metadata"]["generation"]
        for which, cluster in (("active", active), ("pending", pending)):
            part = status.setdefault(f"{which}ServiceStatus", {})
            part.pop("applicationStatuses", None)
            part["rayClusterStatus"] = (cluster or {}).get("status", {})
            if serving[which]:
                part["applicationStatuses"] = serving[which]
        promoted = ready_cluster is not None and ready_cluster is pending
        if promoted:
            status["activeServiceStatus"], status["pendingServiceStatus"] = status["pendingServiceStatus"], {}
        elif needs_new_cluster(service, active, pending):
            name = f"{service['metadata']['name']}-{names.random_suffix()}"
            status["pendingServiceStatus"] = {"rayClusterName": name}
        status["numServeEndpoints"] = self._endpoints(service)
        write_conditions(status, now)
        status["serviceStatus"] = "Running" if is_true(status, "Ready") else ""


def write_conditions(status: Manifest, now: str) -> None:
    """Ready follows the serve endpoints, UpgradeInProgress whether two clusters exist. Pure."""
    if not status.get("conditions"):
        for kind in ("Ready", "UpgradeInProgress"):
            set_condition(status, kind, False, "Initializing", "RayService is initializing", now=now)
    if status["numServeEndpoints"] > 0:
        message = "Number of serve endpoints is greater than 0"
        set_condition(status, "Ready", True, "NonZeroServeEndpoints", message, now=now)
    elif is_true(status, "Ready"):
        message = "Number of serve endpoints dropped to 0"
        set_condition(status, "Ready", False, "ZeroServeEndpoints", message, now=now)
    active, pending = (
        status[f"{which}ServiceStatus"].get("rayClusterName") for which in ("active", "pending")
    )
    if active and pending:
        message = "Both active and pending Ray clusters exist"
        set_condition(status, "UpgradeInProgress", True, "BothActivePendingClustersExist", message, now=now)
    elif active:
        message = "Active Ray cluster exists and no pending Ray cluster"
        set_condition(status, "UpgradeInProgress", False, "NoPendingCluster", message, now=now)
    elif reason_of(status, "UpgradeInProgress") != "Initializing":
        message = "No active Ray cluster exists, and the RayService is not initializing."
        set_condition(status, "UpgradeInProgress", None, "NoActiveCluster", message, now=now)
