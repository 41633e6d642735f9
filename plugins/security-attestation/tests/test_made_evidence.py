"""Evidence of processors of our own make: what no real sample shows, one fault at a time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import attrs
import pytest
from novacron import ConfigError
from novacron_security_attestation import AttestationSettings, Collateral, Verdict, verify

NONCE = b"n" * 64


def codes(verdict: Verdict) -> list[str]:
    return [one.code for one in verdict.reasons]


# SEV-SNP.


def judged(
    amd: Any,
    now: datetime,
    *,
    collateral: Collateral | None = None,
    policy: dict[str, Any] | None = None,
    nonce: bytes | None = NONCE,
    **report: Any,
) -> Verdict:
    collateral = collateral or amd.collateral()
    settings = amd.settings(collateral, **(policy or {}))
    return verify(
        amd.report(**report), collateral=collateral, settings=settings, nonce=nonce, at=now
    )


@pytest.mark.parametrize("version", [2, 3, 5])
def test_a_sound_report_passes_in_each_known_version(amd: Any, now: datetime, version: int) -> None:
    verdict = judged(amd, now, version=version)
    assert (verdict.trusted, verdict.reasons) == (True, ())
    assert verdict.valid_until == now + timedelta(days=30)


@pytest.mark.parametrize(
    ("report", "wanted"),
    [
        ({"version": 4}, "snp.version"),
        ({"version": 6}, "snp.version"),
        ({"algorithm": 2}, "snp.algorithm"),
        ({"flags": 7 << 2}, "snp.unsigned"),
        ({"flags": 1 << 2}, "snp.no-certificate"),
        ({"flags": 2}, "snp.chip-masked"),
        ({"version": 3, "cpuid": bytes([0x19, 0x11, 0])}, "snp.wrong-family"),
        ({"tcb": bytes([3, 0, 0, 0, 0, 0, 21, 210])}, "snp.certificate-tcb"),
        ({"bits": 0x30000 | 1 << 19}, "snp.debug"),
        ({"bits": 0x30000 | 1 << 18}, "snp.migration-agent"),
        ({"vmpl": 2}, "snp.vmpl"),
        ({"nonce": b"o" * 64}, "snp.nonce"),
    ],
)
def test_a_report_is_refused(amd: Any, now: datetime, report: dict[str, Any], wanted: str) -> None:
    verdict = judged(amd, now, **report)
    assert codes(verdict) == [wanted]
    assert all(one.what and one.cure for one in verdict.reasons)


def test_a_report_signed_by_a_provider_needs_no_chip(amd: Any, now: datetime) -> None:
    collateral = amd.collateral(amd.leaf("VLEK"))
    verdict = judged(amd, now, collateral=collateral, flags=1 << 2 | 2)
    assert (verdict.trusted, verdict.claims["signed_by"]) == (True, "vlek")


def test_the_certificate_of_another_chip_is_refused_even_with_the_same_key(
    amd: Any, now: datetime
) -> None:
    collateral = amd.collateral(amd.leaf(chip=b"x" * 64))
    assert codes(judged(amd, now, collateral=collateral)) == ["snp.wrong-chip"]


def test_another_makers_chain_is_refused(amd: Any, other_amd: Any, now: datetime) -> None:
    theirs = Collateral(certificates=(amd.leaf(), other_amd.signing(), other_amd.root()))
    assert codes(judged(amd, now, collateral=theirs)) == ["snp.chain-signature"]


def test_another_familys_chain_is_refused(amd: Any, now: datetime) -> None:
    turin = amd.leaf(product="Turin", parts={"3.9": 0})
    verdict = judged(amd, now, collateral=amd.collateral(turin), version=3)
    assert codes(verdict) == ["snp.wrong-family"]


def test_a_root_that_is_not_pinned_is_refused(amd: Any, now: datetime) -> None:
    verdict = verify(amd.report(), collateral=amd.collateral(), nonce=NONCE, at=now)
    assert codes(verdict) == ["snp.root"]


def test_a_signing_key_that_may_not_sign_is_refused(amd: Any, now: datetime) -> None:
    certificates = (amd.leaf(), amd.signing(ca=False), amd.root())
    verdict = judged(amd, now, collateral=Collateral(certificates=certificates))
    assert codes(verdict) == ["snp.chain-authority"]


def test_a_revoked_signing_key_is_refused(amd: Any, now: datetime, make_crl: Any) -> None:
    revoked = amd.collateral(None, make_crl("ARK-Milan", amd.root_key, 7))
    assert codes(judged(amd, now, collateral=revoked)) == ["snp.revoked"]
    sound = amd.collateral(None, make_crl("ARK-Milan", amd.root_key, 8))
    verdict = judged(amd, now, collateral=sound)
    assert (verdict.trusted, verdict.notes) == (True, ())


def test_a_list_that_somebody_else_signed_is_refused(
    amd: Any, other_amd: Any, now: datetime, make_crl: Any
) -> None:
    forged = amd.collateral(None, make_crl("ARK-Milan", other_amd.root_key))
    assert codes(judged(amd, now, collateral=forged)) == ["snp.crl-signature"]


def test_all_objections_of_a_policy_are_told_at_once(amd: Any, now: datetime) -> None:
    policy = {
        "families": ["tdx"],
        "measurements": ["ab" * 48],
        "snp_minimum": {"snp": 23, "microcode": 211},
    }
    verdict = judged(amd, now, policy=policy, nonce=b"another")
    assert codes(verdict) == [
        *("snp.family-not-accepted", "snp.nonce", "snp.measurement"),
        *("snp.tcb-low", "snp.tcb-low"),
    ]


def test_an_approved_measurement_passes(amd: Any, now: datetime) -> None:
    assert judged(amd, now, policy={"measurements": [(b"m" * 48).hex()]}).trusted


# TDX.


def told(
    intel: Any,
    now: datetime,
    *,
    collateral: Collateral | None = None,
    policy: dict[str, Any] | None = None,
    nonce: bytes | None = NONCE,
    **quote: Any,
) -> Verdict:
    return verify(
        intel.quote(**quote),
        collateral=collateral or intel.collateral(),
        settings=intel.settings(**(policy or {})),
        nonce=nonce,
        at=now,
    )


@pytest.mark.parametrize("version", [4, 5])
def test_a_sound_quote_passes_by_the_default_policy(
    intel: Any, now: datetime, version: int
) -> None:
    verdict = told(intel, now, version=version)
    assert (verdict.trusted, verdict.reasons, verdict.notes) == (True, (), ())
    assert verdict.claims["tcb_status"] == "UpToDate"
    assert verdict.valid_until == now + timedelta(days=1)


@pytest.mark.parametrize(
    ("quote", "wanted"),
    [
        ({"attributes": 1}, "tdx.debug"),
        ({"attributes": 2}, "tdx.attributes"),
        ({"nonce": bytes(64)}, "tdx.nonce"),
        ({"bound": bytes(32)}, "tdx.qe-binding"),
        ({"qe_attributes": 0x17}, "tdx.qe-debug"),
        ({"qe_attributes": 0x11 | 0x20}, "tdx.qe-identity"),
        ({"qe_svn": 3}, "tdx.tcb-low"),
        ({"qe_svn": 1}, "tdx.tcb-low"),
        ({"svn": bytes([4, 1, 4])}, "tdx.tcb-low"),
        ({"svn": bytes([4, 7, 4])}, "tdx.module-unknown"),
        ({"chain": b""}, "tdx.chain"),
    ],
)
def test_a_quote_is_refused(intel: Any, now: datetime, quote: dict[str, Any], wanted: str) -> None:
    verdict = told(intel, now, **quote)
    assert codes(verdict) == [wanted]
    assert all(one.what and one.cure for one in verdict.reasons)


@pytest.mark.parametrize(
    ("statements", "wanted"),
    [
        (lambda i: (i.tcb_info("OutOfDate"), i.qe_identity()), "tdx.tcb-low"),
        (lambda i: (i.tcb_info("Revoked"), i.qe_identity()), "tdx.tcb-low"),
        (lambda i: (i.tcb_info("Splendid"), i.qe_identity()), "tdx.status"),
        (lambda i: (i.tcb_info(fmspc="000000000000"), i.qe_identity()), "tdx.wrong-fmspc"),
        (lambda i: (i.tcb_info(pceId="0001"), i.qe_identity()), "tdx.wrong-pce"),
        (lambda i: (i.tcb_info(id="SGX"), i.qe_identity()), "tdx.statement-version"),
        (lambda i: (i.tcb_info(), i.qe_identity(mrsigner="00" * 32)), "tdx.qe-identity"),
        (lambda i: (i.tcb_info(tcbLevels="none"), i.qe_identity()), "tdx.statement-form"),
        (lambda i: (i.tcb_info(), i.qe_identity(mrsigner="zz")), "tdx.statement-form"),
        (lambda i: (b"{}",), "tdx.statement-form"),
        (lambda i: (i.tcb_info(),), "tdx.no-collateral"),
    ],
)
def test_statements_decide(
    intel: Any, now: datetime, statements: Callable[[Any], tuple[bytes, ...]], wanted: str
) -> None:
    verdict = told(intel, now, collateral=intel.collateral(*statements(intel)))
    assert codes(verdict) == [wanted]


def test_a_platform_below_the_first_level_gets_the_second_ones_status(
    intel: Any, now: datetime
) -> None:
    older = intel.pck_chain(components=4)
    assert codes(told(intel, now, chain=older)) == ["tdx.tcb-low"]
    accepted = told(intel, now, chain=older, policy={"tdx_statuses": ["UpToDate", "OutOfDate"]})
    assert (accepted.trusted, accepted.claims["advisories"]) == (True, ["INTEL-SA-1"])


def test_the_worst_of_platform_and_module_counts(intel: Any, now: datetime) -> None:
    collateral = intel.collateral(intel.tcb_info("ConfigurationNeeded"), intel.qe_identity())
    verdict = told(intel, now, collateral=collateral, svn=bytes([3, 1, 4]))
    assert verdict.claims["tcb_status"] == "OutOfDateConfigurationNeeded"


def test_statements_of_another_time_are_refused(intel: Any, now: datetime) -> None:
    for days in (-2, 2):
        collateral = intel.collateral(crls=())
        verdict = verify(
            intel.quote(),
            collateral=collateral,
            settings=intel.settings(),
            at=now + timedelta(days=days),
        )
        assert codes(verdict) == ["tdx.statement-expired"]


def test_a_revoked_platform_and_a_revoked_signer_are_refused(
    intel: Any, now: datetime, make_crl: Any
) -> None:
    root = make_crl("Root", intel.root_key)
    platform = make_crl("Platform CA", intel.authority_key, 99)
    assert codes(told(intel, now, collateral=intel.collateral(crls=(root, platform)))) == [
        "tdx.revoked"
    ]
    lists = (make_crl("Root", intel.root_key, 55), make_crl("Platform CA", intel.authority_key))
    collateral = intel.collateral(crls=lists, signer={"serial": 55})
    assert codes(told(intel, now, collateral=collateral)) == ["tdx.revoked"]


def test_without_revocation_lists_a_platform_is_not_trusted(intel: Any, now: datetime) -> None:
    assert codes(told(intel, now, collateral=intel.collateral(crls=()))) == ["tdx.no-crl"]


def test_a_quote_whose_attestation_key_is_another_ones_is_refused(
    intel: Any, now: datetime
) -> None:
    quote = bytearray(intel.quote())
    quote[48 + 584 + 4] ^= 1
    verdict = verify(bytes(quote), settings=intel.settings(), at=now)
    assert codes(verdict) == ["tdx.signature"]


@pytest.mark.parametrize(
    ("at", "value", "wanted"),
    [
        (0, 3, "tdx.version"),
        (2, 3, "tdx.algorithm"),
        (4, 0, "tdx.tee"),
        (12, 0, "tdx.qe-vendor"),
        (48 + 584 + 4 + 128, 5, "tdx.certification"),
        (48 + 584 + 4 + 128 + 6 + 384 + 64 + 2 + 32, 1, "tdx.no-chain"),
        (48 + 584, 255, "tdx.length"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    intel: Any, now: datetime, at: int, value: int, wanted: str
) -> None:
    quote = bytearray(intel.quote())
    quote[at] = value
    assert codes(verify(bytes(quote), settings=intel.settings(), at=now)) == [wanted]


# Settings.


@pytest.mark.parametrize(
    "wrong",
    [
        {"families": ["sev"]},
        {"measurements": ["AB"]},
        {"snp_minimum": {"speed": 1}},
        {"snp_minimum": {"snp": 300}},
        {"tdx_statuses": ["Fine"]},
        {"roots": ["00"]},
        {"max_vmpl": 4},
        {"max_age_s": 0.0},
    ],
)
def test_a_policy_that_could_never_hold_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))) as caught:
        AttestationSettings(**wrong)
    assert caught.value.hint


def test_a_verdict_is_json_like(amd: Any, now: datetime) -> None:
    verdict = judged(amd, now)
    assert verdict.to_json()["trusted"] is True
    assert attrs.evolve(verdict, genuine=False).to_json()["trusted"] is False
