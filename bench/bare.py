# SPDX-License-Identifier: Apache-2.0
"""Bare pipes: what the bytes of each verb cost with nothing around them, and the bounds of this machine.

No manifest, no names, no retries, no checks: bytes go past the page cache where the file system allows,
several files at once, and what is written is on the disk at the end. One process per call:

    python -m bench.bare fetch WORKERS FOLDER URL…           GET, sha256, disk
    python -m bench.bare push WORKERS HOST REPOSITORY FILE…  disk, sha256, PATCH and PUT
    python -m bench.bare copy WORKERS FOLDER FILE…           disk, sha256, disk
    python -m bench.bare hash WORKERS FILE…                  disk, sha256
    python -m bench.bare read WORKERS FILE…                  disk
    python -m bench.bare cores WORKERS BYTES                 sha256 of memory
"""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

PIECE = 4 * 1024 * 1024
_MEMORY = 64 * 1024 * 1024  # more than a core's caches hold
_ALIGNMENT = 4096


def pages() -> memoryview:
    """A buffer of whole pages, as reads and writes past the page cache want it."""
    return memoryview(mmap.mmap(-1, PIECE))


def pieces(path: Path) -> Iterator[memoryview]:
    """A file's bytes, in one buffer that the next piece overwrites."""
    buffer = pages()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _direct(descriptor, True)
        at = 0
        while True:
            try:
                count = os.preadv(descriptor, [buffer], at)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                _direct(descriptor, False)
                continue
            if not count:
                return
            yield buffer[:count]
            at += count
            if at % _ALIGNMENT:
                _direct(descriptor, False)  # the file's end; another read says so
    finally:
        os.close(descriptor)


class Sink:
    """A file that is on the disk when it is closed. All writes but the last are of whole pages."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        _direct(self._descriptor, True)

    def write(self, view: memoryview) -> None:
        if len(view) % _ALIGNMENT:
            _direct(self._descriptor, False)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                _direct(self._descriptor, False)

    def close(self) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def fetch(url: str, folder: Path, name: str) -> str:
    """Returns the hexadecimal sha256, as all of these do."""
    source = urlsplit(url)
    connection = http.client.HTTPConnection(source.netloc)
    target = f"{source.path}?{source.query}" if source.query else source.path
    connection.request("GET", target, headers={"Accept-Encoding": "identity"})
    download = connection.getresponse()
    assert download.status == 200, download.status
    digest = hashlib.sha256()
    buffer, filled = pages(), 0
    sink = Sink(folder / name)
    while count := download.readinto(buffer[filled:]):
        digest.update(buffer[filled : filled + count])
        filled += count
        if filled == PIECE:
            sink.write(buffer)
            filled = 0
    sink.write(buffer[:filled])
    sink.close()
    connection.close()
    return digest.hexdigest()


def push(path: Path, host: str, repository: str) -> str:
    connection = http.client.HTTPConnection(host)
    connection.request("POST", f"/v2/{repository}/blobs/uploads/")
    begun = connection.getresponse()
    begun.read()
    length = path.stat().st_size
    connection.putrequest("PATCH", begun.headers["Location"])
    connection.putheader("Content-Length", str(length))
    connection.putheader("Content-Range", f"0-{length - 1}")
    connection.endheaders()
    digest = hashlib.sha256()
    for piece in pieces(path):
        digest.update(piece)
        connection.send(piece)
    accepted = connection.getresponse()
    accepted.read()
    assert accepted.status == 202, accepted.status
    address = f"{accepted.headers['Location']}&digest=sha256:{digest.hexdigest()}"
    connection.request("PUT", address, headers={"Content-Length": "0"})
    ended = connection.getresponse()
    assert ended.status == 201, ended.read()
    connection.close()
    return digest.hexdigest()


def copy(path: Path, folder: Path) -> str:
    digest = hashlib.sha256()
    sink = Sink(folder / path.name)
    for piece in pieces(path):
        digest.update(piece)
        sink.write(piece)
    sink.close()
    return digest.hexdigest()


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for piece in pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def read(path: Path) -> str:
    for _ in pieces(path):
        pass
    return path.name


def cores(size: int) -> str:
    memory = memoryview(bytes(_MEMORY))
    digest = hashlib.sha256()
    while size > 0:
        digest.update(memory[:size])
        size -= _MEMORY
    return digest.hexdigest()


def _direct(descriptor: int, on: bool) -> None:
    flag: int = getattr(os, "O_DIRECT", 0)
    with contextlib.suppress(OSError):  # a file system without it: through the page cache then
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | flag if on else flags & ~flag)


def _calls(verb: str, workers: int, rest: list[str]) -> Iterable[Callable[[], str]]:
    match verb, rest:
        case "fetch", [folder, *urls]:
            return [partial(fetch, url, Path(folder), str(at)) for at, url in enumerate(urls)]
        case "push", [host, repository, *files]:
            return [partial(push, Path(file), host, repository) for file in files]
        case "copy", [folder, *files]:
            return [partial(copy, Path(file), Path(folder)) for file in files]
        case "hash", files:
            return [partial(sha256, Path(file)) for file in files]
        case "read", files:
            return [partial(read, Path(file)) for file in files]
        case "cores", [size]:
            return [partial(cores, int(size) // workers)] * workers
    raise SystemExit(__doc__)


def main() -> None:
    verb, workers, *rest = sys.argv[1:]
    if verb in ("fetch", "copy"):
        Path(rest[0]).mkdir()
    with ThreadPoolExecutor(int(workers)) as pool:
        for result in pool.map(lambda call: call(), _calls(verb, int(workers), rest)):
            print(result)


if __name__ == "__main__":
    main()
