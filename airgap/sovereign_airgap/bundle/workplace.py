# SPDX-License-Identifier: Apache-2.0
"""The folder beside the final path where a bundle is made, and the one rename that ends it.

`OUT.unfinished` holds `bundle`, the layout, and with parts `parts`, what becomes of it. Whoever is killed
leaves it; whoever makes the same bundle again goes on in it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sovereign_airgap.bundle.layout import INDEX
from sovereign_airgap.bundle.parts import LIST_SUFFIX
from sovereign_airgap.bundle.split import split
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import HalfWritten, explained, locked, sync_folder
from sovereign_airgap.errors import BundleExists
from sovereign_airgap.progress import Progress

ENDING = ".unfinished"
_FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class Workplace:
    """Makes `out`. `task` is all that the bundle depends on; `part_size` (bytes) is None for a directory."""

    out: Path
    task: str
    part_size: int | None = None

    @property
    def folder(self) -> Path:
        return self.out.with_name(self.out.name + ENDING)

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def _parts(self) -> Path:
        return self.folder / "parts"

    @property
    def _has_bundle(self) -> bool:
        return os.path.lexists(self.bundle / INDEX)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Alone in the folder while the block lasts; raises BundleExists where something is at `out`."""
        self._require_free()  # before a folder is made beside it
        with locked(self.folder):
            self._require_free()
            yield

    def is_frozen(self) -> bool:
        """Whether an earlier run had begun to cut this very bundle into parts: then its blobs have holes.

        Raises BundleExists where it was another bundle, or other parts.
        """
        note = self.folder / _FROZEN
        if not os.path.lexists(note):
            return False
        with explained(note):
            found = note.read_text(encoding="ascii", errors="replace")
        if found != self._fingerprint:
            raise BundleExists(
                f"Expected nothing, or an earlier run with the same wishes, in {self.folder}, found another "
                "bundle being cut into parts; repeat its command, or remove the folder."
            )
        if self._has_bundle or list(self._parts.glob(f"*{LIST_SUFFIX}")):
            return True
        with explained(note):  # what it was about is gone
            note.unlink()
        return False

    def publish(self, progress: Progress) -> None:
        """Gives the finished bundle its name."""
        finished = self.bundle
        if self.part_size is not None:
            finished = self._parts
            self._freeze()
            if self._has_bundle:
                split(self.bundle, finished, self.part_size, consume=True, progress=progress)
        with explained(self.out):
            self._require_free()
            finished.rename(self.out)
        sync_folder(self.out.parent)
        # From here on the bundle is there: what cannot be tidied up is no failure.
        with contextlib.suppress(OSError):
            (self.folder / _FROZEN).unlink(missing_ok=True)
            self.folder.rmdir()

    def _require_free(self) -> None:
        if os.path.lexists(self.out):
            raise BundleExists(
                f"Expected nothing at {self.out}, found something; name another path, or remove it."
            )

    def _freeze(self) -> None:
        half = HalfWritten(self.folder / _FROZEN, direct=False)
        try:
            half.write(self._fingerprint.encode("ascii"))
            half.publish()
        finally:
            half.close()
        sync_folder(self.folder)

    @property
    def _fingerprint(self) -> str:
        return str(Digest.of(f"{self.part_size} {self.task}".encode()))
