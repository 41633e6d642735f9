"""Runs of PEM blocks: certificates, keys and revocation lists in one file."""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.utils import CryptographyDeprecationWarning
from novacron import ConfigError

PrivateKey = ec.EllipticCurvePrivateKey | mldsa.MLDSA65PrivateKey
PublicKey = ec.EllipticCurvePublicKey | mldsa.MLDSA65PublicKey

_BLOCK: Final = re.compile(
    rb"-----BEGIN (CERTIFICATE|CERTIFICATE REQUEST|PRIVATE KEY|X509 CRL)-----\s"
    rb"[A-Za-z0-9+/=\s]+-----END \1-----\n?"
)
# The warning, of what a later version will refuse, is an error where the interpreter is told so.
_DAMAGE: Final = (ValueError, TypeError, UnsupportedAlgorithm, CryptographyDeprecationWarning)
# An authority, a node, a key, a revocation list; a little more does no harm.
_BLOCKS_MAX: Final = 16


@frozen(kw_only=True)
class Bundle:
    """What was found in a run of PEM blocks.

    Attributes:
        ca: The authority's certificate.
        certificate: A node's certificate.
        key: A node's key.
        revoked: The authority's revocation list.
        request: A request for a certificate.
    """

    ca: x509.Certificate | None = None
    certificate: x509.Certificate | None = None
    key: PrivateKey | None = None
    revoked: x509.CertificateRevocationList | None = None
    request: x509.CertificateSigningRequest | None = None

    def dump(self) -> bytes:
        """The blocks; what `parse` gives back."""
        parts = [
            each.public_bytes(Encoding.PEM)
            for each in (self.ca, self.certificate, self.revoked, self.request)
            if each is not None
        ]
        if self.key is not None:
            parts.append(dump_key(self.key))
        return b"".join(parts)


def parse(data: bytes, source: str) -> Bundle:
    """Read what `Bundle.dump` wrote. Raises ConfigError, naming ``source``."""
    found: dict[str, object] = {}

    def keep(name: str, value: object) -> None:
        if name in found:
            raise ConfigError(f"{source} holds more than one {name}")
        found[name] = value

    blocks = list(_BLOCK.finditer(data))
    if not blocks or len(blocks) > _BLOCKS_MAX:
        raise ConfigError(
            f"{source} holds {len(blocks)} PEM blocks",
            hint="give a file that `novacron trust` wrote",
        )
    for block in blocks:
        text, kind = block[0], block[1]
        try:
            if kind == b"CERTIFICATE":
                certificate = x509.load_pem_x509_certificate(text)
                keep("ca" if _is_authority(certificate) else "certificate", certificate)
            elif kind == b"X509 CRL":
                keep("revoked", x509.load_pem_x509_crl(text))
            elif kind == b"CERTIFICATE REQUEST":
                keep("request", x509.load_pem_x509_csr(text))
            else:
                key = load_pem_private_key(text, None)
                if not isinstance(key, PrivateKey):
                    raise ConfigError(f"{source} holds a key of a kind that is not used here")
                keep("key", key)
        except (
            ValueError,
            TypeError,
            UnsupportedAlgorithm,
            CryptographyDeprecationWarning,
        ) as error:
            # The warning is an error where the interpreter is told so: of what will be refused.
            raise ConfigError(f"{source} holds a damaged {kind.decode().lower()}") from error
    return Bundle(**found)  # type: ignore[arg-type]


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def dump_key(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def same_key(key: PrivateKey, public_key: object) -> bool:
    """Whether a certificate's public key belongs to the private one."""
    if not isinstance(public_key, PublicKey):
        return False
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*form) == public_key.public_bytes(*form)
