"""Intel TDX quotes (version 4 and 5): what they hold, and what makes one believable.

Layout and rules: Intel, "TDX DCAP Quoting Library API", appendix A.3 and A.4 (quotes), and "PCK
Certificate and CRL Profile" (the certificate's extension). Little-endian but for keys, signatures.
"""

from __future__ import annotations

import hashlib
import struct
from datetime import datetime
from typing import Final

from attrs import frozen
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from novacron_security_attestation import _tcb
from novacron_security_attestation._certificates import (
    check_chain,
    extension,
    read_canonical_pem,
)
from novacron_security_attestation._collateral import INTEL_ROOTS, Collateral
from novacron_security_attestation._policy import AttestationSettings
from novacron_security_attestation._reasons import AGAIN, Disbelief, Reason

QUOTE_BYTES_MAX: Final = 64 << 10
TDREPORT_BYTES: Final = 1024
VERSIONS: Final = (4, 5)
TEE_SGX, TEE_TDX = 0x00, 0x81
ECDSA_P256: Final = 2
INTEL_QE: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_HEADER_BYTES: Final = 48
_QE_REPORT_BYTES: Final = 384
_BODIES: Final = {2: 584, 3: 648}  # TDX 1.0 and 1.5, by the type that version 5 names
_PCK_CHAIN, _QE_CERTIFICATION = 5, 6
DEBUG: Final = 1
_OTHER_UNTRUSTED: Final = 0xFE
_QE_DEBUG: Final = 2


@frozen(kw_only=True)
class TdQuote:
    """What the quote says, not yet believed; names follow Intel's."""

    version: int
    body_type: int
    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: int
    xfam: int
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_signature: bytes
    qe_auth_data: bytes
    pck_chain: bytes
    trailing: int


class _Cursor:
    """Takes bytes in order, never more than there are."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def take(self, count: int, what: str) -> bytes:
        if count > len(self._data) - self.at:
            raise Disbelief(
                "tdx.length",
                f"the quote ends within its {what}: {count} bytes are stated at byte {self.at}, "
                f"and {len(self._data) - self.at} are left",
                AGAIN,
            )
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, count: int, what: str) -> int:
        return int.from_bytes(self.take(count, what), "little")


def parse_quote(data: bytes) -> TdQuote:
    """Read a quote. Raises Disbelief."""
    if len(data) > QUOTE_BYTES_MAX:
        raise Disbelief("tdx.length", f"a quote of {len(data)} bytes is none", AGAIN)
    cursor = _Cursor(data)
    header = cursor.take(_HEADER_BYTES, "header")
    version, key_type, tee = struct.unpack_from("<HHI", header)
    if version not in VERSIONS:
        raise Disbelief(
            "tdx.version",
            f"the quote has version {version}, and {', '.join(map(str, VERSIONS))} are known",
            "update novacron-security-attestation, or the host's quoting service if it is older",
        )
    if tee != TEE_TDX:
        what = "an SGX enclave" if tee == TEE_SGX else f"a TEE of type {tee:#x}"
        raise Disbelief("tdx.tee", f"the quote is of {what}, not of a TD", "ask the guest for one")
    if key_type != ECDSA_P256:
        raise Disbelief(
            "tdx.algorithm",
            f"the quote is signed with a key of type {key_type}; only 2 (ECDSA P-256) is known",
            "use Intel's quoting enclave",
        )
    if header[12:28] != INTEL_QE:
        raise Disbelief(
            "tdx.qe-vendor",
            f"the quoting enclave is of the vendor {header[12:28].hex()}, not of Intel",
            "use Intel's quoting enclave",
        )
    body_type = 2
    if version == 5:
        body_type, size = cursor.number(2, "body's type"), cursor.number(4, "body's size")
        if _BODIES.get(body_type) != size:
            raise Disbelief(
                "tdx.body",
                f"the quote holds a body of type {body_type} with {size} bytes, which is no TD "
                "report that is known",
                "update novacron-security-attestation",
            )
    body = cursor.take(_BODIES[body_type], "TD report")
    signed = data[: cursor.at]
    parts = _Cursor(cursor.take(cursor.number(4, "signature's size"), "signature"))
    quote = _signature_parts(parts, signed, body, version, body_type, len(data) - cursor.at)
    if parts.at != len(parts._data):
        raise Disbelief(
            "tdx.length",
            f"the signature states {len(parts._data)} bytes, and its parts have {parts.at}",
            AGAIN,
        )
    return quote


def _signature_parts(
    parts: _Cursor, signed: bytes, body: bytes, version: int, body_type: int, trailing: int
) -> TdQuote:
    signature, key = parts.take(64, "signature"), parts.take(64, "attestation key")
    kind = parts.number(2, "certification's type")
    size = parts.number(4, "certification's size")
    if kind != _QE_CERTIFICATION:
        raise Disbelief(
            "tdx.certification",
            f"the quote is certified by data of type {kind}; only 6 (by a report of the quoting "
            "enclave) is known",
            "use Intel's quoting service of DCAP 1.15 or later",
        )
    inner = _Cursor(parts.take(size, "certification"))
    qe_report = inner.take(_QE_REPORT_BYTES, "quoting enclave's report")
    qe_signature = inner.take(64, "quoting enclave's signature")
    auth = inner.take(inner.number(2, "authentication data's size"), "authentication data")
    chain_kind = inner.number(2, "chain's type")
    chain = inner.take(inner.number(4, "chain's size"), "chain")
    if chain_kind != _PCK_CHAIN:
        raise Disbelief(
            "tdx.no-chain",
            f"the quote carries certification data of type {chain_kind}, not the PCK's chain (5)",
            "have the host's quoting service put the PCK certificate chain into its quotes",
        )
    if inner.at != size:
        raise Disbelief(
            "tdx.length",
            f"the certification states {size} bytes, and its parts have {inner.at}",
            AGAIN,
        )
    take = _Cursor(body)
    return TdQuote(
        version=version,
        body_type=body_type,
        tee_tcb_svn=take.take(16, ""),
        mr_seam=take.take(48, ""),
        mr_signer_seam=take.take(48, ""),
        seam_attributes=take.take(8, ""),
        td_attributes=take.number(8, ""),
        xfam=take.number(8, ""),
        mr_td=take.take(48, ""),
        mr_config_id=take.take(48, ""),
        mr_owner=take.take(48, ""),
        mr_owner_config=take.take(48, ""),
        rtmrs=(take.take(48, ""), take.take(48, ""), take.take(48, ""), take.take(48, "")),
        report_data=take.take(64, ""),
        signed=signed,
        signature=signature,
        attestation_key=key,
        qe_report=qe_report,
        qe_signature=qe_signature,
        qe_auth_data=auth,
        pck_chain=chain,
        trailing=trailing,
    )


@frozen(kw_only=True)
class TdxProof:
    """A quote whose signatures and chain were believed.

    Attributes:
        platform: What the PCK certificate says of the processor.
        standing: What Intel's TCB information says of it; None without collateral.
        valid_until: When the first certificate or statement runs out.
        revocation_known: Whether sound lists of the root and of the PCK's issuer were there.
    """

    quote: TdQuote
    platform: _tcb.Platform
    standing: _tcb.Standing | None
    valid_until: datetime
    revocation_known: bool


def believe(
    data: bytes, collateral: Collateral, settings: AttestationSettings, at: datetime
) -> TdxProof:
    """Check the signatures, the chain and the collateral. Raises Disbelief at the first fault."""
    quote = parse_quote(data)
    try:
        chain = read_canonical_pem(quote.pck_chain)
    except ValueError as error:
        raise Disbelief("tdx.chain", f"the PCK's chain cannot be read: {error}", AGAIN) from error
    pinned = {*INTEL_ROOTS.values(), *settings.roots}
    check_chain(chain, pinned, at, collateral.crls, family="tdx")
    if len(chain) != 3:
        raise Disbelief("tdx.chain", f"the chain has {len(chain)} certificates, not 3", AGAIN)
    _check_quoting_enclave(quote, chain[0])
    _check_quote_signature(quote)
    try:
        platform = _tcb.read_platform(extension(chain[0], _tcb.PCK_EXTENSION))
    except ValueError as error:
        raise Disbelief(
            "tdx.pck-extension", f"the PCK certificate's TCB cannot be read: {error}", AGAIN
        ) from error
    ends = [one.not_valid_after_utc for one in chain]
    standing = None
    if collateral.statements:
        statements = _tcb.believe_statements(collateral, pinned, at)
        standing = _tcb.evaluate(
            statements, platform, quote.tee_tcb_svn, _seam(quote), quote.qe_report
        )
        if standing is not None:
            ends.append(standing.next_update)
    issuers = {crl.issuer for crl in collateral.crls}
    return TdxProof(
        quote=quote,
        platform=platform,
        standing=standing,
        valid_until=min(ends),
        revocation_known={chain[1].subject, chain[2].subject} <= issuers,
    )


def _seam(quote: TdQuote) -> tuple[bytes, bytes]:
    return quote.mr_signer_seam, quote.seam_attributes


def _verified(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes) -> bool:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _check_quoting_enclave(quote: TdQuote, pck: x509.Certificate) -> None:
    key = pck.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise Disbelief("tdx.key", "the PCK certificate holds no P-256 key", AGAIN)
    if not _verified(key, quote.qe_signature, quote.qe_report):
        raise Disbelief(
            "tdx.qe-signature",
            "the quoting enclave's report is not signed by this processor's PCK",
            AGAIN,
        )
    bound = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest()
    if quote.qe_report[320:] != bound.ljust(64, b"\0"):
        raise Disbelief(
            "tdx.qe-binding",
            "the quoting enclave vouches for another attestation key than the quote's",
            AGAIN,
        )
    if quote.qe_report[48] & _QE_DEBUG:
        raise Disbelief(
            "tdx.qe-debug", "the quoting enclave runs in debug mode", "use Intel's release build"
        )


def _check_quote_signature(quote: TdQuote) -> None:
    key = quote.attestation_key
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(key[:32], "big"), int.from_bytes(key[32:], "big"), ec.SECP256R1()
    )
    try:
        public = numbers.public_key()
    except ValueError as error:
        raise Disbelief("tdx.key", "the attestation key is no point of P-256", AGAIN) from error
    if not _verified(public, quote.signature, quote.signed):
        raise Disbelief(
            "tdx.signature",
            "the quote is not signed by its attestation key: it was changed",
            AGAIN,
        )


def judge(proof: TdxProof, settings: AttestationSettings) -> list[Reason]:
    """What the policy has against a quote that is believed."""
    quote, found = proof.quote, []
    if quote.td_attributes & DEBUG and not settings.allow_debug:
        found.append(
            Reason(
                "tdx.debug",
                "the TD was started for debugging: its host can read its memory",
                "start the TD without the attribute DEBUG",
            )
        )
    if quote.td_attributes & _OTHER_UNTRUSTED:
        found.append(
            Reason(
                "tdx.attributes",
                f"the TD's attributes {quote.td_attributes:#018x} have reserved bits of the group "
                "that makes a TD untrusted",
                "start the TD without them",
            )
        )
    if quote.trailing and settings.exact_length:
        found.append(
            Reason(
                "tdx.trailing",
                f"{quote.trailing} bytes that nobody signed follow the quote",
                "cut the file at the quote's end, or unset [attestation] exact_length",
            )
        )
    found += _judge_standing(proof, settings)
    return found


def _judge_standing(proof: TdxProof, settings: AttestationSettings) -> list[Reason]:
    standing = proof.standing
    found = []
    if settings.require_collateral and not (standing and standing.complete):
        found.append(
            Reason(
                "tdx.no-collateral",
                "without Intel's TCB information and enclave identity nobody knows whether the "
                f"platform (FMSPC {proof.platform.fmspc.hex()}) is up to date",
                "fetch both with their chain from Intel's PCS or a PCCS, and name them with "
                "--collateral; or unset [attestation] require_collateral",
            )
        )
    if not proof.revocation_known and settings.require_collateral:
        found.append(
            Reason(
                "tdx.no-crl",
                "without the revocation lists of Intel's root and PCK authority nobody knows "
                "whether the platform's key still counts",
                "fetch both lists from Intel's PCS or a PCCS, and name them with --collateral",
            )
        )
    if standing is not None and standing.status not in settings.tdx_statuses:
        advisories = ", ".join(standing.advisories) or "none named"
        found.append(
            Reason(
                "tdx.tcb-low",
                f"Intel says of this platform {standing.status} ({standing.why}; "
                f"advisories: {advisories})",
                "update the host's firmware and TDX module, or accept the status in [attestation] "
                "tdx_statuses",
            )
        )
    return found
