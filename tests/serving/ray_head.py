# SPDX-License-Identifier: Apache-2.0
"""A Ray head of its own for the serving tests, started and spoken to as in a pod: `ray start --block` with
token authentication, applications through the dashboard's REST API. All of it stays on this machine.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from dev import serving_env

# Generous: two cores may be shared with a Go build.
START = 300.0
DEPLOY = 900.0


class RayHead:
    """Context manager. `logs` is the folder with everything that Ray and vLLM wrote."""

    def __init__(self, python: Path, *, cpus: int) -> None:
        self._python = python
        self._cpus = cpus
        self._token = secrets.token_hex(32)
        # Ray's sockets lie below it, and the name of a socket may have 107 bytes.
        self._home = Path(tempfile.mkdtemp(prefix="sv-", dir="/tmp"))
        self._ports = free_ports(7)
        self.http = f"http://127.0.0.1:{self._ports[-1]}"
        self.dashboard = f"http://127.0.0.1:{self._ports[-2]}"
        self.logs = self._home / "ray" / "session_latest" / "logs"

    def __enter__(self) -> Self:
        gcs, agent, agent_grpc, environment, metrics, dashboard, _ = map(str, self._ports)
        command = [
            *(str(self._python), "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address", "127.0.0.1", "--port", gcs),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard),
            # Fixed: with dynamic ports the raylet waits 15 s for its agents to write them down, then dies.
            *("--dashboard-agent-listen-port", agent, "--dashboard-agent-grpc-port", agent_grpc),
            *("--runtime-env-agent-port", environment, "--metrics-export-port", metrics),
            *("--num-cpus", str(self._cpus), "--object-store-memory", "100000000"),
            *("--temp-dir", str(self._home / "ray")),
        ]
        with (self._home / "head.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=serving_env.variables(self._home) | self._ray_environment(),
                cwd=self._home,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._until(lambda: self.get("/api/serve/applications/") is not None, START, "the dashboard")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # `ray start --block` ends its processes when it is asked to end.
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def _ray_environment(self) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            # Ray lets its workers step back behind every other process; beside a compiler they stand still.
            "RAY_worker_niceness": "0",
        }

    def deploy(self, arguments: dict[str, object]) -> str:
        """Puts the application in place of the one before; its status once that is settled.

        RUNNING, or DEPLOY_FAILED with the message.
        """
        name = str(arguments["model_id"])
        application = {
            "name": name,
            "import_path": "sovereign_serving.app:build",
            "route_prefix": "/",
            "args": arguments,
        }
        config = {
            "proxy_location": "EveryNode",
            "http_options": {"host": "127.0.0.1", "port": self._ports[-1]},
            "applications": [application],
        }
        answer = self._ask("PUT", "/api/serve/applications/", config)
        assert answer.status_code == 200, answer.text
        settled = ""

        def is_settled() -> bool:
            nonlocal settled
            state = (self.get("/api/serve/applications/") or {"applications": {}})["applications"].get(name)
            if state is None or state["status"] not in ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY"):
                return False
            settled = f"{state['status']} {state['message']}".strip()
            return True

        self._until(is_settled, DEPLOY, f"the application {name}")
        return settled

    def get(self, path: str) -> dict[str, dict[str, dict[str, str]]] | None:
        """The dashboard's answer; None while there is none."""
        try:
            answer = self._ask("GET", path)
        except httpx2.TransportError:
            return None
        return dict(answer.json()) if answer.status_code == 200 else None

    def _ask(self, method: str, path: str, body: object = None) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self._token}"}
        return httpx2.request(method, self.dashboard + path, json=body, headers=headers, timeout=120)

    def log_lines(self, words: str) -> list[str]:
        """Every line with these words, of all logs."""
        return [
            line
            for file in self.logs.rglob("*")
            if file.is_file()
            for line in file.read_text(errors="replace").splitlines()
            if words in line
        ]

    def _until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            log = (self._home / "head.log").read_text(errors="replace")
            assert self._process.poll() is None, f"Ray ended before {what} was there:\n{log}"
            assert time.monotonic() < deadline, f"{what} is not there after {seconds:.0f} s:\n{log}"
            time.sleep(0.5)


def free_ports(number: int) -> list[int]:
    """Ports that nothing listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
