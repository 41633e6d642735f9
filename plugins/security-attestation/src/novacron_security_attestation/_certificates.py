"""Certificates and revocation lists of the makers of processors: read within bounds, and chained.

Path building as browsers do it (`cryptography.x509.verification`) does not fit: AMD's leaves have
serial number 0 and no alternative name. What is checked instead is all of: the signature over each
certificate by the next, names, validity, the right to sign, and that the last is a pinned root.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from novacron_security_attestation._reasons import Disbelief

CERTIFICATE_BYTES_MAX: Final = 16 << 10
CERTIFICATES_MAX: Final = 8
CRL_BYTES_MAX: Final = 8 << 20
_PEM: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----\r?\n[A-Za-z0-9+/=\r\n]+-----END CERTIFICATE-----"
)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, hex."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def read_certificate(data: bytes) -> x509.Certificate:
    """The certificate in DER. Raises ValueError."""
    if len(data) > CERTIFICATE_BYTES_MAX:
        raise ValueError(f"a certificate of {len(data)} bytes, above {CERTIFICATE_BYTES_MAX}")
    return _read_whole(lambda: x509.load_der_x509_certificate(data))


def read_pem(data: bytes) -> list[x509.Certificate]:
    """The certificates in a text, in its order. Raises ValueError."""
    if len(data) > CERTIFICATES_MAX * CERTIFICATE_BYTES_MAX:
        raise ValueError(f"{len(data)} bytes of certificates")
    blocks = _PEM.findall(data)
    if not 1 <= len(blocks) <= CERTIFICATES_MAX:
        raise ValueError(f"{len(blocks)} certificates, and 1 to {CERTIFICATES_MAX} are expected")
    return [_read_whole(partial(x509.load_pem_x509_certificate, block)) for block in blocks]


def _read_whole(load: Callable[[], x509.Certificate]) -> x509.Certificate:
    """Parts are parsed when they are first asked for: ask now, while it is known what was read."""
    try:
        with warnings.catch_warnings():
            # AMD gives all its leaves the serial number 0, which RFC 5280 forbids; and what is
            # odd in a stranger's certificate is no concern of this process's log.
            warnings.simplefilter("ignore")
            one = load()
            _ = one.subject, one.issuer, one.extensions, one.serial_number, one.public_key()
            _ = one.not_valid_before_utc, one.not_valid_after_utc
    # What is malformed raises any of a dozen unrelated types (InvalidVersion, TypeError, …).
    except Exception as error:
        raise ValueError(f"a certificate cannot be read: {error}") from error
    return one


def read_crl(data: bytes) -> x509.CertificateRevocationList:
    """A revocation list, in DER or PEM. Raises ValueError."""
    if len(data) > CRL_BYTES_MAX:
        raise ValueError(f"a revocation list of {len(data)} bytes, above {CRL_BYTES_MAX}")
    pem = data[:1] == b"-"
    try:
        crl = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
        _ = crl.issuer, crl.last_update_utc, crl.next_update_utc, crl.signature_hash_algorithm
    # As above.
    except Exception as error:
        raise ValueError(f"a revocation list cannot be read: {error}") from error
    return crl


def read_canonical_pem(data: bytes) -> list[x509.Certificate]:
    """As `read_pem`, of a text in which no byte could be another one: the end may be line ends and
    zeros, and nothing else is left to choose. Raises ValueError."""
    found = read_pem(data)
    text = b"".join(one.public_bytes(Encoding.PEM) for one in found)
    rest = data.removeprefix(text)
    if len(rest) == len(data):
        rest = data.removeprefix(text.removesuffix(b"\n"))
    if len(rest) == len(data) or rest not in (b"", b"\n", b"\0", b"\n\0"):
        raise ValueError("the certificates are not written as PEM is")
    return found


def extension(certificate: x509.Certificate, oid: str) -> bytes | None:
    """The bytes of an extension that only its maker knows; None if there is none."""
    try:
        found = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid))
    except x509.ExtensionNotFound:
        return None
    except (ValueError, x509.DuplicateExtension) as error:
        raise ValueError(f"its extensions cannot be read: {error}") from error
    value = found.value
    return value.value if isinstance(value, x509.UnrecognizedExtension) else None


def check_chain(
    chain: Sequence[x509.Certificate],
    pinned: Collection[str],
    at: datetime,
    revocations: Sequence[x509.CertificateRevocationList] = (),
    *,
    family: str,
) -> None:
    """Believe a chain, the leaf first and the root last.

    Args:
        pinned: SHA-256 of the roots that are trusted.
        at: The moment at which it must hold.
        revocations: Lists; those of an issuer in the chain are asked, and must be sound.
        family: The first part of the codes.
    Raises: Disbelief.
    """
    root = chain[-1]
    if fingerprint(root) not in pinned:
        raise Disbelief(
            f"{family}.root",
            f"the chain ends in {common_name(root.subject)!r} ({fingerprint(root)[:16]}…), "
            "which is no pinned root",
            "use the maker's own chain; for a root of yours add its SHA-256 to [attestation] roots",
        )
    for one, issuer in zip(chain, [*chain[1:], root], strict=True):
        _check_link(one, issuer, at, family)
        if one is not root:
            _check_may_sign(issuer, family)
    for crl in revocations:
        _check_revoked(chain, crl, at, family)


def _check_link(one: x509.Certificate, issuer: x509.Certificate, at: datetime, family: str) -> None:
    name, by = common_name(one.subject), common_name(issuer.subject)
    if one.issuer != issuer.subject:
        raise Disbelief(
            f"{family}.chain-names",
            f"the certificate {name!r} was issued by {common_name(one.issuer)!r}, not by {by!r}",
            "give the chain of this processor's family",
        )
    try:
        one.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Disbelief(
            f"{family}.chain-signature",
            f"the certificate {name!r} is not signed by the key of {by!r}",
            "fetch the certificates from the maker again",
        ) from error
    if not one.not_valid_before_utc <= at <= one.not_valid_after_utc:
        early = at < one.not_valid_before_utc
        raise Disbelief(
            f"{family}.certificate-not-yet-valid" if early else f"{family}.certificate-expired",
            f"the certificate {name!r} holds from {one.not_valid_before_utc:%Y-%m-%d} to "
            f"{one.not_valid_after_utc:%Y-%m-%d}, and it is {at:%Y-%m-%d %H:%M} UTC",
            "set this host's clock" if early else "fetch a newer certificate from the maker",
        )


def _check_may_sign(issuer: x509.Certificate, family: str) -> None:
    try:
        basic = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        if basic.ca:
            return
    except (x509.ExtensionNotFound, ValueError):
        pass
    raise Disbelief(
        f"{family}.chain-authority",
        f"the certificate {common_name(issuer.subject)!r} may not sign others",
        "give the maker's own chain",
    )


def _check_revoked(
    chain: Sequence[x509.Certificate],
    crl: x509.CertificateRevocationList,
    at: datetime,
    family: str,
) -> None:
    issuer = next((one for one in chain if one.subject == crl.issuer), None)
    if issuer is None:
        return
    check_crl(crl, issuer, at, family)
    for one in chain:
        if one.issuer == crl.issuer and crl.get_revoked_certificate_by_serial_number(
            one.serial_number
        ):
            raise Disbelief(
                f"{family}.revoked",
                f"the certificate {common_name(one.subject)!r} was revoked by its issuer",
                "do not use this host until its maker has given it a new certificate",
            )


def check_crl(
    crl: x509.CertificateRevocationList, issuer: x509.Certificate, at: datetime, family: str
) -> None:
    """Believe a revocation list. Raises Disbelief."""
    name = common_name(crl.issuer)
    key = issuer.public_key()
    try:
        if not (isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey))):
            raise ValueError("its key signs no lists")
        sound = crl.is_signature_valid(key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        sound = False
    if not sound:
        raise Disbelief(
            f"{family}.crl-signature",
            f"the revocation list of {name!r} is not signed by it",
            "fetch the list from the maker again",
        )
    ends = crl.next_update_utc
    if at < crl.last_update_utc or (ends is not None and at > ends):
        raise Disbelief(
            f"{family}.crl-expired",
            f"the revocation list of {name!r} holds from {crl.last_update_utc:%Y-%m-%d} to "
            f"{f'{ends:%Y-%m-%d}' if ends else 'ever'}, and it is {at:%Y-%m-%d} UTC",
            "fetch the list from the maker again",
        )
