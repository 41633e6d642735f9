"""The makers' own evidence: it passes at its time, and each fault has its own refusal."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_security_attestation import (
    AttestationSettings,
    Collateral,
    Verdict,
    gather,
    verify,
)
from novacron_security_attestation._collateral import join, own_certificates

Read = Callable[[str], bytes]
IN_2023 = datetime(2023, 6, 20, tzinfo=UTC)
IN_2026 = datetime(2026, 2, 10, tzinfo=UTC)
LENIENT = AttestationSettings(
    allow_debug=True, require_collateral=False, tdx_statuses=["UpToDate", "OutOfDate"]
)
NONCE_MILAN = bytes([1, 2, 3, 4, 5])


def files(read: Read, *names: str) -> Collateral:
    return join(gather(read(name), name) for name in names)


def codes(verdict: Verdict) -> list[str]:
    return [one.code for one in verdict.reasons]


@pytest.fixture
def milan(evidence: Read) -> Collateral:
    return files(evidence, "vcek_milan.cer")


def test_the_milan_report_passes_where_debugging_is_allowed(
    evidence: Read, milan: Collateral
) -> None:
    verdict = verify(
        evidence("report_milan.bin"),
        collateral=milan,
        settings=LENIENT,
        nonce=NONCE_MILAN,
        at=IN_2026,
    )
    assert (verdict.trusted, verdict.reasons) == (True, ())
    assert verdict.claims["product"] == "Milan"
    assert verdict.claims["reported_tcb"] == {"bootloader": 2, "tee": 0, "snp": 5, "microcode": 68}
    assert verdict.valid_until == datetime(2029, 9, 24, 0, 55, 28, tzinfo=UTC)


def test_the_milan_report_is_refused_by_the_default_policy_for_debugging_alone(
    evidence: Read, milan: Collateral
) -> None:
    verdict = verify(evidence("report_milan.bin"), collateral=milan, nonce=NONCE_MILAN, at=IN_2026)
    assert (verdict.genuine, verdict.trusted, codes(verdict)) == (True, False, ["snp.debug"])


@pytest.mark.parametrize("family", ["genoa", "turin"])
def test_the_milan_report_is_refused_with_another_familys_chain(
    evidence: Read, milan: Collateral, family: str
) -> None:
    chain = [one for one in own_certificates() if family in str(one.subject).lower()]
    assert len(chain) == 2
    given = Collateral(certificates=(*milan.certificates, *chain))
    verdict = verify(evidence("report_milan.bin"), collateral=given, settings=LENIENT, at=IN_2026)
    assert codes(verdict) == ["snp.wrong-family"]


@pytest.mark.parametrize(
    ("names", "at", "nonce", "wanted"),
    [
        (["vcek_milan.cer"], datetime(2029, 10, 1, tzinfo=UTC), None, "snp.certificate-expired"),
        (
            ["vcek_milan.cer"],
            datetime(2022, 9, 1, tzinfo=UTC),
            None,
            "snp.certificate-not-yet-valid",
        ),
        (["vcek_turin.der"], IN_2026, None, "snp.signature"),
        ([], IN_2026, None, "snp.no-certificate"),
        (["vcek_milan.cer"], IN_2026, b"another", "snp.nonce"),
    ],
)
def test_the_milan_report_is_refused(
    evidence: Read, names: list[str], at: datetime, nonce: bytes | None, wanted: str
) -> None:
    verdict = verify(
        evidence("report_milan.bin"),
        collateral=files(evidence, *names),
        settings=LENIENT,
        nonce=nonce,
        at=at,
    )
    assert codes(verdict) == [wanted]
    assert verdict.reasons[0].cure


def test_the_milan_report_is_refused_below_the_least_tcb(evidence: Read, milan: Collateral) -> None:
    policy = AttestationSettings(allow_debug=True, snp_minimum={"snp": 6, "microcode": 68})
    verdict = verify(evidence("report_milan.bin"), collateral=milan, settings=policy, at=IN_2026)
    assert codes(verdict) == ["snp.tcb-low"]
    assert "snp has version 5, below 6" in verdict.reasons[0].what


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(bit=st.integers(0, 0x4A0 * 8 - 1))
def test_no_bit_of_a_report_can_be_flipped(evidence: Read, bit: int) -> None:
    changed = bytearray(evidence("report_milan.bin"))
    changed[bit // 8] ^= 1 << bit % 8
    verdict = verify(
        bytes(changed),
        collateral=files(evidence, "vcek_milan.cer"),
        settings=LENIENT,
        at=IN_2026,
    )
    assert not verdict.genuine
    assert len(verdict.reasons) == 1


COLLATERAL_2023 = (
    *("pckcrl.der", "rootcrl.der", "tcb_signing_chain.pem"),
    *("sample_tcbInfo_response.json", "sample_qeIdentity_response.json"),
)
COLLATERAL_2026 = ("tcb_signing_chain_2025.pem", "sample_tcbinfo_response_v5.json")


def test_the_production_quote_is_genuine_and_below_the_levels_that_intel_names(
    evidence: Read,
) -> None:
    verdict = verify(
        evidence("tdx_prod_quote_SPR_E4.dat"),
        collateral=files(evidence, *COLLATERAL_2023),
        at=IN_2023,
    )
    assert (verdict.genuine, codes(verdict)) == (True, ["tdx.tcb-low"])
    assert verdict.claims["tcb_status"] == "NotSupported"
    assert verdict.claims["fmspc"] == "50806f000000"


def test_the_production_quote_passes_where_the_tcb_is_not_asked(evidence: Read) -> None:
    quote = evidence("tdx_prod_quote_SPR_E4.dat")
    verdict = verify(quote, settings=LENIENT, nonce=quote[48 + 520 : 48 + 584], at=IN_2026)
    assert (verdict.trusted, verdict.reasons) == (True, ())
    assert any("39 bytes behind the quote" in note for note in verdict.notes)
    strict = AttestationSettings(require_collateral=False, exact_length=True)
    assert codes(verify(quote, settings=strict, at=IN_2026)) == ["tdx.trailing"]


def test_the_quote_of_version_5_is_up_to_date_by_intels_statement_of_february_2026(
    evidence: Read,
) -> None:
    verdict = verify(
        evidence("quote_v5_sample.dat"),
        collateral=files(evidence, *COLLATERAL_2026),
        settings=AttestationSettings(require_collateral=False),
        at=IN_2026,
    )
    assert (verdict.trusted, verdict.claims["tcb_status"]) == (True, "UpToDate")
    assert any("identity" in note for note in verdict.notes)


def test_the_quote_of_version_5_needs_all_collateral_by_the_default_policy(evidence: Read) -> None:
    verdict = verify(evidence("quote_v5_sample.dat"), at=IN_2026)
    assert codes(verdict) == ["tdx.no-collateral", "tdx.no-crl"]


@pytest.mark.parametrize(
    ("names", "at", "wanted"),
    [
        (COLLATERAL_2023, IN_2023, "tdx.certificate-not-yet-valid"),
        (COLLATERAL_2026, datetime(2033, 2, 1, tzinfo=UTC), "tdx.certificate-expired"),
        (COLLATERAL_2026, datetime(2026, 4, 1, tzinfo=UTC), "tdx.statement-expired"),
        (
            ("tcb_signing_chain.pem", COLLATERAL_2026[1]),
            IN_2026,
            "tdx.certificate-expired",
        ),
        ((COLLATERAL_2026[1],), IN_2026, "tdx.no-signer"),
        (("pckcrl.der",), IN_2026, "tdx.crl-expired"),
    ],
)
def test_the_quote_of_version_5_is_refused(
    evidence: Read, names: tuple[str, ...], at: datetime, wanted: str
) -> None:
    verdict = verify(
        evidence("quote_v5_sample.dat"),
        collateral=files(evidence, *names),
        settings=LENIENT,
        at=at,
    )
    assert codes(verdict) == [wanted]


def test_the_tcb_information_of_another_platform_is_refused(evidence: Read) -> None:
    verdict = verify(
        evidence("tdx_prod_quote_SPR_E4.dat"),
        collateral=files(evidence, *COLLATERAL_2026),
        settings=LENIENT,
        at=IN_2026,
    )
    assert codes(verdict) == ["tdx.wrong-fmspc"]


def test_a_flipped_byte_of_intels_statement_is_refused(evidence: Read) -> None:
    names = (COLLATERAL_2026[0],)
    statement = evidence(COLLATERAL_2026[1]).replace(b'"svn":4', b'"svn":3', 1)
    verdict = verify(
        evidence("quote_v5_sample.dat"),
        collateral=join([files(evidence, *names), gather(statement, "changed")]),
        settings=LENIENT,
        at=IN_2026,
    )
    assert codes(verdict) == ["tdx.statement-signature"]


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(bit=st.integers(0, 5006 * 8 - 1))
def test_no_bit_of_a_quote_can_be_flipped(evidence: Read, bit: int) -> None:
    changed = bytearray(evidence("quote_v5_sample.dat"))
    changed[bit // 8] ^= 1 << bit % 8
    verdict = verify(bytes(changed), settings=LENIENT, at=IN_2026)
    assert not verdict.genuine, f"byte {bit // 8}"
    assert len(verdict.reasons) == 1


@pytest.mark.parametrize("name", ["report_milan.bin", "quote_v5_sample.dat"])
def test_evidence_that_is_cut_anywhere_is_refused(evidence: Read, name: str) -> None:
    data = evidence(name)
    for end in [*range(0, len(data), 97), len(data) - 1]:
        assert not verify(data[:end], settings=LENIENT, at=IN_2026).genuine


def test_a_tdreport_is_refused_by_name(evidence: Read) -> None:
    assert codes(verify(evidence("report.dat"))) == ["tdx.report-is-no-quote"]


def test_something_else_is_refused_by_name() -> None:
    assert codes(verify(b"hello")) == ["evidence.unknown"]
