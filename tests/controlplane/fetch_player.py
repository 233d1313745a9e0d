# SPDX-License-Identifier: Apache-2.0
"""Plays the kubelet under fetch Jobs, and under model pods that have their weights from their node.

The Jobs, their pods and the scheduler that puts them onto nodes are the real ones; only what a kubelet would
write is written here. No byte moves.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from tests.controlplane.api_server import ApiServer, Manifest, condition, eventually

CACHE = {"claim": "sovereign-cache", "path": "/var/lib/sovereign/cache"}
DONE = {"reason": "Fetched", "message": "2 files are there.", "repaired": []}
FULL = {"reason": "CacheFull", "message": "5 MB are wanted and 3 MB can be made free."}
MISSING = {"reason": "CacheMissing", "message": "Nothing is there."}
CORRUPT = {"reason": "CacheCorrupt", "message": "model.safetensors has other bytes."}
ARTIFACT, NODE = "sovereign.dev/artifact", "sovereign.dev/node"


class FetchPlayer:
    def __init__(self, api: ApiServer, models: str, system: str) -> None:
        self.api, self.models, self.system = api, models, system

    # -- Jobs ---------------------------------------------------------------------------------------------

    def jobs(self) -> list[Manifest]:
        return self.api.list("Job", self.system, "sovereign.dev/component=fetch")

    def under_way(self) -> list[Manifest]:
        """Those that have not ended and are not on their way out."""
        return [
            job for job in self.jobs() if not has_ended(job) and not job["metadata"].get("deletionTimestamp")
        ]

    def fetching(self) -> list[str]:
        """The nodes that something is fetched to, once for each Job."""
        return sorted(node_of(job) for job in self.under_way())

    def the_job(self, node: str = "") -> Manifest:
        """The one Job that is under way, to this node where one is named."""

        def look() -> list[Manifest]:
            found = [job for job in self.under_way() if node in ("", node_of(job))]
            return found if len(found) == 1 else []

        found: list[Manifest] = eventually(look, f"one fetch {f'to {node} ' if node else ''}is under way")
        return found[0]

    def pods_of(self, job: Manifest) -> list[Manifest]:
        name = job["metadata"]["name"]
        pods = self.api.list("Pod", self.system, f"batch.kubernetes.io/job-name={name}")
        mine = [owner["uid"] for pod in pods for owner in pod["metadata"].get("ownerReferences") or ()]
        return [pod for pod, uid in zip(pods, mine, strict=True) if uid == job["metadata"]["uid"]]

    def pod_of(self, job: Manifest) -> Manifest:
        """Its pod, once the scheduler has put it onto its node."""

        def look() -> list[Manifest]:
            return [pod for pod in self.pods_of(job) if pod["spec"].get("nodeName") == node_of(job)]

        found: list[Manifest] = eventually(look, "the Job's pod is on its node")
        return found[0]

    def run(self, job: Manifest, address: str = "") -> None:
        status = {"phase": "Running", **({"podIP": address, "podIPs": [{"ip": address}]} if address else {})}
        self._write(self.pod_of(job), status)

    def end(self, job: Manifest, said: Manifest | None = None) -> None:
        """Its pod ends with this result, and the Job controller has seen that."""
        said = said or DONE
        well = said["reason"] == "Fetched"
        pod = self.pod_of(job)
        ended = {"exitCode": 0 if well else 1, "reason": "Completed" if well else "Error"}
        container = self._status(pod["spec"]["containers"][0], {"terminated": ended | message(said)})
        self._write(pod, {"phase": "Succeeded" if well else "Failed", "containerStatuses": [container]})
        name = job["metadata"]["name"]
        eventually(lambda: has_ended(self.api.get("Job", self.system, name)), "the Job has ended")

    def let_go(self) -> None:
        """A kubelet ends the pods that are being deleted."""
        for pod in self.api.list("Pod", self.system, "sovereign.dev/component=fetch"):
            if pod["metadata"].get("deletionTimestamp"):
                self.api.delete("Pod", self.system, pod["metadata"]["name"])

    # -- model pods ---------------------------------------------------------------------------------------

    def start(self, name: str, service: Manifest, on: list[str]) -> None:
        """KubeRay's pods: a worker on each of these nodes, and the head on the first."""
        config = service["spec"]["rayClusterConfig"]
        self.land(f"{name}-head", config["headGroupSpec"]["template"], on[0])
        for number, node in enumerate(on):
            self.land(f"{name}-worker-{number}", config["workerGroupSpecs"][0]["template"], node)

    def land(self, name: str, template: Manifest, node: str, held: bool = True) -> None:
        """A pod on a node; its sidecar holds the weights, or waits for them."""
        container = {"name": "ray", "image": "none.invalid/none"}
        sidecar = {"name": "weights", "image": "none.invalid/none", "restartPolicy": "Always"}
        pod = self.api.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {**template["metadata"], "name": name, "namespace": self.models},
                "spec": {"nodeName": node, "initContainers": [sidecar], "containers": [container]},
            }
        )
        self.hold(pod) if held else self.wait(pod)

    def hold(self, pod: Manifest) -> None:
        ready = {"type": "Ready", "status": "True"}
        self._sidecar(pod, {"running": {}}, started=True, phase="Running", conditions=[ready])

    def wait(self, pod: Manifest) -> None:
        self._sidecar(pod, {"running": {}}, started=False, phase="Pending")

    def complain(self, pod: Manifest, said: Manifest) -> None:
        """The sidecar ends now, and is held back from its next start."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ended = {"exitCode": 3, "reason": "Error", "finishedAt": now} | message(said)
        waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
        self._sidecar(pod, waiting, started=False, phase="Pending", last={"terminated": ended})

    def _sidecar(
        self, pod: Manifest, state: Manifest, *, started: bool, last: Manifest | None = None, **status: object
    ) -> None:
        container = self._status(pod["spec"]["initContainers"][0], state) | {"started": started}
        container |= {"lastState": last} if last else {}
        self._write(pod, {"initContainerStatuses": [container], **status})

    @staticmethod
    def _status(container: Manifest, state: Manifest) -> Manifest:
        return {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": state,
        }

    def _write(self, pod: Manifest, status: Manifest) -> None:
        metadata = pod["metadata"]
        self.api.patch("Pod", metadata["namespace"], metadata["name"], {"status": status}, "status")


def message(said: Manifest) -> Manifest:
    return {"message": json.dumps(said)}


def node_of(job: Manifest) -> str:
    return str(job["metadata"]["annotations"][NODE])


def digest_of(job: Manifest) -> str:
    return str(job["metadata"]["annotations"][ARTIFACT]).partition("@")[2]


def arguments_of(job: Manifest) -> list[str]:
    found: list[str] = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return found


def has_ended(job: Manifest) -> bool:
    return any(condition(job, kind).get("status") == "True" for kind in ("Complete", "Failed"))
