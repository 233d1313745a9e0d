# SPDX-License-Identifier: Apache-2.0
"""From safetensors headers and config.json to model facts. Pure.

The headers say what is there, config.json says what it means. Where the two contradict each other there are
no facts: a planner that has none asks the user, a planner that has wrong ones starts what cannot run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sovereign_airgap.errors import FactsContradict
from sovereign_airgap.facts import ModelFacts, Shape, shape_of
from sovereign_airgap.safetensors_header import Tensor
from sovereign_airgap.strict_json import Json

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,4})\.")
_EXPERT = re.compile(r"\.experts\.(\d{1,5})\.")
_FUSED_EXPERTS = re.compile(r"\.experts\.(?!\d)")
_SHARED_EXPERT = re.compile(r"shared_expert")
_ATTENTION = re.compile(r"(?:^|\.)(?:self_attn|attention|attn|linear_attn|mixer)\.")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|tok_embeddings|word_embeddings|wte|lm_head|embed_out|output)\.weight"
)
_INPUT_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|tok_embeddings|word_embeddings|wte)\.weight$")
_OTHER_SENSE = re.compile(r"(?:^|\.)(?:vision|visual|audio|image|multi_modal|mm_)\w*\.|\.vision_\w+\.")
# From a safetensors dtype to the name that config.json uses.
_TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64",
          "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8"}  # fmt: skip
_PRECISION = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64", "F8_E4M3": "fp8", "F8_E5M2": "fp8",
              "I8": "int8", "U8": "uint8", "I32": "int32", "F4": "fp4"}  # fmt: skip


@dataclass(slots=True)
class Survey:
    """What the headers of one model add up to; grows file by file, never holds the tensors."""

    parameters: int = 0
    experts: int = 0
    attention: int = 0
    embeddings: int = 0
    other: int = 0
    dtypes: Counter[str] = field(default_factory=Counter)
    layer_numbers: set[int] = field(default_factory=set)
    expert_numbers: set[int] = field(default_factory=set)
    fused_experts: set[int] = field(default_factory=set)
    embedding_shapes: set[tuple[int, ...]] = field(default_factory=set)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Counts the tensors of one file."""
        for tensor in tensors:
            self.parameters += tensor.elements
            self.dtypes[tensor.dtype] += tensor.size
            self._classify(tensor)

    def merge(self, other: Survey) -> None:
        self.parameters += other.parameters
        self.experts += other.experts
        self.attention += other.attention
        self.embeddings += other.embeddings
        self.other += other.other
        self.dtypes.update(other.dtypes)
        self.layer_numbers |= other.layer_numbers
        self.expert_numbers |= other.expert_numbers
        self.fused_experts |= other.fused_experts
        self.embedding_shapes |= other.embedding_shapes

    @property
    def size(self) -> int:
        return self.experts + self.attention + self.embeddings + self.other

    @property
    def dtype(self) -> str:
        """The dtype of most bytes; the first by name where two are equal."""
        return min(self.dtypes, key=lambda name: (-self.dtypes[name], name)) if self.dtypes else ""

    @property
    def precision(self) -> str:
        return _PRECISION.get(self.dtype, self.dtype.lower() or "unknown")

    def _classify(self, tensor: Tensor) -> None:
        name, size = tensor.name, tensor.size
        if _OTHER_SENSE.search(name):
            self.other += size
            return
        layer = _LAYER.search(name)
        if layer:
            self.layer_numbers.add(int(layer[1]))
        expert = None if _SHARED_EXPERT.search(name) else _EXPERT.search(name)
        if expert:
            self.expert_numbers.add(int(expert[1]))
            self.experts += size
        elif _FUSED_EXPERTS.search(name) and not _SHARED_EXPERT.search(name):
            if len(tensor.shape) >= 2:
                self.fused_experts.add(tensor.shape[0])
            self.experts += size
        elif _EMBEDDING.search(name):
            self.embeddings += size
            if _INPUT_EMBEDDING.search(name) and len(tensor.shape) == 2:
                self.embedding_shapes.add(tensor.shape)
        elif _ATTENTION.search(name):
            self.attention += size
        else:
            self.other += size


def parameter_size(parameters: int) -> str:
    """A count as people say it: 46.7b, 350m, 1.8m. Integers only, so that every machine rounds alike."""
    for unit, suffix in ((10**9, "b"), (10**6, "m"), (10**3, "k")):
        tenths = (parameters * 10 + unit // 2) // unit
        if tenths >= 10:
            return f"{tenths // 10}{suffix}" if tenths % 10 == 0 else f"{tenths // 10}.{tenths % 10}{suffix}"
    return str(parameters)


def extract(survey: Survey, config: dict[str, Json]) -> ModelFacts:
    """Facts from both sides, or FactsContradict naming the first point where they differ."""
    shape = shape_of(config)
    for defect in (_no_shape, _layers_differ, _experts_differ, _embedding_differs):
        found = defect(survey, shape)
        if found is not None:
            raise FactsContradict(found)
    return ModelFacts(
        architectures=shape.architectures,
        architecture=shape.architectures[0] if shape.architectures else "",
        dtype=shape.dtype or _TORCH.get(survey.dtype, survey.dtype.lower()),
        layers=shape.layers,
        hidden_size=shape.hidden_size,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        experts=shape.experts,
        experts_per_token=shape.experts_per_token,
        shared_experts=shape.shared_experts,
        max_position_embeddings=shape.max_position_embeddings,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        parameters=survey.parameters,
        bytes_total=survey.size,
        bytes_experts=survey.experts,
        bytes_attention=survey.attention,
        bytes_embeddings=survey.embeddings,
        bytes_other=survey.other,
        quantization=shape.quantization,
        remote_code=shape.remote_code,
        multimodal=shape.multimodal,
    )


def _no_shape(survey: Survey, shape: Shape) -> str | None:
    names = ("layers", "hidden_size", "heads", "vocab_size")
    missing = [name for name in names if getattr(shape, name) == 0]
    if not missing:
        return None
    return f"Expected config.json to say {', '.join(missing)}, found nothing under the names that we know."


def _layers_differ(survey: Survey, shape: Shape) -> str | None:
    numbers = survey.layer_numbers
    if not numbers:
        return None
    missing = set(range(shape.layers)) - numbers
    surplus = [number for number in numbers if number >= shape.layers + shape.extra_layers]
    if not missing and not surplus:
        return None
    return (
        f"Expected tensors of {shape.layers} layers as config.json says, found layers up to {max(numbers)}"
        + (f" and none of layer {min(missing)}." if missing else ".")
    )


def _experts_differ(survey: Survey, shape: Shape) -> str | None:
    found = {len(survey.expert_numbers)} if survey.expert_numbers else survey.fused_experts
    if (not found and shape.experts == 0) or found == {shape.experts}:
        return None
    return (
        f"Expected tensors of {shape.experts} experts as config.json says, found {sorted(found) or 'none'}."
    )


def _embedding_differs(survey: Survey, shape: Shape) -> str | None:
    if shape.quantization is not None:
        return None
    for rows, width in sorted(survey.embedding_shapes):
        # Rows may be padded; fewer rows than words, or another width, is another model.
        if width != shape.hidden_size or rows < shape.vocab_size:
            said = f"{shape.vocab_size} x {shape.hidden_size}"
            return f"Expected an embedding of {said} as config.json says, found {rows} x {width}."
    return None
