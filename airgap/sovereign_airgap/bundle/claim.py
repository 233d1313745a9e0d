# SPDX-License-Identifier: Apache-2.0
"""One load into one place at a time: a claim in the registry, because that is what two machines share.

A registry has no compare-and-swap, so no claim overwrites another. Each run writes a claim of its own (a tag
`_loading-<random>` of `sovereign/state`) and then looks at all of them: of two that come at the same time,
the later writer always sees the earlier one. Whoever sees a holder gives up at once; of those that are still
at the door the smallest name waits for the others to give up, and then holds. This needs a registry that
lists a tag once it has acknowledged it, and nothing else; no waiting time is part of the proof.

A claim ends by itself `LEASE_SECONDS` after its last renewal, on the registry's clock, so a killed run blocks
nobody for long; a run on the same machine sees that the process is gone and need not wait at all. A holder
that could not renew in time takes no further step that moves a tag. What this cannot exclude is one request
that a holder sent before its claim ended and that the registry carries out after: the harm is one tag of an
older bundle, with every digest checked, which the next load puts right.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Self

from sovereign_airgap import catalogue, oci
from sovereign_airgap.control import Reply
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import LoadInProgress, MalformedManifest, RegistryForbidden, SovereignError
from sovereign_airgap.manifest import (
    EMPTY_BLOB,
    EMPTY_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    canonical_json,
)
from sovereign_airgap.registry import Registry
from sovereign_airgap.uploads import put_blob

ARTIFACT_TYPE = "application/vnd.sovereign.bundle.claim.v1+json"
# No bundle's name holds an underscore, so no record of a bundle can be taken for a claim.
TAG_PREFIX = "_loading-"
LEASE_SECONDS = 120.0
DOOR_SECONDS = 10.0
# The registry tells its time in whole seconds.
_CLOCK_SECONDS = 2.0
_POLL_SECONDS = 0.1
_KEY = "dev.sovereign.claim."
_WISHING, _HOLDING, _RELEASED = "wishing", "holding", "released"
_FAREWELL_SECONDS = 5.0
_GONE = (HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class Claimant:
    """A claim as it was found. `until` is in seconds since the epoch, on the registry's clock."""

    tag: str
    state: str
    what: str
    host: str
    process: str
    until: float

    @classmethod
    def parse(cls, tag: str, content: bytes) -> Self:
        """Raises MalformedManifest where the tag names something else."""
        document = oci.read(content, MANIFEST_TYPE)
        said = {key: document.annotations.get(_KEY + key, "") for key in ("state", "what", "host", "process")}
        until = document.annotations.get(_KEY + "until", "")
        if document.artifact_type != ARTIFACT_TYPE or not until.isdigit() or len(until) > 12:
            raise MalformedManifest(f"Expected a claim behind the tag {tag}, found something else.")
        return cls(tag, until=float(until), **said)

    def is_over(self, now: float) -> bool:
        """Whether this claim holds nobody up any more: its time has ended, or its process has."""
        return now > self.until + _CLOCK_SECONDS or has_ended(self.process)


class Claim:
    """This run's own claim; `require` before every step that must not happen twice at once."""

    def __init__(self, registry: Registry, what: str, lease: float = LEASE_SECONDS) -> None:
        self._registry = registry
        self._what = what
        self._lease = lease
        self._tag = TAG_PREFIX + os.urandom(8).hex()
        self._sure_until: float | None = None
        # How far the registry's clock is ahead of this machine's monotonic one: at least, and at most.
        self._ahead = (0.0, 0.0)
        self._last: Digest | None = None
        self._over = threading.Event()
        self._writing = threading.Lock()

    def acquire(self) -> None:
        """Holds the place, or raises LoadInProgress at once."""
        put_blob(self._registry, EMPTY_BLOB)
        begun = time.monotonic()
        self._learn_time(self._registry.ask("GET", self._registry.url("tags/list?n=1")), begun)
        self._write(_WISHING)
        ends = time.monotonic() + DOOR_SECONDS
        while others := self._others():
            holders = [other for other in others if other.state == _HOLDING]
            before_us = [other for other in others if other.tag < self._tag]
            if holders or before_us or time.monotonic() > ends:
                raise self._refused((holders or before_us or others)[0])
            self._registry.pace.sleep(_POLL_SECONDS)
        self._write(_HOLDING)

    def keep(self) -> None:
        """Renews until the claim is released; to be run in a thread of its own."""
        while not self._over.wait((self._lease - _CLOCK_SECONDS) / 3):
            # Whether it failed for good is seen by the time that is left.
            with contextlib.suppress(SovereignError), self._writing:
                if not self._over.is_set():
                    self._write(_HOLDING)

    def require(self) -> None:
        """Raises LoadInProgress unless the claim is still ours."""
        if self._sure_until is None or time.monotonic() > self._sure_until:
            raise LoadInProgress(
                f"Expected to hold the claim on {self._registry.origin} until the end, but it could not be "
                "renewed in time and may be somebody else's now; run the load again, it goes on from here."
            )

    def release(self) -> None:
        """Takes the claim away; best effort, also after the run was stopped: it ends by itself."""
        self._over.set()
        # A renewal that is under way would bring the claim back.
        if self._writing.acquire(timeout=_FAREWELL_SECONDS):
            try:
                with contextlib.suppress(SovereignError):
                    self._take_away()
            finally:
                self._writing.release()

    # -- requests -------------------------------------------------------------------------------------------

    def _take_away(self) -> None:
        if self._registry.pace.stopped:
            self._registry.ask_once("DELETE", self._registry.url(f"manifests/{self._tag}"))
        elif not self._delete(self._tag):
            self._write(_RELEASED, until=0)  # a registry that keeps its tags
        elif self._last is not None:
            self._delete(str(self._last))

    def _delete(self, target: str) -> bool:
        """Whether it is gone: not every registry deletes, nor for everybody who may push."""
        try:
            reply = self._registry.ask("DELETE", self._registry.url(f"manifests/{target}"))
        except RegistryForbidden:
            return False
        return reply.status in _GONE

    def _write(self, state: str, until: int | None = None) -> None:
        begun = time.monotonic()
        if until is None:
            until = int(begun + self._ahead[1] + self._lease)
        content = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": ARTIFACT_TYPE,
                "config": Descriptor.of(EMPTY_TYPE, EMPTY_BLOB).as_json(),
                "layers": [Descriptor.of(EMPTY_TYPE, EMPTY_BLOB).as_json()],
                "annotations": {
                    _KEY + "state": state,
                    _KEY + "what": self._what,
                    _KEY + "host": socket.gethostname(),
                    _KEY + "process": this_process(),
                    # The random name makes every claim a manifest of its own.
                    _KEY + "name": self._tag,
                    _KEY + "until": str(until),
                },
            }
        )
        self._learn_time(self._registry.put_manifest(self._tag, content), begun)
        if self._sure_until is not None:
            self.require()  # an answer that came after the claim's end renews nothing
        self._sure_until = begun + self._lease - _CLOCK_SECONDS
        former, self._last = self._last, Digest.of(content)
        if former is not None and former != self._last:
            # What a renewal replaces has no tag any more and would pile up.
            self._registry.ask_once("DELETE", self._registry.url(f"manifests/{former}"))

    def _others(self) -> list[Claimant]:
        """Claims that hold us up; those that are over are taken away."""
        others = []
        for tag in catalogue.tags(self._registry):
            if not tag.startswith(TAG_PREFIX) or tag == self._tag:
                continue
            content = self._registry.find_manifest(tag)
            if content is None:
                continue  # released since the listing
            found = Claimant.parse(tag, content)
            if found.is_over(time.monotonic() + self._ahead[0]):
                self._delete(tag)
            else:
                others.append(found)
        return others

    def _learn_time(self, reply: Reply, begun: float) -> None:
        """The Date of an answer, in whole seconds, is from some moment since its request began."""
        now = time.time()
        with contextlib.suppress(ValueError):  # no Date, or none that can be read: our own clock
            now = parsedate_to_datetime(reply.headers.get("date", "")).timestamp()
        self._ahead = (now - time.monotonic(), now + 1 - begun)

    def _refused(self, other: Claimant) -> LoadInProgress:
        left = max(1, round(other.until + _CLOCK_SECONDS - time.monotonic() - self._ahead[0]))
        place = f"{self._registry.origin}/{self._registry.repository}"
        return LoadInProgress(
            f"Expected nobody else to be loading into {place}, found {ascii(other.what)[1:-1][:120]} by "
            f"{ascii(other.host)[1:-1][:80]}; wait until it has ended. If it was killed, its claim ends in "
            f"{left} s."
        )


@contextmanager
def claimed(registry: Registry, what: str, lease: float = LEASE_SECONDS) -> Iterator[Claim]:
    """Holds the place while the block lasts; raises LoadInProgress where somebody else does.

    `registry` is the place's `sovereign/state`; `what` tells others what is going on, as in "load of site 3".
    """
    claim = Claim(registry, what, lease)
    keeper = threading.Thread(target=claim.keep, name="claim", daemon=True)
    try:
        claim.acquire()
        keeper.start()
        yield claim
    finally:
        claim.release()
        if keeper.is_alive():
            keeper.join(_FAREWELL_SECONDS)


def this_process() -> str:
    """Boot, process namespace, process and its start: what no other process ever has; empty where unknown."""
    try:
        return f"{_boot()} {_namespace()} {os.getpid()} {_start_of(os.getpid())}"
    except OSError:
        return ""


def has_ended(process: str) -> bool:
    """Whether that process is known to be gone; False for those that cannot be seen from here."""
    words = process.split(" ")
    try:
        if len(words) != 4 or not words[2].isdigit() or words[:2] != [_boot(), _namespace()]:
            return False
    except OSError:
        return False
    try:
        return _start_of(int(words[2])) != words[3]
    except OSError:
        return True


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _start_of(pid: int) -> str:
    """Clock ticks from the boot to the process's start; a zombie counts as gone."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return "gone" if words[0] in ("Z", "X") else words[19]
