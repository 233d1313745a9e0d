# SPDX-License-Identifier: Apache-2.0
"""The planner as tables: what is asked for and what is there, beside what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from sovereign_airgap.facts import ModelFacts
from sovereign_operator import reasons
from sovereign_operator.api import Parallelism
from sovereign_operator.parallelism import bytes_per_accelerator, has_latent_attention
from sovereign_operator.placement import accelerators_per_worker, plan
from sovereign_operator.values import NodeFacts, Placement, Unplaceable
from tests.unit.operator.builders import a_config, a_gpu_taint, a_model, a_node, an_example, the_facts

CONFIG = a_config()
H200 = 143771


def placed(nodes: list[NodeFacts], facts: ModelFacts | None = None, **spec: Any) -> Placement:
    result = plan(a_model(**spec).spec, facts, nodes, CONFIG)
    assert isinstance(result, Placement), result
    return result


def refused(nodes: list[NodeFacts], facts: ModelFacts | None = None, **spec: Any) -> Unplaceable:
    result = plan(a_model(**spec).spec, facts, nodes, CONFIG)
    assert isinstance(result, Unplaceable), result
    return result


# -- which nodes ------------------------------------------------------------------------------------------

ONE: dict[str, Any] = {"serving": {"parallelism": {"tensor": 1}}}


@pytest.mark.parametrize(
    ("node", "spec", "said"),
    [
        (
            a_node(product="NVIDIA-L4", accelerators=4),
            {"accelerator": {"product": "NVIDIA-H200"}},
            "4 x NVIDIA-L4",
        ),
        (a_node(product=None), {"accelerator": {"product": "NVIDIA-H200"}}, "8 x no product label"),
        (a_node(accelerators=0), {}, "no nvidia.com/gpu"),
        (a_node(), {"accelerator": {"resource": "amd.com/gpu"}}, "no amd.com/gpu"),
        (a_node(ready=False), {}, "not ready"),
        (a_node(schedulable=False), {}, "cordoned"),
        (a_node(taints=(a_gpu_taint("x"),)), {}, "taint nvidia.com/gpu=x"),
        (a_node(labels={"hall": "b"}), {"nodeSelector": {"hall": "a"}}, "hall=b"),
        (a_node(), {"nodeSelector": {"hall": "a"}}, "no label hall"),
    ],
)
def test_a_node_that_does_not_match_is_named_with_its_defect(node: NodeFacts, spec: Any, said: str) -> None:
    result = refused([node], placement=spec, **ONE)
    assert result.reason == reasons.NO_MATCHING_NODES
    assert f"gpu-a ({said})" in result.message


def test_what_was_looked_for_is_said_in_full() -> None:
    wish: dict[str, Any] = {"accelerator": {"product": "NVIDIA-H200"}, "nodeSelector": {"hall": "a"}}
    message = refused([], placement=wish, **ONE).message
    assert message == (
        "Looked for a ready node with the resource nvidia.com/gpu and nvidia.com/gpu.product=NVIDIA-H200 and "
        "hall=a; found no nodes at all."
    )


def test_a_thousand_nodes_make_a_short_message() -> None:
    message = refused([a_node(f"node-{n:04}", accelerators=0) for n in range(1000)], **ONE).message
    assert message.endswith("and 992 more.") and len(message) < 500


def test_it_is_placed_once_such_a_node_appears() -> None:
    wish: dict[str, Any] = {"placement": {"accelerator": {"product": "NVIDIA-H200"}}, **ONE}
    nodes = [a_node("other", product="NVIDIA-L4")]
    assert refused(nodes, **wish).reason == reasons.NO_MATCHING_NODES
    assert placed([*nodes, a_node("new", product="NVIDIA-H200")], **wish).nodes == ("new",)


@pytest.mark.parametrize(
    "toleration",
    [
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"key": "nvidia.com/gpu", "value": "x"},
        {"operator": "Exists"},
        {"operator": "Exists", "effect": "NoSchedule"},
    ],
)
def test_a_tolerated_taint_is_no_obstacle(toleration: dict[str, str]) -> None:
    node = a_node(taints=(a_gpu_taint("x"),))
    assert placed([node], placement={"tolerations": [toleration]}, **ONE).nodes == ("gpu-a",)


@pytest.mark.parametrize(
    "toleration",
    [{"key": "other", "operator": "Exists"}, {"key": "nvidia.com/gpu", "value": "y"},
     {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"}],
)  # fmt: skip
def test_a_toleration_of_something_else_does_not_help(toleration: dict[str, str]) -> None:
    node = a_node(taints=(a_gpu_taint("x"),))
    assert refused([node], placement={"tolerations": [toleration]}, **ONE).reason == reasons.NO_MATCHING_NODES


# -- worker pods ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """A parallelism and what a node gives, beside accelerators, workers and ranks of the pods."""

    tensor: int
    pipeline: int
    data: int
    per_node: int
    accelerators: int | None
    workers: int = 0
    ranks: int = 0


LAYOUTS = (
    Layout(1, 1, 1, per_node=8, accelerators=1, workers=1, ranks=1),
    Layout(4, 1, 1, per_node=8, accelerators=4, workers=1, ranks=1),
    Layout(1, 1, 2, per_node=1, accelerators=1, workers=2, ranks=1),  # the demo
    Layout(1, 1, 16, per_node=8, accelerators=8, workers=2, ranks=8),  # DeepSeek over two nodes
    Layout(2, 1, 4, per_node=8, accelerators=8, workers=1, ranks=4),
    Layout(8, 2, 1, per_node=8, accelerators=8, workers=2, ranks=0),  # one rank over two nodes
    Layout(8, 2, 2, per_node=8, accelerators=8, workers=4, ranks=0),
    Layout(2, 2, 3, per_node=8, accelerators=4, workers=3, ranks=1),  # twelve do not fill eights
    Layout(3, 1, 2, per_node=4, accelerators=3, workers=2, ranks=1),
    Layout(4, 3, 1, per_node=8, accelerators=4, workers=3, ranks=0),  # eight would cut a stage in two
    Layout(16, 1, 1, per_node=8, accelerators=None),
)


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_replica_is_cut_into_equal_pods(case: Layout) -> None:
    wanted = Parallelism(tensor=case.tensor, pipeline=case.pipeline, data=case.data)
    amount = accelerators_per_worker(wanted, case.per_node)
    assert amount == case.accelerators
    if amount is not None:
        nodes = [a_node(f"gpu-{n}") for n in range(4)]
        parallelism = wanted.model_dump(include={"tensor", "pipeline", "data"})
        wish: dict[str, Any] = {
            "placement": {"accelerator": {"perNode": case.per_node}},
            "serving": {"parallelism": parallelism},
        }
        result = placed(nodes, **wish)
        assert (result.workers, result.ranks_per_worker) == (case.workers, case.ranks)
        assert result.workers * result.accelerators_per_worker == case.tensor * case.pipeline * case.data


@pytest.mark.parametrize(
    ("nodes", "serving", "said"),
    [
        ([a_node(accelerators=4)], {"parallelism": {"tensor": 8}}, "a node gives at most 4 x nvidia.com/gpu"),
        (
            [a_node()],
            {"parallelism": {"tensor": 8}, "replicas": 2},
            "Looked for 2 places of 8 x nvidia.com/gpu",
        ),
        ([a_node()], {"parallelism": {"data": 16}}, "found 1: gpu-a has 8"),
    ],
)
def test_too_few_accelerators_are_counted(nodes: list[NodeFacts], serving: Any, said: str) -> None:
    result = refused(nodes, serving=serving)
    assert result.reason == reasons.INSUFFICIENT_ACCELERATORS
    assert said in result.message


def test_more_per_node_than_any_node_has_is_too_few() -> None:
    wish: dict[str, Any] = {
        "placement": {"accelerator": {"perNode": 8}},
        "serving": {"parallelism": {"data": 8}},
    }
    result = refused([a_node("a", accelerators=4), a_node("b", accelerators=4)], **wish)
    assert result.reason == reasons.INSUFFICIENT_ACCELERATORS
    assert "a has 4, b has 4" in result.message


def test_smaller_nodes_are_no_candidates() -> None:
    nodes = [a_node("big", accelerators=8), a_node("small", accelerators=2)]
    assert placed(nodes, serving={"parallelism": {"tensor": 4}}).nodes == ("big",)


# -- what the engine would refuse -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallelism", "facts", "said"),
    [
        ({"tensor": 3}, the_facts(), "32 attention heads, found 3; take 1, 2, 4, 8, 16, 32."),
        ({"tensor": 4}, the_facts(heads=12, kv_heads=6), "6 key-value heads must divide the other, found 4"),
        ({"pipeline": 40}, the_facts(), "32 layers, found 40"),
        (
            {"tensor": 4, "expert": True},
            the_facts("mistral-medium-3.5"),
            "this model is dense; remove expert",
        ),
        (
            {"tensor": 4, "data": 2},
            the_facts("mistral-medium-3.5"),
            "this model is dense; remove data 2 and set replicas instead",
        ),
        ({"data": 16, "expert": True}, the_facts(), "8 experts do not spread over tensor x data = 16"),
        (
            {"tensor": 8, "expert": True, "redundantExperts": 3},
            the_facts(),
            "so that their sum is a multiple of 8",
        ),
    ],
)
def test_an_impossible_parallelism_is_refused_before_a_pod_exists(
    parallelism: Any, facts: ModelFacts, said: str
) -> None:
    result = refused(
        [a_node(f"n{n}", accelerators=64) for n in range(3)], facts, serving={"parallelism": parallelism}
    )
    assert result.reason == reasons.PARALLELISM_IMPOSSIBLE
    assert said in result.message


def test_nobody_refuses_a_parallelism_of_which_nothing_is_known() -> None:
    assert placed([a_node()], None, serving={"parallelism": {"tensor": 3}}).tensor == 3
    nothing = the_facts(layers=0, experts=0)
    assert placed([a_node()], nothing, serving={"parallelism": {"data": 2}}).data == 2


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (the_facts("deepseek-v3"), None),  # brings code, and the engine knows it without
        (the_facts(architectures=("Exotic",), remote_code=True), reasons.REMOTE_CODE_REQUIRED),
        (the_facts(architectures=(), architecture="", remote_code=True), reasons.REMOTE_CODE_REQUIRED),
        (the_facts(architectures=("Exotic",), remote_code=False), None),  # the engine may know a generic way
    ],
)
def test_code_from_a_repository_is_never_run(facts: ModelFacts, reason: str | None) -> None:
    result = plan(a_model(**ONE).spec, facts, [a_node()], CONFIG)
    assert (result.reason if isinstance(result, Unplaceable) else None) == reason


# -- what is chosen ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    model: str
    nodes: tuple[NodeFacts, ...]
    tensor: int
    pipeline: int
    data: int
    expert: bool
    why: str
    max_model_len: int | None = None


H200_NODE = a_node("h200", product="NVIDIA-H200", memory_mib=H200)
CHOICES = (
    Chosen("mixtral-8x7b", (a_node(),), 2, 1, 1, True, "Its 8 experts are spread whole"),
    Chosen("mixtral-8x7b", (H200_NODE,), 1, 1, 1, False, "Chose a single accelerator"),
    Chosen("mixtral-8x7b", (a_node(memory_mib=24564),), 8, 1, 1, True, "tensor 8"),
    Chosen("mixtral-8x7b", (a_node(memory_mib=None),), 2, 1, 1, True, "of 79.0 GiB are usable"),
    Chosen(
        "mixtral-8x7b", (a_node(memory_mib=None, product="Unheard-Of"),), 8, 1, 1, True, "memory is unknown"
    ),
    Chosen("mistral-medium-3.5", (H200_NODE,), 2, 1, 1, False, "a sequence of 262144 tokens"),
    Chosen("mistral-medium-3.5", (H200_NODE,), 2, 1, 1, False, "sequence of 8192 tokens", max_model_len=8192),
    Chosen("deepseek-v3", (H200_NODE,), 1, 1, 8, True, "latent attention"),
    Chosen("deepseek-v3", (a_node("a"), a_node("b")), 1, 1, 16, True, "latent", max_model_len=32768),
    Chosen(
        "mistral-medium-3.5",
        tuple(a_node(name, accelerators=2, memory_mib=49140) for name in ("a", "b", "c", "d")),
        2, 3, 1, False, "A pipeline over nodes",
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    "case", CHOICES, ids=lambda case: f"{case.model}-{case.tensor}-{case.pipeline}-{case.data}"
)
def test_parallelism_left_out_follows_from_sizes(case: Chosen) -> None:
    serving = {"maxModelLen": case.max_model_len} if case.max_model_len else {}
    result = placed(list(case.nodes), the_facts(case.model), serving=serving)
    found = (result.tensor, result.pipeline, result.data, result.expert)
    assert found == (case.tensor, case.pipeline, case.data, case.expert), result.why
    assert case.why in result.why


def test_the_choice_says_what_it_weighed() -> None:
    assert placed([a_node()], the_facts()).why == (
        "Chose tensor 2, experts spread: 87.0 GiB of weights and a sequence of 32768 tokens need 45.5 GiB per"
        " "
        "accelerator, and 67.7 GiB of 79.6 GiB are usable. Its 8 experts are spread whole, which moves less "
        "than slices of each. A replica is 1 worker pod with 2 x nvidia.com/gpu each."
    )


def test_a_model_that_fits_nowhere_says_how_much_is_missing() -> None:
    result = refused([a_node(accelerators=2, memory_mib=24564)], the_facts("deepseek-v3"))
    assert result.reason == reasons.INSUFFICIENT_MEMORY
    assert "of 24.0 GiB are usable" in result.message


def test_without_facts_nothing_is_chosen() -> None:
    assert refused([a_node()]).reason == reasons.FACTS_MISSING


def test_on_cpus_one_rank_is_chosen() -> None:
    result = placed([a_node()], None, serving={"device": "cpu"})
    assert (result.tensor, result.data, result.accelerators_per_worker) == (1, 1, 1)


def test_latent_attention_is_seen_in_the_size_of_the_cache() -> None:
    assert has_latent_attention(the_facts("deepseek-v3"))
    assert not has_latent_attention(the_facts("mixtral-8x7b"))


def test_tensor_parallelism_does_not_cut_a_latent_cache() -> None:
    facts = the_facts("deepseek-v3", bytes_total=0, bytes_experts=0)
    assert bytes_per_accelerator(Parallelism(tensor=8), facts, 1000) == 1000 * facts.kv_bytes_per_token


@pytest.mark.parametrize(
    "name", ["tiny-moe", "mixtral-8x7b", "mistral-small-4", "mistral-medium-3.5", "deepseek-v3"]
)
def test_every_example_can_be_placed(name: str) -> None:
    from tests.unit.operator.test_ray_service import example_nodes

    result = plan(an_example(name).spec, the_facts(name), example_nodes(name), a_config())
    assert isinstance(result, Placement), result
