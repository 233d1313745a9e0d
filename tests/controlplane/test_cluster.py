# SPDX-License-Identifier: Apache-2.0
"""The embedded control plane is a real Kubernetes, survives a crash, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dev.cluster import Cluster, ClusterError, down, load, status, up
from dev.cluster.process import Process, ProcessTable, awaited, birth
from dev.kubectl import Kubectl, KubectlFailed

pytestmark = pytest.mark.controlplane

PARTS = {"API", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}


@contextmanager
def a_cluster() -> Iterator[Cluster]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    try:
        yield up(name)
    finally:
        down(name)


def test_all_parts_run_and_the_api_answers(control_plane: Cluster, kubectl: Kubectl) -> None:
    parts = status(control_plane.name)
    assert {part.name for part in parts} == PARTS
    assert all(part.alive for part in parts)
    assert kubectl("get", "--raw", "/readyz") == "ok"
    assert json.loads(kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"] == "v1.36.3"


def test_a_second_up_keeps_what_runs(control_plane: Cluster) -> None:
    before = control_plane.processes.all()
    assert up(control_plane.name) == control_plane
    assert control_plane.processes.all() == before


def test_controllers_and_scheduler_work(kubectl: Kubectl, namespace: str) -> None:
    """A Job gets its pod from a controller; the pod waits because there is no node, and says so."""
    kubectl("-n", namespace, "create", "job", "one", "--image=none.invalid/none")
    for pod in kubectl.watch("-n", namespace, "pods", seconds=30):
        reasons = {c.get("reason") for c in pod.get("status", {}).get("conditions", [])}
        if "Unschedulable" in reasons:
            return
    pytest.fail("the scheduler did not judge the Job's pod")


def test_restricted_pod_security_is_enforced(kubectl: Kubectl, namespace: str) -> None:
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    with pytest.raises(KubectlFailed, match="violates PodSecurity"):
        kubectl("-n", namespace, "run", "one", "--image=none.invalid/none", "--privileged")


async def test_the_dynamic_client_applies_server_side(kubernetes, namespace: str) -> None:  # type: ignore[no-untyped-def]
    async with kubernetes() as client:
        kind = await client.resources.get(api_version="v1", kind="ConfigMap")
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "one", "namespace": namespace},
            "data": {"key": "value"},
        }
        await client.server_side_apply(kind, body=body, field_manager="test")
        found = await client.get(kind, name="one", namespace=namespace)
        assert found.to_dict()["data"] == {"key": "value"}
        assert [entry["manager"] for entry in found.to_dict()["metadata"]["managedFields"]] == ["test"]


def test_requests_are_in_the_audit_log(control_plane: Cluster, kubectl: Kubectl, namespace: str) -> None:
    kubectl("-n", namespace, "create", "configmap", "seen")

    def logged() -> bool:
        events = [json.loads(line) for line in control_plane.audit_log.read_text().splitlines()]
        return any(
            event["verb"] == "create"
            and event["objectRef"].get("namespace") == namespace
            and event["objectRef"].get("name") == "seen"
            for event in events
        )

    assert awaited(logged, 10)


def test_two_control_planes_do_not_see_each_other(control_plane: Cluster, kubectl: Kubectl) -> None:
    with a_cluster() as other:
        assert other.api_port != control_plane.api_port
        Kubectl(tuple(other.kubectl))("create", "namespace", "only-there")
        assert kubectl.find("namespace", "only-there") is None


def test_after_a_crash_up_brings_the_same_objects_back_and_down_leaves_nothing() -> None:
    with a_cluster() as cluster:
        kubectl = Kubectl(tuple(cluster.kubectl))
        kubectl("create", "namespace", "survivor")
        companion = cluster.run_process("companion", ["sleep", "600"])
        crashed = [process for process in cluster.processes.all() if process.name != "companion"]
        for process in crashed:
            os.kill(process.pid, signal.SIGKILL)
        assert awaited(lambda: not any(process.alive for process in crashed), 10)
        assert not any(part.alive for part in status(cluster.name) if part.name in PARTS)

        again = up(cluster.name)
        assert again.kubeconfig.read_text() == cluster.kubeconfig.read_text()
        assert kubectl.get("namespace", "survivor")["status"]["phase"] == "Active"
        started = again.processes.all()
        assert companion in started

        down(cluster.name)
        assert not any(process.alive for process in started)
        assert not cluster.state_dir.exists()
        assert load(cluster.name) is None
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", cluster.api_port)) != 0


def test_down_of_a_cluster_that_never_was_is_quiet() -> None:
    down(f"test-{uuid.uuid4().hex[:8]}")


def test_a_bad_name_is_refused_with_a_sentence() -> None:
    with pytest.raises(ClusterError, match="no name for a cluster"):
        up("../elsewhere")


def test_a_recycled_pid_is_never_signalled() -> None:
    """A record whose start time is not the living process's is somebody else's process now."""
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            assert birth(other.pid) is not None
            Process("stale", other.pid, "another-boot/1", "", ("sleep",)).end()
            assert other.poll() is None
        finally:
            other.kill()


def test_a_process_is_recorded_kept_and_ended(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path / "processes", tmp_path / "logs")
    started = table.start("one", ["sh", "-c", "echo said; exec sleep 600"])
    try:
        assert table.start("one", ["sh", "-c", "exit 1"]) == started
        assert awaited(lambda: "said" in started.last_words(), 5)
        assert started.alive
    finally:
        table.end("one")
    assert not started.alive
    assert table.all() == []


def test_node_commands_refuse_with_a_sentence_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match="needs root"):
        up("never", node=True)
    assert load("never") is None
