"""Feeds hostile payloads and offers: ``python fuzz_hde_decoder.py --seconds 60 [--seed 1]``.

The invariant: a payload gives a batch of at most ``BATCH_BYTES_MAX`` or a ProtocolError, an offer
is taken or gives a ProtocolError, and memory stays bounded. Prints executions and how memory grew;
a failure prints the payloads since the session began and the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from attrs import evolve, frozen
from novacron import BATCH_BYTES_MAX, Batch, CodecSession, NodeFacts, ProtocolError
from novacron_compression_hde import HdeCompression, HdeDecoder, HdeEncoder, Settings

_PAGE: Final = 512
_INTERESTING: Final = (0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 22, (1 << 22) + 1, 0xFFFFFFFF)
_SESSION: Final = CodecSession(
    session="fuzz",
    machine="m",
    driver="d",
    peer="p",
    tenant="",
    memory_bytes=8 << 20,
    role="source",
)


@frozen(kw_only=True)
class Report:
    """What a run did: how many payloads, how many of them still gave a batch, memory's peak."""

    executions: int
    accepted: int
    growth_bytes: int


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _stream(rng: random.Random, encoder: HdeEncoder) -> list[bytes]:
    """Sound payloads of one session: every rung, and batches that take none."""
    memory = [rng.randbytes(_PAGE) for _ in range(40)]
    payloads = []
    for _ in range(rng.randrange(1, 6)):
        chosen = [rng.randrange(40) for _ in range(rng.randrange(1, 20))]
        for number in chosen:
            kind = rng.randrange(5)
            if kind == 0:
                memory[number] = bytes([rng.randrange(3)]) * _PAGE
            elif kind == 1:
                memory[number] = memory[rng.randrange(40)]
            elif kind == 2:
                page = bytearray(memory[number])
                page[rng.randrange(_PAGE)] ^= 1
                memory[number] = bytes(page)
        addresses = struct.pack(f"<{len(chosen)}Q", *(number * _PAGE for number in chosen))
        pages = b"".join(memory[number] for number in chosen)
        payloads.append(bytes(encoder.encode(Batch(b"layout", addresses, pages))))
        if rng.random() < 0.2:
            payloads.append(bytes(encoder.encode(Batch(b"text " * 50, bytes(16), bytes(14)))))
    return payloads


def _flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _early(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(min(len(data), 48))] = rng.randrange(256)


def _number(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(min(len(data), 40))
    data[at : at + 4] = rng.choice(_INTERESTING).to_bytes(4, "little")


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _grow(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randrange(1, 64))


_MUTATIONS: Final[tuple[Callable[[random.Random, bytearray], None], ...]] = (
    *(_flip, _flip, _early, _number, _cut, _grow),
)


def _mutated(rng: random.Random, payload: bytes) -> bytes:
    data = bytearray(payload)
    for _ in range(rng.choice((1, 1, 2, 6))):
        if data:
            rng.choice(_MUTATIONS)(rng, data)
    return bytes(data)


def fuzz(seconds: float, seed: int, folder: Path) -> Report:
    """Run for so long. Raises AssertionError with the payloads that broke the invariant."""
    rng = random.Random(seed)
    settings = Settings(level=1, keep=False)
    # Stored as they are, parts show what is in them to a mutation.
    unpacked = Settings(level_min=-50, level_max=-50, keep=False)
    codec = HdeCompression(settings, NodeFacts(name="fuzz", state_dir=folder))
    executions = accepted = 0
    before = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        encoder = HdeEncoder(rng.choice((settings, unpacked)), codec.kept, _SESSION)
        decoder = HdeDecoder(settings, codec.kept, evolve(_SESSION, role="destination"))
        offer = decoder.have()
        encoder.peer_has(offer)
        fed: list[bytes] = []
        try:
            with contextlib.suppress(ProtocolError):
                HdeEncoder(settings, codec.kept, _SESSION).peer_has(_mutated(rng, offer))
            for payload in _stream(rng, encoder):
                fed.append(_mutated(rng, payload) if rng.random() < 0.3 else payload)
                executions += 1
                batch = decoder.decode(fed[-1])
                accepted += 1
                assert batch.nbytes <= BATCH_BYTES_MAX, f"{batch.nbytes} bytes"
        except ProtocolError:
            pass
        except BaseException as error:
            shown = [payload.hex() for payload in fed]
            raise AssertionError(f"seed={seed} payloads={shown}: {error!r}") from error
        finally:
            encoder.ended(False)
            decoder.ended(False)
        before = before or _peak_bytes()
    return Report(executions=executions, accepted=accepted, growth_bytes=_peak_bytes() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(options.seconds, seed, Path(folder))
    sys.stdout.write(
        f"seed={seed} executions={report.executions} accepted={report.accepted} "
        f"growth={report.growth_bytes / 2**20:.0f}MiB\n"
    )


if __name__ == "__main__":
    main()
