# SPDX-License-Identifier: Apache-2.0
"""The programs that an installation runs: found on PATH, or brought by the bundle in `bin/`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from sovereign_airgap.bundle.layout import BundleReader, blob_path
from sovereign_airgap.bundle.part_damage import blame
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import HalfWritten, explained
from sovereign_airgap.errors import DigestMismatch, ProgramFailed, ProgramMissing
from sovereign_airgap.install.platform import Platform

SECONDS = 300.0
_SAID_BYTES = 4 * 1024 * 1024
_TOLD_CHARACTERS = 600
_PIECE = 1024 * 1024


class Programs:
    """Runs programs by their bare name; `folder` takes those that the bundle brings."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self._platform = platform
        self._folder = folder
        self._found: dict[str, str] = {}

    def find(self, name: str) -> str | None:
        """Where the program is or will be; None where neither machine nor bundle has it."""
        if found := shutil.which(name):
            return found
        return str(self._folder / name) if self._platform.program(name) is not None else None

    def path(self, name: str) -> str:
        """As `find`, and it can be run; raises ProgramMissing."""
        if name in self._found:
            return self._found[name]
        found = self.find(name)
        if found is None:
            raise ProgramMissing(
                f"Expected {name} on PATH or in the bundle as bin/{name}, found neither; install it, or "
                f"create the bundle with `--file {name}=bin/{name}`."
            )
        root = self._platform.program(name)
        if root is not None and found == str(self._folder / name):
            self._take(self._platform.reader, root.descriptor.digest, self._folder / name)
        self._found[name] = found
        return found

    def run(self, name: str, *arguments: str, stdin: bytes = b"", seconds: float = SECONDS) -> str:
        """Runs it and returns what it said, at most 4 MiB; raises ProgramFailed."""
        return self.feed(name, *arguments, stdin=[stdin], seconds=seconds)

    def feed(self, name: str, *arguments: str, stdin: Iterable[bytes], seconds: float = SECONDS) -> str:
        """As `run`, with an input that is made while it is read; `seconds` count from the input's end.

        Whatever the input raises ends the program first.
        """
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
            process = subprocess.Popen(
                [self.path(name), *arguments], stdin=subprocess.PIPE, stdout=said, stderr=complained
            )
            assert process.stdin is not None
            try:
                # One that ends early says why by its exit code and its words.
                with contextlib.suppress(BrokenPipeError):
                    for piece in stdin:
                        process.stdin.write(piece)
                    process.stdin.flush()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                code = process.wait(seconds)
            except subprocess.TimeoutExpired as error:
                raise ProgramFailed(f"`{name} {_told(arguments)}` did not end in {seconds:.0f} s.") from error
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            if code:
                words = (_ending(complained) or _ending(said)).strip() or f"exit code {code}"
                raise ProgramFailed(f"`{name} {_told(arguments)}` failed: {words[-_TOLD_CHARACTERS:]}")
            said.seek(0)
            return said.read(_SAID_BYTES).decode("utf-8", "replace")

    @contextlib.contextmanager
    def running(self, name: str, *arguments: str, seconds: float = 60.0) -> Iterator[str]:
        """The first line that a program says within `seconds`; it is ended with the block."""
        process = subprocess.Popen(
            [self.path(name), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        try:
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            line = (
                os.read(process.stdout.fileno(), _TOLD_CHARACTERS).decode("utf-8", "replace") if ready else ""
            )
            if not line:
                raise ProgramFailed(f"`{name} {_told(arguments)}` said nothing within {seconds:.0f} s.")
            yield line
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()

    def _take(self, reader: BundleReader, digest: Digest, place: Path) -> None:
        path = blob_path(digest)
        with explained(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        file = HalfWritten(place, direct=False)
        seen = hashlib.sha256()
        try:
            with reader.open(path) as stream:
                while piece := stream.read(_PIECE):
                    seen.update(piece)
                    file.write(piece)
            if seen.hexdigest() != digest.hex:
                raise DigestMismatch(
                    f"Expected {digest} in {reader.describe}, found other bytes; {blame(reader, path)}."
                )
            file.publish()
        finally:
            file.close()
        with explained(place):
            place.chmod(0o755)


def _told(arguments: tuple[str, ...]) -> str:
    return " ".join(ascii(word)[1:-1] for word in arguments[:6])


def _ending(stream: IO[bytes]) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _SAID_BYTES))
    return stream.read().decode("utf-8", "replace")
