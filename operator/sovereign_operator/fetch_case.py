# SPDX-License-Identifier: Apache-2.0
"""One look at one model's weights on nodes: which Jobs and pods are about a fetch, and what they say. Pure.

What pods say crosses a trust boundary: it is read with bounds, and nothing but its reason decides anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from sovereign_operator import reasons
from sovereign_operator.api import ANNOTATION_RETRY, SovereignModel
from sovereign_operator.config import NodeCacheConfig, OperatorConfig
from sovereign_operator.desired.fetch_job import Fetch
from sovereign_operator.desired.weights import CONTAINER
from sovereign_operator.distribution_nodes import Landed
from sovereign_operator.fetches import digests_of
from sovereign_operator.job_tries import JobResult, endings, latest_first, parse_result
from sovereign_operator.values import Artifact, Manifest, NodeFacts
from sovereign_operator.world import World, annotation, condition_of, is_dying, is_of, moment, name_of

# What a pod says of the cache; everything else is no business of a fetch.
CACHE_MISSING: Final = "CacheMissing"
CACHE_CORRUPT: Final = "CacheCorrupt"


@dataclass(frozen=True, slots=True)
class Case:
    """One look at one model's weights."""

    world: World
    model: SovereignModel
    config: OperatorConfig
    cache: NodeCacheConfig
    artifact: Artifact | None = None  # what is about to be served
    landed: tuple[Landed, ...] = ()
    jobs: Mapping[str, Manifest] = field(default_factory=dict)
    nodes: Mapping[str, NodeFacts] = field(default_factory=dict)

    @property
    def may_fetch(self) -> bool:
        return not self.model.spec.suspend

    def pods_of(self, job: Manifest) -> tuple[Manifest, ...]:
        return tuple(pod for pod in self.world.fetches.pods if is_of(pod, job))

    def record_of(self, fetch: Fetch) -> Manifest | None:
        """Its Job; who wants the small files only is served by whoever brought all."""
        own, whole = self.jobs.get(fetch.name), self.jobs.get(replace(fetch, config_only=False).name)
        return whole if own is None and whole is not None and succeeded(whole) else own

    def kept_on(self, node: str) -> frozenset[str]:
        """Digests that no fetch to this node may evict."""
        mine = digests_of(self.world.body or {"metadata": {}}) | {each.fetch.digest for each in self.landed}
        others = (each.digests for each in self.world.fetches.neighbours if each.keeps_on(node))
        return frozenset(mine.union(*others))

    def asked_by(self, fetch: Fetch) -> dict[str, str]:
        """Who, of the models that share this fetch, has asked for another try: name and mark."""
        mine = {self.model.name: self.model.metadata.annotations.get(ANNOTATION_RETRY, "")}
        others = {
            each.name: each.asked
            for each in self.world.fetches.neighbours
            if each.namespace == self.model.namespace and fetch.digest in each.digests
        }
        return {name: _mark(name, value) for name, value in (others | mine).items() if value}

    def asks_anew(self, fetch: Fetch, job: Manifest) -> bool:
        """Whether this model's wish for another try is younger than the Job."""
        mine = self.asked_by(fetch).get(self.model.name)
        return mine is not None and mine not in annotation(job, ANNOTATION_RETRY).split(",")


def succeeded(job: Manifest) -> bool:
    return not is_dying(job) and condition_of(job, "Complete").get("status") == "True"


def pods_at(case: Case, fetch: Fetch) -> tuple[Landed, ...]:
    """The model's pods that need this very artifact on this very node."""
    return tuple(
        each for each in case.landed if (each.fetch.node, each.fetch.digest) == (fetch.node, fetch.digest)
    )


def holds(each: Landed, fetch: Fetch) -> bool:
    """Whether a pod has found complete what is wanted, and keeps it from being evicted."""
    status = _container(each.pod)
    at_work = bool(status.get("started")) and "running" in (status.get("state") or {})
    return at_work and (fetch.config_only or not each.fetch.config_only)


def complaints(case: Case, fetch: Fetch) -> list[tuple[JobResult, datetime]]:
    """What pods did not find there, and when, latest first. Their words cross a trust boundary."""
    found = []
    for each in pods_at(case, fetch):
        status = _container(each.pod)
        if status.get("started"):
            continue
        for state in (status.get("state") or {}, status.get("lastState") or {}):
            ended = state.get("terminated") or {}
            said, when = parse_result(str(ended.get("message") or "")), moment(ended.get("finishedAt"))
            if said and when and ended.get("exitCode") and said.reason in (CACHE_MISSING, CACHE_CORRUPT):
                found.append((JobResult(said.reason, f"{name_of(each.pod)}: {said.message}"), when))
    return sorted(found, key=lambda one: one[1], reverse=True)


def _container(pod: Manifest) -> Mapping[str, Any]:
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or ()
    return next((each for each in statuses if each.get("name") == CONTAINER), {})


def success_of(case: Case, job: Manifest) -> JobResult | None:
    """What the pod of a Job that completed said last; None where there is no pod any more."""
    said = (
        str(each.get("message") or "") for pod in latest_first(case.pods_of(job)) for each in endings(pod)
    )
    return next(filter(None, map(_success, said)), None)


def _success(text: str) -> JobResult | None:
    """The message of a fetch that went well, for the reason that it repaired something or did not."""
    try:
        body = json.loads(text[:4096])
        if body["reason"] != reasons.FETCHED:
            return None
        repaired = [str(path) for path in body.get("repaired") or ()]
        words = str(body["message"]).strip()[:900]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not repaired:
        return JobResult(reasons.FETCHED, words)
    return JobResult(reasons.CACHE_REPAIRED, f"Repaired {', '.join(repaired)[:120]}. {words}")


def _mark(name: str, value: str) -> str:
    """A wish for another try as one short word, whatever somebody wrote into the annotation."""
    return hashlib.sha256(f"{name}\n{value}".encode()).hexdigest()[:12]
