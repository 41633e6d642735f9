"""Makers of processors for tests: chains of their own, and evidence that they sign."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from novacron_security_attestation import AttestationSettings, Collateral

EVIDENCE = Path(__file__).parent / "evidence"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
AMD = "1.3.6.1.4.1.3704.1."
INTEL = "1.2.840.113741.1.13.1"
PSS = padding.PSS(padding.MGF1(SHA384()), 48)


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def certify(
    common: str,
    key: Any,
    issuer: str,
    issuer_key: Any,
    *,
    ca: bool = False,
    extensions: Mapping[str, bytes] | None = None,
    serial: int = 7,
    begins: datetime = NOW - timedelta(days=30),
    ends: datetime = NOW + timedelta(days=30),
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(common))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    for oid, value in (extensions or {}).items():
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), False
        )
    if isinstance(issuer_key, rsa.RSAPrivateKey):
        return builder.sign(issuer_key, SHA384(), rsa_padding=PSS)
    return builder.sign(issuer_key, SHA256())


def revoke(issuer: str, key: Any, *serials: int, ends: datetime | None = None) -> Any:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name(issuer))
        .last_update(NOW - timedelta(days=1))
        .next_update(ends or NOW + timedelta(days=1))
    )
    for serial in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW).build()
        )
    if isinstance(key, rsa.RSAPrivateKey):
        return builder.sign(key, SHA384(), rsa_padding=PSS)
    return builder.sign(key, SHA256())


def integer(value: int) -> bytes:
    return bytes([2, 1, value]) if value < 0x80 else bytes([2, 2, 0, value])


def pin(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


@define
class Amd:
    """A maker of SEV-SNP processors."""

    root_key: rsa.RSAPrivateKey = field(
        factory=lambda: rsa.generate_private_key(65537, 2048), init=False
    )
    signing_key: rsa.RSAPrivateKey = field(
        factory=lambda: rsa.generate_private_key(65537, 2048), init=False
    )
    chip_key: ec.EllipticCurvePrivateKey = field(
        factory=lambda: ec.generate_private_key(ec.SECP384R1()), init=False
    )
    chip: bytes = bytes(range(64))
    _root: x509.Certificate = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._root = certify("ARK-Milan", self.root_key, "ARK-Milan", self.root_key, ca=True)

    def root(self) -> x509.Certificate:
        return self._root

    def signing(self, **changes: Any) -> x509.Certificate:
        return certify(
            "SEV-Milan", self.signing_key, "ARK-Milan", self.root_key, **{"ca": True, **changes}
        )

    def leaf(
        self,
        kind: str = "VCEK",
        *,
        product: str = "Milan-B0",
        chip: bytes | None = None,
        parts: Mapping[str, int] | None = None,
        **changes: Any,
    ) -> x509.Certificate:
        versions = {"3.1": 3, "3.2": 0, "3.3": 22, "3.8": 210, **(parts or {})}
        extensions = {AMD + oid: integer(value) for oid, value in versions.items()}
        extensions[AMD + "2"] = bytes([0x16, len(product)]) + product.encode()
        if kind == "VCEK":
            extensions[AMD + "4"] = self.chip if chip is None else chip
        return certify(
            f"SEV-{kind}",
            self.chip_key,
            "SEV-Milan",
            self.signing_key,
            extensions=extensions,
            **changes,
        )

    def report(
        self,
        *,
        version: int = 2,
        bits: int = 0x30000,
        vmpl: int = 0,
        tcb: bytes = bytes([3, 0, 0, 0, 0, 0, 22, 210]),
        nonce: bytes = b"n" * 64,
        measurement: bytes = b"m" * 48,
        flags: int = 0,
        cpuid: bytes = bytes([0x19, 0x01, 0x01]),
        algorithm: int = 1,
    ) -> bytes:
        data = bytearray(0x4A0)
        struct.pack_into("<IIQ", data, 0, version, 1, bits)
        struct.pack_into("<II", data, 0x30, vmpl, algorithm)
        struct.pack_into("<I", data, 0x48, flags)
        data[0x50:0x90], data[0x90:0xC0] = nonce, measurement
        for place in (0x38, 0x180, 0x1E0, 0x1F0):
            data[place : place + 8] = tcb
        if version >= 3:
            data[0x188:0x18B] = cpuid
        data[0x1A0:0x1E0] = self.chip.ljust(64, b"\0")
        r, s = decode_dss_signature(self.chip_key.sign(bytes(data[:0x2A0]), ec.ECDSA(SHA384())))
        data[0x2A0:0x2E8] = r.to_bytes(72, "little")
        data[0x2E8:0x330] = s.to_bytes(72, "little")
        return bytes(data)

    def collateral(self, leaf: x509.Certificate | None = None, *crls: Any) -> Collateral:
        certificates = (leaf or self.leaf(), self.signing(), self.root())
        return Collateral(certificates=certificates, crls=crls)

    def settings(self, collateral: Collateral, **changes: Any) -> AttestationSettings:
        return AttestationSettings(roots=[pin(collateral.certificates[-1])], **changes)


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content


def arc(*last: int) -> bytes:
    return der(6, bytes.fromhex("2a864886f84d010d01") + bytes(last))


def raw_signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@define
class Intel:
    """A maker of TDX processors, and its service."""

    root_key: Any = field(factory=new_key, init=False)
    authority_key: Any = field(factory=new_key, init=False)
    pck_key: Any = field(factory=new_key, init=False)
    attestation_key: Any = field(factory=new_key, init=False)
    signer_key: Any = field(factory=new_key, init=False)
    fmspc: bytes = bytes.fromhex("90c06f000000")
    root: x509.Certificate = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.root = certify("Root", self.root_key, "Root", self.root_key, ca=True)

    def pck_chain(self, components: int = 5, pce: int = 13, **changes: Any) -> bytes:
        levels: list[bytes] = [der(0x30, arc(2, n), integer(components)) for n in range(1, 17)]
        levels += [der(0x30, arc(2, 17), integer(pce)), der(0x30, arc(2, 18), der(4, bytes(16)))]
        extension = der(
            0x30,
            der(0x30, arc(1), der(4, bytes(16))),
            der(0x30, arc(2), der(0x30, *levels)),
            der(0x30, arc(3), der(4, bytes(2))),
            der(0x30, arc(4), der(4, self.fmspc)),
        )
        leaf = certify(
            "PCK",
            self.pck_key,
            "Platform CA",
            self.authority_key,
            **{"extensions": {INTEL: extension}, "serial": 99, **changes},
        )
        authority = certify("Platform CA", self.authority_key, "Root", self.root_key, ca=True)
        chain = (leaf, authority, self.root)
        return b"".join(one.public_bytes(Encoding.PEM) for one in chain) + b"\0"

    def quote(
        self,
        *,
        version: int = 4,
        nonce: bytes = b"n" * 64,
        mr_td: bytes = b"m" * 48,
        attributes: int = 0,
        svn: bytes = bytes([6, 1, 4]),
        qe_attributes: int = 0x15,
        qe_svn: int = 4,
        chain: bytes | None = None,
        bound: bytes | None = None,
        trailing: bytes = b"",
    ) -> bytes:
        header: bytes = struct.pack("<HHI", version, 2, 0x81) + bytes(4)
        header += bytes.fromhex("939a7233f79c4ca9940a0db3957f0607") + bytes(20)
        body = svn.ljust(16, b"\0") + bytes(48 + 48 + 8) + struct.pack("<QQ", attributes, 3)
        body += mr_td + bytes(48 * 3) + bytes(48 * 4) + nonce
        if version == 5:
            body += svn.ljust(16, b"\0") + bytes(48)
            header += struct.pack("<HI", 3, len(body))
        numbers = self.attestation_key.public_key().public_numbers()
        key = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        auth = bytes(range(32))
        qe = bytearray(384)
        struct.pack_into("<Q", qe, 48, qe_attributes)
        qe[128:160] = b"Q" * 32
        struct.pack_into("<HH", qe, 256, 2, qe_svn)
        qe[320:352] = hashlib.sha256(key + auth).digest() if bound is None else bound
        chain = self.pck_chain() if chain is None else chain
        inner = bytes(qe) + raw_signature(self.pck_key, bytes(qe))
        inner += struct.pack("<H", len(auth)) + auth + struct.pack("<HI", 5, len(chain)) + chain
        signature = raw_signature(self.attestation_key, header + body) + key
        signature += struct.pack("<HI", 6, len(inner)) + inner
        return bytes(header + body + struct.pack("<I", len(signature)) + signature + trailing)

    def statement(self, kind: str, body: Mapping[str, Any]) -> bytes:
        text = json.dumps(body, separators=(",", ":")).encode()
        signature = raw_signature(self.signer_key, text).hex()
        return b'{"%s":%s,"signature":"%s"}' % (kind.encode(), text, signature.encode())

    def tcb_info(self, status: str = "UpToDate", **changes: Any) -> bytes:
        levels = [
            {
                "tcb": {
                    "sgxtcbcomponents": [{"svn": least}] * 16,
                    "pcesvn": 13,
                    "tdxtcbcomponents": [{"svn": 0}] * 16,
                },
                "tcbDate": "2026-01-01T00:00:00Z",
                "tcbStatus": said,
                "advisoryIDs": [] if said == "UpToDate" else ["INTEL-SA-1"],
            }
            for least, said in ((5, status), (3, "OutOfDate"))
        ]
        identity = {
            "id": "TDX_01",
            "mrsigner": "00" * 48,
            "attributes": "00" * 8,
            "attributesMask": "FF" * 8,
            "tcbLevels": [
                {"tcb": {"isvsvn": 5}, "tcbDate": "2026-01-01", "tcbStatus": "UpToDate"},
                {"tcb": {"isvsvn": 3}, "tcbDate": "2025-01-01", "tcbStatus": "OutOfDate"},
            ],
        }
        body = {
            "id": "TDX",
            "version": 3,
            "fmspc": self.fmspc.hex(),
            "pceId": "0000",
            "issueDate": (NOW - timedelta(days=1)).isoformat(),
            "nextUpdate": (NOW + timedelta(days=1)).isoformat(),
            "tdxModule": identity,
            "tdxModuleIdentities": [identity],
            "tcbLevels": levels,
            **changes,
        }
        return self.statement("tcbInfo", body)

    def qe_identity(self, **changes: Any) -> bytes:
        body = {
            "id": "TD_QE",
            "version": 2,
            "miscselect": "00000000",
            "issueDate": (NOW - timedelta(days=1)).isoformat(),
            "nextUpdate": (NOW + timedelta(days=1)).isoformat(),
            "miscselectMask": "FFFFFFFF",
            "attributes": "11" + "00" * 15,
            "attributesMask": "FB" + "FF" * 7 + "00" * 8,
            "mrsigner": "51" * 32,
            "isvprodid": 2,
            "tcbLevels": [
                {"tcb": {"isvsvn": 4}, "tcbDate": "2026-01-01", "tcbStatus": "UpToDate"},
                {"tcb": {"isvsvn": 2}, "tcbDate": "2025-01-01", "tcbStatus": "OutOfDate"},
            ],
            **changes,
        }
        return self.statement("enclaveIdentity", body)

    def collateral(
        self,
        *statements: bytes,
        crls: tuple[Any, ...] | None = None,
        signer: Mapping[str, Any] | None = None,
    ) -> Collateral:
        leaf = certify(
            "Intel SGX TCB Signing", self.signer_key, "Root", self.root_key, **(signer or {})
        )
        if crls is None:
            crls = (revoke("Root", self.root_key), revoke("Platform CA", self.authority_key))
        return Collateral(
            certificates=(leaf, self.root),
            crls=crls,
            statements=statements or (self.tcb_info(), self.qe_identity()),
        )

    def settings(self, **changes: Any) -> AttestationSettings:
        return AttestationSettings(roots=[pin(self.root)], **changes)


@pytest.fixture(scope="session")
def amd() -> Amd:
    return Amd()


@pytest.fixture(scope="session")
def other_amd() -> Amd:
    return Amd()


@pytest.fixture(scope="session")
def intel() -> Intel:
    return Intel()


@pytest.fixture(scope="session")
def make_crl() -> Callable[..., Any]:
    return revoke


@pytest.fixture(scope="session")
def now() -> datetime:
    return NOW


@pytest.fixture(scope="session")
def evidence() -> Callable[[str], bytes]:
    return lambda file: (EVIDENCE / file).read_bytes()
