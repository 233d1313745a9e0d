# SPDX-License-Identifier: Apache-2.0
"""How a model goes: RayService, pods gone, policies, own finalizer. Pure.

Policies outlive the last pod. They have no owner reference and carry our finalizer, because foreground
deletion and the deletion of the namespace would otherwise remove them before the pods. The wait is
bounded: afterwards the model goes, the policies stay with the pods that are left, and the sweep of the
next resync takes them later. The registry is never asked: artifacts are always kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from sovereign_operator import reasons
from sovereign_operator.api import COMPONENT_PEER, FINALIZER
from sovereign_operator.fetch_strays import left_behind
from sovereign_operator.mirror_exception import closing
from sovereign_operator.sealing import removal
from sovereign_operator.values import Manifest
from sovereign_operator.world import (
    Action,
    Delete,
    Happening,
    Release,
    World,
    component_of,
    is_dying,
    moment,
    name_of,
)

# Children's events wake us; this is only for what we do not watch.
LOOK_AGAIN_SECONDS = 10.0
SWEEP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class DeletionStep:
    actions: tuple[Action, ...]
    message: str = ""
    happening: Happening | None = None
    again: float | None = None


def next_step(world: World, body: Manifest, seconds: int) -> DeletionStep:
    """The next step for a model that is being deleted and still carries our finalizer."""
    stop = _stop(world)
    remains = _remains(world)
    if not remains:
        gone = Happening(reasons.EVENT_DELETED, "The last pod and the policies are gone.")
        return DeletionStep((*stop, *removal(world.policies), Release(body)), "Done.", gone)
    began = moment(body["metadata"].get("deletionTimestamp")) or world.now
    if (world.now - began).total_seconds() < seconds:
        return DeletionStep(stop, f"Waiting for {remains}.", again=LOOK_AGAIN_SECONDS)
    words = (
        f"After {seconds} s there are still {remains}. The model is let go, its policies stay until the pods "
        "are gone and are swept then."
    )
    left = Happening(reasons.EVENT_PODS_REMAIN, words, "Warning")
    # First: whatever is refused of the rest, the sweep tries again.
    return DeletionStep((Release(body), *stop), words, left)


def sweep(world: World) -> DeletionStep:
    """What a model that is gone (or was let go) may have left behind."""
    jobs = (*world.jobs, *world.probe_jobs)
    stop: tuple[Action, ...] = tuple(Delete(job, foreground=True) for job in jobs if not is_dying(job))
    stop += (*closing(world.exceptions), *left_behind(world))
    if world.pods or world.ray_clusters or world.ray_service is not None:
        return DeletionStep(stop, again=SWEEP_SECONDS if world.policies else None)
    return DeletionStep((*stop, *removal(world.policies)))


def is_ours_to_finish(body: Manifest) -> bool:
    return FINALIZER in (body["metadata"].get("finalizers") or ())


def _stop(world: World) -> tuple[Action, ...]:
    """Jobs and the RayService, then the peer: in a namespace that goes too nobody lets us delete a pod."""
    children = (*world.jobs, *world.probe_jobs, *((world.ray_service,) if world.ray_service else ()))
    peers = (pod for pod in world.pods if component_of(pod) == COMPONENT_PEER)
    stopped = tuple(
        Delete(child, foreground=child["kind"] == "Job")
        for child in (*sorted(children, key=name_of), *peers)
        if not is_dying(child)
    )
    return (*stopped, *closing(world.exceptions), *left_behind(world))


def _remains(world: World) -> str:
    """What has to go before the policies may, in words; empty when nothing is left."""
    counts = (
        (1 if world.ray_service is not None else 0, "the RayService"),
        (len(world.ray_clusters), f"{len(world.ray_clusters)} RayClusters"),
        (len(world.pods), f"{len(world.pods)} pods"),
        (len(world.jobs), f"{len(world.jobs)} Jobs"),
    )
    return ", ".join(words for count, words in counts if count)
