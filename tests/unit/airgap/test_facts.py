# SPDX-License-Identifier: Apache-2.0
"""Facts of the model families that we serve, and what happens when two sources disagree."""

from __future__ import annotations

import pytest

from sovereign_airgap.errors import FactsContradict, MalformedConfig, MalformedManifest
from sovereign_airgap.extraction import Survey, extract
from sovereign_airgap.facts import ModelFacts, read_config, require_agreement, shape_of
from sovereign_airgap.manifest import canonical_json
from sovereign_airgap.safetensors_header import Tensor
from sovereign_airgap.strict_json import Json
from tests.unit.airgap.models import a_config, layer_tensors

DEEPSEEK: dict[str, Json] = {
    "architectures": ["DeepseekV3ForCausalLM"], "auto_map": {"AutoModel": "x.Y"}, "num_hidden_layers": 61,
    "hidden_size": 7168, "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280,
    "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "kv_lora_rank": 512,
    "qk_rope_head_dim": 64, "max_position_embeddings": 163840, "torch_dtype": "bfloat16",
    "num_nextn_predict_layers": 1, "quantization_config": {"quant_method": "fp8"}, "first_k_dense_replace": 3,
}  # fmt: skip
QWEN: dict[str, Json] = {
    "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 48, "hidden_size": 2048, "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 151936, "num_experts": 128,
    "num_experts_per_tok": 8, "max_position_embeddings": 40960, "dtype": "bfloat16",
}  # fmt: skip
VISION: dict[str, Json] = {
    "architectures": ["Mistral3ForConditionalGeneration"], "vision_config": {"num_hidden_layers": 24},
    "text_config": {"num_hidden_layers": 40, "hidden_size": 5120, "head_dim": 128, "num_attention_heads": 32,
                    "num_key_value_heads": 8, "vocab_size": 131072, "max_position_embeddings": 131072},
    "torch_dtype": "bfloat16",
}  # fmt: skip
MISTRAL_PARAMS: dict[str, Json] = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 32000,
    "moe": {"num_experts": 8, "num_experts_per_tok": 2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "layers", "experts", "active", "kv_bytes", "multimodal"),
    [
        (DEEPSEEK, 61, 256, 8, 61 * (512 + 64) * 2, False),
        (QWEN, 48, 128, 8, 48 * 2 * 4 * 128 * 2, False),
        (VISION, 40, 0, 0, 40 * 2 * 8 * 128 * 2, True),
        (MISTRAL_PARAMS, 32, 8, 2, 32 * 2 * 8 * 128 * 2, False),
    ],
    ids=["deepseek-v3", "qwen3-moe", "mistral-3-vision", "params.json"],
)
def test_each_family_is_read_under_its_own_names(
    config: dict[str, Json], layers: int, experts: int, active: int, kv_bytes: int, multimodal: bool
) -> None:
    shape = shape_of(config)
    assert (shape.layers, shape.experts, shape.experts_per_token) == (layers, experts, active)
    assert shape.kv_bytes_per_token == kv_bytes
    assert shape.multimodal is multimodal


def test_remote_code_and_quantisation_are_recorded() -> None:
    shape = shape_of(DEEPSEEK)
    assert (shape.remote_code, shape.quantization, shape.shared_experts) == (True, "fp8", 1)


def a_survey(*layers: int, **more: tuple[str, list[int]]) -> Survey:
    survey = Survey()
    tensors = {"model.embed_tokens.weight": ("BF16", [32, 16])}
    for layer in layers:
        tensors |= layer_tensors(layer)
    tensors |= more
    for name, (dtype, shape) in tensors.items():
        count = 2
        for length in shape:
            count *= length
        survey.add([Tensor(name, dtype, tuple(shape), count)])
    return survey


def test_bytes_are_split_by_what_they_are() -> None:
    facts = extract(a_survey(0, 1), a_config())
    assert facts.bytes_experts == 2 * 2 * 16 * 16 * 2
    assert facts.bytes_attention == 2 * 16 * 16 * 2
    assert facts.bytes_embeddings == 32 * 16 * 2
    assert facts.bytes_other == 2 * 16 * 2
    assert facts.parameters * 2 == facts.bytes_total
    assert (facts.dtype, facts.architecture) == ("bfloat16", "MixtralForCausalLM")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"num_local_experts": 3},
        {"num_local_experts": 0},
        {"hidden_size": 32},
        {"vocab_size": 33},
        {"num_attention_heads": 0},
    ],
)
def test_tensors_that_contradict_config_json_give_no_facts(changes: dict[str, Json]) -> None:
    with pytest.raises(FactsContradict, match=r"config\.json"):
        extract(a_survey(0, 1), a_config(**changes))


def test_prediction_layers_shared_and_fused_experts_and_vision_layers_are_no_contradiction() -> None:
    extract(a_survey(0, 1, 2), a_config(num_nextn_predict_layers=1))
    more = {
        "vision_tower.layers.7.attn.weight": ("BF16", [4]),
        "model.layers.0.mlp.shared_experts.up.weight": ("BF16", [4]),
    }
    extract(a_survey(0, 1, **more), a_config())
    fused = Survey()
    fused.add(Tensor(f"model.layers.{n}.mlp.experts.gate_up_proj", "BF16", (2, 4, 4), 64) for n in (0, 1))
    assert extract(fused, a_config()).bytes_experts == 128


def test_facts_read_back_and_unknown_fields_are_left_alone() -> None:
    facts = extract(a_survey(0, 1), a_config())
    assert ModelFacts.parse(canonical_json(facts.as_json())) == facts
    assert ModelFacts.parse(canonical_json({**facts.as_json(), "later": 1})) == facts
    assert "kvBytesPerToken" in facts.as_json()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"layers": 1, "layers": 2}', b" " * 70_000])
def test_facts_that_are_none_are_refused(content: bytes) -> None:
    with pytest.raises(MalformedManifest):
        ModelFacts.parse(content)


@pytest.mark.parametrize(
    "changes", [{"num_local_experts": 4}, {"auto_map": {}}, {"architectures": ["Other"]}]
)
def test_a_reader_fails_closed_where_facts_contradict_config_json(changes: dict[str, Json]) -> None:
    facts = extract(a_survey(0, 1), a_config())
    require_agreement(facts, a_config())
    with pytest.raises(FactsContradict):
        require_agreement(facts, a_config(**changes))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a":1,"a":2}'])
def test_a_config_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedConfig):
        read_config(content)


def test_a_count_out_of_reach_is_refused() -> None:
    with pytest.raises(MalformedConfig):
        shape_of({"num_hidden_layers": -1})
