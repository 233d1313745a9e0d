# SPDX-License-Identifier: Apache-2.0
"""Keys, envelopes, statements and who counts: the values that both planes trust."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import KeyUnusable, NotSigned, SignatureInvalid
from sovereign_airgap.manifest import MANIFEST_TYPE, Descriptor, canonical_json
from sovereign_airgap.signing import referrer, statement
from sovereign_airgap.signing.dsse import ENVELOPE_BYTES, MAX_SIGNATURES, Envelope, pae
from sovereign_airgap.signing.keys import KEY_BYTES, PrivateKey, PublicKey
from sovereign_airgap.signing.statement import BUNDLE, PAYLOAD_TYPE, RELEASE, Statement
from sovereign_airgap.signing.threshold import Claim, verify_envelopes
from tests.conftest import GOLDENS, Golden
from tests.unit.airgap.signers import ANNA, BERT, CARA, FOREIGN, WHEN, a_release

SUBJECT = Digest.of(b"the manifest")
OTHER = Digest.of(b"another manifest")
CLAIM = Claim(RELEASE, SUBJECT)

PUBLIC = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
PRIVATE = (
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)


def changed(envelope: bytes, **fields: object) -> bytes:
    """The same envelope with members replaced; None takes one away."""
    document = json.loads(envelope) | fields
    return json.dumps({name: value for name, value in document.items() if value is not None}).encode()


# -- the envelope -----------------------------------------------------------------------------------------


def test_the_encoding_before_signing_is_the_one_of_the_specification() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_type_and_payload_cannot_pass_for_a_part_of_each_other() -> None:
    assert pae("a", b" 1 b") != pae("a 4  1", b"b")
    assert pae("ä", b"") == b"DSSEv1 2 \xc3\xa4 0 "


@pytest.mark.parametrize("key", [ANNA, CARA], ids=["ed25519", "ecdsa-p256"])
def test_an_envelope_survives_its_way(key: PrivateKey) -> None:
    envelope = Envelope.signed(PAYLOAD_TYPE, b"\x00payload\xff", key)
    again = Envelope.parse(envelope.encode())
    assert again == envelope
    assert key.public.verify(again.message, again.signatures[0].value)
    assert not key.public.verify(again.message + b" ", again.signatures[0].value)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda e: b"", "a JSON object"),
        (lambda e: b"[]", "a JSON object"),
        (lambda e: e[:-1], "a JSON object"),
        (lambda e: e + b"{}", "a JSON object"),
        (lambda e: b"\xef\xbb\xbf" + e, "a JSON object"),
        (lambda e: b"[" * (ENVELOPE_BYTES - 1), "a JSON object"),
        (lambda e: e[:-1] + b',"payload":"e30="}', "payload"),
        (lambda e: e.replace(b'"keyid"', b'"keyid":"x","keyid"'), "keyid"),
        (lambda e: e + b" " * ENVELOPE_BYTES, "bytes"),
        (lambda e: changed(e, payload=None), "payload in base64"),
        (lambda e: changed(e, payload=7), "payload in base64"),
        (lambda e: changed(e, payload="%%%"), "payload in base64"),
        (lambda e: changed(e, payload="e30"), "payload in base64"),
        (lambda e: changed(e, payload="e31="), "canonical"),
        (lambda e: changed(e, payload="e3 0="), "payload in base64"),
        (lambda e: changed(e, payload="e30=\n"), "payload in base64"),
        (lambda e: changed(e, payload="_-8="), "payload in base64"),
        (lambda e: changed(e, payload="é30="), "payload in base64"),
        (lambda e: changed(e, payloadType=None), "payloadType"),
        (lambda e: changed(e, payloadType=""), "payloadType"),
        (lambda e: changed(e, payloadType="\ud800"), "payloadType"),
        (lambda e: changed(e, payloadType="a" * 300), "payloadType"),
        (lambda e: changed(e, signatures=None), "signatures"),
        (lambda e: changed(e, signatures=[]), "signatures"),
        (lambda e: changed(e, signatures={}), "signatures"),
        (lambda e: changed(e, signatures=[[]]), "signatures"),
        (lambda e: changed(e, signatures=json.loads(e)["signatures"] * (MAX_SIGNATURES + 1)), "signatures"),
        (lambda e: changed(e, signatures=[{"sig": "e30="}]), "keyid"),
        (lambda e: changed(e, signatures=[{"keyid": "ABCDEF" * 11, "sig": "e30="}]), "keyid"),
        (lambda e: changed(e, signatures=[{"keyid": ANNA.key_id}]), "sig in base64"),
    ],
)
def test_an_envelope_of_another_form_is_refused(damage: Callable[[bytes], bytes], what: str) -> None:
    envelope = a_release(SUBJECT, ANNA)
    with pytest.raises(SignatureInvalid, match=what):
        Envelope.parse(damage(envelope))
    with pytest.raises(SignatureInvalid):
        verify_envelopes(CLAIM, [damage(envelope)], [ANNA.public], 1)


def test_fields_that_nobody_knows_are_ignored_as_the_specification_asks() -> None:
    assert Envelope.parse(changed(a_release(SUBJECT, ANNA), note=1)) == Envelope.parse(
        a_release(SUBJECT, ANNA)
    )


@given(st.binary(max_size=400))
def test_the_parser_of_envelopes_knows_one_error(content: bytes) -> None:
    try:
        Envelope.parse(content)
    except SignatureInvalid:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
SOME_SIGNATURE = st.fixed_dictionaries(
    {},
    optional={
        "keyid": st.just(ANNA.key_id) | JSON,
        "sig": st.binary().map(base64.b64encode).map(bytes.decode) | JSON,
    },
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "payloadType": st.just(PAYLOAD_TYPE) | JSON,
            "payload": st.binary().map(base64.b64encode).map(bytes.decode) | JSON,
            "signatures": st.lists(SOME_SIGNATURE, max_size=3) | JSON,
        },
    )
)
def test_nothing_that_anna_did_not_sign_counts_for_her(document: object) -> None:
    content = json.dumps(document).encode("utf-8", "surrogatepass")
    with pytest.raises((SignatureInvalid, NotSigned)):
        verify_envelopes(CLAIM, [content], [ANNA.public], 1)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_no_changed_byte_of_a_signed_envelope_is_accepted_as_another_message(at: int, by: int) -> None:
    envelope = a_release(SUBJECT, ANNA)
    place = at % len(envelope)
    damaged = envelope[:place] + bytes([envelope[place] ^ by]) + envelope[place + 1 :]
    with pytest.raises((SignatureInvalid, NotSigned)):
        verify_envelopes(CLAIM, [damaged], [ANNA.public], 1)


@given(JSON)
def test_a_statement_of_any_other_form_is_refused(document: object) -> None:
    with pytest.raises(SignatureInvalid):
        Statement.parse(json.dumps(document).encode("utf-8", "surrogatepass"))


# -- who counts -------------------------------------------------------------------------------------------


def test_several_keys_and_both_kinds_count() -> None:
    envelopes = [a_release(SUBJECT, key) for key in (ANNA, BERT, CARA)]
    keys = [key.public for key in (ANNA, BERT, CARA)]
    assert verify_envelopes(CLAIM, envelopes, keys, 3) == tuple(sorted(key.key_id for key in keys))


def test_one_envelope_may_hold_several_signatures() -> None:
    said = statement.release("models/org/x", SUBJECT, WHEN).encode()
    envelope = Envelope.signed(PAYLOAD_TYPE, said, ANNA, BERT).encode()
    assert len(verify_envelopes(CLAIM, [envelope], [ANNA.public, BERT.public], 2)) == 2


def test_nothing_is_not_signed() -> None:
    with pytest.raises(NotSigned, match="found 0"):
        verify_envelopes(CLAIM, [], [ANNA.public], 1)


def test_below_the_threshold_is_not_signed() -> None:
    with pytest.raises(NotSigned, match="2 of the keys"):
        verify_envelopes(CLAIM, [a_release(SUBJECT, ANNA)], [ANNA.public, BERT.public], 2)


def test_one_key_counts_once_however_often_it_signed() -> None:
    later = a_release(SUBJECT, ANNA, when=WHEN + timedelta(days=1))
    said = statement.release("models/org/x", SUBJECT, WHEN).encode()
    twice = Envelope.signed(PAYLOAD_TYPE, said, ANNA, ANNA).encode()
    with pytest.raises(NotSigned, match="found 1"):
        verify_envelopes(CLAIM, [a_release(SUBJECT, ANNA), later, twice], [ANNA.public, BERT.public], 2)


def test_one_key_given_twice_is_one_key() -> None:
    with pytest.raises(KeyUnusable, match="found 1"):
        verify_envelopes(CLAIM, [a_release(SUBJECT, ANNA)], [ANNA.public, ANNA.public], 2)


@pytest.mark.parametrize("threshold", [0, -1, 2])
def test_a_threshold_that_cannot_be_met_is_refused(threshold: int) -> None:
    with pytest.raises(KeyUnusable):
        verify_envelopes(CLAIM, [a_release(SUBJECT, ANNA)], [ANNA.public], threshold)


def test_without_keys_nothing_is_verified() -> None:
    with pytest.raises(KeyUnusable):
        verify_envelopes(CLAIM, [a_release(SUBJECT, ANNA)], [], 1)


def test_a_foreign_key_neither_helps_nor_harms() -> None:
    stranger = a_release(SUBJECT, FOREIGN)
    with pytest.raises(NotSigned, match="signatures by other keys"):
        verify_envelopes(CLAIM, [stranger], [ANNA.public], 1)
    assert verify_envelopes(CLAIM, [stranger, a_release(SUBJECT, ANNA)], [ANNA.public], 1) == (ANNA.key_id,)


def test_a_foreign_signature_under_a_trusted_name_is_invalid() -> None:
    stranger = json.loads(a_release(SUBJECT, FOREIGN))
    stranger["signatures"][0]["keyid"] = ANNA.key_id
    with pytest.raises(SignatureInvalid, match="did not sign"):
        verify_envelopes(CLAIM, [canonical_json(stranger)], [ANNA.public], 1)


def test_in_a_registry_a_bad_signature_does_not_hide_a_good_one() -> None:
    good = a_release(SUBJECT, ANNA)
    assert verify_envelopes(CLAIM, [b"junk", good, good[:-1]], [ANNA.public], 1) == (ANNA.key_id,)


def test_what_could_not_be_read_is_named_where_too_few_have_signed() -> None:
    with pytest.raises(SignatureInvalid, match="the blob went bad"):
        verify_envelopes(CLAIM, [], [ANNA.public], 1, defects=["the blob went bad."])


@pytest.mark.parametrize("kind", ["application/json", PAYLOAD_TYPE.upper()])
def test_an_altered_payload_type_is_invalid(kind: str) -> None:
    altered = changed(a_release(SUBJECT, ANNA), payloadType=kind)
    with pytest.raises(SignatureInvalid, match="did not sign"):
        verify_envelopes(CLAIM, [altered], [ANNA.public], 1)
    said = statement.release("models/org/x", SUBJECT, WHEN).encode()
    signed_so = Envelope.signed(kind, said, ANNA).encode()
    with pytest.raises(SignatureInvalid, match="payload type"):
        verify_envelopes(CLAIM, [signed_so], [ANNA.public], 1)


def test_a_signature_over_another_artifact_is_invalid_here() -> None:
    with pytest.raises(SignatureInvalid, match=f"over {OTHER} and not over {SUBJECT}"):
        verify_envelopes(CLAIM, [a_release(OTHER, ANNA)], [ANNA.public], 1)


def test_a_release_is_no_bundle_and_a_bundle_no_release() -> None:
    bundle = statement.bundle("site", 1, None, SUBJECT, WHEN).encode()
    signed = Envelope.signed(PAYLOAD_TYPE, bundle, ANNA).encode()
    with pytest.raises(SignatureInvalid, match="bundle/v1"):
        verify_envelopes(CLAIM, [signed], [ANNA.public], 1)
    with pytest.raises(SignatureInvalid, match="release/v1"):
        verify_envelopes(Claim(BUNDLE, SUBJECT), [a_release(SUBJECT, ANNA)], [ANNA.public], 1)


@pytest.mark.parametrize(
    "facts",
    [
        {"name": "other", "version": 1, "base": None},
        {"name": "site", "version": 2, "base": None},
        {"name": "site", "version": True, "base": None},
        {"name": "site", "version": 1, "base": str(OTHER)},
    ],
)
def test_a_bundles_predicate_must_say_what_its_index_says(facts: dict[str, object]) -> None:
    said = Statement("index.json", SUBJECT, BUNDLE, facts).encode()  # type: ignore[arg-type]
    envelope = Envelope.signed(PAYLOAD_TYPE, said, ANNA).encode()
    claim = Claim(BUNDLE, SUBJECT, statement.bundle_facts("site", 1, None))
    with pytest.raises(SignatureInvalid, match="and not"):
        verify_envelopes(claim, [envelope], [ANNA.public], 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"Statement/v1", b"Statement/v9"),
        (b'"subject":[', b'"subject":[{},'),
        (b'"sha256":"', b'"sha512":"00","sha256":"'),
        (b'"sha256":"', b'"sha256":"0'),
        (b'"name":"models/org/x"', b'"name":""'),
        (b'"predicate":{', b'"predicate":7,"else":{'),
        (b'"predicate":{', b'"predicate":{},"predicate":{'),
        (b'"predicateType":', b'"predicatetype":'),
    ],
)
def test_a_signed_payload_that_is_no_statement_is_invalid(before: bytes, after: bytes) -> None:
    said = statement.release("models/org/x", SUBJECT, WHEN).encode()
    assert before in said
    envelope = Envelope.signed(PAYLOAD_TYPE, said.replace(before, after), ANNA).encode()
    with pytest.raises(SignatureInvalid, match="over something else"):
        verify_envelopes(CLAIM, [envelope], [ANNA.public], 1)


def test_the_time_of_signing_is_in_utc() -> None:
    there = datetime(2026, 1, 31, 14, 0, 0, tzinfo=timezone(timedelta(hours=2)))
    assert statement.stamp(there) == "2026-01-31T12:00:00Z"
    assert datetime.fromisoformat(statement.stamp(there)) == there.astimezone(UTC)


# -- keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa-p256"])
@pytest.mark.parametrize("passphrase", [None, b"open sesame"])
def test_a_key_survives_its_file(algorithm: str, passphrase: bytes | None, tmp_path: Path) -> None:
    key = PrivateKey.generate(algorithm)
    path = tmp_path / "one.key"
    path.write_bytes(key.pem(passphrase))
    again = PrivateKey.load(path, passphrase)
    assert again.key_id == key.key_id
    public = PublicKey.from_pem(key.public.pem())
    assert public == key.public
    assert public.algorithm == algorithm
    assert public.verify(b"message", again.sign(b"message"))


def test_the_id_of_a_key_is_that_of_its_one_canonical_encoding() -> None:
    """A compressed point is another encoding of the same key: it must not count twice."""
    key = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    plain = PublicKey.from_pem(key.public_bytes(*PUBLIC))
    der = key.public_bytes(serialization.Encoding.DER, PUBLIC[1])
    point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    prefix = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    text = base64.b64encode(prefix + point)
    squeezed = b"-----BEGIN PUBLIC KEY-----\n" + text + b"\n-----END PUBLIC KEY-----\n"
    assert prefix + point != der
    assert PublicKey.from_pem(squeezed).key_id == plain.key_id == Digest.of(der).hex


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (RSA.public_key().public_bytes(*PUBLIC), "an RSA key"),
        (ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*PUBLIC), "secp384r1"),
        (ed448.Ed448PrivateKey.generate().public_key().public_bytes(*PUBLIC), "another kind"),
        (ANNA.pem(), "a private key"),
        (ANNA.pem(b"locked"), "a private key"),
        (ANNA.public.pem() + BERT.public.pem(), "2 PEM blocks"),
        (b"hunter2", "0 PEM blocks"),
        (b"", "0 PEM blocks"),
        (ANNA.public.pem().replace(b"MCow", b"MCox"), "something else"),
        (b"-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----\n", "something else"),
        (ANNA.public.pem() + b" " * KEY_BYTES, "at most"),
    ],
)
def test_what_is_no_public_key_of_ours_is_refused_and_never_quoted(content: bytes, found: str) -> None:
    with pytest.raises(KeyUnusable, match=found) as caught:
        PublicKey.from_pem(content, "here")
    assert "hunter2" not in str(caught.value)
    assert "here" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "passphrase", "found"),
    [
        (RSA.private_bytes(*PRIVATE), None, "an RSA key"),
        (ec.generate_private_key(ec.SECP384R1()).private_bytes(*PRIVATE), None, "secp384r1"),
        (ANNA.public.pem(), None, "something else"),
        (ANNA.pem(b"locked"), None, "passphrase-file"),
        (ANNA.pem(b"locked"), b"wrong", "passphrase is wrong"),
        (ANNA.pem(), b"locked", "found it without"),
        (b"-----BEGIN PRIVATE KEY-----\n", None, "something else"),
    ],
)
def test_what_is_no_private_key_of_ours_is_refused(
    content: bytes, passphrase: bytes | None, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(content)
    with pytest.raises(KeyUnusable, match=found):
        PrivateKey.load(path, passphrase)


def test_a_key_file_that_is_not_there_or_endless_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable, match="cannot be read"):
        PublicKey.load(tmp_path / "none.pub")
    with pytest.raises(KeyUnusable, match="at most"):
        PublicKey.load(Path("/dev/zero"))


@given(st.binary(max_size=300))
def test_the_reader_of_keys_knows_one_error(content: bytes) -> None:
    for text in (content, ANNA.public.pem()[:40] + content, b"-----BEGIN PUBLIC KEY-----\n" + content):
        try:
            PublicKey.from_pem(text)
        except KeyUnusable:
            continue


@pytest.mark.parametrize("signature", [b"", b"\x00" * 64, b"\x30\x00", b"\xff" * 200])
def test_a_signature_of_another_form_is_simply_wrong(signature: bytes) -> None:
    assert not ANNA.public.verify(b"message", signature)
    assert not CARA.public.verify(b"message", signature)


# -- beside an artifact -----------------------------------------------------------------------------------


def a_referrer(subject: Digest = SUBJECT, size: int = 3) -> bytes:
    return referrer.encode(Descriptor(MANIFEST_TYPE, subject, size), a_release(SUBJECT, ANNA), ANNA.key_id)


def test_a_signatures_manifest_leads_to_its_envelope() -> None:
    envelope = a_release(SUBJECT, ANNA)
    assert referrer.envelope_of(a_referrer(), SUBJECT).digest == Digest.of(envelope)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda d: d.pop("subject"), "subject"),
        (lambda d: d["subject"].update(digest=str(OTHER)), "subject"),
        (lambda d: d.update(artifactType="application/x"), "artifactType"),
        (lambda d: d.update(layers=[]), "one layer"),
        (lambda d: d.update(layers=d["layers"] * 2), "one layer"),
        (lambda d: d["layers"][0].update(mediaType="application/x"), "one layer"),
        (lambda d: d["layers"][0].update(size=ENVELOPE_BYTES + 1), "at most"),
        (lambda d: d["layers"][0].update(size=-1), "size"),
        (lambda d: d["layers"][0].update(digest="md5:00"), "digest"),
        (lambda d: d.update(schemaVersion=1), "schemaVersion"),
    ],
)
def test_a_referrer_of_another_form_is_no_signature(
    damage: Callable[[dict[str, object]], object], what: str
) -> None:
    document = json.loads(a_referrer())
    damage(document)
    with pytest.raises(SignatureInvalid, match=what):
        referrer.envelope_of(canonical_json(document), SUBJECT)


# -- every released format is read for ever ---------------------------------------------------------------

GOLDEN = GOLDENS / "signatures"
GOLDEN_INDEX = Digest.of(b"golden index")


def test_signing_writes_the_bytes_that_it_always_wrote(golden: Golden) -> None:
    said = statement.bundle("site", 3, OTHER, GOLDEN_INDEX, WHEN)
    golden("signatures/ed25519.pub", ANNA.public.pem().decode())
    golden(
        "signatures/bundle-1.dsse.json", Envelope.signed(PAYLOAD_TYPE, said.encode(), ANNA).encode().decode()
    )
    golden("signatures/release-1.dsse.json", a_release(SUBJECT, ANNA).decode())
    golden("signatures/release-1.manifest.json", a_referrer().decode())


@pytest.mark.parametrize("name", ["ed25519", "ecdsa-p256"])
def test_a_signature_of_format_1_is_accepted(name: str) -> None:
    key = PublicKey.load(GOLDEN / f"{name}.pub")
    suffix = "" if name == "ed25519" else "-ecdsa"
    release = (GOLDEN / f"release-1{suffix}.dsse.json").read_bytes()
    assert verify_envelopes(CLAIM, [release], [key], 1) == (key.key_id,)


def test_a_bundles_signature_of_format_1_is_accepted() -> None:
    key = PublicKey.load(GOLDEN / "ed25519.pub")
    claim = Claim(BUNDLE, GOLDEN_INDEX, statement.bundle_facts("site", 3, OTHER))
    envelope = (GOLDEN / "bundle-1.dsse.json").read_bytes()
    assert verify_envelopes(claim, [envelope], [key], 1) == (key.key_id,)


def test_the_keys_of_the_tests_are_what_they_seem() -> None:
    assert ANNA.key_id == PrivateKey.of(Ed25519PrivateKey.from_private_bytes(b"a" * 32)).key_id
    assert len({key.key_id for key in (ANNA, BERT, CARA, FOREIGN)}) == 4
