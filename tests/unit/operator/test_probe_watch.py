# SPDX-License-Identifier: Apache-2.0
"""What is asked about a probe and what is waited for: a good proof costs no request until it is due."""

from __future__ import annotations

from datetime import timedelta
from math import inf
from typing import Any

import pytest

from sovereign_operator.api import COMPONENT_CONTROL, COMPONENT_PROBER
from sovereign_operator.carry_out import Executor
from sovereign_operator.indices import Indices
from sovereign_operator.observe import Senses, observe
from sovereign_operator.reconcile import CLOCK_SLACK, Reconciler, Settled
from sovereign_operator.values import Manifest
from sovereign_operator.world import component_of, name_of
from tests.unit.operator.builders import a_node, a_sealing_config, an_artifact
from tests.unit.operator.probed_worlds import a_result_of
from tests.unit.operator.test_reconcile import KEY, MemoryCluster, Progress, Ray, Registry
from tests.unit.operator.worlds import RUNNING, START, a_body

DAY = 86400.0


@pytest.mark.parametrize(
    ("rest", "passed", "fingerprint", "left"),
    [
        (None, 0, "same", inf),
        (None, DAY, "same", inf),
        (None, 0, "other", None),
        (100.0, 40, "same", 60),
        (100.0, 100, "same", None),
        (100.0, 40, "other", None),
        (100.0, -CLOCK_SLACK, "same", 160),
        (100.0, -CLOCK_SLACK - 1, "same", None),
        (None, -DAY, "same", None),
    ],
)
def test_nothing_is_asked_until_something_changed_or_is_due_or_the_clock_was_set_back(
    rest: float | None, passed: float, fingerprint: str, left: float | None
) -> None:
    settled = Settled("same", START, rest)
    assert settled.seconds_left(fingerprint, START + timedelta(seconds=passed)) == left


class NodeIndices(Indices):
    def node_facts(self, product_label: str) -> Any:
        return (a_node(),)


class Site:
    """A reconciler over the API server in memory, and a test that plays the kubelet."""

    def __init__(self, **config: Any) -> None:
        self.cluster = MemoryCluster()
        self.cluster.put(a_body())
        self.indices = NodeIndices()
        registry = Registry(an_artifact())
        self.senses = Senses(
            self.cluster,
            self.indices,
            registry,
            Progress(),
            Ray(),
            a_sealing_config(**config),  # type: ignore[arg-type]
        )
        executor = Executor(self.cluster, Ray(), "sovereign-system")  # type: ignore[arg-type]
        self.reconciler = Reconciler(self.senses, executor)

    def see(self, *, pods: bool = True) -> None:
        """The watches have caught up; those of pods only if told so."""
        found = self.cluster.indices()
        jobs = {key: list(each) for key, each in found.jobs.items()}
        kept = self.indices.pods, self.indices.job_pods
        self.indices.__dict__.update(found.__dict__)
        self.indices.probe_jobs = {
            key: [one for one in each if component_of(one) == COMPONENT_PROBER] for key, each in jobs.items()
        }
        self.indices.jobs = {
            key: [one for one in each if component_of(one) == COMPONENT_CONTROL] for key, each in jobs.items()
        }
        services = [one for (kind, _), one in self.cluster.objects.items() if kind == "Service"]
        self.indices.services = {KEY: services} if services else {}
        if not pods:
            self.indices.pods, self.indices.job_pods = kept

    async def settle(self) -> float | None:
        for _ in range(15):
            before = len(self.cluster.requests)
            self.see()
            again = await self.reconciler(KEY)
            if len(self.cluster.requests) == before:
                return again
            if [one for one in self.cluster.requests[before:] if not one.startswith(("get", "list"))] == []:
                return again
        raise AssertionError(self.cluster.requests[-10:])

    def objects(self, kind: str, component: str) -> list[Manifest]:
        return [
            one
            for (each, _), one in self.cluster.objects.items()
            if each == kind and component_of(one) == component
        ]

    def peer_answers(self) -> None:
        (pod,) = self.objects("Pod", "peer")
        self.cluster.put(pod | {"status": RUNNING})

    def end_jobs(self) -> None:
        for job in (*self.objects("Job", "control"), *self.objects("Job", "prober")):
            done = {"conditions": [{"type": "Complete", "status": "True"}]}
            job = self.cluster.put(job | {"status": done})
            message = a_result_of(job, START, {}).render()
            owner = {"uid": job["metadata"]["uid"]}
            template = job["spec"]["template"]["metadata"]
            metadata = {
                "name": f"{name_of(job)}-pod",
                "labels": template["labels"],
                "ownerReferences": [owner],
            }
            ended = {"state": {"terminated": {"exitCode": 0, "message": message}}}
            self.cluster.put({"kind": "Pod", "metadata": metadata, "status": {"containerStatuses": [ended]}})

    def sealed(self) -> str:
        said = self.cluster.objects["SovereignModel", "mixtral"]["status"]["conditions"]
        return next(str(each["reason"]) for each in said if each["type"] == "EgressSealed")


async def test_a_good_proof_is_left_alone_until_it_is_due() -> None:
    site = Site()
    await site.settle()
    site.peer_answers()
    await site.settle()
    site.end_jobs()
    await site.settle()
    assert site.sealed() == "Sealed"
    site.see()
    site.cluster.requests.clear()
    left = await site.reconciler(KEY)
    assert left is not None
    assert 21500 < left <= 21600
    assert site.cluster.requests == []


async def test_the_end_of_a_pod_that_was_not_seen_yet_is_asked_for() -> None:
    """The Job's watch may be ahead of its pod's; a Job that ended is never judged by a missing pod alone."""
    site = Site()
    await site.settle()
    site.peer_answers()
    await site.settle()
    site.see()
    site.end_jobs()
    site.see(pods=False)
    world, _ = await observe(KEY, site.senses)
    assert [one for one in site.cluster.requests if one.startswith("list Pod batch.kubernetes.io/job-name")]
    await site.reconciler(KEY)
    assert site.sealed() == "Sealed"
    assert {component_of(pod) for pod in world.pods} <= {"head", "worker"}


@pytest.mark.parametrize(
    ("labels", "sealed"),
    [({"sovereign.dev/sealed": "true"}, True), ({"sovereign.dev/sealed": "false"}, False), ({}, False)],
)
async def test_the_namespace_is_read_where_admission_policies_guard_it(
    labels: dict[str, str], sealed: bool
) -> None:
    site = Site(admission=True)
    site.cluster.put({"kind": "Namespace", "metadata": {"name": "models", "labels": labels}})
    world, _ = await observe(KEY, site.senses)
    assert world.namespace_sealed is sealed


async def test_the_namespace_is_nobodys_business_otherwise() -> None:
    site = Site()
    world, _ = await observe(KEY, site.senses)
    assert world.namespace_sealed is None
    assert not [one for one in site.cluster.requests if "Namespace" in one]
