# SPDX-License-Identifier: Apache-2.0
"""Which nodes are to have a model's weights: those that its workers will run on, and those that its pods
are on.

Pure. The scheduler picks the nodes of pods; this guesses well, so that the weights are there first, and the
workers prefer what was guessed. A guess stands while it can: what has the weights comes first, then what is
getting them. Which of equal nodes it is follows from the model's uid, so that models spread.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sovereign_operator.api import (
    ANNOTATION_ARTIFACT,
    COMPONENT_HEAD,
    COMPONENT_WORKER,
    SovereignModel,
)
from sovereign_operator.desired.fetch_job import Fetch
from sovereign_operator.placement import takers
from sovereign_operator.rollout import Memo
from sovereign_operator.values import Manifest, NodeFacts, accelerators_of
from sovereign_operator.world import World, annotation, component_of, is_dying


@dataclass(frozen=True, slots=True)
class Landed:
    """A pod of the model that has its weights from the node that it is on, and what it needs there."""

    pod: Manifest
    fetch: Fetch


def landed(world: World, model: SovereignModel, target: Memo | None) -> tuple[Landed, ...]:
    """Pods that are on a node. What they name counts only where the model is known to serve it: whoever may
    write a pod must not have anything fetched."""
    known = references(world, target)
    found = []
    for pod in world.pods:
        node, reference = _node_of(pod), annotation(pod, ANNOTATION_ARTIFACT)
        if node and reference in known and component_of(pod) in (COMPONENT_HEAD, COMPONENT_WORKER):
            small = component_of(pod) == COMPONENT_HEAD
            found.append(Landed(pod, Fetch(model.namespace, node, reference, small)))
    return tuple(found)


def references(world: World, target: Memo | None) -> frozenset[str]:
    """The artifacts that are served, or about to be."""
    memo = Memo.of(world.ray_service)
    found = {annotation(cluster, ANNOTATION_ARTIFACT) for cluster in world.ray_clusters}
    found |= {each.artifact.reference for each in (memo, target) if each is not None}
    return frozenset(filter(None, found))


def wanted(
    model: SovereignModel, chosen: tuple[str, ...], target: Memo | None, pods: tuple[Landed, ...]
) -> tuple[Fetch, ...]:
    """What has to be where. Who has all of an artifact has the head's part of it, too."""
    found = {each.fetch for each in pods}
    if target is not None:
        found |= {Fetch(model.namespace, node, target.artifact.reference) for node in chosen}
    whole = {(each.node, each.digest) for each in found if not each.config_only}
    kept = {each for each in found if not each.config_only or (each.node, each.digest) not in whole}
    # Two repositories may hold the same artifact; one of them will do.
    one_each = {each.name: each for each in sorted(kept, key=lambda each: each.reference, reverse=True)}
    return tuple(sorted(one_each.values(), key=lambda each: (each.node, each.reference, each.config_only)))


@dataclass(frozen=True, slots=True)
class _Workers:
    """The model's own workers by what they say of places, each a node for each pod."""

    running: tuple[
        str, ...
    ] = ()  # they have what is wanted: these places are taken, and by whom they should be
    leaving: tuple[str, ...] = ()  # they go before the new ones come
    staying: tuple[Manifest, ...] = ()  # they go when the new ones serve


def choose(
    world: World, model: SovereignModel, target: Memo, standing: Callable[[str], int]
) -> tuple[str, ...]:
    """Nodes with places for all workers, by name. `standing`: how near a node is to having the weights, 0
    first.

    Places of others are respected where there are other nodes, and waited for where not.
    """
    placement, resource = target.placement, model.spec.placement.accelerator.resource
    usable = takers(model.spec, world.nodes, placement.accelerators_per_worker)
    workers = _own_workers(world, model, target)
    taken = Counter(world.fetches.taken)
    for pod in workers.staying:
        taken[_node_of(pod)] += accelerators_of(pod, resource)
    ready = {node.name for node in world.nodes if node.ready}
    places = Counter(node for node in workers.running if node in ready)

    def order(node: NodeFacts) -> tuple[int, bool, bool, str]:
        name, rank = node.name, _rank(model.metadata.uid, node.name)
        return standing(name), name not in workers.leaving, name not in placement.chosen, rank

    for occupied in (taken, Counter[str]()):
        for node in sorted(usable, key=order):
            free = (node.allocatable[resource] - occupied[node.name]) // placement.accelerators_per_worker
            missing = placement.pods - places.total()
            places[node.name] += max(0, min(missing, free - places[node.name]))
    return tuple(sorted(node for node, count in places.items() if count))


def _own_workers(world: World, model: SovereignModel, target: Memo) -> _Workers:
    beside = model.spec.upgrade.strategy == "newCluster"
    known = references(world, target)
    running, leaving, staying = [], [], []
    for pod in world.pods:
        node, reference = _node_of(pod), annotation(pod, ANNOTATION_ARTIFACT)
        if not node or component_of(pod) != COMPONENT_WORKER:
            continue
        if reference == target.artifact.reference:
            running.append(node)
        elif beside:
            staying.append(pod)
        elif not reference or reference in known:
            leaving.append(node)
    return _Workers(tuple(running), tuple(leaving), tuple(staying))


def _node_of(pod: Manifest) -> str:
    """The node that a pod has and keeps; empty where it has none, or none any more."""
    ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return "" if ended or is_dying(pod) else str((pod.get("spec") or {}).get("nodeName") or "")


def _rank(uid: str, node: str) -> str:
    """Rendezvous hashing: each model has an order of its own, and a node more or less moves nothing else."""
    return hashlib.sha256(f"{uid}\n{node}".encode()).hexdigest()
