"""Real evidence of confidential hosts, each fault played: what passes, what is refused and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from attrs import asdict, frozen
from novacron import NotFound
from novacron_security_attestation import (
    AttestationSettings,
    Collateral,
    Verdict,
    read_collateral,
    verify,
)

AT: Final = datetime(2026, 2, 10, tzinfo=UTC)
LATE: Final = datetime(2035, 1, 1, tzinfo=UTC)
OPEN: Final = AttestationSettings(allow_debug=True, require_collateral=False)
SNP_MIN: Final = AttestationSettings(allow_debug=True, snp_minimum={"microcode": 200})
FILES: Final = {
    "report": "sev_snp/report_milan.bin",
    "vcek": "sev_snp/vcek_milan.cer",
    "other": "sev_snp/vcek_turin.der",
    "genoa": "sev_snp/ask_ark_genoa.pem",
    "v4": "tdx/tdx_prod_quote_SPR_E4.dat",
    "v5": "tdx/quote_v5_sample.dat",
    "tdreport": "tdx/report.dat",
}


@frozen(kw_only=True)
class Case:
    """One question and its answer.

    Attributes:
        wanted: What must come out: ``trusted``, or a reason's code.
        got: What came out.
    """

    what: str
    wanted: str
    got: str

    @property
    def right(self) -> bool:
        return self.wanted == self.got

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "right": self.right}


@frozen(kw_only=True)
class Flips:
    """Each byte of some evidence changed in one bit, one after the other.

    Attributes:
        passed: How many changed ones were taken for genuine: must be 0.
    """

    what: str
    changed: int
    passed: int
    per_s: float


def read_files(folder: Path) -> dict[str, bytes]:
    """Raises NotFound, naming the file that is missing."""
    found = {}
    for name, file in FILES.items():
        path = folder / file
        if not path.is_file():
            raise NotFound(
                f"there is no {path}",
                hint="name a folder with sev_snp/ and tdx/ as google/go-sev-guest and "
                "google/go-tdx-guest have their test data",
            )
        found[name] = path.read_bytes()
    return found


def cases(folder: Path) -> Iterator[Case]:
    """Everything that a verifier has to show on this evidence."""
    data = read_files(folder)
    own = read_collateral([folder / FILES["vcek"]])
    turin = read_collateral([folder / FILES["other"]])
    genoa = read_collateral([folder / FILES["vcek"], folder / FILES["genoa"]])
    nonce = data["report"][0x50:0x90]
    quote_nonce = {"v4": data["v4"][568:632], "v5": data["v5"][574:638]}

    def case(what: str, wanted: str, evidence: bytes, **how: Any) -> Case:
        return Case(what=what, wanted=wanted, got=_short(_verdict(evidence, **how)))

    yield case("SEV-SNP report, genuine", "trusted", data["report"], using=own, nonce=nonce)
    yield case("… expired", "snp.certificate-expired", data["report"], using=own, at=LATE)
    yield case("… another chip's certificate", "snp.signature", data["report"], using=turin)
    yield case("… another family's chain", "snp.wrong-family", data["report"], using=genoa)
    yield case("… another nonce", "snp.nonce", data["report"], using=own, nonce=b"another")
    yield case("… TCB below the policy", "snp.tcb-low", data["report"], using=own, policy=SNP_MIN)
    debug = AttestationSettings()
    yield case("… debugging forbidden", "snp.debug", data["report"], using=own, policy=debug)
    yield case("… cut", "evidence.unknown", data["report"][:-1], using=own)
    for name in ("v4", "v5"):
        quote, asked = data[name], quote_nonce[name]
        title = f"TDX quote of version {quote[0]}"
        yield case(f"{title}, genuine", "trusted", quote, nonce=asked)
        yield case("… expired", "tdx.certificate-expired", quote, at=LATE)
        yield case("… another nonce", "tdx.nonce", quote, nonce=b"another")
        strict = AttestationSettings()
        yield case("… collateral missing", "tdx.no-collateral", quote, policy=strict)
        yield case("… cut within", "tdx.length", quote[:3000])
        yield case("… of version 3", "tdx.version", b"\x03" + quote[1:])
    yield case("TDREPORT", "tdx.report-is-no-quote", data["tdreport"])


def _verdict(
    evidence: bytes,
    *,
    using: Collateral | None = None,
    policy: AttestationSettings = OPEN,
    nonce: bytes | None = None,
    at: datetime = AT,
) -> Verdict:
    return verify(evidence, collateral=using, settings=policy, nonce=nonce, at=at)


def _short(verdict: Verdict) -> str:
    return "trusted" if verdict.trusted else verdict.reasons[0].code


def flips(folder: Path) -> Iterator[Flips]:
    """Change one bit of each signed byte (and of each byte read as if it were signed)."""
    data = read_files(folder)
    own = read_collateral([folder / FILES["vcek"]])
    yield _flip("SEV-SNP report", data["report"], lambda made: _verdict(made, using=own))
    yield _flip("TDX quote of version 5", data["v5"], _verdict)


def _flip(what: str, sound: bytes, judge: Callable[[bytes], Verdict]) -> Flips:
    passed = 0
    began = time.process_time()
    for place in range(len(sound)):
        made = bytearray(sound)
        made[place] ^= 1 << place % 8
        passed += judge(bytes(made)).genuine
    took = max(time.process_time() - began, 1e-6)
    return Flips(what=what, changed=len(sound), passed=passed, per_s=len(sound) / took)


def rates(folder: Path, runs: int = 100) -> dict[str, float]:
    """Verifications a second, of CPU time."""
    data = read_files(folder)
    own = read_collateral([folder / FILES["vcek"]])
    found = {}
    for what, evidence, using in (("sev-snp", data["report"], own), ("tdx", data["v5"], None)):
        began = time.process_time()
        for _ in range(runs):
            _verdict(evidence, using=using)
        found[what] = runs / max(time.process_time() - began, 1e-6)
    return found
