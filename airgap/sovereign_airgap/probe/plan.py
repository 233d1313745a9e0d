# SPDX-License-Identifier: Apache-2.0
"""What a probe shall try: written by the operator, read by the prober and by its unsealed control.

Pure: no socket is opened by importing this, and a plan that exists keeps every bound.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from sovereign_airgap import strict_json
from sovereign_airgap.strict_json import Json

FORMAT: Final = 1
PLAN_BYTES: Final = 16 * 1024
MOST_TARGETS: Final = 48
LONGEST_TIMEOUT: Final = 5.0
LONGEST_SETTLING: Final = 120.0
# What a run may need beyond its settling and three timeouts, in seconds.
MARGIN: Final = 10.0

# Stands for the address of the node that the pod runs on (environment variable NODE_IP).
NODE: Final = "node"

# Where the canary and the peer listen, unless they were told otherwise.
TCP_PORT: Final = 8443
UDP_PORT: Final = 8443
DNS_PORT: Final = 8053

CANARY_PATHS: Final = ("canary-tcp", "canary-udp", "canary-dns")
PEER_PATHS: Final = ("peer-tcp", "peer-udp")

_NAME = re.compile(r"[a-z0-9-]{1,40}")
_RUN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_HOST_CHARACTERS = 253
# A tunnelled query has a label of 50 characters and a dot in front of the target's own name.
_QUERY_CHARACTERS = _HOST_CHARACTERS - 51


class InvalidPlan(ValueError):
    """The plan cannot be carried out as it is written; the text says what was expected and found."""


class Protocol(StrEnum):
    """How a target is tried."""

    TCP = "TCP"  # a connection to address:port
    UDP = "UDP"  # a datagram to address:port, with the bytes that a service on that port answers
    ICMP = "ICMP"  # an echo request to the address
    RESOLVE = "RESOLVE"  # the pod's own resolver is asked for the query, as it is and as a tunnel's name
    DNS = "DNS"  # the query is sent straight to address:port, over UDP


_WANTS: Final[Mapping[Protocol, tuple[str, ...]]] = {
    Protocol.TCP: ("address", "port"),
    Protocol.UDP: ("address", "port"),
    Protocol.ICMP: ("address",),
    Protocol.RESOLVE: ("query",),
    Protocol.DNS: ("address", "port", "query"),
}


@dataclass(frozen=True, slots=True)
class Target:
    """One path that is tried: its name in the result, and what its protocol needs (no more, no less)."""

    name: str
    protocol: Protocol
    address: str | None = None
    port: int | None = None
    query: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidPlan(
                f"Expected a target name of a-z, 0-9 and -, at most 40, found {self.name[:60]!r}."
            )
        if self.name in CANARY_PATHS + PEER_PATHS:
            raise InvalidPlan(f"Expected a target name that is free, but {self.name} is a path of every run.")
        given = {"address": self.address, "port": self.port, "query": self.query}
        wanted = _WANTS[self.protocol]
        found = tuple(field for field, value in given.items() if value is not None)
        if found != wanted:
            raise InvalidPlan(
                f"Expected the {self.protocol} target {self.name} to have {_listed(wanted)}, "
                f"found {_listed(found)}."
            )
        if self.address is not None and self.address != NODE:
            require_host(self.address, f"the address of {self.name}")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise InvalidPlan(f"Expected the port of {self.name} to be 1-65535, found {self.port}.")
        if self.query is not None and (not _is_name(self.query) or len(self.query) > _QUERY_CHARACTERS):
            raise InvalidPlan(
                f"Expected the query of {self.name} to be a DNS name of at most {_QUERY_CHARACTERS} "
                f"characters, found {self.query[:60]!r}."
            )

    def as_json(self) -> dict[str, Json]:
        given: dict[str, Json] = {
            "name": self.name, "protocol": str(self.protocol), "address": self.address, "port": self.port,
            "query": self.query,
        }  # fmt: skip
        return {field: value for field, value in given.items() if value is not None}

    @classmethod
    def from_json(cls, document: Mapping[str, Json]) -> Self:
        """Reads one member of `targets`; null means the same as absent. Raises InvalidPlan."""
        reader = _Reader(document, f"target {ascii(document.get('name'))[:60]}")
        reader.only(("name", "protocol", "address", "port", "query"))
        protocol = reader.text("protocol")
        if protocol not in list(Protocol):
            raise InvalidPlan(
                f"Expected the protocol of {reader.what} to be one of {', '.join(Protocol)}, "
                f"found {protocol[:20]!r}."
            )
        return cls(
            name=reader.text("name"),
            protocol=Protocol(protocol),
            address=reader.text_or_none("address"),
            port=reader.whole_or_none("port"),
            query=reader.text_or_none("query"),
        )


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """One run: prober and control get the same targets. Times are in seconds.

    Without a canary there is nothing to settle; a canary with no settling is tried once.
    """

    run: str
    timeout_seconds: float
    settle_seconds: float
    canary: str | None
    peer: str | None
    targets: tuple[Target, ...]

    def __post_init__(self) -> None:
        if not _RUN.fullmatch(self.run):
            raise InvalidPlan(
                f"Expected run to be letters, digits, '.', '_' and '-', at most 64, found {self.run[:80]!r}."
            )
        if not 0.1 <= self.timeout_seconds <= LONGEST_TIMEOUT:
            raise InvalidPlan(
                f"Expected timeoutSeconds to be 0.1-{LONGEST_TIMEOUT:g}, found {self.timeout_seconds}."
            )
        if not 0 <= self.settle_seconds <= LONGEST_SETTLING:
            raise InvalidPlan(
                f"Expected settleSeconds to be 0-{LONGEST_SETTLING:g}, found {self.settle_seconds}."
            )
        for host, what in ((self.canary, "canary"), (self.peer, "peer")):
            if host is not None:
                require_host(host, what)
        if len(self.targets) > MOST_TARGETS:
            raise InvalidPlan(f"Expected at most {MOST_TARGETS} targets, found {len(self.targets)}.")
        names = [target.name for target in self.targets]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidPlan(f"Expected every target to have a name of its own, but {twice} occurs twice.")

    @property
    def bound(self) -> float:
        """Seconds after which a run has ended, whatever the network does."""
        return self.settle_seconds + 3 * self.timeout_seconds + MARGIN

    def render(self) -> str:
        """Compact JSON on one line; raises InvalidPlan where it would be longer than a reader takes."""
        document: dict[str, Json] = {
            "format": FORMAT,
            "run": self.run,
            "timeoutSeconds": _short(self.timeout_seconds),
            "settleSeconds": _short(self.settle_seconds),
            "canary": self.canary,
            "peer": self.peer,
            "targets": [target.as_json() for target in self.targets],
        }
        text = json.dumps(document, ensure_ascii=True, separators=(",", ":"))
        if len(text) > PLAN_BYTES:
            raise InvalidPlan(f"Expected a plan of at most {PLAN_BYTES} bytes, but it has {len(text)}.")
        return text


def parse_plan(content: bytes | str) -> ProbePlan:
    """Reads a plan; null means the same as absent. Raises InvalidPlan."""
    document = read_object(content, PLAN_BYTES, "plan", InvalidPlan)
    reader = _Reader(document, "the plan")
    reader.only(("format", "run", "timeoutSeconds", "settleSeconds", "canary", "peer", "targets"))
    if reader.whole_or_none("format") != FORMAT:
        raise InvalidPlan(f"Expected a plan of format {FORMAT}, found {ascii(document.get('format'))[:20]}.")
    targets = document.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, dict) for target in targets):
        raise InvalidPlan("Expected targets to be a list of objects; write [] for none.")
    if len(targets) > MOST_TARGETS:
        raise InvalidPlan(f"Expected at most {MOST_TARGETS} targets, found {len(targets)}.")
    return ProbePlan(
        run=reader.text("run"),
        timeout_seconds=reader.seconds("timeoutSeconds"),
        settle_seconds=reader.seconds("settleSeconds"),
        canary=reader.text_or_none("canary"),
        peer=reader.text_or_none("peer"),
        targets=tuple(Target.from_json(target) for target in targets if isinstance(target, dict)),
    )


def read_object(content: bytes | str, most: int, what: str, error: type[ValueError]) -> dict[str, Json]:
    """The strict JSON object in `content`, of at most `most` bytes; raises `error`."""
    encoded = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    if len(encoded) > most:
        raise error(f"Expected a {what} of at most {most} bytes, found {len(encoded)}.")
    try:
        return strict_json.load_object(encoded)
    except strict_json.NotStrict as problem:
        raise error(
            f"Expected a {what} in strict JSON, found: {ascii(str(problem))[1:-1][:150]}."
        ) from problem


def require_host(text: str, what: str) -> None:
    """Takes an IP address, or a full DNS name (search domains are never added). Raises InvalidPlan."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        if not _is_name(text):
            raise InvalidPlan(
                f"Expected {what} to be an IP address or a full DNS name, found {text[:60]!r}."
            ) from None
        return
    if getattr(address, "scope_id", None) is not None or address.is_multicast or address.is_unspecified:
        raise InvalidPlan(f"Expected {what} to be the address of one machine, found {text[:60]!r}.")


def _is_name(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    return (
        len(text) <= _HOST_CHARACTERS
        and all(_LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdigit()  # an address with a slip in it, not a name
    )


def _listed(fields: tuple[str, ...]) -> str:
    return ", ".join(fields) or "nothing"


def _short(seconds: float) -> int | float:
    return int(seconds) if seconds == int(seconds) else seconds


@dataclass(frozen=True, slots=True)
class _Reader:
    """Fields of a JSON object, each of one type; everything else raises InvalidPlan."""

    document: Mapping[str, Json]
    what: str

    def only(self, known: tuple[str, ...]) -> None:
        for field in self.document:
            if field not in known:
                raise InvalidPlan(
                    f"Expected in {self.what} only {', '.join(known)}, found {ascii(field)[:60]}."
                )

    def text(self, field: str) -> str:
        value = self.document.get(field)
        if not isinstance(value, str):
            raise self._wrong(field, "text", value)
        return value

    def text_or_none(self, field: str) -> str | None:
        return None if self.document.get(field) is None else self.text(field)

    def whole_or_none(self, field: str) -> int | None:
        value = self.document.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self._wrong(field, "a whole number", value)
        return value

    def seconds(self, field: str) -> float:
        value = self.document.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(field, "a number of seconds", value)
        try:
            return float(value)
        except OverflowError:
            raise self._wrong(field, "a number of seconds", value) from None

    def _wrong(self, field: str, wanted: str, value: Json) -> InvalidPlan:
        return InvalidPlan(f"Expected {field} of {self.what} to be {wanted}, found {ascii(value)[:60]}.")
