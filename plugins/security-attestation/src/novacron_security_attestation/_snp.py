"""AMD SEV-SNP attestation reports: what they hold, and what makes one believable.

Layout and rules: AMD publication 56860 (SEV-SNP firmware ABI), table "ATTESTATION_REPORT"; the
certificates' extensions: AMD publication 57230 (VCEK and KDS interface). Little-endian throughout.
"""

from __future__ import annotations

import struct
from datetime import datetime
from typing import Final

from attrs import frozen
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from novacron_security_attestation._certificates import (
    check_chain,
    check_crl,
    common_name,
    extension,
)
from novacron_security_attestation._collateral import AMD_ROOTS, Collateral
from novacron_security_attestation._policy import AttestationSettings
from novacron_security_attestation._reasons import AGAIN, Disbelief, Reason

REPORT_BYTES: Final = 0x4A0
SIGNED_BYTES: Final = 0x2A0
VERSIONS: Final = (2, 3, 5)
ECDSA_P384_SHA384: Final = 1
_NUMBER_BYTES: Final = 72
_CURVE_BYTES: Final = 48

POLICY_SMT: Final = 1 << 16
POLICY_MIGRATE_MA: Final = 1 << 18
POLICY_DEBUG: Final = 1 << 19

_OID: Final = "1.3.6.1.4.1.3704.1."
_PRODUCT, _HARDWARE_ID = _OID + "2", _OID + "4"
_VERSIONS: Final = {
    "bootloader": _OID + "3.1",
    "tee": _OID + "3.2",
    "snp": _OID + "3.3",
    "microcode": _OID + "3.8",
}
_FMC: Final = _OID + "3.9"
# Where each part's version stands in the eight bytes of a TCB_VERSION; Turin has a part more.
_PLACES: Final = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
_PLACES_TURIN: Final = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}
# CPUID family, model (extended parts included) of the families, in reports of version 3 and later.
_MODELS: Final = {
    (0x19, 0x00): "Milan",
    (0x19, 0x10): "Genoa",
    (0x19, 0xA0): "Genoa",
    (0x1A, 0x00): "Turin",
    (0x1A, 0x10): "Turin",
}


@frozen(kw_only=True)
class SnpReport:
    """What the firmware said, not yet believed; names follow AMD's.

    ``signing_key``: 0 is VCEK (of one chip), 1 is VLEK (of one cloud provider), 7 none.
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    platform_info: int
    signing_key: int
    chip_key_masked: bool
    report_data: bytes
    measurement: bytes
    host_data: bytes
    current_tcb: bytes
    reported_tcb: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    cpuid: tuple[int, int, int]
    chip_id: bytes
    signed: bytes
    r: int
    s: int


def parse_report(data: bytes) -> SnpReport:
    """Read a report. Raises Disbelief."""
    if len(data) != REPORT_BYTES:
        raise Disbelief(
            "snp.length",
            f"an SEV-SNP report has {REPORT_BYTES} bytes, and this has {len(data)}",
            "give the report alone, as the firmware made it",
        )
    version, guest_svn, policy = struct.unpack_from("<IIQ", data, 0)
    if version not in VERSIONS:
        raise Disbelief(
            "snp.version",
            f"the report has version {version}, and {', '.join(map(str, VERSIONS))} are known",
            "update novacron-security-attestation, or the host's firmware if it is older",
        )
    vmpl, algorithm = struct.unpack_from("<II", data, 0x30)
    platform_info, flags = struct.unpack_from("<QI", data, 0x40)
    if algorithm != ECDSA_P384_SHA384:
        raise Disbelief(
            "snp.algorithm",
            f"the report names the signature algorithm {algorithm}; only 1 (ECDSA P-384 with "
            "SHA-384) is known",
            AGAIN,
        )
    signature = data[SIGNED_BYTES:]
    r_bytes, s_bytes = signature[:_NUMBER_BYTES], signature[_NUMBER_BYTES : 2 * _NUMBER_BYTES]
    unused = r_bytes[_CURVE_BYTES:] + s_bytes[_CURVE_BYTES:] + signature[2 * _NUMBER_BYTES :]
    if any(unused):
        raise Disbelief(
            "snp.signature-form", "bytes of the signature that must be zero are not", AGAIN
        )
    return SnpReport(
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=data[0x10:0x20],
        image_id=data[0x20:0x30],
        vmpl=vmpl,
        signature_algorithm=algorithm,
        platform_info=platform_info,
        signing_key=flags >> 2 & 7,
        chip_key_masked=bool(flags & 2),
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0],
        host_data=data[0xC0:0xE0],
        current_tcb=data[0x38:0x40],
        reported_tcb=data[0x180:0x188],
        committed_tcb=data[0x1E0:0x1E8],
        launch_tcb=data[0x1F0:0x1F8],
        cpuid=(data[0x188], data[0x189], data[0x18A]),
        chip_id=data[0x1A0:0x1E0],
        signed=data[:SIGNED_BYTES],
        r=int.from_bytes(r_bytes, "little"),
        s=int.from_bytes(s_bytes, "little"),
    )


def tcb_parts(tcb: bytes, product: str) -> dict[str, int]:
    """The security version of each part of the platform."""
    places = _PLACES_TURIN if product == "Turin" else _PLACES
    return {part: tcb[place] for part, place in places.items()}


@frozen(kw_only=True)
class SnpProof:
    """A report whose signature and chain were believed.

    Attributes:
        product: The processor's family.
        key: ``vcek`` or ``vlek``.
        valid_until: When the first certificate of its chain runs out.
        revocation_known: Whether a sound list of revoked keys was there.
    """

    report: SnpReport
    product: str
    key: str
    valid_until: datetime
    revocation_known: bool


def believe(
    data: bytes, collateral: Collateral, settings: AttestationSettings, at: datetime
) -> SnpProof:
    """Check signature, chain, chip and TCB of a report. Raises Disbelief at the first fault."""
    report = parse_report(data)
    if report.signing_key not in (0, 1):
        raise Disbelief(
            "snp.unsigned",
            f"the report says that it is signed by key {report.signing_key}, which is none",
            AGAIN,
        )
    kind = "VLEK" if report.signing_key else "VCEK"
    leaf = _leaf(report, collateral, kind)
    product = _product(leaf)
    _check_model(report, product)
    chain = _chain(leaf, collateral)
    pinned = {*AMD_ROOTS.values(), *settings.roots}
    check_chain(chain, pinned, at, family="snp")
    root = chain[-1]
    lists = [crl for crl in collateral.crls if crl.issuer == root.subject]
    for crl in lists:
        # AMD's list is signed by the root, and names the signing keys below it.
        check_crl(crl, root, at, "snp")
        if crl.get_revoked_certificate_by_serial_number(chain[1].serial_number):
            raise Disbelief(
                "snp.revoked",
                f"AMD has revoked the signing key {common_name(chain[1].subject)!r}",
                "use a host whose chain stands",
            )
    _check_signature(report, leaf, kind)
    _check_chip(report, leaf, kind, product)
    _check_tcb(report, leaf, kind, product)
    return SnpProof(
        report=report,
        product=product,
        key=kind.lower(),
        valid_until=min(one.not_valid_after_utc for one in chain),
        revocation_known=bool(lists),
    )


def _leaf(report: SnpReport, collateral: Collateral, kind: str) -> x509.Certificate:
    leaves = [c for c in collateral.certificates if common_name(c.subject) == f"SEV-{kind}"]
    if not leaves:
        raise Disbelief(
            "snp.no-certificate",
            f"there is no {kind} certificate beside the report",
            f"fetch the {kind} of this chip and TCB from AMD's key server, and name it with "
            "--collateral",
        )
    if kind == "VCEK" and not report.chip_key_masked:
        of_chip = [one for one in leaves if _is_of(one, report.chip_id)]
        leaves = of_chip or leaves
    for one in leaves:
        product = _product(one)
        if all(
            _number(one, oid) == tcb_parts(report.reported_tcb, product)[part]
            for part, oid in _VERSIONS.items()
        ):
            return one
    return leaves[0]


def _is_of(leaf: x509.Certificate, chip_id: bytes) -> bool:
    hardware = _raw(leaf, _HARDWARE_ID)
    return bool(hardware) and chip_id == hardware.ljust(len(chip_id), b"\0")


def _raw(leaf: x509.Certificate, oid: str) -> bytes:
    try:
        return extension(leaf, oid) or b""
    except ValueError as error:
        raise Disbelief(
            "snp.certificate-extensions", str(error), "fetch the certificate from AMD again"
        ) from error


def _number(leaf: x509.Certificate, oid: str) -> int | None:
    """A DER INTEGER from 0 to 255; None if the extension is not there or is something else."""
    raw = _raw(leaf, oid)
    if len(raw) == 3 and raw[:2] == b"\x02\x01" and raw[2] < 0x80:
        return raw[2]
    if len(raw) == 4 and raw[:3] == b"\x02\x02\x00" and raw[3] >= 0x80:
        return raw[3]
    return None


def _product(leaf: x509.Certificate) -> str:
    """ "Milan" of the DER IA5String "Milan-B0"."""
    raw = _raw(leaf, _PRODUCT)
    if len(raw) > 2 and raw[0] == 0x16 and raw[1] == len(raw) - 2:
        return raw[2:].decode("ascii", "replace").partition("-")[0]
    return ""


def _check_model(report: SnpReport, product: str) -> None:
    if report.version < 3:
        return
    family, model, _ = report.cpuid
    told = _MODELS.get((family, model & 0xF0))
    if told is not None and told != product:
        raise Disbelief(
            "snp.wrong-family",
            f"the report is of a {told} processor, and the certificate of a {product or '?'}",
            "give the certificate of this chip",
        )


def _chain(leaf: x509.Certificate, collateral: Collateral) -> list[x509.Certificate]:
    chain = [leaf]
    while len(chain) < 4 and chain[-1].issuer != chain[-1].subject:
        issuer = next(
            (one for one in collateral.certificates if one.subject == chain[-1].issuer), None
        )
        if issuer is None:
            others = [common_name(c.subject) for c in collateral.certificates]
            family = next((one for one in others if one.startswith("ARK-")), "")
            raise Disbelief(
                "snp.wrong-family"
                if family and not family.endswith(_product(leaf))
                else "snp.chain-incomplete",
                f"there is no certificate of {common_name(chain[-1].issuer)!r}, which issued "
                f"{common_name(chain[-1].subject)!r}",
                "give the chain of this processor's family (ASK and ARK, or ASVK) with "
                "--collateral",
            )
        chain.append(issuer)
    if len(chain) != 3:
        raise Disbelief(
            "snp.chain-length",
            f"the chain has {len(chain)} certificates, and AMD's have 3",
            "give the chain of this processor's family",
        )
    return chain


def _check_signature(report: SnpReport, leaf: x509.Certificate, kind: str) -> None:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise Disbelief(
            "snp.key", f"the {kind} holds no P-384 key", "fetch the certificate from AMD again"
        )
    try:
        key.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(SHA384()))
    except InvalidSignature:
        raise Disbelief(
            "snp.signature",
            f"the report is not signed by the key of this {kind}: it was changed, or comes from "
            "another chip or TCB",
            AGAIN,
        ) from None


def _check_chip(report: SnpReport, leaf: x509.Certificate, kind: str, product: str) -> None:
    if kind == "VLEK":
        return
    if report.chip_key_masked or not any(report.chip_id):
        raise Disbelief(
            "snp.chip-masked",
            "the host hides its chip's id, so the report cannot be tied to a chip",
            "have the host's MaskChipId switched off, or use a VLEK",
        )
    if not _is_of(leaf, report.chip_id):
        raise Disbelief(
            "snp.wrong-chip",
            f"the report is of the chip {report.chip_id.hex()[:16]}…, and the certificate of "
            f"{_raw(leaf, _HARDWARE_ID).hex()[:16]}… ({product})",
            "fetch the VCEK of the report's chip",
        )


def _check_tcb(report: SnpReport, leaf: x509.Certificate, kind: str, product: str) -> None:
    stated = tcb_parts(report.reported_tcb, product)
    oids = {**_VERSIONS, **({"fmc": _FMC} if product == "Turin" else {})}
    for part, oid in oids.items():
        certified = _number(leaf, oid)
        if certified != stated[part]:
            raise Disbelief(
                "snp.certificate-tcb",
                f"the report states {part} {stated[part]}, and the {kind} was made for "
                f"{'none' if certified is None else certified}",
                f"fetch the {kind} of the report's TCB",
            )


def judge(proof: SnpProof, settings: AttestationSettings) -> list[Reason]:
    """What the policy has against a report that is believed."""
    report, found = proof.report, []
    if report.policy & POLICY_DEBUG and not settings.allow_debug:
        found.append(
            Reason(
                "snp.debug",
                "the guest's policy allows debugging: its host can read its memory",
                "start the guest with a policy whose bit 19 is off",
            )
        )
    if report.policy & POLICY_MIGRATE_MA and not settings.allow_migration_agent:
        found.append(
            Reason(
                "snp.migration-agent",
                "the guest's policy lets a migration agent take it to another host",
                "start it with bit 18 off, or set [attestation] allow_migration_agent",
            )
        )
    if report.vmpl > settings.max_vmpl:
        found.append(
            Reason(
                "snp.vmpl",
                f"the report was asked for at VMPL {report.vmpl}, and {settings.max_vmpl} is the "
                "most that is accepted",
                "ask for it at a more privileged level",
            )
        )
    stated = tcb_parts(report.reported_tcb, proof.product)
    for part, least in sorted(settings.snp_minimum.items()):
        if part in stated and stated[part] < least:
            found.append(
                Reason(
                    "snp.tcb-low",
                    f"the platform's {part} has version {stated[part]}, below {least}",
                    f"update the host's firmware, or lower [attestation] snp_minimum {part}",
                )
            )
    return found
