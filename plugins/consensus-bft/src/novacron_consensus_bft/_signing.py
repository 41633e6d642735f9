"""Signatures by scheme: a public key begins with its scheme's name and a colon.

Sources: RFC 8032 (Ed25519), FIPS 204 (ML-DSA).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

ED25519: Final = b"ed25519"
ML_DSA_65: Final = b"ml-dsa-65"
SEED_BYTES: Final = 32


class Signer(Protocol):
    """Signs with one member's key."""

    @property
    def public_key(self) -> bytes:
        """With its scheme, as it stands in `Member.key`."""
        ...

    def sign(self, statement: bytes) -> bytes: ...


class Verifier(Protocol):
    """Checks signatures of the schemes that it knows."""

    def verify(self, public_key: bytes, statement: bytes, signature: bytes) -> bool:
        """Whether it is sound; False for an unknown scheme or a malformed key, too."""
        ...

    def signature_bytes(self, public_key: bytes) -> int:
        """How long signatures by this key are at most. Raises ValueError for an unknown scheme."""
        ...


class Ed25519Signer:
    """The default: 64 bytes."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._key = private_key
        self.public_key = ED25519 + b":" + private_key.public_key().public_bytes_raw()

    @classmethod
    def from_seed(cls, seed: bytes) -> Ed25519Signer:
        """Raises ValueError if the seed has not `SEED_BYTES`."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def sign(self, statement: bytes) -> bytes:
        return self._key.sign(statement)


class MlDsa65Signer:
    """For security domains that must outlast quantum computers: 3,309 bytes."""

    def __init__(self, private_key: MLDSA65PrivateKey) -> None:
        self._key = private_key
        self.public_key = ML_DSA_65 + b":" + private_key.public_key().public_bytes_raw()

    @classmethod
    def from_seed(cls, seed: bytes) -> MlDsa65Signer:
        """Raises ValueError if the seed has not `SEED_BYTES`."""
        return cls(MLDSA65PrivateKey.from_seed_bytes(seed))

    def sign(self, statement: bytes) -> bytes:
        return self._key.sign(statement)


SIGNERS: Final[Mapping[str, type[Ed25519Signer] | type[MlDsa65Signer]]] = {
    "ed25519": Ed25519Signer,
    "ml-dsa-65": MlDsa65Signer,
}
_SIGNATURE_BYTES: Final = {ED25519: 64, ML_DSA_65: 3309}


class Schemes:
    """The verifier of real nodes. Members of one cluster may use different schemes."""

    def __init__(self) -> None:
        # Parsing a key costs about as much as a verification; there are few keys.
        self._keys: dict[bytes, Ed25519PublicKey | MLDSA65PublicKey] = {}

    def verify(self, public_key: bytes, statement: bytes, signature: bytes) -> bool:
        try:
            key = self._keys.get(public_key)
            if key is None:
                key = self._keys[public_key] = parse_public_key(public_key)
                while len(self._keys) > 256:
                    del self._keys[next(iter(self._keys))]
            key.verify(signature, statement)
        except (InvalidSignature, ValueError, UnsupportedAlgorithm):
            return False
        return True

    def signature_bytes(self, public_key: bytes) -> int:
        scheme = public_key.partition(b":")[0]
        if scheme not in _SIGNATURE_BYTES:
            known = ", ".join(name.decode() for name in _SIGNATURE_BYTES)
            raise ValueError(f"the signature scheme {scheme!r:.40} is unknown; take one of {known}")
        return _SIGNATURE_BYTES[scheme]


def parse_public_key(public_key: bytes) -> Ed25519PublicKey | MLDSA65PublicKey:
    """Raises ValueError for an unknown scheme, and for a key that is none of its scheme."""
    scheme, _, raw = public_key.partition(b":")
    if scheme == ED25519:
        return Ed25519PublicKey.from_public_bytes(raw)
    if scheme == ML_DSA_65:
        return MLDSA65PublicKey.from_public_bytes(raw)
    raise ValueError(f"the signature scheme {scheme!r:.40} is unknown")
