# SPDX-License-Identifier: Apache-2.0
"""The operator's senses: the registry over HTTP on loopback, KubeRay's schema, indices, progress, logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import kopf
import pytest
import yaml
from aiohttp import web

from sovereign_operator import handlers
from sovereign_operator.api import FINALIZER
from sovereign_operator.cluster import ApiUnavailable
from sovereign_operator.config import RegistryConfig
from sovereign_operator.indices import Indices, NodeWatch, owner_of, plain
from sovereign_operator.kuberay import KubeRay, KubeRayState, detect
from sovereign_operator.main import MAX_LINE, JsonLines, PlainLines
from sovereign_operator.progress import MOST_BYTES, ProgressReader
from sovereign_operator.registry import RegistryReader
from sovereign_operator.supervision import kinds_changed
from sovereign_operator.system_watch import Shelf
from sovereign_operator.values import NOT_THERE, Artifact, MirrorProgress, Unreadable
from tests.controlplane.registry_double import TINY, RegistryDouble
from tests.unit.operator.builders import COMMIT, ROOT

REPOSITORY = "models/org/tiny"


# -- the registry -----------------------------------------------------------------------------------------


@dataclass
class Shelves:
    double: RegistryDouble
    reader: RegistryReader


@pytest.fixture
async def shelves() -> AsyncIterator[Shelves]:
    with RegistryDouble() as double:
        async with aiohttp.ClientSession() as session:
            config = RegistryConfig(host=double.host, writer=double.host, plain_http=True)
            yield Shelves(double, RegistryReader(session, config))


async def test_a_commits_tag_leads_to_the_artifact_and_its_facts(shelves: Shelves) -> None:
    digest = shelves.double.publish(REPOSITORY, COMMIT)
    found = await shelves.reader.find(REPOSITORY, COMMIT)
    assert isinstance(found, Artifact)
    assert (found.digest, found.reference) == (digest, f"{REPOSITORY}@{digest}")
    assert (found.files, found.revision) == (2, COMMIT)
    assert found.facts is not None
    assert found.facts.experts == 8


async def test_what_cannot_change_is_read_once(shelves: Shelves) -> None:
    shelves.double.publish(REPOSITORY, COMMIT)
    await shelves.reader.find(REPOSITORY, COMMIT)
    shelves.double.requests.clear()
    await shelves.reader.find(REPOSITORY, COMMIT)
    assert shelves.double.requests == [f"HEAD /v2/{REPOSITORY}/manifests/{COMMIT}"]


async def test_a_digest_is_found_and_an_absent_one_is_not_there(shelves: Shelves) -> None:
    digest = shelves.double.publish(REPOSITORY, COMMIT)
    assert isinstance(await shelves.reader.find(REPOSITORY, digest), Artifact)
    assert await shelves.reader.find(REPOSITORY, "sha256:" + "0" * 64) == NOT_THERE
    assert await shelves.reader.find("models/org/other", COMMIT) == NOT_THERE


async def test_a_registry_that_is_down_is_no_absence(shelves: Shelves) -> None:
    shelves.double.publish(REPOSITORY, COMMIT)
    shelves.double.down = True
    found = await shelves.reader.find(REPOSITORY, COMMIT)
    assert isinstance(found, Unreadable)
    assert found.reason == "RegistryUnavailable"
    shelves.double.down = False
    assert isinstance(await shelves.reader.find(REPOSITORY, COMMIT), Artifact)


async def test_a_registry_that_nobody_serves_is_unavailable() -> None:
    async with aiohttp.ClientSession() as session:
        config = RegistryConfig(host="127.0.0.1:9", writer="127.0.0.1:9", plain_http=True)
        found = await RegistryReader(session, config).find(REPOSITORY, COMMIT)
    assert isinstance(found, Unreadable)
    assert found.reason == "RegistryUnavailable"


async def test_a_manifest_with_other_bytes_than_its_digest_is_refused(shelves: Shelves) -> None:
    digest = shelves.double.publish(REPOSITORY, COMMIT)
    shelves.double.lie(f"/v2/{REPOSITORY}/manifests/{digest}", digest)
    found = await shelves.reader.find(REPOSITORY, digest)
    assert isinstance(found, Unreadable)
    assert found.reason == "ArtifactMalformed"


async def test_a_manifest_that_is_no_model_is_refused(shelves: Shelves) -> None:
    shelves.double.put(REPOSITORY, COMMIT, b'{"schemaVersion": 2}')
    found = await shelves.reader.find(REPOSITORY, COMMIT)
    assert isinstance(found, Unreadable)
    assert found.reason == "MalformedManifest"


async def test_facts_that_contradict_the_models_own_config_are_refused(shelves: Shelves) -> None:
    shelves.double.publish(REPOSITORY, COMMIT, facts_of={**TINY, "num_local_experts": 64})
    found = await shelves.reader.find(REPOSITORY, COMMIT)
    assert isinstance(found, Unreadable)
    assert found.reason == "FactsContradict"


# -- KubeRay ----------------------------------------------------------------------------------------------


def a_document(properties: dict[str, Any], *, referenced: bool = False) -> dict[str, Any]:
    spec: dict[str, Any] = {"type": "object", "properties": properties}
    service = {
        "x-kubernetes-group-version-kind": [{"group": "ray.io", "version": "v1", "kind": "RayService"}],
        "properties": {"spec": {"allOf": [{"$ref": "#/components/schemas/Spec"}]} if referenced else spec},
    }
    return {"components": {"schemas": {"RayService": service, "Spec": spec}}}


NEW = {"suspend": {"type": "boolean"}, "rayClusterConfig": {"properties": {"authOptions": {}}}}


@pytest.mark.parametrize(
    ("document", "state"),
    [
        (None, KubeRay.MISSING),
        ({}, KubeRay.MISSING),
        (a_document(NEW), KubeRay.SUPPORTED),
        (a_document(NEW, referenced=True), KubeRay.SUPPORTED),
        (a_document({"suspend": {}, "rayClusterConfig": {"properties": {}}}), KubeRay.TOO_OLD),
        (a_document({"rayClusterConfig": {"properties": {"authOptions": {}}}}), KubeRay.TOO_OLD),
    ],
)
def test_kuberay_is_told_by_the_fields_it_publishes(document: Any, state: KubeRay) -> None:
    assert detect(document) is state


def test_the_stand_ins_definition_is_one_that_we_support() -> None:
    text = (ROOT / "dev" / "kuberay" / "crds.yaml").read_text()
    service = next(one for one in yaml.safe_load_all(text) if one["spec"]["names"]["kind"] == "RayService")
    schema = service["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert detect(a_document(schema["properties"]["spec"]["properties"])) is KubeRay.SUPPORTED


async def test_a_supported_kuberay_is_asked_for_once_and_a_missing_one_again() -> None:
    answers: list[Any] = [None]
    asked: list[str] = []

    async def openapi(path: str) -> Any:
        asked.append(path)
        return answers[0]

    kuberay = KubeRayState(openapi)
    assert await kuberay.state() is KubeRay.MISSING
    assert await kuberay.state() is KubeRay.MISSING
    assert len(asked) == 1, "no is believed for a while"
    answers[0] = a_document(NEW)
    kuberay._asked = float("-inf")
    assert await kuberay.state() is KubeRay.SUPPORTED
    kuberay._asked = float("-inf")
    assert await kuberay.state() is KubeRay.SUPPORTED
    assert asked == ["ray.io/v1"] * 2
    kuberay.doubt()
    answers[0] = None
    assert await kuberay.state() is KubeRay.MISSING


@pytest.mark.parametrize(
    ("looks", "returns"),
    [
        ([{"rayservices", "rayclusters"}] * 2, False),
        ([set(), set(), {"rayclusters"}], True),
        ([{"rayclusters"}, {"rayclusters", "rayservices", "rayjobs"}], True),
        ([{"rayservices", "rayclusters"}, {"rayclusters"}], True),
        ([set(), set(), ApiUnavailable("no"), {"rayclusters", "rayservices"}], True),
        ([set(), ApiUnavailable("no"), set(), {"rayjobs"}], False),
    ],
)
async def test_the_watches_are_rebuilt_when_kuberays_kinds_change_and_left_alone_otherwise(
    looks: list[Any], returns: bool
) -> None:
    rest = list(looks)
    done = asyncio.Event()

    async def served(_: str) -> frozenset[str]:
        if not rest:
            await asyncio.Event().wait()
        look = rest.pop(0)
        if not rest:
            done.set()
        if isinstance(look, Exception):
            raise look
        assert isinstance(look, set)
        return frozenset(look)

    task = asyncio.create_task(kinds_changed(served, 0.001))
    waiter = asyncio.create_task(done.wait())
    await asyncio.wait([task, waiter], timeout=30, return_when=asyncio.FIRST_COMPLETED)
    assert task.done() is returns
    for one in (task, waiter):
        one.cancel()
    await asyncio.gather(task, waiter, return_exceptions=True)


# -- indices, nodes, progress, logs -----------------------------------------------------------------------


def a_child(name: str = "a", version: str = "1", **labels: str) -> dict[str, Any]:
    keys = {f"sovereign.dev/{key.replace('_', '-')}": value for key, value in labels.items()}
    metadata = {"name": name, "namespace": "models", "uid": name, "resourceVersion": version, "labels": keys}
    return {"kind": "Pod", "metadata": metadata | {"managedFields": [{"manager": "x"}]}}


def test_the_owner_is_read_from_labels() -> None:
    assert owner_of(a_child(owner="m")) == ("models", "m")
    assert owner_of(a_child(model="m")) == ("models", "m")
    assert owner_of(a_child(owner="m", owner_namespace="elsewhere")) == ("elsewhere", "m")
    assert owner_of({"metadata": {"name": "x"}}) == ("", "")


def test_an_index_keeps_no_field_managers() -> None:
    assert "managedFields" not in plain(a_child())["metadata"]


def test_the_fingerprint_changes_with_every_version_of_every_child_and_only_then() -> None:
    key = ("models", "m")
    indices = Indices(pods={key: [a_child("a"), a_child("b")]})
    same = Indices(pods={key: [a_child("b"), a_child("a")]})
    assert indices.fingerprint(key, "l") == same.fingerprint(key, "l")
    assert indices.fingerprint(key, "l") != Indices(pods={key: [a_child("a")]}).fingerprint(key, "l")
    newer = Indices(pods={key: [a_child("a", "2"), a_child("b")]})
    assert indices.fingerprint(key, "l") != newer.fingerprint(key, "l")
    assert indices.keys() == {key}
    assert Indices(pods={("models", ""): [a_child()]}).keys() == set()


def a_node_body(heartbeat: str = "1", accelerators: str = "8") -> dict[str, Any]:
    condition = {"type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat}
    status = {"conditions": [condition], "allocatable": {"nvidia.com/gpu": accelerators}}
    return {"metadata": {"name": "n", "labels": {}}, "status": status}


def test_heartbeats_of_a_node_are_no_news() -> None:
    news: list[None] = []
    watch = NodeWatch("product", lambda: news.append(None))
    watch.event("ADDED", a_node_body())
    watch.event("MODIFIED", a_node_body("2"))
    assert len(news) == 1
    watch.event("MODIFIED", a_node_body("3", "4"))
    watch.event("DELETED", a_node_body("3", "4"))
    watch.event("DELETED", a_node_body("3", "4"))
    assert len(news) == 3


def test_a_shelf_knows_whose_jobs_are_gone_after_a_new_listing() -> None:
    shelf = Shelf()
    shelf.put(a_child("a", owner="m"))
    shelf.put(a_child("b", owner="n"))
    assert shelf.replace([a_child("a", owner="m")]) == {("models", "m"), ("models", "n")}
    assert set(shelf) == {("models", "m")}
    assert shelf.drop(a_child("a", owner="m")) == ("models", "m")
    assert len(shelf) == 0


def test_only_what_a_probe_needs_is_watched_among_jobs_and_services() -> None:
    """In cluster mode the operator's own namespace is watched too, with the Jobs of mirrors and controls."""
    settings = kopf.OperatorSettings()
    handlers.settings_for(settings)
    selectors = settings.watching.label_selectors
    assert selectors["", "v1", "services"] == "sovereign.dev/owner,sovereign.dev/component=peer"
    selector = selectors["batch", "v1", "jobs"]
    assert selector == "sovereign.dev/owner,sovereign.dev/component=prober"


def test_kopf_is_never_given_our_finalizer_nor_a_worker_limit() -> None:
    settings = kopf.OperatorSettings()
    handlers.settings_for(settings)
    assert settings.persistence.finalizer != FINALIZER
    assert settings.queueing.worker_limit is None
    assert settings.scanning.disabled
    assert not settings.posting.enabled


@pytest.fixture
async def progress_pod() -> AsyncIterator[tuple[int, list[str], list[bytes]]]:
    """A mirror pod's endpoint on loopback: its port, what was asked, and what it answers."""
    asked: list[str] = []
    answers = [b'{"bytesDone": 5, "bytesTotal": 9}']

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(body=answers[0])

    application = web.Application()
    application.router.add_get("/progress", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0][1], asked, answers
    await runner.cleanup()


async def test_a_status_can_hold_whatever_a_mirror_pod_answers(
    progress_pod: tuple[int, list[str], list[bytes]],
) -> None:
    port, _, answers = progress_pod
    answers[0] = b'{"bytesDone": 1e30, "bytesTotal": 1e30, "filesDone": -1, "filesTotal": 1e30}'
    pod = {"metadata": {"name": "p"}, "status": {"phase": "Running", "podIP": "127.0.0.1"}}
    async with aiohttp.ClientSession() as session:
        said = await ProgressReader(session, port).of(("models", "m"), (pod,))
    assert said == MirrorProgress(MOST_BYTES, MOST_BYTES, 0, MOST_BYTES)
    assert MOST_BYTES < 2**63


async def test_progress_is_asked_at_most_every_ten_seconds(
    progress_pod: tuple[int, list[str], list[bytes]],
) -> None:
    port, asked, answers = progress_pod
    pod = {"metadata": {"name": "p"}, "status": {"phase": "Running", "podIP": "127.0.0.1"}}
    async with aiohttp.ClientSession() as session:
        reader = ProgressReader(session, port)
        first = await reader.of(("models", "m"), (pod,))
        assert first == MirrorProgress(bytes_done=5, bytes_total=9)
        answers[0] = b'{"bytesDone": 7}'
        assert await reader.of(("models", "m"), (pod,)) == first
        assert len(asked) == 1
        reader._last[("models", "m")] = (float("-inf"), first)
        answers[0] = b"[not an object]"
        assert await reader.of(("models", "m"), (pod,)) == first, "nonsense leaves what is known"
        assert await reader.of(("models", "m"), ()) is None


@pytest.mark.parametrize("formatter", [JsonLines(), PlainLines()])
def test_a_log_line_has_a_bound(formatter: logging.Formatter) -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "y" * 100_000, None, None)
    assert len(formatter.format(record)) < MAX_LINE + 300
