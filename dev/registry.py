# SPDX-License-Identifier: Apache-2.0
"""A real registry (distribution) on loopback, for tests and benchmarks: one process, one folder, one port."""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from dev.binaries import binary


class RegistryDidNotStart(RuntimeError):
    """The text has the last lines of its log."""


class LocalRegistry:
    """Runs from `__enter__` to `__exit__`; what it stores stays in `folder`.

    Plain HTTP on 127.0.0.1, deletion enabled, relative upload addresses, no authentication unless `htpasswd`
    names a file (bcrypt, as `htpasswd -B` writes it) or `tls` names a certificate and its key.
    """

    def __init__(
        self, folder: Path, *, htpasswd: Path | None = None, tls: tuple[Path, Path] | None = None
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self._htpasswd = htpasswd
        self._tls = tls
        self._log = folder / "registry.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the registry was not started"
        return self._process.pid

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "config.json"  # JSON is YAML
        configuration.write_text(json.dumps(self._configuration()))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(binary("registry")), "serve", str(configuration)],
                env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """End the process; `start` brings it back on the same port with what it stored."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """As a power cut would; `start` brings it back."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def blob_path(self, digest: str) -> Path:
        """Where the registry keeps a blob: for tests that damage it."""
        hexadecimal = digest.removeprefix("sha256:")
        blobs = self.folder / "data/docker/registry/v2/blobs/sha256"
        return blobs / hexadecimal[:2] / hexadecimal / "data"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _configuration(self) -> dict[str, object]:
        http_section: dict[str, object] = {"addr": self.host, "secret": "loopback", "relativeurls": True}
        if self._tls:
            http_section["tls"] = {"certificate": str(self._tls[0]), "key": str(self._tls[1])}
        configuration: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder / "data")},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": http_section,
        }
        if self._htpasswd:
            configuration["auth"] = {"htpasswd": {"realm": "registry", "path": str(self._htpasswd)}}
        return configuration

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    pass
                if self._tls or self._answers():
                    return
            except OSError:
                time.sleep(0.02)
        ending = self._log.read_text(errors="replace")[-1000:]
        self.stop()
        raise RegistryDidNotStart(f"the registry does not answer at {self.host}: {ending}")

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status in (200, 401)
        finally:
            connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
