# SPDX-License-Identifier: Apache-2.0
"""How fetches are seen: on shelves that models share, by whom they concern, and by asking their pods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sovereign_operator.api import ANNOTATION_ARTIFACT
from sovereign_operator.cluster import JOB, Kind
from sovereign_operator.desired.fetch_job import Fetch, fetch_job
from sovereign_operator.fetches import (
    LISTED_NODES,
    Neighbour,
    concerning,
    digests_of,
    fetch_key,
    has_cache,
    label_of,
)
from sovereign_operator.indices import Indices, Key
from sovereign_operator.progress import MOST_BYTES, MOST_PODS, ProgressReader
from sovereign_operator.system_watch import Shelf, SystemWatch
from sovereign_operator.values import Manifest, accelerators_of
from tests.unit.operator.builders import DIGEST, a_caching_config, a_model, with_node_cache
from tests.unit.operator.cached_worlds import NEXT_DIGEST, a_neighbour

CONFIG = a_caching_config()
KEY = ("models", label_of(DIGEST))


def a_fetch(
    node: str = "gpu-a", digest: str = DIGEST, version: str = "1", namespace: str = "models"
) -> Manifest:
    assert CONFIG.node_cache is not None
    fetch = Fetch(namespace, node, f"models/a/b@{digest}")
    job = fetch_job(fetch, with_node_cache(a_model()), CONFIG, CONFIG.node_cache)
    job["metadata"] |= {"uid": f"{node}-{digest}", "resourceVersion": version}
    return job


def a_mirror(version: str = "1") -> Manifest:
    labels = {"sovereign.dev/component": "mirror", "sovereign.dev/owner": "m"}
    labels["sovereign.dev/owner-namespace"] = "models"
    return {"metadata": {"name": "mirror", "uid": "mirror", "resourceVersion": version, "labels": labels}}


class Stream:
    """A cluster that tells what a test wrote down, and then nothing more."""

    def __init__(self, events: list[tuple[str, Any]]) -> None:
        self.events, self.selectors = events, dict[str, str]()

    async def follow(self, kind: Kind, namespace: str, selector: str) -> AsyncIterator[tuple[str, Any]]:
        self.selectors[kind.plural] = selector
        for event, body in self.events if kind == JOB else [("LISTED", [])]:
            yield event, body
        await asyncio.Event().wait()


async def watched(events: list[tuple[str, Any]]) -> tuple[SystemWatch, list[Key], list[Key], Stream]:
    own: list[Key] = []
    shared: list[Key] = []
    stream = Stream(events)
    watch = SystemWatch(stream, "system", own.append, shared.append)  # type: ignore[arg-type]
    async with watch.running():
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return watch, own, shared, stream


async def test_a_fetch_is_nobodys_own_and_a_mirror_is() -> None:
    watch, own, shared, stream = await watched([("LISTED", [a_mirror(), a_fetch()])])
    assert (list(watch.jobs), list(watch.fetch_jobs)) == ([("models", "m")], [KEY])
    assert (own, shared) == ([("models", "m")], [KEY])
    assert stream.selectors["jobs"] == "sovereign.dev/component in (control,mirror,fetch)"
    assert stream.selectors["networkpolicies"] == "sovereign.dev/component in (control,mirror)"


async def test_what_changes_and_goes_is_reported_to_those_that_share_it() -> None:
    changed, gone = a_fetch(version="2"), a_fetch("gpu-b")
    events = [("LISTED", [a_fetch(), gone]), ("MODIFIED", changed), ("DELETED", gone), ("ADDED", a_mirror())]
    watch, own, shared, _ = await watched(events)
    assert [job["metadata"]["resourceVersion"] for job in watch.fetch_jobs[KEY]] == ["2"]
    assert shared == [KEY] * 3
    assert own == [("models", "m")]


async def test_a_new_listing_forgets_what_went_meanwhile() -> None:
    watch, _, shared, _ = await watched([("LISTED", [a_fetch()]), ("LISTED", [a_mirror()])])
    assert list(watch.fetch_jobs) == []
    assert shared == [KEY] * 2


def test_a_shelf_finds_by_key_and_follows_an_object_that_changes_its_own() -> None:
    shelf = Shelf(fetch_key)
    shelf.put(a_fetch())
    moved = a_fetch()
    moved["metadata"]["labels"]["sovereign.dev/owner-namespace"] = "elsewhere"
    shelf.put(moved)
    assert list(shelf) == [("elsewhere", KEY[1])]
    assert shelf.get(KEY, ()) == ()
    assert len(list(shelf["elsewhere", KEY[1]])) == 1


# -- whose business a fetch is ----------------------------------------------------------------------------


def indices_of(*models: Manifest) -> Indices:
    found = {("models", str(body["metadata"]["name"])): [body] for body in models}
    return Indices(models=found, fetch_jobs={KEY: [a_fetch()]})


def test_it_wakes_every_model_of_the_namespace_that_serves_the_digest_and_no_other() -> None:
    one, two = a_neighbour("one", digest=DIGEST), a_neighbour("two", digest=DIGEST)
    other, pulling = a_neighbour("other", digest=NEXT_DIGEST), a_neighbour("pulling", digest=DIGEST)
    pulling["spec"]["delivery"] = {"mode": "ephemeral"}
    going = a_neighbour("going", digest=DIGEST)
    going["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    indices = indices_of(one, two, other, pulling, going)
    assert indices.sharing(KEY) == {("models", "one"), ("models", "two")}
    assert indices.sharing(("elsewhere", KEY[1])) == set()


def test_it_is_no_model_of_its_own() -> None:
    assert indices_of().keys() == set()


def test_its_news_are_news_for_those_that_share_it_only() -> None:
    key, other = ("models", "one"), ("models", "other")
    indices = indices_of(a_neighbour("one", digest=DIGEST), a_neighbour("other", digest=NEXT_DIGEST))
    before = {each: indices.fingerprint(each, "l") for each in (key, other)}
    indices.fetch_jobs = {KEY: [a_fetch(version="2")]}
    assert indices.fingerprint(key, "l") != before[key]
    assert indices.fingerprint(other, "l") == before[other]


def test_neighbours_are_all_others_with_weights_on_nodes() -> None:
    one = a_neighbour("one", nodes=["gpu-a"], digest=DIGEST)
    pulling = a_neighbour("pulling", digest=DIGEST)
    del pulling["spec"]["delivery"]
    found = indices_of(one, pulling, a_neighbour("me", digest=DIGEST)).neighbours(but=("models", "me"))
    (neighbour,) = found
    assert (neighbour.name, neighbour.digests, neighbour.nodes) == ("one", {DIGEST}, {"gpu-a"})
    assert neighbour.keeps_on("gpu-a")
    assert not neighbour.keeps_on("gpu-b")


def test_a_neighbour_keeps_what_its_pods_use_though_its_status_names_no_node() -> None:
    indices = indices_of(a_neighbour("one", digest=DIGEST))
    using, pulling = a_pod_with("4"), a_pod_with("4", "gpu-b")
    using["metadata"]["annotations"] = {ANNOTATION_ARTIFACT: f"models/a/b@{DIGEST}"}
    unplaced = {"metadata": using["metadata"], "spec": {}}
    indices.pods = {
        ("models", "one"): [using, pulling, unplaced],
        ("models", "two"): [a_pod_with("1", "gpu-c")],
    }
    (neighbour,) = indices.neighbours(but=("models", "me"))
    assert neighbour.nodes == {"gpu-a"}
    assert neighbour.keeps_on("gpu-a")
    assert not neighbour.keeps_on("gpu-b")


@pytest.mark.parametrize("junk", [None, "x", 1, [], {}, {"delivery": "x"}, {"nodes": [1, {"name": ""}]}])
def test_objects_of_other_versions_are_no_crash(junk: Any) -> None:
    body = {"metadata": {"name": "x", "namespace": "n"}, "spec": junk, "status": junk}
    assert digests_of(body) == frozenset()
    assert not has_cache(body)
    assert Neighbour.of(body).nodes == frozenset()


def test_a_model_has_to_do_with_its_digests_and_with_what_it_made() -> None:
    mine, other, theirs = a_fetch(), a_fetch(digest=NEXT_DIGEST), a_fetch("gpu-b", digest=NEXT_DIGEST)
    theirs["metadata"]["annotations"]["sovereign.dev/model"] = "models/other"
    found = concerning([theirs, mine, other], "models", "mixtral", [DIGEST])
    assert sorted(found, key=str) == sorted([mine, other], key=str)
    assert concerning([theirs], "models", "mixtral", [NEXT_DIGEST]) == (theirs,)


def a_pod_with(accelerators: str, node: str = "gpu-a", phase: str = "Running") -> Manifest:
    containers = [{"resources": {"limits": {"nvidia.com/gpu": accelerators}}}, {}]
    return {
        "metadata": {"name": node, "uid": node, "resourceVersion": "1"},
        "spec": {"nodeName": node, "containers": containers},
        "status": {"phase": phase},
    }


def test_accelerators_of_others_are_counted_by_node() -> None:
    pods = {
        ("models", "one"): [a_pod_with("4"), a_pod_with("4"), a_pod_with("8", "gpu-b", "Succeeded")],
        ("elsewhere", "two"): [a_pod_with("1"), {"metadata": {}, "spec": {}}],
        ("models", "me"): [a_pod_with("8", "gpu-c")],
    }
    assert Indices(pods=pods).accelerators_taken("nvidia.com/gpu", ("models", "me")) == {"gpu-a": 9}
    assert accelerators_of(a_pod_with("2k"), "nvidia.com/gpu") == 2000
    assert accelerators_of(a_pod_with("500m"), "nvidia.com/gpu") == 0


# -- asking the pods --------------------------------------------------------------------------------------


@pytest.fixture
async def pods() -> AsyncIterator[tuple[int, list[str], dict[str, bytes]]]:
    """Endpoints on loopback: their port, who was asked, and what each address answers."""
    asked: list[str] = []
    answers: dict[str, bytes] = {}

    async def answer(request: web.Request) -> web.Response:
        host = request.host.partition(":")[0]
        asked.append(host)
        return web.Response(body=answers.get(host, b'{"bytesDone": 5, "bytesTotal": 9}'))

    application = web.Application()
    application.router.add_get("/progress", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", 0).start()  # every address of 127.0.0.0/8
    yield runner.addresses[0][1], asked, answers
    await runner.cleanup()


def a_running_pod(number: int) -> Manifest:
    status = {"phase": "Running", "podIP": f"127.0.1.{number}"}
    return {"metadata": {"name": f"p-{number}", "uid": f"uid-{number}"}, "status": status}


def due(reader: ProgressReader) -> None:
    for reading in reader._readings.values():
        reading.asked -= 10


async def test_each_pod_is_asked_at_most_every_ten_seconds_and_so_many_at_a_time(
    pods: tuple[int, list[str], dict[str, bytes]],
) -> None:
    port, asked, _ = pods
    several = [a_running_pod(number) for number in range(1, 2 * MOST_PODS + 3)]
    async with aiohttp.ClientSession() as session:
        reader = ProgressReader(session, port)
        first = await reader.of_each(several)
        assert len(asked) == len(first) == MOST_PODS
        assert len(await reader.of_each(several)) == 2 * MOST_PODS, "the others' turn"
        assert len(await reader.of_each(several)) == len(several)
        assert len(asked) == len(set(asked)) == len(several)
        await reader.of_each(several)
        assert len(asked) == len(several)
        due(reader)
        await reader.of_each(several[:3])
        assert len(asked) == len(several) + 3


async def test_the_rate_is_what_came_between_two_answers(
    pods: tuple[int, list[str], dict[str, bytes]],
) -> None:
    port, _, answers = pods
    async with aiohttp.ClientSession() as session:
        reader = ProgressReader(session, port)
        pod = a_running_pod(1)
        assert (await reader.of_each([pod]))["uid-1"].rate == 0
        due(reader)
        reader._readings["uid-1"].answered -= 10
        answers["127.0.1.1"] = b'{"bytesDone": 1000000005, "bytesTotal": 2000000000}'
        said = (await reader.of_each([pod]))["uid-1"]
        assert said.rate == pytest.approx(10**8, rel=0.05)
        due(reader)
        answers["127.0.1.1"] = b'{"bytesDone": 7, "bytesTotal": 9}'
        assert (await reader.of_each([pod]))["uid-1"].rate == 0, "after a fault some bytes come again"


@pytest.mark.parametrize(
    "nonsense",
    [
        b"[not an object]",
        b"[" * 9000,
        b'{"bytesDone": -5}',
        b'{"bytesDone": 1e999}',
        b'{"bytesDone": NaN}',
        b"",
    ],
)
async def test_a_pod_may_answer_what_it_likes(
    nonsense: bytes, pods: tuple[int, list[str], dict[str, bytes]]
) -> None:
    port, _, answers = pods
    answers["127.0.1.1"] = nonsense
    async with aiohttp.ClientSession() as session:
        said = await ProgressReader(session, port).of_each([a_running_pod(1)])
    assert all(0 <= each.bytes_done <= MOST_BYTES for each in said.values())


async def test_a_status_can_hold_the_sum_of_whatever_pods_answer(
    pods: tuple[int, list[str], dict[str, bytes]],
) -> None:
    port, _, answers = pods
    several = [a_running_pod(number) for number in range(1, MOST_PODS + 1)]
    for pod in several:
        answers[pod["status"]["podIP"]] = b'{"bytesDone": 1e30, "bytesTotal": 1e30}'
    async with aiohttp.ClientSession() as session:
        said = (await ProgressReader(session, port).of_each(several)).values()
    for amount in (each for one in said for each in (one.bytes_done, one.bytes_total)):
        assert 10**15 < amount <= (2**63 - 1) // LISTED_NODES, "int64, and more than any model has"


async def test_a_pod_that_ended_is_not_asked_and_forgotten() -> None:
    async with aiohttp.ClientSession() as session:
        reader = ProgressReader(session, 9)
        ended = a_running_pod(1)
        ended["status"]["phase"] = "Succeeded"
        assert await reader.of_each([ended]) == {}
        assert await reader.of_each([a_running_pod(2)]) == {}, "nobody answers there"
        reader._readings["uid-2"].asked -= 601
        await reader.of_each([])
        assert reader._readings == {}
