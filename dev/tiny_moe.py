# SPDX-License-Identifier: Apache-2.0
"""Writes the model of the demo and the tests: a mixture of experts with random weights, 3.7 MB.

The folder looks like a repository on a model hub (Mixtral architecture, two safetensors shards and their
index, tokenizer with a chat template, model card, licence), so that everything which carries, checks and
serves a real model works on it unchanged. Only its answers are nonsense.

Only the standard library is used and every byte follows from the seed: the digests are the same on every
machine, and `make demo` needs no machine learning library on the host. Another seed stands for another
revision of the same model; another seed for the last shard alone for a model that was tuned from it, and
shares the rest.

    python -m dev.tiny_moe DIR [--seed N] [--last-seed N]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import prod
from pathlib import Path

HIDDEN = 128
INTERMEDIATE = 256
LAYERS = 2
EXPERTS = 8
EXPERTS_PER_TOKEN = 2
HEADS = 4
KV_HEADS = 2
HEAD_DIM = HIDDEN // HEADS
VOCABULARY = 512
CONTEXT = 2048

PAD, BOS, EOS = "<pad>", "<s>", "</s>"

Shape = tuple[int, ...]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'system' %}[SYS] {{ message['content'] }} [/SYS]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)

# What the tokenizer's merges are learnt from. A change here changes the model's digests.
CORPUS = """
Sovereign means that the weights stay where you put them. A model is a file, a file is bytes, and bytes have
a digest. The registry inside the cluster keeps the digest, the node checks the digest, and the pod serves
only what was checked. Nothing gets out: the policies exist before the first pod does, and the network says
no before anybody asks. A mixture of experts sends each token to a few of its experts; the experts live on
different ranks, and the ranks exchange tokens. What is the capital of France? Who are you, and what can you
do for me? The answer of this small model is nonsense, but it is always the same nonsense. Please write a
short sentence about the weather, and tell me how many planets there are.
"""


def write(directory: Path, seed: int = 0, last_seed: int | None = None) -> None:
    """Writes the repository into `directory`; the same seeds write the same bytes everywhere.

    `last_seed` is for the last shard alone; None is the seed of all.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shards = _shards()
    index: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        own = seed if last_seed is None or number < len(shards) else last_seed
        tensors = {tensor: _random_bf16(tensor, shape, own) for tensor, shape in shapes.items()}
        (directory / name).write_bytes(_safetensors(tensors, shapes))
        index |= dict.fromkeys(shapes, name)
        total += sum(map(len, tensors.values()))
    documents: dict[str, object] = {
        "config.json": _config(),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        "model.safetensors.index.json": {
            "metadata": {"total_size": total},
            "weight_map": dict(sorted(index.items())),
        },
        "special_tokens_map.json": {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD},
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {
            "bos_token": BOS,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": EOS,
            "model_max_length": CONTEXT,
            "pad_token": PAD,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }
    for name, document in documents.items():
        text = json.dumps(document, indent=2, ensure_ascii=False)
        (directory / name).write_text(text + "\n", encoding="utf-8", newline="\n")
    (directory / "README.md").write_text(_model_card(seed, last_seed), encoding="utf-8", newline="\n")
    (directory / "LICENSE").write_text(LICENCE, encoding="utf-8", newline="\n")


def _config() -> dict[str, object]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": CONTEXT,
        "model_type": "mixtral",
        "num_attention_heads": HEADS,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "num_local_experts": EXPERTS,
        "output_router_logits": False,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "router_aux_loss_coef": 0.02,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


# --- weights


def _shards() -> list[dict[str, Shape]]:
    """Tensor names and shapes per shard: the first layer with the embeddings, the second with the head."""
    first: dict[str, Shape] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    last: dict[str, Shape] = {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    for layer, shard in zip(range(LAYERS), (first, last), strict=True):
        shard.update(_layer(f"model.layers.{layer}"))
    return [first, last]


def _layer(prefix: str) -> dict[str, Shape]:
    kv = KV_HEADS * HEAD_DIM
    shapes: dict[str, Shape] = {
        f"{prefix}.input_layernorm.weight": (HIDDEN,),
        f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
        f"{prefix}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        f"{prefix}.self_attn.k_proj.weight": (kv, HIDDEN),
        f"{prefix}.self_attn.v_proj.weight": (kv, HIDDEN),
        f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        f"{prefix}.block_sparse_moe.gate.weight": (EXPERTS, HIDDEN),
    }
    for expert in range(EXPERTS):
        stem = f"{prefix}.block_sparse_moe.experts.{expert}"
        shapes[f"{stem}.w1.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"{stem}.w2.weight"] = (HIDDEN, INTERMEDIATE)
        shapes[f"{stem}.w3.weight"] = (INTERMEDIATE, HIDDEN)
    return shapes


# A bfloat16 is, in memory, a low byte (lowest exponent bit, 7 bits of mantissa) and a high byte (sign, upper
# 7 bits of the exponent). High bytes with a fixed upper exponent and any sign make numbers between 2^-k and
# 2^(2-k) in size: enough of a distribution for weights that nobody trained.
def _high_bytes(exponent: int) -> bytes:
    return bytes((byte & 0x80) | (exponent >> 1) for byte in range(256))


# Sizes chosen so that the experts' part of an answer outweighs the rest: a rank that loses its experts must
# change the tokens. Random logits lie close together, and in bfloat16 many are equal: whoever compares
# answers across ranks serves the model in float32, where the order of a sum does not decide.
LAYER = _high_bytes(122)  # 2^-5 .. 2^-3
CHOICE = _high_bytes(124)  # 2^-3 .. 2^-1
ONE = struct.pack("<H", 0x3F80)


def _random_bf16(name: str, shape: Shape, seed: int) -> bytes:
    count = prod(shape)
    if name.endswith("norm.weight"):
        return ONE * count
    high_bytes = CHOICE if name.endswith(("gate.weight", "lm_head.weight")) else LAYER
    noise = hashlib.shake_256(f"sovereign tiny moe {seed} {name}".encode()).digest(2 * count)
    values = bytearray(noise)
    values[1::2] = noise[1::2].translate(high_bytes)
    if name == "lm_head.weight":
        row = 2 * HIDDEN
        for token in _unspeakable():
            values[token * row : (token + 1) * row] = bytes(row)
    return bytes(values)


def _unspeakable() -> list[int]:
    """Tokens whose logit is always 0, so that no answer has them: half letters, control codes, the end."""
    speakable = {letter for byte, letter in _byte_letters().items() if 0x20 <= byte < 0x7F}
    return [token for token, entry in enumerate(_single_entries()) if entry not in speakable]


def _safetensors(tensors: dict[str, bytes], shapes: dict[str, Shape]) -> bytes:
    """The file format of safetensors: header length, JSON header padded to 8 bytes, data without gaps."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, data in tensors.items():
        start, end = end, end + len(data)
        header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensors.values())


# --- tokenizer


def _tokenizer() -> dict[str, object]:
    """A byte-level BPE tokenizer: every text can be written, whatever bytes it has."""
    merges = _learn_merges(CORPUS, VOCABULARY - len(_single_entries()))
    entries = [*_single_entries(), *(left + right for left, right in merges)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {entry: identity for identity, entry in enumerate(entries)}
    if len(vocabulary) != VOCABULARY:
        raise ValueError(f"the corpus yields {len(vocabulary)} different entries, {VOCABULARY} are needed")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": identity,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for identity, content in enumerate((PAD, BOS, EOS))
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(merge) for merge in merges],
        },
    }


def _single_entries() -> list[str]:
    """The vocabulary before any merge: the special tokens, then one letter for each byte."""
    return [PAD, BOS, EOS, *sorted(_byte_letters().values())]


def _byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


def _learn_merges(corpus: str, wanted: int) -> list[tuple[str, str]]:
    """Joins the most frequent pair of neighbours, again and again; ties go to the alphabetically first."""
    letters = _byte_letters()
    words = Counter(
        tuple(letters[byte] for byte in piece.encode()) for piece in _words(corpus) if piece.strip()
    )
    merges: list[tuple[str, str]] = []
    while len(merges) < wanted:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            raise ValueError(f"the corpus yields {len(merges)} merges, {wanted} are needed")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = Counter({_merged(word, best): count for word, count in words.items()})
    return merges


def _words(corpus: str) -> Iterable[str]:
    return (" " + word for word in corpus.split())


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    def parts() -> Iterator[str]:
        place = 0
        while place < len(word):
            if word[place : place + 2] == pair:
                yield "".join(pair)
                place += 2
            else:
                yield word[place]
                place += 1

    return tuple(parts())


# --- documents


def _model_card(seed: int, last_seed: int | None) -> str:
    seeds = f"seed {seed}" if last_seed is None else f"seed {seed}, the last shard seed {last_seed}"
    return f"""---
license: apache-2.0
pipeline_tag: text-generation
library_name: transformers
tags: [mixtral, moe, random-weights]
---

# Tiny MoE

A Mixtral with random weights ({seeds}): {LAYERS} layers, {EXPERTS} experts of which
{EXPERTS_PER_TOKEN} answer per token, a vocabulary of {VOCABULARY}. It exists to test the path from a model
hub to an answer. It knows nothing.
"""


LICENCE = """Apache License, Version 2.0

The weights and files of this model are licensed under the Apache License, Version 2.0. You may obtain a
copy of the License at http://www.apache.org/licenses/LICENSE-2.0. They come without warranty of any kind.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.tiny_moe", description="Write the tiny MoE model.")
    parser.add_argument("directory", type=Path, help="the folder to write the repository into")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another revision (default 0)")
    parser.add_argument("--last-seed", type=int, help="another seed for the last shard: a tuned model")
    arguments = parser.parse_args()
    write(arguments.directory, arguments.seed, arguments.last_seed)
    size = sum(file.stat().st_size for file in arguments.directory.iterdir())
    print(f"{arguments.directory}: {size} bytes, seed {arguments.seed}")


if __name__ == "__main__":
    main()
