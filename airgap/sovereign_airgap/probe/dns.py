# SPDX-License-Identifier: Apache-2.0
"""DNS messages (RFC 1035), as much of them as a probe needs: one question out, addresses in, and the canary's
one answer.

Every message here was sent by a stranger: none is followed anywhere, each is read once from front to back.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

A: Final = 1
TXT: Final = 16
AAAA: Final = 28
NO_ERROR: Final = 0
# Without EDNS nothing longer travels over UDP, and over TCP no query needs more.
MESSAGE_BYTES: Final = 512

_IN: Final = 1
_HEADER: Final = struct.Struct("!6H")
_RESPONSE: Final = 0x8000
_OPCODE: Final = 0x7800
_AUTHORITATIVE: Final = 0x0400
_TRUNCATED: Final = 0x0200
_RECURSION_DESIRED: Final = 0x0100
_RCODE: Final = 0x000F

# From the documentation ranges: whoever asked the canary for a name gets nowhere with it.
_CANARY_SAYS: Final = {
    A: ipaddress.IPv4Address("192.0.2.1").packed,
    AAAA: ipaddress.IPv6Address("2001:db8::1").packed,
    TXT: b"\x0fsovereign-probe",
}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Malformed(ValueError):
    """The bytes are not a DNS message that can be read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said: its code, whether there was more than fits, and the addresses."""

    code: int
    truncated: bool
    addresses: tuple[Address, ...]

    @property
    def gives_an_address(self) -> bool:
        """A truncated answer counts: what does not fit is there."""
        return self.code == NO_ERROR and (bool(self.addresses) or self.truncated)


def query(identifier: int, name: str, kind: int) -> bytes:
    """A question for `name`, which `plan` has checked; recursion is asked for."""
    labels = name.removesuffix(".").split(".")
    wire = b"".join(bytes([len(label)]) + label.encode("ascii") for label in labels) + b"\0"
    return _HEADER.pack(identifier, _RECURSION_DESIRED, 1, 0, 0, 0) + wire + struct.pack("!2H", kind, _IN)


def read_answer(message: bytes, sent: bytes) -> Answer | None:
    """What `message` answers to the query `sent`; None if it is no answer to it."""
    if len(message) < _HEADER.size or message[:2] != sent[:2]:
        return None
    _, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    if not flags & _RESPONSE or flags & _OPCODE:
        return None
    code, truncated = flags & _RCODE, bool(flags & _TRUNCATED)
    end = len(sent)
    if questions != 1 or message[_HEADER.size : end].lower() != sent[_HEADER.size :].lower():
        # Servers that refuse may leave the question out.
        return Answer(code, truncated, ()) if questions == 0 and code != NO_ERROR else None
    return Answer(code, truncated, _addresses(message, end, answers))


def answer_to(message: bytes, most: int) -> bytes | None:
    """The canary's answer to a query, cut (and marked so) to `most` bytes; None for what is no query."""
    try:
        end, kind, category = _question(message)
    except Malformed:
        return None
    identifier, flags = struct.unpack_from("!2H", message)
    reply = _RESPONSE | _AUTHORITATIVE | (flags & _RECURSION_DESIRED)
    data = _CANARY_SAYS.get(kind) if category == _IN else None
    question = message[_HEADER.size : end]
    # The name as a pointer to the question's; nobody shall keep the answer.
    record = b"" if data is None else struct.pack("!3HIH", 0xC00C, kind, _IN, 0, len(data)) + data
    if end + len(record) > most:
        return _HEADER.pack(identifier, reply | _TRUNCATED, 1, 0, 0, 0) + question if end <= most else None
    return _HEADER.pack(identifier, reply, 1, 1 if record else 0, 0, 0) + question + record


def _question(message: bytes) -> tuple[int, int, int]:
    """Where the only question of a query ends, and its type and class."""
    if not _HEADER.size < len(message) <= MESSAGE_BYTES:
        raise Malformed("length")
    _, flags, questions, _, _, _ = _HEADER.unpack_from(message)
    if flags & (_RESPONSE | _OPCODE) or questions != 1:
        raise Malformed("no query")
    at = _HEADER.size
    while length := _byte(message, at):
        at += 1 + length
        if length > 63 or at - _HEADER.size > 254:
            raise Malformed("name")
    if at + 5 > len(message):
        raise Malformed("length")
    kind, category = struct.unpack_from("!2H", message, at + 1)
    return at + 5, kind, category


def _addresses(message: bytes, at: int, count: int) -> tuple[Address, ...]:
    """Those of the first `count` records from `at` on; what cannot be read any more ends them."""
    found: list[Address] = []
    try:
        for _ in range(count):
            at = _after_name(message, at)
            if at + 10 > len(message):
                break
            kind, category, _, length = struct.unpack_from("!2HIH", message, at)
            at += 10
            data = message[at : at + length]
            if len(data) != length:
                break
            at += length
            if category == _IN and (kind, length) in ((A, 4), (AAAA, 16)):
                found.append(ipaddress.ip_address(data))
    except Malformed:
        pass
    return tuple(found)


def _after_name(message: bytes, at: int) -> int:
    """Where a name that begins at `at` ends; a pointer ends it and is not followed."""
    while length := _byte(message, at):
        if length & 0xC0 == 0xC0:
            return at + 2
        if length > 63:
            raise Malformed("name")
        at += 1 + length
    return at + 1


def _byte(message: bytes, at: int) -> int:
    if at >= len(message):
        raise Malformed("length")
    return message[at]
