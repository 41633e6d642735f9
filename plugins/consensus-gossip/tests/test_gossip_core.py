"""What one member does, event by event."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from novacron_consensus_gossip import GossipCore, Me, State, Timing
from novacron_consensus_gossip import _wire as wire
from novacron_consensus_gossip._effects import (
    Changed,
    Deliver,
    Effect,
    Note,
    Save,
    Send,
    Stream,
)

T = Timing()


def member(
    *others: str, name: str = "me", seeds: tuple[str, ...] = (), records: tuple[bytes, ...] = ()
) -> GossipCore:
    """A member that knows these others, and has told what it had to tell."""
    me = Me(name=name, address=f"{name}:1", seeds=seeds)
    core = GossipCore(me, T, random.Random(4), records)
    core.start(0)
    if others:
        hear(core, 0, *(alive(other) for other in others))
    while core._desk.news.take(10_000, 1):
        continue
    return core


def alive(name: str, incarnation: int = 0, life: int = 1) -> wire.Alive:
    return wire.Alive(name, incarnation, f"{name}:1", life, {})


def doubt(name: str, state: State, incarnation: int = 0, by: str = "b") -> wire.Doubt:
    return wire.Doubt(name, incarnation, state, by)


def hear(core: GossipCore, now: int, *news: wire.Claim) -> list[Effect]:
    return core.receive(now, "b:1", wire.encode(wire.Gossip("b", news)))


def run_to(core: GossipCore, until: int) -> list[tuple[int, Effect]]:
    """Let time pass, event by event."""
    done: list[tuple[int, Effect]] = []
    while (due := core.deadline_ms) is not None and due <= until:
        done += [(due, effect) for effect in core.tick(due)]
    return done


def sent(effects: Iterable[Effect]) -> list[tuple[str, wire.Message]]:
    return [
        (effect.to, wire.decode_datagram(effect.message))
        for effect in effects
        if isinstance(effect, Send)
    ]


def first_ping(core: GossipCore, target: str) -> tuple[int, wire.Ping]:
    """Let time pass until it pings that member; the others answer."""
    while (due := core.deadline_ms) is not None:
        for to, message in sent(core.tick(due)):
            if isinstance(message, wire.Ping) and message.target == target:
                return due, message
            if isinstance(message, wire.Ping):
                core.receive(due, to, wire.encode(wire.Ack(message.target, message.number)))
    raise AssertionError("it pings nobody")


def held(core: GossipCore, name: str) -> tuple[State, int] | None:
    found = core.members.get(name)
    return None if found is None else (found.state, found.incarnation)


def test_a_ping_is_answered_to_where_it_came_from() -> None:
    core = member("a")
    effects = core.receive(5, "nat:9", wire.encode(wire.Ping("a", 7, "me")))
    assert sent(effects) == [("nat:9", wire.Ack("me", 7))]


def test_a_ping_for_another_name_is_not_answered() -> None:
    core = member("a")
    assert core.receive(5, "a:1", wire.encode(wire.Ping("a", 7, "who-was-here-before"))) == []
    assert core.counts["not-me"] == 1


def test_a_stranger_that_pings_is_answered_and_asked_who_it_is() -> None:
    core = member("a")
    effects = core.receive(5, "s:1", wire.encode(wire.Ping("s", 7, "me")))
    compares = [effect.to for effect in effects if isinstance(effect, Stream)]
    assert compares == ["s:1"]
    again = core.receive(6, "s:1", wire.encode(wire.Ping("s", 8, "me")))
    assert not [effect for effect in again if isinstance(effect, Stream)], "once per period"


def test_without_an_answer_others_are_asked_and_then_the_member_is_suspected() -> None:
    core = member("a", "b", "c", "d", "e")
    at, _ = first_ping(core, "a")
    effects = run_to(core, at + T.probe_ms)
    asked = [to for to, message in sent(e for _, e in effects) if isinstance(message, wire.Relay)]
    assert len(set(asked)) == T.relays
    assert "a:1" not in asked
    run_to(core, at + T.period_ms - 1)
    assert held(core, "a") == (State.ALIVE, 0)
    run_to(core, at + T.period_ms)
    assert held(core, "a") == (State.SUSPECT, 0)


def test_an_answer_through_another_counts() -> None:
    core = member("a", "b", "c", "d")
    at, ping = first_ping(core, "a")
    run_to(core, at + T.probe_ms)
    core.receive(at + 600, "b:1", wire.encode(wire.Ack("a", ping.number)))
    run_to(core, at + T.period_ms)
    assert held(core, "a") == (State.ALIVE, 0)
    assert core.health == 0


def test_an_answer_in_another_name_does_not_count() -> None:
    core = member("a", "b", "c", "d")
    at, ping = first_ping(core, "a")
    core.receive(at + 5, "a:1", wire.encode(wire.Ack("b", ping.number)))
    assert core.counts["answers-refused"] == 1
    run_to(core, at + T.period_ms)
    assert held(core, "a") == (State.SUSPECT, 0)


def test_a_late_answer_is_no_error() -> None:
    core = member("a", "b", "c", "d")
    at, ping = first_ping(core, "a")
    run_to(core, at + 2 * T.period_ms)
    core.receive(at + 2 * T.period_ms, "a:1", wire.encode(wire.Ack("a", ping.number)))


def test_who_is_asked_to_try_pings_and_passes_the_answer_on() -> None:
    core = member("a", "b")
    relay = wire.Relay("b", 77, "a", "a:1")
    [(to, ping)] = sent(core.receive(5, "b:1", wire.encode(relay)))
    assert to == "a:1"
    assert isinstance(ping, wire.Ping)
    answer = core.receive(9, "a:1", wire.encode(wire.Ack("a", ping.number)))
    assert sent(answer) == [("b:1", wire.Ack("a", 77))]


def test_who_tried_in_vain_says_so() -> None:
    core = member("a", "b")
    core.receive(5, "b:1", wire.encode(wire.Relay("b", 77, "a", "a:1")))
    effects = [effect for _, effect in run_to(core, 5 + T.probe_ms)]
    assert ("b:1", wire.Nack("me", 77)) in sent(effects)


def test_a_flood_of_requests_to_try_is_bounded() -> None:
    core = member("a", "b")
    for number in range(1_000):
        core.receive(5, "b:1", wire.encode(wire.Relay("b", number, "a", "a:1")))
    assert core.counts["relays-refused"] == 1_000 - 256


def test_missing_nacks_tell_a_node_that_its_own_network_is_bad() -> None:
    core = member("a", "b", "c", "d", "e")
    at, _ = first_ping(core, "a")
    run_to(core, at + T.period_ms)
    assert core.health == T.relays
    # From now on it gives others more time.
    assert core._health.stretch == 1 + T.relays


def test_nacks_tell_a_node_that_the_other_is_to_blame() -> None:
    core = member("a", "b", "c", "d", "e")
    at, ping = first_ping(core, "a")
    run_to(core, at + T.probe_ms)
    for other in ("b", "c", "d", "e"):
        core.receive(at + 700, f"{other}:1", wire.encode(wire.Nack(other, ping.number)))
    run_to(core, at + T.period_ms)
    assert held(core, "a") == (State.SUSPECT, 0)
    assert core.health == 0


def test_a_doubted_member_outbids_the_doubt_keeps_that_and_tells_it() -> None:
    core = member("a", "b")
    effects = hear(core, 10, doubt("me", State.SUSPECT, incarnation=4))
    [save] = [effect for effect in effects if isinstance(effect, Save)]
    assert wire.decode_saved(save.records[0]).incarnation == 5
    assert core.incarnation == 5
    gossip = [m for _, m in sent(e for _, e in run_to(core, 300)) if isinstance(m, wire.Gossip)]
    assert gossip
    assert all(gossip[0].news[0] == m.news[0] for m in gossip)
    claim = gossip[0].news[0]
    assert isinstance(claim, wire.Alive)
    assert (claim.name, claim.incarnation) == ("me", 5)


def test_an_outdated_doubt_of_oneself_is_nothing_to_refute() -> None:
    saved = wire.encode_saved(wire.Saved("me", 6, ()))
    core = member("a", records=(saved,))
    assert core.incarnation == 7
    hear(core, 10, doubt("me", State.DEAD, incarnation=6))
    assert core.incarnation == 7


def test_anothers_saved_record_and_a_damaged_one_are_not_used() -> None:
    other = wire.encode_saved(wire.Saved("other", 6, ("x:1",)))
    core = member(records=(other, b"\xc1"))
    assert core.incarnation == 0
    assert core.counts["records-refused"] == 1


def test_a_suspicion_that_is_refuted_ends() -> None:
    core = member("a", "b", "c")
    hear(core, 10, doubt("a", State.SUSPECT))
    assert held(core, "a") == (State.SUSPECT, 0)
    hear(core, 20, alive("a", 1))
    assert held(core, "a") == (State.ALIVE, 1)
    assert core._desk.timers.at("suspicion", "a") is None


def test_confirmations_by_others_make_a_suspicion_shorter() -> None:
    core = member("a", "b", "c", "d", "e", "f")
    hear(core, 10, doubt("a", State.SUSPECT, by="b"))
    alone = core._desk.timers.at("suspicion", "a")
    hear(core, 11, doubt("a", State.SUSPECT, by="c"), doubt("a", State.SUSPECT, by="c"))
    two = core._desk.timers.at("suspicion", "a")
    hear(core, 12, doubt("a", State.SUSPECT, by="d"), doubt("a", State.SUSPECT, by="e"))
    four = core._desk.timers.at("suspicion", "a")
    assert alone is not None
    assert two is not None
    assert four is not None
    assert alone > two > four == 10 + 2 * T.period_ms


def test_who_pings_and_is_believed_dead_learns_of_it_with_the_answer() -> None:
    core = member("a", "b")
    hear(core, 10, doubt("a", State.DEAD))
    while core._desk.news.take(10_000, 1):
        continue
    [(_, ack)] = sent(core.receive(20, "a:1", wire.encode(wire.Ping("a", 7, "me"))))
    assert isinstance(ack, wire.Ack)
    assert ack.news == (wire.Doubt("a", 0, State.DEAD, "me"),)


def test_an_outdated_doubt_is_answered_with_what_outranks_it() -> None:
    core = member("a", "b")
    hear(core, 10, doubt("me", State.SUSPECT))
    assert core.incarnation == 1
    effects = hear(core, 20, doubt("me", State.SUSPECT))
    assert core.incarnation == 1
    [(to, gossip)] = sent(effects)
    assert to == "b:1"
    assert isinstance(gossip, wire.Gossip)
    [claim] = gossip.news
    assert isinstance(claim, wire.Alive)
    assert (claim.name, claim.incarnation) == ("me", 1)


def test_a_suspicion_that_nobody_confirms_is_looked_at_once_more() -> None:
    core = member("a", "b", "c", "d")
    core._desk.timers.clear("probe")
    hear(core, 10, doubt("a", State.SUSPECT))
    at = core._desk.timers.at("look", "a")
    assert at is not None
    pings = [m for _, m in sent(e for _, e in run_to(core, at)) if isinstance(m, wire.Ping)]
    assert pings[-1].target == "a"
    assert pings[-1].news[0] == wire.Doubt("a", 0, State.SUSPECT, "me")


def test_passing_a_suspicion_on_by_comparing_confirms_nothing() -> None:
    core = member("a", "b", "c", "d", "e")
    hear(core, 10, doubt("a", State.SUSPECT, by="b"))
    found = core.members.get("a")
    assert found is not None
    claims = core._membership.claims([found])
    assert claims[1] == wire.Doubt("a", 0, State.SUSPECT, "b")


def test_dead_by_comparing_is_a_suspicion_first() -> None:
    core = member("a", "b", "c")
    share = wire.Share("b", "b:1", (), (doubt("a", State.DEAD),), False)
    core.receive_stream(10, wire.encode(share))
    assert held(core, "a") == (State.SUSPECT, 0)


def test_that_a_member_left_is_believed_of_itself_alone() -> None:
    core = member("a", "b")
    hear(core, 10, doubt("a", State.LEFT, by="b"))
    assert held(core, "a") == (State.DEAD, 0)
    hear(core, 11, doubt("a", State.LEFT, by="a"))
    assert held(core, "a") == (State.LEFT, 0)


def test_a_doubt_of_somebody_unknown_is_nothing() -> None:
    core = member("a")
    hear(core, 10, doubt("x", State.DEAD))
    assert core.members.get("x") is None


def test_an_absurd_incarnation_is_not_outbid() -> None:
    core = member("a")
    effects = hear(core, 10, doubt("me", State.DEAD, incarnation=wire.INCARNATION_MAX))
    assert core.incarnation == 0
    assert [effect.kind for effect in effects if isinstance(effect, Note)] == ["incarnation"]


def test_leaving_is_told_and_then_the_member_is_closed() -> None:
    core = member("a", "b", "c")
    effects = core.leave(10)
    told = [m for _, m in sent(effects) if isinstance(m, wire.Gossip)]
    assert all(m.news[0] == wire.Doubt("me", 0, State.LEFT, "me") for m in told)
    assert len(told) == T.fanout
    assert core.leave(11) == []
    run_to(core, 10 + 2 * T.period_ms)
    assert core.closed
    assert core.deadline_ms is None
    assert core.receive(9_999, "a:1", wire.encode(wire.Ping("a", 7, "me"))) == []


def test_a_dead_member_is_forgotten_when_its_time_is_over() -> None:
    core = member("a", "b")
    hear(core, 10, doubt("a", State.DEAD))
    assert core._desk.timers.at("forget", "a") == 10 + T.forget_ms
    core._membership.forget("a")
    assert core.members.get("a") is None


def test_a_process_that_slept_blames_nobody_and_says_so() -> None:
    core = member("a", "b", "c")
    at, _ = first_ping(core, "a")
    effects = core.tick(at + 60_000)
    assert "stalled" in [effect.kind for effect in effects if isinstance(effect, Note)]
    assert not [e for e in effects if isinstance(e, Changed) and e.state is State.SUSPECT]


def test_a_process_that_slept_for_a_month_forgets_everybody_and_asks() -> None:
    core = member("a", "b", "c")
    month = 30 * 86_400_000
    effects = core.tick(month)
    gone = {e.member.name for e in effects if isinstance(e, Changed) and e.state is None}
    assert gone == {"a", "b", "c"}
    asked = {e.to for e in effects if isinstance(e, Stream)}
    assert asked <= {"a:1", "b:1", "c:1"}
    assert asked


def test_garbage_and_oversized_messages_are_counted_and_change_nothing() -> None:
    core = member("a")
    assert core.receive(1, "x", b"\xff\x00") == []
    assert core.receive(1, "x", bytes(2_000)) == []
    assert core.receive_stream(1, b"") == []
    assert core.counts["datagrams-refused"] == 2
    assert core.counts["streams-refused"] == 1


def test_tags_and_broadcasts_that_are_too_large_are_refused_with_their_bounds() -> None:
    core = member("a")
    with pytest.raises(ValueError, match="512 bytes"):
        core.set_tags(1, {"k": "v" * 600})
    with pytest.raises(ValueError, match="1048576 is the most"):
        core.broadcast(1, "topic", bytes((1 << 20) + 1))
    with pytest.raises(ValueError, match="1 to 63 characters"):
        core.broadcast(1, "", b"")


# Broadcasts.


def payload(number: int, who: str = "a", hops: int = 0) -> wire.Payload:
    return wire.Payload(who, bytes([number]) * 16, "a", "t", hops, b"body %d" % number)


def test_a_broadcast_is_delivered_once_and_passed_on_to_the_other_neighbours() -> None:
    core = member("a", "b", "c")
    effects = core.receive_stream(5, wire.encode(payload(1)))
    assert [e for e in effects if isinstance(e, Deliver)] == [Deliver("a", "t", b"body 1")]
    assert {e.to for e in effects if isinstance(e, Stream)} == {"b:1", "c:1"}


def test_who_sends_a_broadcast_a_second_time_is_pruned_and_gets_announcements() -> None:
    core = member("a", "b", "c")
    core.receive_stream(5, wire.encode(payload(1)))
    effects = core.receive_stream(6, wire.encode(payload(1, "b")))
    assert sent(effects) == [("b:1", wire.Prune("me"))]
    next_one = core.receive_stream(7, wire.encode(payload(2)))
    assert ("b:1", wire.Announce("me", (bytes([2]) * 16,))) in sent(next_one)
    assert {e.to for e in next_one if isinstance(e, Stream)} == {"c:1"}


def test_what_was_announced_and_does_not_come_is_asked_for_one_after_the_other() -> None:
    core = member("a", "b", "c")
    number = bytes([3]) * 16
    for who in ("a", "b"):
        core.receive(5, f"{who}:1", wire.encode(wire.Announce(who, (number,))))
    effects = run_to(core, 5 + 3 * T.graft_ms)
    grafts = [
        (at, to)
        for at, effect in effects
        for to, message in sent([effect])
        if message == wire.Graft("me", number)
    ]
    assert grafts == [(5 + T.graft_ms, "a:1"), (5 + 2 * T.graft_ms, "b:1")]
    assert not core._tree.missing


def test_who_asks_for_a_broadcast_gets_it_while_it_is_kept() -> None:
    core = member("a", "b")
    core.receive_stream(5, wire.encode(payload(1)))
    graft = wire.encode(wire.Graft("b", bytes([1]) * 16))
    [stream] = [e for e in core.receive(6, "b:1", graft) if isinstance(e, Stream)]
    message = wire.decode_bulk(stream.message)
    assert isinstance(message, wire.Payload)
    assert (message.hops, message.body) == (1, b"body 1")
    unknown = wire.encode(wire.Graft("b", bytes(16)))
    assert core.receive(7, "b:1", unknown) == []


def test_a_flood_of_announcements_is_bounded() -> None:
    core = member("a", "b")
    for number in range(100):
        ids = tuple((number * 32 + n).to_bytes(16, "big") for n in range(32))
        core.receive(5, "b:1", wire.encode(wire.Announce("b", ids)))
    assert len(core._tree.missing) == 1_024
    assert core.counts["announcements-refused"] == 3_200 - 1_024


# Comparing.


def test_tables_that_agree_are_compared_by_one_small_message() -> None:
    one, two = member("a"), member("a", name="two")
    hear(one, 1, alive("two", life=two._membership.life))
    hear(two, 1, alive("me", life=one._membership.life))
    digests = one.members.digests()
    assert two.receive_stream(2, wire.encode(wire.Compare("me", "me:1", digests))) == []


def test_what_differs_is_told_both_ways() -> None:
    one, two = member("a"), member("b", name="two")
    message = wire.encode(wire.Compare("me", "me:1", one.members.digests()))
    for turn in range(3):
        here = two if turn % 2 == 0 else one
        streams = [e for e in here.receive_stream(turn, message) if isinstance(e, Stream)]
        if not streams:
            break
        message = streams[0].message
    for core in (one, two):
        assert {member.name for member in core.members} == {"a", "b", "me", "two"}


def test_a_member_alone_asks_its_seeds_each_period_until_somebody_is_there() -> None:
    core = member(seeds=("s:1", "t:1"))
    effects = run_to(core, 5 * T.period_ms)
    asked = [effect.to for _, effect in effects if isinstance(effect, Stream)]
    assert asked.count("s:1") >= 3
    assert asked.count("t:1") >= 3
    assert set(asked) == {"s:1", "t:1"}
