# SPDX-License-Identifier: Apache-2.0
"""Model facts: the numbers that placement needs, as a value.

They are derived (extraction.py writes them, a referrer of the artifact carries them) and may be rewritten,
so a reader compares them with config.json, which the manifest's digest covers, and fails closed where the
two disagree. A value module: the operator imports it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from sovereign_airgap.errors import FactsContradict, MalformedConfig, MalformedManifest
from sovereign_airgap.strict_json import Json, NotStrict, load_object

ARTIFACT_TYPE = "application/vnd.sovereign.model.facts.v1+json"
EXTRACTOR = "sovereign-facts/1"
MAX_FACTS_BYTES = 64 * 1024

Count = Annotated[int, Field(ge=0, le=1 << 60)]


class ModelFacts(BaseModel):
    """What a model needs and how it is built. Sizes are bytes, counts are tensors' elements or heads.

    `kv_bytes_per_token` is for all layers together at the model's own precision, and an upper bound where
    some layers attend to a window only. `parameters` counts stored elements: packed quantised weights count
    as they are stored.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", strict=True, alias_generator=to_camel, populate_by_name=True
    )

    extractor: str = EXTRACTOR
    architectures: tuple[str, ...] = Field(default=(), strict=False)
    architecture: str = ""
    dtype: str
    layers: Count
    hidden_size: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocab_size: Count
    experts: Count = 0
    experts_per_token: Count = 0
    shared_experts: Count = 0
    max_position_embeddings: Count = 0
    kv_bytes_per_token: Count
    parameters: Count
    bytes_total: Count
    bytes_experts: Count = 0
    bytes_attention: Count = 0
    bytes_embeddings: Count = 0
    bytes_other: Count = 0
    quantization: str | None = None
    remote_code: bool = False
    multimodal: bool = False

    @classmethod
    def parse(cls, content: bytes) -> ModelFacts:
        """Reads the JSON of a facts referrer."""
        try:
            if len(content) > MAX_FACTS_BYTES:
                raise NotStrict(f"{len(content)} bytes")
            return cls.model_validate(load_object(content))
        except (NotStrict, ValidationError) as error:
            found = str(error).replace("\n", " ")[:200]
            raise MalformedManifest(
                f"Expected model facts as {EXTRACTOR} writes them, found {found}; mirror the model again."
            ) from error

    def as_json(self) -> dict[str, Json]:
        document: dict[str, Json] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return document


@dataclass(frozen=True, slots=True)
class Shape:
    """What config.json alone says. Zero means that it does not say."""

    architectures: tuple[str, ...]
    dtype: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    experts: int
    experts_per_token: int
    shared_experts: int
    max_position_embeddings: int
    kv_bytes_per_token: int
    quantization: str | None
    remote_code: bool
    multimodal: bool
    extra_layers: int  # multi-token prediction layers that follow the counted ones in the weights
    dense_layers: int  # layers at the start that have no experts
    tied_embeddings: bool


DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
_INNER = ("text_config", "llm_config", "language_config", "thinker_config")
_OTHER_SENSES = ("vision_config", "audio_config", "vision_encoder", "vision_tower", "visual")


def read_config(content: bytes) -> dict[str, Json]:
    """Parses config.json (or Mistral's params.json) strictly."""
    try:
        return load_object(content)
    except NotStrict as error:
        raise MalformedConfig(
            f"Expected config.json to be a JSON object, found: {str(error)[:200]}; "
            "ask the publisher for a repaired one."
        ) from error


def shape_of(config: dict[str, Json]) -> Shape:
    """Reads the shape under the names that the model families use."""
    inner = _language_part(config)

    def number(*names: str, default: int = 0) -> int:
        for source in (inner, config):
            for name in names:
                value = source.get(name)
                if isinstance(value, int) and not isinstance(value, bool):
                    if not 0 <= value <= 1 << 40:
                        raise MalformedConfig(f"Expected {name} in config.json to be a count, found {value}.")
                    return value
        return default

    moe = inner.get("moe")
    params = moe if isinstance(moe, dict) else {}

    def routed(*names: str) -> int:
        value = next((params[name] for name in names if isinstance(params.get(name), int)), 0)
        return number(*names) or (value if isinstance(value, int) else 0)

    heads = number("num_attention_heads", "n_head", "n_heads")
    hidden = number("hidden_size", "n_embd", "d_model", "dim")
    kv_heads = number("num_key_value_heads", "n_kv_heads", "n_head_kv", default=heads)
    head_dim = number("head_dim", default=hidden // heads if heads else 0)
    layers = number("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    experts = routed("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    shared = routed("n_shared_experts", "num_shared_experts")
    if experts and not shared and number("shared_expert_intermediate_size"):
        shared = 1
    dtype = _dtype(inner, config)
    latent = number("kv_lora_rank")
    # Multi-head latent attention keeps one compressed vector and one rotary part instead of keys and values.
    per_layer = latent + number("qk_rope_head_dim") if latent else 2 * kv_heads * head_dim
    architectures = config.get("architectures") or inner.get("architectures") or []
    names = tuple(str(name) for name in architectures) if isinstance(architectures, list) else ()
    return Shape(
        architectures=names,
        dtype=dtype,
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=number("vocab_size"),
        experts=experts,
        experts_per_token=routed("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk")
        if experts
        else 0,
        shared_experts=shared if experts else 0,
        max_position_embeddings=number("max_position_embeddings", "n_positions", "max_seq_len"),
        kv_bytes_per_token=layers * per_layer * DTYPE_BYTES.get(dtype, 2),
        quantization=_quantization(inner, config),
        remote_code="auto_map" in config or "auto_map" in inner,
        multimodal=any(isinstance(config.get(key), dict) for key in _OTHER_SENSES),
        extra_layers=number("num_nextn_predict_layers", "mtp_num_hidden_layers"),
        dense_layers=number("first_k_dense_replace"),
        tied_embeddings=bool(config.get("tie_word_embeddings") or inner.get("tie_word_embeddings")),
    )


def _language_part(config: dict[str, Json]) -> dict[str, Json]:
    for key in _INNER:
        part = config.get(key)
        if isinstance(part, dict):
            return _language_part(part) if key == "thinker_config" else part
    return config


def _dtype(inner: dict[str, Json], config: dict[str, Json]) -> str:
    for source in (inner, config):
        for name in ("dtype", "torch_dtype"):
            value = source.get(name)
            if isinstance(value, str) and value != "auto":
                return value.removeprefix("torch.")
    return ""


def _quantization(inner: dict[str, Json], config: dict[str, Json]) -> str | None:
    for source in (config, inner):
        for name in ("quantization_config", "compression_config", "quantization"):
            section = source.get(name)
            if isinstance(section, dict):
                method = section.get("quant_method") or section.get("qformat_weight")
                return str(method)[:60] if method else "unknown"
    return None


# Facts that repeat config.json: a reader compares exactly these.
_REPEATED = (
    "layers", "hidden_size", "heads", "kv_heads", "head_dim", "vocab_size", "experts", "experts_per_token",
    "shared_experts", "max_position_embeddings", "quantization", "remote_code", "multimodal", "architectures",
)  # fmt: skip
assert set(_REPEATED) <= {field.name for field in fields(Shape)} & set(ModelFacts.model_fields)


def require_agreement(facts: ModelFacts, config: dict[str, Json]) -> None:
    """Raises FactsContradict where the facts repeat config.json differently: they are of another model."""
    shape = shape_of(config)
    for name in _REPEATED:
        said, found = getattr(shape, name), getattr(facts, name)
        if said != found:
            raise FactsContradict(
                f"Expected the model facts to say {name} = {said!r} as config.json does, found {found!r}; "
                "mirror the model again to rewrite its facts."
            )
