"""Strong reads and writes through raft."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from novacron_agreement import LogCore
from novacron_agreement.machine import SnapshotError
from novacron_consensus_state import Level, Refused, ReplicaSettings, _kinds
from novacron_consensus_state._effects import Answer
from novacron_consensus_state._strong import LogMachine, command_of
from novacron_consensus_state._wan import Wan

REGIONS = {"ap0": "ap", "eu0": "eu", "us0": "us", "za0": "za"}
VOTERS = ("ap0", "eu0", "us0")
raft = pytest.importorskip("novacron_consensus_raft")


def with_raft(name: str) -> Callable[[Sequence[bytes]], LogCore] | None:
    if name not in VOTERS:
        return None

    def make(records: Sequence[bytes]) -> LogCore:
        settings = raft.RaftSettings(cluster="wan", heartbeat_ms=150, election_ms=1_500)
        members = dict.fromkeys(VOTERS, "")
        core: LogCore = raft.RaftCore(name, members, records, settings, random.Random(name))
        return core

    return make


def wan(loss: float = 0.0) -> Wan:
    made = Wan(
        regions=REGIONS,
        delays_ms=(40, 100),
        loss=loss,
        seed=3,
        settings=ReplicaSettings(),
        log=with_raft,
    )
    made.start()
    made.run(8_000)
    return made


def wrote(net: Wan, member: str, *change: Any, **more: Any) -> Any:
    answers: list[Answer | Refused] = []
    name, kind, operation, *values = change
    net.write(member, name, kind, operation, values, answers.append, level=Level.STRONG, **more)
    net.run(10_000, lambda: bool(answers))
    return answers[0]


def found(net: Wan, member: str, name: str, kind: str, level: Level = Level.STRONG) -> Any:
    answers: list[Answer | Refused] = []
    net.read(member, name, kind, answers.append, level=level)
    net.run(10_000, lambda: bool(answers))
    return answers[0]


def test_a_strong_read_anywhere_sees_the_strong_write_before_it() -> None:
    net = wan(loss=0.005)
    for n, member in enumerate((*REGIONS, *REGIONS)):
        answer = wrote(net, member, "k", "lww", "set", n)
        assert isinstance(answer, Answer), answer
        assert answer.version == n + 1
        reader = list(REGIONS)[(n + 1) % 4]
        read = found(net, reader, "k", "lww")
        assert (read.value, read.version) == (n, n + 1)


def test_a_version_is_compared() -> None:
    net = wan()
    first = wrote(net, "ap0", "k", "lww", "set", "one")
    assert isinstance(wrote(net, "za0", "k", "lww", "set", "two", expected=first.version), Answer)
    refused = wrote(net, "eu0", "k", "lww", "set", "three", expected=first.version)
    assert (refused.code, refused.reason) == ("version", "version 2 holds")
    assert found(net, "eu0", "k", "lww").value == "two"


def test_strong_writes_reach_members_outside_the_log_and_other_levels() -> None:
    net = wan()
    wrote(net, "ap0", "set", "or-set", "add", "x", "y")
    wrote(net, "za0", "set", "or-set", "remove", "x")
    net.run(2_000)
    for member in REGIONS:
        assert found(net, member, "set", "or-set", Level.EVENTUAL).value == ["y"]


def test_a_strong_write_replaces_what_its_writer_has_seen_of_other_levels() -> None:
    net = wan()
    net.write("eu0", "k", "mv", "set", ["weak"])
    net.run(1_000)
    wrote(net, "ap0", "k", "mv", "set", "strong")
    net.run(2_000)
    assert {str(replica.store.value(("k", "mv"))) for replica in net.replicas.values()} == {
        "['strong']"
    }


def test_strong_increments_are_counted_once_and_together() -> None:
    net = wan()
    answers: list[Any] = []
    for n in range(12):
        member = list(REGIONS)[n % 4]
        net.write(member, "n", "pn-counter", "increment", [n], answers.append, level=Level.STRONG)
    net.run(10_000, lambda: len(answers) == 12)
    assert found(net, "za0", "n", "pn-counter").value == sum(range(12))


def test_a_minority_cannot_write_strongly_and_a_healed_one_catches_up() -> None:
    net = wan()
    net.isolate("us")
    refused = wrote(net, "us0", "k", "lww", "set", 1, timeout_ms=3_000)
    assert refused.code == "timeout"
    assert "read the key at strong" in refused.truth
    for n in range(3):
        net.run(3_000)
        answer = wrote(net, "ap0", "k", "lww", "set", n, timeout_ms=9_000)
    assert isinstance(answer, Answer)
    net.isolate("us", heal=True)
    assert net.run(30_000, net.converged)
    # The refused write may have been made in the end; what a strong read says holds for all.
    values = {found(net, member, "k", "lww").value for member in REGIONS}
    assert len(values) == 1


def command(client: str, key: tuple[str, str], operation: str, *values: Any) -> bytes:
    writer = _kinds.Writer(b"tag.", 7)
    return command_of(client, key, operation, values, writer, _kinds.Change(), None)


def test_the_machine_applies_a_request_once_and_its_snapshot_makes_it_again() -> None:
    machine = LogMachine()
    one = command("c1", ("n", "g-counter"), "increment", 5)
    event, number, _ = machine.apply(one)
    assert event is not None
    assert number == 1
    assert machine.apply(one) == (None, 1, "")
    machine.apply(command("c2", ("s", "or-set"), "add", "x"))
    again = LogMachine()
    again.restore(machine.snapshot())
    assert again.snapshot() == machine.snapshot()
    last = command("c3", ("n", "g-counter"), "increment", 2)
    assert again.apply(last) == machine.apply(last)
    with pytest.raises(SnapshotError):
        again.restore(b"nonsense")


@pytest.mark.parametrize(
    "unsound",
    [b"", b"\x90", command("c", ("k", "lww"), "set"), command("c", ("k", "shoe"), "set", 1)],
)
def test_an_unsound_command_is_refused_by_the_machine(unsound: bytes) -> None:
    machine = LogMachine()
    event, number, reason = machine.apply(unsound)
    assert (event, number, machine.count) == (None, -1, 0)
    assert reason


def test_a_member_that_forgot_its_votes_stays_out_of_the_log_for_good() -> None:
    net = wan()
    wrote(net, "ap0", "k", "lww", "set", 1)
    net.run(3_000)
    net.replicas.pop("us0")
    net.records["us0"].clear()
    for _ in range(2):  # also when it begins again, with the records of its new life
        net.start()
        net.run(10_000)
        assert net.converged()
        replica = net.replicas["us0"]
        assert replica.member.strong.core is None
        assert not [record for record in net.records["us0"] if record[:1] == b"L"]
        assert isinstance(wrote(net, "us0", "k", "lww", "set", 2), Answer)
        net.replicas.pop("us0")


def test_a_new_member_votes_only_when_a_majority_knows_that_it_lives() -> None:
    net = Wan(
        regions=REGIONS,
        delays_ms=(40, 100),
        loss=0.0,
        seed=3,
        settings=ReplicaSettings(),
        log=with_raft,
    )
    for region in ("eu", "us", "za"):
        net.isolate(region)
    net.start()
    net.run(20_000)
    assert not any(replica.member.strong.started for replica in net.replicas.values())
    for region in ("eu", "us", "za"):
        net.isolate(region, heal=True)
    assert isinstance(wrote(net, "za0", "k", "lww", "set", 1, timeout_ms=9_000), Answer)
    lives = net.replicas["ap0"].store.value(("~lives", "g-set"))
    assert [life.partition("/")[0] for life in lives] == sorted(VOTERS)
