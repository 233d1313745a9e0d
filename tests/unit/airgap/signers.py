# SPDX-License-Identifier: Apache-2.0
"""Keys that are the same in every run, and what they sign. Secret to nobody."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sovereign_airgap.digest import Digest
from sovereign_airgap.signing import statement
from sovereign_airgap.signing.dsse import Envelope
from sovereign_airgap.signing.keys import PrivateKey
from sovereign_airgap.signing.statement import PAYLOAD_TYPE

WHEN = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


def a_key(seed: str) -> PrivateKey:
    """An Ed25519 key of one letter."""
    return PrivateKey.of(Ed25519PrivateKey.from_private_bytes(seed.encode() * 32))


ANNA, BERT, FOREIGN = a_key("a"), a_key("b"), a_key("f")
CARA = PrivateKey.of(ec.derive_private_key(0xCA5A, ec.SECP256R1()))


def a_release(subject: Digest, key: PrivateKey, when: datetime = WHEN, name: str = "models/org/x") -> bytes:
    """An envelope in which the key releases the artifact of this digest."""
    return Envelope.signed(PAYLOAD_TYPE, statement.release(name, subject, when).encode(), key).encode()
