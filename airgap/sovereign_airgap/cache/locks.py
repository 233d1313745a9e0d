# SPDX-License-Identifier: Apache-2.0
"""Kernel locks on files and folders of the cache: gone with the process that held them, however it ended.

The kernel keeps them per inode, so they hold between pods that mount the same folder of a node, also where
the mount is read-only. A file system without locks counts as one where everything is in use.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Holds the exclusive lock of `path` while the block lasts, without waiting; False where another has any.

    True also where nothing lies there, or a link: then nobody can hold it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        yield error.errno in _NOTHING_THERE
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether somebody holds a lock on `path` at this moment."""
    with alone(path) as free:
        return not free
