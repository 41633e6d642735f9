"""The laws of the data types: whatever the order in which events and states arrive, replicas that
have seen the same hold the same."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from novacron_consensus_state import _kinds
from novacron_consensus_state._messages import Event, State, decode_event, encode_event
from novacron_consensus_state._positions import PositionsFull, between, is_position, run, tag_of
from novacron_consensus_state._store import Store
from novacron_consensus_state._vector import at_least

NAMES = ("a/1", "b/1", "c/1")
OPERATIONS: dict[str, list[tuple[str, list[Any]]]] = {
    "g-counter": [("increment", [3]), ("increment", []), ("delete", [])],
    "pn-counter": [("increment", [5]), ("increment", [-2]), ("delete", [])],
    "g-set": [("add", ["x"]), ("add", ["x", "y", 3]), ("delete", [])],
    "or-set": [("add", ["x"]), ("add", ["y", "z"]), ("remove", ["x", "y"]), ("delete", [])],
    "lww": [("set", [1]), ("set", ["two"]), ("set", [None]), ("delete", [])],
    "mv": [("set", [1]), ("set", [{"deep": [1, 2]}]), ("delete", [])],
    "or-map": [
        ("set", ["f", "lww", "set", 1]),
        ("set", ["g", "or-set", "add", "e"]),
        ("set", ["n", "pn-counter", "increment", 2]),
        ("set", ["m", "or-map", "set", "inner", "mv", "set", 7]),
        ("remove", ["f"]),
        ("remove", ["g", "m"]),
        ("delete", []),
    ],
    "list": [("append", ["p"]), ("append", ["q", "r"]), ("insert", [0, "s"]), ("delete", [])],
}
every_kind = pytest.mark.parametrize("kind", _kinds.KINDS)
few = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


class Trio:
    """Three stores, and every event that was made on them with its writer's knowledge."""

    def __init__(self, kind: str) -> None:
        self.key = ("key", kind)
        self.stores = {name: Store(1 << 20) for name in NAMES}
        self.events: list[tuple[Event, bytes]] = []
        self.stamp = 0

    def do(self, who: str, number: int) -> None:
        store, kind = self.stores[who], self.key[1]
        operation, values = OPERATIONS[kind][number % len(OPERATIONS[kind])]
        self.stamp += 1
        writer = _kinds.Writer(tag_of(who), self.stamp)
        change = _kinds.change(kind, store.rows(self.key), operation, values, writer)
        adds, drops = list(change.adds), list(change.drops)
        for path, up, down in change.counts:
            counted = _kinds.counted(who, path, up, down, store.rows(self.key))
            adds, drops = adds + counted.adds, drops + counted.drops
        deps = {origin: seen for origin, seen in store.vector.items() if origin != who}
        count = store.vector.get(who, 0) + 1
        event = Event(who, count, self.stamp, deps, *self.key, adds, drops)
        raw = encode_event(event)
        assert decode_event(raw) == event
        store.deliver(event, raw)
        self.events.append((event, raw))

    def give(self, to: str, index: int) -> None:
        if self.events:
            self.stores[to].deliver(*self.events[index % len(self.events)])

    def take_over(self, to: str, source: str) -> None:
        """All of another's states, as catching up by trees does it."""
        into, of = self.stores[to], self.stores[source]
        for state in of.pages(self.key):
            into.merge(state, of.vector)
        if self.key in into.entries and self.key not in of.entries:
            empty = State(*self.key, None, None, [], [])
            into.merge(empty, of.vector)
        into.adopt(dict(of.vector))

    def finish(self) -> list[Any]:
        """Everybody gets everything; what each holds then."""
        for name in NAMES:
            for event in self.events:
                self.give(name, self.events.index(event))
        return [canonical(self.stores[name], self.key) for name in NAMES]


def canonical(store: Store, key: tuple[str, str]) -> Any:
    entry = store.entries.get(key)
    return (entry.sorted_rows(), entry.doomed) if entry else ([], frozenset())


steps = st.lists(
    st.tuples(
        st.sampled_from(("do", "do", "give", "give", "take")),
        st.integers(0, 2),
        st.integers(0, 40),
    ),
    max_size=30,
)


@every_kind
@few
@given(program=steps)
def test_all_replicas_hold_the_same_when_they_have_seen_the_same(
    kind: str, program: list[tuple[str, int, int]]
) -> None:
    trio = played(kind, program)
    held = trio.finish()
    assert held[0] == held[1] == held[2]
    roots = {store.tree.root() for store in trio.stores.values()}
    assert len(roots) == 1
    assert all(not entry.doomed for s in trio.stores.values() for entry in s.entries.values())


def played(kind: str, program: list[tuple[str, int, int]]) -> Trio:
    trio = Trio(kind)
    for what, who, number in program:
        if what == "do":
            trio.do(NAMES[who], number)
        elif what == "give":
            trio.give(NAMES[who], number)
        else:
            trio.take_over(NAMES[who], NAMES[number % 3])
    return trio


@every_kind
@few
@given(program=steps)
def test_taking_over_states_is_commutative_associative_and_idempotent(
    kind: str, program: list[tuple[str, int, int]]
) -> None:
    trio = played(kind, program)
    orders = [("a/1", "b/1", "c/1"), ("c/1", "b/1", "a/1"), ("b/1", "a/1", "c/1", "b/1", "a/1")]
    found = []
    for order in orders:
        fresh = Store(1 << 20)
        here = copy.copy(trio)
        here.stores = {**trio.stores, "fresh": fresh}
        for source in order:
            here.take_over("fresh", source)
        found.append((canonical(fresh, trio.key), fresh.vector))
    assert found[0] == found[1] == found[2]
    # ((a + b) + c) and (a + (b + c)), where b + c is made first.
    left, right, pair = Store(1 << 20), Store(1 << 20), Store(1 << 20)
    here = copy.copy(trio)
    here.stores = {**trio.stores, "left": left, "right": right, "pair": pair}
    for source in ("a/1", "b/1", "c/1"):
        here.take_over("left", source)
    here.take_over("pair", "b/1")
    here.take_over("pair", "c/1")
    here.take_over("right", "a/1")
    here.take_over("right", "pair")
    assert canonical(left, trio.key) == canonical(right, trio.key)


@every_kind
@few
@given(program=steps, order=st.randoms(use_true_random=False))
def test_events_may_come_in_any_order_and_several_times(
    kind: str, program: list[tuple[str, int, int]], order: random.Random
) -> None:
    trio = played(kind, [step for step in program if step[0] != "take"])
    straight, mixed = Store(1 << 20), Store(1 << 20)
    for event in trio.events:
        straight.deliver(*event)
    shuffled = trio.events * 2
    order.shuffle(shuffled)
    for event in shuffled:
        mixed.deliver(*event)
    assert canonical(straight, trio.key) == canonical(mixed, trio.key)
    assert straight.vector == mixed.vector
    assert mixed.waiting.count == 0


@few
@given(program=steps)
def test_no_event_is_delivered_before_its_causes(program: list[tuple[str, int, int]]) -> None:
    trio = played("or-set", [step for step in program if step[0] != "take"])
    for store in trio.stores.values():
        for event, _ in trio.events:
            if store.vector.get(event.origin, 0) >= event.number:
                assert at_least(store.vector, event.deps)


def of(kind: str, *done: tuple[str, str, list[Any]]) -> Trio:
    """Writes of several replicas that do not know of each other."""
    trio = Trio(kind)
    for who, operation, values in done:
        OPERATIONS[kind].append((operation, values))
        trio.do(who, len(OPERATIONS[kind]) - 1)
        OPERATIONS[kind].pop()
    return trio


def value(trio: Trio) -> Any:
    trio.finish()
    values = [store.value(trio.key) for store in trio.stores.values()]
    assert values[0] == values[1] == values[2]
    return values[0]


def test_increments_that_do_not_know_of_each_other_all_count() -> None:
    assert value(of("g-counter", ("a/1", "increment", [2]), ("b/1", "increment", [3]))) == 5
    assert value(of("pn-counter", ("a/1", "increment", [2]), ("b/1", "increment", [-3]))) == -1


def test_an_add_wins_over_a_remove_that_does_not_know_of_it() -> None:
    trio = of("or-set", ("a/1", "add", ["x"]))
    trio.give("b/1", 0)
    OPERATIONS["or-set"].append(("add", ["x"]))
    trio.do("b/1", len(OPERATIONS["or-set"]) - 1)
    OPERATIONS["or-set"][-1] = ("remove", ["x"])
    trio.do("a/1", len(OPERATIONS["or-set"]) - 1)
    OPERATIONS["or-set"].pop()
    assert value(trio) == ["x"]


def test_an_mv_register_shows_all_writes_that_do_not_know_of_each_other() -> None:
    assert value(of("mv", ("a/1", "set", ["one"]), ("b/1", "set", ["two"]))) == ["one", "two"]


def test_an_lww_register_shows_the_write_with_the_later_stamp() -> None:
    assert value(of("lww", ("b/1", "set", ["one"]), ("a/1", "set", ["two"]))) == "two"


def test_a_write_of_a_field_wins_over_its_removal() -> None:
    trio = of("or-map", ("a/1", "set", ["f", "lww", "set", 1]))
    trio.give("b/1", 0)
    for who, step in (("a/1", ("remove", ["f"])), ("b/1", ("set", ["f", "lww", "set", 2]))):
        OPERATIONS["or-map"].append(step)
        trio.do(who, len(OPERATIONS["or-map"]) - 1)
        OPERATIONS["or-map"].pop()
    assert value(trio) == {"f": 2}


def test_elements_inserted_by_one_call_stay_together() -> None:
    trio = of("list", ("a/1", "append", [1, 2, 3]), ("b/1", "append", [7, 8, 9]))
    found = value(trio)
    assert found in ([1, 2, 3, 7, 8, 9], [7, 8, 9, 1, 2, 3])


@pytest.mark.parametrize(
    ("kind", "operation", "values", "said"),
    [
        ("g-counter", "increment", [-1], "only grows"),
        ("pn-counter", "increment", [1.5], "no whole number"),
        ("pn-counter", "increment", [True], "no whole number"),
        ("g-set", "remove", ["x"], "cannot 'remove'"),
        ("lww", "set", [], "takes 1 value, not 0"),
        ("lww", "set", [object()], "no plain data"),
        ("lww", "set", [2**70], "64 bits"),
        ("mv", "set", ["x" * 70_000], "the most is 65536"),
        ("list", "remove", [0], "no place"),
        ("list", "insert", [5, "x"], "no place"),
        ("or-map", "set", ["", "lww", "set", 1], "no name"),
        ("or-map", "set", ["f", "tree", "set", 1], "no type 'tree'"),
        ("shoe", "set", [1], "no type 'shoe'"),
    ],
)
def test_a_wrong_operation_says_what_is_wrong(
    kind: str, operation: str, values: list[Any], said: str
) -> None:
    with pytest.raises(_kinds.WrongOperation, match=said):
        _kinds.change(kind, {}, operation, values, _kinds.Writer(b"tag.", 1))


def test_a_field_keeps_its_type() -> None:
    store = of("or-map", ("a/1", "set", ["f", "lww", "set", 1])).stores["a/1"]
    with pytest.raises(_kinds.WrongOperation, match="is a lww, not a 'mv'"):
        _kinds.change(
            "or-map",
            store.rows(("key", "or-map")),
            "set",
            ["f", "mv", "set", 1],
            _kinds.Writer(b"tag.", 1),
        )


@few
@given(seed=st.integers(0, 10_000))
def test_positions_lie_densely_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    placed: list[bytes] = []
    for _ in range(60):
        at = rng.randrange(len(placed) + 1)
        low = placed[at - 1] if at else b""
        high = placed[at] if at < len(placed) else b""
        made = run(low, high, tag_of(f"n{rng.randrange(3)}"), rng.randint(1, 3))
        placed[at:at] = made
        assert placed == sorted(placed)
        assert len(set(placed)) == len(placed)
        assert all(is_position(position) for position in made)


def test_a_thousand_appends_do_not_make_positions_longer() -> None:
    last = b""
    for _ in range(1_000):
        last = between(last, b"", b"tag.")
    assert len(last) == 8


def test_a_place_that_is_full_is_refused() -> None:
    low = b"\xff\xff\xff\xfftag." * 64
    with pytest.raises(PositionsFull, match="no room left"):
        between(low, b"", b"tag.")
