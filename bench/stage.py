# SPDX-License-Identifier: Apache-2.0
"""What the contestants of the benchmarks move: a model on a hub, and the same blobs as an OCI layout.

The layout is made of hard links: whoever pushes from it was given the download and the hashing for nothing.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dev.hub import HubServer

REPO = "bench/model"
SIBLING = "bench/sibling"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
_PIECE = 16 * 1024 * 1024


@dataclass(frozen=True)
class Stage:
    hub_folder: Path
    layout: Path
    weights: tuple[Path, ...]
    digests: tuple[str, ...]
    """Of the weights, in the same order."""
    repo: str = REPO

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.weights)


def build(folder: Path, size: int, files: int) -> Stage:
    """`files` safetensors files of random bytes, together `size` bytes of data."""
    repository = folder / "hub" / REPO
    repository.mkdir(parents=True)
    rows = size // files // 2048
    weights: list[Path] = []
    for number in range(files):
        path = repository / f"model-{number + 1:05}-of-{files:05}.safetensors"
        _write_tensor(path, f"model.layers.{number}.mlp.up_proj.weight", rows)
        weights.append(path)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": rows,
        "num_attention_heads": 8,
        "num_hidden_layers": files,
        "vocab_size": 1024,
        "torch_dtype": "bfloat16",
    }
    (repository / "config.json").write_text(json.dumps(config))
    (repository / "tokenizer.json").write_text("{}")
    digests = tuple(_digest(path) for path in weights)
    _write_layout(folder / "layout", weights, digests)
    return Stage(folder / "hub", folder / "layout", tuple(weights), digests)


def sibling(stage: Stage) -> Stage:
    """Another model on the same hub: the weights of `stage`, but for the last, which is as large as its."""
    repository = stage.hub_folder / SIBLING
    shutil.copytree(stage.hub_folder / stage.repo, repository, copy_function=os.link)
    weights = tuple(repository / path.name for path in stage.weights)
    last = weights[-1]
    last.unlink()
    rows = json.loads((repository / "config.json").read_text())["intermediate_size"]
    _write_tensor(last, f"model.layers.{len(weights) - 1}.mlp.up_proj.weight", rows)
    digests = (*stage.digests[:-1], _digest(last))
    return Stage(stage.hub_folder, stage.layout, weights, digests, SIBLING)


def addresses(hub: HubServer, stage: Stage) -> list[str]:
    """Signed addresses of the weights: the floor does not resolve anything."""
    repository = hub.folder.repository(stage.repo)
    assert repository is not None
    assert repository.main is not None
    files = repository.main.files
    return [hub.storage_endpoint + hub.signer.sign(files[path.name]) for path in stage.weights]


def _write_tensor(path: Path, name: str, rows: int) -> None:
    left = rows * 1024 * 2
    header = json.dumps({name: {"dtype": "BF16", "shape": [rows, 1024], "data_offsets": [0, left]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        while left:
            piece = os.urandom(min(left, _PIECE))
            stream.write(piece)
            left -= len(piece)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _write_layout(folder: Path, weights: Sequence[Path], digests: Sequence[str]) -> None:
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add(content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    layers: list[dict[str, object]] = []
    for path, digest in zip(weights, digests, strict=True):
        (blobs / digest.removeprefix("sha256:")).hardlink_to(path)
        title = {"org.opencontainers.image.title": path.name}
        layers.append(
            {
                "mediaType": WEIGHT_TYPE,
                "digest": digest,
                "size": path.stat().st_size,
                "annotations": title,
            }
        )
    diff_ids = [layer["digest"] for layer in layers]
    config = add(json.dumps({"modelfs": {"type": "layers", "diffIds": diff_ids}}).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_TYPE, **config},
        "layers": layers,
    }
    root = {"mediaType": MANIFEST_TYPE, **add(json.dumps(manifest).encode())}
    index = {"schemaVersion": 2, "manifests": [root]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
