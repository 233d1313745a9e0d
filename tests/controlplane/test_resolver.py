# SPDX-License-Identifier: Apache-2.0
"""The sealed resolver: the chart's Corefile and the chart's rights, our CoreDNS, and a real API server."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dev.binaries import binary
from dev.cluster import Cluster
from dev.cluster.control_plane import free_port
from tests.controlplane.api_server import PLURALS, ApiServer, Manifest, eventually
from tests.unit.charts.rendering import CHARTS, DIGEST_VALUES, render

PLURALS["Service"] = "api/v1:services"
A, PTR, TXT, AAAA = 1, 12, 16, 28
NO_SUCH_NAME = 3
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding")


@dataclass(frozen=True)
class Reply:
    """What a resolver said: its code, and how many records."""

    code: int
    records: int


@dataclass(frozen=True)
class Resolver:
    port: int

    def asked(self, name: str, kind: int = A) -> Reply:
        """Raises OSError where nobody answers within 2 s."""
        query = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0)
        for label in name.split("."):
            query += bytes([len(label)]) + label.encode()
        query += struct.pack(">BHH", 0, kind, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(2)
            asking.sendto(query, ("127.0.0.1", self.port))
            answer = asking.recv(4096)
        _id, flags, _questions, records, *_ = struct.unpack(">6H", answer[:12])
        return Reply(flags & 0xF, records)


@contextmanager
def a_namespace(api: ApiServer) -> Iterator[str]:
    name = f"resolver-{uuid.uuid4().hex[:6]}"
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    api.delete("Namespace", None, name)


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Iterator[ApiServer]:
    api = ApiServer(control_plane.kubeconfig)
    yield api
    api.close()


@pytest.fixture(scope="module")
def resolver(
    control_plane: Cluster, api: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Resolver]:
    folder = tmp_path_factory.mktemp("resolver")
    rendered = render()
    made: list[Manifest] = []
    with a_namespace(api) as namespace:
        for manifest in rendered.manifests:
            if manifest["kind"] in RIGHTS and manifest["metadata"]["name"] == "sovereign-resolver":
                made.append(_own(manifest, namespace))
                api.create(made[-1])
        corefile = rendered.one("ConfigMap", "sovereign-resolver")["data"]["Corefile"]
        access = folder / "kubeconfig"
        access.write_text(json.dumps(api.kubeconfig(api.token(namespace, "sovereign-resolver"))))
        with _running(folder, corefile, access) as running:
            yield running
        for manifest in made:
            if manifest["kind"] != "ServiceAccount":
                api.delete(manifest["kind"], None, manifest["metadata"]["name"])


def _own(manifest: Manifest, namespace: str) -> Manifest:
    """The chart's object, in this test's namespace or under a name of its own."""
    manifest = json.loads(json.dumps(manifest))
    if "namespace" in manifest["metadata"]:
        manifest["metadata"]["namespace"] = namespace
    else:
        manifest["metadata"]["name"] = namespace
    if "roleRef" in manifest:
        manifest["roleRef"]["name"] = namespace
        manifest["subjects"][0]["namespace"] = namespace
    return manifest


@contextmanager
def _running(folder: Path, corefile: str, access: Path) -> Iterator[Resolver]:
    """CoreDNS as its image runs it; only the ports and the way to the API server are this test's."""
    dns, health, ready = free_port(), free_port(), free_port()
    for fixed, own in (("8053", dns), ("8080", health), ("8181", ready)):
        assert f":{fixed}" in corefile
        corefile = corefile.replace(f":{fixed}", f":{own}")
    corefile = corefile.replace("pods disabled", f"kubeconfig {access}\n        pods disabled")
    corefile = corefile.replace("lameduck 5s", "lameduck 0s")
    (folder / "Corefile").write_text(corefile)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(binary("coredns")), "-conf", str(folder / "Corefile")], stdout=log, stderr=log
        )
    try:
        eventually(lambda: _is_ready(process, ready, folder / "log"), "the resolver is ready", 60)
        # It says so before its socket is bound, and a datagram for nobody is lost.
        eventually(lambda: _answers(Resolver(dns)), "the resolver answers", 20)
        yield Resolver(dns)
    finally:
        process.terminate()
        process.wait(20)


def _is_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as asking:
            asking.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
            return b" 200 " in asking.recv(64)
    except OSError:
        return False


def _answers(resolver: Resolver) -> bool:
    try:
        return resolver.asked("cluster.local").code == 0
    except OSError:
        return False


def test_names_of_the_cluster_are_answered_with_the_charts_rights(resolver: Resolver) -> None:
    assert resolver.asked("kubernetes.default.svc.cluster.local") == Reply(0, 1)
    assert resolver.asked("nobody.default.svc.cluster.local").code == NO_SUCH_NAME


def test_a_service_is_known_as_soon_as_it_is_there(resolver: Resolver, api: ApiServer) -> None:
    with a_namespace(api) as namespace:
        spec = {"selector": {"a": "b"}, "ports": [{"port": 80}]}
        head = {"apiVersion": "v1", "kind": "Service"}
        api.create({**head, "metadata": {"name": "head", "namespace": namespace}, "spec": spec})
        name = f"head.{namespace}.svc.cluster.local"
        eventually(lambda: resolver.asked(name) == Reply(0, 1), f"{name} is known", 30)


@pytest.mark.parametrize("kind", [A, AAAA, TXT])
@pytest.mark.parametrize(
    "name",
    [
        "probe.example",
        "huggingface.co",
        # A tunnel: what is to get out stands in the name.
        f"{'k3v9' * 12}.tunnel.probe.example",
        # What a search list makes of an outside name.
        "probe.example.cluster.local",
        "10-0-0-1.default.pod.cluster.local",
    ],
)
def test_no_other_name_exists(resolver: Resolver, name: str, kind: int) -> None:
    assert resolver.asked(name, kind) == Reply(NO_SUCH_NAME, 0)


def test_no_address_outside_has_a_name(resolver: Resolver) -> None:
    assert resolver.asked("10.2.0.192.in-addr.arpa", PTR) == Reply(NO_SUCH_NAME, 0)
    # 2001:db8::/32, whichever host of it.
    assert resolver.asked("0.1.8.b.d.0.1.0.0.2.ip6.arpa", PTR).records == 0


def test_helm_finds_an_address_for_the_resolver_and_keeps_it(control_plane: Cluster, api: ApiServer) -> None:
    chart = str(CHARTS / "sovereign-operator")
    with a_namespace(api) as namespace:
        command = [
            str(control_plane.helm), "--kubeconfig", str(control_plane.kubeconfig), "template", "x", chart,
            "--namespace", namespace, "--values", str(DIGEST_VALUES), "--set", "resolver.clusterIp=",
            "--dry-run=server", "-s", "templates/resolver.yaml",
        ]  # fmt: skip

        def address() -> str:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr
            [line] = [one for one in done.stdout.splitlines() if "clusterIP:" in one]
            return line.split('"')[1]

        own = api.get("Service", "default", "kubernetes")["spec"]["clusterIP"]
        first, _, last = own.rpartition(".")
        assert address() == f"{first}.{int(last) + 52}"
        spec = {
            "clusterIP": f"{first}.99",
            "selector": {"a": "b"},
            "ports": [{"port": 53, "protocol": "UDP"}],
        }
        release = {"meta.helm.sh/release-name": "x", "meta.helm.sh/release-namespace": namespace}
        metadata = {
            "name": "sovereign-resolver",
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "Helm"},
            "annotations": release,
        }
        api.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
        assert address() == f"{first}.99"
