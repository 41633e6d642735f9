"""The section ``[attestation]``: what is believed of a host, and which machines need such hosts."""

from __future__ import annotations

import re
from typing import Final

from attrs import field, frozen
from novacron import ConfigError

SECTION: Final = "attestation"
FAMILIES: Final = ("sev-snp", "tdx")
SNP_PARTS: Final = ("fmc", "bootloader", "tee", "snp", "microcode")
TCB_STATUSES: Final = (
    *("UpToDate", "SWHardeningNeeded", "ConfigurationNeeded"),
    *("ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MEASUREMENT: Final = re.compile(r"[0-9a-f]{96}")


@frozen(kw_only=True)
class AttestationSettings:
    """The section ``[attestation]``.

    Attributes:
        machines: Patterns of the names of machines that may move to attested hosts only.
        tenants: Patterns of the tenants whose machines may move to attested hosts only.
        peers: Patterns of the names of nodes that get no stream unless they are attested.
        max_age_s: For how long admitted evidence counts; its host must be asked again after that.
        families: What is accepted: ``sev-snp``, ``tdx``.
        measurements: The launch measurements that are accepted (SEV-SNP: MEASUREMENT, TDX: MRTD;
            96 hex digits each); none means any.
        allow_debug: Accept evidence of a guest whose memory its host may read.
        allow_migration_agent: Accept an SEV-SNP policy that lets an agent move the guest.
        max_vmpl: The least privileged level that may have asked for an SEV-SNP report (0 to 3).
        snp_minimum: The least security version by part: ``fmc`` (Turin and later),
            ``bootloader``, ``tee``, ``snp``, ``microcode``.
        tdx_statuses: What Intel's TCB information may say of the platform.
        require_collateral: Refuse TDX evidence without TCB information, the enclave's identity and
            both revocation lists.
        exact_length: Refuse unsigned bytes behind a quote; otherwise they are ignored and said.
        roots: SHA-256 (hex) of root certificates that are trusted beside AMD's and Intel's.
    """

    machines: list[str] = field(factory=list)
    tenants: list[str] = field(factory=list)
    peers: list[str] = field(factory=list)
    max_age_s: float = 86400.0
    families: list[str] = field(factory=lambda: list(FAMILIES))
    measurements: list[str] = field(factory=list)
    allow_debug: bool = False
    allow_migration_agent: bool = False
    max_vmpl: int = 0
    snp_minimum: dict[str, int] = field(factory=dict)
    tdx_statuses: list[str] = field(factory=lambda: ["UpToDate"])
    require_collateral: bool = True
    exact_length: bool = False
    roots: list[str] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        _each("families", self.families, FAMILIES)
        _each("tdx_statuses", self.tdx_statuses, TCB_STATUSES)
        _each("snp_minimum", list(self.snp_minimum), SNP_PARTS)
        for part, version in self.snp_minimum.items():
            if not 0 <= version <= 255:
                _refuse("snp_minimum", f"{part} = {version}", "a number from 0 to 255")
        for one in self.measurements:
            if not _MEASUREMENT.fullmatch(one):
                _refuse("measurements", repr(one), "96 hex digits, in lower case")
        for one in self.roots:
            if not _SHA256.fullmatch(one):
                _refuse("roots", repr(one), "64 hex digits, in lower case")
        if not 0 <= self.max_vmpl <= 3:
            _refuse("max_vmpl", str(self.max_vmpl), "a number from 0 to 3")
        if self.max_age_s <= 0:
            _refuse("max_age_s", str(self.max_age_s), "a number of seconds above 0")


def _each(key: str, values: list[str], known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            _refuse(key, repr(value), f"one of {', '.join(known)}")


def _refuse(key: str, value: str, wanted: str) -> None:
    raise ConfigError(f"[{SECTION}] {key} has {value}", hint=f"say {wanted}")
