"""Fuzzes what a member's streams can bring: ``python fuzz_requests.py --seconds 60 [--seed 1]``.

Invariant: whatever bytes come, in whatever pieces, a stream yields frames within its bound or ends
with a FrameError; a frame is a request or an answer within its bounds or refused with a FrameError;
a command for a replicated machine changes it as it says or not at all. Nothing else is raised, and
memory stays bounded.

Sound frames are changed at random. A seed replays any failure.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import sys
import time
from collections.abc import Sequence
from typing import Final

import msgspec
from attrs import define
from novacron_agreement import COMMAND_BYTES_MAX, keyvalue, ownership
from novacron_agreement.forwarding import (
    REQUEST_BYTES_MAX,
    Request,
    decode_answer,
    decode_request,
)
from novacron_agreement.keyvalue import KeyValueMachine
from novacron_agreement.ownership import OwnershipMachine, Record
from novacron_agreement.peers import HEADER, FrameError, frames

MEMORY_MAX: Final = 256 << 20
LONGEST: Final = 1 << 12


@define
class Pieces:
    """A stream that brings its bytes in pieces of chance."""

    data: bytes
    rng: random.Random

    def send(self, buffers: Sequence[bytes]) -> None:
        raise AssertionError("nothing is sent")

    def receive_into(self, buffer: memoryview) -> int:
        count = min(len(self.data), self.rng.randint(1, 64), len(buffer))
        buffer[:count] = self.data[:count]
        self.data = self.data[count:]
        return count

    def close(self) -> None:
        pass


def sound_frames(rng: random.Random) -> list[bytes]:
    record = Record("vm", rng.choice(("a", "b")), rng.randint(1, 9), "s")
    commands = [
        keyvalue.put("k", rng.randbytes(20), client="c", number=rng.randint(0, 3)),
        keyvalue.compare_and_set("k", None, b"v"),
        keyvalue.delete("k"),
        keyvalue.get("k"),
        ownership.advance(record, expected_epoch=rng.choice((None, 0, 1, 2))),
        ownership.forget("vm", epoch=rng.randint(0, 9), client="c", number=1),
    ]
    requests = [
        msgspec.msgpack.encode(Request(n, rng.choice(("propose", "query", "manage")), command))
        for n, command in enumerate(commands)
    ]
    answer = msgspec.msgpack.encode([rng.randint(0, 9), "", rng.randbytes(9), "a"])
    return [*commands, *requests, answer]


def changed(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.randint(0, 4)):
        if not made:
            break
        at = rng.randrange(len(made))
        match rng.randrange(4):
            case 0:
                made[at] = rng.randrange(256)
            case 1:
                del made[at : at + rng.randint(1, 8)]
            case 2:
                made[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                made[at] ^= 1 << rng.randrange(8)
    return bytes(made)


def check(rng: random.Random, values: KeyValueMachine, owners: OwnershipMachine) -> None:
    some = [changed(one, rng) for one in rng.sample(sound_frames(rng), 4)]
    stream = changed(b"".join(HEADER.pack(len(one)) + one for one in some), rng)
    with contextlib.suppress(FrameError):
        for frame in frames(Pieces(stream, rng), LONGEST):
            assert len(frame) <= LONGEST, "a frame beyond its bound"
            with contextlib.suppress(FrameError):
                request = decode_request(frame)
                assert len(request.command) <= COMMAND_BYTES_MAX < REQUEST_BYTES_MAX
            with contextlib.suppress(FrameError):
                decode_answer(frame)
    for data in some:
        keyvalue.answer(values.apply(1, data))
        ownership.outcome(owners.apply(1, data))
    for machine in (values, owners):
        snapshot = machine.snapshot()
        machine.restore(snapshot)
        assert machine.snapshot() == snapshot, "a state that its snapshot does not give back"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = time.monotonic() + options.seconds
    rounds = 0
    values, owners = KeyValueMachine(), OwnershipMachine()
    while time.monotonic() < ends:
        seed = f"{options.seed}-{rounds}"
        try:
            check(random.Random(seed), values, owners)
        except Exception:
            sys.stderr.write(f"--seed {options.seed}, round {rounds} broke the invariant\n")
            raise
        rounds += 1
        if rounds % 1000 == 0:
            values, owners = KeyValueMachine(), OwnershipMachine()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY_MAX, f"memory grew by {grown} bytes"
    sys.stdout.write(f"seed {options.seed}: {rounds} rounds held\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
