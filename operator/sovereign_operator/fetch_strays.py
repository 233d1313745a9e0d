# SPDX-License-Identifier: Apache-2.0
"""Fetch Jobs that nobody needs any more: of another digest, for another node, on a lost one, without a cache.
Pure.

Only a model that had to do with a Job removes it, and only where no other model of the namespace serves the
digest. What was fetched stays on the node until somebody else needs the room.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sovereign_operator import reasons
from sovereign_operator.api import ANNOTATION_ARTIFACT, ANNOTATION_NODE
from sovereign_operator.desired.fetch_job import Fetch
from sovereign_operator.fetch_case import Case
from sovereign_operator.fetches import fetch_key, label_of
from sovereign_operator.values import Manifest
from sovereign_operator.world import (
    Action,
    Delete,
    Happening,
    World,
    annotation,
    condition_of,
    is_dying,
    is_finished,
    name_of,
)


@dataclass(frozen=True, slots=True)
class Clearance:
    """`lost`: nodes that were lost while they fetched."""

    actions: tuple[Action, ...] = ()
    told: tuple[Happening, ...] = ()
    lost: tuple[str, ...] = ()


def clearance(case: Case, wanted: tuple[Fetch, ...], needed: frozenset[str], settled: bool) -> Clearance:
    """`needed`: digests that the model serves or is about to. `settled`: and it is known on which nodes."""
    actions: list[Action] = []
    told: list[Happening] = []
    lost: set[str] = set()
    for job in case.world.fetches.jobs:
        node = annotation(job, ANNOTATION_NODE)
        if is_lost(case, job):
            lost.add(node)
            if not is_dying(job):
                actions.append(Delete(job, foreground=True))
                words = f"The node {node} was lost while {name_of(job)} fetched to it."
                told.append(
                    Happening(reasons.EVENT_NODE_LOST, words, "Warning", about=str(job["metadata"]["uid"]))
                )
        elif not is_dying(job) and _is_stray(case, job, wanted, needed, settled):
            actions.append(Delete(job, foreground=True))
    return Clearance(tuple(actions), tuple(told), tuple(sorted(lost)))


def without_cache(world: World) -> tuple[Action, ...]:
    """All Jobs, whoever shares them: the policies that bound what they may do went with the cache."""
    return tuple(Delete(job, foreground=True) for job in world.fetches.jobs if not is_dying(job))


def left_behind(world: World) -> tuple[Action, ...]:
    """The Jobs of a model that goes, but for those that another model has a use for."""
    others = _labels(world, world.key[0])
    return tuple(
        Delete(job, foreground=True)
        for job in world.fetches.jobs
        if not is_dying(job) and fetch_key(job)[1] not in others
    )


def is_lost(case: Case, job: Manifest) -> bool:
    """Whether nothing more will come of it: what fetches there has no node."""
    node = case.nodes.get(annotation(job, ANNOTATION_NODE))
    return not is_finished(job) and (node is None or not node.ready)


def _is_stray(
    case: Case, job: Manifest, wanted: Iterable[Fetch], needed: frozenset[str], settled: bool
) -> bool:
    node, digest = annotation(job, ANNOTATION_NODE), annotation(job, ANNOTATION_ARTIFACT).partition("@")[2]
    if node not in case.nodes:
        return True  # a machine of that name that comes later has nothing
    if fetch_key(job)[1] in _labels(case.world, case.model.namespace):
        return False
    if digest not in needed:
        return True
    elsewhere = not any((each.node, each.digest) == (node, digest) for each in wanted)
    # One that failed is kept: it says for a while that this node is not the best.
    return settled and elsewhere and condition_of(job, "Failed").get("status") != "True"


def _labels(world: World, namespace: str) -> frozenset[str]:
    """The digests of other models of the namespace, as labels."""
    others = (each for each in world.fetches.neighbours if each.namespace == namespace)
    return frozenset(label_of(digest) for each in others for digest in each.digests)
