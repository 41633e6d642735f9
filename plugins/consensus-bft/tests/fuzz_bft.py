"""Fuzzes all that a member can hear: ``python fuzz_bft.py --seconds 60 [--seed 1]``.

Invariant: whatever a member hears, it raises nothing, believes no certificate that a quorum has not
signed, holds no more than its bounds, and answers with messages that decode.

Messages of a simulated run are the corpus; mutated ones go to a member that is in the midst of it.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections import Counter
from typing import Any, Final

from novacron_agreement import MESSAGE_BYTES_MAX, Send
from novacron_consensus_bft import _core as core
from novacron_consensus_bft import _wire as wire
from novacron_consensus_bft._ledger import Ledger
from novacron_consensus_bft._records import RecordsError, read
from novacron_consensus_bft._simulation import FAULTS, BftWorld
from novacron_consensus_bft._simulation_oracle import Oracle
from novacron_testkit.simulator import Simulator

MEMORY_MAX: Final = 256 << 20
NOTABLE: Final = (0, 1, 0x7F, 0x80, 0x90, 0xA0, 0xC0, 0xC4, 0xC6, 0xCF, 0xD9, 0xDC, 0xDD, 0xFF)
SEEN: Counter[str] = Counter()


def collect(seed: int) -> tuple[list[tuple[str, bytes]], BftWorld]:
    """What members say in a run, and the world at its end."""
    said: list[tuple[str, bytes]] = []
    world = BftWorld(seed, core)
    sim = Simulator(seed, FAULTS, world, world.nodes)
    world.plan(800)
    deliver = world.deliver

    def hear(src: str, dst: str, message: Any) -> None:
        said.append((src.rstrip("~"), bytes(message)))
        deliver(src, dst, message)

    world.deliver = hear  # type: ignore[method-assign]
    sim.run(faults_ms=800, done=world.done, quiet_events=30_000)
    return said, world


def mutate(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at = rng.randrange(len(made)) if made else 0
        kind = rng.randrange(5)
        if kind == 0 and made:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and made:
            made[at] = rng.choice(NOTABLE)
        elif kind == 2:
            del made[at : at + rng.randrange(1, 30)]
        elif kind == 3:
            made[at:at] = rng.randbytes(rng.randrange(1, 20))
        else:
            source = rng.randrange(len(made) + 1)
            made[at:at] = made[source : source + rng.randrange(1, 200)]
    return bytes(made[:65536])


def hear(world: BftWorld, node: str, sender: str, data: bytes, oracle: Oracle) -> bool:
    """Whether it was a message. Raises AssertionError if the invariant does not hold."""
    member = world.processes[node].core
    before = sum(member.refused.values())
    effects = member.receive(world.sim.steady(node), sender, data)
    for effect in effects:
        if isinstance(effect, Send):
            assert len(effect.message) <= MESSAGE_BYTES_MAX
            SEEN[type(wire.decode(effect.message)).__name__] += 1
    oracle.holds(node, member)
    world._bounded(member)
    assert len(member.chain.tree) < 1000
    assert len(member._asked) <= 256
    return bool(sum(member.refused.values()) == before)


def parts(data: bytes, world: BftWorld) -> None:
    """The formats inside messages and records, by themselves."""
    for parse in (wire.decode_block, wire.decode_state_header, Ledger.decode):
        try:
            parse(data)
        except wire.WireError:
            continue
    try:
        read([data], bytes(32), "a")
    except RecordsError:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with open("/proc/self/statm", encoding="ascii") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_MAX, used + MEMORY_MAX))
    rng = random.Random(arguments.seed)
    end = time.monotonic() + arguments.seconds
    runs = accepted = 0
    while time.monotonic() < end:
        seed = 5 * rng.randrange(1000)  # a run without a liar: all of its members are honest
        said, world = collect(seed)
        oracle = Oracle(world.verifier)
        for _ in range(4000):
            sender, data = rng.choice(said)
            if rng.random() < 0.1:
                sender = rng.choice(("a", "b", "c", "d", "e", "nobody"))
            one = mutate(data, rng)
            node = rng.choice(sorted(world.processes))
            try:
                accepted += hear(world, node, sender, one, oracle)
                parts(one, world)
            except BaseException as error:
                sys.stderr.write(f"seed={seed} {node} from {sender}: {one.hex()}: {error!r}\n")
                raise
            runs += 1
            if time.monotonic() >= end:
                break
    answers = ", ".join(f"{name} {count}" for name, count in SEEN.most_common())
    sys.stdout.write(f"answers: {answers}\n")
    sys.stdout.write(f"{runs} executions, {accepted} accepted, no violation\n")


if __name__ == "__main__":
    main()
