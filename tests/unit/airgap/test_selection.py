# SPDX-License-Identifier: Apache-2.0
"""What is taken from a repository, file by file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.errors import (
    IndexNamesMissingFile,
    MalformedConfig,
    NothingServable,
    SovereignError,
    TooManyFiles,
    UnsafeFileName,
)
from sovereign_airgap.selection import Selection, Wish, index_paths, media_type_of, select


def an_index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"t{n}": shard for n, shard in enumerate(shards)}}).encode()


def taken(paths: list[str], indices: dict[str, bytes] | None = None, wish: Wish = Wish()) -> list[str]:  # noqa: B008
    return [item.path for item in chosen(paths, indices, wish).taken]


def chosen(paths: list[str], indices: dict[str, bytes] | None = None, wish: Wish = Wish()) -> Selection:  # noqa: B008
    return select(paths, wish, indices or {})


def test_the_allow_list_takes_what_is_served_and_names_what_is_not() -> None:
    wanted = [
        *("LICENSE", "NOTICE.txt", "README.md", "chat_template.jinja", "config.json", "merges.txt"),
        *("model.safetensors", "tekken.json", "tokenizer.model", "vocab.txt", "x.tiktoken"),
    ]
    never = [
        *("USE_POLICY.md", "modeling.py", "pytorch_model.bin", "a.pt", "b.pth", "c.ckpt", "d.pkl", "e.gguf"),
        *("f.onnx", "g.h5", "h.msgpack", ".gitattributes", "image.png", "license.py", "readme.exe"),
    ]
    selection = chosen(wanted + never)
    assert [item.path for item in selection.taken] == wanted
    assert {item.path for item in selection.left_out} == set(never)
    assert all(item.why for item in selection.left_out)


def test_nothing_on_the_allow_list_is_code() -> None:
    for path in ("a.py", "config.json.py", "model.safetensors.bin", "tokenizer.model.pkl", "README.sh"):
        assert media_type_of(path) is None


INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_of_two_sets_of_the_same_weights_one_is_taken() -> None:
    both = [*SHARDS, INDEX, "consolidated-00001.safetensors", "consolidated.safetensors.index.json"]
    indices = {
        INDEX: an_index(*SHARDS),
        "consolidated.safetensors.index.json": an_index("consolidated-00001.safetensors"),
    }
    assert taken(both, indices) == sorted([*SHARDS, INDEX])
    assert taken(["model.safetensors", "consolidated.safetensors"]) == ["model.safetensors"]
    # Without an index nobody says that the shards are whole.
    assert taken([*SHARDS, "consolidated.safetensors"]) == ["consolidated.safetensors"]


@pytest.mark.parametrize(
    "shard", ["model-00003-of-00003.safetensors", "../x.safetensors", "/x.safetensors", "x.bin", 1]
)
def test_an_index_that_names_what_is_not_there_is_refused(shard: object) -> None:
    content = json.dumps({"weight_map": {"t": SHARDS[0], "u": shard}}).encode()
    with pytest.raises(IndexNamesMissingFile):
        chosen([*SHARDS, INDEX], {INDEX: content})


def test_an_index_whose_shard_was_excluded_is_refused() -> None:
    with pytest.raises(IndexNamesMissingFile, match="exclude"):
        chosen([*SHARDS, INDEX], {INDEX: an_index(*SHARDS)}, Wish(exclude=("*00002*",)))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}'])
def test_an_index_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedConfig):
        chosen([*SHARDS, INDEX], {INDEX: content})


def test_pickles_only_is_nothing_servable() -> None:
    with pytest.raises(NothingServable, match="1 pickle"):
        chosen(["pytorch_model.bin", "config.json"])


def test_wishes_only_narrow() -> None:
    paths = ["a.py", "config.json", "model.safetensors", "original/model.safetensors"]
    assert taken(paths, wish=Wish(include=("*",))) == paths[1:]
    assert taken(paths, wish=Wish(exclude=("original/*",))) == ["config.json", "model.safetensors"]
    assert index_paths([INDEX], Wish(exclude=("*.index.json",))) == ()


def test_a_hostile_listing_is_refused_even_for_files_that_stay_behind() -> None:
    for path in ("../evil.py", "/evil.py", "a\\b.png", "a\nb.bin"):
        with pytest.raises(UnsafeFileName):
            chosen(["model.safetensors", path])
    # Names that only Windows minds are no reason to refuse a model whose picture is called so.
    assert taken(["model.safetensors", "Figure 1: overview.png"]) == ["model.safetensors"]


def test_more_files_than_the_bound_are_refused() -> None:
    with pytest.raises(TooManyFiles):
        chosen([f"{n}.json" for n in range(4001)])


@given(st.lists(st.text(max_size=20), max_size=8, unique=True))
def test_every_file_gets_one_verdict(paths: list[str]) -> None:
    paths.append("model.safetensors")
    try:
        selection = select(paths, Wish(), dict.fromkeys(paths, b"{}"))
    except SovereignError:
        return
    verdicts = [item.path for item in (*selection.taken, *selection.left_out)]
    assert sorted(verdicts) == sorted(set(paths))
