# SPDX-License-Identifier: Apache-2.0
"""What a fetch has to do with the other entries of a node's cache: it links their files, and it needs room.

Files are shared inside one tenant only. One that is damaged is damaged in every entry that has it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from sovereign_airgap.cache.damage import Promised, Rehash, described
from sovereign_airgap.cache.eviction import make_room, sweep
from sovereign_airgap.cache.layout import RESERVED, Cache, Entry, inodes, write_number
from sovereign_airgap.cache.room import Limits, on_disk
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained, partial_name, regular_file, replace_file, sync_folder
from sovereign_airgap.errors import CacheBusy
from sovereign_airgap.manifest import Layer
from sovereign_airgap.marker import Written, encode_marker, marker_name
from sovereign_airgap.pace import Pace
from sovereign_airgap.progress import Progress
from sovereign_airgap.pull import Neighbours

_Offer = tuple[Entry, str, Written]


class Siblings(Neighbours):
    """The other entries, for a fetch that holds its own entry's lock; `evicted` are those that had to go."""

    def __init__(
        self, cache: Cache, entry: Entry, limits: Limits, keep: Collection[Digest], pace: Pace
    ) -> None:
        self.evicted: list[Entry] = []
        self._cache, self._entry, self._pace = cache, entry, pace
        self._limits, self._keep = limits, keep
        self._lent: dict[Path, _Offer] = {}

    def distrust(self, place: Path) -> None:
        """Withdraws every entry that has this very file: no new pod starts on it, its next fetch hashes.

        Then the file goes: kept until it is replaced, it would need room beside its successor. Its other
        entries keep it, for they are not ours to write to; who has it open keeps it too.
        """
        with explained(place):
            found = place.lstat()
        self._lent.pop(place, None)
        self._entry.withdraw()
        if stat.S_ISDIR(found.st_mode):
            with explained(place):
                shutil.rmtree(place)
            return
        if found.st_nlink > 1:
            for sibling in self._siblings():
                if (found.st_dev, found.st_ino) in inodes(sibling.folder):
                    sibling.withdraw()
        # Last: no marker ever vouches for a file that is not there.
        with explained(place):
            place.unlink()

    def adopt(self, layer: Layer, place: Path) -> Written | None:
        """Links a file that a sibling's marker vouches for, and that is as it was then."""
        for offer in self._offers.get(str(layer.digest), ()):
            sibling, path, written = offer
            theirs = sibling.folder / path
            if written.size == layer.size and is_as_written(theirs, written) and _linked(theirs, place):
                self._lent[place] = offer
                return written
        return None

    def require_room(self, directory: Path, sizes: Sequence[int]) -> None:
        """Makes room for files of these sizes and reserves it; raises CacheFull."""
        need = on_disk(sizes)
        if not need:
            return
        with self._cache.locked(self._pace):
            sweep(self._cache)
            self.evicted += make_room(self._cache, self._entry, need, self._limits, self._keep)
            there = sum(each.size for each in inodes(directory).values())
            write_number(directory / RESERVED, there + need)

    def settle(self, progress: Progress) -> None:
        """Hashes what was linked from a sibling that vouches for it no longer, or is gone; CacheBusy, and no
        marker, where that is damaged.

        To be called after our own markers are there: then either we see that the sibling was withdrawn, or
        whoever withdraws it sees ours. Of one that is gone nobody knows whether it was withdrawn before.
        """
        while doubted := {place: offer for place, offer in self._lent.items() if not _vouches(offer)}:
            progress.enter("hashing what was linked")
            markers = {config_only: self._entry.vouched(config_only) for config_only in (True, False)}
            # Meanwhile no pod may start on it, and a run that is killed must leave no marker.
            self._entry.withdraw()
            self._require_undamaged(doubted)
            for config_only, files in markers.items():
                if files is not None:
                    marker = self._entry.folder / marker_name(config_only)
                    replace_file(marker, encode_marker(str(self._entry.digest), files))
            sync_folder(self._entry.folder)
            for place in doubted:
                del self._lent[place]

    def _require_undamaged(self, doubted: Mapping[Path, _Offer]) -> None:
        files = {
            place.relative_to(self._entry.folder).as_posix(): Promised(
                written.size, Digest.parse(written.digest), (written.mtime_ns,)
            )
            for place, (_, _, written) in doubted.items()
        }
        damages = Rehash(None, lambda _: self._pace.check()).damages(self._entry.folder, files)
        if damages:
            lenders = ", ".join(sorted({str(sibling) for sibling, _, _ in doubted.values()}))
            raise CacheBusy(
                f"Expected {self._entry} to share sound files with {lenders}, which changed meanwhile: "
                f"{described(damages)}; try again, then every byte is hashed."
            )

    def _siblings(self) -> list[Entry]:
        return [each for each in self._cache.entries(self._entry.tenant) if each != self._entry]

    @cached_property
    def _offers(self) -> dict[str, list[_Offer]]:
        """Files by digest; looked for after what is damaged has been withdrawn."""
        found: dict[str, list[_Offer]] = {}
        for sibling in self._siblings():
            manifest = sibling.manifest()
            files = {**(sibling.vouched(True) or {}), **(sibling.vouched(False) or {})}
            for layer in manifest.layers if manifest is not None else ():
                written = files.get(layer.path)
                if written is not None and written.digest == str(layer.digest):
                    found.setdefault(written.digest, []).append((sibling, layer.path, written))
        return found


def _vouches(offer: _Offer) -> bool:
    sibling, path, written = offer
    return any((sibling.vouched(config_only) or {}).get(path) == written for config_only in (False, True))


def is_as_written(place: Path, written: Written) -> bool:
    """Whether a plain file of this size and time lies there."""
    found = regular_file(place)
    return found is not None and (found.st_size, found.st_mtime_ns) == (written.size, written.mtime_ns)


def _linked(source: Path, place: Path) -> bool:
    """Another name for the file, at once in the place of what lies there; False where that does not go."""
    between = partial_name(place)
    try:
        os.link(source, between, follow_symlinks=False)
        between.replace(place)
    except OSError:  # it is fetched instead, and that says what is wrong with the disk
        return False
    finally:
        with contextlib.suppress(OSError):  # still there where both were one file already
            between.unlink(missing_ok=True)
    return True
