# SPDX-License-Identifier: Apache-2.0
"""Whether the artifact that is about to be served is signed by those whom the spec trusts. Pure.

Nothing new is served before this is True, and what serves already is left alone. Signatures come and keys go
without an event, so a model that asks for them is looked at again by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sovereign_airgap.errors import KeyUnusable, NotSigned, SignatureInvalid
from sovereign_airgap.reference import ArtifactReference
from sovereign_airgap.signing.keys import PublicKey, short
from sovereign_airgap.signing.statement import RELEASE
from sovereign_airgap.signing.threshold import Claim, verify_envelopes
from sovereign_operator import reasons
from sovereign_operator.api import SovereignModel
from sovereign_operator.values import Artifact, Evidence, Unreadable
from sovereign_operator.world import Stage, World

# A key that was taken out of the Secret is noticed within this time; nobody tells us.
RECHECK_SECONDS: Final = 300.0
MAX_KEYS: Final = 64


@dataclass(frozen=True, slots=True)
class VerificationStep:
    """What Verified says, and when to look again: after seconds, or with backoff and why."""

    stage: Stage
    again: float | None = None
    unsettled: str = ""


def next_step(world: World, model: SovereignModel, artifact: Artifact | None) -> VerificationStep:
    """`artifact`: what will be served; the signatures must be over the digest in its reference."""
    if model.spec.verification.keys_secret_ref is None:
        return VerificationStep(_digests(artifact))
    evidence = world.evidence or Evidence(no_keys="found none")
    try:
        keys = _trusted(model, evidence)
    except KeyUnusable as error:
        return _failed(reasons.KEYS_UNUSABLE, str(error))
    signatures = evidence.signatures
    if artifact is None or signatures is None:
        waiting = Stage("Unknown", reasons.WAITING, "There is no artifact yet.")
        return VerificationStep(waiting, again=RECHECK_SECONDS)
    if isinstance(signatures, Unreadable):
        stage = Stage("Unknown", signatures.reason, signatures.message)
        return VerificationStep(stage, unsettled=signatures.message)
    if signatures.reference != artifact.reference:
        waiting = Stage("Unknown", reasons.WAITING, "The signatures of this artifact were not read yet.")
        return VerificationStep(waiting, unsettled=waiting.message)
    claim = Claim(RELEASE, ArtifactReference.parse(artifact.reference).digest)
    threshold = model.spec.verification.threshold
    try:
        signed_by = verify_envelopes(claim, signatures.contents, keys, threshold, signatures.defects)
    except NotSigned as error:
        return _failed(reasons.NOT_SIGNED, str(error))
    except SignatureInvalid as error:
        return _failed(reasons.SIGNATURE_INVALID, str(error))
    words = (
        f"{artifact.reference} is signed by {len(signed_by)} of the {len(keys)} keys in Secret "
        f"{_secret(model)} ({threshold} needed): {', '.join(short(key_id) for key_id in signed_by)}."
    )
    return VerificationStep(Stage("True", reasons.SIGNATURES_VERIFIED, words), again=RECHECK_SECONDS)


def _digests(artifact: Artifact | None) -> Stage:
    """What is said where no signatures are asked for."""
    if artifact is None:
        return Stage("Unknown", reasons.WAITING, "There is no artifact yet.")
    return Stage(
        "True",
        reasons.DIGESTS_VERIFIED,
        "Every file's digest was checked while mirroring; no signing keys are configured for this model.",
    )


def _trusted(model: SovereignModel, evidence: Evidence) -> list[PublicKey]:
    """The different keys of the Secret. One entry that is no key spoils it: whoever wrote it meant something.

    The Secret may be the wrong one, so nothing of its values gets into the message.
    """
    secret, threshold = _secret(model), model.spec.verification.threshold
    if evidence.no_keys:
        raise KeyUnusable(
            f"Expected Secret {secret} with a PEM public key in each entry, {evidence.no_keys}; create it, "
            "or correct verification.keysSecretRef."
        )
    if len(evidence.keys) > MAX_KEYS:
        raise KeyUnusable(f"Expected at most {MAX_KEYS} keys in Secret {secret}, found {len(evidence.keys)}.")
    found = {
        key.key_id: key
        for name, content in evidence.keys
        for key in [PublicKey.from_pem(content, f"entry {name} of Secret {secret}")]
    }
    if len(found) < threshold:
        raise KeyUnusable(
            f"Expected at least {threshold} different keys in Secret {secret}, as many as "
            f"verification.threshold asks for, found {len(found)}; add keys, or lower the threshold."
        )
    return [found[key_id] for key_id in sorted(found)]


def _secret(model: SovereignModel) -> str:
    named = model.spec.verification.keys_secret_ref
    return f"{model.namespace}/{named.name if named else ''}"


def _failed(reason: str, words: str) -> VerificationStep:
    """A person has to do something, and the next looks notice it."""
    return VerificationStep(Stage("False", reason, words, stalled=True), unsettled=words)
