"""What comes from the network is bounded, and what makes no sense is dropped and counted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_agreement import COMMAND_BYTES_MAX, MESSAGE_BYTES_MAX, Note, Rejected, Save, Send
from novacron_consensus_raft import Configuration, ConfigurationError, RaftCore, RaftSettings
from novacron_consensus_raft import _messages as wire
from novacron_consensus_raft._log import Log

CLUSTER = "lab"
MEMBERS = {"a": "", "b": "", "c": ""}


def member(name: str = "a", **settings: int) -> RaftCore:
    made = RaftSettings(cluster=CLUSTER, **settings)  # type: ignore[arg-type]
    core = RaftCore(name, MEMBERS, [], made, random.Random(1))
    core.start(0)
    return core


def leader() -> RaftCore:
    core = member()
    core.tick(5000)
    core.receive(5000, "b", wire.encode(wire.Vote(CLUSTER, 2, True, True)))
    core.receive(5000, "b", wire.encode(wire.Vote(CLUSTER, 2, True)))
    assert core.role == "leader"
    return core


def told(core: RaftCore, message: wire.Message, sender: str = "b") -> list[object]:
    return list(core.receive(6000, sender, wire.encode(message)))


def entry(index: int, term: int, data: bytes = b"x") -> wire.Entry:
    return wire.Entry(index, term, wire.EntryKind.COMMAND, data)


SOUND: list[wire.Message] = [
    wire.RequestVote(CLUSTER, 3, 7, 2, True, False),
    wire.Vote(CLUSTER, 3, True),
    wire.Append(CLUSTER, 3, 1, 7, 2, 5, (entry(8, 3),)),
    wire.Appended(CLUSTER, 3, 1, 7, False, 4, 2),
    wire.SnapshotChunk(CLUSTER, 3, 1, 7, 2, Configuration(("a",)), 5, bytes(32), 0, b"12345"),
    wire.SnapshotProgress(CLUSTER, 3, 1, bytes(32), 5),
    wire.TimeoutNow(CLUSTER, 3),
]


@pytest.mark.parametrize("message", SOUND, ids=lambda message: type(message).__name__)
def test_a_sound_message_arrives_as_it_was_sent(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message), CLUSTER) == message


@pytest.mark.parametrize(
    "message",
    [
        wire.RequestVote(CLUSTER, 0, 1, 1),
        wire.RequestVote(CLUSTER, 2, 1, 3),
        wire.RequestVote(CLUSTER, 2, 0, 1),
        wire.RequestVote(CLUSTER, 2**60, 1, 1),
        wire.Append(CLUSTER, 3, 1, 7, 2, 5, (entry(9, 3),)),
        wire.Append(CLUSTER, 3, 1, 7, 2, 5, (entry(8, 1),)),
        wire.Append(CLUSTER, 3, 1, 7, 2, 5, (entry(8, 4),)),
        wire.Append(CLUSTER, 3, 1, 7, 2, -1),
        wire.Append(CLUSTER, 3, 1, 7, 2, 5, (wire.Entry(8, 3, wire.EntryKind.MEMBERS, b"?"),)),
        wire.Append(CLUSTER, 3, 1, 7, 2, 5, (wire.Entry(8, 3, wire.EntryKind.NOTHING, b"?"),)),
        wire.Appended(CLUSTER, 3, -1, 7, True),
        wire.Appended(CLUSTER, 3, 1, 2**60, True),
        wire.SnapshotChunk(CLUSTER, 3, 1, 7, 2, Configuration(), 5, bytes(32), 3, b"12345"),
        wire.SnapshotChunk(CLUSTER, 3, 1, 7, 2, Configuration(), 5, bytes(31), 0, b"12345"),
        wire.SnapshotChunk(CLUSTER, 3, 1, 0, 0, Configuration(), 5, bytes(32), 0, b"12345"),
        wire.SnapshotProgress(CLUSTER, 3, 1, bytes(32), -5),
    ],
)
def test_impossible_values_are_refused(message: wire.Message) -> None:
    with pytest.raises(wire.MessageError, match="impossible values"):
        wire.decode(wire.encode(message), CLUSTER)


def test_another_clusters_message_is_refused() -> None:
    with pytest.raises(wire.MessageError, match="belongs to the cluster 'prod'"):
        wire.decode(wire.encode(wire.TimeoutNow("prod", 3)), CLUSTER)


def test_a_message_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(wire.MessageError, match=f"of {MESSAGE_BYTES_MAX + 1} bytes"):
        wire.decode(bytes(MESSAGE_BYTES_MAX + 1), CLUSTER)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_dropped_and_counted(data: bytes) -> None:
    core = member()
    effects = core.receive(1, "b", data)
    assert all(isinstance(effect, Note) for effect in effects)
    assert core.refused == {"no sound message": 1}


def test_the_longest_command_fits_into_a_message() -> None:
    core = leader()
    effects = core.propose(6000, 1, bytes(COMMAND_BYTES_MAX))
    assert not any(isinstance(effect, Rejected) for effect in effects)
    core.receive(6000, "b", wire.encode(wire.Appended(CLUSTER, 2, 1, 2, True)))
    longest = wire.Append(CLUSTER, 2, 1, 2, 2, 0, (core.log.entry(3),))
    assert wire.decode(wire.encode(longest), CLUSTER) == longest
    assert core.propose(6000, 2, bytes(COMMAND_BYTES_MAX + 1)) == [Rejected(2, "too-large", "a")]


def test_entries_that_contradict_what_is_committed_are_dropped() -> None:
    core = member()
    told(core, wire.Append(CLUSTER, 2, 1, 1, 1, 2, (entry(2, 2),)))
    assert core.commit == 2
    effects = told(core, wire.Append(CLUSTER, 2, 1, 1, 1, 2, (entry(2, 1), entry(3, 2))))
    assert not any(isinstance(effect, Save | Send) for effect in effects)
    assert core.refused == {"entries that contradict what is committed": 1}
    assert core.log.last_index == 2


def test_a_second_leader_in_one_term_is_not_followed() -> None:
    core = leader()
    told(core, wire.Append(CLUSTER, 2, 1, 1, 1, 0))
    assert core.role == "leader"
    assert core.refused == {"a second leader in one term": 1}


def test_acknowledgements_of_what_was_never_sent_count_for_nothing() -> None:
    core = leader()
    told(core, wire.Appended(CLUSTER, 2, 1, 99, True))
    told(core, wire.Appended(CLUSTER, 2, 99, 2, True))
    assert core.commit == 0
    assert sorted(core.refused.values()) == [1, 1]


def test_a_snapshot_that_is_too_large_or_not_what_it_says_is_not_kept() -> None:
    core = member(snapshot_bytes_max=10)
    known = Configuration(("a", "b"))
    place = (CLUSTER, 2, 1, 7, 2, known)
    told(core, wire.SnapshotChunk(*place, 11, bytes(32), 0, b"1234"))
    told(core, wire.SnapshotChunk(*place, 4, bytes(32), 0, b"1234"))
    assert core.commit == 0
    assert set(core.refused) == {
        "a snapshot that is larger than snapshot_bytes_max",
        "a snapshot that is not what its digest says",
    }


@pytest.mark.parametrize(
    ("voters", "learners", "remove", "why"),
    [
        ({}, {}, ["z"], "is no member"),
        ({"d": ""}, {"d": ""}, [], "named twice"),
        ({}, {"a": "", "b": "", "c": ""}, [], "nobody would be left"),
        ({"x" * 256: ""}, {}, [], "a name has 1 to"),
        ({"d": "x" * 256}, {}, [], "the address of"),
        ({f"m{n}": "" for n in range(70)}, {}, [], "at most 64"),
        ({f"{n}-{'é' * 250}": "é" * 250 for n in range(40)}, {}, [], "take more than"),
    ],
)
def test_a_change_of_members_that_makes_no_sense_is_refused(
    voters: dict[str, str], learners: dict[str, str], remove: list[str], why: str
) -> None:
    known = Configuration.of(MEMBERS)
    with pytest.raises(ConfigurationError, match=why):
        known.changed(voters, learners, remove)


NAMES = st.sets(st.sampled_from("abcdefg"), min_size=1)


@given(NAMES, NAMES, NAMES, NAMES)
@settings(max_examples=300, deadline=None)
def test_two_majorities_always_meet(
    before: set[str], after: set[str], one: set[str], other: set[str]
) -> None:
    """Of a configuration, and of it and the next one: so no two leaders, no two decisions."""
    old = Configuration(tuple(sorted(before)))
    joint = old.changed(
        dict.fromkeys(after - before, ""), {}, sorted(before - after) if after - before else []
    )
    for first, second in ((old, old), (old, joint), (joint, joint), (joint, joint.settled())):
        if first.decided(one) and second.decided(other):
            assert one & other


@given(st.lists(st.integers(1, 4), max_size=12), st.lists(st.integers(1, 4), max_size=12))
@settings(max_examples=300, deadline=None)
def test_a_hint_is_never_before_what_is_common(left: list[int], right: list[int]) -> None:
    """What leader and follower agree on is skipped by no hint, so the search always ends."""

    def made(terms: list[int]) -> Log:
        log = Log(0, 0, Configuration())
        for index, term in enumerate(sorted(terms), 1):
            log.append(entry(index, term))
        return log

    leader_log, follower_log = made(left), made(right)
    common = 0
    for index in range(1, min(leader_log.last_index, follower_log.last_index) + 1):
        if leader_log.term(index) != follower_log.term(index):
            break
        common = index
    previous = leader_log.last_index
    rounds = 0
    while follower_log.term(previous) != leader_log.term(previous):
        hint = follower_log.common(previous, leader_log.term(previous) or 0)
        previous, _ = leader_log.common(min(hint[0], previous - 1), hint[1])
        assert previous >= common
        rounds += 1
    assert rounds <= 5, "one exchange for each term at the most"


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_entries_go_out_in_order_and_within_the_size(sizes: list[int], most: int) -> None:
    log = Log(0, 0, Configuration())
    for index, size in enumerate(sizes, 1):
        log.append(entry(index, 1, bytes(size)))
    sent: list[int] = []
    while len(sent) < len(sizes):
        taken = log.after(len(sent), most)
        assert len(taken) == 1 or sum(len(one.data) for one in taken) <= most
        sent += [one.index for one in taken]
    assert sent == list(range(1, len(sizes) + 1))


def test_a_configuration_counts_while_its_entry_is_in_the_log_and_no_longer() -> None:
    log = Log(0, 0, Configuration())
    first, second = Configuration(("a", "b")), Configuration(("a",), version=1)
    log.append(wire.Entry(1, 1, wire.EntryKind.MEMBERS, first.encode()))
    log.append(entry(2, 1))
    log.append(wire.Entry(3, 1, wire.EntryKind.MEMBERS, second.encode()))
    assert (log.configuration, log.configuration_at(2)) == (second, first)
    log.append(entry(2, 2))
    assert (log.configuration, log.configuration_index) == (first, 1)
    log.compact(2)
    assert (log.configuration, log.configuration_at(2)) == (first, first)
