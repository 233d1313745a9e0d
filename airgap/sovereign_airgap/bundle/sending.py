# SPDX-License-Identifier: Apache-2.0
"""A blob of a bundle as something that can be sent: read from the disk, compared with its name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sovereign_airgap.bundle.layout import blob_path, read_into
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained
from sovereign_airgap.errors import DigestMismatch, SizeMismatch


@dataclass(slots=True)
class BundleBlob:
    """`where` is how messages call the bundle; `blame` ends the sentence about bytes that are not the
    promised ones.
    """

    stream: BinaryIO
    digest: Digest
    size: int
    where: str
    blame: Callable[[], str] = lambda: "copy the bundle again"

    @property
    def name(self) -> str:
        return str(self.digest)

    def hashing(self) -> hashlib._Hash:
        return hashlib.sha256()

    def seek(self, offset: int) -> None:
        with explained(Path(self.where)):
            self.stream.seek(offset)

    def readinto(self, view: memoryview) -> int:
        with explained(Path(self.where)):
            count = read_into(self.stream, view)
            if count:
                return count
            end = self.stream.tell()
        raise SizeMismatch(
            f"Expected {self.size} bytes of {blob_path(self.digest)} in {self.where}, found the end "
            f"after {end}; copy the bundle again."
        )

    def settle(self, whole: hashlib._Hash) -> Digest:
        found = whole.hexdigest()
        if found != self.digest.hex:
            raise DigestMismatch(
                f"Expected {blob_path(self.digest)} in {self.where} to have the sha256 of its name, found "
                f"{found}; {self.blame()}."
            )
        return self.digest
