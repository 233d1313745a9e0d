# SPDX-License-Identifier: Apache-2.0
"""A site for the operator's tests: our CRD, the chart's account and roles, a registry, and the process.

The operator runs as the chart's ServiceAccount with the chart's rights, in a process of its own, against
the real API server. There is no kubelet and no KubeRay: the tests play both.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import yaml

from dev.binaries import binary
from dev.cluster import Cluster
from tests.cluster.audit import AuditLog
from tests.controlplane.api_server import ApiServer, Manifest, condition, eventually
from tests.controlplane.kuberay_player import KubeRayPlayer
from tests.controlplane.registry_double import RegistryDouble

ROOT = Path(__file__).resolve().parents[2]
REVISION = "41bd4c9e7e4fb318ca40e721131d4933966c2cc1"
NEXT_REVISION = "0123456789abcdef0123456789abcdef01234567"
IMAGE = "registry.example/serving@sha256:" + "5" * 64
RESOURCE = "sovereign.dev/accelerator"
PRODUCT_LABEL = "sovereign.dev/accelerator-product"
RIGHTS = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ServiceAccount"}


def install_crds(api: ApiServer, kuberay: bool = True) -> None:
    """Our CRD, and RayService and RayCluster: KubeRay's own where they are at hand, else the stand-in's."""
    apply_crds(api, sorted((ROOT / "crds").glob("*.yaml")))
    if kuberay:
        install_kuberay(api)


def install_kuberay(api: ApiServer) -> None:
    real = sorted((ROOT.parent / "shared" / "kuberay-crds").glob("*.yaml"))
    apply_crds(api, real or [ROOT / "dev" / "kuberay" / "crds.yaml"])


def apply_crds(api: ApiServer, paths: list[Path]) -> None:
    for path in paths:
        for document in yaml.load_all(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if document:
                apply_crd(api, document)


def apply_crd(api: ApiServer, document: Manifest) -> None:
    name = document["metadata"]["name"]
    if condition(api.get("CustomResourceDefinition", None, name), "Established").get("status") == "True":
        return  # another test of this session installed it
    query = "?fieldManager=test&force=true"
    path = api.path("CustomResourceDefinition", None, name)
    api.call("PATCH", path + query, document, **{"Content-Type": "application/apply-patch+yaml"})
    eventually(
        lambda: (
            condition(api.get("CustomResourceDefinition", None, name), "Established").get("status") == "True"
        ),
        f"{name} is established",
        120,
    )
    group, version = document["spec"]["group"], document["spec"]["versions"][0]["name"]
    plural = document["spec"]["names"]["plural"]
    eventually(lambda: api.serves(f"/apis/{group}/{version}/{plural}"), f"{plural} are served", 120)


class Site:
    """One model namespace and one system namespace of their own, so that tests do not meet."""

    def __init__(self, cluster: Cluster, folder: Path, registry: RegistryDouble) -> None:
        self.cluster, self.folder, self.registry = cluster, folder, registry
        self.api = ApiServer(cluster.kubeconfig)
        tag = uuid.uuid4().hex[:6]
        self.system, self.models = f"system-{tag}", f"models-{tag}"
        self.product = f"Product-{tag}"
        self.settings: dict[str, Any] = {}
        self.nodes: list[str] = []
        self._over = threading.Event()
        self._beating = threading.Lock()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        for namespace in (self.system, self.models):
            self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for namespace in (self.system, self.models):
            # No pod is taken before, and on a busy machine its controller takes its time.
            eventually(
                lambda: self.api.get("ServiceAccount", namespace, "default"),  # noqa: B023 (called at once)
                f"the account of {namespace} is there",
            )

    def install(self, **values: Any) -> None:
        """The chart's rights, and its configuration with this site's registry in it."""
        command = [
            str(binary("helm")), "template", "sovereign", str(ROOT / "charts" / "sovereign-operator"),
            "--namespace", self.system, "--set", f"watchNamespaces={{{self.models}}}",
        ]  # fmt: skip
        command += ["-f", str(next((ROOT / "charts" / "sovereign-operator" / "ci").glob("*.yaml")))]
        for key, value in values.items():
            command += ["--set", f"{key}={value}"]
        rendered = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        for document in filter(None, yaml.safe_load_all(rendered)):
            if document["kind"] in RIGHTS:
                self._allow(document)
            if document["kind"] == "ConfigMap" and "config.yaml" in document["data"]:
                self.settings = yaml.safe_load(document["data"]["config.yaml"])
        self.settings["registry"] |= {"host": self.registry.host, "plainHttp": True}
        self.settings |= {"productLabel": PRODUCT_LABEL, "resyncSeconds": 2, "deletionSeconds": 600}
        self.settings["externalSources"]["allowed"] = True
        # No kubelet runs the pods of a probe here; the tests of the seal play one and ask for it.
        self.settings |= {"seal": "Report", "admission": False, "probe": {}}

    def _allow(self, document: Manifest) -> None:
        """Cluster-wide names are made this site's own."""
        metadata = document["metadata"]
        if document["kind"].startswith("Cluster"):
            metadata["name"] += f"-{self.system}"
            if "roleRef" in document:
                document["roleRef"]["name"] += f"-{self.system}"
        else:
            metadata.setdefault("namespace", self.system)
        self.api.create(document)

    @classmethod
    @contextmanager
    def opened(cls, cluster: Cluster, folder: Path, kuberay: bool = True) -> Iterator[Site]:
        """A site with our CRD and the chart's rights, cleared away afterwards."""
        with RegistryDouble() as registry:
            site = cls(cluster, folder, registry)
            try:
                install_crds(site.api, kuberay)
                site.install()
                yield site
            finally:
                site.clean()
                site.api.close()

    @contextmanager
    def operator(self, wait: bool = True) -> Iterator[Operator]:
        process = Operator(self)
        try:
            if wait:
                process.wait_until_alive()
            yield process
        finally:
            process.end()

    def player(self, name: str = "tiny") -> KubeRayPlayer:
        return KubeRayPlayer(self.api, self.models, name)

    def model(self, name: str = "tiny") -> Manifest:
        return self.api.get("SovereignModel", self.models, name)

    def create_model(self, name: str = "tiny", **spec: Any) -> Manifest:
        return self.api.create(self.manifest(name, **spec))

    def manifest(self, name: str = "tiny", **spec: Any) -> Manifest:
        wanted = {
            "source": {"huggingFace": {"repo": "org/tiny", "revision": REVISION}},
            "serving": {
                "image": IMAGE,
                "device": "cpu",
                "parallelism": {"data": 2, "expert": True},
                "maxModelLen": 256,
            },
            "placement": {
                "accelerator": {"resource": RESOURCE, "product": self.product, "perNode": 1},
                "tolerations": [{"key": "test", "operator": "Exists"}],
            },
        }
        return {
            "apiVersion": "sovereign.dev/v1alpha1",
            "kind": "SovereignModel",
            "metadata": {"name": name, "namespace": self.models},
            "spec": wanted | spec,
        }

    def add_node(self, name: str = "") -> str:
        """A node with eight accelerators, tainted so that no other pod is bound to it: none would run."""
        node = name or f"node-{uuid.uuid4().hex[:6]}"
        self.api.create(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": node, "labels": {PRODUCT_LABEL: self.product}},
                "spec": {"taints": [{"key": "test", "value": "only", "effect": "NoSchedule"}]},
            }
        )
        amounts = {"cpu": "64", "memory": "256Gi", "pods": "110", RESOURCE: "8"}
        self.api.patch("Node", None, node, self._heartbeat(capacity=amounts, allocatable=amounts), "status")
        self.nodes.append(node)
        if not self._heart.is_alive():
            self._heart.start()
        return node

    def remove_node(self, name: str) -> None:
        with self._beating:
            self.nodes.remove(name)
            self.api.delete("Node", None, name)

    @staticmethod
    def _heartbeat(**status: Any) -> Manifest:
        ready = KubeRayPlayer.condition("Ready", "True", "KubeletReady")
        beat = {"lastHeartbeatTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        return {"status": {"conditions": [ready | beat], **status}}

    def _beat(self) -> None:
        """Plays the kubelet's heartbeat: without it the node controller calls a node lost after 40 s."""
        api = ApiServer(self.cluster.kubeconfig)
        while not self._over.wait(8):
            with self._beating:
                for node in self.nodes:
                    with contextlib.suppress(httpx2.TransportError):  # a test may restart the API server
                        api.patch("Node", None, node, self._heartbeat(), "status")
        api.close()

    @property
    def user(self) -> str:
        return f"system:serviceaccount:{self.system}:sovereign-operator"

    def until(self, kind: str, reason: str, name: str = "tiny", seconds: float = 90) -> Manifest:
        """The model, once this condition has this reason."""
        found: Manifest = {}

        def look() -> bool:
            nonlocal found
            found = self.model(name)
            return condition(found, kind).get("reason") == reason

        try:
            eventually(look, f"{kind} has reason {reason}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; instead: {condition(found, kind)}") from None
        return found

    def serve(self, name: str = "tiny", **spec: Any) -> Manifest:
        """A model on its whole way to Ready, with the mirror, KubeRay and the kubelet played."""
        self.registry.publish("models/org/tiny", REVISION)
        self.create_model(name, **spec)
        eventually(lambda: self.player(name).service(), "the RayService is there")
        self.player(name).start()
        return self.until("Ready", "AllChecksPassed", name)

    def mirror(self, revision: str) -> None:
        """What a mirror does when it is done: the artifact is in the registry, and the Job's pod says so."""
        job = eventually(self.mirror_jobs, "there is a mirror Job")[0]["metadata"]["name"]
        eventually(lambda: self.job_pods(job), "the Job has a pod")
        self.registry.publish("models/org/tiny", revision)
        self.end_job_pod(job, {"reason": "Mirrored", "message": "done"}, exit_code=0)

    def mirror_jobs(self) -> list[Manifest]:
        return self.api.list("Job", self.system, "sovereign.dev/component=mirror")

    def job_pods(self, job: str) -> list[Manifest]:
        return self.api.list("Pod", self.system, f"batch.kubernetes.io/job-name={job}")

    def end_job_pod(self, job: str, result: Manifest | str, exit_code: int) -> None:
        """Plays the kubelet at the end of a mirror: the container left this termination message."""
        text = result if isinstance(result, str) else json.dumps(result)
        ended = {"exitCode": exit_code, "reason": "Error" if exit_code else "Completed", "message": text}
        pods = [pod for pod in self.job_pods(job) if pod["status"]["phase"] == "Pending"]
        for pod in pods:
            container = pod["spec"]["containers"][0]
            status = {
                "phase": "Failed" if exit_code else "Succeeded",
                "containerStatuses": [
                    {
                        "name": container["name"],
                        "image": container["image"],
                        "imageID": "",
                        "ready": False,
                        "restartCount": 0,
                        "state": {"terminated": ended},
                    }
                ],
            }
            self.api.patch("Pod", self.system, pod["metadata"]["name"], {"status": status}, "status")

    def hold(self, kind: str, name: str) -> None:
        """Keeps an object from going, as something does that needs time to end."""
        self.api.patch(kind, self.models, name, {"metadata": {"finalizers": ["test.example/held"]}})

    def let_go(self, kind: str, name: str) -> None:
        self.api.patch(kind, self.models, name, {"metadata": {"finalizers": None}})

    @contextmanager
    def mirror_pod_answers(self, progress: Manifest) -> Iterator[str]:
        """Plays the progress endpoint of a mirror pod, on an address of loopback that nobody else has."""
        body = json.dumps(progress).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/progress" else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        address = f"127.77.{os.getpid() % 250}.{uuid.uuid4().int % 250 + 1}"
        server = ThreadingHTTPServer((address, 8090), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield address
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    @contextmanager
    def without_schema(self) -> Iterator[None]:
        """The API server takes anything as a SovereignModel, as after a downgrade of the definition.

        It takes a moment until a changed definition counts.
        """
        strange = self.manifest("strange")
        strange["spec"]["serving"] = {"image": {"not": "a string"}}
        path = self.api.path("CustomResourceDefinition", None, "sovereignmodels.sovereign.dev")
        patch_type = {"Content-Type": "application/json-patch+json"}
        where = "/spec/versions/0/schema/openAPIV3Schema/properties/spec"
        schema = self.api.call("GET", path)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        kept = schema["properties"]["spec"]
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        rules = schema.get("x-kubernetes-validations")
        loose = [{"op": "replace", "path": where, "value": anything}]
        if rules:
            at = "/spec/versions/0/schema/openAPIV3Schema/x-kubernetes-validations"
            loose.append({"op": "remove", "path": at})
        self.api.call("PATCH", path, loose, **patch_type)
        try:
            eventually(lambda: self.api.would_take(strange), "the loose schema counts")
            yield
        finally:
            tight = [{"op": "replace", "path": where, "value": kept}]
            if rules:
                tight.append({"op": "add", "path": at, "value": rules})
            self.api.call("PATCH", path, tight, **patch_type)
            eventually(lambda: not self.api.would_take(strange), "the schema counts again")

    def policy_uid(self, name: str) -> str:
        return str(self.api.get("NetworkPolicy", self.models, name).get("metadata", {}).get("uid", ""))

    def settle(self) -> None:
        """Until the operator asks for nothing any more, a resync included."""
        audit = AuditLog(self.cluster.audit_log)

        def quiet() -> bool:
            audit.mark()
            self.let_pass(self.settings["resyncSeconds"] + 1.5)
            return not [one for one in audit.by(self.user) if one.verb not in ("watch", "list")]

        eventually(quiet, "the operator has nothing more to do")

    @staticmethod
    def let_pass(seconds: float) -> None:
        """Time in which something could happen that must not: there is no condition to wait for."""
        time.sleep(seconds)

    def policies(self) -> list[Manifest]:
        return self.api.list("NetworkPolicy", self.models, "sovereign.dev/owner")

    def await_events(self, *reasons: str) -> None:
        """Until these were told: an event follows the write that it tells of."""
        eventually(lambda: set(reasons) <= self.events(), f"events with the reasons {reasons}")

    def events(self) -> set[str]:
        return {event["reason"] for event in self.api.list("Event", self.models)}

    def clean(self) -> None:
        self._over.set()
        if self._heart.is_alive():
            self._heart.join()
        for kind in ("ClusterRoleBinding", "ClusterRole"):
            for each in self.api.list(kind, None):
                if each["metadata"]["name"].endswith(self.system):
                    self.api.delete(kind, None, each["metadata"]["name"])
        for node in self.api.list("Node", None, f"{PRODUCT_LABEL}={self.product}"):
            self.api.delete("Node", None, node["metadata"]["name"])


class Operator:
    """The operator's process, as the chart would run it."""

    def __init__(self, site: Site) -> None:
        self._site = site
        port = _free_port()
        self.health = f"http://127.0.0.1:{port}/healthz"
        kubeconfig = site.folder / f"operator-{port}.kubeconfig"
        kubeconfig.write_text(
            json.dumps(site.api.kubeconfig(site.api.token(site.system, "sovereign-operator")))
        )
        config = site.folder / f"config-{port}.yaml"
        config.write_text(yaml.safe_dump(site.settings))
        self.log = site.folder / f"operator-{port}.log"
        command = [sys.executable, "-m", "sovereign_operator.main", "--config", str(config)]
        command += ["--log-format", "plain", "--liveness", self.health]
        environment = {"KUBECONFIG": str(kubeconfig), "PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def is_alive(self) -> bool:
        try:
            with urllib.request.urlopen(self.health, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_until_alive(self) -> None:
        eventually(lambda: self.is_alive() or not self.is_running(), "the operator answers its probe", 60)
        assert self.is_running(), self.log.read_text()[-3000:]

    def end(self) -> int:
        """SIGTERM, and the exit status."""
        if self.is_running():
            self._process.terminate()
        return self._process.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
