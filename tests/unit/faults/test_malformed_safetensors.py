# SPDX-License-Identifier: Apache-2.0
"""A safetensors header that is wrong in any way is refused; one that passes has one reading for everybody."""

import contextlib
import json
import struct
import threading

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.errors import MalformedSafetensors
from sovereign_airgap.safetensors_header import HeaderCollector, Tensor

DATA = 16
GOOD: dict[str, dict[str, object]] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
}


def a_file(header: bytes, data: int = DATA, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(data)


def read(file: bytes, piece: int = 7) -> list[Tensor]:
    """As the mirror reads it: in pieces, while the file streams past."""
    collector = HeaderCollector("model.safetensors", len(file), threading.Lock())
    for start in range(0, len(file), piece):
        collector.feed(start, memoryview(file)[start : start + piece])
    tensors: list[Tensor] = []
    collector.read(tensors.extend)
    return tensors


def with_b(**changes: object) -> bytes:
    return json.dumps(GOOD | {"b": GOOD["b"] | changes}).encode()


GOOD_BYTES = json.dumps(GOOD).encode()

MALFORMED: dict[str, bytes] = {
    "empty file": b"",
    "seven bytes": b"\x10\0\0\0\0\0\0",
    "only a length": struct.pack("<Q", 10),
    "no header": a_file(b""),
    "length beyond the file": a_file(GOOD_BYTES, length=10_000),
    "length of 2^63": a_file(GOOD_BYTES, length=1 << 63),
    "length of 16 MiB + 1": a_file(GOOD_BYTES, length=(16 << 20) + 1),
    "length one short": a_file(GOOD_BYTES, length=len(GOOD_BYTES) - 1),
    "length one long": a_file(GOOD_BYTES, length=len(GOOD_BYTES) + 1),
    "not JSON": a_file(b"{not json at all}"),
    "not UTF-8": a_file(GOOD_BYTES.replace(b'"a"', b'"\xff"')),
    "UTF-8 with a byte order mark": a_file(b"\xef\xbb\xbf" + GOOD_BYTES),
    "a list": a_file(b"[]"),
    "a string": a_file(b'"{}"'),
    "something after the object": a_file(GOOD_BYTES + b"{}"),
    "a name twice": a_file(GOOD_BYTES[:-1] + b', "b": ' + json.dumps(GOOD["b"]).encode() + b"}"),
    "a key twice in a tensor": a_file(
        GOOD_BYTES.replace(b'"dtype": "F32"', b'"dtype": "F32", "dtype": "F32"')
    ),
    "nested without end": a_file(b'{"a":' + b"[" * 100_000),
    "unknown dtype": a_file(with_b(dtype="F33")),
    "dtype of another type": a_file(with_b(dtype=["F32"])),
    "shape of strings": a_file(with_b(shape=["2"])),
    "negative extent": a_file(with_b(shape=[-2])),
    "extent of true": a_file(with_b(shape=[2, True])),
    "extent of a float": a_file(with_b(shape=[2.0])),
    "shape that needs more bytes": a_file(with_b(shape=[3])),
    "shape that needs fewer bytes": a_file(with_b(shape=[1])),
    "shape whose product wraps at 64 bits": a_file(with_b(shape=[1 << 33, 1 << 33])),
    "offsets past the data": a_file(with_b(data_offsets=[8, 17])),
    "offsets backwards": a_file(with_b(data_offsets=[16, 8])),
    "negative offsets": a_file(with_b(data_offsets=[-8, 0])),
    "one offset": a_file(with_b(data_offsets=[8])),
    "overlap": a_file(with_b(data_offsets=[4, 12])),
    "a tensor on top of another": a_file(with_b(data_offsets=[0, 8])),
    "hole at the end": a_file(GOOD_BYTES, data=DATA + 1),
    "hole in the middle": a_file(with_b(data_offsets=[9, 17]), data=17),
    "data missing": a_file(GOOD_BYTES, data=DATA - 1),
    "a key more": a_file(with_b(extra=1)),
    "a key less": a_file(GOOD_BYTES.replace(b'"shape": [2], ', b"")),
    "a tensor that is a list": a_file(GOOD_BYTES.replace(json.dumps(GOOD["b"]).encode(), b"[]")),
    "metadata of numbers": a_file(GOOD_BYTES.replace(b'"pt"', b"1")),
}


def test_the_good_file_is_read_whatever_the_pieces() -> None:
    for piece in (1, 7, 8, 9, 10_000):
        assert [tensor.name for tensor in read(a_file(GOOD_BYTES), piece)] == ["a", "b"]


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_header_is_refused(name: str) -> None:
    with pytest.raises(MalformedSafetensors) as refused:
        read(MALFORMED[name])

    assert refused.value.exit_code == 3
    assert str(refused.value).startswith("'model.safetensors'")
    assert str(refused.value).endswith(".")
    assert len(str(refused.value)) < 1000


COUNTS = st.one_of(st.integers(-1, 20), st.just(1 << 62))
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "X"]),
        "shape": st.lists(COUNTS, max_size=3),
        "data_offsets": st.lists(COUNTS, min_size=2, max_size=2),
    }
)
# Both the plausible and the absurd: contiguous tensors of bytes with, at times, one entry replaced.
CONTIGUOUS = st.lists(st.integers(0, 9), max_size=4).map(
    lambda sizes: {
        f"t{n}": {"dtype": "U8", "shape": [size], "data_offsets": [sum(sizes[:n]), sum(sizes[: n + 1])]}
        for n, size in enumerate(sizes)
    }
)


CHANGES = st.dictionaries(st.sampled_from(["t0", "t1", "x"]), ENTRIES, max_size=1)


@given(CONTIGUOUS, CHANGES, st.sampled_from([0, 0, 0, 1, -1]))
def test_what_we_read_the_formats_own_reader_reads_alike(
    base: dict[str, dict[str, list[int]]], changed: dict[str, object], surplus: int
) -> None:
    data = max((entry["data_offsets"][1] for entry in base.values()), default=0)
    file = a_file(json.dumps({**base, **changed}).encode(), data=max(data + surplus, 0))
    try:
        ours = {tensor.name: (tensor.dtype, list(tensor.shape), tensor.size) for tensor in read(file)}
    except MalformedSafetensors:
        return
    theirs = {
        name: (entry["dtype"], list(entry["shape"]), len(entry["data"]))
        for name, entry in safetensors.deserialize(file)  # type: ignore[no-untyped-call]
    }
    assert ours == theirs


@given(CONTIGUOUS)
def test_contiguous_tensors_are_accepted(base: dict[str, dict[str, list[int]]]) -> None:
    data = max((entry["data_offsets"][1] for entry in base.values()), default=0)
    assert len(read(a_file(json.dumps(base).encode(), data=data))) == len(base)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(file: bytes) -> None:
    with contextlib.suppress(MalformedSafetensors):
        read(file)
