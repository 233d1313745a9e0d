# SPDX-License-Identifier: Apache-2.0
"""How much of some files is in the page cache, asked of the kernel page by page.

The kernel charges a page to the cgroup whose process brought it in first. Pages of files that a contestant
wrote, or that were evicted before its turn, are therefore what its container would be charged at its end.
What was there for a moment and is gone again is not seen. No cgroup is made for it: those of a machine
belong to whoever runs it.
"""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_WINDOW = 1 << 30  # of a file at a time: 256 KiB of answers


def resident(paths: Iterable[Path]) -> int:
    """Bytes in whole pages; a file with several names counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for path in paths:
        found = path.stat()
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            total += _resident(path, found.st_size)
    return total


def _resident(path: Path, size: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    pages = 0
    with path.open("rb") as stream:
        for start in range(0, size, _WINDOW):
            length = min(_WINDOW, size - start)
            answers = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
            # A private copy, because ctypes takes no address of a read-only map; nothing is ever written.
            with mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_COPY, offset=start) as view:
                first = ctypes.c_ubyte.from_buffer(view)
                try:
                    failed = libc.mincore(
                        ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(length), answers
                    )
                finally:
                    del first  # or the map could not be closed
            if failed:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
            pages += sum(answer & 1 for answer in answers)
    return pages * mmap.PAGESIZE
