# SPDX-License-Identifier: Apache-2.0
"""A universe in which nodes keep weights: fetch Jobs end as a test says, and pods land where it says."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sovereign_operator.api import (
    ANNOTATION_ARTIFACT,
    ANNOTATION_NODE,
    LABEL_COMPONENT,
    LABEL_MODEL,
    LABEL_OWNER,
)
from sovereign_operator.config import OperatorConfig
from sovereign_operator.fetches import Fetches, Neighbour, concerning, digests_of, has_cache
from sovereign_operator.rollout import Memo
from sovereign_operator.values import Artifact, FetchProgress, Manifest, NodeFacts
from sovereign_operator.world import World, annotation, is_finished, name_of, stamp
from tests.unit.operator.builders import COMMIT, DIGEST, a_caching_config, a_node, an_artifact
from tests.unit.operator.worlds import NAMESPACE, RUNNING, Universe, a_body

FULL = {"reason": "CacheFull", "message": "240 GB are wanted and 3 GB can be made free."}
MISSING = {"reason": "CacheMissing", "message": "Nothing is there."}
CORRUPT = {"reason": "CacheCorrupt", "message": "model.safetensors has other bytes."}
DOWN = {"reason": "RegistryUnavailable", "message": "The registry answers 503."}
REFUSED = {"reason": "DigestMismatch", "message": "The registry lies."}
NEXT = COMMIT[::-1]
NEXT_DIGEST = "sha256:" + "2e" * 32
DONE = {"reason": "Fetched", "message": "24 files are there.", "repaired": []}


def nodes(*names: str, accelerators: int = 8) -> tuple[NodeFacts, ...]:
    return tuple(a_node(name, accelerators) for name in names)


@dataclass
class CachedUniverse(Universe):
    body: Manifest = field(default_factory=lambda: a_body(delivery={"mode": "nodeCache"}))
    config: OperatorConfig = field(default_factory=a_caching_config)
    nodes: tuple[NodeFacts, ...] = field(default_factory=lambda: nodes("gpu-a", "gpu-b", "gpu-c"))
    fetch_pods: list[Manifest] = field(default_factory=list)
    fetch_progress: dict[str, FetchProgress] = field(default_factory=dict)
    neighbours: list[Manifest] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)

    def world(self) -> World:
        seen = super().world()
        digests = set(digests_of(self.body))
        digests |= {self.found.digest} if isinstance(self.found, Artifact) else set()
        digests |= {annotation(pod, ANNOTATION_ARTIFACT).partition("@")[2] for pod in seen.pods}
        jobs = concerning(
            self.of("Job", only=("fetch",)), NAMESPACE, name_of(self.body), filter(None, digests)
        )
        return replace(
            seen,
            fetches=Fetches(
                jobs=jobs,
                pods=tuple(self.fetch_pods),
                progress=dict(self.fetch_progress),
                neighbours=tuple(Neighbour.of(body) for body in self.neighbours if has_cache(body)),
                taken=dict(self.taken),
            ),
        )

    # -- fetches ------------------------------------------------------------------------------------------

    def jobs(self, node: str = "", kind: str = "fetch") -> list[Manifest]:
        found = self.of("Job", only=("fetch",))
        return [
            job
            for job in found
            if name_of(job).startswith(f"{kind}-") and node in ("", annotation(job, ANNOTATION_NODE))
        ]

    def job(self, node: str, kind: str = "fetch") -> Manifest:
        (found,) = self.jobs(node, kind)
        return found

    def fetching(self) -> list[str]:
        """The nodes that something is fetched to."""
        return sorted(annotation(job, ANNOTATION_NODE) for job in self.jobs() if not is_finished(job))

    def run_fetch(self, node: str, done: int = 0, total: int = 0, rate: int = 0) -> None:
        job = self.job(node)
        uid = f"{name_of(job)}-pod"
        self._put_pod(job, uid, {"phase": "Running"})
        self.fetch_progress[uid] = FetchProgress(done, total, "pulling", rate)

    def end_fetch(self, node: str, said: Any = None, kind: str = "fetch") -> None:
        """Its pod ends with this result: fetched, unless it says otherwise."""
        job, said = self.job(node, kind), DONE if said is None else said
        well = isinstance(said, dict) and said["reason"] == "Fetched"
        condition = {"type": "Complete" if well else "Failed", "status": "True"}
        words = {"lastTransitionTime": stamp(self.now), "message": "it gave up"}
        job["status"] = {"conditions": [condition | words]}
        text = said if isinstance(said, str) else json.dumps(said)
        ended = {"exitCode": 0 if well else 1, "reason": "Completed" if well else "Error", "message": text}
        status = {
            "phase": "Succeeded" if well else "Failed",
            "containerStatuses": [{"state": {"terminated": ended}}],
        }
        self._put_pod(job, f"{name_of(job)}-{stamp(self.now)}", status)

    def end_fetches(self) -> None:
        for node in self.fetching():
            self.end_fetch(node)

    def _put_pod(self, job: Manifest, uid: str, status: Manifest) -> None:
        owner = {"uid": job["metadata"]["uid"]}
        metadata = {"name": uid, "uid": uid, "creationTimestamp": stamp(self.now), "ownerReferences": [owner]}
        self.fetch_pods = [pod for pod in self.fetch_pods if pod["metadata"]["uid"] != uid]
        self.fetch_pods.append({"kind": "Pod", "metadata": metadata, "status": status})

    def lose(self, node: str, gone: bool = True) -> None:
        kept = [each for each in self.nodes if each.name != node]
        lost = [replace(each, ready=False) for each in self.nodes if each.name == node and not gone]
        self.nodes = tuple(sorted((*kept, *lost), key=lambda each: each.name))

    # -- pods ---------------------------------------------------------------------------------------------

    def start_cluster(self, name: str = "one", on: Sequence[str] = ("gpu-a",)) -> None:
        """KubeRay makes a cluster; its worker pods land on these nodes, its head on the first one."""
        service = self.service()
        marks = copy.deepcopy(service["metadata"]["annotations"])
        self.children["RayCluster", name] = {
            "kind": "RayCluster",
            "metadata": {
                "name": name,
                "uid": name,
                "labels": {LABEL_OWNER: name_of(self.body)},
                "annotations": marks,
            },
        }
        config = service["spec"]["rayClusterConfig"]
        self.land(f"{name}-head", on[0], config["headGroupSpec"]["template"], "head")
        for number, node in enumerate(on):
            self.land(f"{name}-{number}", node, config["workerGroupSpecs"][0]["template"], "worker")
        self.serving(name)

    def land(self, name: str, node: str, template: Manifest, component: str) -> None:
        """A pod on a node whose sidecar has found what it needs."""
        marks = copy.deepcopy(template["metadata"].get("annotations") or {})
        metadata = {
            "name": name,
            "uid": name,
            "labels": {LABEL_MODEL: name_of(self.body), LABEL_COMPONENT: component},
            "annotations": marks,
        }
        spec = copy.deepcopy(template["spec"]) | {"nodeName": node}
        self.children["Pod", name] = {
            "kind": "Pod",
            "metadata": metadata,
            "spec": spec,
            "status": {**RUNNING, "initContainerStatuses": [held()]},
        }

    def land_another(self, name: str, node: str, component: str = "worker") -> None:
        """A pod as the service's template has it, that waits on this node for its weights."""
        config = self.service()["spec"]["rayClusterConfig"]
        group = config["headGroupSpec"] if component == "head" else config["workerGroupSpecs"][0]
        self.land(name, node, group["template"], component)
        self.children["Pod", name]["status"] = {
            "phase": "Pending",
            "initContainerStatuses": [{"name": "weights", "started": False, "state": {"running": {}}}],
        }

    def complain(self, pod: str, said: Manifest) -> None:
        """The pod's sidecar ends with this, now."""
        ended = {"exitCode": 3, "message": json.dumps(said), "finishedAt": stamp(self.now)}
        waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
        status = {
            "name": "weights",
            "started": False,
            "state": waiting,
            "lastState": {"terminated": ended},
        }
        self.children["Pod", pod]["status"] = {"phase": "Pending", "initContainerStatuses": [status]}

    def hold(self, pod: str) -> None:
        """The pod's sidecar has what it needs, whatever it said before."""
        status = self.children["Pod", pod]["status"]
        status["initContainerStatuses"][0] |= held()

    def chosen(self) -> tuple[str, ...]:
        """The nodes that the workers of the rendered service prefer."""
        memo = Memo.of(self.service())
        assert memo is not None
        return memo.placement.chosen

    @property
    def delivery(self) -> dict[str, Any]:
        return dict(self.body["status"]["delivery"])

    def node_status(self, name: str) -> dict[str, Any]:
        (found,) = [node for node in self.delivery["nodes"] if node["name"] == name]
        return dict(found)


def held() -> Manifest:
    return {"name": "weights", "started": True, "state": {"running": {}}}


def a_neighbour(name: str = "other", *, nodes: Sequence[str] = (), digest: str = "", **spec: Any) -> Manifest:
    """Another model of the same namespace that has this digest on these nodes."""
    body = a_body(name, delivery={"mode": "nodeCache"}, **spec)
    body["metadata"]["uid"] = name
    body["status"] = {
        "artifact": {"digest": digest},
        "servingArtifact": digest,
        "delivery": {"nodes": [{"name": node} for node in nodes]},
    }
    return body


def a_distributed_universe(*names: str, **spec: Any) -> CachedUniverse:
    """A universe in which the model is Ready, on the node that was chosen."""
    universe = CachedUniverse(body=a_body(delivery={"mode": "nodeCache"}, **spec))
    universe.nodes = nodes(*(names or ("gpu-a", "gpu-b", "gpu-c")))
    universe.mirrored()
    universe.settle()
    universe.end_fetches()
    universe.settle()
    (group,) = universe.service()["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pods = group["replicas"] * group.get("numOfHosts", 1)
    universe.start_cluster(on=list(itertools.islice(itertools.cycle(universe.chosen()), pods)))
    universe.settle()
    assert universe.reason() == "AllChecksPassed", universe.body["status"]
    universe.done.clear()
    return universe


def a_fetching_universe(**spec: Any) -> CachedUniverse:
    """The artifact is there, and its fetch was started."""
    universe = CachedUniverse(body=a_body(delivery={"mode": "nodeCache"}, **spec))
    universe.mirrored()
    universe.settle()
    return universe


def a_next_artifact() -> Any:
    before = an_artifact()
    reference = before.reference.replace(DIGEST, NEXT_DIGEST)
    return replace(before, reference=reference, digest=NEXT_DIGEST, revision=NEXT)


def upgrade(universe: CachedUniverse) -> None:
    repo = "mistralai/Mixtral-8x7B-Instruct-v0.1"
    universe.change(source={"huggingFace": {"repo": repo, "revision": NEXT}})
    universe.mirrored(a_next_artifact())
    universe.settle()


def digests_under_way(universe: CachedUniverse) -> set[str]:
    return {annotation(job, "sovereign.dev/artifact").partition("@")[2] for job in universe.jobs()}
