# SPDX-License-Identifier: Apache-2.0
"""Who has signed: envelopes against the keys that are trusted. Pure; the one place where signatures count.

A key counts once, however many signatures it made. Signatures by other keys neither help nor harm, because
anybody can add one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import KeyUnusable, NotSigned, SignatureInvalid
from sovereign_airgap.signing.dsse import Envelope, Signature
from sovereign_airgap.signing.keys import PublicKey, short
from sovereign_airgap.signing.statement import PAYLOAD_TYPE, Statement
from sovereign_airgap.strict_json import Json

_NAMED = 8


@dataclass(frozen=True, slots=True)
class Claim:
    """What must have been signed: a statement of this type about this digest, whose predicate says at least
    `facts`."""

    predicate_type: str
    subject: Digest
    facts: Mapping[str, Json] = field(default_factory=dict)

    def defect_of(self, statement: Statement) -> str | None:
        """Why a statement is another one; None where it is this."""
        if statement.predicate_type != self.predicate_type:
            return f"for {ascii(statement.predicate_type)[:120]} and not for {self.predicate_type}"
        if statement.subject != self.subject:
            return f"over {statement.subject} and not over {self.subject}"
        for name, value in self.facts.items():
            found = statement.predicate.get(name)
            # Python takes True for 1; a statement that says one does not say the other.
            if type(found) is not type(value) or found != value:
                return f"over {name} {ascii(found)[:100]} and not {ascii(value)[:100]}"
        return None


@dataclass(frozen=True, slots=True)
class Tally:
    """What the envelopes come to: who signed, what is wrong with others, and which keys nobody asked for."""

    signed_by: tuple[str, ...]
    defects: tuple[str, ...]
    foreign: tuple[str, ...]


def tally(
    claim: Claim, envelopes: Iterable[bytes], keys: Sequence[PublicKey], defects: Sequence[str] = ()
) -> Tally:
    """Looks at every signature of every envelope; `defects` were found while they were read."""
    trusted = {key.key_id: key for key in keys}
    signed: set[str] = set()
    foreign: set[str] = set()
    wrong = list(defects)
    for content in envelopes:
        try:
            envelope = Envelope.parse(content)
        except SignatureInvalid as error:
            wrong.append(str(error))
            continue
        for signature in envelope.signatures:
            key = trusted.get(signature.key_id)
            if key is None:
                foreign.add(signature.key_id)
            elif (defect := _defect(claim, envelope, signature, key)) is None:
                signed.add(key.key_id)
            else:
                wrong.append(f"The signature by the key {short(key.key_id)} is {defect}.")
    return Tally(tuple(sorted(signed)), tuple(wrong), tuple(sorted(foreign)))


def require(claim: Claim, found: Tally, keys: Sequence[PublicKey], threshold: int) -> tuple[str, ...]:
    """The ids of the keys that signed; raises NotSigned, or SignatureInvalid where somebody tried."""
    known = {key.key_id for key in keys}
    if not 1 <= threshold <= len(known):
        raise KeyUnusable(
            f"Expected at least {threshold} different keys, as many as must have signed, found {len(known)}."
        )
    if len(found.signed_by) >= threshold:
        return found.signed_by
    if found.defects:
        raise SignatureInvalid(
            f"Expected {threshold} valid signatures over {claim.subject}, found {len(found.signed_by)}. "
            f"{found.defects[0]} Sign it again, or find out who changed it."
        )
    others = f", and signatures by other keys ({_shorts(found.foreign)})" if found.foreign else ""
    signed = f" ({_shorts(found.signed_by)})" if found.signed_by else ""
    raise NotSigned(
        f"Expected {threshold} of the keys {_shorts(sorted(known))} to have signed {claim.subject}, found "
        f"{len(found.signed_by)}{signed}{others}; have it signed, or give the keys that did."
    )


def verify_envelopes(
    claim: Claim,
    envelopes: Iterable[bytes],
    keys: Sequence[PublicKey],
    threshold: int,
    defects: Sequence[str] = (),
) -> tuple[str, ...]:
    """The ids of the keys that signed the claim, sorted, at least `threshold`; raises NotSigned,
    SignatureInvalid, or KeyUnusable where there are too few keys."""
    return require(claim, tally(claim, envelopes, keys, defects), keys, threshold)


def _defect(claim: Claim, envelope: Envelope, signature: Signature, key: PublicKey) -> str | None:
    """The payload is looked into only once the signature over it holds."""
    if not key.verify(envelope.message, signature.value):
        return "wrong: the key did not sign these bytes"
    if envelope.payload_type != PAYLOAD_TYPE:
        return f"over the payload type {ascii(envelope.payload_type)[:120]} and not over {PAYLOAD_TYPE}"
    try:
        return claim.defect_of(Statement.parse(envelope.payload))
    except SignatureInvalid as error:
        return f"over something else: {error}"


def _shorts(key_ids: Sequence[str]) -> str:
    named = ", ".join(short(key_id) for key_id in key_ids[:_NAMED])
    return named if len(key_ids) <= _NAMED else f"{named} and {len(key_ids) - _NAMED} more"
