# SPDX-License-Identifier: Apache-2.0
"""The cluster as `kubectl` and `helm` reach it: namespaces, charts, and the way to the registry's writer."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sovereign_airgap.errors import ProgramFailed
from sovereign_airgap.install.programs import Programs

READER, WRITER = ("sovereign-registry", 5000), ("sovereign-registry-writer", 5001)
PUSH_SECRET = "sovereign-registry-push"  # noqa: S105  # a Secret's name
_RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
_HOST_PATH = {"pod-security.kubernetes.io/enforce": "privileged"}
# Puts a namespace with models under the chart's admission policies; the operator seals in no other.
_SEALED = {"sovereign.dev/sealed": "true"}
_ROLLOUT_SECONDS = 600
_CONNECT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that kubectl's current context names; `namespace` is the platform's own."""

    programs: Programs
    namespace: str

    def has_namespace(self, name: str) -> bool:
        return bool(self._kubectl("get", "namespace", name, "--ignore-not-found", "-o", "name").strip())

    def make_namespace(self, name: str, *, host_path: bool = False) -> None:
        """Makes one that is labelled for restricted pod security, and one for models as sealed.

        `host_path`: its pods may have hostPath volumes, for which pod security has no smaller word than
        privileged; the chart's admission policies say which ones. One that is there keeps its labels: they
        are for whoever made it to say.
        """
        labels = _RESTRICTED if name == self.namespace else _RESTRICTED | _SEALED
        if host_path:
            labels = labels | _HOST_PATH
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.programs.run("kubectl", "create", "-f", "-", stdin=json.dumps(manifest).encode())

    def install(self, name: str, chart: Path, values: Sequence[Path]) -> None:
        """Installs or upgrades the release `name`, and waits until its Deployments run."""
        files = [word for path in values for word in ("--values", str(path))]
        target = ("--namespace", self.namespace, "--timeout", f"{_ROLLOUT_SECONDS}s")
        self.programs.run("helm", "upgrade", "--install", name, str(chart), *target, *files, seconds=700)
        selector = ("-l", f"app.kubernetes.io/instance={name}")
        for deployment in self._kubectl("get", "deployments", *selector, "-o", "name").split():
            waiting = ("rollout", "status", deployment, f"--timeout={_ROLLOUT_SECONDS}s")
            self._kubectl(*waiting, seconds=_ROLLOUT_SECONDS + 30)

    def address(self, service: tuple[str, int]) -> str:
        """`<cluster IP>:<port>` of a Service, which nodes reach without DNS; raises ProgramFailed."""
        name, port = service
        found = self._kubectl("get", "service", name, "-o", "jsonpath={.spec.clusterIP}").strip()
        if not re.fullmatch(r"[0-9a-fA-F.:]+", found):
            raise ProgramFailed(
                f"Expected the Service {name} in {self.namespace} to have an address, found {found[:60]!a}; "
                "give the registry's own with --registry-address and --writer."
            )
        return f"[{found}]:{port}" if ":" in found else f"{found}:{port}"

    @contextlib.contextmanager
    def way_to(self, service: tuple[str, int]) -> Iterator[str]:
        """An address of the Service for this machine: its own, or a forwarded port where policies or the
        network keep this machine from it."""
        address = self.address(service)
        if _answers(address):
            yield address
            return
        name, port = service
        words = (
            "-n",
            self.namespace,
            "port-forward",
            "--address",
            "127.0.0.1",
            f"service/{name}",
            f":{port}",
        )
        with self.programs.running("kubectl", *words) as line:
            found = re.search(r"127\.0\.0\.1:([0-9]+)", line)
            if found is None:
                raise ProgramFailed(f"kubectl port-forward to {name} said {line.strip()!a:.200}.")
            yield f"127.0.0.1:{found[1]}"

    def login(self, address: str) -> bytes:
        """A docker config with the mirror's own login, for `address`; raises ProgramFailed."""
        text = self._kubectl("get", "secret", PUSH_SECRET, "-o", r"jsonpath={.data.\.dockerconfigjson}")
        try:
            entries: dict[str, Any] = json.loads(base64.b64decode(text, validate=True))["auths"]
            entry = next(iter(entries.values()))
        except (binascii.Error, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
            raise ProgramFailed(
                f"Expected a docker config in the Secret {PUSH_SECRET}, found something else; give one with "
                "--docker-config."
            ) from error
        return json.dumps({"auths": {address: entry}}).encode()

    def _kubectl(self, *arguments: str, seconds: float = 60.0) -> str:
        return self.programs.run("kubectl", "-n", self.namespace, *arguments, seconds=seconds)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS):
            return True
    except OSError:
        return False
