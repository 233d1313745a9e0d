# SPDX-License-Identifier: Apache-2.0
"""The planner: what the model is, what the nodes are and what the user wishes -> parallelism and worker pods.

Pure. It looks at what nodes have, not at what is free: the scheduler knows that better, and a plan that
followed free accelerators would move a running model. The order of the questions is the order of the answers
that a user gets: can the engine run it, is there a node, how is it spread, are there enough accelerators.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sovereign_airgap.facts import ModelFacts
from sovereign_operator import reasons
from sovereign_operator.api import Accelerator, Parallelism, SovereignModelSpec, Toleration
from sovereign_operator.architectures import ENGINE, NATIVE_ARCHITECTURES
from sovereign_operator.config import OperatorConfig
from sovereign_operator.parallelism import choose, impossible
from sovereign_operator.values import NodeFacts, Placement, Taint, Unplaceable

# Messages stay readable on a cluster of a thousand nodes.
LISTED_NODES = 8
LISTED_CANDIDATES = 64


def plan(
    spec: SovereignModelSpec,
    facts: ModelFacts | None,
    nodes: Sequence[NodeFacts],
    config: OperatorConfig,
) -> Placement | Unplaceable:
    """Where the model runs, or why it cannot. It is asked once for a wish: what was placed stays where it
    is."""
    if refusal := _needs_remote_code(facts):
        return refusal
    wish = spec.placement.accelerator
    matching = tuple(sorted((n for n in nodes if _defect(n, spec) is None), key=lambda n: n.name))
    if not matching:
        return Unplaceable(reasons.NO_MATCHING_NODES, _nothing_matches(spec, nodes, config))
    most = max(node.allocatable[wish.resource] for node in matching)
    per_node = wish.per_node or most

    wanted = spec.serving.parallelism
    if wanted is not None:
        why = f"Parallelism as asked for: {_describe(wanted)}."
    else:
        chosen = choose(spec, facts, matching, min(per_node, most))
        if isinstance(chosen, Unplaceable):
            return chosen
        wanted, why = chosen.parallelism, chosen.why
    if refusal := impossible(wanted, facts):
        return refusal
    return _lay_out(spec, wanted, why, matching, per_node)


def _needs_remote_code(facts: ModelFacts | None) -> Unplaceable | None:
    if facts is None or not facts.remote_code:
        return None
    names = facts.architectures or ((facts.architecture,) if facts.architecture else ())
    if any(name in NATIVE_ARCHITECTURES for name in names):
        return None
    return Unplaceable(
        reasons.REMOTE_CODE_REQUIRED,
        f"Expected an architecture that {ENGINE} knows, found {', '.join(names) or 'none'} with code in the "
        "model's repository. That code is never run here; use a model that the engine supports natively.",
    )


# -- nodes ------------------------------------------------------------------------------------------------


def group_of(spec: SovereignModelSpec, nodes: Iterable[NodeFacts]) -> tuple[NodeFacts, ...]:
    """The nodes that are made for the workers, whether or not they take any now, by name."""
    return tuple(sorted((n for n in nodes if _mismatch(n, spec) is None), key=lambda n: n.name))


def takers(spec: SovereignModelSpec, nodes: Iterable[NodeFacts], accelerators: int) -> tuple[NodeFacts, ...]:
    """The nodes that can take a worker with so many accelerators now, were they free; by name."""
    resource = spec.placement.accelerator.resource
    fitting = (n for n in nodes if n.allocatable.get(resource, 0) >= accelerators)
    return tuple(sorted((n for n in fitting if _defect(n, spec) is None), key=lambda n: n.name))


def _defect(node: NodeFacts, spec: SovereignModelSpec) -> str | None:
    """Why this node cannot take a worker now, in a few words; None where it can."""
    if mismatch := _mismatch(node, spec):
        return mismatch
    if not node.schedulable:
        return "cordoned"
    return None if node.ready else "not ready"


def _mismatch(node: NodeFacts, spec: SovereignModelSpec) -> str | None:
    """Why this node never takes a worker; None where it is made for them."""
    wish = spec.placement.accelerator
    amount = node.allocatable.get(wish.resource, 0)
    if amount < 1:
        return f"no {wish.resource}"
    if wish.product is not None and node.product != wish.product:
        return f"{amount} x {node.product or 'no product label'}"
    for key, value in sorted(spec.placement.node_selector.items()):
        if node.labels.get(key) != value:
            return f"{key}={node.labels[key]}" if key in node.labels else f"no label {key}"
    for taint in node.taints:
        if taint.effect != "PreferNoSchedule" and not _tolerated(taint, spec.placement.tolerations):
            return f"taint {taint.key}" + (f"={taint.value}" if taint.value else "")
    return None


def _tolerated(taint: Taint, tolerations: Iterable[Toleration]) -> bool:
    for toleration in tolerations:
        same_key = toleration.key is None or toleration.key == taint.key
        same_value = toleration.operator == "Exists" or (toleration.value or "") == taint.value
        same_effect = toleration.effect is None or toleration.effect == taint.effect
        if same_key and same_value and same_effect:
            return True
    return False


def _nothing_matches(spec: SovereignModelSpec, nodes: Sequence[NodeFacts], config: OperatorConfig) -> str:
    wish = spec.placement.accelerator
    wanted = [f"the resource {wish.resource}"]
    if wish.product is not None:
        wanted.append(f"{config.product_label}={wish.product}")
    wanted += [f"{key}={value}" for key, value in sorted(spec.placement.node_selector.items())]
    found = _listed([f"{node.name} ({_defect(node, spec)})" for node in sorted(nodes, key=lambda n: n.name)])
    return f"Looked for a ready node with {' and '.join(wanted)}; found {found or 'no nodes at all'}."


def _listed(words: Sequence[str]) -> str:
    rest = len(words) - LISTED_NODES
    return ", ".join(words[:LISTED_NODES]) + (f" and {rest} more" if rest > 0 else "")


# -- worker pods ------------------------------------------------------------------------------------------


def _lay_out(
    spec: SovereignModelSpec,
    wanted: Parallelism,
    why: str,
    matching: Sequence[NodeFacts],
    per_node: int,
) -> Placement | Unplaceable:
    """Cuts a replica into equal worker pods and checks that the nodes can take all of them."""
    wish, replicas = spec.placement.accelerator, spec.serving.replicas
    rank = wanted.tensor * wanted.pipeline
    group = rank * wanted.data
    per_worker = accelerators_per_worker(wanted, per_node)
    if per_worker is None:
        return Unplaceable(
            reasons.INSUFFICIENT_ACCELERATORS,
            f"Tensor parallelism {wanted.tensor} must fit into one node, and a node gives at most {per_node} "
            f"x {wish.resource} ({_capacity(matching, wish)}). Lower tensor, or span nodes with pipeline.",
        )
    workers = group // per_worker
    places = sum(node.allocatable[wish.resource] // per_worker for node in matching)
    if places < workers * replicas:
        return Unplaceable(
            reasons.INSUFFICIENT_ACCELERATORS,
            f"Looked for {workers * replicas} places of {per_worker} x {wish.resource} "
            f"({replicas} replicas of {group}), found {places}: {_capacity(matching, wish)}. "
            "Add nodes, lower replicas or parallelism, or raise perNode.",
        )
    candidates = [node.name for node in matching if node.allocatable[wish.resource] >= per_worker]
    pods = "1 worker pod" if workers == 1 else f"{workers} worker pods"
    return Placement(
        tensor=wanted.tensor,
        pipeline=wanted.pipeline,
        data=wanted.data,
        expert=wanted.expert,
        replicas=replicas,
        accelerators_per_worker=per_worker,
        workers=workers,
        ranks_per_worker=per_worker // rank,
        redundant_experts=wanted.redundant_experts,
        all_to_all=wanted.all_to_all.value if wanted.all_to_all else None,
        nodes=tuple(candidates[:LISTED_CANDIDATES]),
        why=f"{why} A replica is {pods} with {per_worker} x {wish.resource} each.",
    )


def accelerators_per_worker(wanted: Parallelism, per_node: int) -> int | None:
    """The most accelerators of one node that cut a replica into equal pods, None where tensor does not fit.

    A pod holds whole ranks, or a rank holds whole pods, and the tensor group never leaves a pod.
    """
    rank = wanted.tensor * wanted.pipeline
    group = rank * wanted.data
    for amount in range(min(per_node, group), wanted.tensor - 1, -1):
        whole_tensor_groups = amount % wanted.tensor == 0
        whole_ranks_or_pods = amount % rank == 0 or rank % amount == 0
        if group % amount == 0 and whole_tensor_groups and whole_ranks_or_pods:
            return amount
    return None


def _capacity(nodes: Sequence[NodeFacts], wish: Accelerator) -> str:
    return _listed([f"{node.name} has {node.allocatable[wish.resource]}" for node in nodes])


def _describe(wanted: Parallelism) -> str:
    words = [f"tensor {wanted.tensor}", f"pipeline {wanted.pipeline}", f"data {wanted.data}"]
    if wanted.expert:
        words.append("experts spread")
    return ", ".join(words)
