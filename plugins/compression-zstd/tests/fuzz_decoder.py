"""Feeds hostile payloads to the decoder: ``python fuzz_decoder.py --seconds 60 [--seed 1]``.

The invariant: a payload gives a batch of at most ``BATCH_BYTES_MAX`` or a ProtocolError, and
memory stays bounded. Prints executions and peak memory; a failure prints the payload and its seed.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import sys
import time
from collections.abc import Callable
from typing import Final

from attrs import frozen
from novacron import BATCH_BYTES_MAX, Batch, ProtocolError
from novacron_compression_zstd import Settings, ZstdDecoder, ZstdEncoder

_PAGE: Final = 4096
_POOLED_BYTES_MAX: Final = 16 << 10
_INTERESTING: Final = (0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 22, (1 << 22) + 1, 0xFFFFFFFF)


@frozen(kw_only=True)
class Report:
    """What a run did: how many payloads, how many of them still gave a batch, memory's peak."""

    executions: int
    accepted: int
    growth_bytes: int
    peak_bytes: int


def _seeds(rng: random.Random) -> list[bytes]:
    """Sound payloads of every shape."""
    seeds = []
    text = b"a page of a running machine, and another; " * 200
    for count, size in ((0, 0), (1, 64), (3, 512), (16, _PAGE), (64, _PAGE)):
        addresses = struct.pack(f"<{count}Q", *(rng.randrange(1 << 40) for _ in range(count)))
        for pages in (
            (text * (count * size // len(text) + 1))[: count * size],
            rng.randbytes(count * size),
            bytes(count * size),
        ):
            for level in (-7, 3):
                encoder = ZstdEncoder(Settings(level=level))
                seeds.append(bytes(encoder.encode(Batch(text[:100], addresses, pages))))
    return seeds


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _flip(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)


def _flip_early(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(min(len(data), 48))
    data[at] = rng.randrange(256)


def _number(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(min(len(data), 32))
    data[at : at + 4] = rng.choice(_INTERESTING).to_bytes(4, "little")


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _drop(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 64)]


def _grow(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randrange(1, 64))


def _repeat(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randrange(1, 512)]


_MUTATIONS: Final[tuple[Callable[[random.Random, bytearray], None], ...]] = (
    _flip,
    _flip,
    _flip_early,
    _number,
    _cut,
    _drop,
    _grow,
    _repeat,
)


def _mutated(rng: random.Random, pool: list[bytes]) -> bytes:
    data = bytearray(rng.choice(pool))
    if rng.random() < 0.1:
        # The head of one payload before the tail of another.
        other = rng.choice(pool)
        data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other)) :]
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if data:
            rng.choice(_MUTATIONS)(rng, data)
    return bytes(data)


def fuzz(seconds: float, seed: int) -> Report:
    """Run for so long. Raises AssertionError with the payload that broke the invariant."""
    rng = random.Random(seed)
    seeds = _seeds(rng)
    pool = list(seeds)
    decoder = ZstdDecoder()
    for payload in seeds:
        decoder.decode(payload)
    before = _peak_bytes()
    executions = accepted = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        payload = _mutated(rng, pool)
        executions += 1
        try:
            batch = decoder.decode(payload)
        except ProtocolError:
            continue
        except BaseException as error:
            raise AssertionError(f"seed={seed} payload={payload.hex()}: {error!r}") from error
        accepted += 1
        if batch.nbytes > BATCH_BYTES_MAX:
            raise AssertionError(f"seed={seed} payload={payload.hex()}: {batch.nbytes} bytes")
        # What was accepted leads deeper; the pool stays small.
        if len(payload) < _POOLED_BYTES_MAX and rng.random() < 0.05:
            if len(pool) < 500:
                pool.append(payload)
            else:
                pool[rng.randrange(len(seeds), len(pool))] = payload
    peak = _peak_bytes()
    return Report(
        executions=executions, accepted=accepted, growth_bytes=peak - before, peak_bytes=peak
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    report = fuzz(options.seconds, seed)
    sys.stdout.write(
        f"seed={seed} executions={report.executions} accepted={report.accepted} "
        f"peak_rss={report.peak_bytes / 2**20:.0f}MiB "
        f"growth={report.growth_bytes / 2**20:.0f}MiB\n"
    )


if __name__ == "__main__":
    main()
