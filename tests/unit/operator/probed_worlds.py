# SPDX-License-Identifier: Apache-2.0
"""A universe with a seal: the kubelet that runs the pods of a probe is played, with results a test names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sovereign_airgap.probe.plan import CANARY_PATHS, PEER_PATHS, ProbePlan, parse_plan
from sovereign_airgap.probe.result import Outcome, ProbeResult
from sovereign_operator.config import OperatorConfig
from sovereign_operator.values import Manifest
from sovereign_operator.world import component_of, is_finished, name_of, stamp
from tests.unit.operator.builders import a_sealing_config
from tests.unit.operator.worlds import RUNNING, Universe, a_body

Paths = dict[str, str]


def plan_of(job: Manifest) -> ProbePlan:
    """The plan that a probe's Job was given."""
    return parse_plan(job["spec"]["template"]["spec"]["containers"][0]["args"][3])


def a_result_of(job: Manifest, at: Any, changes: Paths) -> ProbeResult:
    """Denied inside and open outside, except for what `changes` names."""
    plan, sealed = plan_of(job), component_of(job) == "prober"
    usual = Outcome.DENIED if sealed else Outcome.REACHED
    paths = dict.fromkeys((*CANARY_PATHS, *(target.name for target in plan.targets)), usual)
    paths["own-node"] = Outcome.REACHED
    if sealed:
        paths |= dict.fromkeys(PEER_PATHS, Outcome.REACHED)
    paths |= {name: Outcome(outcome) for name, outcome in changes.items()}
    return ProbeResult(plan.run, at, 3.0, "gpu-a", 0.4 if sealed else None, paths)


@dataclass
class ProbedUniverse(Universe):
    """Nothing is served here without a proof."""

    config: OperatorConfig = field(
        default_factory=lambda: a_sealing_config(externalSources={"allowed": True})
    )

    def peer_answers(self) -> None:
        for pod in self.of("Pod", only=("peer",)):
            pod["status"] = dict(RUNNING)

    def jobs_in_flight(self) -> list[Manifest]:
        return [job for job in self.of("Job", only=("prober", "control")) if not is_finished(job)]

    def end_jobs(self, prober: Paths | str | None = None, control: Paths | str | None = None) -> None:
        """Each running Job ends with a result, or with this text as its termination message."""
        for job in self.jobs_in_flight():
            said = prober if component_of(job) == "prober" else control
            text = said if isinstance(said, str) else a_result_of(job, self.now, said or {}).render()
            self.end(job, text)

    def end(self, job: Manifest, message: str, condition: str = "Complete") -> None:
        ended = {"type": condition, "status": "True", "lastTransitionTime": stamp(self.now)}
        job["status"] = {"conditions": [ended | {"message": "as told"}]}
        terminated = {"exitCode": 0, "reason": "Completed", "message": message}
        self.put_pod_of(job, {"containerStatuses": [{"state": {"terminated": terminated}}]})

    def put_pod_of(self, job: Manifest, status: Manifest) -> None:
        name = f"{name_of(job)}-pod"
        metadata = {
            "name": name,
            "uid": name,
            "labels": job["spec"]["template"]["metadata"]["labels"],
            "ownerReferences": [{"uid": job["metadata"]["uid"]}],
        }
        self.children["Pod", name] = {"kind": "Pod", "metadata": metadata, "status": status}

    def probe(self, prober: Paths | str | None = None, control: Paths | str | None = None) -> None:
        """One whole run, from wherever the model is."""
        self.settle()
        self.peer_answers()
        self.settle()
        assert len(self.jobs_in_flight()) == 2, self.condition("EgressSealed")
        self.end_jobs(prober, control)
        self.step()

    @property
    def egress(self) -> dict[str, Any]:
        return dict(self.body["status"]["egress"])

    def sealed(self) -> tuple[str, str]:
        found = self.condition("EgressSealed")
        return str(found["status"]), str(found["reason"])


def a_proven_universe(seal: str = "Required", **spec: Any) -> ProbedUniverse:
    """A universe with a model that serves behind a proven seal."""
    config = a_sealing_config(seal=seal, externalSources={"allowed": True})
    universe = ProbedUniverse(body=a_body(**spec), config=config)
    universe.mirrored()
    universe.probe()
    universe.settle()
    universe.start_cluster()
    universe.settle()
    assert universe.reason() == "AllChecksPassed", universe.body["status"]
    universe.done.clear()
    return universe
