"""What is numbered is done once, in whatever order and however often it comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from novacron_agreement.numbers import WINDOW, Numbers, Verdict

KEYS = st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(-1, WINDOW + 6))


@given(st.lists(KEYS, max_size=60), st.integers(0, 60))
def test_each_number_of_a_life_is_done_once_and_a_copy_knows_the_same(
    keys: list[tuple[str, int, int]], copied_at: int
) -> None:
    numbers, done = Numbers(), set()
    for at, key in enumerate(keys):
        if at == copied_at:
            numbers = Numbers(numbers.rows())
        judged = numbers.judge(*key)
        assert numbers.execute(*key) is judged
        if judged is Verdict.DO:
            assert key not in done
            assert key[1] == numbers.epoch_of(key[0])
            done.add(key)
        elif judged is Verdict.DONE:
            # Of the present life, all numbers up to the floor are done, and those above it.
            assert key in done or key[2] < 1
    assert Numbers(numbers.rows()).rows() == numbers.rows()


def test_a_number_far_ahead_and_one_of_an_earlier_life_are_refused() -> None:
    numbers = Numbers()
    assert numbers.execute("a", 2, WINDOW + 1) is Verdict.REFUSE
    assert numbers.execute("a", 2, 1) is Verdict.DO
    assert numbers.execute("a", 2, WINDOW + 1) is Verdict.DO
    assert numbers.execute("a", 2, WINDOW + 2) is Verdict.REFUSE
    assert numbers.execute("a", 1, 2) is Verdict.REFUSE
    assert numbers.execute("a", 3, 1) is Verdict.DO


def test_origins_that_left_are_forgotten() -> None:
    numbers = Numbers()
    for origin in "ab":
        numbers.execute(origin, 1, 1)
    numbers.keep({"b"})
    assert [row.origin for row in numbers.rows()] == ["b"]
    assert numbers.epoch_of("a") == 0
