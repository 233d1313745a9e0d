# SPDX-License-Identifier: Apache-2.0
"""The node cache on a real node: each fault ends in a reason, and in a retry that works.

No model here serves: where pods are needed the Ray container's program is not in its image. What a served
model sees of its cache is in `test_journey`; single writes that fail are in the data plane's tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from dev import stack
from dev.cluster import Cluster, runtime, up
from dev.cluster.process import awaited
from dev.kubectl import Kubectl, Manifest, condition, is_true, named
from dev.stack import MODELS, SYSTEM, Stack
from tests.cluster.registry_log import blobs_fetched
from tests.cluster.until import is_current, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3000)]

NAME = "cached"
# Nothing is sealed there, and so nothing is served: a model gets as far as its weights on the node.
UNSEALED = "unsealed"
WITHIN = 300.0
SHARD = "model-00001-of-00002.safetensors"
FETCHES = ("-n", SYSTEM, "jobs", "-l", "sovereign.dev/component=fetch")


@pytest.fixture(scope="module", autouse=True)
def namespaces(installed: Stack) -> Iterator[None]:
    kubectl = installed.kubectl
    stack.namespaces(kubectl, MODELS, UNSEALED)
    values = {"resyncSeconds": 10, "watchNamespaces": [MODELS, UNSEALED]}
    stack.install_charts(installed.target, installed.images, values)
    yield
    kubectl("delete", "namespace", MODELS, UNSEALED, "--timeout=300s", timeout=320)


@pytest.fixture
def cache(installed: Stack, node_cluster: Cluster) -> Iterator[Path]:
    """The node's cache, without a model before and after each test."""
    folder = Path(str(stack.cache_values(installed.target)["nodeCache"]["path"]))
    empty(folder)
    yield folder
    for namespace in (MODELS, UNSEALED):
        installed.kubectl("-n", namespace, "delete", "smodel", "--all", "--timeout=300s", timeout=320)
    assert awaited(lambda: installed.kubectl.items(*FETCHES) == [], 60, interval=0.5)
    empty(folder)


def empty(folder: Path) -> None:
    if folder.is_file():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def apply_model(installed: Stack, namespace: str) -> None:
    manifest = stack.example("tiny-moe", installed.images, installed.revisions["first"])
    manifest["metadata"] |= {"name": NAME, "namespace": namespace}
    manifest["spec"]["serving"]["image"] = installed.images["airgap"]
    installed.kubectl.apply(manifest)


def distributed_says(kubectl: Kubectl, namespace: str, *reasons: str) -> Manifest:
    """The model once Distributed has one of these reasons."""
    return until(
        kubectl,
        *("-n", namespace, "smodel", named(NAME)),
        holds=lambda m: is_current(m) and condition(m, "Distributed").get("reason") in reasons,
        seconds=WITHIN,
    )


def is_there(kubectl: Kubectl, namespace: str) -> Manifest:
    seen = distributed_says(kubectl, namespace, "Distributed")
    assert is_true(seen, "Distributed")
    return seen


def entry_of(folder: Path, namespace: str, model: Manifest) -> Path:
    digest: str = model["status"]["artifact"]["digest"]
    return folder / namespace / digest.replace(":", "-")


def holds_weights(pod: Manifest) -> bool:
    """Whether the pod's container `weights` found the copy whole, and keeps it."""
    statuses = pod.get("status", {}).get("initContainerStatuses", [])
    return any(one["name"] == "weights" and one.get("started") for one in statuses)


def test_a_file_that_was_tampered_with_serves_nobody_and_is_brought_anew(
    installed: Stack, cache: Path
) -> None:
    kubectl = installed.kubectl
    workers = ("-n", MODELS, "pods", "-l", f"sovereign.dev/model={NAME},sovereign.dev/component=worker")
    apply_model(installed, MODELS)
    entry = entry_of(cache, MODELS, is_there(kubectl, MODELS))
    first = until(kubectl, *workers, holds=holds_weights, seconds=WITHIN)
    before = blobs_fetched(kubectl)
    shard = entry / SHARD
    whole = shard.read_bytes()
    with shard.open("r+b") as file:
        file.seek(len(whole) // 2)
        file.write(bytes([whole[len(whole) // 2] ^ 1]))

    kubectl("-n", MODELS, "delete", "pod", first["metadata"]["name"], "--wait=false")

    def was_repaired(model: Manifest) -> bool:
        (node,) = model["status"]["delivery"]["nodes"]
        return bool(node["reason"] == "CacheRepaired" and SHARD in node["message"])

    until(kubectl, "-n", MODELS, "smodel", named(NAME), holds=was_repaired, seconds=WITHIN)
    told = ("-n", MODELS, "events", "--field-selector=reason=CacheRepaired")
    until(kubectl, *told, holds=lambda event: SHARD in event["message"], seconds=WITHIN)
    until(
        kubectl,
        *workers,
        holds=lambda pod: pod["metadata"]["uid"] != first["metadata"]["uid"] and holds_weights(pod),
        seconds=WITHIN,
    )
    assert shard.read_bytes() == whole
    after = blobs_fetched(kubectl)
    again = {path for path, times in after.items() if times > before.get(path, 0)}
    assert {path.rpartition(":")[2] for path in again} == {sha256(whole).hexdigest()}


def test_two_tenants_with_the_same_digest_share_no_file(installed: Stack, cache: Path) -> None:
    kubectl = installed.kubectl
    for namespace in (MODELS, UNSEALED):
        apply_model(installed, namespace)
    found = {
        namespace: entry_of(cache, namespace, is_there(kubectl, namespace))
        for namespace in (MODELS, UNSEALED)
    }
    one, other = found.values()
    assert one.name == other.name
    assert (one / SHARD).read_bytes() == (other / SHARD).read_bytes()
    assert (one / SHARD).stat().st_ino != (other / SHARD).stat().st_ino
    assert len(kubectl.items(*FETCHES)) == 2
    kubectl("-n", UNSEALED, "delete", "smodel", NAME, "--timeout=120s", timeout=140)
    is_there(kubectl, MODELS)
    assert (one / ".complete").exists()


@pytest.mark.parametrize(
    ("trouble", "reason", "repair"),
    [
        pytest.param("size=2m", "CacheFull", "size=1g", id="full"),
        pytest.param("size=1g,ro", "DiskFailed", "rw", id="read-only"),
    ],
)
def test_a_disk_that_cannot_take_the_weights(
    installed: Stack, cache: Path, trouble: str, reason: str, repair: str
) -> None:
    kubectl = installed.kubectl
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", trouble, "tmpfs", str(cache)], check=True)
    try:
        apply_model(installed, UNSEALED)
        said = distributed_says(kubectl, UNSEALED, reason, "Distributed")
        assert condition(said, "Distributed")["reason"] == reason
        assert not list(cache.glob("*/*/.complete"))
        subprocess.run(["mount", "-o", f"remount,{repair}", str(cache)], check=True)
        is_there(kubectl, UNSEALED)
    finally:
        subprocess.run(["umount", "--lazy", str(cache)], check=True)


def test_a_node_without_the_path(installed: Stack, cache: Path) -> None:
    """Where the folder should be there is a file: nothing can be mounted, and the message leads to why."""
    cache.write_text("in the way")
    apply_model(installed, UNSEALED)
    said = until(
        installed.kubectl,
        *("-n", UNSEALED, "smodel", named(NAME)),
        holds=lambda m: "volumes" in condition(m, "Distributed").get("message", ""),
        seconds=WITHIN,
    )
    assert condition(said, "Distributed")["reason"] == "FetchPending"
    pod = condition(said, "Distributed")["message"].partition("the events of pod ")[2].partition(" ")[0]
    of_pod = ("-n", SYSTEM, "events", "--field-selector", f"involvedObject.name={pod},reason=FailedMount")
    until(installed.kubectl, *of_pod, holds=bool, seconds=WITHIN)
    cache.unlink()
    is_there(installed.kubectl, UNSEALED)


def test_power_is_cut_while_weights_are_fetched(installed: Stack, cache: Path, node_cluster: Cluster) -> None:
    """The Job's process and the kubelet are killed, and the node stays away until it counts as lost."""
    kubectl = installed.kubectl
    way = kubectl.get("-n", SYSTEM, "networkpolicy", "sovereign-fetch")
    kubectl("-n", SYSTEM, "delete", "networkpolicy", "sovereign-fetch")  # so that the fetch stays under way
    apply_model(installed, UNSEALED)
    pods = ("-n", SYSTEM, "pods", "-l", "sovereign.dev/component=fetch")
    running = until(kubectl, *pods, holds=lambda pod: bool(_container(pod)), seconds=WITHIN)
    kubelet = node_cluster.processes.find("kubelet")
    assert kubelet
    assert kubelet.alive
    os.kill(kubelet.pid, signal.SIGKILL)
    runtime.ctr(node_cluster, "tasks", "kill", "--signal", "SIGKILL", _container(running))

    # It was the only node, so that there is none to fetch to instead.
    until(
        kubectl,
        *("-n", UNSEALED, "smodel", named(NAME)),
        holds=lambda m: (
            condition(m, "Ready").get("reason") == "NoMatchingNodes"
            and "unreachable" in condition(m, "Ready")["message"]  # after "not ready"
        ),
        seconds=WITHIN,
    )
    until(kubectl, "-n", UNSEALED, "events", "--field-selector=reason=NodeLost", holds=bool, seconds=WITHIN)
    assert not list(cache.glob("*/*/.complete"))

    kubectl.apply({**way, "metadata": {key: way["metadata"][key] for key in ("name", "namespace", "labels")}})
    up(node_cluster.name, node=True)
    is_there(kubectl, UNSEALED)
    assert list(cache.glob("*/*/.complete"))


def _container(pod: Manifest) -> str:
    """The id of the pod's running container; empty where none runs."""
    for one in pod.get("status", {}).get("containerStatuses", []):
        if "running" in one.get("state", {}):
            return str(one["containerID"]).rpartition("/")[2]
    return ""
