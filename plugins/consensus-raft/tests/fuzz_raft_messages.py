"""Fuzzes what a member can be told: ``python fuzz_raft_messages.py --seconds 60 [--seed 1]``.

Invariant: a message is either taken within its bounds or counted and dropped, whatever the member
is at that moment; nothing is raised, what was committed stays, and memory stays bounded.

Sound messages of a small cluster are changed at random and given to its members, in any role, along
with sound ones. A seed replays any failure.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from novacron_agreement import MESSAGE_BYTES_MAX, Commit, Effect, Restore, Save, Send
from novacron_consensus_raft import RaftCore, RaftSettings
from novacron_consensus_raft import _messages as wire
from novacron_consensus_raft._configuration import Configuration

MEMORY_MAX: Final = 256 << 20
NAMES: Final = ("a", "b", "c")
CLUSTER: Final = "fuzz"
SETTINGS: Final = RaftSettings(
    cluster=CLUSTER, chunk_bytes=50, keep_entries=2, snapshot_bytes_max=1 << 16, append_bytes=200
)
NOTABLE: Final = (0, 1, 2, 0x7F, 0x80, 0x90, 0xA0, 0xC0, 0xC1, 0xC4, 0xC6, 0xCF, 0xD3, 0xDD, 0xFF)
INPUT_MAX: Final = 1 << 16
SEEN: Counter[str] = Counter()


def sound_messages(rng: random.Random) -> list[wire.Message]:
    """One of each kind, with values near those of the members."""
    term, index = rng.randint(1, 6), rng.randint(0, 12)
    of_term = rng.randint(1, term) if index else 0
    entries = tuple(
        wire.Entry(index + n, term, wire.EntryKind.COMMAND, rng.randbytes(rng.randint(0, 40)))
        for n in range(1, rng.randint(1, 5))
    )
    known = Configuration(("a", "b"), ("a", "b", "c"), ("d",), {"a": "host:1"}, 3)
    configured = wire.Entry(index + 1, term, wire.EntryKind.MEMBERS, known.encode())
    place = (max(index, 1), max(of_term, 1), known, 120, bytes(32), rng.choice((0, 50, 100)))
    rounds = rng.randint(0, 4)
    return [
        wire.RequestVote(CLUSTER, term, index, of_term, rng.random() < 0.5, rng.random() < 0.5),
        wire.Vote(CLUSTER, term, rng.random() < 0.8, rng.random() < 0.5),
        wire.Append(CLUSTER, term, rounds, index, of_term, index, entries),
        wire.Append(CLUSTER, term, rounds, index, of_term, rng.randint(0, 20), (configured,)),
        wire.Appended(CLUSTER, term, rounds, index, rng.random() < 0.5, index, of_term),
        wire.SnapshotChunk(CLUSTER, term, rounds, *place, rng.randbytes(20)),
        wire.SnapshotProgress(CLUSTER, term, rounds, bytes(32), index),
        wire.TimeoutNow(CLUSTER, term),
    ]


class Cluster:
    """Three members that talk to each other, with an intruder among them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0
        self.under_way: list[tuple[str, str, bytes]] = []
        self.corpus: list[bytes] = []
        members = dict.fromkeys(NAMES, "")
        self.cores = {
            name: RaftCore(name, members, [], SETTINGS, random.Random(rng.random()))
            for name in NAMES
        }
        self.applied = dict.fromkeys(NAMES, 0)
        self.records: dict[str, list[bytes]] = {name: [] for name in NAMES}
        for name, core in self.cores.items():
            self.take(name, core.start(0))

    def take(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, message) if to in self.cores:
                    assert len(message) <= MESSAGE_BYTES_MAX
                    self.under_way.append((name, to, message))
                    self.corpus.append(message)
                    del self.corpus[:-200]
                case Commit(index):
                    assert index > self.applied[name], "what was applied is applied again"
                    self.applied[name] = index
                case Restore(index):
                    assert index >= self.applied[name], "the state goes back"
                    self.applied[name] = index
                case Save(records, replaces):
                    self.records[name] = [*([] if replaces else self.records[name]), *records]
                case _:
                    pass
        del self.under_way[:-300]
        assert self.cores[name].commit <= self.cores[name].log.last_index

    def step(self) -> None:
        """Something sound happens."""
        self.now += self.rng.choice((0, 1, 5, 60, 400))
        name = self.rng.choice(NAMES)
        core = self.cores[name]
        self.take(name, core.tick(self.now))
        if self.rng.random() < 0.3:
            self.take(name, core.propose(self.now, 1, self.rng.randbytes(self.rng.randint(0, 30))))
        if self.rng.random() < 0.1:
            self.take(name, core.read(self.now, 2))
        if self.rng.random() < 0.05 and self.applied[name]:
            self.take(name, core.compact(self.applied[name], self.rng.randbytes(120)))
        if self.rng.random() < 0.8:
            batch, self.under_way = self.under_way, []
            for sender, to, message in batch:
                self.take(to, self.cores[to].receive(self.now, sender, message))

    def tell(self, data: bytes) -> bool:
        """Give it to a member; whether it was taken for a message."""
        name = self.rng.choice(NAMES)
        core = self.cores[name]
        before = core.refused["no sound message"]
        sender = self.rng.choice((*NAMES, "stranger"))
        self.take(name, core.receive(self.now, sender, data))
        good = core.refused["no sound message"] == before
        if good:
            SEEN[type(wire.decode(data, CLUSTER)).__name__] += 1
        return bool(good)

    def restart(self) -> None:
        """What was saved makes a member again."""
        for name in NAMES:
            RaftCore(name, {}, self.records[name], SETTINGS, random.Random(1))


def mutate(data: bytearray, rng: random.Random) -> None:
    """One change in place."""
    at = rng.randrange(len(data)) if data else 0
    kind = rng.randrange(6)
    if kind == 0 and data:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and data:
        data[at] = rng.choice(NOTABLE)
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[at : at + rng.randrange(1, 10)]
    elif kind == 4:
        data[at:at] = rng.randbytes(rng.randrange(1, 12))
    else:
        source = rng.randrange(len(data) + 1)
        data[at:at] = data[source : source + rng.randrange(1, 300)]
    del data[INPUT_MAX:]


def run(seed: int, more: Callable[[int], bool]) -> tuple[int, int]:
    """Returns: how many inputs there were, and how many were taken for messages."""
    rng = random.Random(seed)
    runs = accepted = 0
    while more(runs):
        cluster = Cluster(rng)
        for _ in range(200):
            cluster.step()
            made = wire.encode(rng.choice(sound_messages(rng)))
            data = bytearray(rng.choice(cluster.corpus) if cluster.corpus else made)
            if rng.random() < 0.4:
                data = bytearray(made)
            for _ in range(rng.choice((0, 1, 1, 2, 4))):
                mutate(data, rng)
            one = bytes(data)
            try:
                accepted += cluster.tell(one)
            except BaseException as error:
                sys.stderr.write(f"seed={seed} run={runs} {one.hex()}: {error!r}\n")
                raise
            runs += 1
        cluster.restart()
    return runs, accepted


def limit_memory() -> None:
    """From here on the process may take MEMORY_MAX more, or fail with MemoryError."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_MAX, resource.RLIM_INFINITY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--runs", type=int, help="so many inputs instead of so many seconds")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    limit_memory()
    began = time.monotonic()

    def more(runs: int) -> bool:
        if arguments.runs is not None:
            return runs < int(arguments.runs)
        return time.monotonic() - began < float(arguments.seconds)

    runs, accepted = run(arguments.seed, more)
    seen = ", ".join(f"{name} {count}" for name, count in SEEN.most_common())
    sys.stdout.write(f"seen: {seen}\n")
    sys.stdout.write(
        f"seed {arguments.seed}: {runs} inputs, {accepted} taken for messages, no violation\n"
    )


if __name__ == "__main__":
    main()
