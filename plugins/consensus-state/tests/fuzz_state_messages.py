"""Fuzz what a replica reads from its peers and from its disk.

Invariant: whatever bytes arrive, a replica refuses them or takes them within its bounds: no
exception leaves it, it saves what it took before it sends, what it sends fits a message, what waits
is bounded, and it can be made again from its records and then holds the same.

    python fuzz_state_messages.py --seconds 60
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from novacron_agreement import Effect, Save, Send
from novacron_consensus_state import Replica, ReplicaSettings
from novacron_consensus_state import _messages as msg
from novacron_consensus_state._journal import frame, parse
from novacron_consensus_state._kinds import KINDS
from novacron_consensus_state._messages import WireError
from novacron_consensus_state._store import WAITING_BYTES_MAX, WAITING_EVENTS_MAX
from novacron_consensus_state._wan import Wan

REGIONS: Final = {"a": "x", "b": "x", "c": "y"}
MARK: Final = msg.mark_of("wan")
NOTABLE: Final = (0, 1, 0x7F, 0x80, 0x90, 0xA0, 0xC0, 0xC1, 0xC4, 0xCF, 0xD9, 0xDC, 0xDF, 0xFF)
INPUT_MAX: Final = 1 << 16
SEEN: Counter[str] = Counter()


class Taped(Wan):
    """A network that keeps what is said in it."""

    def _post(self, member: str, to: str, message: bytes) -> None:
        TAPE.append((member, message))
        super()._post(member, to, message)


TAPE: list[tuple[str, bytes]] = []


def sound(rng: random.Random) -> list[tuple[str, bytes]]:
    """Messages as honest members send them."""
    TAPE.clear()
    net = Taped(
        regions=REGIONS,
        delays_ms=(5, 30),
        loss=0.1,
        seed=rng.randrange(1 << 30),
        settings=ReplicaSettings(probe_ms=50, history_bytes=400),
    )
    net.start()
    writes: dict[str, tuple[str, list[Any]]] = {
        "g-counter": ("increment", [2]),
        "pn-counter": ("increment", [-2]),
        "g-set": ("add", ["x", 1]),
        "or-set": ("add", ["y"]),
        "lww": ("set", [{"deep": [1, None]}]),
        "mv": ("set", ["v"]),
        "or-map": ("set", ["f", "list", "append", 1, 2]),
        "list": ("append", ["e", "f"]),
    }
    for n in range(24):
        kind = KINDS[n % len(KINDS)]
        level = rng.choice(("eventual", "quorum"))
        member = rng.choice(list(REGIONS))
        net.write(member, kind, kind, *writes[kind], level=level)
        net.read(member, kind, kind, level=level)
        if n == 4:
            net.isolate("y")
        if n == 20:
            net.isolate("y", heal=True)
        net.run(80)
    net.run(3_000)
    return list(dict.fromkeys(TAPE))


def mutate(data: bytearray, rng: random.Random) -> None:
    """One change in place; mostly behind the mark, or nothing else would be reached."""
    if len(data) <= len(MARK):
        data += rng.randbytes(rng.randrange(20))
        return
    at = rng.randrange(0 if rng.random() < 0.02 else len(MARK), len(data))
    kind = rng.randrange(7)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.choice(NOTABLE)
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[at : at + rng.randrange(1, 30)]
    elif kind == 4:
        data[at:at] = rng.randbytes(rng.randrange(1, 20))
    elif kind == 5:
        source = rng.randrange(len(data))
        data[at:at] = data[source : source + rng.randrange(1, 200)]
    else:
        data[at : at + 1] = bytes([rng.choice(NOTABLE)]) * rng.randrange(1, 500)
    del data[INPUT_MAX:]


class Victim:
    """A replica, its records and the time."""

    def __init__(self, rng: random.Random) -> None:
        self.records: list[bytes] = []
        self.rng = rng
        self.now = 1_000
        self.replica = self.made(1)
        self.perform(self.replica.start(self.now))

    def made(self, seed: int) -> Replica:
        return Replica(
            "a",
            REGIONS,
            list(self.records),
            ReplicaSettings(snapshot_bytes=4_096, history_bytes=2_000),
            random.Random(seed),
            cluster="wan",
        )

    def perform(self, effects: Sequence[Effect]) -> None:
        for number, effect in enumerate(effects):
            if isinstance(effect, Save):
                assert number == 0, "something happened before it was durable"
                self.records = [*([] if effect.replaces else self.records), *effect.records]
            elif isinstance(effect, Send):
                assert len(effect.message) <= msg.WIRE_BYTES_MAX
                assert effect.to in REGIONS

    def feed(self, sender: str, data: bytes) -> bool:
        self.now += self.rng.randrange(40)
        refused = self.replica.refused_messages
        self.perform(self.replica.receive(self.now, sender, data))
        if self.replica.deadline_ms <= self.now:
            self.perform(self.replica.tick(self.now))
        waiting = self.replica.store.waiting
        assert 0 <= waiting.count <= WAITING_EVENTS_MAX
        assert 0 <= waiting.nbytes <= WAITING_BYTES_MAX
        return self.replica.refused_messages == refused

    def check(self) -> None:
        """It can be made again, and every key can be read."""
        again = self.made(2)
        assert again.store.vector == self.replica.store.vector
        assert again.store.tree.root() == self.replica.store.tree.root()
        for key in again.store.entries:
            again.store.value(key)


def run(seed: int, seconds: float) -> tuple[int, int]:
    rng = random.Random(seed)
    corpus = sound(rng)
    victim = Victim(rng)
    accepted = runs = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sender, base = rng.choice(corpus)
        data = bytearray(base)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
            mutate(data, rng)
        one = bytes(data)
        try:
            good = victim.feed(rng.choice(("b", "c")) if sender == "a" else sender, one)
            if runs % 500 == 499:
                victim.check()
                victim = Victim(rng) if rng.random() < 0.3 else victim
        except BaseException as error:
            sys.stderr.write(f"seed={seed} run={runs} {one.hex()}: {error!r}\n")
            raise
        runs += 1
        accepted += good
        if good:
            SEEN[type(msg.decode(MARK, one)).__name__] += 1
            if rng.random() < 0.02 and len(corpus) < 2_000:
                corpus.append((sender, one))
        check_records(victim, rng)
    return runs, accepted


def check_records(victim: Victim, rng: random.Random) -> None:
    """A file that was torn or spoilt gives a beginning of the records, or is refused."""
    if rng.random() > 0.01:
        return
    records = victim.records[-20:]
    data = bytearray(b"".join(frame(record, 0) for record in records))
    for _ in range(rng.randrange(3)):
        mutate(data, rng)
    try:
        found, sound_bytes = parse(bytes(data))
    except ValueError:
        return
    assert sound_bytes <= len(data)
    assert all(isinstance(record, bytes) for record in found)
    try:
        random_life = random.Random(3)
        Replica("a", REGIONS, found, ReplicaSettings(), random_life, cluster="wan")
    except WireError:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    runs, accepted = run(arguments.seed, arguments.seconds)
    sys.stdout.write(f"seen: {', '.join(f'{name} {n}' for name, n in SEEN.most_common())}\n")
    sys.stdout.write(
        f"seed {arguments.seed}: {runs} executions, {accepted} accepted, no violation\n"
    )


if __name__ == "__main__":
    main()
