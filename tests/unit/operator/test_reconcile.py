# SPDX-License-Identifier: Apache-2.0
"""Reconcile and the carrying out against an API server in memory that counts every request."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest

from sovereign_operator.api import FINALIZER
from sovereign_operator.carry_out import Executor, other_managers
from sovereign_operator.cluster import (
    MODEL,
    ApiUnavailable,
    Conflict,
    Kind,
    NamespaceTerminating,
    Refused,
)
from sovereign_operator.indices import Indices, Key
from sovereign_operator.kuberay import KubeRay
from sovereign_operator.observe import Senses
from sovereign_operator.reconcile import Reconciler
from sovereign_operator.values import NOT_THERE, Found, Manifest, Unreadable
from sovereign_operator.workqueue import TryLater
from sovereign_operator.world import Apply, Create, Release, Reseal, World, name_of
from tests.unit.operator.builders import a_config, a_node, an_artifact
from tests.unit.operator.worlds import START, a_body, merged, stamp

KEY: Key = ("models", "mixtral")


@dataclass
class MemoryCluster:
    """Holds objects by kind and name, fills the indices as watches would, and records what it was asked."""

    objects: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refuse: dict[str, Exception] = field(default_factory=dict)
    version: int = 1

    def _note(self, verb: str, kind: str, name: str) -> None:
        self.requests.append(f"{verb} {kind} {name}")
        for pattern, error in self.refuse.items():
            if f"{verb} {kind} {name}".startswith(pattern):
                raise error

    def put(self, body: Manifest) -> Manifest:
        self.version += 1
        key = (str(body["kind"]), name_of(body))
        live = copy.deepcopy(body)
        live["metadata"].setdefault("uid", f"uid-{key[1]}")
        live["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = live
        return copy.deepcopy(live)

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        self._note("get", kind.kind, name)
        return copy.deepcopy(self.objects.get((kind.kind, name)))

    async def list(self, kind: Kind, namespace: str, label_selector: str) -> list[Manifest]:
        self._note("list", kind.kind, label_selector)
        return [copy.deepcopy(one) for (k, _), one in self.objects.items() if k == kind.kind]

    async def apply(self, manifest: Manifest) -> Manifest:
        self._note("apply", manifest["kind"], name_of(manifest))
        return self.put(manifest)

    async def create(self, manifest: Manifest) -> Manifest:
        self._note("create", manifest["kind"], name_of(manifest))
        return self.put(manifest)

    async def delete(self, manifest: Manifest, *, foreground: bool = False) -> None:
        self._note("delete", manifest["kind"], name_of(manifest))
        self.objects.pop((manifest["kind"], name_of(manifest)), None)

    async def set_finalizers(self, manifest: Manifest, finalizers: Any) -> Manifest | None:
        self._note("finalize", manifest["kind"], name_of(manifest))
        live = self.objects[manifest["kind"], name_of(manifest)]
        live["metadata"]["finalizers"] = list(finalizers)
        if live["metadata"].get("deletionTimestamp") and not live["metadata"]["finalizers"]:
            del self.objects[manifest["kind"], name_of(manifest)]
            return None
        return self.put(live)

    async def merge(self, manifest: Manifest, patch: Manifest) -> Manifest | None:
        self._note("merge", manifest["kind"], name_of(manifest))
        return self.put(merged(self.objects[manifest["kind"], name_of(manifest)], patch))

    async def write_status(self, model: Manifest, said: dict[str, Any]) -> Manifest:
        self._note("status", model["kind"], name_of(model))
        live = self.objects[model["kind"], name_of(model)]
        live["status"] = copy.deepcopy(said)
        return self.put(live)

    def indices(self) -> Indices:
        found: dict[str, list[Manifest]] = {}
        for (kind, _), body in self.objects.items():
            found.setdefault(kind, []).append(body)
        by = {kind: {KEY: bodies} for kind, bodies in found.items()}
        empty: dict[Key, list[Manifest]] = {}
        return Indices(
            models=by.get(MODEL.kind, empty),
            policies=by.get("NetworkPolicy", empty),
            ray_services=by.get("RayService", empty),
            ray_clusters=by.get("RayCluster", empty),
            pods=by.get("Pod", empty),
            jobs=by.get("Job", empty),
        )


class KnownNodes(Indices):
    """Indices that know one node."""

    def node_facts(self, product_label: str) -> Any:
        return (a_node(),)


@dataclass
class Registry:
    found: Found = NOT_THERE
    asked: int = 0

    async def find(self, repository: str, target: str) -> Found:
        self.asked += 1
        return self.found


class Progress:
    async def of(self, key: Key, pods: Any) -> None:
        return None


class Ray:
    doubted = False

    async def state(self) -> KubeRay:
        return KubeRay.SUPPORTED

    def doubt(self) -> None:
        self.doubted = True


class Bench:
    """A reconciler over the cluster in memory; `run` gives it current indices first, as the watches do."""

    def __init__(self) -> None:
        self.cluster, self.registry, self.ray = MemoryCluster(), Registry(), Ray()
        self.cluster.put(a_body())
        self.indices = KnownNodes()
        config = a_config(externalSources={"allowed": True})
        senses = Senses(self.cluster, self.indices, self.registry, Progress(), self.ray, config)  # type: ignore[arg-type]
        self.executor = Executor(self.cluster, self.ray, "sovereign-system")  # type: ignore[arg-type]
        self.reconciler = Reconciler(senses, self.executor)

    async def run(self) -> float | None:
        self.indices.__dict__.update(self.cluster.indices().__dict__)
        return await self.reconciler(KEY)

    async def settle(self) -> None:
        for _ in range(12):
            before = len(self.cluster.requests)
            await self.run()
            if len(self.cluster.requests) == before:
                return
        raise AssertionError(self.cluster.requests[-10:])

    @property
    def requests(self) -> list[str]:
        return self.cluster.requests

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.objects["SovereignModel", "mixtral"]["status"]
        return found

    def reason(self) -> str:
        return next(str(c["reason"]) for c in self.status()["conditions"] if c["type"] == "Ready")


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.fixture
async def settled(bench: Bench) -> Bench:
    bench.registry.found = an_artifact()
    await bench.settle()
    bench.requests.clear()
    bench.registry.asked = 0
    return bench


async def test_a_look_at_an_unchanged_world_sends_no_request_at_all(settled: Bench) -> None:
    for _ in range(5):
        assert await settled.run() is None
    assert settled.requests == []
    assert settled.registry.asked == 0


async def test_any_change_of_a_child_is_looked_at(settled: Bench) -> None:
    settled.cluster.put(settled.cluster.objects["RayService", "mixtral"])
    await settled.run()
    assert "get SovereignModel mixtral" in settled.requests
    assert not [one for one in settled.requests if not one.startswith("get")]


async def test_an_operator_that_starts_anew_looks_and_writes_nothing(settled: Bench) -> None:
    other = Bench()
    other.cluster.objects = settled.cluster.objects
    other.registry.found = an_artifact()
    await other.run()
    assert not [one for one in other.requests if not one.startswith("get")]


async def test_status_comes_last_and_events_after_it(bench: Bench) -> None:
    bench.registry.found = an_artifact()
    told = 0
    for _ in range(4):
        bench.requests.clear()
        await bench.run()
        verbs = [" ".join(one.split()[:2]) for one in bench.requests if not one.startswith("get")]
        events = verbs.count("create Event")
        assert verbs[len(verbs) - events :] == ["create Event"] * events
        assert verbs.count("status SovereignModel") <= 1
        if verbs:
            assert verbs[len(verbs) - events - 1] == "status SovereignModel"
        told += events
    assert told


async def test_a_status_that_could_not_be_written_posts_no_event(bench: Bench) -> None:
    bench.registry.found = an_artifact()
    await bench.run()
    bench.cluster.refuse["status"] = ApiUnavailable("no")
    with pytest.raises(TryLater):
        await bench.run()
    assert not [one for one in bench.requests if "Event" in one]


async def test_a_refused_child_is_a_condition_in_the_api_servers_words(bench: Bench) -> None:
    bench.registry.found = an_artifact()
    bench.cluster.refuse["apply RayService"] = Refused("exceeded quota: pods=0")
    with pytest.raises(TryLater, match="exceeded quota"):
        await bench.settle()
    assert bench.reason() == "ApplyRefused"
    assert any("exceeded quota" in c["message"] for c in bench.status()["conditions"])


@pytest.mark.parametrize("refused", ["apply RayService", "apply NetworkPolicy"])
async def test_what_was_refused_is_tried_again_though_nothing_that_is_watched_changed(
    bench: Bench, refused: str
) -> None:
    bench.registry.found = an_artifact()
    bench.cluster.refuse[refused] = Refused("exceeded quota: pods=0")
    with pytest.raises(TryLater):
        await bench.settle()
    with pytest.raises(TryLater):
        await bench.run()  # not settled: the quota is no object of ours
    bench.cluster.refuse.clear()
    await bench.settle()
    assert bench.reason() != "ApplyRefused"
    assert ("RayService", "mixtral") in bench.cluster.objects


async def test_a_deletion_that_was_refused_says_so_and_ends_once_it_is_allowed(settled: Bench) -> None:
    settled.cluster.objects["SovereignModel", "mixtral"]["metadata"]["deletionTimestamp"] = stamp(START)
    for key in [key for key in settled.cluster.objects if key[0] in ("RayService", "Pod", "Job")]:
        del settled.cluster.objects[key]
    settled.cluster.refuse["delete NetworkPolicy"] = Refused("policies are frozen")
    with pytest.raises(TryLater, match="frozen"):
        await settled.run()
    assert settled.reason() == "Deleting"
    assert any("policies are frozen" in c["message"] for c in settled.status()["conditions"])
    assert not [one for one in settled.requests if "Event" in one], "nothing is over yet"
    settled.cluster.refuse.clear()
    await settled.run()
    assert ("SovereignModel", "mixtral") not in settled.cluster.objects
    assert [one for one in settled.requests if "Event" in one]


async def test_what_somebody_added_to_a_policy_is_taken_away_until_it_is_a_fight(settled: Bench) -> None:
    for _ in range(8):
        live = settled.cluster.objects["NetworkPolicy", "mixtral-deny-all"]
        live["spec"]["egress"] = [{}]
        settled.cluster.put(live)
        await settled.run()
    assert settled.requests.count("merge NetworkPolicy mixtral-deny-all") == 3
    assert settled.reason() == "FieldConflict"
    assert any(".spec.egress" in c["message"] for c in settled.status()["conditions"])


async def test_a_namespace_that_goes_is_neither_a_crash_nor_a_refusal(bench: Bench) -> None:
    bench.registry.found = an_artifact()
    bench.cluster.refuse["apply NetworkPolicy"] = NamespaceTerminating("being terminated")
    await bench.run()
    await bench.run()
    assert bench.reason() == "Deleting"
    assert not [one for one in bench.requests if "RayService" in one and not one.startswith("get")]


async def test_an_api_server_that_is_away_is_tried_later(bench: Bench) -> None:
    bench.cluster.refuse["get SovereignModel"] = ApiUnavailable("connection refused")
    with pytest.raises(TryLater):
        await bench.run()


async def test_a_registry_that_is_away_backs_off_after_the_status_was_written(bench: Bench) -> None:
    bench.registry.found = Unreadable("RegistryUnavailable", "no answer")
    await bench.run()
    with pytest.raises(TryLater, match="no answer"):
        await bench.run()
    assert bench.reason() == "RegistryUnavailable"


async def test_a_model_that_is_gone_with_nothing_left_costs_reads_only(bench: Bench) -> None:
    bench.cluster.objects.clear()
    assert await bench.run() is None
    assert {one.split()[0] for one in bench.requests} <= {"get", "list"}
    bench.requests.clear()
    await bench.run()
    assert bench.requests == []


async def test_an_object_without_a_name_for_a_key_is_ignored(bench: Bench) -> None:
    assert await bench.reconciler(("models", "")) is None
    assert bench.requests == []


async def test_somebody_who_fights_is_named_and_left_alone_after_three_repairs(settled: Bench) -> None:
    service = settled.cluster.objects["RayService", "mixtral"]
    for _ in range(8):
        settled.cluster.objects["RayService", "mixtral"]["spec"]["rayClusterConfig"]["rayVersion"] = "0"
        live = settled.cluster.objects["RayService", "mixtral"]
        live["metadata"]["managedFields"] = [
            {"manager": "sovereign-operator", "time": "1"},
            {"manager": "rival", "time": "2"},
            {"manager": "kuberay", "time": "3", "subresource": "status"},
        ]
        settled.cluster.put(live)
        await settled.run()
    assert service
    assert settled.requests.count("apply RayService mixtral") == 3
    assert settled.reason() == "FieldConflict"
    message = next(c["message"] for c in settled.status()["conditions"] if c["type"] == "Stalled")
    assert "rival" in message
    assert ".spec.rayClusterConfig.rayVersion" in message
    assert "kuberay" not in message


# -- carrying out -----------------------------------------------------------------------------------------


def a_policy(name: str = "mixtral-deny-all", **metadata: Any) -> Manifest:
    body = {"name": name, "namespace": "models", "finalizers": [FINALIZER], "uid": f"uid-{name}"}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": body | metadata,
        "spec": {},
    }


def a_world() -> World:
    return World(key=KEY, now=START, body=a_body())


async def test_a_dying_policy_is_made_anew_while_a_stand_in_denies(bench: Bench) -> None:
    dying = bench.cluster.put(a_policy(deletionTimestamp="2026-01-31T12:00:00Z"))
    wanted = a_policy()
    del wanted["metadata"]["uid"]
    await bench.executor.carry_out(a_world(), (Reseal(dying, wanted),))
    assert [one for one in bench.requests if not one.startswith("get")] == [
        "apply NetworkPolicy mixtral-deny-all-stand-in",
        "finalize NetworkPolicy mixtral-deny-all",
        "apply NetworkPolicy mixtral-deny-all",
        "delete NetworkPolicy mixtral-deny-all-stand-in",
    ]


async def test_in_a_namespace_that_goes_the_dying_policy_is_never_let_go(bench: Bench) -> None:
    dying = bench.cluster.put(a_policy(deletionTimestamp="2026-01-31T12:00:00Z"))
    bench.cluster.refuse["apply NetworkPolicy"] = NamespaceTerminating("being terminated")
    done = await bench.executor.carry_out(a_world(), (Reseal(dying, a_policy()),))
    assert done.outcome.terminating
    assert not [one for one in bench.requests if one.startswith("finalize")]
    assert bench.cluster.objects["NetworkPolicy", "mixtral-deny-all"]["metadata"]["finalizers"]


async def test_nothing_follows_an_action_that_was_refused(bench: Bench) -> None:
    bench.cluster.refuse["apply NetworkPolicy a"] = Refused("no")
    done = await bench.executor.carry_out(a_world(), (Apply(a_policy("a")), Apply(a_policy("b"))))
    assert "no" in done.outcome.refused
    assert bench.requests == ["apply NetworkPolicy a"]


async def test_what_exists_is_not_created_again(bench: Bench) -> None:
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "mirror-x", "namespace": "s"}}
    bench.cluster.put(job)
    await bench.executor.carry_out(a_world(), (Create(job),))
    assert bench.requests == ["get Job mirror-x"]


async def test_a_create_that_lost_a_race_is_fine(bench: Bench) -> None:
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "mirror-x", "namespace": "s"}}
    bench.cluster.refuse["create Job"] = Conflict("AlreadyExists")
    done = await bench.executor.carry_out(a_world(), (Create(job),))
    assert not done.outcome.refused


async def test_only_our_finalizer_is_taken_off_and_only_off_this_very_object(bench: Bench) -> None:
    policy = bench.cluster.put(a_policy(finalizers=["other/one", FINALIZER]))
    await bench.executor.carry_out(a_world(), (Release(policy),))
    assert bench.cluster.objects["NetworkPolicy", "mixtral-deny-all"]["metadata"]["finalizers"] == [
        "other/one"
    ]
    bench.requests.clear()
    again = bench.cluster.put(a_policy(uid="a later one"))
    assert again
    await bench.executor.carry_out(a_world(), (Release(policy),))
    assert bench.requests == ["get NetworkPolicy mixtral-deny-all"]


def test_other_managers_are_those_who_wrote_the_object_itself_latest_first() -> None:
    entries = [
        {"manager": "b", "time": "1"},
        {"manager": "a", "time": "2"},
        {"manager": "a", "time": "0"},
        {"manager": "s", "time": "9", "subresource": "status"},
        {"manager": "sovereign-operator", "time": "9"},
    ]
    assert other_managers({"metadata": {"managedFields": entries}}) == ["a", "b"]
