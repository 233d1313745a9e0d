# SPDX-License-Identifier: Apache-2.0
"""Digests: the value that every other module trusts.

Only sha256 exists here. SHA-1 appears once, as the git blob id that the Hub lists: a consistency check of
small files, never a proof.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from sovereign_airgap.errors import InvalidReference

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256, kept as 64 lower-case hex digits; `str()` gives `sha256:<hex>`."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX64.fullmatch(self.hex):
            raise InvalidReference(f"Expected 64 lower-case hex digits, found {self.hex!r}.")

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `sha256:<64 hex>`; every other algorithm or spelling is refused."""
        match = _DIGEST.fullmatch(text)
        if match is None:
            raise InvalidReference(f"Expected a digest as in sha256:<64 hex digits>, found {text[:100]!r}.")
        return cls(match.group(1))

    @classmethod
    def of(cls, content: bytes) -> Self:
        return cls(hashlib.sha256(content).hexdigest())


def git_blob_id(content: bytes) -> str:
    """The id that git gives to a blob: SHA-1 over `blob <size>\\0` and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def lfs_pointer(sha256_hex: str, size: int) -> bytes:
    """The canonical pointer text that git stores instead of a large file (git-lfs specification, v1)."""
    return (f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256_hex}\nsize {size}\n").encode(
        "ascii"
    )
