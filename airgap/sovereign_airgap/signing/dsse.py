# SPDX-License-Identifier: Apache-2.0
"""The DSSE envelope: a payload, what it is, and signatures over both (secure-systems-lab/dsse 1.0.2).

We take less than the specification allows: every signature names its key, and base64 has one spelling, so
that nobody can make two files of one signature. Fields that it does not know are ignored, as it asks.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Self

from sovereign_airgap import strict_json
from sovereign_airgap.errors import SignatureInvalid
from sovereign_airgap.manifest import canonical_json
from sovereign_airgap.signing.keys import PrivateKey
from sovereign_airgap.strict_json import Json

ENVELOPE_TYPE = "application/vnd.dsse.envelope.v1+json"
ENVELOPE_BYTES = 64 * 1024
MAX_SIGNATURES = 16
_KEY_ID = re.compile(r"[0-9a-f]{64}")
_PAYLOAD_TYPE = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature and the id of the key that is said to have made it. Nothing is proven by the id."""

    key_id: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload and its signatures, as they travel."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    @property
    def message(self) -> bytes:
        """What was signed."""
        return pae(self.payload_type, self.payload)

    @classmethod
    def signed(cls, payload_type: str, payload: bytes, *keys: PrivateKey) -> Self:
        message = pae(payload_type, payload)
        signatures = tuple(Signature(key.key_id, key.sign(message)) for key in keys)
        return cls(payload_type, payload, signatures)

    def encode(self) -> bytes:
        """Canonical JSON."""
        signatures: list[Json] = [
            {"keyid": signature.key_id, "sig": _text(signature.value)} for signature in self.signatures
        ]
        return canonical_json(
            {"payloadType": self.payload_type, "payload": _text(self.payload), "signatures": signatures}
        )

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Reads an envelope without believing it; raises SignatureInvalid."""
        if len(content) > ENVELOPE_BYTES:
            raise _malformed(f"at most {ENVELOPE_BYTES} bytes", str(len(content)))
        try:
            document = strict_json.load_object(content)
        except strict_json.NotStrict as error:
            raise _malformed("a JSON object", ascii(str(error))[1:150]) from error
        payload_type, raw = document.get("payloadType"), document.get("signatures")
        if not isinstance(payload_type, str) or not _PAYLOAD_TYPE.fullmatch(payload_type):
            raise _malformed("a payloadType", ascii(payload_type)[:80])
        if not isinstance(raw, list) or not 0 < len(raw) <= MAX_SIGNATURES:
            found = f"{len(raw)}" if isinstance(raw, list) else "none"
            raise _malformed(f"between 1 and {MAX_SIGNATURES} signatures", found)
        return cls(
            payload_type, _bytes(document.get("payload"), "payload"), tuple(_signature(one) for one in raw)
        )


def pae(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding: type and payload with their lengths in bytes, so that neither can
    pass for a part of the other."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _signature(raw: Json) -> Signature:
    if not isinstance(raw, dict):
        raise _malformed("signatures that are objects", type(raw).__name__)
    key_id = raw.get("keyid")
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        raise _malformed("a keyid of 64 lower-case hex digits", ascii(key_id)[:80])
    return Signature(key_id, _bytes(raw.get("sig"), "sig"))


def _bytes(raw: Json, name: str) -> bytes:
    """Standard base64 with padding, in its one spelling."""
    if not isinstance(raw, str):
        raise _malformed(f"{name} in base64", type(raw).__name__)
    try:
        value = base64.b64decode(raw, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed(f"{name} in base64", "something else") from error
    if _text(value) != raw:
        raise _malformed(f"{name} in canonical base64", "another spelling of the same bytes")
    return value


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _malformed(expected: str, found: str) -> SignatureInvalid:
    return SignatureInvalid(f"Expected a DSSE envelope with {expected}, found {found}.")
