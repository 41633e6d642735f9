"""The table of members, the order of claims, and what is sent on."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_consensus_gossip import Me, Member, State, Timing
from novacron_consensus_gossip._core import GossipCore
from novacron_consensus_gossip._health import Health, Suspicion
from novacron_consensus_gossip._members import Members, Round, Start
from novacron_consensus_gossip._news import News
from novacron_consensus_gossip._tree import neighbours
from novacron_consensus_gossip._wire import (
    NEWS_MAX,
    Alive,
    Claim,
    Doubt,
    Gossip,
    Share,
    encode,
    encode_claim,
)

NAMES = ("a", "b", "c")
CLAIMS = st.builds(
    lambda name, incarnation: Alive(name, incarnation, name, 1, {}),
    st.sampled_from(NAMES),
    st.integers(0, 3),
) | st.builds(
    lambda name, incarnation, state: Doubt(name, incarnation, state, name),
    st.sampled_from(NAMES),
    st.integers(0, 3),
    st.integers(1, 3),
)


def core_that_heard(claims: list[Claim]) -> GossipCore:
    core = GossipCore(Me(name="me", address="me"), Timing(), random.Random(1))
    core.start(0)
    # All are known before they are doubted.
    known = tuple(Alive(name, 0, name, 1, {}) for name in NAMES)
    core.receive(1, "a", encode(Gossip("a", (*known, *claims))))
    return core


@settings(deadline=None)
@given(st.lists(CLAIMS, max_size=8), st.randoms(use_true_random=False))
def test_the_order_in_which_claims_arrive_does_not_matter(
    claims: list[Claim], rng: random.Random
) -> None:
    other = list(claims)
    rng.shuffle(other)
    first, second = core_that_heard(claims), core_that_heard(other)
    for name in NAMES:
        one, two = first.members.get(name), second.members.get(name)
        assert one is not None
        assert two is not None
        assert (one.incarnation, one.state) == (two.incarnation, two.state)


@settings(deadline=None)
@given(st.lists(CLAIMS, max_size=8))
def test_hearing_claims_twice_changes_nothing(claims: list[Claim]) -> None:
    core = core_that_heard(claims)
    held = [repr(member) for member in core.members]
    core.receive(2, "a", encode(Gossip("a", tuple(claims))))
    assert [repr(member) for member in core.members] == held


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "remove"]),
        st.integers(0, 9),
        st.integers(0, 3),
        st.sampled_from(list(State)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(st.integers(0, 6), ACTIONS)
def test_a_table_that_shares_its_start_is_like_one_that_does_not(
    shared: int, actions: list[tuple[str, int, int, State]]
) -> None:
    begin = {f"m{n}": Member(f"m{n}", "", 0) for n in range(shared)}
    table, model = Members(Start(begin)), dict(begin)
    for action, number, incarnation, state in actions:
        name = f"m{number}"
        if action == "put":
            member = Member(name, "", incarnation, state)
            table.put(member)
            model[name] = member
        else:
            table.remove(name)
            model.pop(name, None)
    plain = Members()
    for member in model.values():
        plain.put(member)
    assert {one.name: one for one in table} == model
    assert len(table) == len(model)
    assert table.live == sum(one.state <= State.SUSPECT for one in model.values())
    found = [table.at(place) for place in range(table.places)]
    assert sorted(one.name for one in found if one is not None) == sorted(model)
    assert table.digests() == plain.digests()
    assert not table.differing(plain.digests())


@pytest.mark.parametrize(
    "other",
    [Member("x", "", 3), Member("x", "", 2, State.DEAD), Member("x", "", 2, life=9)],
    ids=["newer", "dead", "another life"],
)
def test_digests_tell_tables_apart_by_incarnation_life_and_who_lives(other: Member) -> None:
    first, second = Members(), Members()
    first.put(Member("x", "", 2))
    second.put(other)
    assert len(first.differing(second.digests())) == 1


def test_digests_do_not_tell_apart_who_is_suspected() -> None:
    first, second = Members(), Members()
    first.put(Member("x", "", 2))
    second.put(Member("x", "", 2, State.SUSPECT))
    assert not first.differing(second.digests())


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_a_round_comes_to_each_place_once(places: int, seed: int) -> None:
    rng, turn = random.Random(seed), Round()
    for _ in range(3):
        assert sorted(turn.next(places, rng) for _ in range(places)) == list(range(places))


@settings(deadline=None)
@given(st.integers(0, 12), st.integers(1, 5), st.integers(0, 99))
def test_picking_gives_different_members_that_are_wanted(
    count: int, wanted: int, seed: int
) -> None:
    table = Members()
    for number in range(count):
        table.put(Member(f"m{number}", "", 0))
    even = {f"m{number}" for number in range(0, count, 2)}
    found = table.pick(random.Random(seed), wanted, lambda one: one.name in even)
    names = [one.name for one in found]
    assert len(set(names)) == len(names) == min(wanted, len(even))
    assert set(names) <= even


# News.


def test_news_is_sent_so_often_and_no_more() -> None:
    news = News()
    news.tell(Alive("a", 1, "x", 1, {}))
    sent = [len(news.take(500, 3)) for _ in range(5)]
    assert sent == [1, 1, 1, 0, 0]
    assert len(news) == 0


def test_the_freshest_news_goes_first_and_what_does_not_fit_waits() -> None:
    news = News()
    old, fresh = Doubt("a", 1, 2, "x"), Doubt("b", 1, 2, "x")
    size = len(encode_claim(old))
    news.tell(old)
    news.take(size, 9)
    news.tell(fresh)
    assert news.take(size, 9) == [encode_claim(fresh)]


def test_newer_news_of_a_member_takes_the_place_of_older() -> None:
    news = News()
    for by in ("x", "y"):
        news.tell(Doubt("a", 1, 1, by))
    assert len(news) == 2, "suspicions of two are two pieces of news"
    life = Alive("a", 2, "x", 1, {})
    news.tell(life)
    assert news.take(500, 9) == [encode_claim(life)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 200), max_size=200), st.integers(0, 900))
def test_news_stays_within_its_room(names: list[int], room: int) -> None:
    news = News()
    for name in names:
        news.tell(Alive(f"n{name}", 0, "a" * (1 + name % 50), 1, {}))
    for _ in range(3):
        taken = news.take(room, 2)
        assert sum(map(len, taken)) <= room
        assert len(taken) <= NEWS_MAX


# Lifeguard.


def test_a_suspicion_gets_shorter_with_each_independent_confirmation() -> None:
    timing = Timing(suspicion=1.0, suspicion_floor=1.0, suspicion_stretch=6.0, confirmations=3)
    suspicion = Suspicion(timing, 0, "a", 1000, 5_000)
    ends = [suspicion.ends_ms - 5_000]
    for by in ("b", "b", "c", "d", "e"):
        suspicion.confirm(by)
        ends.append(suspicion.ends_ms - 5_000)
    assert ends == [18_000, 10_500, 10_500, 6_112, 3_000, 3_000]


def test_a_suspicion_that_nobody_could_confirm_is_short_from_the_beginning() -> None:
    assert Suspicion(Timing(), 0, "a", 2, 0).ends_ms == 2_000


def test_local_health_stays_within_its_bounds() -> None:
    health = Health(8)
    assert health.stretch == 1
    health.change(-1)
    assert health.score == 0
    health.change(99)
    assert (health.score, health.stretch) == (8, 9)


# The overlay of broadcasts.


@settings(deadline=None)
@given(st.sets(st.integers(0, 10_000), min_size=2, max_size=60))
def test_the_neighbours_are_symmetric_and_hang_together(numbers: set[int]) -> None:
    names = [f"n{number}" for number in sorted(numbers)]
    graph = {name: neighbours(name, [one for one in names if one != name]) for name in names}
    for name, others in graph.items():
        assert 1 <= len(others) <= 6
        assert all(name in graph[other] for other in others)
    reached, edge = {names[0]}, [names[0]]
    while edge:
        for other in graph[edge.pop()] - reached:
            reached.add(other)
            edge.append(other)
    assert reached == set(names)


def test_a_large_table_is_shared_in_messages_within_the_bound() -> None:
    start = Start(
        {
            f"m{n}": Member(f"m{n}", f"10.0.0.1:{n + 1}", 0, tags={"k": "v" * 400})
            for n in range(4_000)
        }
    )
    core = GossipCore(Me(name="m0", address="m0"), Timing(), random.Random(1), start=start)
    core.start(0)
    from novacron_consensus_gossip._effects import Stream
    from novacron_consensus_gossip._wire import Compare, decode_bulk

    effects = core.receive_stream(1, encode(Compare("new", "new", bytes(512))))
    shared = [decode_bulk(one.message) for one in effects if isinstance(one, Stream)]
    assert len(shared) > 3
    claims = [claim for one in shared if isinstance(one, Share) for claim in one.claims]
    assert len({claim.name for claim in claims}) == 4_000
