# SPDX-License-Identifier: Apache-2.0
"""Giving a file's bytes back to the file system while the file keeps its size."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from sovereign_airgap.disk import explained

_KEEP_SIZE = 1  # linux/falloc.h
_PUNCH_HOLE = 2
_NOT_POSSIBLE = frozenset([errno.EOPNOTSUPP, errno.ENOSYS])


def punch(path: Path, start: int, end: int) -> bool:
    """Frees the bytes `start` to `end` of a file, which read as zeros from then on.

    False where the file system cannot; raises DiskFailed for every other error.
    """
    if start >= end:
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    with explained(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if libc.fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, start, end - start) == 0:
                return True
            code = ctypes.get_errno()
            if code in _NOT_POSSIBLE:
                return False
            raise OSError(code, os.strerror(code))
        finally:
            os.close(descriptor)
