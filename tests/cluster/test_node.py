# SPDX-License-Identifier: Apache-2.0
"""The embedded node really runs pods, keeps them on this machine, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev import kuberay, outside, policy
from dev.binaries import binary
from dev.cluster import Cluster, ClusterError, down, network, runtime, up
from dev.cluster.process import awaited
from dev.kubectl import Kubectl, KubectlFailed, named
from tests.cluster.witness import a_pod

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins/kubelet.sock")


@pytest.fixture
def web(kubectl: Kubectl, namespace: str, image: str) -> Iterator[Callable[..., str]]:
    """`web("get", URL)` runs a verb of the witness inside a Ready pod called web that has a Service."""
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(a_pod(image)))
    kubectl("-n", namespace, "expose", "pod", "web", "--port=80", "--target-port=8080")
    kubectl("-n", namespace, "wait", "pod/web", "--for=condition=Ready", "--timeout=120s", timeout=150)
    yield lambda *verb: kubectl("-n", namespace, "exec", "web", "--", "/witness", *verb)


def test_a_restricted_pod_becomes_ready_and_has_logs_and_exec(
    kubectl: Kubectl, namespace: str, web: Callable[..., str]
) -> None:
    assert "serving on :8080" in kubectl("-n", namespace, "logs", "web")
    assert "I am web" in web("get", "http://127.0.0.1:8080/")


def test_names_of_services_resolve_and_nothing_else_does(namespace: str, web: Callable[..., str]) -> None:
    assert web("resolve", "kubernetes.default.svc.cluster.local").strip() == "10.96.0.1"
    assert web("resolve", f"web.{namespace}").startswith("10.96.")
    with pytest.raises(KubectlFailed, match="no such host"):
        web("resolve", "example.com")


def test_a_service_reaches_its_pod_from_pods_and_from_this_machine(
    kubectl: Kubectl, namespace: str, image: str, web: Callable[..., str]
) -> None:
    kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(a_pod(image, "other")))
    kubectl("-n", namespace, "wait", "pod/other", "--for=condition=Ready", "--timeout=60s")
    asked_by_other = ("-n", namespace, "exec", "other", "--", "/witness", "get", "http://web/")
    assert "I am web" in kubectl(*asked_by_other)
    assert "I am web" in web("get", f"http://web.{namespace}/"), (
        "a pod reaches itself through its own service"
    )
    address = kubectl.get("-n", namespace, "service", "web")["spec"]["clusterIP"]
    found = subprocess.run(
        [binary("witness"), "get", f"http://{address}/"], capture_output=True, text=True, check=True
    )
    assert "I am web" in found.stdout


def test_pods_reach_the_api_and_nothing_outside_the_cluster(
    node_cluster: Cluster, web: Callable[..., str]
) -> None:
    assert "10.96.0.1" in web("dial", "kubernetes.default.svc:443")
    # An address that answers this machine is what proves something: its own, outside the pod network.
    with pytest.raises(KubectlFailed, match="timeout"):
        web("dial", f"10.244.0.1:{node_cluster.settings.registry_port}")
    before = dropped(node_cluster)
    with pytest.raises(KubectlFailed, match="timeout"):
        web("dial", "198.51.100.1:80")
    assert dropped(node_cluster) > before, "the guard is what dropped it, not a missing route"


def dropped(cluster: Cluster) -> int:
    """Packets that the guard kept from leaving this machine."""
    table = network.table_of(cluster)
    listed = json.loads(subprocess.check_output(["nft", "-j", "list", "chain", "inet", table, "forward"]))
    rules = [entry["rule"]["expr"] for entry in listed["nftables"] if "rule" in entry]
    return sum(part["counter"]["packets"] for rule in rules for part in rule if "counter" in part)


def test_accelerators_are_counted_and_the_product_label_pins(
    kubectl: Kubectl, namespace: str, image: str
) -> None:
    node = kubectl.items("nodes")[0]
    assert node["status"]["allocatable"]["sovereign.dev/accelerator"] == "8"
    assert node["metadata"]["labels"]["sovereign.dev/accelerator-product"] == "Embedded-CPU"
    for name, wanted, product in (("fits", "8", "Embedded-CPU"), ("elsewhere", "1", "Other-Product")):
        pod = a_pod(image, name, nodeSelector={"sovereign.dev/accelerator-product": product})
        pod["spec"]["containers"][0]["resources"] = {"limits": {"sovereign.dev/accelerator": wanted}}
        kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(pod))
    kubectl("-n", namespace, "wait", "pod/fits", "--for=condition=Ready", "--timeout=60s")
    for pod in kubectl.watch("-n", namespace, "pod", named("elsewhere"), seconds=30):
        conditions = {c["type"]: c for c in pod.get("status", {}).get("conditions", [])}
        if conditions.get("PodScheduled", {}).get("reason") == "Unschedulable":
            return
    pytest.fail("a pod for another product was not judged unschedulable")


def test_control_planes_may_run_beside_the_node_but_no_second_node(node_cluster: Cluster) -> None:
    name = f"test-{uuid.uuid4().hex[:8]}"
    try:
        with pytest.raises(ClusterError, match=f"--name {node_cluster.name}"):
            up(name, node=True)
        assert up(name).api_port != node_cluster.api_port
    finally:
        down(name)
    assert network.table_of(node_cluster) in subprocess.check_output(["nft", "list", "tables"], text=True)


def test_pods_survive_the_death_of_every_process_of_ours(
    node_cluster: Cluster, kubectl: Kubectl, namespace: str, web: Callable[..., str]
) -> None:
    """kill -9 of everything that is recorded, then `up`: the same cluster, its pods started anew."""
    everything = node_cluster.processes.all()
    for process in everything:
        os.kill(process.pid, signal.SIGKILL)
    assert awaited(lambda: not any(process.alive for process in everything), 10)
    assert up(node_cluster.name) == node_cluster
    if any(process.name == kuberay.PROCESS for process in everything):
        kuberay.start(node_cluster)  # `up` knows nothing of it, and other tests share this cluster

    def serves_again() -> bool:
        try:
            return "I am web" in web("get", f"http://web.{namespace}/")
        except KubectlFailed:
            return False

    assert awaited(serves_again, 120, interval=1.0)


def test_down_leaves_the_machine_as_it_was(node_cluster: Cluster) -> None:
    """Last of all cluster tests on purpose: it ends the cluster that they share."""
    traces = Traces(node_cluster)
    assert all(traces.found().values()), "the check below would prove nothing"
    recorded = json.loads((runtime.folder(node_cluster) / "tunables.json").read_text())
    forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    down(node_cluster.name)
    assert not any(traces.found().values()), traces.found()
    assert {name: (Path("/proc/sys") / name).read_text().strip() for name in recorded} == recorded
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == forwarding


class Traces:
    """What one node cluster can leave on a machine, by kind."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._processes = cluster.processes.all()
        self._ids = runtime._container_ids(cluster)
        self._sockets = [runtime._shim_socket(cluster, name) for name in self._ids]

    def found(self) -> dict[str, list[str]]:
        tables = subprocess.check_output(["nft", "list", "tables"], text=True).splitlines()
        own = network.table_of(self._cluster)
        ours = {own, f"{own}.outside", *policy.tables_of(self._cluster)}
        ours |= {name for _family, name in network.PROXY_TABLES[:1]}
        return {
            "processes": [process.name for process in self._processes if process.alive],
            "shims": [str(pid) for pid in runtime._shims(self._cluster)],
            "mounts": [str(path) for path in runtime.mounts_below(self._cluster.state_dir)],
            "cgroups": [str(path) for path in runtime._cgroups(self._ids)],
            "tables": [line for line in tables if line.split()[-1] in ours],
            "links": [
                path.name
                for path in Path("/sys/class/net").iterdir()
                if path.name in (network.BRIDGE, network.OUTSIDE_LINK)
            ],
            "network namespaces": [path.name for path in Path("/run/netns").glob(outside.NAMESPACE)],
            "shim sockets": [str(path) for path in self._sockets if path.exists()],
            "network results": [
                path.name
                for path in Path("/var/lib/cni/results").glob("*")
                if path.name.split("-")[-2] in self._ids
            ],
            "device plugins": [str(path) for path in (DEVICE_PLUGINS,) if path.exists()],
            "files": [str(path) for path in (self._cluster.state_dir,) if path.exists()],
        }
