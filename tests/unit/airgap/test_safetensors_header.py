# SPDX-License-Identifier: Apache-2.0
"""Headers read from a stream: the same as the format's own reader where that one is right."""

from __future__ import annotations

import json
import struct
import threading

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.errors import MalformedSafetensors
from sovereign_airgap.safetensors_header import HeaderCollector, Tensor, tensors_of
from tests.unit.airgap.models import a_header, a_safetensors

TWO = {"a.weight": ("BF16", [4, 2]), "b.weight": ("I8", [3])}
tensors = st.dictionaries(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(st.sampled_from(["BF16", "F16", "I8", "U8"]), st.lists(st.integers(0, 5), max_size=3)),
    max_size=6,
)


def collected(content: bytes, pieces: int = 1 << 20) -> HeaderCollector:
    collector = HeaderCollector("x.safetensors", len(content), threading.Lock())
    for at in range(0, len(content), pieces):
        collector.feed(at, memoryview(content)[at : at + pieces])
    return collector


def read(collector: HeaderCollector) -> list[Tensor]:
    found: list[Tensor] = []
    collector.read(found.extend)
    return found


@given(tensors, st.integers(1, 40))
def test_any_file_reads_the_same_in_any_pieces(model: dict[str, tuple[str, list[int]]], pieces: int) -> None:
    content = a_safetensors(model)
    found = read(collected(content, pieces))
    assert {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in found} == model
    theirs = {name: tuple(entry["shape"]) for name, entry in safetensors.deserialize(content)}
    assert theirs == {tensor.name: tensor.shape for tensor in found}


@given(st.binary(max_size=120), st.integers(0, 50))
def test_no_header_breaks_the_parser(header: bytes, size: int) -> None:
    try:
        for tensor in tensors_of(header, size, "x"):
            assert tensor.size <= size
    except MalformedSafetensors as error:
        assert str(error).endswith(".")


def test_a_rewound_stream_is_read_again() -> None:
    content = a_safetensors(TWO)
    other = content.replace(b"a.weight", b"c.weight")
    collector = collected(content)
    collector.rewind(20)
    assert not collector.complete
    collector.feed(20, memoryview(other)[20:])
    assert {tensor.name for tensor in read(collector)} == {"c.weight", "b.weight"}


def test_bytes_out_of_turn_are_left_alone() -> None:
    content = a_safetensors(TWO)
    collector = HeaderCollector("x", len(content), threading.Lock())
    collector.feed(10, memoryview(content)[10:])
    assert not collector.complete
    collector.feed(0, memoryview(content))
    assert len(read(collector)) == 2


def entry(dtype: object = "I8", shape: object = (1,), offsets: object = (0, 1)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": entry(), "b": entry()}, 1),  # overlap
        ({"a": entry(offsets=(1, 2))}, 2),  # a hole before
        ({"a": entry()}, 2),  # bytes after the last
        ({"a": entry(offsets=(0, 2))}, 1),  # outside
        ({"a": entry(offsets=(1, 0))}, 1),  # backwards
        ({"a": entry(dtype="BF16")}, 1),  # too small for its dtype
        ({"a": entry(dtype="F4", shape=(1,))}, 1),  # half a byte
        ({"a": entry(dtype="I7")}, 1),
        ({"a": entry(shape=(True,))}, 1),
        ({"a": entry(shape=(-1,))}, 1),
        ({"a": entry(shape=(1,) * 33)}, 1),
        ({"a": {**entry(), "more": 1}}, 1),
        ({"a": 1}, 0),
        ({"__metadata__": {"a": 1}}, 0),
    ],
)
def test_a_header_with_one_defect_is_refused(header: dict[str, object], size: int) -> None:
    with pytest.raises(MalformedSafetensors):
        list(tensors_of(json.dumps(header).encode(), size, "x"))


@pytest.mark.parametrize(
    "text",
    ['{"a":%(e)s,"a":%(e)s}', '{"a":{"dtype":"I8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
     '{"a":%(e)s}x',
     ' {"a":%(e)s}', '{"a":%(e)s', '[]', '{"a":%(e)s,}', "{1:%(e)s}", "\x00" * 9],
)  # fmt: skip
def test_a_header_with_two_readings_is_refused(text: str) -> None:
    content = text.replace("%(e)s", json.dumps(entry())).encode()
    with pytest.raises(MalformedSafetensors):
        list(tensors_of(content, 1, "x"))


@pytest.mark.parametrize("length", [0, 1, 17 << 20, 1 << 63, 500])
def test_a_length_outside_its_bounds_is_refused_at_the_eighth_byte(length: int) -> None:
    with pytest.raises(MalformedSafetensors):
        collected(struct.pack("<Q", length) + b"{}" + b"\0" * 100)


def test_a_file_that_ends_within_its_header_is_refused() -> None:
    with pytest.raises(MalformedSafetensors, match="end of the file"):
        read(collected(b"\x02\0\0"))


def test_a_header_of_many_tensors_fits_its_bound() -> None:
    header, size = a_header({f"model.layers.{n}.weight": ("I8", [1]) for n in range(20_000)})
    assert sum(1 for _ in tensors_of(header + b" " * 5, size, "x")) == 20_000
