# SPDX-License-Identifier: Apache-2.0
"""A chart's archive, which somebody else made: one file of it is read, in memory. Pure.

Unpacked as a whole first, and no further than the bound: tarfile reads the header that names a member before
anybody can look at its size, and a few hundred kilobytes can unpack to a header of gigabytes.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib

MAX_FILES = 2_000
MAX_UNPACKED_BYTES = 100 * 1024 * 1024
# Headers nested in headers, and numbers that are none: tarfile does not call all of it a TarError.
_UNREADABLE = (
    tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError, RecursionError,
)  # fmt: skip


class NoChart(ValueError):
    """What the archive is instead of a chart's, as the end of a sentence."""


def file_in(archive: bytes, name: str, limit: int) -> bytes | None:
    """The file `name` of the chart's own folder; None where it has none. Raises NoChart."""
    try:
        with tarfile.open(fileobj=io.BytesIO(_unpacked(archive)), mode="r:") as members:
            for count, member in enumerate(members, 1):
                if count > MAX_FILES:
                    raise NoChart(f"more than {MAX_FILES} files")
                folder, slash, rest = member.name.partition("/")
                if folder and slash and rest == name and member.isreg():
                    content = members.extractfile(member)
                    found = b"" if content is None else content.read(limit + 1)
                    if len(found) > limit:
                        raise NoChart(f"more than {limit} bytes in its {name}")
                    return found
    except NoChart:
        raise
    except _UNREADABLE as error:
        raise NoChart(f"{type(error).__name__}: {str(error)[:100]}") from error
    return None


def _unpacked(archive: bytes) -> bytes:
    with gzip.open(io.BytesIO(archive)) as stream:
        content = stream.read(MAX_UNPACKED_BYTES + 1)
    if len(content) > MAX_UNPACKED_BYTES:
        raise NoChart(f"more than {MAX_UNPACKED_BYTES} bytes in it")
    return content
