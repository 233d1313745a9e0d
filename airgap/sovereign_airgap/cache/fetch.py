# SPDX-License-Identifier: Apache-2.0
"""The verb `cache fetch`: one artifact becomes a complete entry of the node's cache.

The only writer of the cache. Files are pulled as `pull` does it; what another entry of the same tenant has
already is linked instead, and room is made before the first byte comes. Tenants share nothing, not even
what is equal: whoever could damage one's files would damage the other's.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sovereign_airgap.cache.eviction import free_bytes
from sovereign_airgap.cache.layout import (
    IN_USE,
    LOCK_SECONDS,
    MANIFEST,
    RESERVED,
    USED,
    Cache,
    Entry,
    strangers,
    usage,
    write_number,
)
from sovereign_airgap.cache.locks import alone
from sovereign_airgap.cache.room import Limits
from sovereign_airgap.cache.siblings import Siblings, is_as_written
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained, place_of, replace_file, sweep, sync_folder
from sovereign_airgap.errors import CacheBusy, CacheFull, DiskFailed, DiskFull, InvalidReference
from sovereign_airgap.manifest import ModelManifest
from sovereign_airgap.marker import Written, encode_marker, marker_name
from sovereign_airgap.pace import Pace
from sovereign_airgap.progress import Progress
from sovereign_airgap.pull import PullOptions, fill, opened
from sovereign_airgap.reference import OciReference

_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """`keep`: what is wanted on this node, whoever's; `seconds`: how long another fetch is waited for."""

    pull: PullOptions = field(default_factory=PullOptions)
    limits: Limits = field(default_factory=Limits)
    keep: frozenset[Digest] = frozenset()
    seconds: float = LOCK_SECONDS


@dataclass(frozen=True, slots=True)
class FetchResult:
    """What is complete now. Of its `size` bytes some were fetched, some linked from other entries.

    `evicted` are the entries that had to go, `repaired` the paths of what was damaged or nobody's.
    """

    digest: Digest
    folder: Path
    size: int
    files: int
    fetched: int = 0
    linked: int = 0
    evicted: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def kept(self) -> int:
        """Bytes that were there already."""
        return self.size - self.fetched - self.linked


def fetch(
    reference: OciReference, cache: Cache, tenant: str, options: FetchOptions, progress: Progress
) -> FetchResult:
    """Brings an artifact into the cache; raises a SovereignError, and then no marker says too much."""
    if reference.digest is None:
        raise InvalidReference(f"Expected a reference by digest, found {reference}: tags can move.")
    begun = time.monotonic()
    entry = cache.entry(tenant, reference.digest)
    with Pace(options.pull.patience) as pace:
        try:
            with _writing(cache, entry, options.seconds, pace, progress):
                progress.enter("checking what is there")
                there = _as_it_is(entry, options.pull, progress)
                found = there or _fetched(reference, cache, entry, options, pace, progress)
                # What is complete can be served from a full disk too; it only counts as older than it is.
                with (
                    contextlib.suppress(DiskFull) if there else contextlib.nullcontext(),
                    cache.locked(pace),
                ):
                    write_number(entry.folder / USED, cache.next_sequence())
                progress.enter("done")
        except DiskFull as error:
            raise _full(cache, options.limits, error) from error
    return replace(found, seconds=time.monotonic() - begun)


@contextmanager
def _writing(cache: Cache, entry: Entry, seconds: float, pace: Pace, progress: Progress) -> Iterator[None]:
    """Makes the entry's folder and holds its lock while the block lasts; CacheBusy after `seconds`."""
    ends = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        while True:
            # Under the cache's lock, or an eviction could take the folder away between these two steps.
            with cache.locked(pace, seconds):
                _make(cache, entry)
                if stack.enter_context(alone(entry.folder)):
                    break
                stack.close()
            if time.monotonic() >= ends:
                raise CacheBusy(
                    f"Expected to fetch {entry}, but another fetch of it on this node was at work for "
                    f"{seconds:g} seconds; try again later."
                )
            progress.enter("waiting for another fetch")
            pace.sleep(_POLL_SECONDS)
        sweep(entry.folder)
        try:
            yield
        finally:
            # If not now, the next one that makes room removes it.
            with contextlib.suppress(OSError):
                (entry.folder / RESERVED).unlink(missing_ok=True)


def _make(cache: Cache, entry: Entry) -> None:
    """The entry's folder, and in it the file whose lock says that it is in use."""
    in_use = place_of(cache.root, f"{entry.tenant}/{entry.folder.name}/{IN_USE}")
    flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with explained(in_use):
        os.close(os.open(in_use, flags, 0o644))


def _as_it_is(entry: Entry, options: PullOptions, progress: Progress) -> FetchResult | None:
    """Where the markers vouch for all that lies there, the registry is not even asked."""
    whole, config = entry.vouched(config_only=False), entry.vouched(config_only=True)
    files = config if options.config_only else whole
    if options.verify_always or files is None or config is None:
        return None
    if whole is not None and not config.items() <= whole.items():
        return None  # a run was killed between the two
    if not _are_right(entry, files, options.config_only):
        return None
    size = sum(each.size for each in files.values())
    progress.expect(len(files), size)
    for path, each in files.items():
        progress.moved(each.size)
        progress.finished(path)
    return FetchResult(entry.digest, entry.folder, size, len(files))


def _are_right(entry: Entry, files: Mapping[str, Written], config_only: bool) -> bool:
    """Whether the marker says what the manifest does, and the files are as it says, and no others there."""
    manifest = entry.manifest()
    if manifest is None:
        return False
    layers = [layer for layer in manifest.layers if not (config_only and layer.is_weight)]
    promised = {layer.path: (layer.size, str(layer.digest)) for layer in layers}
    return (
        promised == {path: (each.size, each.digest) for path, each in files.items()}
        and all(is_as_written(entry.folder / path, each) for path, each in files.items())
        and not strangers(entry.folder, {layer.path for layer in manifest.layers})
    )


def _fetched(
    reference: OciReference,
    cache: Cache,
    entry: Entry,
    options: FetchOptions,
    pace: Pace,
    progress: Progress,
) -> FetchResult:
    siblings = Siblings(cache, entry, options.limits, options.keep, pace)
    with opened(reference, options.pull.access, pace, progress) as source:
        replace_file(entry.folder / MANIFEST, source.content)
        removed = _remove_strangers(entry, source.manifest)
        found = fill(entry.folder, source, options.pull, progress, siblings)
        _renew_other_marker(entry, options.pull.config_only, source.manifest)
    if not options.pull.verify_always:  # then every byte was hashed here
        siblings.settle(progress)
    return FetchResult(
        digest=entry.digest,
        folder=entry.folder,
        size=found.size,
        files=found.files,
        fetched=found.fetched_bytes,
        linked=found.size - found.kept_bytes - found.fetched_bytes,
        evicted=tuple(str(each) for each in siblings.evicted),
        repaired=tuple(sorted((*found.repaired, *removed))),
    )


def _remove_strangers(entry: Entry, manifest: ModelManifest) -> list[str]:
    """What no fetch put there; its removal stands before the markers that the fetch will write."""
    found = strangers(entry.folder, {layer.path for layer in manifest.layers})
    for path in found:
        place = entry.folder / path
        with explained(place):
            place.unlink(missing_ok=True)
    return found


def _renew_other_marker(entry: Entry, config_only: bool, manifest: ModelManifest) -> None:
    """Makes both markers say the same of the files that they share; a whole artifact has both."""
    written = entry.vouched(config_only) or {}
    there = entry.vouched(not config_only)
    if config_only:
        wanted = None if there is None else {**there, **written}
    else:
        weights = {layer.path for layer in manifest.layers if layer.is_weight}
        wanted = {path: each for path, each in written.items() if path not in weights}
    if wanted is not None and wanted != there:
        replace_file(entry.folder / marker_name(not config_only), encode_marker(str(entry.digest), wanted))
        sync_folder(entry.folder)


def _full(cache: Cache, limits: Limits, error: DiskFull) -> CacheFull:
    """The same sentence, and the numbers that tell what to enlarge."""
    told = str(error).rstrip(".")
    with contextlib.suppress(DiskFailed):
        of = f" of a budget of {limits.budget}" if limits.budget else ""
        told += (
            f" (the node's cache takes {usage(cache.entries())} bytes{of}, {free_bytes(cache.root)} are free)"
        )
    return CacheFull(f"{told}.")
