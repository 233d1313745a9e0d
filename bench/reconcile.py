# SPDX-License-Identifier: Apache-2.0
"""`make bench-reconcile`: 500 SovereignModels through the operator, against as many bare server-side applies.

A real API server (the embedded control plane), a real registry with one small artifact, KubeRay's kinds
without a KubeRay: a model is handled when its policies and its RayService exist and its status says so.
Then the world is left alone for some resyncs, and what the API server is still asked is counted: no write.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from kubernetes.aio import client as kube
from kubernetes.aio import config as kubeconfig
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.resource import Resource
from rich.console import Console
from rich.table import Table

from bench import api_requests, stage
from bench.api_requests import Requests
from bench.contestants import VENV
from bench.measure import MIB
from dev.cluster import Cluster, down, up
from dev.hub import HubServer
from dev.registry import LocalRegistry, free_port

ROOT = Path(__file__).resolve().parent.parent
NAME = "bench-reconcile"
NAMESPACE = "models"
SYSTEM = "sovereign-system"
ACCELERATOR = "example.com/accelerator"
RESYNC_SECONDS = 20
QUIET_SECONDS = 8.0
NO_PROGRESS_SECONDS = 60.0
IN_FLIGHT = 10

Json = dict[str, object]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.reconcile", description=__doc__)
    parser.add_argument("--objects", type=int, default=500, help="how many SovereignModels (default: 500)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep the operator's log there")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through every `finally`: nothing stays behind
    with tempfile.TemporaryDirectory(prefix="bench-reconcile-") as folder:
        work = Path(folder)
        with LocalRegistry(work / "registry") as registry, a_cluster(console) as cluster:
            console.print("mirroring a small model")
            reference = mirror(work, registry)
            prepare(cluster)
            with heartbeats(cluster):
                result = race(cluster, registry, reference, options, work, console)
    console.print(result.table())
    report = result.as_json()
    print(json.dumps(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if result.steady_writes:
        console.print("[red]The steady state is not steady: it writes.")
        return 1
    return 0


@dataclass(frozen=True)
class Result:
    objects: int
    bare_seconds: float
    operator_seconds: float
    operator_writes: Requests
    steady_seconds: float
    steady_writes: Requests
    steady_reads: Requests

    @property
    def writes_each(self) -> float:
        return self.operator_writes.total() / self.objects

    def table(self) -> Table:
        table = Table(title=f"{self.objects} objects")
        for column in ("", "s", "objects/s", "writes/s", "writes for each"):
            table.add_column(column, justify="left" if not column else "right")
        bare = self.objects / self.bare_seconds
        ours = self.objects / self.operator_seconds
        table.add_row("bare applies", f"{self.bare_seconds:.1f}", f"{bare:.0f}", f"{bare:.0f}", "1")
        table.add_row(
            "operator",
            f"{self.operator_seconds:.1f}",
            f"{ours:.1f}",
            f"{self.operator_writes.total() / self.operator_seconds:.0f}",
            f"{self.writes_each:.1f}",
        )
        table.caption = (
            f"Steady state, {self.steady_seconds:.0f} s: {self.steady_writes.total()} writes, "
            f"{self.steady_reads.total()} reads. {dict(self.steady_writes) or ''}"
        )
        return table

    def as_json(self) -> Json:
        def plain(requests: Requests) -> Json:
            return {f"{verb} {what}": count for (verb, what), count in sorted(requests.items())}

        writes_per_second = self.operator_writes.total() / self.operator_seconds
        return {
            "benchmark": "reconcile",
            "objects": self.objects,
            "bareSeconds": round(self.bare_seconds, 2),
            "operatorSeconds": round(self.operator_seconds, 2),
            "objectsRatio": round(self.bare_seconds / self.operator_seconds, 3),
            "writesRatio": round(writes_per_second / (self.objects / self.bare_seconds), 3),
            "operatorWrites": plain(self.operator_writes),
            "steadySeconds": round(self.steady_seconds),
            "steadyWrites": plain(self.steady_writes),
            "steadyReads": plain(self.steady_reads),
        }


def race(
    cluster: Cluster,
    registry: LocalRegistry,
    reference: str,
    options: argparse.Namespace,
    work: Path,
    console: Console,
) -> Result:
    count: int = options.objects
    console.print(f"{count} bare server-side applies")
    bare = asyncio.run(apply_all(cluster, [a_model(number, reference) for number in range(count)]))
    before = api_requests.snapshot(cluster.kubectl)
    console.print("the operator")
    with operator(cluster, registry, work, options.log) as port:
        await_health(port)
        begun = time.monotonic()
        await_all_handled(cluster, count, begun, console)
        seconds = time.monotonic() - begun
        await_quiet(cluster)
        after = api_requests.snapshot(cluster.kubectl)
        console.print(f"leaving the world alone for {3 * RESYNC_SECONDS} s")
        time.sleep(3 * RESYNC_SECONDS)  # the very thing that is measured: what happens when nothing happens
        later = api_requests.snapshot(cluster.kubectl)
    steady = later - after
    return Result(
        objects=count,
        bare_seconds=bare,
        operator_seconds=seconds,
        operator_writes=api_requests.writes(after - before),
        steady_seconds=3 * RESYNC_SECONDS,
        steady_writes=api_requests.writes(steady),
        steady_reads=api_requests.reads(steady),
    )


@contextmanager
def a_cluster(console: Console) -> Iterator[Cluster]:
    console.print("starting a control plane")
    try:
        yield up(NAME, progress=lambda line: console.print(f"  {line}"))
    finally:
        down(NAME)


def mirror(work: Path, registry: LocalRegistry) -> str:
    """One small artifact, by our own data plane; returns its reference without the host."""
    made = stage.build(work, size=MIB, files=1)
    with HubServer(made.hub_folder) as hub:
        subprocess.run(
            [
                *(str(VENV / "sovereign-airgap"), "mirror", f"hf://{stage.REPO}@{hub.commit(stage.REPO)}"),
                *(f"oci://{registry.host}", "--plain-http", "--endpoint", hub.endpoint),
                *("--progress", "none", "--result-file", str(work / "result.json")),
            ],
            check=True,
        )
    digest = json.loads((work / "result.json").read_text())["digest"]
    return f"models/{stage.REPO}@{digest}"


def prepare(cluster: Cluster) -> None:
    """Kinds, namespaces and a node that has room for everything; no kubelet stands behind it."""
    for path in (ROOT / "crds", ROOT / "dev/kuberay/crds.yaml"):
        kubectl(cluster, "apply", "--server-side", "-f", str(path))
    kubectl(cluster, "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    for namespace in (NAMESPACE, SYSTEM):
        kubectl(cluster, "create", "namespace", namespace)
    node: Json = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "bench", "labels": {"nvidia.com/gpu.product": "BENCH"}},
    }
    kubectl(cluster, "create", "-f", "-", given=json.dumps(node))
    beat(cluster)


def beat(cluster: Cluster) -> None:
    """What a kubelet would say, so that the node counts as ready."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    room = {"cpu": "100k", "memory": "1Pi", "pods": "100k", ACCELERATOR: "8"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
    status = {"status": {"capacity": room, "allocatable": room, "conditions": [ready]}}
    kubectl(cluster, "patch", "node", "bench", "--subresource=status", "-p", json.dumps(status))


@contextmanager
def heartbeats(cluster: Cluster) -> Iterator[None]:
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(10):
            beat(cluster)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def a_model(number: int, reference: str) -> Json:
    return {
        "apiVersion": "sovereign.dev/v1alpha1",
        "kind": "SovereignModel",
        "metadata": {"name": f"model-{number:04}", "namespace": NAMESPACE},
        "spec": {
            "source": {"artifact": {"reference": reference}},
            "serving": {
                "image": f"registry.example/serving@sha256:{'0' * 64}",
                "parallelism": {"tensor": 1},
            },
            "placement": {"accelerator": {"resource": ACCELERATOR, "product": "BENCH", "perNode": 1}},
        },
    }


async def apply_all(cluster: Cluster, manifests: list[Json]) -> float:
    """Bare server-side applies through the client that the operator uses; returns the seconds."""
    await kubeconfig.load_kube_config(config_file=str(cluster.kubeconfig))
    async with kube.ApiClient() as api:
        client = DynamicClient(api)
        kind = Resource(
            prefix="apis",
            group="sovereign.dev",
            api_version="v1alpha1",
            kind="SovereignModel",
            name="sovereignmodels",
            namespaced=True,
            client=client,
        )
        gate = asyncio.Semaphore(IN_FLIGHT)

        async def one(manifest: Json) -> None:
            async with gate:
                await client.server_side_apply(
                    kind, body=manifest, namespace=NAMESPACE, field_manager="bench", serialize=False
                )

        begun = time.monotonic()
        await asyncio.gather(*(one(manifest) for manifest in manifests))
        return time.monotonic() - begun


@contextmanager
def operator(cluster: Cluster, registry: LocalRegistry, work: Path, log: Path | None) -> Iterator[int]:
    """The operator as a process beside the cluster; yields the port of its health endpoint."""
    config = work / "operator.yaml"
    image = f"registry.example/airgap@sha256:{'0' * 64}"
    config.write_text(
        yaml.safe_dump(
            {
                "systemNamespace": SYSTEM,
                "registry": {"host": registry.host, "writer": registry.host, "plainHttp": True},
                "registryPods": {"namespace": SYSTEM},
                "images": {"airgap": image},
                "seal": "Report",  # there is no kubelet, so nothing can be probed
                "resyncSeconds": RESYNC_SECONDS,
            }
        )
    )
    port = free_port()
    with (log or work / "operator.log").open("wb") as stream:
        process = subprocess.Popen(
            [
                *(str(VENV / "sovereign-operator"), "--config", str(config), "--log-format", "plain"),
                *("--liveness", f"http://127.0.0.1:{port}/healthz"),
            ],
            env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
            stdout=stream,
            stderr=stream,
        )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(30)


def await_health(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise TimeoutError("the operator's health endpoint does not answer")


def await_all_handled(cluster: Cluster, count: int, begun: float, console: Console) -> None:
    most, since = -1, time.monotonic()
    while (now := handled(cluster)) < count:
        if now > most:
            most, since = now, time.monotonic()
        if time.monotonic() - since > NO_PROGRESS_SECONDS:
            said = 'jsonpath={.items[0].status.conditions[?(@.type=="Ready")].message}'
            why = kubectl(cluster, "get", "sovereignmodels", "-n", NAMESPACE, "-o", said)
            raise RuntimeError(f"{count - now} models are not handled and nothing moves: {why}")
        console.print(f"  {count - now} left after {time.monotonic() - begun:.0f} s")
        time.sleep(1)


def handled(cluster: Cluster) -> int:
    """Models whose RayService exists; when all do, those whose status is of the current generation."""
    services = kubectl(cluster, "get", "rayservices", "-n", NAMESPACE, "-o", "name").split()
    told = 'jsonpath={range .items[*]}{.status.observedGeneration}{"\\n"}{end}'
    models = kubectl(cluster, "get", "sovereignmodels", "-n", NAMESPACE, "-o", told).splitlines()
    observed = sum(bool(line.strip()) for line in models)
    return min(len(services), observed)


def await_quiet(cluster: Cluster) -> None:
    """Until nothing was written for some seconds: late status writes belong to the work, not to the rest."""
    deadline = time.monotonic() + 300
    seen = api_requests.writes(api_requests.snapshot(cluster.kubectl))
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < QUIET_SECONDS:
        time.sleep(1)
        now = api_requests.writes(api_requests.snapshot(cluster.kubectl))
        if now != seen:
            seen, quiet_since = now, time.monotonic()
        if time.monotonic() > deadline:
            return  # what goes on writing is reported as writes of the steady state


def kubectl(cluster: Cluster, *arguments: str, given: str | None = None) -> str:
    done = subprocess.run(
        [*cluster.kubectl, *arguments], input=given, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
