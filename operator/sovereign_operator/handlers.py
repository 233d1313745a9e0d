# SPDX-License-Identifier: Apache-2.0
"""kopf decorators, no decisions: every event becomes a key in the work queue, every child an entry in an
index.

There are no create, update or delete handlers (they would write annotations), no timers and no daemons
(they would bring kopf's own finalizer and give it up even when our cleanup failed): what has to be done
is found out by looking at the world, in `reconcile.py`.

The first event comes after every kind was listed once; only then may the queue run, because a reconcile
that sees half of the children would draw the wrong conclusions.

Where a watch cannot go on (410 Gone) kopf lists anew and keeps in its indices what went meanwhile. So a
second listing is told to `supervision.py`, which begins with empty ones.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import kopf

from sovereign_operator import api
from sovereign_operator.indices import Indices, Key, NodeWatch, key_of, owner_of, plain, policy_key
from sovereign_operator.values import Manifest
from sovereign_operator.workqueue import WorkQueue

MODELS = (api.GROUP, api.VERSION, api.PLURAL)
POLICIES = ("networking.k8s.io", "v1", "networkpolicies")
RAY_SERVICES = ("ray.io", "v1", "rayservices")
RAY_CLUSTERS = ("ray.io", "v1", "rayclusters")
PODS = ("", "v1", "pods")
JOBS = ("batch", "v1", "jobs")
SERVICES = ("", "v1", "services")
NODES = ("", "v1", "nodes")
CHILDREN = {
    RAY_SERVICES: "ray_services",
    RAY_CLUSTERS: "ray_clusters",
    PODS: "pods",
    JOBS: "probe_jobs",
    SERVICES: "services",
}
# Children carry the owner's label, pods the model's: everything else of these kinds is never sent to us. Of
# policies all are: one that somebody else wrote can open what ours deny.
SELECTED = {
    RAY_SERVICES: api.LABEL_OWNER,
    RAY_CLUSTERS: api.LABEL_OWNER,
    PODS: api.LABEL_MODEL,
    # Where the operator's own namespace is watched too, its Jobs are others: `system_watch.py` has those.
    JOBS: f"{api.LABEL_OWNER},{api.LABEL_COMPONENT}={api.COMPONENT_PROBER}",
    # KubeRay's Services may copy the labels of what they belong to.
    SERVICES: f"{api.LABEL_OWNER},{api.LABEL_COMPONENT}={api.COMPONENT_PEER}",
}


def settings_for(settings: kopf.OperatorSettings) -> None:
    """kopf reduced to watching: nothing of it is written into anybody's object."""
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.queueing.worker_limit = None  # with indices a limit deadlocks at start
    # Never FINALIZER: kopf takes off whatever is named here as soon as no handler of its kinds wants it.
    settings.persistence.finalizer = f"{api.GROUP}/unused-by-kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=api.GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=api.GROUP)
    settings.networking.request_timeout = 30.0
    settings.networking.connect_timeout = 10.0
    for (group, version, plural), label in SELECTED.items():
        settings.watching.label_selectors[group, version, plural] = label


class Listings:
    """Tells a first listing from a later one: `relisted` is set where an object is listed that was known."""

    def __init__(self) -> None:
        self.relisted = asyncio.Event()

    def saw(self, event: str | None, memo: kopf.Memo) -> None:
        """`event`: None where the object came with a listing. `memo`: kopf's, of one object in one run."""
        if event is None and memo.get("known"):
            self.relisted.set()
        memo["known"] = True


def registry(
    queue: WorkQueue[Key], indices: Indices, nodes: NodeWatch, listings: Listings
) -> kopf.OperatorRegistry:
    """All handlers, bound to this queue and these indices."""
    handlers = kopf.OperatorRegistry()
    _activities(handlers, indices)
    _models(handlers, queue, listings)
    _nodes(handlers, queue, nodes, listings)
    _policies(handlers, queue, indices, listings)
    for resource, index in CHILDREN.items():
        _child(handlers, queue, resource, index, listings)
    return handlers


def _activities(handlers: kopf.OperatorRegistry, indices: Indices) -> None:
    @kopf.on.login(registry=handlers)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        sources = {True: kopf.login_with_kubeconfig, False: kopf.login_with_service_account}
        return sources["KUBECONFIG" in os.environ](**kwargs)

    @kopf.on.startup(registry=handlers)
    async def start(settings: kopf.OperatorSettings, **kwargs: Any) -> None:
        settings_for(settings)
        for name in ("models", "policies", *CHILDREN.values(), "nodes"):
            setattr(indices, name, kwargs[name])

    @kopf.on.probe(id="reconciler", registry=handlers)
    async def alive(**_: Any) -> str:
        return "watching"


def _models(handlers: kopf.OperatorRegistry, queue: WorkQueue[Key], listings: Listings) -> None:
    @kopf.index(*MODELS, id="models", registry=handlers)
    async def index_model(body: kopf.Body, **_: Any) -> dict[Key, Manifest]:
        return {key_of(body): plain(body)}

    @kopf.on.event(*MODELS, registry=handlers)
    async def on_model(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:  # noqa: A002
        listings.saw(type, memo)
        queue.open()
        queue.add(key_of(body))


def _nodes(
    handlers: kopf.OperatorRegistry, queue: WorkQueue[Key], nodes: NodeWatch, listings: Listings
) -> None:
    @kopf.index(*NODES, id="nodes", registry=handlers)
    async def index_node(body: kopf.Body, name: str, **_: Any) -> dict[str, Manifest]:
        return {name: plain(body)}

    @kopf.on.event(*NODES, registry=handlers)
    async def on_node(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:  # noqa: A002
        listings.saw(type, memo)
        queue.open()
        nodes.event(type, body)


def _policies(
    handlers: kopf.OperatorRegistry, queue: WorkQueue[Key], indices: Indices, listings: Listings
) -> None:
    @kopf.index(*POLICIES, id="policies", registry=handlers)
    async def index_policy(body: kopf.Body, **_: Any) -> dict[Key, Manifest]:
        return {policy_key(body): plain(body)}

    @kopf.on.event(*POLICIES, id="on_policies", registry=handlers)
    async def on_policy(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:  # noqa: A002
        listings.saw(type, memo)
        queue.open()
        for key in indices.concerned(body):
            queue.add(key)


def _child(
    handlers: kopf.OperatorRegistry,
    queue: WorkQueue[Key],
    resource: tuple[str, str, str],
    index: str,
    listings: Listings,
) -> None:
    @kopf.index(*resource, id=index, registry=handlers)
    async def index_child(body: kopf.Body, **_: Any) -> dict[Key, Manifest]:
        return {owner_of(body): plain(body)}

    @kopf.on.event(*resource, id=f"on_{index}", registry=handlers)
    async def on_child(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:  # noqa: A002
        listings.saw(type, memo)
        queue.open()
        queue.add(owner_of(body))
