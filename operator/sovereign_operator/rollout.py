# SPDX-License-Identifier: Apache-2.0
"""From the RayService that is there to the one that is wanted, one step at a time. Pure.

What a running cluster was rendered from is written on the RayService, and KubeRay copies annotations to
each RayCluster that it creates: the steps follow from what is seen, never from what was done before.

recreate: KubeRay applies a changed cluster only to a new RayCluster, and with upgrade type None it makes
none. So: suspend, wait until clusters and pods are gone, apply, resume. newCluster: apply, KubeRay does
the rest. A change of serveConfigV2 alone is applied in place by both.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sovereign_operator import reasons
from sovereign_operator.api import (
    ANNOTATION_ALLOWED,
    ANNOTATION_ARTIFACT,
    ANNOTATION_CLUSTER,
    ANNOTATION_PLACEMENT,
    ANNOTATION_RENDERED,
    ANNOTATION_TIGHTENED,
    GROUP,
    SovereignModel,
)
from sovereign_operator.desired.rendered import contains, rendered_hash
from sovereign_operator.values import Artifact, Manifest, Placement
from sovereign_operator.world import Action, Apply, Stage, Strip, World, annotation, is_dying


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """What to do next; `moving` says what is under way, None when what is wanted is applied."""

    actions: tuple[Action, ...] = ()
    moving: Stage | None = None
    upgrade_starts: bool = False


@dataclass(frozen=True, slots=True)
class Memo:
    """What a RayService was planned from: the plan outlives the operator and the registry's outages."""

    planned_for: str
    artifact: Artifact
    placement: Placement

    def to_text(self) -> str:
        artifact = dataclasses.asdict(dataclasses.replace(self.artifact, facts=None))
        artifact.pop("facts")
        placement = dataclasses.asdict(self.placement)
        if not self.placement.chosen:
            placement.pop("chosen")  # as it was before there were caches on nodes
        body = {"for": self.planned_for, "artifact": artifact, "placement": placement}
        return json.dumps(body, sort_keys=True, separators=(",", ":"))

    def on(self, chosen: tuple[str, ...]) -> Memo:
        """The same with the nodes that its workers prefer."""
        return dataclasses.replace(self, placement=dataclasses.replace(self.placement, chosen=chosen))

    @classmethod
    def of(cls, live: Manifest | None) -> Memo | None:
        """From a live RayService; None where there is none that this version can read."""
        try:
            body = json.loads(annotation(live, ANNOTATION_PLACEMENT)) if live is not None else None
            if body is None:
                return None
            placement = dict(body["placement"])
            for name in ("nodes", "chosen"):
                placement[name] = tuple(placement.get(name) or ())
            return cls(str(body["for"]), Artifact(**body["artifact"]), Placement(**placement))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def planned_for(model: SovereignModel, artifact: Artifact) -> str:
    """What a placement was chosen for. While it stays the same the placement does too: a node that appears or
    goes never restarts a running model."""
    spec = model.spec
    wishes: dict[str, Any] = {
        "artifact": artifact.digest,
        "serving": spec.serving.model_dump(
            mode="json", by_alias=True, include={"parallelism", "replicas", "device", "max_model_len"}
        ),
        "placement": spec.placement.model_dump(mode="json", by_alias=True),
    }
    return rendered_hash(wishes)


def stamped(
    rendered: Manifest, memo: Memo, allowed: tuple[str, ...] = (), live: Manifest | None = None
) -> Manifest:
    """The rendered RayService with our marks, never suspended. `allowed`: what the policies let through.

    The cluster's hash stands in the head's pod template too: KubeRay mutes replicas and tolerations when it
    compares clusters, and would otherwise not notice a change of those alone.
    """
    manifest = copy.deepcopy(rendered)
    manifest["spec"].pop("suspend", None)
    marks = manifest["metadata"].setdefault("annotations", {})
    head = manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    on_head = head.setdefault("metadata", {}).setdefault("annotations", {})
    if tightened := last_tightening(live, allowed):
        marks[ANNOTATION_TIGHTENED] = on_head[ANNOTATION_TIGHTENED] = tightened
    on_head[ANNOTATION_CLUSTER] = marks[ANNOTATION_CLUSTER] = rendered_hash(
        manifest["spec"]["rayClusterConfig"]
    )
    marks[ANNOTATION_ARTIFACT] = memo.artifact.reference
    marks[ANNOTATION_PLACEMENT] = memo.to_text()
    if allowed:
        marks[ANNOTATION_ALLOWED] = ",".join(allowed)
        marks[ANNOTATION_RENDERED] = rendered_hash(manifest)
    return manifest


def last_tightening(live: Manifest | None, allowed: tuple[str, ...]) -> str:
    """Changes when the policies allow less than the running pods were started with: many networks let a
    connection live on that was opened when it was allowed, so those pods have to go once."""
    if live is None:
        return ""
    before = annotation(live, ANNOTATION_TIGHTENED)
    gone = set(filter(None, annotation(live, ANNOTATION_ALLOWED).split(","))) - set(allowed)
    return rendered_hash({"before": before, "gone": sorted(gone)}) if gone else before


def suspended(manifest: Manifest) -> Manifest:
    """The same, stopped. The mark differs, because resuming only takes a field away."""
    stopped = copy.deepcopy(manifest)
    stopped["spec"]["suspend"] = True
    stopped["metadata"]["annotations"][ANNOTATION_RENDERED] += "-suspended"
    return stopped


def _stopped_as_it_is(live: Manifest) -> Manifest:
    """The live object, stopped: for when nothing can be rendered, or nothing rendered is to be waited for."""
    kept = ("name", "namespace", "labels", "ownerReferences")
    metadata = {name: live["metadata"][name] for name in kept if name in live["metadata"]}
    marks = (live["metadata"].get("annotations") or {}).items()
    metadata["annotations"] = {ANNOTATION_RENDERED: ""} | {
        name: text for name, text in marks if name.startswith(f"{GROUP}/")
    }
    as_it_is = {
        "apiVersion": live["apiVersion"],
        "kind": live["kind"],
        "metadata": metadata,
        "spec": live["spec"],
    }
    return suspended(as_it_is)


def isolated(live: Manifest | None) -> RolloutStep:
    """Stops the pods whatever is rendered now, or cannot be."""
    stopped = _stage(reasons.ISOLATED, "The pods were stopped after a proven leak.")
    if live is None or is_dying(live) or live["spec"].get("suspend"):
        return RolloutStep(moving=stopped)
    return RolloutStep((Apply(_stopped_as_it_is(live)),), moving=stopped)


def next_step(world: World, model: SovereignModel, desired: Manifest | None) -> RolloutStep:
    """`desired`: what is wanted, from `stamped`; None while that cannot be said (not mirrored, no nodes)."""
    live = world.ray_service
    if live is not None and is_dying(live):
        return RolloutStep(moving=_stage(reasons.STARTING, "The RayService is being deleted and comes back."))
    if model.spec.suspend:
        return _suspend(world, live, desired)
    if desired is None:
        return RolloutStep()
    if live is None:
        waiting = _stage(reasons.STARTING, "The RayService was created.")
        return RolloutStep((Apply(desired, restores=bool(model.status.serving_artifact)),), moving=waiting)
    return _towards(world, model, live, desired)


def _suspend(world: World, live: Manifest | None, desired: Manifest | None) -> RolloutStep:
    stopped = _stage(reasons.SUSPENDED, "spec.suspend is true: no pods run, everything else is kept.")
    if live is None:
        return RolloutStep(moving=stopped)
    # What cannot be rendered any more, as without the cache that its pods use, can be stopped all the same.
    target = suspended(desired) if desired is not None else _stopped_as_it_is(live)
    is_due = needs_apply(live, target) if desired is not None else not live["spec"].get("suspend")
    if is_due:
        return RolloutStep((Apply(target),), moving=_stage(reasons.SUSPENDED, "The pods are being stopped."))
    if world.ray_clusters or world.pods:
        return RolloutStep(moving=_stage(reasons.SUSPENDED, f"{len(world.pods)} pods are still going."))
    return RolloutStep(moving=stopped)


def _towards(world: World, model: SovereignModel, live: Manifest, desired: Manifest) -> RolloutStep:
    is_stopped = bool(live["spec"].get("suspend"))
    remains = bool(world.ray_clusters or world.pods)
    recreate = model.spec.upgrade.strategy == "recreate"
    if recreate and not is_stopped and outdated(world.ray_clusters, desired):
        return RolloutStep(
            (Apply(suspended(desired)),),
            moving=_stage(reasons.UPGRADING, "The old pods are being stopped, then the new ones start."),
            upgrade_starts=True,
        )
    if is_stopped and remains:
        target = suspended(desired)
        words = f"{len(world.pods)} old pods are still going, then the new ones start."
        actions: tuple[Action, ...] = (Apply(target),) if needs_apply(live, target) else ()
        return RolloutStep(actions, moving=_stage(reasons.UPGRADING, words))
    if not needs_apply(live, desired):
        return _resumed(live, desired) if is_stopped else RolloutStep()
    changed = annotation(live, ANNOTATION_RENDERED) != annotation(desired, ANNOTATION_RENDERED)
    if is_stopped:
        return RolloutStep((Apply(desired),), moving=_stage(reasons.STARTING, "The pods start again."))
    if not changed:
        words = "The RayService differed from what was rendered and is put back."
        put_back = Apply(desired, restores=True, drifted_at=first_difference(live, desired))
        return RolloutStep((put_back,), moving=_stage(reasons.UPGRADING, words))
    return RolloutStep(
        (Apply(desired),),
        moving=_stage(reasons.UPGRADING, "A change is being rolled out."),
        upgrade_starts=annotation(live, ANNOTATION_CLUSTER) != annotation(desired, ANNOTATION_CLUSTER),
    )


def _resumed(live: Manifest, desired: Manifest) -> RolloutStep:
    """Somebody else holds the switch, and an apply leaves it as it is."""
    words = "Somebody suspended the RayService, and it is resumed; to stop the model, set its spec.suspend."
    taken_away = Strip(live, desired, {"spec": {"suspend": None}})
    return RolloutStep((taken_away,), moving=_stage(reasons.STARTING, words))


def outdated(clusters: tuple[Manifest, ...], desired: Manifest) -> tuple[Manifest, ...]:
    """The clusters that were created from another rendering."""
    wanted = annotation(desired, ANNOTATION_CLUSTER)
    return tuple(each for each in clusters if annotation(each, ANNOTATION_CLUSTER) not in ("", wanted))


def needs_apply(live: Manifest, desired: Manifest) -> bool:
    """Whether what we rendered is not in force: another rendering, or somebody's change to ours."""
    if annotation(live, ANNOTATION_RENDERED) != annotation(desired, ANNOTATION_RENDERED):
        return True
    return not contains(live, desired)


def first_difference(live: object, rendered: object, path: str = "") -> str:
    """The path of the first rendered field that is not in force, for people; empty where all are."""
    if isinstance(rendered, Mapping):
        if not isinstance(live, Mapping):
            return path or "."
        for key in sorted(rendered):
            if found := first_difference(live.get(key), rendered[key], f"{path}.{key}"):
                return found
        return ""
    if isinstance(rendered, list):
        if not isinstance(live, list) or len(live) != len(rendered):
            return path
        for number, (one, other) in enumerate(zip(live, rendered, strict=True)):
            if found := first_difference(one, other, f"{path}[{number}]"):
                return found
        return ""
    return "" if live == rendered else path


def _stage(reason: str, words: str) -> Stage:
    return Stage("False", reason, words)
