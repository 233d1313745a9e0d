# SPDX-License-Identifier: Apache-2.0
"""Sending a file over HTTP as the Hub's servers do: Range, 206, 416, and no Range once gzip is offered."""

import gzip
import re
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
COMPRESSIBLE = frozenset({".json", ".txt", ".md", ".jinja", ".model", ".py", ".yaml"})


@dataclass(frozen=True)
class Window:
    """A part of a file: first byte and length."""

    start: int
    length: int


class Unsatisfiable(ValueError):
    """The range lies outside the file: 416."""


def window_of(header: str | None, size: int) -> Window | None:
    """The part that a Range header asks for; None for the whole file (also for what HTTP says to ignore)."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.group(1), match.group(2)
    if not first:
        if int(last) == 0 or size == 0:
            raise Unsatisfiable
        return Window(max(size - int(last), 0), min(int(last), size))
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    if start >= size:
        raise Unsatisfiable
    return Window(start, end - start + 1)


def send_file(handler: BaseHTTPRequestHandler, source: Path, size: int, headers: dict[str, str]) -> None:
    """Answer a GET or HEAD for one file, by sendfile where the connection allows it."""
    offers_gzip = "gzip" in handler.headers.get("Accept-Encoding", "")
    if offers_gzip and source.suffix in COMPRESSIBLE and handler.command == "GET":
        _send_compressed(handler, source, headers)
        return
    try:
        # A client that offers gzip gets the whole file, whatever range it asked for: real servers do that.
        window = None if offers_gzip else window_of(handler.headers.get("Range"), size)
    except Unsatisfiable:
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{size}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(200 if window is None else 206)
    part = window or Window(0, size)
    if window is not None:
        handler.send_header("Content-Range", f"bytes {part.start}-{part.start + part.length - 1}/{size}")
    handler.send_header("Content-Length", str(part.length))
    handler.send_header("Accept-Ranges", "bytes")
    for name, value in {"Content-Type": "application/octet-stream", **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command == "GET" and part.length:
        with source.open("rb") as stream:
            handler.connection.sendfile(stream, offset=part.start, count=part.length)


def _send_compressed(handler: BaseHTTPRequestHandler, source: Path, headers: dict[str, str]) -> None:
    body = gzip.compress(source.read_bytes(), compresslevel=1, mtime=0)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Transfer-Encoding", "chunked")
    for name, value in {"Content-Type": "text/plain; charset=utf-8", **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
