# SPDX-License-Identifier: Apache-2.0
"""Looks at a model with weights on nodes, against an API server in memory that counts every request."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from sovereign_operator.api import COMPONENT_FETCH
from sovereign_operator.carry_out import Executor
from sovereign_operator.cluster import Kind
from sovereign_operator.fetches import fetch_key
from sovereign_operator.observe import Senses
from sovereign_operator.reconcile import Reconciler
from sovereign_operator.values import FetchProgress, Manifest
from sovereign_operator.world import component_of, name_of, stamp
from tests.unit.operator.builders import DIGEST, a_caching_config, an_artifact
from tests.unit.operator.cached_worlds import a_neighbour
from tests.unit.operator.test_reconcile import KEY, Bench, MemoryCluster
from tests.unit.operator.worlds import START, a_body


class Progress:
    """What pods of fetches answer."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def of(self, key: Any, pods: Any) -> None:
        return None

    async def of_each(self, pods: Any) -> dict[str, FetchProgress]:
        self.asked += [name_of(pod) for pod in pods]
        return {str(pod["metadata"]["uid"]): FetchProgress(1, 2) for pod in pods}


class SelectingCluster(MemoryCluster):
    """Answers what was selected, as the API server does: several kinds of Jobs are asked for here."""

    async def list(self, kind: Kind, namespace: str, label_selector: str) -> list[Manifest]:
        wanted = dict(each.split("=") for each in label_selector.split(","))
        found = await super().list(kind, namespace, label_selector)
        return [one for one in found if wanted.items() <= (one["metadata"].get("labels") or {}).items()]


class CachingBench(Bench):
    """The model keeps its weights on the one node that there is."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = SelectingCluster()
        self.cluster.put(a_body(delivery={"mode": "nodeCache"}))
        self.registry.found = an_artifact()
        self.progress = Progress()
        self.others: list[Manifest] = []
        self.configure()

    def configure(self, **changes: Any) -> None:
        """An operator that starts with this configuration."""
        config = a_caching_config(**changes)
        senses = Senses(self.cluster, self.indices, self.registry, self.progress, self.ray, config)  # type: ignore[arg-type]
        self.executor = Executor(self.cluster, self.ray, config.system_namespace)  # type: ignore[arg-type]
        self.reconciler = Reconciler(senses, self.executor)

    async def run(self) -> float | None:
        found = self.cluster.indices()
        jobs = [job for jobs in found.jobs.values() for job in jobs]
        found.jobs = {KEY: [job for job in jobs if component_of(job) != COMPONENT_FETCH]}
        shared: dict[Any, list[Manifest]] = {}
        for job in jobs:
            if component_of(job) == COMPONENT_FETCH:
                shared.setdefault(fetch_key(job), []).append(job)
        found.fetch_jobs = shared
        pods = [pod for pods in found.pods.values() for pod in pods]
        of_fetches = [pod for pod in pods if component_of(pod) == COMPONENT_FETCH]
        found.pods = {KEY: [pod for pod in pods if component_of(pod) != COMPONENT_FETCH]}
        found.fetch_pods = {fetch_key(pod): [pod] for pod in of_fetches}
        found.models = {**found.models, **{("models", name_of(body)): [body] for body in self.others}}
        self.indices.__dict__.update(found.__dict__)
        return await self.reconciler(KEY)

    def jobs(self) -> list[Manifest]:
        return [job for (kind, _), job in self.cluster.objects.items() if kind == "Job"]

    def complete(self) -> None:
        (job,) = self.jobs()
        now = stamp(datetime.now(UTC))
        ended = {"type": "Complete", "status": "True", "lastTransitionTime": now}
        self.cluster.put({**copy.deepcopy(job), "status": {"conditions": [ended]}})

    def going(self) -> None:
        body = copy.deepcopy(self.cluster.objects["SovereignModel", "mixtral"])
        body["metadata"]["deletionTimestamp"] = stamp(START)
        self.cluster.put(body)


@pytest.fixture
async def bench() -> CachingBench:
    return CachingBench()


async def test_a_fetch_is_asked_for_once_and_looked_at_until_it_ends(bench: CachingBench) -> None:
    for _ in range(4):
        again = await bench.run()
    assert again == 10
    assert len(bench.jobs()) == 1
    assert len([one for one in bench.requests if one.startswith("create Job")]) == 1
    assert bench.reason() == "FetchPending"


async def test_a_fetch_that_ends_is_news_and_nothing_is_after_it(bench: CachingBench) -> None:
    for _ in range(4):
        await bench.run()
    bench.complete()
    await bench.run()
    assert ("RayService", "mixtral") in bench.cluster.objects
    for _ in range(3):
        await bench.run()
    bench.requests.clear()
    bench.registry.asked = 0
    for _ in range(3):
        assert (await bench.run() or 0) > 0, "until it has to be scrubbed"
    assert bench.requests == []
    assert bench.registry.asked == 0


async def test_the_pods_of_its_own_fetches_are_asked_how_far_they_are(bench: CachingBench) -> None:
    for _ in range(4):
        await bench.run()
    (job,) = bench.jobs()
    owner = {"uid": job["metadata"]["uid"]}
    labels = job["metadata"]["labels"]
    for name, label in (("mine", labels), ("theirs", labels | {"sovereign.dev/artifact": "0" * 32})):
        metadata = {"name": name, "uid": name, "labels": label, "ownerReferences": [owner]}
        bench.cluster.put({"kind": "Pod", "metadata": metadata, "status": {"phase": "Running"}})
    await bench.run()
    assert set(bench.progress.asked) == {"mine"}
    assert bench.reason() == "Fetching"
    assert bench.status()["delivery"]["bytesDone"] == 1


@pytest.mark.parametrize(("shared", "left"), [(False, 0), (True, 1)])
async def test_a_model_that_goes_asks_for_its_jobs_and_takes_what_nobody_else_has_a_use_for(
    bench: CachingBench, shared: bool, left: int
) -> None:
    for _ in range(4):
        await bench.run()
    bench.others = [a_neighbour(digest=DIGEST)] if shared else []
    bench.going()
    bench.requests.clear()
    await bench.run()
    assert len(bench.jobs()) == left
    asked = [one for one in bench.requests if one.startswith("list Job")]
    assert "list Job sovereign.dev/component=fetch,sovereign.dev/owner-namespace=models" in asked


@pytest.mark.parametrize("going", [False, True])
async def test_a_cache_that_was_switched_off_leaves_no_jobs(bench: CachingBench, going: bool) -> None:
    for _ in range(4):
        await bench.run()
    assert len(bench.jobs()) == 1
    bench.configure(nodeCache=None)
    if going:
        bench.going()
    await bench.run()
    assert bench.jobs() == []


async def test_a_job_that_the_watch_has_not_shown_yet_is_not_made_twice(bench: CachingBench) -> None:
    for _ in range(4):
        await bench.run()
    (job,) = bench.jobs()
    shown, bench.cluster.indices = bench.cluster.indices, lambda: _without_jobs(shown())  # type: ignore[method-assign]
    bench.requests.clear()
    await bench.run()
    assert f"get Job {name_of(job)}" in bench.requests
    assert not [one for one in bench.requests if one.startswith("create Job")]


def _without_jobs(indices: Any) -> Any:
    indices.jobs = {}
    return indices
