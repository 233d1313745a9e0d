# SPDX-License-Identifier: Apache-2.0
"""A small universe for the decisions: what is decided is played back as if the API server and KubeRay had
obeyed, so that a test can walk a model from its manifest to Ready in memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sovereign_operator import status
from sovereign_operator.api import FINALIZER, LABEL_COMPONENT, LABEL_MODEL, LABEL_OWNER, SovereignModel
from sovereign_operator.carry_out import Done
from sovereign_operator.conditions import Outcome
from sovereign_operator.config import OperatorConfig
from sovereign_operator.foreign_policies import opened_by
from sovereign_operator.kuberay import KubeRay
from sovereign_operator.plan import Plan, plan
from sovereign_operator.reconcile import Decision, decide
from sovereign_operator.values import (
    NOT_THERE,
    Artifact,
    Evidence,
    Found,
    Manifest,
    MirrorProgress,
    NodeFacts,
)
from sovereign_operator.wanted import wanted
from sovereign_operator.world import (
    Action,
    Apply,
    CopyToken,
    Create,
    Delete,
    Hold,
    Release,
    Reseal,
    Strip,
    World,
    component_of,
    name_of,
    stamp,
)
from tests.unit.operator.builders import COMMIT, IMAGE, a_config, a_node, an_artifact

START = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
NAMESPACE = "models"

PROBE = ("control", "peer", "prober")
# A worker whose readiness probe was answered.
RUNNING = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


def a_body(name: str = "mixtral", **spec: Any) -> Manifest:
    """A SovereignModel as the API server sends it; keywords replace members of spec."""
    source = {"huggingFace": {"repo": "mistralai/Mixtral-8x7B-Instruct-v0.1", "revision": COMMIT}}
    parallelism = {"tensor": 2, "data": 2, "expert": True}
    serving = {"image": IMAGE, "parallelism": parallelism} | spec.pop("serving", {})
    metadata = {"name": name, "namespace": NAMESPACE, "uid": "6f1c", "generation": 1, "resourceVersion": "1"}
    return {
        "apiVersion": "sovereign.dev/v1alpha1",
        "kind": "SovereignModel",
        "metadata": metadata,
        "spec": {"source": source, "serving": serving} | spec,
    }


def merged(live: Any, patch: Any) -> Any:
    """What a merge patch makes of an object (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    kept = {key: value for key, value in (live or {}).items() if patch.get(key, ...) is not None}
    return kept | {key: merged(kept.get(key), value) for key, value in patch.items() if value is not None}


@dataclass
class Universe:
    """What is there. `step` decides once and obeys; everything that was done is remembered."""

    body: Manifest = field(default_factory=a_body)
    config: OperatorConfig = field(default_factory=lambda: a_config(externalSources={"allowed": True}))
    now: datetime = START
    found: Found = NOT_THERE
    nodes: tuple[NodeFacts, ...] = (a_node(),)
    kuberay: KubeRay = KubeRay.SUPPORTED
    token_missing: bool = False
    namespace_sealed: bool | None = None
    evidence: Evidence | None = None
    foreign: list[Manifest] = field(default_factory=list)  # policies that others wrote
    progress: MirrorProgress | None = None
    children: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    job_pods: list[Manifest] = field(default_factory=list)
    done: list[Action] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    gone: bool = False

    # -- looking ------------------------------------------------------------------------------------------

    def of(self, kind: str, only: tuple[str, ...] = (), but: tuple[str, ...] = ()) -> tuple[Manifest, ...]:
        """The children of one kind, by name; `only` or `but` those with these components."""
        found = (one for (k, _), one in sorted(self.children.items()) if k == kind)
        return tuple(
            one for one in found if (not only or component_of(one) in only) and component_of(one) not in but
        )

    def world(self) -> World:
        body = None if self.gone else self.body
        seen = World(
            key=(NAMESPACE, str(self.body["metadata"]["name"])),
            now=self.now,
            body=body,
            policies=self.of("NetworkPolicy", but=("mirror",)),
            opened_by_others=opened_by(self.foreign, name_of(self.body)),
            exceptions=self.of("NetworkPolicy", only=("mirror",)),
            ray_service=next(iter(self.of("RayService")), None),
            ray_clusters=self.of("RayCluster"),
            pods=self.of("Pod", but=PROBE),
            probe_pods=self.of("Pod", only=PROBE),
            probe_jobs=self.of("Job", only=PROBE),
            services=self.of("Service"),
            namespace_sealed=self.namespace_sealed,
            jobs=self.of("Job", but=(*PROBE, "fetch")),
            job_pods=tuple(self.job_pods),
            progress=self.progress,
            found=self.found,
            token_missing=self.token_missing,
            evidence=self.evidence,
            nodes=self.nodes,
            kuberay=self.kuberay,
        )
        if body is None or "deletionTimestamp" in body["metadata"]:
            return replace(seen, pods=self.of("Pod"), probe_pods=())  # whatever is left keeps the policies
        return replace(seen, model=SovereignModel.parse(body))

    def decision(self) -> Decision:
        world = self.world()
        wants = wanted(world.model, self.config) if world.model else None
        return decide(world, wants, self.config)

    def planned(self) -> Plan:
        world = self.world()
        assert world.model is not None
        return plan(world, world.model, wanted(world.model, self.config), self.config)

    # -- obeying ------------------------------------------------------------------------------------------

    def step(self) -> Decision:
        """One reconcile, and the API server doing as it is told."""
        decision = self.decision()
        for action in decision.actions:
            self._obey(action)
        said = decision.report(Done(self.outcome))
        if said is not None and not self.gone:
            self.body["status"] = status.as_json(said)
        return decision

    def settle(self, limit: int = 10) -> Decision:
        """Steps until nothing more is done."""
        for _ in range(limit):
            decision = self.step()
            if not decision.actions and decision.again != 0.0:
                return decision
        raise AssertionError(f"still busy after {limit} steps: {decision.actions}")

    def _obey(self, action: Action) -> None:
        self.done.append(action)
        match action:
            case Hold():
                self.body["metadata"].setdefault("finalizers", []).append(FINALIZER)
            case Apply(manifest) | Create(manifest) | Reseal(_, manifest):
                self._put(manifest)
            case Strip(live, patch=patch):
                self._put(merged(live, patch))
            case Delete(manifest):
                self._delete(manifest)
            case Release(manifest):
                self._release(manifest)
            case CopyToken():
                pass

    def _put(self, manifest: Manifest) -> None:
        key = (str(manifest["kind"]), name_of(manifest))
        live = copy.deepcopy(manifest)
        before = self.children.get(key, {})
        live["metadata"] |= {"uid": f"uid-{key[1]}", "generation": 1 + self._generation(before, live)}
        live["metadata"]["creationTimestamp"] = stamp(self.now)
        if "status" in before:
            live["status"] = before["status"]
        self.children[key] = live

    @staticmethod
    def _generation(before: Manifest, after: Manifest) -> int:
        generation = int(before.get("metadata", {}).get("generation", 0))
        return generation - (1 if before.get("spec") == after.get("spec") and generation else 0)

    def _delete(self, manifest: Manifest) -> None:
        key = (str(manifest["kind"]), name_of(manifest))
        if self.children[key]["metadata"].get("finalizers"):
            self.children[key]["metadata"]["deletionTimestamp"] = stamp(self.now)
        else:
            del self.children[key]

    def _release(self, manifest: Manifest) -> None:
        if manifest["kind"] == "SovereignModel":
            self.gone = True
            return
        self.children.pop((str(manifest["kind"]), name_of(manifest)), None)

    # -- what others do -----------------------------------------------------------------------------------

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def mirrored(self, artifact: Artifact | None = None) -> None:
        self.found = artifact or an_artifact()

    def change(self, **spec: Any) -> None:
        self.body["spec"] |= spec
        self.body["metadata"]["generation"] += 1

    def ask_to_delete(self) -> None:
        self.body["metadata"]["deletionTimestamp"] = stamp(self.now)

    def service(self) -> Manifest:
        return self.of("RayService")[0]

    def start_cluster(self, name: str = "one") -> None:
        """KubeRay makes a cluster from the RayService, its pods run and answer."""
        service = self.service()
        marks = copy.deepcopy(service["metadata"]["annotations"])
        labels = {LABEL_OWNER: name_of(self.body)}
        self.children["RayCluster", name] = {
            "kind": "RayCluster",
            "metadata": {"name": name, "uid": name, "labels": labels, "annotations": marks},
        }
        for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
            for number in range(group["replicas"] * group.get("numOfHosts", 1)):
                self.start_pod(f"{name}-{number}")
        self.serving(name)

    def start_pod(self, name: str, component: str = "worker", **fields: Any) -> None:
        labels = {LABEL_MODEL: name_of(self.body), LABEL_COMPONENT: component}
        pod = {"kind": "Pod", "metadata": {"name": name, "uid": name, "labels": labels}}
        self.children["Pod", name] = pod | {"status": RUNNING | fields}

    def serving(
        self, cluster: str, app: str = "RUNNING", deployment: str = "HEALTHY", ready: str = "True"
    ) -> None:
        service = self.service()
        deployments = {"LLM": {"status": deployment, "message": "as told"}}
        application = {"status": app, "message": "as told", "serveDeploymentStatuses": deployments}
        service["status"] = {
            "observedGeneration": service["metadata"]["generation"],
            "conditions": [{"type": "Ready", "status": ready, "message": "as told"}],
            "activeServiceStatus": {
                "rayClusterName": cluster,
                "applicationStatuses": {name_of(self.body): application},
            },
        }

    def stop_cluster(self) -> None:
        self.children = {
            key: one
            for key, one in self.children.items()
            if key[0] != "RayCluster" and (key[0] != "Pod" or component_of(one) in PROBE)
        }

    def end_job(self, message: str, condition: str = "Failed") -> None:
        job = self.of("Job", but=(*PROBE, "fetch"))[0]
        ended = {"type": condition, "status": "True", "lastTransitionTime": stamp(self.now)}
        job["status"] = {"conditions": [ended | {"reason": "BackoffLimitExceeded", "message": "it gave up"}]}
        terminated = {"exitCode": 3, "reason": "Error", "message": message}
        owner = {"uid": job["metadata"]["uid"]}
        self.job_pods = [
            {
                "kind": "Pod",
                "metadata": {"name": "p", "creationTimestamp": stamp(self.now), "ownerReferences": [owner]},
                "status": {"phase": "Failed", "containerStatuses": [{"state": {"terminated": terminated}}]},
            }
        ]

    # -- what is said -------------------------------------------------------------------------------------

    def condition(self, kind: str) -> dict[str, Any]:
        for each in self.body.get("status", {}).get("conditions", []):
            if each["type"] == kind:
                return dict(each)
        return {}

    def reason(self, kind: str = "Ready") -> str:
        return str(self.condition(kind).get("reason", ""))

    def actions_of(self, *kinds: type) -> list[Action]:
        return [action for action in self.done if isinstance(action, kinds)]


def a_serving_universe(**spec: Any) -> Universe:
    """A universe in which the model is Ready."""
    universe = Universe(body=a_body(**spec))
    universe.mirrored()
    universe.settle()
    universe.start_cluster()
    universe.settle()
    assert universe.reason() == "AllChecksPassed", universe.body["status"]
    universe.done.clear()
    return universe
