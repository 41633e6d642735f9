"""Shares of a link by rank."""

from __future__ import annotations

from typing import Any

from novacron import MoveNeed
from novacron_placement_itp._ranks import by_rank, rank


def move(session: str, priority: int = 0, **more: Any) -> MoveNeed:
    facts: dict[str, Any] = {
        "machine": session,
        "target": "b",
        "deadline_s": None,
        "remaining_bytes": 10**9,
        "dirty_bytes_per_s": 2 * 10**6,
        "rate_bytes_per_s": 10e6,
        "limit_bytes_per_s": None,
    }
    return MoveNeed(session=session, priority=priority, **facts | more)


def test_who_is_ranked_first_has_the_link_and_the_next_is_held_ready() -> None:
    first, second, third = (
        move("one", rank(0, 1)),
        move("two", rank(0, 2)),
        move("three", rank(0, 3)),
    )
    assert by_rank([third, first, second]) == {"one": None, "two": 500_000, "three": 500_000}


def test_each_way_has_a_first_of_its_own() -> None:
    assert by_rank([move("one", rank(0, 1)), move("two", rank(0, 2), target="c")]) == {
        "one": None,
        "two": None,
    }


def test_the_next_is_let_go_before_the_first_has_ended() -> None:
    ending = move("one", rank(0, 1), remaining_bytes=20 * 10**6)
    assert by_rank([ending, move("two", rank(0, 2))]) == {"one": None, "two": None}


def test_who_has_no_rate_yet_holds_nobody() -> None:
    begins = move("one", rank(0, 1), rate_bytes_per_s=0.0)
    assert by_rank([begins, move("two", rank(0, 2))]) == {"one": None, "two": None}


def test_guests_that_hardly_write_share() -> None:
    quiet = [move(f"m{n}", rank(0, n), dirty_bytes_per_s=1000) for n in (1, 2)]
    assert by_rank(quiet) == {"m1": None, "m2": None}


def test_moves_of_no_evacuation_are_left_to_others_and_go_before_those_of_one() -> None:
    assert by_rank([move("one", 1000), move("two", -1000)]) is None
    assert by_rank([move("two", rank(9, 1)), move("one")]) == {"one": None, "two": 500_000}


def test_a_machines_priority_counts_more_than_who_began_first() -> None:
    assert rank(1, 9_000) > rank(0, 1) > rank(0, 2) > rank(-1, 0) > rank(-1, 99_999)
