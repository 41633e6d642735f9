"""Replicas over a simulated wide area: levels, sessions, staleness, catching up, hostile peers."""

from __future__ import annotations

import random
from typing import Any

import pytest
from novacron_consensus_state import Level, Refused, Replica, ReplicaSettings
from novacron_consensus_state import _messages as msg
from novacron_consensus_state._effects import Answer
from novacron_consensus_state._messages import WireError
from novacron_consensus_state._metrics import metrics, status
from novacron_consensus_state._wan import Wan

REGIONS = {"ap0": "ap", "eu0": "eu", "eu1": "eu", "us0": "us", "us1": "us"}


def wan(**more: Any) -> Wan:
    settings = ReplicaSettings(**more.pop("settings", {}))
    made = Wan(
        regions=more.pop("regions", REGIONS),
        delays_ms=(40, 100),
        loss=more.pop("loss", 0.0),
        seed=more.pop("seed", 1),
        settings=settings,
        **more,
    )
    made.start()
    made.run(2_000)
    return made


def wrote(net: Wan, member: str, name: str, value: Any, ms: int = 8_000, **more: Any) -> Any:
    answers: list[Answer | Refused] = []
    net.write(member, name, "lww", "set", [value], answers.append, **more)
    net.run(ms, lambda: bool(answers))
    return answers[0]


def found(net: Wan, member: str, name: str, kind: str = "lww", **more: Any) -> Any:
    answers: list[Answer | Refused] = []
    net.read(member, name, kind, answers.append, **more)
    net.run(8_000, lambda: bool(answers))
    return answers[0]


def test_an_eventual_write_is_answered_at_once_and_spreads() -> None:
    net = wan()
    began = net.now
    assert isinstance(wrote(net, "ap0", "k", 1), Answer)
    assert net.now == began
    net.run(200)
    assert [found(net, member, "k").value for member in REGIONS] == [1] * 5


def test_a_session_reads_what_it_wrote_wherever_it_goes() -> None:
    net = wan()
    token = wrote(net, "ap0", "k", 1, level=Level.LOCAL).token
    assert found(net, "us1", "k").value is None
    answer = found(net, "us1", "k", level=Level.LOCAL, token=token)
    assert answer.value == 1
    later = found(net, "eu1", "k", level=Level.LOCAL, token=answer.token)
    assert later.value == 1


def test_a_session_that_has_seen_what_cannot_come_is_refused_with_a_hint() -> None:
    net = wan()
    net.isolate("ap")
    token = wrote(net, "ap0", "k", 1, level=Level.LOCAL).token
    refused = found(net, "us0", "k", level=Level.LOCAL, token=token, timeout_ms=700)
    assert isinstance(refused, Refused)
    assert (refused.code, "writes of ap0" in refused.reason) == ("session", True)
    assert "begin it anew" in refused.hint


def test_a_token_that_is_none_is_refused() -> None:
    refused = found(wan(), "us0", "k", level=Level.LOCAL, token=b"\xc1nonsense")
    assert (refused.code, refused.truth) == ("session", "nothing was changed")


def test_a_quorum_read_sees_every_quorum_write_before_it() -> None:
    net = wan()
    for n, member in enumerate(REGIONS):
        assert isinstance(wrote(net, member, "k", n, level=Level.QUORUM), Answer)
        reader = list(REGIONS)[-1 - n]
        assert found(net, reader, "k", level=Level.QUORUM).value == n


def test_a_minority_refuses_a_quorum_write_and_says_that_it_may_spread_yet() -> None:
    net = wan()
    net.isolate("us")
    refused = wrote(net, "us0", "k", 1, level=Level.QUORUM, timeout_ms=1_500)
    assert isinstance(refused, Refused)
    assert refused.code == "timeout"
    assert "2 of 5 members" in refused.reason
    assert "whether a majority has it is not known" in refused.truth
    assert isinstance(found(net, "us1", "k", level=Level.QUORUM, timeout_ms=900), Refused)
    assert isinstance(wrote(net, "eu0", "k", 2, level=Level.QUORUM), Answer)
    net.isolate("us", heal=True)
    assert net.run(10_000, net.converged)


def test_a_quorum_write_of_what_holds_already_waits_for_a_majority_of_that() -> None:
    net = wan()
    net.write("ap0", "set", "g-set", "add", ["x"])
    answers: list[Any] = []
    net.write("ap0", "set", "g-set", "add", ["x"], answers.append, level=Level.QUORUM)
    assert not answers
    net.run(3_000, lambda: bool(answers))
    holders = [n for n, r in net.replicas.items() if r.store.value(("set", "g-set")) == ["x"]]
    assert len(holders) >= 3


def test_staleness_is_told_and_is_never_below_the_truth() -> None:
    net = wan()
    ages = net.replicas["ap0"].staleness_ms(net.now)
    assert set(ages) == set(REGIONS) - {"ap0"}
    assert all(age is not None and 0 < age < 1_500 for age in ages.values())
    net.isolate("us")
    net.run(5_000)
    ages = net.replicas["ap0"].staleness_ms(net.now)
    assert (ages["us0"] or 0) > 5_000
    assert (ages["eu0"] or 0) < 1_500


def test_a_bound_on_staleness_is_kept_or_the_read_is_refused_with_a_hint() -> None:
    net = wan()
    assert isinstance(found(net, "ap0", "k", max_staleness_ms=3_000), Answer)
    net.isolate("us")
    net.run(4_000)
    refused = found(net, "ap0", "k", max_staleness_ms=3_000, timeout_ms=500)
    assert isinstance(refused, Refused)
    assert refused.code == "stale"
    assert "(region us)" in refused.reason
    assert "ask a node of region us" in refused.hint
    assert isinstance(found(net, "ap0", "k", max_staleness_ms=3_000, timeout_ms=0), Refused)
    net.isolate("us", heal=True)
    assert isinstance(found(net, "ap0", "k", max_staleness_ms=3_000), Answer)


def test_metrics_have_the_staleness_of_each_member_and_range() -> None:
    net = wan()
    text = metrics(net.replicas["ap0"], net.now)
    assert text.count("novacron_state_staleness_seconds{") == 4 * 64
    assert 'member="eu1",region="eu",range="63"' in text
    told = status(net.replicas["ap0"], net.now)
    assert told["peers"]["us1"]["events_it_lacks"] == 0


class Watched(Wan):
    """A network that notes who sends events to whom."""

    def _post(self, member: str, to: str, message: bytes) -> None:
        if isinstance(msg.decode(msg.mark_of("wan"), message), msg.Events):
            crossings.append((self.regions[member], self.regions[to]))
        super()._post(member, to, message)


crossings: list[tuple[str, str]] = []


def test_an_event_crosses_to_another_region_once() -> None:
    net = Watched(
        regions=REGIONS,
        delays_ms=(40, 100),
        loss=0.0,
        seed=1,
        settings=ReplicaSettings(repeat_ms=0),
    )
    net.start()
    net.run(2_000)
    crossings.clear()
    wrote(net, "ap0", "k", 1)
    net.run(400)
    assert net.converged()
    assert sorted(crossings) == [("ap", "eu"), ("ap", "us"), ("eu", "eu"), ("us", "us")]


def test_lost_events_are_asked_for() -> None:
    net = wan(loss=0.3, settings={"repeat_ms": 0}, seed=7)
    for n in range(100):
        wrote(net, list(REGIONS)[n % 5], f"k{n % 9}", n)
        net.run(20)
    assert net.run(20_000, net.converged)


def test_what_all_members_have_is_not_kept() -> None:
    net = wan()
    for n in range(50):
        wrote(net, "ap0", f"k{n}", n)
    assert len(net.replicas["ap0"].store.history) == 50
    net.run(5_000)
    assert all(len(replica.store.history) == 0 for replica in net.replicas.values())


def test_a_member_that_was_away_for_too_long_compares_trees() -> None:
    net = wan(settings={"history_bytes": 2_000})
    for n in range(400):
        wrote(net, "eu0", f"k{n}", n)
    assert net.run(20_000, net.converged)
    net.isolate("ap")
    for n in range(300):
        wrote(net, "eu0", f"k{n * 7 % 500}", n + 1_000)
        net.run(30)
    net.write("us0", "k7", "lww", "delete", [])
    wrote(net, "ap0", "mine", 1)
    net.run(120_000)
    net.isolate("ap", heal=True)
    assert net.run(10_000, net.converged)
    assert net.replicas["ap0"].member.sync.finished >= 1
    assert found(net, "us1", "mine").value == 1


def test_a_large_key_is_taken_over_in_parts() -> None:
    net = wan(settings={"history_bytes": 1_000})
    net.isolate("ap")
    for n in range(300):
        net.write("eu0", "big", "list", "append", ["x" * 4_000 + str(n)])
        net.run(5)
    net.isolate("ap", heal=True)
    assert net.run(30_000, net.converged)
    assert len(net.replicas["ap0"].store.value(("big", "list"))) == 300
    refused = found(net, "ap0", "big", "list", level=Level.QUORUM)
    assert (refused.code, "strong or local" in refused.hint) == ("too-large", True)


def test_events_up_to_what_is_being_taken_over_wait_until_it_is() -> None:
    """Or a row that the peer has seen taken away would come back for good."""
    net = wan(settings={"history_bytes": 100, "repeat_ms": 0, "probe_ms": 60_000})
    replica = net.replicas["ap0"]
    net.isolate("ap")
    wrote(net, "eu0", "k", 1)
    late = replica_events(net, "eu0")
    net.write("eu0", "k", "lww", "delete", [])
    net.run(500)
    eu0 = net.replicas["eu0"]
    mark = msg.mark_of("wan")
    replica.receive(net.now, "eu0", msg.encode(mark, msg.Offer(dict(eu0.store.vector))))
    session = replica.member.sync.session
    assert session is not None
    digests = msg.Digests(session.number, dict(eu0.store.vector), {-1: eu0.store.tree.branches()})
    replica.store.tree.touch(("k", "lww"))
    replica.member.store.held = dict(eu0.store.vector)
    replica.receive(net.now, "eu0", msg.encode(mark, msg.Events(late)))
    assert replica.store.rows(("k", "lww")) == {}
    assert replica.store.waiting.count == 1
    replica.receive(net.now, "eu0", msg.encode(mark, digests))
    assert replica.store.vector == eu0.store.vector
    assert (replica.store.rows(("k", "lww")), replica.store.waiting.count) == ({}, 0)


def replica_events(net: Wan, member: str) -> list[bytes]:
    return [record[1:] for record in net.records[member] if record[:1] == b"E"]


def test_two_types_of_one_name_are_refused() -> None:
    net = wan()
    wrote(net, "ap0", "k", 1)
    answers: list[Any] = []
    net.write("ap0", "k", "or-set", "add", ["x"], answers.append)
    assert (answers[0].code, "is a lww" in answers[0].reason) == ("type", True)


def test_a_change_that_is_too_large_is_refused_and_changes_nothing() -> None:
    net = wan()
    answers: list[Any] = []
    values = ["x" * 60_000 + str(n) for n in range(10)]
    net.write("ap0", "k", "g-set", "add", values, answers.append)
    assert (answers[0].code, answers[0].truth) == ("too-large", "nothing was changed")
    assert net.replicas["ap0"].store.entries == {}


def test_a_replica_goes_on_from_its_records() -> None:
    net = wan(settings={"snapshot_bytes": 4_096})
    for n in range(200):
        wrote(net, "ap0", f"k{n % 30}", n)
        net.run(10)
    net.run(3_000)
    old = net.replicas.pop("ap0")
    net.start()
    new = net.replicas["ap0"]
    assert (new.store.vector, new.store.tree.root()) == (old.store.vector, old.store.tree.root())
    assert new.member.origin == old.member.origin
    wrote(net, "ap0", "again", 1)
    assert net.run(10_000, net.converged)


def test_a_member_that_lost_its_disk_begins_a_new_life_and_gets_everything_back() -> None:
    net = wan()
    for n in range(20):
        wrote(net, "ap0", f"k{n}", n)
    net.run(2_000)
    old = net.replicas.pop("ap0")
    net.records["ap0"].clear()
    net.start()
    new = net.replicas["ap0"]
    assert new.member.origin != old.member.origin
    wrote(net, "ap0", "new", 1)
    assert net.run(20_000, net.converged)
    assert found(net, "ap0", "k7").value == 7


def test_a_member_with_an_old_copy_of_its_disk_does_not_number_on_from_there() -> None:
    net = wan()
    wrote(net, "ap0", "k", 1)
    copy = list(net.records["ap0"])
    wrote(net, "ap0", "k", 2)
    net.run(2_000)
    net.replicas.pop("ap0")
    net.records["ap0"] = copy
    net.start()
    origin = net.replicas["ap0"].member.origin
    net.run(2_000)
    assert net.replicas["ap0"].member.origin != origin
    wrote(net, "ap0", "other", 3)
    assert net.run(10_000, net.converged)
    assert found(net, "us0", "k").value == 2


def test_a_replica_that_holds_something_else_than_its_peers_is_noticed_and_mended() -> None:
    net = wan()
    wrote(net, "eu0", "k", 1)
    net.run(3_000)
    broken = net.replicas["ap0"].store
    row = broken.entries["k", "lww"].rows[()]
    row.clear()
    del broken.entries["k", "lww"]
    broken.tree.touch(("k", "lww"))
    net.run(10_000)
    # What has been seen is not written again: the damage is the same everywhere, or nowhere.
    assert net.converged()


def test_records_of_another_member_or_cluster_are_refused() -> None:
    net = wan()
    wrote(net, "ap0", "k", 1)
    records = list(net.records["ap0"])
    for name, cluster in (("eu0", "wan"), ("ap0", "other")):
        with pytest.raises(WireError, match="this is the state of member 'ap0'"):
            Replica(name, REGIONS, records, ReplicaSettings(), random.Random(1), cluster=cluster)
    with pytest.raises(WireError, match="no header"):
        Replica("ap0", REGIONS, records[1:], ReplicaSettings(), random.Random(1))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"", "version none"),
        (b"\x02" + bytes(20), "version 2"),
        (msg.encode(msg.mark_of("other"), msg.Ack({})), "another cluster"),
        (msg.mark_of("wan") + b"\xc1", "not a message"),
        (msg.mark_of("wan") + bytes(msg.WIRE_BYTES_MAX), "the most is"),
        (msg.encode(msg.mark_of("wan"), msg.Events([b"\x90"])), "not an event"),
    ],
)
def test_an_unsound_message_is_counted_and_changes_nothing(message: bytes, said: str) -> None:
    net = wan()
    replica = net.replicas["ap0"]
    before = dict(replica.store.vector)
    effects = replica.receive(net.now, "eu0", message)
    assert replica.refused_messages == 1
    assert said in str(effects)
    assert replica.store.vector == before


def test_a_stranger_is_not_heard() -> None:
    replica = wan().replicas["ap0"]
    replica.receive(5_000, "mallory", msg.encode(msg.mark_of("wan"), msg.Ack({"ap0/1": 9})))
    assert replica.refused_messages == 1


def test_a_clock_that_is_far_ahead_is_told_and_not_followed() -> None:
    net = wan()
    net.replicas["us0"].member.clock.offset_ms = 3_600_000
    wrote(net, "us0", "k", "from the future")
    net.run(500)
    wrote(net, "ap0", "k", "now")
    net.run(500)
    assert found(net, "us0", "k").value == "now"
    assert found(net, "ap0", "k").value == "now"


def test_members_may_come_and_go() -> None:
    net = wan()
    wrote(net, "ap0", "k", 1)
    net.run(3_000)
    more = {**REGIONS, "za0": "za"}
    for name, replica in net.replicas.items():
        net._perform(name, replica.set_members(net.now, more))
    net.regions = more
    net._delays[frozenset(("za", "ap"))] = 50
    net._delays |= {frozenset(("za", other)): 50 for other in ("eu", "us")}
    net.start()
    assert net.run(20_000, net.converged)
    assert found(net, "za0", "k").value == 1


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="probe_ms"):
        ReplicaSettings(probe_ms=0)
