# SPDX-License-Identifier: Apache-2.0
"""Builders of tiny model repositories: real safetensors headers, bytes from a seed."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from sovereign_airgap.strict_json import Json

REPO = "Org/Tiny-MoE"


def some_bytes(size: int, seed: str = "") -> bytes:
    """The same bytes on every machine."""
    out = bytearray()
    count = 0
    while len(out) < size:
        out += hashlib.sha256(f"{seed}{count}".encode()).digest()
        count += 1
    return bytes(out[:size])


def a_header(tensors: dict[str, tuple[str, list[int]]]) -> tuple[bytes, int]:
    """Header JSON and the size of the data it describes; dtypes of one and two bytes only."""
    entries: dict[str, Json] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = 2 if dtype in ("BF16", "F16") else 1
        for length in shape:
            size *= length
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return json.dumps(entries).encode(), at


def a_safetensors(tensors: dict[str, tuple[str, list[int]]], seed: str = "") -> bytes:
    header, size = a_header(tensors)
    return struct.pack("<Q", len(header)) + header + some_bytes(size, seed)


def a_config(**changes: Json) -> dict[str, Json]:
    config: dict[str, Json] = {
        "architectures": ["MixtralForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 32,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "max_position_embeddings": 128,
        "torch_dtype": "bfloat16",
    }
    return {**config, **changes}


def layer_tensors(layer: int, width: int = 16) -> dict[str, tuple[str, list[int]]]:
    prefix = f"model.layers.{layer}"
    return {
        f"{prefix}.self_attn.q_proj.weight": ("BF16", [width, 16]),
        f"{prefix}.block_sparse_moe.experts.0.w1.weight": ("BF16", [width, 16]),
        f"{prefix}.block_sparse_moe.experts.1.w1.weight": ("BF16", [width, 16]),
        f"{prefix}.input_layernorm.weight": ("BF16", [16]),
    }


def a_repository(root: Path, *, width: int = 16) -> dict[str, bytes]:
    """Writes a two-shard Mixtral with documents, code and a pickle beside it; returns what was written."""
    shards = {
        "model-00001-of-00002.safetensors": {
            "model.embed_tokens.weight": ("BF16", [32, 16]),
            **layer_tensors(0, width),
        },
        "model-00002-of-00002.safetensors": {**layer_tensors(1, width), "lm_head.weight": ("BF16", [32, 16])},
    }
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    files = {name: a_safetensors(tensors, name) for name, tensors in shards.items()}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    files["config.json"] = json.dumps(a_config()).encode()
    files["tokenizer.json"] = b'{"version": "1.0"}'
    files["README.md"] = b"# tiny\n"
    files["LICENSE"] = b"Apache-2.0\n"
    files["modeling_tiny.py"] = b"raise SystemExit\n"
    files["pytorch_model.bin"] = b"\x80\x04pickle"
    files["empty.json"] = b""
    write(root / REPO, files)
    return files


def write(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


TAKEN = (
    "LICENSE",
    "README.md",
    "config.json",
    "empty.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
)
