# SPDX-License-Identifier: Apache-2.0
"""What is signed: an in-toto Statement v1 about one digest, for an artifact's release or for a bundle.

`created` in the predicate is the only time stamp of the formats; nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from sovereign_airgap import strict_json
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import InvalidReference, SignatureInvalid
from sovereign_airgap.manifest import canonical_json
from sovereign_airgap.strict_json import Json

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
RELEASE = "https://sovereign.dev/release/v1"
BUNDLE = "https://sovereign.dev/bundle/v1"
BUNDLE_SUBJECT = "index.json"

_NAME_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class Statement:
    """One subject, and what is said about it. The name is for people; the digest is the subject."""

    name: str
    subject: Digest
    predicate_type: str
    predicate: Mapping[str, Json] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Canonical JSON."""
        subject: list[Json] = [{"name": self.name, "digest": {"sha256": self.subject.hex}}]
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": subject,
                "predicateType": self.predicate_type,
                "predicate": dict(self.predicate),
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Reads a statement; only for payloads whose signature was verified. Raises SignatureInvalid."""
        try:
            document = strict_json.load_object(payload)
        except strict_json.NotStrict as error:
            raise _malformed("a JSON object", ascii(str(error))[1:150]) from error
        if document.get("_type") != STATEMENT_TYPE:
            raise _malformed(f"_type {STATEMENT_TYPE}", ascii(document.get("_type"))[:120])
        subjects = document.get("subject")
        subject = subjects[0] if isinstance(subjects, list) and len(subjects) == 1 else None
        if not isinstance(subject, dict):
            raise _malformed("one subject", f"{len(subjects)}" if isinstance(subjects, list) else "none")
        name, digests = subject.get("name"), subject.get("digest")
        if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARACTERS:
            raise _malformed("a subject with a name", ascii(name)[:80])
        kind, predicate = document.get("predicateType"), document.get("predicate")
        if not isinstance(kind, str) or not isinstance(predicate, dict):
            raise _malformed("a predicateType and a predicate", ascii(kind)[:120])
        return cls(name, _sha256(digests), kind, predicate)


def release(name: str, digest: Digest, created: datetime) -> Statement:
    """That the signer releases the artifact of this manifest digest; `name` is its repository."""
    return Statement(name, digest, RELEASE, {"created": stamp(created)})


def bundle(name: str, version: int, base: Digest | None, index: Digest, created: datetime) -> Statement:
    """That the signer releases the bundle of this `index.json`; `base` is None for a bundle that is whole."""
    predicate: dict[str, Json] = {**bundle_facts(name, version, base), "created": stamp(created)}
    return Statement(BUNDLE_SUBJECT, index, BUNDLE, predicate)


def bundle_facts(name: str, version: int, base: Digest | None) -> dict[str, Json]:
    """What a bundle's predicate must say, beside when it was signed."""
    return {"name": name, "version": version, "base": None if base is None else str(base)}


def stamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _sha256(digests: Json) -> Digest:
    value = digests.get("sha256") if isinstance(digests, dict) and len(digests) == 1 else None
    try:
        return Digest(value if isinstance(value, str) else "")
    except InvalidReference as error:
        raise _malformed("a subject with a sha256 and no other digest", ascii(digests)[:120]) from error


def _malformed(expected: str, found: str) -> SignatureInvalid:
    return SignatureInvalid(f"Expected an in-toto statement with {expected}, found {found}.")
