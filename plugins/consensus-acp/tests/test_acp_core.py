from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from heapq import heappop, heappush
from statistics import median
from typing import Any

import pytest
from novacron import PluginLoadError, PluginManager, PluginSource, hookimpl
from novacron_agreement import Commit, Effect, Note, Readable, Rejected, Restore, Save, Send
from novacron_agreement.engines import LogEngine
from novacron_consensus_acp import AcpCore, AcpError, AcpSettings, Declared, engines
from novacron_consensus_acp import _wire as wire
from novacron_consensus_acp._simulation import (
    NAMES,
    installed,
)
from novacron_testkit.logworld import SimulatedSigner, SimulatedVerifier

SETTINGS = AcpSettings(ping_ms=50, retry_ms=50, hold_ms=100, dwell_ms=500)
MIXED, OWN = Declared(trust="mixed"), Declared(trust="own")


class Cluster:
    """Members without faults, 5 ms from each other."""

    def __init__(self, names: Sequence[str] = NAMES, disks: dict[str, list[bytes]] | None = None):
        self.now = 0
        self.names = names
        self.disks = disks or {name: [] for name in names}
        self.commits: dict[str, list[tuple[int, bytes, int | None, int]]] = {}
        self.answers: list[Effect] = []
        self.notes: list[Note] = []
        self.down: set[str] = set()
        self._heap: list[tuple[int, int, str, str, bytes]] = []
        self._count = 0
        self.cores: dict[str, AcpCore] = {}
        for name in names:
            self.start(name)

    def start(self, name: str) -> None:
        self.commits[name] = []
        self.down.discard(name)
        core = self.cores[name] = make(name, self.disks[name], names=self.names)
        self.perform(name, core.start(self.now))

    def perform(self, name: str, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    self._count += 1
                    heappush(self._heap, (self.now + 5, self._count, name, to, message))
                case Save(records, replaces):
                    if replaces:
                        self.disks[name].clear()
                    self.disks[name] += records
                case Commit(index, command, ticket):
                    self.commits[name].append((index, command, ticket, self.now))
                    if index % 50 == 0:
                        whole = b"".join(row[1] for row in self.commits[name])
                        self.perform(name, self.cores[name].compact(index, whole))
                case Restore(index, snapshot):
                    self.commits[name] = [(index, snapshot, None, self.now)]
                case Readable() | Rejected():
                    self.answers.append(effect)
                case Note():
                    self.notes.append(effect)

    def run(self, ms: int) -> None:
        end = self.now + ms
        while True:
            ticks = [
                (core.deadline_ms or 0, name)
                for name, core in self.cores.items()
                if name not in self.down
            ]
            at, name = min(ticks)
            if self._heap and self._heap[0][0] <= min(at, end):
                self.now, _, src, dst, message = heappop(self._heap)
                if dst not in self.down:
                    self.perform(dst, self.cores[dst].receive(self.now, src, message))
            elif at <= end:
                self.now = max(self.now, at)
                self.perform(name, self.cores[name].tick(self.now))
            else:
                self.now = end
                return

    def declare(self, declared: Declared) -> None:
        for name, core in self.cores.items():
            self.perform(name, core.declare(self.now, declared))

    def propose(self, name: str, ticket: int) -> None:
        command = b"%d;" % ticket
        self.perform(name, self.cores[name].propose(self.now, ticket, command))

    def running(self) -> set[tuple[int, str]]:
        return {(core.ledger.generation, core.ledger.engine) for core in self.cores.values()}


def make(
    name: str,
    records: Sequence[bytes],
    *,
    names: Sequence[str] = NAMES,
    settings: AcpSettings = SETTINGS,
    offered: dict[str, LogEngine] | None = None,
) -> AcpCore:
    signers = {one: SimulatedSigner(one.encode()) for one in names}
    return AcpCore(
        name,
        dict.fromkeys(names, ""),
        records,
        settings,
        random.Random(name),
        engines=installed() if offered is None else offered,
        keys={one: signer.public_key for one, signer in signers.items()},
        signer=signers[name],
        verifier=SimulatedVerifier(signers.values()),
    )


def test_it_switches_from_raft_to_bft_and_back_under_load_and_nothing_is_lost_or_doubled() -> None:
    cluster = Cluster()
    cluster.run(1_000)
    ticket = 0
    for declared in (OWN, MIXED, OWN):
        cluster.declare(declared)
        for _ in range(100):
            cluster.propose(NAMES[ticket % 4], ticket)
            ticket += 1
            cluster.run(10)
    cluster.run(3_000)
    assert cluster.running() == {(2, "raft")}
    commands = [b"%d;" % number for number in range(ticket)]
    for name in NAMES:
        applied = b"".join(row[1] for row in cluster.commits[name])
        assert sorted(applied.split(b";")) == sorted(b"".join(commands).split(b";"))
    answered = [row[2] for rows in cluster.commits.values() for row in rows if row[2] is not None]
    assert sorted(answered) == list(range(ticket))
    pauses = [pause for core in cluster.cores.values() for pause in core.pauses_ms]
    sys.stdout.write(f"switch under load, 10 ms round trip: pauses {sorted(pauses)} ms\n")
    assert len(pauses) == 8
    assert median(pauses) < 1_000


def test_it_says_what_it_runs_on_and_why() -> None:
    cluster = Cluster()
    cluster.declare(MIXED)
    cluster.run(2_000)
    told = cluster.cores["b"].explain()
    assert told.present.engine == told.right.engine == "bft"
    assert told.present.reasons[0].startswith("the members are of several owners, who may lie")
    assert told.generation == 1
    assert told.measured.members == 4
    assert told.waits_for == ["a", "c", "d"], "nobody has taken a snapshot in it yet"


def test_one_member_alone_changes_nothing_and_takes_its_wish_back() -> None:
    cluster = Cluster()
    cluster.run(500)
    cluster.perform("b", cluster.cores["b"].declare(cluster.now, MIXED))
    cluster.run(1_000)
    assert cluster.running() == {(0, "raft")}
    assert cluster.cores["c"].explain().wishes == {"b": "bft (site)"}
    cluster.perform("b", cluster.cores["b"].declare(cluster.now, OWN))
    cluster.run(1_000)
    assert cluster.cores["c"].explain().wishes == {"b": "raft (site)"}


def test_a_member_that_was_away_for_two_switches_comes_through_both() -> None:
    cluster = Cluster()
    cluster.run(500)
    cluster.propose("a", 1)
    cluster.run(500)
    cluster.down.add("d")
    cluster.declare(MIXED)
    cluster.run(2_000)
    cluster.propose("a", 2)
    cluster.run(500)
    cluster.declare(OWN)
    cluster.run(3_000)
    cluster.propose("a", 3)
    cluster.run(500)
    assert cluster.cores["a"].ledger.generation == 2
    cluster.start("d")
    cluster.run(5_000)
    assert cluster.running() == {(2, "raft")}
    assert [row[1] for row in cluster.commits["d"]] == [b"1;", b"2;", b"3;"]


def test_after_a_restart_of_all_the_log_goes_on_in_its_generation() -> None:
    cluster = Cluster()
    cluster.declare(MIXED)
    cluster.run(2_000)
    for ticket in range(120):
        cluster.propose("b", ticket)
        cluster.run(20)
    cluster.run(1_000)
    before = {name: list(records) for name, records in cluster.disks.items()}
    again = Cluster(disks=before)
    again.declare(MIXED)
    again.run(3_000)
    assert again.running() == {(1, "bft")}
    again.propose("c", 500)
    again.run(1_000)
    for name in NAMES:
        whole = b"".join(row[1] for row in again.commits[name])
        assert whole == b"".join(b"%d;" % number for number in range(120)) + b"500;"


def test_reads_are_served_on_every_member_in_every_generation() -> None:
    cluster = Cluster()
    for declared in (OWN, MIXED):
        cluster.declare(declared)
        cluster.run(2_000)
        for number, name in enumerate(NAMES):
            cluster.perform(name, cluster.cores[name].read(cluster.now, number))
        cluster.run(1_000)
        served = {answer.ticket for answer in cluster.answers if isinstance(answer, Readable)}
        assert served == set(range(4))
        cluster.answers.clear()


def test_a_member_that_is_behind_a_switch_reads_nothing_that_is_out_of_date() -> None:
    cluster = Cluster()
    cluster.declare(MIXED)
    cluster.run(2_000)
    cluster.down.add("d")
    cluster.declare(OWN)
    cluster.run(2_000)
    cluster.propose("a", 1)
    cluster.run(500)
    assert {core.ledger.generation for core in cluster.cores.values()} == {1, 2}
    cluster.down.discard("d")
    cluster.perform("d", cluster.cores["d"].read(cluster.now, 7))
    for _ in range(1_000):
        cluster.run(5)
        if Readable(7, 1) in cluster.answers:
            break
        assert cluster.answers == []
    assert [row[1] for row in cluster.commits["d"]] == [b"1;"]


def test_records_of_another_log_are_refused_with_what_to_do() -> None:
    cluster = Cluster()
    cluster.run(300)
    records = cluster.disks["a"]
    with pytest.raises(AcpError, match=r"of member 'a' .* not of 'b'"):
        make("b", records)
    with pytest.raises(AcpError, match="check the folder"):
        make("a", records, settings=AcpSettings(cluster="other"))
    with pytest.raises(AcpError, match="do not begin"):
        make("a", records[1:])
    with pytest.raises(AcpError, match="record 0 of 'a' is damaged"):
        make("a", [b"\xc1"])


def test_an_engine_that_is_not_installed_is_named() -> None:
    with pytest.raises(AcpError, match="install novacron-consensus-raft"):
        make("a", [], offered={})


def test_hostile_messages_are_counted_and_dropped() -> None:
    core = make("a", [])
    core.start(0)
    rng = random.Random(3)
    sound: list[bytes] = [
        wire.encode(wire.Ping(0, 0, 1)),
        wire.encode(wire.Inner(0, b"x" * 20)),
        wire.encode(wire.Forward(0, wire.encode(wire.Command("b", 1, 1, b"s", b"c")))),
    ]
    for number in range(3_000):
        data = bytearray(rng.choice(sound))
        for _ in range(rng.randint(0, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        core.receive(number, rng.choice(("b", "c", "stranger")), bytes(data))
    assert sum(core.refused.values()) > 100
    assert core.ledger.index == 0


class Clashing:
    NOVACRON_API = 1

    @hookimpl(optionalhook=True)
    def novacron_register_log_engines(self) -> Sequence[Any]:
        return [LogEngine(name="raft", survives="crashes", members_min=3, make=lambda start: None)]  # type: ignore[arg-type, return-value]


def test_two_plugins_that_offer_the_same_engine_are_a_clash_that_names_both() -> None:
    manager = PluginManager.load(only=("consensus-acp", "consensus-raft"), strict=True)
    assert sorted(engines(manager)) == ["raft"]
    from novacron.loader import installed_sources

    wanted = [s for s in installed_sources() if s.name in ("consensus-acp", "consensus-raft")]
    mine = PluginSource(name="zz", distribution="zz", version="1", plugin=Clashing())
    with pytest.raises(PluginLoadError, match="raft"):
        engines(PluginManager.load(sources=[*wanted, mine], strict=True))
