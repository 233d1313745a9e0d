# SPDX-License-Identifier: Apache-2.0
"""Keys that sign and verify: Ed25519 or ECDSA P-256 in PEM, each named by the sha256 of its SPKI DER.

Nothing of what a file holds is ever quoted in an error: it may be a private key, or somebody's password.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sovereign_airgap.errors import KeyUnusable

KEY_BYTES = 16 * 1024
_SHORT = 12
_CURVE = "secp256r1"


class Algorithm(StrEnum):
    """The two kinds of keys that are taken."""

    ED25519 = "ed25519"
    ECDSA_P256 = "ecdsa-p256"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies. Two keys are equal where their ids are."""

    key_id: str
    algorithm: Algorithm = field(compare=False)
    _key: Ed25519PublicKey | ec.EllipticCurvePublicKey = field(repr=False, compare=False)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether this key made the signature over exactly these bytes. ECDSA signatures are DER."""
        try:
            if isinstance(self._key, Ed25519PublicKey):
                self._key.verify(signature, message)
            else:
                self._key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    def pem(self) -> bytes:
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file; raises KeyUnusable."""
        return cls.from_pem(_read(path), str(path))

    @classmethod
    def from_pem(cls, content: bytes, where: str = "the key") -> Self:
        """Reads one PEM public key; raises KeyUnusable that calls it `where`."""
        _require_one_block(content, "public key", where)
        if b"PRIVATE KEY-----" in content:
            raise _unusable(
                "public", where, "a private key; give its public half and keep this one to itself"
            )
        try:
            key = serialization.load_pem_public_key(content)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise _unusable("public", where, "something else") from error
        return cls._of(key, where)

    @classmethod
    def _of(cls, key: object, where: str) -> Self:
        if isinstance(key, Ed25519PublicKey):
            return cls(_key_id(key), Algorithm.ED25519, key)
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == _CURVE:
            return cls(_key_id(key), Algorithm.ECDSA_P256, key)
        raise _unusable("public", where, _kind(key))


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs; `public` is what others need of it."""

    public: PublicKey
    _key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey = field(repr=False, compare=False)

    @property
    def key_id(self) -> str:
        return self.public.key_id

    def sign(self, message: bytes) -> bytes:
        if isinstance(self._key, Ed25519PrivateKey):
            return self._key.sign(message)
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))

    def pem(self, passphrase: bytes | None = None) -> bytes:
        """PKCS #8, encrypted where there is a passphrase."""
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase is not None:
            encryption = serialization.BestAvailableEncryption(passphrase)
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )

    @classmethod
    def generate(cls, algorithm: str) -> Self:
        """A new key of one of the names in Algorithm."""
        if Algorithm(algorithm) is Algorithm.ED25519:
            return cls.of(Ed25519PrivateKey.generate())
        return cls.of(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def of(cls, key: object, where: str = "the key") -> Self:
        """Wraps a loaded key; raises KeyUnusable where its kind is not taken."""
        if isinstance(key, Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
            return cls(PublicKey._of(key.public_key(), where), key)
        raise _unusable("private", where, _kind(key))

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None = None) -> Self:
        """Reads a file; raises KeyUnusable, also where the passphrase is missing or wrong."""
        content = _read(path)
        _require_one_block(content, "private key", str(path))
        if passphrase is None and encrypted(content):
            raise KeyUnusable(f"The private key in {path} has a passphrase; give it with --passphrase-file.")
        if passphrase is not None and not encrypted(content):
            raise KeyUnusable(f"Expected the private key in {path} to have a passphrase, found it without.")
        try:
            key = serialization.load_pem_private_key(content, passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            found = "something else" if passphrase is None else "something else, or the passphrase is wrong"
            raise _unusable("private", str(path), found) from error
        return cls.of(key, str(path))


def encrypted(pem: bytes) -> bool:
    """Whether a private key can only be read with its passphrase."""
    return b"ENCRYPTED" in pem


def has_passphrase(path: Path) -> bool:
    """Whether the private key in a file can only be read with its passphrase; raises KeyUnusable."""
    return encrypted(_read(path))


def short(key_id: str) -> str:
    """How messages call a key: enough of its id to tell it from others."""
    return key_id[:_SHORT]


def _key_id(key: Ed25519PublicKey | ec.EllipticCurvePublicKey) -> str:
    # Encoded anew, because one key has several encodings and must not count twice.
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(KEY_BYTES + 1)
    except OSError as error:
        raise KeyUnusable(f"Expected a key in {path}, which cannot be read: {error.strerror}.") from error
    if len(content) > KEY_BYTES:
        raise KeyUnusable(f"Expected a key of at most {KEY_BYTES} bytes in {path}, found more.")
    return content


def _require_one_block(content: bytes, what: str, where: str) -> None:
    if len(content) > KEY_BYTES:
        raise KeyUnusable(f"Expected a key of at most {KEY_BYTES} bytes in {where}, found {len(content)}.")
    blocks = content.count(b"-----BEGIN ")
    if blocks != 1:
        raise KeyUnusable(f"Expected one PEM {what} in {where}, found {blocks} PEM blocks.")


def _kind(key: object) -> str:
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        return "an RSA key"
    if isinstance(key, dsa.DSAPublicKey | dsa.DSAPrivateKey):
        return "a DSA key"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"a key on the curve {key.curve.name}"
    return "a key of another kind"


def _unusable(half: str, where: str, found: str) -> KeyUnusable:
    return KeyUnusable(f"Expected an Ed25519 or ECDSA P-256 {half} key in PEM in {where}, found {found}.")
