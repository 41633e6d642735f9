"""The evidence of other nodes that an operator admitted, and what the hooks refuse without it.

Per peer one file: the evidence, its collateral, the nonce and when it was admitted. It is judged
anew each time that it counts, so that a certificate that ran out or a policy that became stricter
takes effect at once.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import msgspec
from attrs import define
from cryptography.hazmat.primitives.serialization import Encoding
from novacron import ConfigError, Identity, MigrationPlan, NotFound, Refusal

from novacron_security_attestation._collateral import Collateral, gather, join
from novacron_security_attestation._files import replace
from novacron_security_attestation._policy import AttestationSettings
from novacron_security_attestation._reasons import Reason
from novacron_security_attestation._verify import EVIDENCE_BYTES_MAX, Verdict, verify

FOLDER: Final = "security-attestation"
FILE_BYTES_MAX: Final = 16 << 20
FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    peer: str
    admitted: datetime
    evidence: str
    nonce: str
    collateral: list[str]
    fingerprint: str = ""


def bound_to(nonce: bytes, fingerprint: str) -> bytes:
    """What a host puts into its report data so that its evidence is of one certificate alone.

    Args:
        fingerprint: SHA-256 of the certificate, hex. Raises ConfigError if it is none.
    """
    if not FINGERPRINT.fullmatch(fingerprint):
        raise ConfigError(
            f"{fingerprint[:80]!r} is no fingerprint of a certificate",
            hint="give its SHA-256 (`openssl x509 -noout -fingerprint -sha256 -in cert.pem`)",
        )
    return hashlib.sha512(nonce + bytes.fromhex(fingerprint)).digest()


@define
class Admitted:
    """The folder of admitted evidence.

    Args:
        state_dir: The node's.
    """

    state_dir: Path

    def _path(self, peer: str) -> Path:
        if not NAME.fullmatch(peer):
            raise ConfigError(f"{peer!r} is no node name", hint=f"use {NAME.pattern}")
        return self.state_dir / FOLDER / f"{peer}.json"

    def peers(self) -> list[str]:
        return sorted(path.stem for path in (self.state_dir / FOLDER).glob("*.json"))

    def admit(
        self,
        peer: str,
        evidence: bytes,
        collateral: Collateral,
        nonce: bytes,
        now: datetime,
        fingerprint: str = "",
    ) -> None:
        """Keep evidence for a peer, in place of what was there. It was judged before; with a
        fingerprint it counts for the peer only with that certificate."""
        parts = [one.public_bytes(Encoding.DER) for one in collateral.certificates]
        parts += [one.public_bytes(Encoding.DER) for one in collateral.crls]
        parts += list(collateral.statements)
        record = _Record(
            peer=peer,
            admitted=now,
            evidence=base64.b64encode(evidence).decode(),
            nonce=nonce.hex(),
            collateral=[base64.b64encode(part).decode() for part in parts],
            fingerprint=fingerprint,
        )
        path = self._path(peer)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace(path, msgspec.json.encode(record))

    def forget(self, peer: str) -> None:
        """Raises NotFound."""
        try:
            self._path(peer).unlink()
        except FileNotFoundError:
            raise NotFound(
                f"no evidence of {peer!r} was admitted", hint="see `novacron attestation list`"
            ) from None

    def judge(
        self, peer: str, settings: AttestationSettings, now: datetime, fingerprint: str = ""
    ) -> Verdict:
        """What a peer's evidence is worth now; one without any is not trusted.

        Args:
            fingerprint: Of the certificate that the peer has just proved, if it is there.
        """
        try:
            record, evidence, collateral = self._read(peer)
        except FileNotFoundError:
            return _untrusted(
                "peer.not-attested",
                f"no evidence of {peer!r} was admitted here",
                f"get fresh evidence from it and run `novacron attestation admit {peer} FILE "
                "--nonce HEX`",
            )
        except (ConfigError, msgspec.MsgspecError, ValueError, OSError) as error:
            return _untrusted(
                "peer.record-damaged",
                f"what was admitted of {peer!r} cannot be read: {error}",
                f"admit its evidence again (`novacron attestation admit {peer} FILE`)",
            )
        if fingerprint and record.fingerprint and fingerprint.lower() != record.fingerprint:
            return _untrusted(
                "peer.other-certificate",
                f"the evidence of {peer!r} is bound to the certificate {record.fingerprint[:16]}…, "
                f"and it came with {fingerprint[:16]}…",
                "if it renewed its certificate, ask it for evidence of the new one and admit that",
            )
        age = now - record.admitted
        if not timedelta(minutes=-5) <= age <= timedelta(seconds=settings.max_age_s):
            return _untrusted(
                "peer.evidence-old",
                f"the evidence of {peer!r} was admitted at {record.admitted:%Y-%m-%d %H:%M} UTC, "
                f"and counts for {settings.max_age_s:.0f} s",
                "ask the host with a fresh nonce, and admit what it answers",
            )
        nonce = bytes.fromhex(record.nonce) or None
        return verify(evidence, collateral=collateral, settings=settings, nonce=nonce, at=now)

    def _read(self, peer: str) -> tuple[_Record, bytes, Collateral]:
        with self._path(peer).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ValueError(f"it has more than {FILE_BYTES_MAX} bytes")
        record = msgspec.json.decode(data, type=_Record)
        if record.peer != peer or record.admitted.tzinfo is None:
            raise ValueError("it is another peer's, or has no time")
        evidence = base64.b64decode(record.evidence, validate=True)
        if len(evidence) > EVIDENCE_BYTES_MAX:
            raise ValueError("its evidence is too long")
        bytes.fromhex(record.nonce)
        parts = [base64.b64decode(part, validate=True) for part in record.collateral]
        return record, evidence, join(gather(part, "its collateral") for part in parts)


def _untrusted(code: str, what: str, cure: str) -> Verdict:
    return Verdict(family="", genuine=False, reasons=(Reason(code, what, cure),))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def refuse_migration(
    plan: MigrationPlan, settings: AttestationSettings, admitted: Admitted, now: datetime
) -> Refusal | None:
    """Whether the plan's machine may go to its target."""
    machine = plan.machine
    if not (
        _matches(machine.name, settings.machines) or _matches(machine.tenant, settings.tenants)
    ):
        return None
    verdict = admitted.judge(plan.target, settings, now)
    if verdict.trusted:
        return None
    why = "; ".join(f"{one.what} [{one.code}]" for one in verdict.reasons)
    return Refusal(
        reason=f"{machine.name} may move to attested hosts only, and {plan.target} is none: {why}",
        hint=verdict.reasons[0].cure,
    )


def refuse_peer(
    identity: Identity, settings: AttestationSettings, admitted: Admitted, now: datetime
) -> Refusal | None:
    """Whether a node gets a stream."""
    peer = identity.node
    if not _matches(peer, settings.peers):
        return None
    verdict = admitted.judge(peer, settings, now, identity.fingerprint)
    if verdict.trusted:
        return None
    why = "; ".join(f"{one.what} [{one.code}]" for one in verdict.reasons)
    return Refusal(reason=f"{peer} is not attested: {why}", hint=verdict.reasons[0].cure)


def utc_now() -> datetime:
    return datetime.now(UTC)
