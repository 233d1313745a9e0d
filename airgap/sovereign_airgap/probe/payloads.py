# SPDX-License-Identifier: Apache-2.0
"""The first datagram of a protocol, such that a server on its usual port answers. Pure."""

from __future__ import annotations

import secrets
from typing import Final

from sovereign_airgap.probe import dns

# A reserved name (RFC 2606): any server answers it, if only by refusing.
_NAME: Final = "sovereign-probe.example"
_NTP_CLIENT_VERSION_4: Final = 0x23
# Long header with a version of the form 0x?a?a?a?a, which every server must negotiate (RFC 9000, 15 and 6).
_QUIC_LONG_HEADER: Final = b"\xc0\x1a\x2a\x3a\x4a"
_QUIC_BYTES: Final = 1200


def datagram_for(port: int) -> bytes:
    """What is sent over UDP to `port`: a DNS query, an NTP request, a QUIC packet, or 16 random bytes."""
    if port == 53:
        return dns_query(_NAME)
    if port == 123:
        # 47 bytes that may be zero, but the last eight are a time that the server gives back.
        return bytes([_NTP_CLIENT_VERSION_4]) + bytes(39) + secrets.token_bytes(8)
    if port == 443:
        identifiers = b"\x08" + secrets.token_bytes(8) + b"\x08" + secrets.token_bytes(8)
        return (_QUIC_LONG_HEADER + identifiers).ljust(_QUIC_BYTES, b"\0")
    return secrets.token_bytes(16)


def dns_query(name: str, kind: int = dns.A) -> bytes:
    """A query under an identifier that nobody can guess."""
    return dns.query(secrets.randbits(16), name, kind)


def echo_request(version: int) -> bytes:
    """An ICMP echo request; a ping socket fills in the identifier and the checksum."""
    kind = 8 if version == 4 else 128
    return bytes([kind, 0]) + bytes(4) + b"\0\1" + secrets.token_bytes(16)


def is_echo_reply(message: bytes, sent: bytes) -> bool:
    """Whether a ping socket got the reply to `sent`: type, sequence and content are the same."""
    kind = 0 if sent[0] == 8 else 129
    return len(message) >= 8 and message[0] == kind and message[6:] == sent[6:]
