"""From bytes to a verdict: which family, is it genuine, and does the policy accept what it says."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen
from novacron import ConfigError, NotFound

from novacron_security_attestation import _snp, _tdx
from novacron_security_attestation._collateral import Collateral
from novacron_security_attestation._policy import AttestationSettings
from novacron_security_attestation._reasons import AGAIN, Disbelief, Reason

NONCE_BYTES_MAX: Final = 64
EVIDENCE_BYTES_MAX: Final = _tdx.QUOTE_BYTES_MAX


@frozen(kw_only=True)
class Verdict:
    """What came out.

    Attributes:
        family: ``sev-snp``, ``tdx`` or empty if it is neither.
        genuine: Signature, chain and binding hold: the claims are the processor's own words.
        trusted: Genuine, and the policy has no objection.
        reasons: Every objection; one alone if the evidence is not genuine.
        claims: What it says, for people and programs; to be believed only if it is genuine.
        notes: What was not checked, and what is worth knowing.
        valid_until: When the first certificate or statement that it rests on runs out.
    """

    family: str
    genuine: bool
    reasons: tuple[Reason, ...] = ()
    claims: Mapping[str, Any] = field(factory=dict)
    notes: tuple[str, ...] = ()
    valid_until: datetime | None = None

    @property
    def trusted(self) -> bool:
        return self.genuine and not self.reasons

    def to_json(self) -> dict[str, Any]:
        return {
            "trusted": self.trusted,
            "genuine": self.genuine,
            "family": self.family,
            "reasons": [
                {"code": one.code, "what": one.what, "cure": one.cure} for one in self.reasons
            ],
            "claims": dict(self.claims),
            "notes": list(self.notes),
            "valid_until": self.valid_until.isoformat() if self.valid_until else None,
        }


def read_evidence(path: Path) -> bytes:
    """A file of evidence. Raises NotFound; ConfigError if it is too long to be any."""
    try:
        with path.open("rb") as file:
            data = file.read(EVIDENCE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", hint="name the report or the quote") from None
    if len(data) > EVIDENCE_BYTES_MAX:
        raise ConfigError(
            f"{path} has more than {EVIDENCE_BYTES_MAX} bytes",
            hint="give the report or the quote alone, in binary form",
        )
    return data


def read_nonce(text: str) -> bytes:
    """What was asked for, from hex. Raises ConfigError."""
    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        nonce = b""
    if not 1 <= len(nonce) <= NONCE_BYTES_MAX:
        raise ConfigError(
            f"the nonce {text[:40]!r} is not 1 to {NONCE_BYTES_MAX} bytes in hex",
            hint="give what the host was asked to put into its report data",
        )
    return nonce


def family_of(data: bytes) -> str:
    """``sev-snp`` or ``tdx``. Raises Disbelief if it is neither, saying what it is if it knows."""
    if len(data) == _tdx.TDREPORT_BYTES:
        raise Disbelief(
            "tdx.report-is-no-quote",
            "this is a TDREPORT: only the processor that made it can check it",
            "have the host's quoting service make a quote of it",
        )
    if len(data) == _snp.REPORT_BYTES and data[1:4] == b"\0\0\0":
        return "sev-snp"
    if data[1:2] == b"\0" and data[:1] in (b"\x03", b"\x04", b"\x05"):
        return "tdx"
    raise Disbelief(
        "evidence.unknown",
        f"{len(data)} bytes that are neither an SEV-SNP report ({_snp.REPORT_BYTES} bytes) nor a "
        "TDX quote",
        "give the report or the quote in binary form, as the guest device made it",
    )


def verify(
    evidence: bytes,
    *,
    collateral: Collateral | None = None,
    settings: AttestationSettings | None = None,
    nonce: bytes | None = None,
    at: datetime | None = None,
) -> Verdict:
    """Judge a report or a quote.

    Args:
        evidence: As the guest device made it; hostile until proved otherwise.
        collateral: Certificates, lists and statements; hostile, too. AMD's ASK and ARK come with
            the package.
        settings: The policy; None is the default one.
        nonce: What must stand in the report data, filled up with zeros; None asks for nothing, and
            the verdict says so.
        at: The moment to judge at; None is now. Must have a time zone.
    Returns: a verdict, never an error: whatever is wrong with evidence is a reason.
    """
    settings = settings or AttestationSettings()
    collateral = (collateral or Collateral()).with_own()
    at = at or datetime.now(UTC)
    family = ""
    try:
        family = family_of(evidence)
        if family == "sev-snp":
            return _snp_verdict(_snp.believe(evidence, collateral, settings, at), settings, nonce)
        return _tdx_verdict(_tdx.believe(evidence, collateral, settings, at), settings, nonce)
    except Disbelief as disbelief:
        return Verdict(family=family, genuine=False, reasons=(disbelief.reason,))


def _snp_verdict(
    proof: _snp.SnpProof, settings: AttestationSettings, nonce: bytes | None
) -> Verdict:
    report = proof.report
    reasons = _common("sev-snp", report.measurement, report.report_data, settings, nonce)
    reasons += _snp.judge(proof, settings)
    notes = [] if nonce is not None else [_NO_NONCE]
    if not proof.revocation_known:
        notes.append("AMD's revocation list was not given, so it was not asked")
    return Verdict(
        family="sev-snp",
        genuine=True,
        reasons=tuple(reasons),
        notes=tuple(notes),
        valid_until=proof.valid_until,
        claims={
            "product": proof.product,
            "signed_by": proof.key,
            "version": report.version,
            "measurement": report.measurement.hex(),
            "report_data": report.report_data.hex(),
            "host_data": report.host_data.hex(),
            "chip_id": report.chip_id.hex(),
            "vmpl": report.vmpl,
            "guest_svn": report.guest_svn,
            "policy": f"{report.policy:#x}",
            "debug": bool(report.policy & _snp.POLICY_DEBUG),
            "migration_agent": bool(report.policy & _snp.POLICY_MIGRATE_MA),
            "smt": bool(report.policy & _snp.POLICY_SMT),
            "reported_tcb": _snp.tcb_parts(report.reported_tcb, proof.product),
            "committed_tcb": _snp.tcb_parts(report.committed_tcb, proof.product),
        },
    )


def _tdx_verdict(
    proof: _tdx.TdxProof, settings: AttestationSettings, nonce: bytes | None
) -> Verdict:
    quote, standing = proof.quote, proof.standing
    reasons = _common("tdx", quote.mr_td, quote.report_data, settings, nonce)
    reasons += _tdx.judge(proof, settings)
    notes = [] if nonce is not None else [_NO_NONCE]
    if standing is None:
        notes.append("without TCB information the TCB was not judged")
    elif not standing.complete:
        notes.append("without the enclave's identity the quoting enclave was not judged")
    if not proof.revocation_known:
        notes.append("not both of Intel's revocation lists were given")
    if quote.trailing:
        notes.append(f"{quote.trailing} bytes behind the quote are signed by nobody: ignored")
    return Verdict(
        family="tdx",
        genuine=True,
        reasons=tuple(reasons),
        notes=tuple(notes),
        valid_until=proof.valid_until,
        claims={
            "version": quote.version,
            "measurement": quote.mr_td.hex(),
            "rtmrs": [one.hex() for one in quote.rtmrs],
            "report_data": quote.report_data.hex(),
            "mr_config_id": quote.mr_config_id.hex(),
            "mr_seam": quote.mr_seam.hex(),
            "td_attributes": f"{quote.td_attributes:#018x}",
            "debug": bool(quote.td_attributes & _tdx.DEBUG),
            "xfam": f"{quote.xfam:#x}",
            "tee_tcb_svn": quote.tee_tcb_svn.hex(),
            "fmspc": proof.platform.fmspc.hex(),
            "tcb_status": standing.status if standing else "",
            "tcb_because_of": standing.why if standing else "",
            "advisories": list(standing.advisories) if standing else [],
        },
    )


_NO_NONCE: Final = "no nonce was asked for, so the evidence may be an old one"


def _common(
    family: str,
    measurement: bytes,
    report_data: bytes,
    settings: AttestationSettings,
    nonce: bytes | None,
) -> list[Reason]:
    found = []
    short = "snp" if family == "sev-snp" else "tdx"
    if family not in settings.families:
        found.append(
            Reason(
                f"{short}.family-not-accepted",
                f"the evidence is of the family {family}, and only "
                f"{', '.join(settings.families) or 'none'} is accepted",
                "use a host of such a family, or add it to [attestation] families",
            )
        )
    if nonce is not None and report_data != nonce.ljust(NONCE_BYTES_MAX, b"\0"):
        found.append(
            Reason(
                f"{short}.nonce",
                f"the report data is {report_data.hex()[:32]}…, not the nonce that was asked for: "
                "the evidence is an old one, or another host's",
                AGAIN,
            )
        )
    if settings.measurements and measurement.hex() not in settings.measurements:
        found.append(
            Reason(
                f"{short}.measurement",
                f"what was launched measures {measurement.hex()[:32]}…, which is none of the "
                f"{len(settings.measurements)} that are accepted",
                "launch what was approved, or add it to [attestation] measurements",
            )
        )
    return found
