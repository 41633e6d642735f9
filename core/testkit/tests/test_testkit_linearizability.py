from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_testkit.linearizability import (
    UNKNOWN,
    History,
    KeyValueModel,
    Operation,
    TooHard,
    check,
)

MODEL = KeyValueModel()


def put(value: int, called: float, returned: float | None) -> Operation:
    return Operation("w", ("put", "x", value), called, returned)


def get(answer: int | None, called: float, returned: float | None) -> Operation:
    return Operation("r", ("get", "x"), called, returned, answer)


def cas(expected: int | None, value: int, done: Any, called: float, ret: float | None) -> Operation:
    return Operation("c", ("cas", "x", expected, value), called, ret, done)


def test_a_read_may_see_the_old_or_the_new_value_while_a_write_is_under_way() -> None:
    assert check([put(1, 0, 10), get(None, 2, 3), get(1, 4, 5)], MODEL) is None


def test_a_read_that_goes_back_is_found_and_explained() -> None:
    problem = check([put(1, 0, 10), get(1, 2, 3), get(None, 4, 5)], MODEL)
    assert problem is not None
    assert (problem.part, problem.state, problem.operations) == ("x", 1, 3)
    assert [str(one) for one in problem.stuck] == ["4-5 r: ('get', 'x') -> None"]
    assert "not linearizable: 'x': of 3 operations, at most 2" in str(problem)


def test_a_stale_read_after_the_writes_return_is_found() -> None:
    assert check([put(1, 0, 1), get(None, 2, 3)], MODEL) is not None


def test_a_write_without_an_answer_may_take_effect_late_or_never() -> None:
    lost = put(7, 0, None)
    assert check([lost, get(None, 1, 2), get(7, 3, 4)], MODEL) is None
    assert check([lost, get(None, 1, 2), get(None, 3, 4)], MODEL) is None
    assert check([lost, get(7, 1, 2), get(None, 3, 4)], MODEL) is not None


def test_of_two_comparisons_with_the_same_value_only_one_may_succeed() -> None:
    assert check([cas(None, 1, True, 0, 9), cas(None, 2, False, 0, 9)], MODEL) is None
    assert check([cas(None, 1, True, 0, 9), cas(None, 2, True, 0, 9)], MODEL) is not None


def test_keys_are_judged_one_by_one_and_the_wrong_one_is_named() -> None:
    good = [Operation("a", ("put", f"k{n}", n), n, n + 1, None) for n in range(50)]
    bad = Operation("b", ("get", "k7"), 100, 101, 8)
    problem = check([*good, bad], MODEL)
    assert problem is not None
    assert problem.part == "k7"


def test_a_deleted_key_reads_as_none_and_a_beginning_may_be_given() -> None:
    started = KeyValueModel({"x": 5})
    gone = Operation("d", ("delete", "x"), 2, 3, None)
    assert check([get(5, 0, 1), gone, get(None, 4, 5)], started) is None
    assert check([get(None, 0, 1)], started) is not None


def test_an_operation_that_returns_before_it_is_called_is_refused() -> None:
    with pytest.raises(ValueError, match="returns before it is called"):
        check([put(1, 5, 4)], MODEL)


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(ValueError, match="'increase'"):
        check([Operation("a", ("increase", "x"), 0, 1)], MODEL)


def test_a_search_that_takes_too_long_says_so_instead_of_guessing() -> None:
    lost = [put(n, 0, None) for n in range(40)]
    with pytest.raises(TooHard, match="'x': no answer after 1000 steps over 42 operations"):
        check([*lost, get(1, 1, 2), get(-1, 3, 4)], MODEL, steps=1000)


# Against brute force: every order that respects real time, every choice of what was never done.


def explained(history: list[Operation]) -> bool:
    answered = [one for one in history if one.returned_ms is not None]
    pending = [one for one in history if one.returned_ms is None]
    for mask in range(1 << len(pending)):
        chosen = answered + [one for n, one in enumerate(pending) if mask >> n & 1]
        if any(fits(order) for order in permutations(chosen)):
            return True
    return False


def fits(order: tuple[Operation, ...]) -> bool:
    state = None
    for place, one in enumerate(order):
        for later in order[place + 1 :]:
            if later.returned_ms is not None and later.returned_ms < one.called_ms:
                return False
        good, state = MODEL.step(state, one.asked, one.answer)
        if not good:
            return False
    return True


VALUES = st.sampled_from([None, 1, 2])
ASKED = st.one_of(
    st.tuples(st.just("get"), st.just("x")),
    st.tuples(st.just("put"), st.just("x"), st.sampled_from([1, 2])),
    st.tuples(st.just("cas"), st.just("x"), VALUES, VALUES),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    history = []
    for number in range(draw(st.integers(0, 6))):
        asked = draw(ASKED)
        called = draw(st.integers(0, 12))
        returned = draw(st.one_of(st.none(), st.integers(called, called + 8)))
        answer: Any = UNKNOWN
        if returned is not None:
            answer = draw(VALUES if asked[0] == "get" else st.booleans())
        history.append(Operation(f"c{number}", asked, called, returned, answer))
    return history


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(histories())
def test_it_says_the_same_as_trying_all_orders(history: list[Operation]) -> None:
    assert (check(history, MODEL) is None) == explained(history)


# Histories as real ones are: made by a machine that is linearizable, then spoilt.


def made(seed: int, count: int, clients: int, lost: float) -> list[Operation]:
    """Clients ask one machine, whose moment of doing lies between call and return."""
    rng = random.Random(seed)
    free = dict.fromkeys(range(clients), 0.0)
    plan = []
    for _ in range(count):
        client = min(free, key=lambda one: free[one])
        called = free[client] + rng.random()
        moment = called + rng.random() * 5
        free[client] = returned = moment + rng.random() * 5
        plan.append((moment, client, called, returned))
    values: dict[str, int | None] = {}
    history = []
    for number, (_, client, called, returned) in enumerate(sorted(plan)):
        key = f"k{rng.randrange(2)}"
        kind = rng.choice(("get", "put", "cas"))
        answer: Any = None
        asked: tuple[Any, ...] = ("get", key)
        if kind == "get":
            answer = values.get(key)
        elif kind == "put":
            asked, values[key] = ("put", key, number), number
        else:
            expected = values.get(key) if rng.random() < 0.5 else -1
            asked, answer = ("cas", key, expected, number), expected == values.get(key)
            values[key] = number if answer else values.get(key)
        if rng.random() < lost:
            history.append(Operation(f"c{client}", asked, called))
        else:
            history.append(Operation(f"c{client}", asked, called, returned, answer))
    return history


@pytest.mark.parametrize("seed", range(20))
def test_what_a_linearizable_machine_shows_is_linearizable(seed: int) -> None:
    assert check(made(seed, 300, 8, 0.01), MODEL) is None


@pytest.mark.parametrize("seed", range(20))
def test_one_read_of_a_value_that_was_long_overwritten_is_found(seed: int) -> None:
    history = made(seed, 300, 8, 0.01)
    writes = [one for one in history if one.asked[:2] == ("put", "k0") and one.returned_ms]
    stale = Operation("late", ("get", "k0"), 1e6, 1e6 + 1, writes[0].asked[2])
    assert check([*history, stale], MODEL) is not None


@pytest.mark.slow
@pytest.mark.no_cover
def test_a_long_history_is_judged() -> None:
    # Without the cache of states this would not end within the tests' time.
    assert check(made(1, 20_000, 16, 0.0005), MODEL) is None


def test_a_history_is_collected_while_it_happens() -> None:
    times = iter(range(100))
    history = History(lambda: next(times))
    first = history.call("a", ("put", "x", 1))
    second = history.call("b", ("get", "x"))
    third = history.call("c", ("put", "x", 9))
    history.answer(second, None)
    history.answer(second, 1)
    history.failed(third)
    assert history.operations() == [
        Operation("b", ("get", "x"), 1, 3, None),
        Operation("a", ("put", "x", 1), 0),
    ]
    history.answer(first, None)
    assert history.operations()[1].returned_ms == 4
