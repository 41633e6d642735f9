"""Fuzzes models, tables and quarantine files: ``python fuzz_threats.py --seconds 60 [--seed 1]``.

Invariant: whatever bytes come as a model, a table or a quarantine file, they are read or refused
with a ValueError or a ConfigError, a model that is read judges a record within bounded time, and
memory stays bounded. Nothing else is raised.

Sound files are changed at random. A seed replays any failure.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from novacron import ConfigError
from novacron_security_threats import Detector, Table, parse_table, train
from novacron_security_threats._quarantine import Register, utc_now

MEMORY_MAX: Final = 256 << 20
COLUMNS: Final = ("service", "bytes", "rate")


def sound_files(folder: Path) -> dict[str, bytes]:
    rows = [["web" if n % 3 else "dns", str(n * 37 % 900), f"0.{n % 7}"] for n in range(120)]
    labels = ["flood" if n % 4 == 0 else "normal" for n in range(120)]
    train(Table(COLUMNS, rows), labels, "normal").save(folder / "model")
    register = Register(folder)
    for name in ("eve", "mallory"):
        register.quarantine(name, by="operator", reason="x", now=utc_now(), hold_s=None)
    lines = [",".join(row) for row in [list(COLUMNS), *rows[:20]]]
    return {
        "model": (folder / "model").read_bytes(),
        "quarantine": (folder / "security-threats" / "quarantine.json").read_bytes(),
        "table": "\n".join(lines).encode(),
    }


def changed(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(4):
            case 0:
                made[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del made[at : at + rng.randint(1, 64)]
            case 2:
                made[at:at] = rng.randbytes(rng.randint(1, 16))
            case _:
                made[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
    return bytes(made)


def check(rng: random.Random, files: dict[str, bytes], folder: Path) -> None:
    with contextlib.suppress(ValueError, ConfigError):
        model = Detector.decode(changed(files["model"], rng))
        model.explain(Table(COLUMNS, [["web", "7", "0.1"]]))
    with contextlib.suppress(ConfigError):
        parse_table(changed(files["table"], rng), "a table")
    (folder / "security-threats" / "quarantine.json").write_bytes(changed(files["quarantine"], rng))
    with contextlib.suppress(ConfigError):
        Register(folder).find("eve", utc_now())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = sound_files(folder)
        check(random.Random(0), files, folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ends = time.monotonic() + options.seconds
        rounds = 0
        while time.monotonic() < ends:
            try:
                check(random.Random(f"{options.seed}-{rounds}"), files, folder)
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
