"""Fuzzes batches of disks' blocks: ``python fuzz_blocks.py --seconds 60``.

Invariant: a batch or a word on disks that came from a stranger raises BlocksRefused, or all that it
says lies inside of the disks; what `BatchMaker` made is read back as it was; memory stays bounded.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time

from novacron_dwcp import Batch
from novacron_qemu.blocks import (
    BatchMaker,
    BlocksRefused,
    Extent,
    Have,
    Held,
    HeldDisk,
    extents_of,
)

MEMORY_MAX = 256 << 20
SIZES = (1 << 30, 70_000)
NOTABLE = (0, 1, 2, 3, 0x7F, 0x80, 0xD5, 0xFF)


def made(rng: random.Random) -> Batch:
    """A sound batch."""
    maker = BatchMaker()
    for _ in range(rng.randrange(5)):
        disk = rng.randrange(len(SIZES))
        offset = rng.randrange(SIZES[disk])
        length = rng.randrange(1, min(20_000, SIZES[disk] - offset) + 1)
        maker.add(Extent(disk, offset, length, rng.choice([None, rng.randbytes(length)])))
    return maker.take()


def mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        if not changed:
            break
        at = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[at] = rng.choice(NOTABLE)
            case 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                del changed[at : at + rng.randrange(1, 20)]
            case _:
                changed[at:at] = rng.randbytes(rng.randrange(1, 20))
    return bytes(changed)


def check_batch(rng: random.Random) -> bool:
    sound = made(rng)
    again = BatchMaker()
    for extent in extents_of(sound, SIZES):
        again.add(extent)
    assert again.take().pack() == sound.pack(), "what was made is not what is read"
    count = rng.choice([0, 1]) * (len(sound.addresses) // 8)
    pages = bytes(sound.pages)[: count * 4096]
    batch = Batch(mutated(bytes(sound.layout), rng), bytes(sound.addresses)[: count * 8], pages)
    try:
        found = extents_of(batch, SIZES)
    except BlocksRefused:
        return True
    for extent in found:
        assert 0 <= extent.offset < extent.offset + extent.length <= SIZES[extent.disk]
        assert extent.data is None or len(extent.data) == extent.length
    return False


def check_word(rng: random.Random) -> bool:
    count = rng.randrange(4)
    disk = HeldDisk(
        disk=rng.randrange(3),
        size_bytes=1 << 20,
        blocks=b"".join(rng.randrange(20).to_bytes(4, "little") for _ in range(count)),
        digests=rng.randbytes(16 * count),
    )
    try:
        have = Have.unpack(mutated(Have(disks=[disk]).pack(), rng))
        for held in have.disks:
            list(Held(1 << 20, held).differing(0, bytes(1 << 20)))
    except BlocksRefused:
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with open("/proc/self/statm", encoding="ascii") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_MAX, resource.RLIM_INFINITY))
    rng, began, runs, refused = random.Random(arguments.seed), time.monotonic(), 0, 0
    while time.monotonic() - began < arguments.seconds:
        refused += check_batch(rng) + check_word(rng)
        runs += 1
    sys.stdout.write(f"seed {arguments.seed}: {runs} runs, {refused} refused, no violation\n")


if __name__ == "__main__":
    main()
