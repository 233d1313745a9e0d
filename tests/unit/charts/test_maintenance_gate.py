# SPDX-License-Identifier: Apache-2.0
"""Garbage collection against the real registry: rendered configurations, gate and collector, on loopback."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.charts.rendering import CHARTS, built, render

GATE = CHARTS / "sovereign-operator" / "files" / "maintenance_gate.py"
CONTAINER_PORTS = {"writer": 5001, "reader": 5000}
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def load_gate() -> ModuleType:
    specification = importlib.util.spec_from_file_location("maintenance_gate", GATE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.05)


class Site:
    """The registry of the chart, its paths and ports moved to this machine."""

    def __init__(self, folder: Path) -> None:
        rendered = render()
        self.registry = built("registry")
        self.root = folder / "models"
        self.root.mkdir()
        self.lock = self.root / "closed-for-garbage-collection"
        server = rendered.one("Secret", "sovereign-registry-server")["data"]
        push = rendered.one("Secret", "sovereign-registry-push")["data"][".dockerconfigjson"]
        [entry] = json.loads(base64.b64decode(push))["auths"].values()
        self.authorization = {"Authorization": f"Basic {entry['auth']}"}
        self.environment = {
            "PATH": os.environ["PATH"],
            "OTEL_TRACES_EXPORTER": "none",
            "REGISTRY_HTTP_SECRET": base64.b64decode(server["http-secret"]).decode(),
        }
        (folder / "secret").mkdir()
        (folder / "secret" / "htpasswd").write_bytes(base64.b64decode(server["htpasswd"]))
        self.ports = {"writer": free_port(), "reader": free_port()}
        self.configs: dict[str, Path] = {}
        for name, text in rendered.one("ConfigMap", "sovereign-registry-config")["data"].items():
            listener = name.removesuffix(".yml")
            text = text.replace("/var/lib/registry", str(self.root))
            text = text.replace("/etc/registry-secret", str(folder / "secret"))
            text = text.replace(f":{CONTAINER_PORTS[listener]}", f"127.0.0.1:{self.ports[listener]}")
            self.configs[listener] = folder / name
            self.configs[listener].write_text(text)

    @contextmanager
    def running(self, listener: str) -> Iterator[None]:
        process = subprocess.Popen(
            [str(self.registry), "serve", str(self.configs[listener])],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(f"the {listener} to answer", lambda: self.status(listener, "/v2/") != 0)
            yield
        finally:
            process.terminate()
            process.wait(timeout=20)

    def request(
        self, listener: str, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[listener], timeout=10)
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}
        finally:
            connection.close()

    def status(self, listener: str, path: str, method: str = "GET") -> int:
        try:
            return self.request(listener, method, path, {"Accept": MANIFEST_TYPE})[0]
        except OSError:
            return 0

    def push(self, body: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        status, headers = self.request("writer", "POST", "/v2/m/blobs/uploads/", self.authorization)
        assert status == 202
        location = headers["location"]
        assert location.startswith("/"), "relativeurls"
        mark = "&" if "?" in location else "?"
        status, _ = self.request(
            "writer", "PUT", f"{location}{mark}digest={digest}", self.authorization, body
        )
        assert status == 201
        return digest

    def push_manifest(self, reference: str, *bodies: bytes) -> str:
        config, *layers = [
            {"mediaType": "application/octet-stream", "digest": self.push(body), "size": len(body)}
            for body in bodies
        ]
        text = json.dumps(
            {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
        ).encode()
        status, _ = self.request(
            "writer",
            "PUT",
            f"/v2/m/manifests/{reference}",
            {**self.authorization, "Content-Type": MANIFEST_TYPE},
            text,
        )
        assert status == 201
        return f"sha256:{hashlib.sha256(text).hexdigest()}"

    @contextmanager
    def gate(self, marker: Path, quiet: float = 0) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            [
                sys.executable, "-I", str(GATE), "close", "--root", str(self.root), "--lock", str(self.lock),
                "--marker", str(marker), "--url", f"http://127.0.0.1:{self.ports['writer']}/v2/",
                "--quiet", str(quiet), "--settle", "0",
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(timeout=20)

    def collect(self) -> subprocess.CompletedProcess[str]:
        pod = render().one("CronJob", "sovereign-registry-gc")["spec"]["jobTemplate"]["spec"]["template"][
            "spec"
        ]
        arguments = [a.replace("/etc/registry/writer.yml", str(self.configs["writer"])) for a in
                     pod["containers"][0]["args"]]  # fmt: skip
        return subprocess.run(
            [str(self.registry), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_pushing_needs_the_generated_password_and_reading_needs_none(site: Site) -> None:
    with site.running("writer"), site.running("reader"):
        assert site.status("writer", "/v2/") == 401
        assert site.status("writer", "/v2/m/blobs/uploads/", "POST") == 401
        digest = site.push(b"weights")
        assert site.status("reader", f"/v2/m/blobs/{digest}") == 200
        assert site.status("reader", "/v2/m/blobs/uploads/", "POST") == 405
        assert site.status("reader", f"/v2/m/blobs/{digest}", "DELETE") == 405


def test_collection_closes_the_writer_serves_readers_and_opens_again(site: Site, tmp_path: Path) -> None:
    with site.running("writer"), site.running("reader"):
        kept = site.push_manifest("tagged", b"config", b"weights")
        loose = site.push_manifest("moved", b"config 2", b"old weights")
        replaced = site.push_manifest("moved", b"config 3", b"new weights")
        orphan = site.push(b"nobody names this")
        marker = tmp_path / "closed"
        with site.gate(marker) as gate:
            wait_for("the gate to be closed", marker.exists)
            assert site.status("writer", "/v2/") == 503
            assert site.status("reader", f"/v2/m/manifests/{kept}") == 200
            done = site.collect()
            assert done.returncode == 0, done.stderr
            gate.send_signal(signal.SIGTERM)
            assert gate.wait(timeout=20) == 0
        wait_for("the writer to be open", lambda: site.status("writer", "/v2/") == 401)
        assert not site.lock.exists()
        assert site.status("reader", f"/v2/m/blobs/{orphan}") == 404
        assert site.status("reader", f"/v2/m/manifests/{loose}") == 404
        for digest in (kept, replaced):
            assert site.status("reader", f"/v2/m/manifests/{digest}") == 200
        # What was collected can be pushed again: nothing remembers that it was there.
        assert site.push(b"nobody names this") == orphan
        assert site.status("reader", f"/v2/m/blobs/{orphan}") == 200


def test_a_fresh_volume_is_collected_without_an_error(site: Site, tmp_path: Path) -> None:
    with site.running("writer"), site.gate(tmp_path / "closed"):
        wait_for("the gate to be closed", (tmp_path / "closed").exists)
        done = site.collect()
        assert done.returncode == 0, done.stderr


def test_the_gate_waits_for_a_running_upload(site: Site, tmp_path: Path) -> None:
    with site.running("writer"):
        status, _ = site.request("writer", "POST", "/v2/m/blobs/uploads/", site.authorization)
        assert status == 202
        uploads = [
            path for path in (site.root / "docker").rglob("*") if path.is_file() and "_uploads" in path.parts
        ]
        assert uploads
        marker = tmp_path / "closed"
        with site.gate(marker, quiet=3600) as gate:
            with pytest.raises(subprocess.TimeoutExpired):
                gate.wait(timeout=1.5)
            assert not site.lock.exists()
            assert not marker.exists()
            for path in uploads:
                os.utime(path, (time.time() - 7200,) * 2)
            wait_for("the gate to be closed", marker.exists)


def test_a_writer_that_is_down_does_not_count_as_closed(site: Site, tmp_path: Path) -> None:
    marker = tmp_path / "closed"
    with site.gate(marker) as gate:
        wait_for("the lock", site.lock.exists)
        with pytest.raises(subprocess.TimeoutExpired):
            gate.wait(timeout=1.5)
        assert not marker.exists()
        with site.running("writer"):
            wait_for("the gate to be closed", marker.exists)


def test_two_collections_do_not_share_a_gate(site: Site, tmp_path: Path) -> None:
    with site.running("writer"), site.gate(tmp_path / "first"):
        wait_for("the first gate", (tmp_path / "first").exists)
        with site.gate(tmp_path / "second") as second:
            assert second.wait(timeout=20) == 1
        assert site.lock.exists()
        assert site.status("writer", "/v2/") == 503


def test_only_a_lock_that_nobody_holds_is_removed(tmp_path: Path) -> None:
    gate = load_gate()
    lock = tmp_path / "lock"
    gate.reopen(lock)  # nothing to do is fine
    with gate.closed(lock):
        gate.reopen(lock)
        assert lock.exists()
    assert not lock.exists()
    lock.touch()
    gate.reopen(lock)
    assert not lock.exists()


def test_a_gate_whose_file_was_removed_under_it_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = load_gate()
    lock = tmp_path / "lock"
    flock = fcntl.flock
    calls: list[int] = []

    def remove_once(descriptor: int, how: int) -> None:
        if not calls:
            lock.unlink()
        calls.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(gate.fcntl, "flock", remove_once)
    with gate.closed(lock):
        assert lock.exists()
        assert len(calls) == 2
