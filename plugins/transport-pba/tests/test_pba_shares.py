"""How moves share a link."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_transport_pba import Need, allocate

ONE = st.builds(
    Need,
    name=st.just(""),
    priority=st.integers(-3, 3),
    remaining=st.floats(0, 1e9),
    deadline_s=st.none() | st.floats(-10, 1e4),
    limit=st.floats(1, 1e8) | st.just(math.inf),
)


@st.composite
def needs(draw: st.DrawFn) -> list[Need]:
    import attrs

    found = draw(st.lists(ONE, min_size=1, max_size=8))
    return [attrs.evolve(need, name=str(place)) for place, need in enumerate(found)]


@given(needs(), st.floats(0, 1e8))
def test_neither_the_link_nor_any_move_gets_more_than_it_may(
    moves: list[Need], capacity: float
) -> None:
    rates = allocate(moves, capacity)
    assert set(rates) == {move.name for move in moves}
    assert sum(rates.values()) <= capacity * (1 + 1e-9)
    for move in moves:
        assert 0 <= rates[move.name] <= move.limit * (1 + 1e-9)


@given(needs(), st.floats(1, 1e8))
def test_nothing_of_the_link_is_left_while_anyone_may_take_it(
    moves: list[Need], capacity: float
) -> None:
    rates = allocate(moves, capacity)
    takeable = min(capacity, sum(move.limit for move in moves))
    assert sum(rates.values()) == pytest.approx(takeable, rel=1e-6)


@st.composite
def feasible(draw: st.DrawFn) -> tuple[list[Need], float]:
    """Deadlines that one after the other, the nearest first, can just be met."""
    capacity, sent, found = 100.0, 0.0, []
    for place in range(draw(st.integers(1, 5))):
        remaining = float(draw(st.integers(1, 2000)))
        sent += remaining
        slack = draw(st.floats(1.02, 3))
        deadline = sent / capacity * slack
        found.append(Need(name=f"d{place}", remaining=remaining, deadline_s=deadline))
    others = draw(st.integers(0, 3))
    found += [Need(name=f"o{place}", remaining=1e9, priority=3) for place in range(others)]
    return found, capacity


@settings(max_examples=40, deadline=None)
@given(feasible())
def test_deadlines_that_can_be_met_together_are_met(case: tuple[list[Need], float]) -> None:
    moves, capacity = case
    left = {move.name: move.remaining for move in moves}
    late = max(move.deadline_s or 0.0 for move in moves)
    step, now = late / 20, 0.0
    while now < late + step:
        running = [move for move in moves if left[move.name] > 1e-6 * move.remaining]
        asked = [
            Need(
                name=move.name,
                priority=move.priority,
                remaining=left[move.name],
                deadline_s=None if move.deadline_s is None else move.deadline_s - now,
            )
            for move in running
        ]
        rates = allocate(asked, capacity)
        # Until something ends, or the next time that it is asked.
        until = min(
            [step, *(left[name] / rate for name, rate in rates.items() if rate > 0)], default=step
        )
        for name, rate in rates.items():
            left[name] -= rate * until
        now += until
        for move in moves:
            if move.deadline_s is not None and now > move.deadline_s * (1 + 1e-6):
                assert left[move.name] <= 1e-3 * move.remaining


def test_moves_without_deadlines_share_by_priority() -> None:
    rates = allocate([Need(name="a"), Need(name="b", priority=1)], 90.0)
    assert rates == pytest.approx({"a": 30.0, "b": 60.0})


def test_what_a_limited_move_cannot_take_goes_to_the_others() -> None:
    rates = allocate([Need(name="a", limit=10), Need(name="b"), Need(name="c")], 90.0)
    assert rates == pytest.approx({"a": 10.0, "b": 40.0, "c": 40.0})


def test_a_deadline_gets_what_it_needs_before_a_higher_priority() -> None:
    rates = allocate(
        [Need(name="late", remaining=800, deadline_s=10), Need(name="vip", priority=3)], 100.0
    )
    assert rates["late"] >= 80.0


def test_where_not_all_deadlines_can_be_met_the_less_important_gives_way() -> None:
    rates = allocate(
        [
            Need(name="a", remaining=900, deadline_s=10, priority=1),
            Need(name="b", remaining=900, deadline_s=10),
        ],
        100.0,
    )
    assert rates["a"] >= 90.0


@pytest.mark.parametrize("capacity", [-1.0, math.nan, math.inf])
def test_what_is_no_capacity_is_refused(capacity: float) -> None:
    with pytest.raises(ValueError, match="no capacity"):
        allocate([Need(name="a")], capacity)


def test_two_moves_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        allocate([Need(name="a"), Need(name="a")], 1.0)
