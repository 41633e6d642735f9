"""Fuzzes reports, quotes and collateral: ``python fuzz_evidence.py --seconds 60 [--seed 1]``.

Invariant: whatever bytes come as evidence or as collateral, `verify` gives a verdict that is
genuine or has a reason, and `gather` gives collateral or a ConfigError; nothing else is raised,
memory stays bounded, and evidence of which a signed byte was changed is never genuine.

Real evidence is changed at random. A seed replays any failure.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from novacron import ConfigError
from novacron_security_attestation import AttestationSettings, Collateral, gather, verify
from novacron_security_attestation._collateral import join

MEMORY_MAX: Final = 256 << 20
EVIDENCE: Final = Path(__file__).parent / "evidence"
AT: Final = datetime(2026, 2, 10, tzinfo=UTC)
LENIENT: Final = AttestationSettings(allow_debug=True, require_collateral=False)
# How much of each is signed, or read as if it were.
SOUND: Final = {"report_milan.bin": 0x4A0, "quote_v5_sample.dat": 5006}


def changed(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(5):
            case 0:
                made[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del made[at : at + rng.randint(1, 64)]
            case 2:
                made[at:at] = rng.randbytes(rng.randint(1, 64))
            case 3:
                made[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
            case _:
                if at < len(made):
                    made[at] ^= 1 << rng.randrange(8)
    return bytes(made)


def check(rng: random.Random, files: dict[str, bytes]) -> None:
    name = rng.choice(list(SOUND))
    sound = files[name]
    made = changed(sound, rng)
    parts: list[Collateral] = []
    for other in (
        "vcek_milan.cer",
        "tcb_signing_chain_2025.pem",
        "sample_tcbinfo_response_v5.json",
    ):
        data = changed(files[other], rng) if rng.random() < 0.2 else files[other]
        try:
            parts.append(gather(data, other))
        except ConfigError:
            continue
    verdict = verify(made, collateral=join(parts), settings=LENIENT, at=AT)
    assert verdict.genuine or len(verdict.reasons) == 1
    assert verdict.to_json()["trusted"] is verdict.trusted
    if made[: SOUND[name]] != sound[: SOUND[name]]:
        assert not verdict.genuine, "changed evidence passed for genuine"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    files = {path.name: path.read_bytes() for path in EVIDENCE.iterdir()}
    check(random.Random(0), files)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = time.monotonic() + options.seconds
    rounds = 0
    while time.monotonic() < ends:
        try:
            check(random.Random(f"{options.seed}-{rounds}"), files)
        except Exception:
            sys.stderr.write(f"--seed {options.seed}, round {rounds} broke the invariant\n")
            raise
        rounds += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY_MAX, f"memory grew by {grown} bytes"
    sys.stdout.write(f"seed {options.seed}: {rounds} rounds held\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
