# SPDX-License-Identifier: Apache-2.0
"""Signatures of an artifact in a registry, as referrers of its manifest: making them and checking them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sovereign_airgap import oci, strict_json
from sovereign_airgap.blobs import read_blob
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import ArtifactNotFound, MalformedManifest, Refusal
from sovereign_airgap.manifest import EMPTY_BLOB, MANIFEST_TYPE, Descriptor
from sovereign_airgap.registry import Registry
from sovereign_airgap.signing import referrer, statement
from sovereign_airgap.signing.dsse import ENVELOPE_BYTES, Envelope
from sovereign_airgap.signing.keys import PrivateKey, PublicKey
from sovereign_airgap.signing.statement import PAYLOAD_TYPE, RELEASE
from sovereign_airgap.signing.threshold import Claim, verify_envelopes
from sovereign_airgap.uploads import put_blob


def sign_artifact(registry: Registry, subject: Digest, key: PrivateKey, created: datetime) -> Digest:
    """Signs the manifest of this digest and attaches the signature; returns the signature's own digest.

    Raises ArtifactNotFound where the registry lacks it. Signatures by other keys stay.
    """
    content = registry.get_manifest(str(subject))
    said = statement.release(registry.repository, subject, created)
    envelope = Envelope.signed(PAYLOAD_TYPE, said.encode(), key).encode()
    put_blob(registry, EMPTY_BLOB)
    put_blob(registry, envelope)
    described = Descriptor(_media_type(content), subject, len(content))
    attached = referrer.encode(described, envelope, key.key_id)
    return registry.put_referrer(subject, attached, referrer.SIGNATURE_TYPE, referrer.notes(key.key_id))


def artifact_signed_by(
    registry: Registry, subject: Digest, keys: Sequence[PublicKey], threshold: int
) -> tuple[str, ...]:
    """The ids of the given keys that released this manifest digest, sorted, at least `threshold`.

    Raises NotSigned, SignatureInvalid, KeyUnusable, and ArtifactNotFound where there is nothing to sign.
    """
    registry.get_manifest(str(subject))
    envelopes, defects = _envelopes(registry, subject)
    return verify_envelopes(Claim(RELEASE, subject), envelopes, keys, threshold, defects)


def _envelopes(registry: Registry, subject: Digest) -> tuple[list[bytes], list[str]]:
    """What can be read, and what is wrong with the rest: one bad signature must not hide a good one."""
    envelopes: list[bytes] = []
    defects: list[str] = []
    listed = registry.referrers(subject, referrer.SIGNATURE_TYPE)
    for each in listed[-referrer.MAX_REFERRERS :]:
        try:
            blob = referrer.envelope_of(registry.get_manifest(str(each.digest)), subject)
            envelopes.append(read_blob(registry, blob, "a signature", ENVELOPE_BYTES))
        except (Refusal, ArtifactNotFound) as error:
            defects.append(str(error))
    return envelopes, defects


def _media_type(content: bytes) -> str:
    """What the document calls itself; raises MalformedManifest where it is no manifest and no index."""
    try:
        named = strict_json.load_object(content).get("mediaType", MANIFEST_TYPE)
    except strict_json.NotStrict as error:
        raise MalformedManifest(f"Expected a manifest to sign, found: {str(error)[:200]}.") from error
    return oci.read(content, str(named)).media_type
