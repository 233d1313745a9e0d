# SPDX-License-Identifier: Apache-2.0
"""What a probe found: written by the prober and its control into their termination message, read by the
operator.

Pure, as `plan` is. A pod writes this, so the operator takes it as it would take any stranger's document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from sovereign_airgap.probe.plan import CANARY_PATHS, MOST_TARGETS, PEER_PATHS, read_object
from sovereign_airgap.strict_json import Json

FORMAT: Final = 1
# A termination message has 4096 bytes, and all that we render stays well below.
RESULT_BYTES: Final = 3584
MOST_PATHS: Final = MOST_TARGETS + len(CANARY_PATHS) + len(PEER_PATHS)

_PATH = re.compile(r"[a-z0-9-]{1,40}")
_RUN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NODE = re.compile(r"[a-z0-9.-]{0,253}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_LONGEST = 3600.0
_FIELDS = ("format", "run", "at", "seconds", "node", "settled", "paths")


class InvalidResult(ValueError):
    """A document is not the result of a probe; the text says what was expected and found."""


class Outcome(StrEnum):
    """What became of one path."""

    REACHED = "reached"  # an answer came
    DENIED = "denied"  # a refusal came, or nothing
    UNABLE = "unable"  # this pod cannot try: proves nothing


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One run of one pod, ended `at` (whole seconds, UTC).

    `settled` is how many seconds passed until the canary was denied on every path, None if it never was or
    there is none; `node` is the node's name, "" if the pod was not told.
    """

    run: str
    at: datetime
    seconds: float
    node: str
    settled: float | None
    paths: Mapping[str, Outcome]

    def named(self, outcome: Outcome) -> tuple[str, ...]:
        """The paths with this outcome, in the order in which they were written."""
        return tuple(name for name, found in self.paths.items() if found is outcome)

    def render(self) -> str:
        """Compact JSON on one line, at most RESULT_BYTES."""
        document: dict[str, Json] = {
            "format": FORMAT,
            "run": self.run,
            "at": self.at.astimezone(UTC).replace(tzinfo=None, microsecond=0).isoformat() + "Z",
            "seconds": round(self.seconds, 1),
            "node": self.node,
            "settled": None if self.settled is None else round(self.settled, 1),
            "paths": {name: str(outcome) for name, outcome in self.paths.items()},
        }
        return json.dumps(document, ensure_ascii=True, separators=(",", ":"))


def parse_result(content: bytes | str) -> ProbeResult:
    """Reads a result. Raises InvalidResult, also for the result file of a run that failed."""
    document = read_object(content, RESULT_BYTES, "probe result", InvalidResult)
    if document.get("format") != FORMAT or set(document) != set(_FIELDS):
        raise _wrong(f"a document of format {FORMAT} with {', '.join(_FIELDS)}", sorted(document))
    run, node = document["run"], document["node"]
    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise _wrong("the id of a run", run)
    if not isinstance(node, str) or not _NODE.fullmatch(node):
        raise _wrong("the name of a node", node)
    settled = document["settled"]
    return ProbeResult(
        run=run,
        at=_time(document["at"]),
        seconds=_seconds(document["seconds"]),
        node=node,
        settled=None if settled is None else _seconds(settled),
        paths=_paths(document["paths"]),
    )


def _time(value: Json) -> datetime:
    if isinstance(value, str) and _TIME.fullmatch(value):
        try:
            return datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:  # a thirteenth month
            pass
    raise _wrong("a time as in 2026-01-31T12:00:00Z", value)


def _seconds(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST:
        raise _wrong(f"seconds from 0 to {_LONGEST:g}", value)
    return float(value)


def _paths(value: Json) -> dict[str, Outcome]:
    if not isinstance(value, dict) or len(value) > MOST_PATHS:
        raise _wrong(f"at most {MOST_PATHS} paths", value)
    found: dict[str, Outcome] = {}
    for name, outcome in value.items():
        if not _PATH.fullmatch(name) or outcome not in list(Outcome):
            raise _wrong(f"paths that are {', '.join(Outcome)}", f"{name}: {outcome}")
        found[name] = Outcome(outcome)
    return found


def _wrong(wanted: str, found: object) -> InvalidResult:
    return InvalidResult(f"Expected in a probe result {wanted}, found {ascii(found)[:100]}.")
