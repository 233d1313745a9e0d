# SPDX-License-Identifier: Apache-2.0
"""How far the work is: one tally that threads add to, and the ways to look at it.

On a terminal a live view, in a pipe one JSON line per second, and `GET /progress` for the operator. Looking
never slows the work: every view reads a snapshot.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TextIO

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of a run."""

    phase: str
    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int
    file: str

    def as_json(self) -> str:
        document = {
            "phase": self.phase,
            "bytesDone": self.bytes_done,
            "bytesTotal": self.bytes_total,
            "filesDone": self.files_done,
            "filesTotal": self.files_total,
            "file": self.file,
        }
        return json.dumps(document, ensure_ascii=True, separators=(",", ":"))


class Progress:
    """The tally. `moved` may be negative: after a fault some bytes are to be done again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Snapshot("starting", 0, 0, 0, 0, "")
        self._moved = 0  # counted apart: every lane adds to it many thousand times a second

    def snapshot(self) -> Snapshot:
        with self._lock:
            return replace(self._now, bytes_done=self._moved)

    def enter(self, phase: str) -> None:
        self._change(phase=phase)

    def expect(self, files: int, size: int) -> None:
        with self._lock:
            self._now = replace(self._now, files_done=0, files_total=files, bytes_total=size)
            self._moved = 0

    def working_on(self, path: str) -> None:
        self._change(file=path)

    def moved(self, count: int) -> None:
        with self._lock:
            self._moved += count

    def finished(self, path: str) -> None:
        with self._lock:
            self._now = replace(self._now, files_done=self._now.files_done + 1, file=path)

    def _change(self, **values: int | str) -> None:
        with self._lock:
            self._now = replace(self._now, **values)  # type: ignore[arg-type]


@contextmanager
def shown(progress: Progress, how: str, stream: TextIO | None = None) -> Iterator[None]:
    """Shows a run while the block lasts: `auto` (live on a terminal, else JSON lines), `json` or `none`."""
    stream = sys.stderr if stream is None else stream
    if how == "none":
        yield
        return
    live = how == "auto" and stream.isatty()
    done = threading.Event()
    show = _show_live if live else _show_lines
    thread = threading.Thread(target=show, args=(progress, stream, done), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show_lines(progress: Progress, stream: TextIO, done: threading.Event) -> None:
    last = None
    ended = False
    while not ended:
        ended = done.wait(1.0)
        now = progress.snapshot()
        if now != last:
            stream.write(now.as_json() + "\n")
            stream.flush()
            last = now


def _show_live(progress: Progress, stream: TextIO, done: threading.Event) -> None:
    # Late: it takes long to import, and no pod has a terminal.
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("{task.fields[files]}"),
    )
    with bars.Progress(*columns, console=Console(file=stream), transient=False) as view:
        task = view.add_task("starting", total=None, files="")
        ended = False
        while not ended:
            ended = done.wait(0.2)
            now = progress.snapshot()
            view.update(
                task,
                description=now.phase,
                completed=now.bytes_done,
                total=now.bytes_total or None,
                files=f"{now.files_done}/{now.files_total} files",
            )


@contextmanager
def served(progress: Progress, port: int | None) -> Iterator[int]:
    """Answers `GET /progress` while the block lasts; yields the port (0 wishes a free one, None nothing)."""
    if port is None:
        yield 0
        return

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            found = self.path == "/progress"
            body = progress.snapshot().as_json().encode("ascii") if found else b'{"error":"not found"}'
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
            """Silent: the run's own output is on the same stream."""

    try:
        server = ThreadingHTTPServer(("", port), Handler)
    except OSError as error:
        _log.warning("nobody can watch the progress on port %d: %s", port, error)
        yield 0
        return
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
