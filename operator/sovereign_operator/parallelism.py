# SPDX-License-Identifier: Apache-2.0
"""How one replica is spread over accelerators: what is impossible for a model, and what to choose for it.

The choice is the smallest number of accelerators whose memory holds the weights and one sequence of full
length, because fewer accelerators exchange less. Sizes are bytes per accelerator:

    tensor, pipeline:      weights / (tensor x pipeline) + cache of one sequence / (kv groups x pipeline)
    data with experts:     experts / data + everything else + cache of one sequence

Multi-head latent attention (DeepSeek) keeps one vector per token that tensor parallelism cannot cut: every
accelerator would hold the whole cache. So such models get data parallelism, and the experts are spread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sovereign_airgap.facts import DTYPE_BYTES, ModelFacts
from sovereign_operator import reasons
from sovereign_operator.api import Device, Parallelism, SovereignModelSpec
from sovereign_operator.values import NodeFacts, Unplaceable

MIB = 1024**2
GIB = 1024**3
# What the engine may use of the memory (vLLM's gpu_memory_utilization), less what it needs to compute.
USABLE_PERCENT = 90
WORKSPACE = 4 * GIB
# Tokens of one sequence where neither the user nor the model says.
DEFAULT_CONTEXT = 8192
# GPU feature discovery writes it, in MiB.
MEMORY_LABEL = "nvidia.com/gpu.memory"
# Memory in GiB of the products whose nodes carry no memory label, by the longest matching name.
PRODUCT_MEMORY_GIB = {
    "AMD-Instinct-MI300X": 192, "AMD-Instinct-MI325X": 256, "AMD-Instinct-MI355X": 288,
    "NVIDIA-A10": 22, "NVIDIA-A100": 40, "NVIDIA-A100-80GB": 80, "NVIDIA-A100-PCIE-40GB": 40,
    "NVIDIA-A100-SXM4-40GB": 40, "NVIDIA-A100-SXM4-80GB": 80, "NVIDIA-B200": 179, "NVIDIA-B300": 268,
    "NVIDIA-GB200": 184, "NVIDIA-H100": 79, "NVIDIA-H100-NVL": 93, "NVIDIA-H20": 95, "NVIDIA-H200": 140,
    "NVIDIA-L4": 22, "NVIDIA-L40S": 44, "NVIDIA-RTX-6000-Ada": 47, "NVIDIA-RTX-PRO-6000": 95,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choice:
    parallelism: Parallelism
    why: str


def impossible(wanted: Parallelism, facts: ModelFacts | None) -> Unplaceable | None:
    """Why the engine would refuse this parallelism for this model; None where it would not, or nobody
    knows."""
    if facts is None:
        return None
    tensor, ranks = wanted.tensor, wanted.tensor * wanted.data
    if facts.heads and facts.heads % tensor:
        sizes = ", ".join(str(n) for n in range(1, 65) if facts.heads % n == 0)
        return _refuse(
            f"tensor must divide the model's {facts.heads} attention heads, found {tensor}; take {sizes}."
        )
    if facts.kv_heads and not _shares_kv(tensor, facts.kv_heads):
        return _refuse(
            f"one of tensor and the model's {facts.kv_heads} key-value heads must divide the other, found "
            f"{tensor}; choose another tensor."
        )
    if facts.layers and wanted.pipeline > facts.layers:
        return _refuse(
            f"pipeline must not exceed the model's {facts.layers} layers, found {wanted.pipeline}; lower it."
        )
    if wanted.data > 1 and facts.layers and not facts.experts:
        return _refuse(
            "data parallelism inside a replica needs a mixture of experts, and this model is dense; remove "
            f"data {wanted.data} and set replicas instead, which share the requests in the same way."
        )
    if wanted.expert and not facts.experts:
        return _refuse(
            "expert parallelism needs a mixture of experts, and this model is dense; remove expert."
        )
    if wanted.expert and facts.experts < ranks:
        return _refuse(
            f"{facts.experts} experts do not spread over tensor x data = {ranks} accelerators; lower one."
        )
    if wanted.redundant_experts and (facts.experts + wanted.redundant_experts) % ranks:
        return _refuse(
            f"{facts.experts} experts and {wanted.redundant_experts} redundant ones must spread evenly over "
            f"{ranks} accelerators; choose redundantExperts so that their sum is a multiple of {ranks}."
        )
    return None


def choose(
    spec: SovereignModelSpec, facts: ModelFacts | None, nodes: Sequence[NodeFacts], per_node: int
) -> Choice | Unplaceable:
    """The parallelism for a user who left it out. `per_node`: accelerators that one node gives."""
    if spec.serving.device is Device.CPU:
        return Choice(Parallelism(), "One rank, because the model runs on the CPU.")
    if facts is None:
        return Unplaceable(
            reasons.FACTS_MISSING,
            "The artifact carries no facts about the model, so the parallelism cannot be chosen. Set "
            "serving.parallelism, or mirror the model again.",
        )
    context = context_of(spec, facts)
    memory = memory_per_accelerator(nodes)
    options = tuple(_options(facts, nodes, spec.placement.accelerator.resource, per_node))
    if memory is None:
        option = max((o for o in options if o.pipeline == 1), key=lambda o: o.tensor * o.data)
        return Choice(
            option, f"{_spread(option)}: all of a node, because its accelerators' memory is unknown."
        )
    usable = usable_of(memory)
    for option in options:
        needed = bytes_per_accelerator(option, facts, context)
        if needed <= usable:
            return Choice(
                option,
                f"{_spread(option)}: {_gib(facts.bytes_total)} of weights and a sequence of {context} tokens "
                f"need {_gib(needed)} per accelerator, and {_gib(usable)} of {_gib(memory)} are usable."
                + _because(option, facts),
            )
    least = min(bytes_per_accelerator(option, facts, context) for option in options)
    return Unplaceable(
        reasons.INSUFFICIENT_MEMORY,
        f"{_gib(facts.bytes_total)} of weights and a sequence of {context} tokens need at least "
        f"{_gib(least)} per accelerator on these nodes, and {_gib(usable)} of {_gib(memory)} are usable. "
        "Use accelerators with more memory, add nodes, or lower maxModelLen.",
    )


def context_of(spec: SovereignModelSpec, facts: ModelFacts) -> int:
    """Tokens of the longest sequence."""
    return spec.serving.max_model_len or facts.max_position_embeddings or DEFAULT_CONTEXT


def usable_of(memory: int) -> int:
    """Bytes for weights and cache, of an accelerator's memory in bytes."""
    return memory * USABLE_PERCENT // 100 - WORKSPACE


def memory_per_accelerator(nodes: Sequence[NodeFacts]) -> int | None:
    """Bytes that each accelerator of these nodes has at least, None where one node's are unknown."""
    known = [_memory(node) for node in nodes]
    amounts = [amount for amount in known if amount is not None]
    return min(amounts) if amounts and len(amounts) == len(known) else None


def _memory(node: NodeFacts) -> int | None:
    label = node.labels.get(MEMORY_LABEL, "")
    if label.isdecimal():
        return int(label) * MIB
    names = [name for name in PRODUCT_MEMORY_GIB if (node.product or "").startswith(name)]
    return PRODUCT_MEMORY_GIB[max(names, key=len)] * GIB if names else None


def bytes_per_accelerator(option: Parallelism, facts: ModelFacts, context: int) -> int:
    """What one accelerator holds: its share of the weights, and of the cache of one sequence."""
    cache = facts.kv_bytes_per_token * context
    shards = option.tensor * option.pipeline
    experts = facts.bytes_experts // (shards * (option.data if option.expert else 1))
    rest = (facts.bytes_total - facts.bytes_experts) // shards
    kv_groups = 1 if has_latent_attention(facts) else min(option.tensor, max(facts.kv_heads, 1))
    return experts + rest + cache // (kv_groups * option.pipeline)


def has_latent_attention(facts: ModelFacts) -> bool:
    """Whether the cache is smaller than keys and values of all heads would be (multi-head latent
    attention)."""
    plain = 2 * facts.layers * facts.kv_heads * facts.head_dim * DTYPE_BYTES.get(facts.dtype, 2)
    return 0 < facts.kv_bytes_per_token < plain


def _options(
    facts: ModelFacts, nodes: Sequence[NodeFacts], resource: str, per_node: int
) -> Iterator[Parallelism]:
    """From one accelerator upwards: within a node first, then over whole nodes."""
    full_nodes = sum(node.allocatable[resource] // per_node for node in nodes)
    sizes = [(count, 1) for count in range(1, per_node + 1)] + [
        (per_node, n) for n in range(2, full_nodes + 1)
    ]
    for count, span in sizes:
        mixture = facts.experts > 0 and count * span > 1
        if mixture and has_latent_attention(facts):
            option = Parallelism(data=count * span, expert=True)
        else:
            option = Parallelism(tensor=count, pipeline=span, expert=mixture and count > 1)
        power_of_two = count & (count - 1) == 0 or count == per_node
        if power_of_two and impossible(option, facts) is None:
            yield option


def _shares_kv(tensor: int, kv_heads: int) -> bool:
    return kv_heads % tensor == 0 or tensor % kv_heads == 0


def _spread(option: Parallelism) -> str:
    sizes = {"tensor": option.tensor, "pipeline": option.pipeline, "data": option.data}
    words = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    if option.expert:
        words.append("experts spread")
    return f"Chose {', '.join(words)}" if words else "Chose a single accelerator"


def _because(option: Parallelism, facts: ModelFacts) -> str:
    if option.data > 1:
        return (
            " Data instead of tensor parallelism, because latent attention keeps a cache that cannot be cut."
        )
    if option.expert:
        return f" Its {facts.experts} experts are spread whole, which moves less than slices of each."
    return " A pipeline over nodes, because one node does not hold it." if option.pipeline > 1 else ""


def _gib(amount: int) -> str:
    return f"{amount / GIB:.1f} GiB" if amount >= GIB // 10 else f"{amount / MIB:.1f} MiB"


def _refuse(sentence: str) -> Unplaceable:
    return Unplaceable(reasons.PARALLELISM_IMPOSSIBLE, sentence[0].upper() + sentence[1:])
