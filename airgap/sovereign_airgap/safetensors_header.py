# SPDX-License-Identifier: Apache-2.0
"""The header of a safetensors file, read while the file streams past.

Stricter than the format's own reader: duplicate names, holes, overlaps and bytes after the last tensor are
errors, because a file with two readings is one that two engines load differently.
"""

from __future__ import annotations

import json
import re
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sovereign_airgap.errors import MalformedSafetensors
from sovereign_airgap.strict_json import Json

PREFIX_BYTES = 8
MAX_HEADER_BYTES = 16 * 1024 * 1024
_MAX_DIMENSIONS = 32
_METADATA = "__metadata__"

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a header; `size` is in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def elements(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count


class HeaderCollector:
    """Keeps the first bytes of one stream until its header is whole; at most 16 MiB.

    `turn` is shared by all collectors of a run: a large header is parsed alone. `feed` may be called for any
    part of the stream; after a source was asked again from an earlier offset, `rewind` forgets what the hash
    no longer covers.
    """

    def __init__(self, path: str, file_size: int, turn: threading.Lock | None = None) -> None:
        self._path = path
        self._turn = turn if turn is not None else threading.Lock()
        self._checked = False
        self._file_size = file_size
        self._kept = bytearray()
        self._wanted = PREFIX_BYTES

    @property
    def complete(self) -> bool:
        return self._wanted > PREFIX_BYTES and len(self._kept) == self._wanted

    @property
    def wanted(self) -> int:
        """Bytes from the start of the file that are needed, as far as is known by now."""
        return self._wanted

    def feed(self, offset: int, view: memoryview) -> None:
        while not self.complete:
            start = len(self._kept) - offset
            if not 0 <= start < len(view):
                return
            self._kept += view[start : start + self._wanted - len(self._kept)]
            if len(self._kept) < self._wanted:
                return
            if self._wanted == PREFIX_BYTES:
                self._wanted += header_length(bytes(self._kept), self._file_size, self._path)
        if not self._checked:
            # At once, and once more by whoever believes it: a broken shard shall not cost its 5 GB first.
            self.read(lambda tensors: deque(tensors, maxlen=0))
            self._checked = True

    def rewind(self, offset: int) -> None:
        if offset < len(self._kept):
            del self._kept[offset:]
            self._checked = False
        if len(self._kept) < PREFIX_BYTES:
            self._wanted = PREFIX_BYTES

    def read(self, reader: Callable[[Iterator[Tensor]], object]) -> None:
        """Gives the tensors to `reader`, which must exhaust them; in turn with the run's other headers."""
        with self._turn:
            reader(tensors_of(self.take(), self._file_size - self._wanted, self._path))

    def take(self) -> bytes:
        """The header's JSON, once all of it has come past."""
        if not self.complete:
            raise _broken(self._path, "a whole header", f"the end of the file after {len(self._kept)} bytes")
        return bytes(memoryview(self._kept)[PREFIX_BYTES:])


def header_length(prefix: bytes, file_size: int, path: str) -> int:
    """Reads the little-endian length that opens the file, within its bounds."""
    (length,) = struct.unpack("<Q", prefix[:PREFIX_BYTES])
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise _broken(path, f"a header of 2 to {MAX_HEADER_BYTES} bytes", f"a length of {length}")
    if PREFIX_BYTES + length > file_size:
        raise _broken(path, f"a header inside the file of {file_size} bytes", f"a length of {length}")
    return int(length)


def tensors_of(header: bytes, data_size: int, path: str) -> Iterator[Tensor]:
    """Yields the tensors of a header's JSON; raises MalformedSafetensors at the first defect.

    The last checks (every byte of data belongs to exactly one tensor) come after the last tensor, so a
    caller must exhaust the iterator before it believes any of it.
    """
    names: set[str] = set()
    spans: list[tuple[int, int]] = []
    for name, entry in _entries(header, path):
        if name in names:
            raise _broken(path, "each name once", f"{name[:100]!r} twice")
        names.add(name)
        if name == _METADATA:
            if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
                raise _broken(path, f"{_METADATA} to hold strings", "something else")
            continue
        tensor, begin = _tensor(name, entry, data_size, path)
        spans.append((begin, begin + tensor.size))
        yield tensor
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            found = "overlapping tensors" if begin < end else f"a hole of {begin - end} bytes"
            raise _broken(path, "each byte of data in exactly one tensor", f"{found} at {begin}")
        end = stop
    if end != data_size:
        raise _broken(path, f"tensors to fill {data_size} bytes of data", f"{end} bytes described")


def _tensor(name: str, entry: Json, data_size: int, path: str) -> tuple[Tensor, int]:
    where = f"tensor {name[:100]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"{where} to have dtype, shape and data_offsets", "other keys")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise _broken(path, f"{where} to have a known dtype", ascii(dtype)[:60])
    lengths = _counts(shape)
    if lengths is None or len(lengths) > _MAX_DIMENSIONS:
        raise _broken(path, f"{where} to have a shape of counts", ascii(shape)[:60])
    span = _counts(offsets)
    if span is None or len(span) != 2 or not span[0] <= span[1] <= data_size:
        raise _broken(path, f"{where} to lie within {data_size} bytes of data", ascii(offsets)[:60])
    tensor = Tensor(name, str(dtype), lengths, span[1] - span[0])
    if tensor.elements * bits != tensor.size * 8:
        found = f"{tensor.size} bytes"
        raise _broken(path, f"{where} to have the bytes of its shape and dtype", found)
    return tensor, span[0]


def _counts(value: Json) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    counts = tuple(v for v in value if isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 48)
    return counts if len(counts) == len(value) else None


_SPACE = re.compile(r"[ \t\n\r]*")


def _no_duplicates(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates)


def _entries(content: bytes, path: str) -> Iterator[tuple[str, Json]]:
    """Walks the top-level object entry by entry: a header of 16 MiB never becomes one tree of objects."""

    def skip(at: int) -> int:
        match = _SPACE.match(text, at)
        return match.end() if match is not None else at

    def expect(at: int, wanted: str) -> int:
        if text[at : at + 1] not in wanted or at >= len(text):
            raise _broken(path, f"{wanted!r} at {at} of the header", ascii(text[at : at + 1]))
        return at + 1

    try:
        text = content.decode("utf-8")
        at = expect(0, "{")
        at = skip(at)
        if text[at : at + 1] == "}":
            at += 1
        else:
            while True:
                name, at = _DECODER.raw_decode(text, skip(at))
                if not isinstance(name, str):
                    raise _broken(path, "names in quotes", ascii(name)[:60])
                at = expect(skip(at), ":")
                entry, at = _DECODER.raw_decode(text, skip(at))
                yield name, entry
                at = expect(skip(at), ",}")
                if text[at - 1] == "}":
                    break
        if skip(at) != len(text):
            raise _broken(path, "the header to end with its object", ascii(text[at : at + 20]))
    except (ValueError, RecursionError) as error:
        raise _broken(path, "a header of JSON with one reading", str(error)[:150]) from error


def _broken(path: str, expected: str, found: str) -> MalformedSafetensors:
    return MalformedSafetensors(
        f"{path!a}: expected {expected}, found {found}; the file is broken or hostile, choose another commit."
    )
