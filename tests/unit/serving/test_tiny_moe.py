# SPDX-License-Identifier: Apache-2.0
"""The demo's model: the same bytes everywhere, in the shape of a real repository."""

import hashlib
import json
from pathlib import Path

import pytest
from safetensors import deserialize

from dev import tiny_moe


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-moe")
    tiny_moe.write(directory)
    return directory


def digest_of(directory: Path) -> str:
    """One digest for all names and bytes."""
    whole = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        whole.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def test_the_bytes_are_the_same_on_every_machine(repository: Path) -> None:
    assert digest_of(repository) == "d163f57ff073f54684ba6c8141f208522c828d2a97da4e9c317623a1330a7363"


def test_another_seed_is_another_revision_of_the_same_model(repository: Path, tmp_path: Path) -> None:
    tiny_moe.write(tmp_path, seed=1)
    changed = {
        file.name for file in repository.iterdir() if file.read_bytes() != (tmp_path / file.name).read_bytes()
    }
    assert changed == {
        "README.md",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_a_tuned_model_shares_all_shards_but_the_last(repository: Path, tmp_path: Path) -> None:
    tiny_moe.write(tmp_path, last_seed=1)
    changed = {
        file.name for file in repository.iterdir() if file.read_bytes() != (tmp_path / file.name).read_bytes()
    }
    assert changed == {"README.md", "model-00002-of-00002.safetensors"}


def test_the_index_names_every_tensor_of_both_shards(repository: Path) -> None:
    index = json.loads((repository / "model.safetensors.index.json").read_text())
    found: dict[str, str] = {}
    for shard in sorted(repository.glob("*.safetensors")):
        found |= dict.fromkeys((name for name, _ in deserialize(shard.read_bytes())), shard.name)
    assert found == index["weight_map"]
    assert set(found.values()) == {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    assert sum("experts" in name for name in found) == 2 * 8 * 3


def test_the_vocabulary_is_whole(repository: Path) -> None:
    tokenizer = json.loads((repository / "tokenizer.json").read_text())
    assert sorted(tokenizer["model"]["vocab"].values()) == list(range(512))
    vocabulary = tokenizer["model"]["vocab"].keys()
    assert all({left, right, left + right} <= vocabulary for left, right in tokenizer["model"]["merges"])
