# SPDX-License-Identifier: Apache-2.0
"""Where things lie in a bundle, and reading it without trusting it: a directory here, parts in `parts`.

Nothing is followed that is not a plain file, no path is opened that the format does not know.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained, open_regular
from sovereign_airgap.errors import BundleDefective, DigestMismatch, DiskFailed, SizeMismatch

INDEX = "index.json"
OCI_LAYOUT = "oci-layout"
CONTENTS = "CONTENTS.txt"
OCI_LAYOUT_CONTENT = b'{"imageLayoutVersion":"1.0.0"}'
MAX_ENTRIES = 201_000  # as many blobs as roots may reach, and the few files beside them
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_SIGNATURE = re.compile(r"signatures/([0-9a-f]{64})\.dsse\.json")


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a bundle. `defect` says why it may not be there; None where it may."""

    path: str
    size: int
    defect: str | None = None

    @property
    def digest(self) -> Digest | None:
        """The digest that the path promises, for blobs."""
        return blob_digest(self.path)


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes `start` to `end` of a file."""

    path: Path
    start: int
    end: int


class BundleReader(Protocol):
    """A bundle that can be read from any offset; threads may share it.

    `describe` is how messages call it. `entries` lists every path, allowed or not, sorted, each once.
    """

    @property
    def describe(self) -> str: ...

    def entries(self) -> Iterator[Entry]: ...

    def size(self, path: str) -> int | None:
        """Bytes of an allowed path; None where it is not there."""

    def open(self, path: str) -> BinaryIO:
        """A seekable stream of its own over an allowed path; raises BundleDefective where there is none."""

    def ranges(self, path: str) -> tuple[FileRange, ...]:
        """Where the bytes of an allowed path lie, in their order; as `open`."""


def blob_path(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"


def blob_digest(path: str) -> Digest | None:
    found = _BLOB.fullmatch(path)
    return Digest.parse(f"sha256:{found[1]}") if found else None


def signature_path(key_id: str) -> str:
    return f"signatures/{key_id}.dsse.json"


def signature_key_id(path: str) -> str | None:
    found = _SIGNATURE.fullmatch(path)
    return found[1] if found else None


def is_allowed(path: str) -> bool:
    """Whether the format knows a file of this path."""
    return path in (INDEX, OCI_LAYOUT, CONTENTS) or bool(_BLOB.fullmatch(path) or _SIGNATURE.fullmatch(path))


def read(reader: BundleReader, path: str, limit: int) -> bytes:
    """A small file whole; raises SizeMismatch where it is larger than `limit` bytes."""
    # A hostile descriptor may promise a petabyte: room is made for what is there, not for what is promised.
    there = reader.size(path) or 0
    with reader.open(path) as stream, explained(Path(path)):
        content = stream.read(min(limit, there) + 1)
    if len(content) > limit:
        raise SizeMismatch(f"Expected {path} in {reader.describe} to have at most {limit} bytes, found more.")
    return content


def read_into(stream: BinaryIO, view: memoryview) -> int:
    """Fills `view` from a reader's stream as far as one read goes; returns the bytes read, 0 at the end."""
    return cast(io.RawIOBase, stream).readinto(view) or 0


def read_blob(reader: BundleReader, digest: Digest, size: int) -> bytes:
    """A small blob whole, compared with its size and digest."""
    content = read(reader, blob_path(digest), size)
    if len(content) != size:
        raise SizeMismatch(
            f"Expected {size} bytes of {digest} in {reader.describe}, found {len(content)}; copy the "
            "bundle again."
        )
    found = Digest.of(content)
    if found != digest:
        raise DigestMismatch(
            f"Expected {digest} in {reader.describe}, found bytes of {found}; copy it again."
        )
    return content


def open_plain(path: Path) -> BinaryIO:
    """A file that is neither a link nor a device, unbuffered; raises BundleDefective or DiskFailed."""
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise BundleDefective(f"Expected {path}, found none; copy it again.") from error
    except OSError as error:
        raise DiskFailed(f"{path} cannot be read: {error.strerror}; copy it again.") from error
    if file is None:
        raise BundleDefective(f"Expected {path} to be a plain file, found something else; copy it again.")
    return file


class Directory:
    """A bundle as a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        if not stat.S_ISDIR(_status(root).st_mode):
            raise BundleDefective(f"Expected {root} to be a bundle's directory, found a file.")

    @property
    def describe(self) -> str:
        return str(self._root)

    def entries(self) -> Iterator[Entry]:
        found = list(islice(self._walk(self._root, ""), MAX_ENTRIES + 1))
        if len(found) > MAX_ENTRIES:
            raise BundleDefective(f"Expected at most {MAX_ENTRIES} files in {self._root}, found more.")
        yield from sorted(found, key=lambda entry: entry.path)

    def size(self, path: str) -> int | None:
        if not is_allowed(path):
            return None
        try:
            found = (self._root / path).lstat()
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def open(self, path: str) -> BinaryIO:
        if not is_allowed(path):
            raise BundleDefective(f"{ascii(path)[:200]} is no path of a bundle.")
        return open_plain(self._root / path)

    def ranges(self, path: str) -> tuple[FileRange, ...]:
        size = self.size(path)
        if size is None:
            raise BundleDefective(f"Expected {ascii(path)[:200]} in {self._root}, found none.")
        return (FileRange(self._root / path, 0, size),)

    def _walk(self, folder: Path, prefix: str) -> Iterator[Entry]:
        with explained(folder), os.scandir(folder) as found:
            for item in found:
                path = prefix + item.name
                status = item.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    if path in ("blobs", "blobs/sha256", "signatures"):
                        yield from self._walk(folder / item.name, path + "/")
                    else:
                        yield Entry(path + "/", 0, "a folder that does not belong there")
                else:
                    yield Entry(path, status.st_size, _defect(path, status))


def _defect(path: str, status: os.stat_result) -> str | None:
    if stat.S_ISLNK(status.st_mode):
        return "a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return "a device, a pipe or a socket"
    if status.st_nlink > 1:
        return "a hard link: another name could change it after it was checked"
    return None if is_allowed(path) else "a file that does not belong there"


def _status(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise BundleDefective(f"Expected a bundle at {path}, found none ({error.strerror}).") from error
