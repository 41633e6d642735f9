"""Fuzz what a gossiping member reads from its network.

Invariant: whatever bytes arrive, sealed or not, a member refuses them or takes them within its
bounds: no exception leaves the core, the table holds no more than the members allowed, what waits
is bounded, what it sends fits a datagram or a stream, and it still holds itself alive.

    python fuzz_gossip_wire.py --seconds 60
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import Final

from novacron_consensus_gossip import GossipCore, Me, State, Timing
from novacron_consensus_gossip import _wire as wire
from novacron_consensus_gossip._effects import Save, Send, Stream
from novacron_consensus_gossip._seal import Key, Purpose, Seal, SealError

TIMING: Final = Timing(members_max=64, keep_bytes=1 << 16, keep_ms=2_000, forget_ms=20_000)
NOTABLE: Final = (
    0,
    1,
    0x7F,
    0x80,
    0x90,
    0xA0,
    0xC0,
    0xC1,
    0xC4,
    0xC7,
    0xCF,
    0xD9,
    0xDC,
    0xDF,
    0xFF,
)
WALL_MS: Final = 1_700_000_000_000


def sound(rng: random.Random) -> list[tuple[bool, bytes]]:
    """Messages as honest members send them; True for those of a stream."""

    def name() -> str:
        return f"n{rng.randrange(8)}"

    def claim() -> wire.Claim:
        if rng.random() < 0.5:
            tags = {"k": "v" * rng.randrange(40)}
            return wire.Alive(name(), rng.randrange(4), "10.0.0.1:1", rng.randrange(3), tags)
        return wire.Doubt(name(), rng.randrange(4), rng.randrange(1, 4), name())

    def some(most: int = 4) -> tuple[wire.Claim, ...]:
        return tuple(claim() for _ in range(rng.randrange(most)))

    number, one = rng.randrange(1 << 31), rng.randrange(4).to_bytes(16, "big")
    datagrams: list[wire.Datagram] = [
        wire.Ping(name(), number, "n0", some()),
        wire.Ack(name(), number, some()),
        wire.Relay(name(), number, name(), "10.0.0.1:1", some()),
        wire.Nack(name(), number, some()),
        wire.Gossip(name(), some(10)),
        wire.Announce(name(), (one,)),
        wire.Graft(name(), one),
        wire.Prune(name()),
    ]
    bulk: list[wire.Bulk] = [
        wire.Compare(name(), "10.0.0.1:1", rng.randbytes(512), (one,)),
        wire.Share(name(), "10.0.0.1:1", (0, 5, 63), some(20), rng.random() < 0.5, (one,)),
        wire.Payload(name(), one, name(), "topic", rng.randrange(256), rng.randbytes(50)),
    ]
    made = [(False, wire.encode(message)) for message in datagrams]
    return made + [(True, wire.encode(message)) for message in bulk]


def mutate(data: bytearray, rng: random.Random) -> None:
    """One change in place."""
    if not data:
        data += rng.randbytes(8)
        return
    at = rng.randrange(len(data))
    kind = rng.randrange(6)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.choice(NOTABLE)
    elif kind == 2:
        del data[at : at + rng.randrange(1, 20)]
    elif kind == 3:
        data[at:at] = bytes([rng.choice(NOTABLE)]) * rng.randrange(1, 300)
    elif kind == 4:
        del data[at:]
    else:
        source = rng.randrange(len(data))
        data[at:at] = data[source : source + rng.randrange(1, 60)]


def make_core(rng: random.Random) -> GossipCore:
    core = GossipCore(Me(name="n0", address="10.0.0.9:1"), TIMING, random.Random(rng.random()))
    core.start(0)
    return core


def check(core: GossipCore) -> None:
    desk = core._desk
    assert len(core.members) <= TIMING.members_max, f"{len(core.members)} members"
    assert len(core._detector.relayed) <= 256
    assert len(core._tree.missing) <= 1_024
    assert core._tree._kept_bytes <= TIMING.keep_bytes
    assert len(desk.timers) < 4_000
    own = core.members.get("n0")
    assert core.closed or (own is not None and own.state is State.ALIVE), f"it holds {own!r}"


def feed(core: GossipCore, now: int, stream: bool, data: bytes) -> int:
    """Returns how many effects came of it."""
    sender = "10.0.0.2:1"
    effects = core.receive_stream(now, data) if stream else core.receive(now, sender, data)
    for effect in effects:
        if isinstance(effect, Send):
            assert len(effect.message) <= wire.DATAGRAM_BYTES_MAX
            wire.decode_datagram(effect.message)
        elif isinstance(effect, Stream):
            assert len(effect.message) <= wire.STREAM_BYTES_MAX
            wire.decode_bulk(effect.message)
        elif isinstance(effect, Save):
            wire.decode_saved(effect.records[0])
    return len(effects)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    keys = (Key(b"k" * 32),)
    sender = Seal(keys, "fuzz", Purpose.DATAGRAM, b"s" * 16)
    receiver = Seal(keys, "fuzz", Purpose.DATAGRAM, b"r" * 16)
    until = time.monotonic() + arguments.seconds
    runs = taken = opened = 0
    while time.monotonic() < until:
        core, now = make_core(rng), 0
        for _ in range(400):
            stream, message = rng.choice(sound(rng))
            data = bytearray(message)
            for _ in range(rng.choice((0, 1, 1, 2, 4))):
                mutate(data, rng)
            now += rng.randrange(400)
            one = bytes(data)
            try:
                while (due := core.deadline_ms) is not None and due <= now:
                    core.tick(due)
                taken += feed(core, now, stream, one) > 0
                check(core)
                sealed = bytearray(sender.seal(WALL_MS, one))
                changed = rng.random() < 0.8
                if changed:
                    mutate(sealed, rng)
                try:
                    assert receiver.open(WALL_MS, bytes(sealed)) == one
                    opened += 1
                except SealError:
                    assert changed
            except BaseException as error:
                sys.stderr.write(f"seed={arguments.seed} stream={stream} {one.hex()}: {error!r}\n")
                raise
            runs += 1
    sys.stdout.write(
        f"seed {arguments.seed}: {runs} messages, {taken} had effects, {opened} seals opened, "
        "no violation\n"
    )


if __name__ == "__main__":
    main()
