# SPDX-License-Identifier: Apache-2.0
"""Signatures of a bundle: one envelope per key in `signatures/`, over the exact bytes of `index.json`.

A bundle is carried as one thing, so here a signature by a given key that does not hold is a defect of the
bundle even where enough others hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from sovereign_airgap.bundle.index import INDEX_BYTES, Index
from sovereign_airgap.bundle.layout import (
    INDEX,
    BundleReader,
    Directory,
    read,
    signature_key_id,
    signature_path,
)
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import HalfWritten, explained, place_of, sweep, sync_folder
from sovereign_airgap.errors import SignatureInvalid, SizeMismatch
from sovereign_airgap.signing import statement
from sovereign_airgap.signing.dsse import ENVELOPE_BYTES, Envelope
from sovereign_airgap.signing.keys import PrivateKey, PublicKey, short
from sovereign_airgap.signing.statement import BUNDLE, PAYLOAD_TYPE, bundle_facts
from sovereign_airgap.signing.threshold import Claim, require, tally

MAX_FILES = 64


def sign(directory: Path, key: PrivateKey, created: datetime) -> Path:
    """Signs the `index.json` that is there and returns the signature's path; an earlier one by the same key
    is replaced. Raises BundleDefective where the index is none. Blobs are not looked at."""
    content = read(Directory(directory), INDEX, INDEX_BYTES)
    index = Index.parse(content)
    said = statement.bundle(index.name, index.version, index.base, Digest.of(content), created)
    envelope = Envelope.signed(PAYLOAD_TYPE, said.encode(), key).encode()
    place = place_of(directory, signature_path(key.key_id))
    sweep(place.parent)
    file = HalfWritten(place, direct=False)
    try:
        file.write(envelope)
        file.publish()
    finally:
        file.close()
    with explained(place):
        sync_folder(place.parent)
    return place


def signed_by(
    reader: BundleReader, index_content: bytes, keys: Sequence[PublicKey], threshold: int
) -> tuple[str, ...]:
    """The ids of the given keys that signed these bytes of `index.json`, sorted, at least `threshold`.

    Raises NotSigned, SignatureInvalid, or KeyUnusable where there are fewer keys than must have signed.
    """
    index = Index.parse(index_content)
    claim = Claim(BUNDLE, Digest.of(index_content), bundle_facts(index.name, index.version, index.base))
    envelopes, defects = _envelopes(reader)
    found = tally(claim, envelopes, keys, defects)
    if found.defects and len(found.signed_by) >= threshold:
        raise SignatureInvalid(f"{reader.describe}: {found.defects[0]} Copy the bundle again.")
    return require(claim, found, keys, threshold)


def _envelopes(reader: BundleReader) -> tuple[list[bytes], list[str]]:
    """The envelopes that can be counted, and what is wrong with the other files."""
    envelopes: list[bytes] = []
    defects: list[str] = []
    for entry in reader.entries():
        key_id = signature_key_id(entry.path)
        if key_id is None or entry.defect is not None:
            continue  # what does not belong into a bundle is for its verification to name
        if len(envelopes) + len(defects) == MAX_FILES:
            defects.append(f"There are more than {MAX_FILES} signatures.")
            break
        try:
            content = read(reader, entry.path, ENVELOPE_BYTES)
            names = {signature.key_id for signature in Envelope.parse(content).signatures}
        except (SignatureInvalid, SizeMismatch) as error:
            defects.append(f"{entry.path}: {error}")
            continue
        if names == {key_id}:
            envelopes.append(content)
        else:
            others = ", ".join(short(name) for name in sorted(names))
            defects.append(f"{entry.path} is named for one key and signed by {others}.")
    return envelopes, defects
