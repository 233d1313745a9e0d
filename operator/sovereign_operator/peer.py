# SPDX-License-Identifier: Apache-2.0
"""The peer: a sealed pod that answers the other pods of its model, and the name that it is found by. Pure.

A prober that reaches nothing at all proves nothing; the peer tells a network that is sealed from one that
is broken. Model pods ask it before they start, so one that is lost with its node is replaced under a second
name.
"""

from __future__ import annotations

from dataclasses import dataclass

from sovereign_operator.api import ANNOTATION_RENDERED, COMPONENT_PEER, SovereignModel
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.probe import peer_pod, peer_service
from sovereign_operator.job_tries import waiting_for
from sovereign_operator.rollout import needs_apply
from sovereign_operator.values import Manifest
from sovereign_operator.world import (
    Action,
    Apply,
    Create,
    Delete,
    World,
    annotation,
    component_of,
    condition_of,
    is_dying,
    name_of,
)


@dataclass(frozen=True, slots=True)
class PeerStep:
    """`waits`: why it does not answer yet; `blocked`: and nothing suggests that it will."""

    actions: tuple[Action, ...] = ()
    ready: bool = False
    waits: str = ""
    blocked: bool = False


def next_step(world: World, model: SovereignModel, config: OperatorConfig) -> PeerStep:
    """The peer as it is rendered, and its Service."""
    pod, service = peer_pod(model, config), peer_service(model)
    actions: list[Action] = []
    live = next((one for one in world.services if name_of(one) == name_of(service)), None)
    if live is None or (not is_dying(live) and needs_apply(live, service)):
        actions.append(Apply(service))
    pods = _peers(world)
    usable = [one for one in pods if _is_usable(one, pod)]
    actions += [Delete(one) for one in pods if not is_dying(one) and one not in usable]
    if not usable:
        names = [name for name in _names(pod) if name not in {name_of(one) for one in pods}]
        actions += [Create(_named(pod, name)) for name in names[:1]]
        return PeerStep(tuple(actions), waits="it was created" if names else "the last one is still going")
    if any(condition_of(one, "Ready").get("status") == "True" for one in usable):
        return PeerStep(tuple(actions), ready=live is not None)
    why = waiting_for(usable[0])
    return PeerStep(tuple(actions), waits=why or "it starts", blocked=bool(why))


def removal(world: World) -> tuple[Action, ...]:
    """No pod of a model runs while it is suspended, or where nothing is probed. The name may stay."""
    return tuple(Delete(one) for one in _peers(world) if not is_dying(one))


def _peers(world: World) -> tuple[Manifest, ...]:
    return tuple(pod for pod in world.probe_pods if component_of(pod) == COMPONENT_PEER)


def _is_usable(live: Manifest, wanted: Manifest) -> bool:
    ended = (live.get("status") or {}).get("phase") in ("Failed", "Succeeded")
    same = annotation(live, ANNOTATION_RENDERED) == annotation(wanted, ANNOTATION_RENDERED)
    return same and not ended and not is_dying(live)


def _names(pod: Manifest) -> tuple[str, str]:
    return name_of(pod), f"{name_of(pod)}-2"


def _named(pod: Manifest, name: str) -> Manifest:
    return pod | {"metadata": pod["metadata"] | {"name": name}}
