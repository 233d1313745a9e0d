# SPDX-License-Identifier: Apache-2.0
"""Whether the model answers, read from the RayService, its clusters and its pods. Pure.

Replicas are counted by Serve deployments. Pods can only take readiness away: Serve needs its health
checks to notice a pod that is gone, and until then it would still be called healthy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sovereign_operator import reasons
from sovereign_operator.api import (
    ANNOTATION_ARTIFACT,
    ANNOTATION_CLUSTER,
    COMPONENT_WORKER,
    LABEL_COMPONENT,
    SovereignModel,
)
from sovereign_operator.desired.probe import SEALED
from sovereign_operator.job_tries import waiting_for
from sovereign_operator.pod_refusal import pods_refused
from sovereign_operator.rollout import Memo
from sovereign_operator.values import Manifest
from sovereign_operator.world import Stage, World, annotation, condition_of, is_dying, name_of

_PULL_FAILURES: Final = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull")
# The line that ends a stack: a type and its message. Ray wraps stacks into stacks and colours them.
_EXCEPTION: Final = re.compile(r"^(?!RuntimeError: Traceback)[A-Za-z_][\w.]*: \S.*$", re.MULTILINE)
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class ServingView:
    """What Serving says. `artifact`: the reference that is served now, empty while nothing answers."""

    stage: Stage
    ready_replicas: int = 0
    artifact: str = ""


def view(world: World, model: SovereignModel, desired: Manifest | None) -> ServingView:
    """`desired`: what should serve; None while only what is there can be judged."""
    live = world.ray_service
    if live is None:
        return ServingView(Stage("False", reasons.WAITING, "There is no RayService yet."))
    active = _active_cluster(world, live)
    memo = Memo.of(live)
    failure = _app_failure(live, model) or _missing_answer(live, model) or _missing_pods(world, memo)
    if failure is not None:
        return ServingView(_pod_failure(world) or pods_refused(world) or _as_loss(failure, model))
    served = annotation(active, ANNOTATION_ARTIFACT) if active else ""
    replicas = memo.placement.replicas if memo else 0
    if outdated := _outdated(live, active, desired or live):
        return ServingView(outdated, replicas, served)
    words = f"{replicas} of {replicas} replicas answer, from {name_of(active) if active else 'the cluster'}."
    return ServingView(Stage("True", reasons.REPLICAS_READY, words), replicas, served)


def _outdated(live: Manifest, active: Manifest | None, wanted: Manifest) -> Stage | None:
    """Something answers; is it what we rendered?"""
    seen = int((live.get("status") or {}).get("observedGeneration") or 0)
    if seen < int(live["metadata"].get("generation") or 0):
        return Stage("False", reasons.UPGRADING, "KubeRay has not looked at the last change yet.")
    if active is None:
        return Stage("False", reasons.STARTING, "The serving RayCluster was not seen yet.")
    if annotation(active, ANNOTATION_CLUSTER) != annotation(wanted, ANNOTATION_CLUSTER):
        words = f"{name_of(active)} still serves what was rendered before."
        return Stage("False", reasons.UPGRADING, words)
    return None


def _missing_answer(live: Manifest, model: SovereignModel) -> Stage | None:
    ready = condition_of(live, "Ready")
    if ready.get("status") != "True":
        words = str(ready.get("message") or "KubeRay has not reported yet.")
        return Stage("False", reasons.STARTING, words[:800])
    app = _application(live, model)
    if app.get("status") != "RUNNING":
        words = f"The Serve application is {app.get('status') or 'not there yet'}."
        return Stage("False", reasons.STARTING, words)
    for name, deployment in sorted((app.get("serveDeploymentStatuses") or {}).items()):
        if deployment.get("status") != "HEALTHY":
            words = f"Deployment {name} is {deployment.get('status')}: {deployment.get('message') or ''}"
            return Stage("False", reasons.STARTING, words[:800])
    return None


def _app_failure(live: Manifest, model: SovereignModel) -> Stage | None:
    invalid = condition_of(live, "Ready")
    if invalid.get("reason") == "ValidationFailed":
        return Stage("False", reasons.APPLICATION_FAILED, str(invalid.get("message"))[:800])
    app = _application(live, model)
    if app.get("status") in ("DEPLOY_FAILED", "UNHEALTHY"):
        return Stage("False", reasons.APPLICATION_FAILED, _cause(app))
    return None


def _cause(app: Mapping[str, Any]) -> str:
    """What a failed application says, without the stack around it: the innermost exception comes first."""
    told = [("the application", app)]
    told += sorted((app.get("serveDeploymentStatuses") or {}).items())
    for name, part in told:
        text = _COLOURS.sub("", str(part.get("message") or ""))
        if found := _EXCEPTION.search(text):
            return f"{name}: {found[0]}"[:800]
    return _COLOURS.sub("", str(app.get("message") or f"The Serve application is {app['status']}."))[:800]


def _missing_pods(world: World, memo: Memo | None) -> Stage | None:
    if memo is None:
        return None
    placement = memo.placement
    workers = [pod for pod in world.pods if _is_worker(pod) and _runs(pod)]
    if len(workers) < (wanted := placement.replicas * placement.workers):
        return Stage("False", reasons.STARTING, f"{len(workers)} of {wanted} worker pods run.")
    # Of a rank that spans pods only one has a proxy, and so only one becomes ready.
    answering = sum(condition_of(pod, "Ready").get("status") == "True" for pod in workers)
    if answering < (wanted := wanted if placement.ranks_per_worker else placement.replicas):
        return Stage("False", reasons.STARTING, f"{answering} of {wanted} worker pods answer.")
    return None


def _pod_failure(world: World) -> Stage | None:
    """The first pod that says itself why it does not run."""
    for pod in sorted(world.pods, key=name_of):
        if is_dying(pod):
            continue
        status = pod.get("status") or {}
        for each in status.get("initContainerStatuses") or ():
            if words := "" if _holds(each) else _delivery_failure(each):
                reason = reasons.POD_NOT_SEALED if each.get("name") == SEALED else reasons.DELIVERY_FAILED
                return Stage("False", reason, f"{name_of(pod)}: {words}")
        words = waiting_for(pod)
        if words.startswith(_PULL_FAILURES):
            return Stage("False", reasons.IMAGE_PULL_FAILED, f"{name_of(pod)}: {words}")
        for each in status.get("containerStatuses") or ():
            if words_of_crash := _crash(each):
                return Stage("False", reasons.CONTAINER_CRASHING, f"{name_of(pod)}: {words_of_crash}")
        if words and condition_of(pod, "PodScheduled").get("status") == "False":
            return Stage("False", reasons.UNSCHEDULABLE, f"{name_of(pod)}: {words}")
    return None


def _crash(container: Mapping[str, Any]) -> str:
    """How a container that the kubelet holds back from its next start ended."""
    waiting = (container.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") != "CrashLoopBackOff":
        return ""
    ended = (container.get("lastState") or {}).get("terminated") or {}
    times, code, why = container.get("restartCount", 0), ended.get("exitCode"), ended.get("reason")
    return (
        f"{container.get('name')} has ended {times} times, the last time with exit code {code} ({why}); "
        "`kubectl logs --previous` shows its last words."
    )


def _holds(container: Mapping[str, Any]) -> bool:
    """Whether a sidecar does its work now, however it ended before."""
    return bool(container.get("started")) and "running" in (container.get("state") or {})


def _delivery_failure(container: Mapping[str, Any]) -> str:
    """The data plane's message from an init container that ended badly, in this run or the one before."""
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        ended = state.get("terminated") or {}
        if not ended.get("exitCode"):
            continue
        try:
            body = json.loads(str(ended.get("message") or "")[:4096])
            return f"{body['reason']}: {body['message']}"[:800]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return ""


def _as_loss(stage: Stage, model: SovereignModel) -> Stage:
    """The same defect of a model that answered before is a loss, not a start."""
    before = next((c for c in model.status.conditions if c.type == reasons.SERVING), None)
    lost = before is not None and (before.status == "True" or before.reason == reasons.REPLICAS_MISSING)
    if stage.reason != reasons.STARTING or not lost:
        return stage
    return Stage("False", reasons.REPLICAS_MISSING, stage.message)


def _application(live: Manifest, model: SovereignModel) -> Mapping[str, Any]:
    """Of the cluster that serves; while none does, of the one that is being started."""
    status = live.get("status") or {}
    cluster = status.get("activeServiceStatus") or {}
    if not cluster.get("rayClusterName"):
        cluster = status.get("pendingServiceStatus") or {}
    found: Mapping[str, Any] = (cluster.get("applicationStatuses") or {}).get(model.name) or {}
    return found


def _active_cluster(world: World, live: Manifest) -> Manifest | None:
    active = (live.get("status") or {}).get("activeServiceStatus") or {}
    name = active.get("rayClusterName")
    return next((cluster for cluster in world.ray_clusters if name_of(cluster) == name), None)


def _is_worker(pod: Manifest) -> bool:
    return bool((pod["metadata"].get("labels") or {}).get(LABEL_COMPONENT) == COMPONENT_WORKER)


def _runs(pod: Manifest) -> bool:
    return not is_dying(pod) and (pod.get("status") or {}).get("phase") == "Running"
