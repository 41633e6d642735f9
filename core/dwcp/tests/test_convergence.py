"""When a machine that is being copied is paused, and when it is said that it never will be."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from novacron_dwcp.convergence import (
    HANDLING_MS,
    HOPELESS_ROUNDS,
    HOPELESS_S,
    LAST_SET_MS_MIN,
    Aim,
    Convergence,
    GiveUp,
    Rate,
    Sample,
    Wish,
    promised_ms,
)

MIB = 1 << 20


def sample(**what: Any) -> Sample:
    values: dict[str, Any] = {
        "at_s": 5.0,
        "round": 2,
        "remaining_bytes": 10 * MIB,
        "dirty_bytes_per_s": 2 * MIB,
        "state_bytes_per_s": 40 * MIB,
        "wire_bytes": 100 * MIB,
        "waiting_s": 0.0,
        "round_trip_s": 0.08,
    }
    return Sample(**values | what)


def test_the_promise_is_two_and_a_half_round_trips_and_a_tenth_of_a_second() -> None:
    assert promised_ms(80.0) == 300
    assert promised_ms(0.0) == 100


def test_the_last_set_gets_what_round_trips_and_handling_leave_of_the_pause() -> None:
    aim = Convergence(Wish(max_downtime_ms=400)).decide(sample())
    assert aim == Aim(last_set_ms=400 - 120 - HANDLING_MS, state_bytes_per_s=40 * MIB)


def test_what_waits_to_be_sent_is_taken_from_the_last_set() -> None:
    calm = Convergence(Wish(max_downtime_ms=400)).decide(sample())
    full = Convergence(Wish(max_downtime_ms=400)).decide(sample(waiting_s=0.1))
    assert isinstance(calm, Aim)
    assert isinstance(full, Aim)
    assert calm.last_set_ms - full.last_set_ms == 100


@given(st.integers(0, 10_000), st.floats(0, 2), st.floats(0, 2))
def test_the_last_set_never_gets_less_than_a_pass_is_worth(
    downtime_ms: int, round_trip_s: float, waiting_s: float
) -> None:
    aim = Convergence(Wish(max_downtime_ms=downtime_ms)).decide(
        sample(round_trip_s=round_trip_s, waiting_s=waiting_s)
    )
    assert isinstance(aim, Aim)
    assert LAST_SET_MS_MIN <= aim.last_set_ms <= max(downtime_ms, LAST_SET_MS_MIN)


def test_a_move_that_takes_longer_than_it_may_is_given_up_with_what_is_left() -> None:
    decision = Convergence(Wish(max_downtime_ms=300, max_time_s=4.0)).decide(sample())
    assert isinstance(decision, GiveUp)
    assert "5.0 s, and may take 4; 10 MiB are left" in decision.reason
    assert "--max-time" in decision.hint


def test_a_move_that_sends_more_than_it_may_is_given_up() -> None:
    decision = Convergence(Wish(max_downtime_ms=300, max_bytes=MIB)).decide(sample())
    assert isinstance(decision, GiveUp)
    assert str(MIB) in decision.reason


def passes(convergence: Convergence, rests: list[int], seconds: float) -> list[Aim | GiveUp]:
    """Decisions at the beginning of passes that leave these rests, so many seconds each."""
    return [
        convergence.decide(sample(round=number + 2, remaining_bytes=rest, at_s=number * seconds))
        for number, rest in enumerate(rests)
    ]


def test_a_guest_whose_rest_no_longer_shrinks_is_given_up() -> None:
    seconds = HOPELESS_S / HOPELESS_ROUNDS
    decisions = passes(Convergence(Wish(max_downtime_ms=300)), [200 * MIB] * 8, seconds)
    assert all(isinstance(decision, Aim) for decision in decisions[:HOPELESS_ROUNDS])
    assert isinstance(decisions[HOPELESS_ROUNDS], GiveUp)


def test_a_guest_that_is_slowed_down_is_given_more_time() -> None:
    seconds = HOPELESS_S / HOPELESS_ROUNDS
    convergence = Convergence(Wish(max_downtime_ms=300), slows_guest=True)
    decisions = passes(convergence, [200 * MIB] * 12, seconds)
    assert all(isinstance(decision, Aim) for decision in decisions)


def test_a_rest_that_shrinks_is_never_given_up() -> None:
    rests = [200 * MIB * 8**n // 10**n for n in range(30)]
    decisions = passes(Convergence(Wish(max_downtime_ms=300)), rests, HOPELESS_S)
    assert all(isinstance(decision, Aim) for decision in decisions)


def test_a_rest_that_fits_the_pause_is_never_given_up() -> None:
    decisions = passes(Convergence(Wish(max_downtime_ms=300)), [MIB] * 30, HOPELESS_S)
    assert all(isinstance(decision, Aim) for decision in decisions)


def test_a_rate_is_the_mean_of_the_window() -> None:
    rate = Rate(1.0)
    assert rate.of(0.0, 0) == 0
    assert rate.of(1.0, 100) == 100
    assert rate.of(2.0, 400) == 300
