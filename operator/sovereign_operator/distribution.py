# SPDX-License-Identifier: Apache-2.0
"""Whether the nodes have the weights, and what brings them there: where models share a cache on each node.
Pure.

Which nodes those are is decided in `distribution_nodes.py`, what is known of each in `fetch_states.py`. No
pod is started or replaced before the nodes that were chosen for the workers have the weights. The head's
few files follow its pod: it is made with the others, and waits for them where it lands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sovereign_operator import reasons, scrubbing
from sovereign_operator.amounts import in_bytes
from sovereign_operator.api import DeliveryNode, DeliveryStatus, SovereignModel
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.fetch_job import Fetch
from sovereign_operator.distribution_nodes import Landed, choose, landed, references, wanted
from sovereign_operator.fetch_case import Case, succeeded
from sovereign_operator.fetch_states import FetchState, state_of
from sovereign_operator.fetch_strays import Clearance, clearance, without_cache
from sovereign_operator.fetches import LISTED_NODES, digests_of
from sovereign_operator.job_tries import result_of
from sovereign_operator.rollout import Memo
from sovereign_operator.world import Action, Happening, Stage, World, is_finished, name_of

# Of a node's message in status, in characters.
LONGEST_MESSAGE: Final = 256
# Named in the condition's message; status.delivery has all.
NAMED_NODES: Final = 4
# Where the data plane said this, another node is better: it is the node's own trouble.
NODES_OWN: Final = ("CacheFull", "DiskFailed")


@dataclass(frozen=True, slots=True)
class DistributionStep:
    """What Distributed says, None where weights are not kept on nodes, and what to do.

    `chosen`: the nodes that the workers should run on. `complete`: they have what will be served next.
    `rest`: how long only a change is worth a look, in s.
    """

    stage: Stage | None = None
    chosen: tuple[str, ...] = ()
    complete: bool = False
    status: DeliveryStatus | None = None
    actions: tuple[Action, ...] = ()
    told: tuple[Happening, ...] = ()
    again: float | None = None
    rest: float | None = None


def next_step(
    world: World, model: SovereignModel, target: Memo | None, config: OperatorConfig
) -> DistributionStep:
    """`target`: what will be served next; None while that cannot be said, and what runs is looked after."""
    cache, has_cache = config.node_cache, model.spec.delivery.mode == "nodeCache"
    if cache is None:
        waiting = Stage("Unknown", reasons.WAITING, "There is no cache on nodes in this cluster.")
        stage = waiting if has_cache else None
        return DistributionStep(stage, complete=not has_cache, actions=without_cache(world))
    target = target if has_cache else None
    pods = landed(world, model, target)
    case = Case(
        world,
        model,
        config,
        cache,
        target.artifact if target else None,
        pods,
        {name_of(job): job for job in world.fetches.jobs},
        {node.name: node for node in world.nodes},
    )
    chosen = choose(world, model, target, lambda node: _standing(case, target, node)) if target else ()
    fetches = wanted(model, chosen, target, pods)
    states = tuple(state_of(case, fetch) for fetch in fetches)
    needed = _needed(case, target, pods) if has_cache else frozenset(each.fetch.digest for each in pods)
    cleared = clearance(case, fetches, needed, target is not None and case.may_fetch)
    scrub = scrubbing.next_step(case, states)
    complete = bool(chosen) and all(
        state.is_ready for state in states if target and _is_for(state, chosen, target)
    )
    shown = tuple(state for state in states if _is_shown(state, target))
    return DistributionStep(
        stage=_stage(case, target, shown, cleared) if has_cache else None,
        chosen=chosen,
        complete=complete or not has_cache,
        status=_status(shown) if has_cache else None,
        actions=(*cleared.actions, *(action for state in states for action in state.actions), *scrub.actions),
        told=cleared.told,
        again=min((state.again for state in states if state.again is not None), default=None),
        rest=scrub.rest,
    )


def _standing(case: Case, target: Memo, node: str) -> int:
    """How near a node is to having the weights. One whose disk is full or broken comes last."""
    job = case.record_of(Fetch(case.model.namespace, node, target.artifact.reference))
    if job is None:
        return 2
    if succeeded(job):
        return 0
    failed = is_finished(job) and result_of(job, case.pods_of(job), "fetch", "").reason in NODES_OWN
    return 3 if failed else 1


def _needed(case: Case, target: Memo | None, pods: tuple[Landed, ...]) -> frozenset[str]:
    """The digests whose records stay: of what runs, of what will, and of what did while that is open."""
    served = {reference.partition("@")[2] for reference in references(case.world, target)}
    recorded = digests_of(case.world.body or {}) if target is None else frozenset()
    return frozenset(served | recorded | {each.fetch.digest for each in pods})


def _is_for(state: FetchState, chosen: tuple[str, ...], target: Memo) -> bool:
    return state.fetch.node in chosen and state.fetch.digest == target.artifact.digest


def _is_shown(state: FetchState, target: Memo | None) -> bool:
    """What runs on an old artifact is worth a word only where it lacks something."""
    return target is None or state.fetch.digest == target.artifact.digest or not state.is_ready


# -- what is said -----------------------------------------------------------------------------------------


def _stage(case: Case, target: Memo | None, states: tuple[FetchState, ...], cleared: Clearance) -> Stage:
    """What is missing, the worst first: a node that cannot, one that is lost, one that is under way."""
    ready = [state for state in states if state.is_ready]
    if states and len(ready) == len(states):
        if target is None:
            return Stage("True", reasons.WEIGHTS_DISTRIBUTED, f"{_nodes(ready)} what runs there.")
        return Stage("True", reasons.WEIGHTS_DISTRIBUTED, f"{_nodes(ready)} {target.artifact.reference}.")
    if not states and target is None:
        return Stage("Unknown", reasons.WAITING, "There is no placement yet.")
    if not case.may_fetch:
        words = "spec.suspend is true: nothing is fetched to nodes."
        return Stage("Unknown", reasons.SUSPENDED, words)
    counted = f"{len(ready)} of {len(states)} nodes have the weights"
    failed = [state for state in states if state.state == "Failed"]
    if failed:
        words = f"{counted}{_others(failed)}. {failed[0].fetch.node}: {failed[0].message}"
        return Stage("False", failed[0].reason, words, stalled=failed[0].stalled)
    lost = {state.fetch.node for state in states if state.state == "Lost"} | set(cleared.lost)
    if lost or not states:
        named = ", ".join(sorted(lost)[:NAMED_NODES]) or "Every node that the workers could run on"
        return Stage("False", reasons.NODE_LOST, f"{named} is gone or not ready; {counted}.")
    fetching = [state for state in states if state.state == "Fetching"]
    if fetching:
        return Stage("False", reasons.FETCHING, f"{counted}; {_progress(fetching)}.")
    pending = next(state for state in states if state.state == "Pending")
    return Stage("False", reasons.FETCH_PENDING, f"{counted}. {pending.fetch.node}: {pending.message}")


def _nodes(ready: list[FetchState]) -> str:
    names = sorted({state.fetch.node for state in ready})
    more = len(names) - NAMED_NODES
    listed = ", ".join(names[:NAMED_NODES]) + (f" and {more} more" if more > 0 else "")
    return f"{listed} {'has' if len(names) == 1 else 'have'}"


def _others(failed: list[FetchState]) -> str:
    return f", and {len(failed)} failed" if len(failed) > 1 else ""


def _progress(states: Iterable[FetchState]) -> str:
    states = tuple(states)
    done, total, rate = (sum(amounts) for amounts in zip(*map(_amounts, states), strict=True))
    words = f"{in_bytes(done)} of {in_bytes(total)} on the others" if total else states[0].message.rstrip(".")
    return f"{words}, {in_bytes(rate)}/s" if rate else words


def _amounts(state: FetchState) -> tuple[int, int, int]:
    return state.bytes_done, state.bytes_total, state.rate


def _status(states: tuple[FetchState, ...]) -> DeliveryStatus:
    first = sorted(states, key=lambda state: (state.is_ready, state.fetch.node))[:LISTED_NODES]
    listed = sorted(first, key=lambda state: (state.fetch.node, state.fetch.reference))
    return DeliveryStatus(
        mode="nodeCache",
        nodes_ready=sum(state.is_ready for state in states),
        nodes_wanted=len(states),
        bytes_done=sum(state.bytes_done for state in states),
        bytes_total=sum(state.bytes_total for state in states),
        rate=sum(state.rate for state in states),
        nodes=[
            DeliveryNode(
                name=state.fetch.node,
                state=state.state,
                reason=state.reason,
                message=state.message[:LONGEST_MESSAGE],
                bytes_done=state.bytes_done,
                bytes_total=state.bytes_total,
                attempt=state.attempt,
                next_attempt=state.next_attempt,
            )
            for state in listed
        ],
    )
