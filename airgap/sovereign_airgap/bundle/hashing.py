# SPDX-License-Identifier: Apache-2.0
"""Hashing files as fast as the cores hash or the disk reads, in memory that does not grow with them.

Reads go past the page cache where the file system allows: they cost a third of the CPU time, push nothing
out of memory, and see what is on the medium instead of what was written to it a moment ago. While a lane
hashes one piece it reads the next.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from sovereign_airgap.bundle.layout import FileRange, open_plain
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import set_direct
from sovereign_airgap.errors import DiskFailed, Interrupted, SizeMismatch, SovereignError

MAX_LANES = 16
_PIECE_BYTES = 4 * 1024 * 1024
_ALL_BYTES = 64 * 1024 * 1024  # of all lanes' buffers, two each
_SMALL_BYTES = 256 * 1024
_ALIGNMENT = 4096

T = TypeVar("T")


def lanes_for(parallel: int | None) -> int:
    """How many contents are hashed at a time; as many as there are cores unless said otherwise."""
    return max(1, min(parallel or len(os.sched_getaffinity(0)), MAX_LANES))


def hash_all(
    sizes: Mapping[T, int],
    ranges_of: Callable[[T], tuple[FileRange, ...]],
    parallel: int | None,
    found: Callable[[T, Digest | SovereignError], None],
    moved: Callable[[int], None],
) -> None:
    """Hashes everything in `sizes` (bytes), the largest first; the ranges of one are one content.

    Calls `found` with the digest or with why there is none, `moved` with bytes, both from several threads.
    A failure of one ends none of the others; an exception in this thread (a signal) ends all.
    """
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    for what in sorted(sizes, key=sizes.__getitem__, reverse=True):
        waiting.put(what)
    stop = threading.Event()
    lanes = min(lanes_for(parallel), len(sizes))
    if not lanes:
        return
    piece = min(_PIECE_BYTES, _ALL_BYTES // (2 * lanes)) // _ALIGNMENT * _ALIGNMENT

    def work() -> None:
        with _lane(stop, moved, piece) as lane:
            while not stop.is_set():
                try:
                    what = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    result: Digest | SovereignError = lane.digest(ranges_of(what))
                except Interrupted:
                    raise
                except SovereignError as error:
                    result = error
                found(what, result)

    with ThreadPoolExecutor(lanes, thread_name_prefix="hash") as pool:
        futures: list[Future[None]] = [pool.submit(work) for _ in range(lanes)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            raise


class _Lane:
    """Two buffers in turn: one is hashed while the other is read into."""

    def __init__(
        self, stop: threading.Event, moved: Callable[[int], None], ahead: ThreadPoolExecutor, piece: int
    ) -> None:
        self._stop, self._moved, self._ahead = stop, moved, ahead
        # Of their own pages: reads past the page cache want aligned memory.
        self._maps = [mmap.mmap(-1, piece) for _ in range(2)]
        self._buffers = [memoryview(each) for each in self._maps]

    def digest(self, ranges: Sequence[FileRange]) -> Digest:
        """Raises DiskFailed, BundleDefective, or SizeMismatch where a file ends before its range."""
        digest = hashlib.sha256()
        for each in ranges:
            self._feed(digest, each)
        return Digest(digest.hexdigest())

    def close(self) -> None:
        for view, pages in zip(self._buffers, self._maps, strict=True):
            view.release()
            with contextlib.suppress(BufferError):  # a slice may live in a traceback
                pages.close()

    def _feed(self, digest: hashlib._Hash, wanted: FileRange) -> None:
        if wanted.start >= wanted.end:
            return
        with open_plain(wanted.path) as stream:
            if wanted.end - wanted.start <= _SMALL_BYTES:
                self._feed_small(digest, wanted, stream.fileno())
                return
            file = _File(stream.fileno())
            at = wanted.start // _ALIGNMENT * _ALIGNMENT
            turn = 0
            coming = self._ahead.submit(file.read, self._buffers[turn], at)
            try:
                while at < wanted.end:
                    count = coming.result()
                    if self._stop.is_set():
                        raise Interrupted("Another failure ended the work.")
                    if not count:
                        raise _ended(wanted, at)
                    view = self._buffers[turn][:count]
                    first, at, turn = at, at + count, 1 - turn
                    if at < wanted.end:
                        coming = self._ahead.submit(file.read, self._buffers[turn], at)
                    piece = view[max(0, wanted.start - first) : wanted.end - first]
                    digest.update(piece)
                    self._moved(len(piece))
            except OSError as error:
                raise _unreadable(wanted, error) from error
            finally:
                wait([coming])  # the file may not be closed under a read

    def _feed_small(self, digest: hashlib._Hash, wanted: FileRange, descriptor: int) -> None:
        """Without reading ahead, which costs more than such a file."""
        at = wanted.start
        while at < wanted.end:
            view = self._buffers[0][: wanted.end - at]
            try:
                count = os.preadv(descriptor, [view], at)
            except OSError as error:
                raise _unreadable(wanted, error) from error
            if not count:
                raise _ended(wanted, at)
            digest.update(view[:count])
            self._moved(count)
            at += count


class _File:
    """A file that is read at aligned offsets, past the page cache as long as its file system likes that."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._direct = set_direct(self._descriptor, True)

    def read(self, view: memoryview, at: int) -> int:
        """Reads what comes at once; 0 at the file's end. `at` is aligned, or where a read ended short."""
        if self._direct and at % _ALIGNMENT:
            self._direct = not set_direct(self._descriptor, False)
        try:
            return os.preadv(self._descriptor, [view], at)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
        self._direct = not set_direct(self._descriptor, False)  # the file system promised more than it does
        return os.preadv(self._descriptor, [view], at)


@contextmanager
def _lane(stop: threading.Event, moved: Callable[[int], None], piece: int) -> Iterator[_Lane]:
    with ThreadPoolExecutor(1, thread_name_prefix="read") as ahead:
        lane = _Lane(stop, moved, ahead, piece)
        try:
            yield lane
        finally:
            # A read that is still under way writes into the buffers: it is waited for before they go.
            ahead.shutdown(wait=True)
            lane.close()


def _ended(wanted: FileRange, at: int) -> SizeMismatch:
    return SizeMismatch(f"Expected {wanted.end} bytes in {wanted.path}, found {at}; copy it again.")


def _unreadable(wanted: FileRange, error: OSError) -> DiskFailed:
    return DiskFailed(f"{wanted.path} cannot be read: {error.strerror}; copy it again.")
