# SPDX-License-Identifier: Apache-2.0
"""A signature beside its artifact in a registry: a manifest that refers to it and carries one envelope.

A value module, so that the operator reads signatures the way the command does.
"""

from __future__ import annotations

from sovereign_airgap import oci
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import MalformedManifest, SignatureInvalid
from sovereign_airgap.manifest import EMPTY_BLOB, EMPTY_TYPE, MANIFEST_TYPE, Descriptor, canonical_json
from sovereign_airgap.signing.dsse import ENVELOPE_BYTES, ENVELOPE_TYPE

SIGNATURE_TYPE = "application/vnd.sovereign.signature.v1+json"
# On the manifest and in the list of referrers: a later signature by the same key replaces the earlier one.
KEY_ID = "dev.sovereign.key"
# More are not read: who may push could otherwise make every look at the artifact expensive.
MAX_REFERRERS = 64


def notes(key_id: str) -> dict[str, str]:
    """The annotations of a signature by this key."""
    return {KEY_ID: key_id}


def encode(subject: Descriptor, envelope: bytes, key_id: str) -> bytes:
    """The manifest that attaches an envelope to its subject, as canonical JSON."""
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": SIGNATURE_TYPE,
            "config": Descriptor.of(EMPTY_TYPE, EMPTY_BLOB).as_json(),
            "layers": [Descriptor.of(ENVELOPE_TYPE, envelope).as_json()],
            "subject": subject.as_json(),
            "annotations": {**notes(key_id)},
        }
    )


def envelope_of(content: bytes, subject: Digest) -> Descriptor:
    """The envelope's blob, from a referrer's manifest; raises SignatureInvalid where it is about another
    subject or no signature at all."""
    try:
        document = oci.read(content, MANIFEST_TYPE)
    except MalformedManifest as error:
        raise SignatureInvalid(f"A signature's manifest cannot be read: {error}") from error
    if document.artifact_type != SIGNATURE_TYPE:
        raise _malformed(f"artifactType {SIGNATURE_TYPE}", ascii(document.artifact_type)[:120])
    if document.subject is None or document.subject.digest != subject:
        found = "none" if document.subject is None else str(document.subject.digest)
        raise _malformed(f"the subject {subject}", found)
    _, *layers = document.children
    if len(layers) != 1 or layers[0].media_type != ENVELOPE_TYPE:
        raise _malformed(f"one layer of {ENVELOPE_TYPE}", f"{len(layers)} layers")
    if layers[0].size > ENVELOPE_BYTES:
        raise _malformed(f"an envelope of at most {ENVELOPE_BYTES} bytes", str(layers[0].size))
    return layers[0]


def _malformed(expected: str, found: str) -> SignatureInvalid:
    return SignatureInvalid(f"Expected a signature's manifest with {expected}, found {found}.")
