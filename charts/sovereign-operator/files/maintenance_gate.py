# SPDX-License-Identifier: Apache-2.0
"""Keeps the registry's writer closed for as long as garbage collection runs.

Why it is built like this: collection on a registry that takes writes loses data, because a manifest that
arrives between mark and sweep loses its blobs. distribution takes itself out of rotation (503 for every
request) while a file that its configuration names (`health.file`) exists. So the writer is closed by a
file on the shared volume: no restart, no right on the Kubernetes API, no second registry binary. The
read-only listener does not know that file and goes on.

The file counts only while somebody holds a lock on it, so that a gate that was killed leaves no closed
registry behind: each start of the registry's pod removes a file that nobody holds.

  close   sidecar of the collection Job: wait until no upload moves, close, wait for SIGTERM, open again
  closed  its startup probe: succeeds when the writer itself said that it is closed
  reopen  init container of the registry's pod: remove a file that nobody holds

Runs with the standard library only, in the data plane's image.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

POLL_SECONDS = 1.0
# After the writer answers 503 nothing new gets in. A manifest that was let in before needs milliseconds from
# its last check to its last write.
SETTLE_SECONDS = 10.0


class Terminated(BaseException):
    """SIGTERM: the collection ended, or the Job was taken away."""


def last_upload(root: Path) -> float:
    """The time at which any unfinished upload last moved, in seconds since the epoch; 0 without uploads."""
    moved = 0.0
    for folder, children, files in os.walk(root / "docker/registry/v2/repositories"):
        if Path(folder).name in ("_layers", "_manifests"):
            children.clear()
        elif "_uploads" in Path(folder).parts:
            for name in files:
                try:
                    moved = max(moved, (Path(folder) / name).stat().st_mtime)
                except FileNotFoundError:
                    continue  # finished or cancelled between the listing and the look
    return moved


def wait_until_quiet(root: Path, seconds: float) -> None:
    """Return when no upload moved for `seconds`. A running mirror moves one until its manifest is written."""
    said = False
    while (since := time.time() - last_upload(root)) < seconds:
        if not said:
            print(f"an upload moved {since:.0f} s ago: waiting for {seconds:.0f} quiet seconds", flush=True)
            said = True
        time.sleep(min(POLL_SECONDS, seconds))


def hold(lock: Path) -> int:
    """Create and lock the file; return its descriptor. Raises BlockingIOError where another gate holds it."""
    while True:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # `reopen` may have removed the name between open and flock: then this lock is on nothing.
            if lock.exists() and os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextmanager
def closed(lock: Path) -> Iterator[None]:
    """The lock file exists, and is ours, inside this block."""
    descriptor = hold(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def status(url: str, ca: str | None) -> int:
    """The writer's answer as an HTTP status; 0 where it does not answer."""
    context = ssl.create_default_context(cafile=ca) if url.startswith("https:") else None
    try:
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:  # noqa: S310  (set by the chart)
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def wait_until_refused(url: str, ca: str | None) -> None:
    """Return when the writer itself says 503. A writer that is down is not closed: it may come back."""
    while status(url, ca) != 503:
        time.sleep(POLL_SECONDS)


def close(
    root: Path, lock: Path, marker: Path, url: str, ca: str | None, quiet: float, settle: float
) -> None:
    # A fresh volume has no folders yet, and the collector takes that for an error.
    for folder in ("repositories", "blobs"):
        (root / "docker/registry/v2" / folder).mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    wait_until_quiet(root, quiet)
    with closed(lock):
        wait_until_refused(url, ca)
        time.sleep(settle)
        marker.touch()
        print("the writer is closed", flush=True)
        while True:  # until SIGTERM raises Terminated; pause() could miss one that comes just before it
            time.sleep(POLL_SECONDS)


def reopen(lock: Path) -> None:
    """Remove the lock file of a gate that is no more."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("garbage collection is running: the writer stays closed", flush=True)
        return
    else:
        lock.unlink(missing_ok=True)
        print("removed the lock of a collection that did not end in order", flush=True)
    finally:
        os.close(descriptor)


def on_sigterm(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # opening again is not interrupted
    raise Terminated


def main() -> int:
    parser = argparse.ArgumentParser(description="Close the registry's writer while garbage collection runs.")
    parser.add_argument("verb", choices=("close", "closed", "reopen"))
    parser.add_argument("--root", type=Path, default=Path("/var/lib/registry"))
    parser.add_argument("--lock", type=Path, default=Path("/var/lib/registry/closed-for-garbage-collection"))
    parser.add_argument("--marker", type=Path, default=Path("/run/gate/closed"))
    parser.add_argument("--url", default="")
    parser.add_argument("--ca", default=None)
    parser.add_argument("--quiet", type=float, default=900)
    parser.add_argument("--settle", type=float, default=SETTLE_SECONDS)
    options = parser.parse_args()
    if options.verb == "closed":
        return 0 if options.marker.exists() else 1
    if options.verb == "reopen":
        reopen(options.lock)
        return 0
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        close(
            options.root, options.lock, options.marker, options.url, options.ca, options.quiet, options.settle
        )
    except Terminated:
        print("the writer is open", flush=True)
    except BlockingIOError:
        print("another garbage collection is running", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
