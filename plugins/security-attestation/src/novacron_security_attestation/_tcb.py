"""Intel's signed statements on platforms and quoting enclaves, and how a platform stands by them.

Rules: Intel, "Intel TDX: TCB info and QE identity" of the Provisioning Certification Service v4
(https://api.portal.trustedservices.intel.com), how to determine the status of a TCB.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from attrs import frozen
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from novacron_security_attestation._certificates import check_chain, common_name
from novacron_security_attestation._collateral import Collateral
from novacron_security_attestation._reasons import Disbelief

PCK_EXTENSION: Final = "1.2.840.113741.1.13.1"
SIGNER: Final = "Intel SGX TCB Signing"
_REFETCH: Final = "fetch it from Intel's PCS or a PCCS again"
_BODY: Final = re.compile(
    rb'\A\{\s*"(tcbInfo|enclaveIdentity)"\s*:\s*(\{.*\})\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{128})"\s*\}\Z',
    re.DOTALL,
)
_WORST: Final = (
    *("UpToDate", "SWHardeningNeeded", "ConfigurationNeeded"),
    *("ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded", "Revoked"),
    "NotSupported",
)
NOT_SUPPORTED: Final = _WORST[-1]


@frozen(kw_only=True)
class Platform:
    """What a PCK certificate says of its processor.

    Attributes:
        fmspc: Family, model, stepping and platform type, six bytes.
        pce_id: Two bytes.
        components: The 16 security versions of the TCB.
        pce_svn: The security version of the provisioning enclave.
    """

    fmspc: bytes
    pce_id: bytes
    components: tuple[int, ...]
    pce_svn: int


@frozen(kw_only=True)
class Standing:
    """What Intel says: the worst of platform, TDX module and quoting enclave.

    Attributes:
        status: As Intel names them; ``NotSupported`` below all that it names.
        why: Which of them it is, and the date of its TCB.
        complete: Whether all statements that are needed were there.
        advisories: Of all three.
        next_update: When the first of the statements runs out.
    """

    status: str
    why: str
    complete: bool
    advisories: tuple[str, ...]
    next_update: datetime


# The PCK certificate's extension: a tree of (object identifier, value) pairs.


def _der(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Tag, value and the place behind. Raises ValueError."""
    if at + 2 > len(data):
        raise ValueError("it ends too early")
    tag, length, at = data[at], data[at + 1], at + 2
    if length in (0x81, 0x82):
        count = length & 0x7F
        if at + count > len(data):
            raise ValueError("it ends too early")
        length, at = int.from_bytes(data[at : at + count], "big"), at + count
    elif length > 0x80:
        raise ValueError("a length that is too long")
    if at + length > len(data):
        raise ValueError("it ends too early")
    return tag, data[at : at + length], at + length


def _pairs(data: bytes) -> dict[int, tuple[int, bytes]]:
    """(tag, value) by the last arc of the identifier."""
    found: dict[int, tuple[int, bytes]] = {}
    at = 0
    while at < len(data):
        tag, pair, at = _der(data, at)
        if tag != 0x30:
            raise ValueError("a pair is missing")
        tag, identifier, behind = _der(pair, 0)
        if tag != 6 or not identifier:
            raise ValueError("an identifier is missing")
        value_tag, value, end = _der(pair, behind)
        if end != len(pair) or identifier[-1] in found:
            raise ValueError("a pair that is not sound")
        found[identifier[-1]] = value_tag, value
    return found


def read_platform(data: bytes | None) -> Platform:
    """Read the extension. Raises ValueError."""
    if data is None:
        raise ValueError("there is no such extension")
    tag, content, end = _der(data, 0)
    if tag != 0x30 or end != len(data):
        raise ValueError("it is no sequence")
    top = _pairs(content)
    if not {2, 3, 4} <= set(top):
        raise ValueError("the TCB, the PCE-ID or the FMSPC is missing")
    tcb = _pairs(top[2][1])
    if not set(range(1, 18)) <= set(tcb):
        raise ValueError("a component of the TCB is missing")
    versions = [int.from_bytes(tcb[n][1], "big") for n in range(1, 18)]
    if any(tcb[n][0] != 2 or not 1 <= len(tcb[n][1]) <= 3 for n in range(1, 18)):
        raise ValueError("a component of the TCB is no number")
    if len(top[3][1]) != 2 or len(top[4][1]) != 6:
        raise ValueError("the PCE-ID or the FMSPC has a wrong length")
    return Platform(
        fmspc=top[4][1], pce_id=top[3][1], components=tuple(versions[:16]), pce_svn=versions[16]
    )


# The statements.


class _Svn(msgspec.Struct, frozen=True):
    svn: int


class _PlatformTcb(msgspec.Struct, frozen=True):
    sgx: list[_Svn] = msgspec.field(name="sgxtcbcomponents")
    tdx: list[_Svn] = msgspec.field(name="tdxtcbcomponents")
    pcesvn: int


class _PlatformLevel(msgspec.Struct, frozen=True):
    tcb: _PlatformTcb
    date: str = msgspec.field(name="tcbDate")
    status: str = msgspec.field(name="tcbStatus")
    advisories: list[str] = msgspec.field(name="advisoryIDs", default_factory=list)


class _EnclaveTcb(msgspec.Struct, frozen=True):
    isvsvn: int


class _EnclaveLevel(msgspec.Struct, frozen=True):
    tcb: _EnclaveTcb
    date: str = msgspec.field(name="tcbDate")
    status: str = msgspec.field(name="tcbStatus")
    advisories: list[str] = msgspec.field(name="advisoryIDs", default_factory=list)


class _Module(msgspec.Struct, frozen=True):
    mrsigner: str
    attributes: str
    mask: str = msgspec.field(name="attributesMask")


class _ModuleIdentity(_Module, frozen=True):
    id: str
    levels: list[_EnclaveLevel] = msgspec.field(name="tcbLevels")


class TcbInfo(msgspec.Struct, frozen=True):
    """Intel's statement on all platforms of an FMSPC."""

    id: str
    version: int
    issued: datetime = msgspec.field(name="issueDate")
    next_update: datetime = msgspec.field(name="nextUpdate")
    fmspc: str
    pce_id: str = msgspec.field(name="pceId")
    module: _Module = msgspec.field(name="tdxModule")
    levels: list[_PlatformLevel] = msgspec.field(name="tcbLevels")
    modules: list[_ModuleIdentity] = msgspec.field(name="tdxModuleIdentities", default_factory=list)


class QeIdentity(msgspec.Struct, frozen=True):
    """Intel's statement on its quoting enclave for TDs."""

    id: str
    version: int
    issued: datetime = msgspec.field(name="issueDate")
    next_update: datetime = msgspec.field(name="nextUpdate")
    miscselect: str
    miscselect_mask: str = msgspec.field(name="miscselectMask")
    attributes: str
    mask: str = msgspec.field(name="attributesMask")
    mrsigner: str
    isvprodid: int
    levels: list[_EnclaveLevel] = msgspec.field(name="tcbLevels")


def believe_statements(
    collateral: Collateral, pinned: Collection[str], at: datetime
) -> list[TcbInfo | QeIdentity]:
    """The statements that Intel signed and that hold. Raises Disbelief at one that does not."""
    chains = _signers(collateral, pinned, at)
    found: list[TcbInfo | QeIdentity] = []
    for raw in collateral.statements:
        match = _BODY.match(raw)
        if match is None:
            raise Disbelief(
                "tdx.statement-form",
                "a JSON file is neither TCB information nor an enclave's identity with a signature",
                _REFETCH,
            )
        kind, body, signature = match[1].decode(), match[2], bytes.fromhex(match[3].decode())
        if not any(_signed(key, body, signature) for key in chains):
            raise Disbelief("tdx.statement-signature", f"Intel did not sign this {kind}", _REFETCH)
        cls: type[TcbInfo] | type[QeIdentity] = TcbInfo if kind == "tcbInfo" else QeIdentity
        try:
            statement = msgspec.json.decode(body, type=cls)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Disbelief(
                "tdx.statement-form", f"the {kind} cannot be read: {error}", _REFETCH
            ) from error
        wanted = ("TDX", 3) if kind == "tcbInfo" else ("TD_QE", 2)
        if (statement.id, statement.version) != wanted:
            raise Disbelief(
                "tdx.statement-version",
                f"the {kind} is {statement.id} version {statement.version}, and "
                f"{wanted[0]} version {wanted[1]} is known",
                "fetch the statement for TDX by version 4 of Intel's service",
            )
        if not _aware(statement.issued) <= at <= _aware(statement.next_update):
            raise Disbelief(
                "tdx.statement-expired",
                f"the {kind} holds from {statement.issued:%Y-%m-%d} to "
                f"{statement.next_update:%Y-%m-%d}, and it is {at:%Y-%m-%d} UTC",
                _REFETCH,
            )
        found.append(statement)
    return found


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _signers(
    collateral: Collateral, pinned: Collection[str], at: datetime
) -> list[ec.EllipticCurvePublicKey]:
    leaves = [one for one in collateral.certificates if common_name(one.subject) == SIGNER]
    if not leaves:
        raise Disbelief(
            "tdx.no-signer",
            f"the certificate {SIGNER!r} is missing, which signs Intel's statements",
            "store the header TCB-Info-Issuer-Chain of Intel's answer beside it, as PEM",
        )
    keys, objections = [], []
    for leaf in leaves:
        root = next((c for c in collateral.certificates if c.subject == leaf.issuer), None)
        try:
            if root is None:
                raise Disbelief(
                    "tdx.no-signer",
                    f"the root that issued {SIGNER!r} is missing",
                    "store the whole issuer chain of Intel's answer",
                )
            check_chain([leaf, root], pinned, at, collateral.crls, family="tdx")
        except Disbelief as objection:
            objections.append(objection)
            continue
        key = leaf.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1":
            keys.append(key)
    if not keys and objections:
        raise objections[0]
    return keys


def _signed(key: ec.EllipticCurvePublicKey, body: bytes, signature: bytes) -> bool:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), body, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


# The evaluation.


def evaluate(
    statements: Sequence[TcbInfo | QeIdentity],
    platform: Platform,
    tee_tcb_svn: bytes,
    seam: tuple[bytes, bytes],
    qe_report: bytes,
) -> Standing | None:
    """How the platform stands; None without TCB information.

    Args:
        tee_tcb_svn: Of the TD report: the TDX module's version and the parts of the platform.
        seam: The TDX module's signer and its attributes.
    Raises: Disbelief if the module or the quoting enclave is not what Intel describes.
    """
    infos = [one for one in statements if isinstance(one, TcbInfo)]
    identities = [one for one in statements if isinstance(one, QeIdentity)]
    if not infos:
        return None
    info = next((one for one in infos if one.fmspc.lower() == platform.fmspc.hex()), None)
    if info is None:
        raise Disbelief(
            "tdx.wrong-fmspc",
            f"the TCB information is for the FMSPC {infos[0].fmspc}, and this platform has "
            f"{platform.fmspc.hex()}",
            "fetch the TCB information of this FMSPC",
        )
    if info.pce_id.lower() != platform.pce_id.hex():
        raise Disbelief(
            "tdx.wrong-pce",
            f"the TCB information is for the PCE {info.pce_id}, not {platform.pce_id.hex()}",
            "fetch the TCB information of this platform",
        )
    verdicts = [
        _platform_level(info, platform, tee_tcb_svn),
        _module_level(info, tee_tcb_svn, seam),
        *(_enclave_level(one, qe_report) for one in identities),
    ]
    platform_status, others = verdicts[0][1], verdicts[1:]
    worst = verdicts[0]
    for one in others:
        if one[1] != "UpToDate" and _WORST.index(one[1]) > _WORST.index(platform_status):
            worst = one
    status = worst[1]
    if worst is not verdicts[0] and status == "OutOfDate" and "Configuration" in platform_status:
        status = "OutOfDateConfigurationNeeded"
    advisories = sorted({name for one in verdicts for name in one[3]})
    return Standing(
        status=status,
        why=f"{worst[0]} of {worst[2][:10]}" if worst[2] else worst[0],
        complete=bool(identities),
        advisories=tuple(advisories),
        next_update=min(
            [_aware(info.next_update), *(_aware(one.next_update) for one in identities)]
        ),
    )


_Level = tuple[str, str, str, list[str]]


def _known(status: str) -> str:
    if status not in _WORST:
        raise Disbelief(
            "tdx.status",
            f"Intel's statement has the status {status[:40]!r}, which is not known here",
            "update novacron-security-attestation",
        )
    return status


def _platform_level(info: TcbInfo, platform: Platform, tee_tcb_svn: bytes) -> _Level:
    for level in info.levels:
        sgx, tdx = [c.svn for c in level.tcb.sgx], [c.svn for c in level.tcb.tdx]
        if len(sgx) != 16 or len(tdx) != 16:
            raise Disbelief("tdx.statement-form", "a TCB level has not 16 parts", _REFETCH)
        # The first two bytes are the module's own version where it has identities of its own.
        first = 2 if tee_tcb_svn[1] else 0
        if (
            all(have >= need for have, need in zip(platform.components, sgx, strict=True))
            and platform.pce_svn >= level.tcb.pcesvn
            and all(
                have >= need for have, need in zip(tee_tcb_svn[first:], tdx[first:], strict=True)
            )
        ):
            return "the platform's TCB", _known(level.status), level.date, level.advisories
    return "the platform's TCB, below every level that Intel names", NOT_SUPPORTED, "", []


def _module_level(info: TcbInfo, tee_tcb_svn: bytes, seam: tuple[bytes, bytes]) -> _Level:
    version = tee_tcb_svn[1]
    module: _Module = info.module
    levels: list[_EnclaveLevel] = []
    if version:
        name = f"TDX_{version:02X}"
        identity = next((one for one in info.modules if one.id.upper() == name), None)
        if identity is None:
            raise Disbelief(
                "tdx.module-unknown",
                f"Intel's TCB information does not name the TDX module {name}",
                "fetch newer TCB information",
            )
        module, levels = identity, identity.levels
    signer, attributes = seam
    wanted, mask = _hex(module.attributes, 8), _hex(module.mask, 8)
    if signer != _hex(module.mrsigner, 48) or _masked(attributes, mask) != _masked(wanted, mask):
        raise Disbelief(
            "tdx.module",
            "the TDX module's signer or attributes are not those that Intel names",
            "run Intel's own TDX module on the host",
        )
    if not version:
        return "the TDX module", "UpToDate", info.levels[0].date, []
    return _match("the TDX module", levels, tee_tcb_svn[0])


def _enclave_level(identity: QeIdentity, report: bytes) -> _Level:
    """``report`` is an SGX report body: miscselect at 16, attributes at 48, signer at 128."""
    mask, misc_mask = _hex(identity.mask, 16), _hex(identity.miscselect_mask, 4)
    misc = _hex(identity.miscselect, 4)
    # Stated as a number (most significant first), stored little-endian.
    same = (
        _masked(report[16:20][::-1], misc_mask) == _masked(misc, misc_mask)
        and _masked(report[48:64], mask) == _masked(_hex(identity.attributes, 16), mask)
        and report[128:160] == _hex(identity.mrsigner, 32)
        and int.from_bytes(report[256:258], "little") == identity.isvprodid
    )
    if not same:
        raise Disbelief(
            "tdx.qe-identity",
            "the quoting enclave is not the one that Intel names",
            "run Intel's own quoting enclave on the host",
        )
    version = int.from_bytes(report[258:260], "little")
    return _match("the quoting enclave", identity.levels, version)


def _match(what: str, levels: Sequence[_EnclaveLevel], version: int) -> _Level:
    for level in levels:
        if version >= level.tcb.isvsvn:
            return what, _known(level.status), level.date, level.advisories
    return f"{what}, below every version that Intel names", NOT_SUPPORTED, "", []


def _hex(text: str, count: int) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != count:
        raise Disbelief("tdx.statement-form", f"{text[:40]!r} is not {count} bytes", _REFETCH)
    return data


def _masked(data: bytes, mask: bytes) -> bytes:
    return bytes(one & other for one, other in zip(data, mask, strict=True))
