# SPDX-License-Identifier: Apache-2.0
"""Plays the kubelet under the pods of a probe: a double that runs nothing and writes what a test says.

The Jobs and their pods are real objects of the real Job controller; only the pods' status is written here, as
a kubelet does when a container has left its termination message.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sovereign_airgap.probe.plan import CANARY_PATHS, PEER_PATHS, parse_plan
from sovereign_airgap.probe.result import Outcome, ProbeResult
from tests.controlplane.api_server import ApiServer, Manifest, condition, eventually

CANARY = "sovereign-canary.sovereign-system.svc.cluster.local"
TARGETS = [
    {"name": "outside-tcp-443", "protocol": "TCP", "address": "192.0.2.10", "port": 443},
    {"name": "outside-dns-name", "protocol": "RESOLVE", "query": "probe.example"},
]
# What a site's configuration holds where nothing is served without a proof.
SEALING: Manifest = {"seal": "Required", "probe": {"canary": CANARY, "targets": TARGETS}}
Paths = dict[str, str]


class ProbePlayer:
    def __init__(self, api: ApiServer, models: str, system: str, name: str = "tiny") -> None:
        self.api, self.models, self.system, self.name = api, models, system, name

    def peer(self) -> Manifest:
        return self.api.get("Pod", self.models, f"{self.name}-peer")

    def jobs(self) -> list[Manifest]:
        """Those that have not ended and are not being deleted, control and prober."""
        found = (
            *self.api.list("Job", self.system, "sovereign.dev/component=control"),
            *self.api.list("Job", self.models, "sovereign.dev/component=prober"),
        )
        return [job for job in found if not _has_ended(job) and "deletionTimestamp" not in job["metadata"]]

    def peer_answers(self) -> None:
        eventually(self.peer, "the peer is there")
        ready = {"type": "Ready", "status": "True"}
        self._write(self.peer(), {"phase": "Running", "conditions": [ready]})

    def peer_waits(self, reason: str, message: str) -> None:
        pod = eventually(self.peer, "the peer is there")
        self._write(
            pod,
            {
                "phase": "Pending",
                "containerStatuses": [_container(pod, {"waiting": {"reason": reason, "message": message}})],
            },
        )

    def peer_ends(self) -> None:
        """The kubelet lets a pod go that somebody deleted."""
        eventually(lambda: self.peer().get("metadata", {}).get("deletionTimestamp"), "the peer is going")
        self.api.delete("Pod", self.models, f"{self.name}-peer")

    def both_jobs(self) -> list[Manifest]:
        def both() -> list[Manifest]:
            jobs = self.jobs()
            return jobs if len(jobs) == 2 else []

        jobs: list[Manifest] = eventually(both, "prober and control are there")
        return jobs

    def answer(self, prober: Paths | str | None = None, control: Paths | str | None = None) -> str:
        """One whole run: denied inside and open outside but for what is named. Answers the run's id."""
        self.peer_answers()
        jobs = self.both_jobs()
        for job in jobs:
            said = prober if job["metadata"]["namespace"] == self.models else control
            self.end(job, said if isinstance(said, str) else self.result_of(job, said or {}))
        return str(jobs[0]["metadata"]["annotations"]["sovereign.dev/probe-run"])

    def end(self, job: Manifest, message: str) -> None:
        ended = {"exitCode": 0, "reason": "Completed", "message": message}
        pod = eventually(lambda: self.pods_of(job), "the Job has a pod")[0]
        status = {"phase": "Succeeded", "containerStatuses": [_container(pod, {"terminated": ended})]}
        self._write(pod, status)

    def pods_of(self, job: Manifest) -> list[Manifest]:
        metadata = job["metadata"]
        return self.api.list("Pod", metadata["namespace"], f"batch.kubernetes.io/job-name={metadata['name']}")

    def result_of(self, job: Manifest, changes: Paths) -> str:
        sealed = job["metadata"]["namespace"] == self.models
        plan = parse_plan(job["spec"]["template"]["spec"]["containers"][0]["args"][3])
        usual = Outcome.DENIED if sealed else Outcome.REACHED
        paths = dict.fromkeys((*CANARY_PATHS, *(target.name for target in plan.targets)), usual)
        paths["own-node"] = Outcome.REACHED
        if sealed:
            paths |= dict.fromkeys(PEER_PATHS, Outcome.REACHED)
        paths |= {name: Outcome(outcome) for name, outcome in changes.items()}
        return ProbeResult(plan.run, datetime.now(UTC), 3.0, "node", 0.4 if sealed else None, paths).render()

    def _write(self, pod: Manifest, status: Manifest) -> None:
        metadata = pod["metadata"]
        self.api.patch("Pod", metadata["namespace"], metadata["name"], {"status": status}, "status")


def _container(pod: Manifest, state: Manifest) -> Manifest:
    container = pod["spec"]["containers"][0]
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }


def _has_ended(job: Manifest) -> bool:
    return bool(job["status"].get("completionTime") or condition(job, "Failed").get("status") == "True")
