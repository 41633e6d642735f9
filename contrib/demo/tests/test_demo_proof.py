"""What the demo concludes: it must not miss a fault that is there."""

from __future__ import annotations

import pytest
from novacron_demo._proof import (
    check_stretches,
    check_ticks,
    longest_gap_outside_s,
    longest_gap_s,
)


def test_the_longest_gap_is_the_longest_between_two_acknowledgements_during_the_move() -> None:
    acks = [0.0, 1.0, 1.1, 1.5, 1.6, 5.0]
    assert longest_gap_s(acks, 1.05, 1.58) == pytest.approx(0.4)


def test_a_gap_that_reaches_out_of_the_move_counts_whole() -> None:
    assert longest_gap_s([0.0, 1.0, 3.0, 3.1], 2.0, 3.05) == pytest.approx(2.0)


def test_a_gap_that_nothing_has_ended_yet_counts_to_the_end_of_the_move() -> None:
    assert longest_gap_s([1.0, 1.1], 1.0, 4.0) == pytest.approx(2.9)


def test_without_any_acknowledgement_the_whole_move_is_a_gap() -> None:
    assert longest_gap_s([], 1.0, 4.0) == pytest.approx(3.0)


def test_gaps_of_the_moves_are_not_counted_as_the_hosts_own() -> None:
    acks = [0.0, 0.1, 2.0, 2.3, 2.4, 9.0, 9.1]
    assert longest_gap_outside_s(acks, [(0.05, 2.05), (2.45, 8.0)]) == pytest.approx(0.1)
    assert longest_gap_outside_s(acks, []) == pytest.approx(6.6)
    assert longest_gap_outside_s([], []) == 0


def log(*events: tuple[str, int]) -> str:
    return "".join(f"{what} {at} shop\n" for what, at in events)


def test_stretches_one_after_the_other_are_counted_and_the_rests_between_are_told() -> None:
    text = log(
        ("begin", 1_000_000_000),
        ("end", 2_000_000_000),
        ("begin", 2_250_000_000),
        ("end", 3_000_000_000),
        ("begin", 4_000_000_000),
    )
    found = check_stretches(text, "shop")
    assert found.faults == ()
    assert found.count == 3
    assert found.rests_s == pytest.approx((0.25, 1.0))


@pytest.mark.parametrize(
    "text",
    [
        log(("begin", 10), ("begin", 15), ("end", 20), ("end", 30)),
        log(("begin", 10), ("end", 20), ("begin", 19), ("end", 30)),
        log(("begin", 10), ("begin", 15)),
        log(("begin", 15), ("end", 30), ("begin", 10), ("end", 16)),
        log(("begin", 10), ("end", 20), ("end", 21)),
    ],
    ids=["nested", "by a nanosecond", "never ended", "written in another order", "ended twice"],
)
def test_two_sides_that_executed_at_once_are_caught(text: str) -> None:
    assert check_stretches(text, "shop").faults


def test_a_stretch_may_begin_at_the_instant_that_another_ends() -> None:
    found = check_stretches(log(("begin", 10), ("begin", 20), ("end", 20), ("end", 30)), "shop")
    assert found.faults == ()


def test_a_line_that_cannot_be_read_proves_nothing() -> None:
    found = check_stretches("begin 10 shop\nend 2", "shop")
    assert "line 2" in found.faults[0]


def test_other_machines_in_the_log_do_not_count() -> None:
    text = log(("begin", 10), ("end", 20)) + "begin 12 other\nend 13 other\n"
    assert check_stretches(text, "shop").count == 1
    assert check_stretches(text, "shop").faults == ()


def test_a_counter_without_gap_or_repetition_is_sound() -> None:
    assert check_ticks(b"guest ready\r\ntick 1\r\ntick 2\r\ntick 3\r\ntick 4").faults == ()
    assert check_ticks(b"tick 1\r\ntick 2\r\ntick 3\r\ntick 4").count == 3


@pytest.mark.parametrize("numbers", [[1, 2, 4], [1, 2, 2, 3], [2, 3], [1, 2, 1, 2]], ids=str)
def test_a_counter_that_skips_or_repeats_is_caught(numbers: list[int]) -> None:
    assert check_ticks(b"".join(b"tick %d\r\n" % number for number in numbers)).faults
