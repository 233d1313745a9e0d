# SPDX-License-Identifier: Apache-2.0
"""Small model repositories, as dicts from path to content, that the mirror takes: a one-layer Llama."""

import json
import random
from collections.abc import Mapping
from pathlib import Path

HIDDEN, HEADS, VOCABULARY, INNER = 32, 2, 512, 64

WEIGHTS = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"

CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "num_hidden_layers": 1,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "torch_dtype": "bfloat16",
}

EMBEDDINGS = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
LAYER = {
    "model.norm.weight": (HIDDEN,),
    **{f"model.layers.0.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"},
    **{f"model.layers.0.mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")},
    "model.layers.0.mlp.down_proj.weight": (HIDDEN, INNER),
    "model.layers.0.input_layernorm.weight": (HIDDEN,),
    "model.layers.0.post_attention_layernorm.weight": (HIDDEN,),
}


def safetensors(shapes: Mapping[str, tuple[int, ...]], seed: str) -> bytes:
    """A valid file of random bfloat16 tensors; the same seed gives the same bytes."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        start, length = end, 2
        for extent in shape:
            length *= extent
        end += length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    return framed(json.dumps(header).encode()) + random.Random(seed).randbytes(end)


def framed(header: bytes) -> bytes:
    """The length and the header, padded to eight bytes as the format wants its data aligned."""
    padded = header + b" " * (-len(header) % 8)
    return len(padded).to_bytes(8, "little") + padded


def a_model(seed: str = "a model", **files: bytes | None) -> dict[str, bytes]:
    """A servable repository in two shards; `files` (by path) replace, add, or with None remove."""
    shards = {
        WEIGHTS: safetensors(EMBEDDINGS, f"{seed} 1"),
        SECOND: safetensors(LAYER, f"{seed} 2"),
    }
    names = dict.fromkeys(EMBEDDINGS, WEIGHTS)
    names |= dict.fromkeys(LAYER, SECOND)
    index = {"metadata": {"total_size": 0}, "weight_map": names}
    repository: dict[str, bytes | None] = {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": f"# {seed}\n".encode(),
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b'{"version": "1.0"}',
        "model.safetensors.index.json": json.dumps(index).encode(),
        **shards,
        **files,
    }
    return {path: body for path, body in repository.items() if body is not None}


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, body in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(body)
