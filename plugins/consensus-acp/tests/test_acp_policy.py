from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_consensus_acp import Choice, Declared, Measured, choose
from novacron_consensus_acp._policy import ROUND_TRIP_MS, Hysteresis

BOTH = ("bft", "raft")
RAFT = Choice(engine="raft", place="site")
FAR = Choice(engine="raft", place="region")


def chosen(
    trust: str = "own", *, members: int = 5, present: Choice = RAFT, took: float | None = 2.0,
    liars: int = 0, engine: str = "", offered: tuple[str, ...] = BOTH,
) -> Choice:  # fmt: skip
    declared = Declared(trust=trust, engine=engine)  # type: ignore[arg-type]
    measured = Measured(members=members, round_trip_ms=took, equivocations=liars)
    return choose(declared, measured, present, offered)


def test_members_of_one_owner_agree_by_raft_and_of_several_by_bft() -> None:
    assert chosen("own").engine == "raft"
    assert chosen("mixed").engine == "bft"
    assert chosen("own").soft_state == "gossip"


def test_a_proven_lie_calls_for_bft_whatever_was_declared() -> None:
    choice = chosen("own", liars=1)
    assert choice.engine == "bft"
    assert "proved to have lied" in choice.reasons[0]


def test_three_members_cannot_outvote_a_liar_and_the_reason_says_so() -> None:
    choice = chosen("mixed", members=3)
    assert choice.engine == "raft"
    assert "3 members cannot outvote a liar" in choice.reasons[0]


def test_an_engine_that_no_plugin_offers_is_not_chosen() -> None:
    choice = chosen("mixed", offered=("raft",))
    assert choice.engine == "raft"
    assert "no installed plugin offers bft" in choice.reasons[0]


def test_a_declared_engine_is_taken() -> None:
    assert chosen("mixed", engine="raft").engine == "raft"


@pytest.mark.parametrize(
    ("took", "place"), [(1, "site"), (30, "region"), (80, "continent"), (200, "globe")]
)
def test_distance_is_what_a_quorum_takes_to_answer(took: float, place: str) -> None:
    assert chosen(took=took).place == place


def test_a_measurement_near_a_bound_changes_nothing() -> None:
    assert chosen(took=11.0, present=RAFT).place == "site"
    assert chosen(took=9.0, present=FAR).place == "region"


@given(
    st.sampled_from(sorted(ROUND_TRIP_MS)),
    st.floats(0, 1000),
    st.sampled_from(["own", "mixed"]),
    st.integers(1, 9),
)
@settings(deadline=None)
def test_a_choice_is_the_right_one_once_it_is_made(
    place: str, took: float, trust: str, members: int
) -> None:
    first = chosen(trust, members=members, took=took, present=Choice(engine="raft", place=place))
    again = chosen(trust, members=members, took=took, present=first)
    assert again.same_as(first)


def test_a_change_is_wanted_only_after_it_was_right_for_long_enough() -> None:
    held = Hysteresis(hold_ms=100, dwell_ms=1000)
    other = Choice(engine="bft", place="site")
    assert not held.wants(0, other, RAFT, 0.0)
    assert not held.wants(99, other, RAFT, 0.0)
    assert held.wants(100, other, RAFT, 0.0)
    assert not held.wants(101, RAFT, RAFT, 0.0), "it is right again"
    assert not held.wants(102, other, RAFT, 0.0), "and the time begins anew"
    held.switched(200)
    assert not held.wants(500, RAFT, other, 0.0)
    assert not held.wants(1100, RAFT, other, 0.0), "not so soon after a switch"
    assert held.wants(1200, RAFT, other, 0.0)


def test_nothing_is_switched_while_much_is_lost() -> None:
    held = Hysteresis(hold_ms=0, dwell_ms=0)
    other = Choice(engine="bft", place="site")
    assert not held.wants(10, other, RAFT, 0.5)
