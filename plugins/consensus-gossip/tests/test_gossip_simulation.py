"""The protocol under every fault, the bugs planted in it, and large clusters."""

from __future__ import annotations

import pytest
from novacron_consensus_gossip import Timing
from novacron_consensus_gossip._crowd import Crowd, Weather, measure
from novacron_consensus_gossip._simulation import CHAPTERS, scenario
from novacron_consensus_gossip._simulation_mutants import MUTANTS
from novacron_testkit.mutants import require_found
from novacron_testkit.simulator import explore

# Millions of events: to trace each line of them would take longer than all the rest.
pytestmark = pytest.mark.no_cover


@pytest.mark.slow
def test_the_laws_hold_in_every_chapter() -> None:
    assert explore(scenario, runs=3 * len(CHAPTERS)) == 3 * len(CHAPTERS)


@pytest.mark.slow
def test_every_planted_bug_is_found() -> None:
    assert len(MUTANTS) >= 20
    require_found(MUTANTS, scenario, seeds=300)


def test_a_seed_is_the_same_every_time() -> None:
    first: list[str] = []
    second: list[str] = []
    scenario(3, first)
    scenario(3, second)
    assert first == second
    assert len(first) > 50


@pytest.mark.slow
def test_among_a_hundred_a_failure_is_known_everywhere_within_ten_periods() -> None:
    figures = measure(100, seed=5, failures=10, rest_periods=30)
    known = [one for one in figures.known_periods if one is not None]
    assert len(known) == 10
    assert max(known) < 10
    assert figures.false_dead == 0


@pytest.mark.slow
def test_among_a_thousand_a_failure_is_known_everywhere_within_ten_periods() -> None:
    figures = measure(1_000, seed=6, failures=2, rest_periods=5)
    known = [one for one in figures.known_periods if one is not None]
    assert len(known) == 2
    assert max(known) < 10
    assert figures.false_dead == 0


@pytest.mark.slow
def test_a_member_sends_as_much_in_a_large_cluster_as_in_a_small_one() -> None:
    small, large = (measure(n, seed=7, failures=1, rest_periods=12) for n in (20, 500))
    assert large.messages == pytest.approx(small.messages, rel=0.1)
    assert large.messages < 2.6


@pytest.mark.slow
def test_with_a_tenth_of_all_datagrams_lost_nobody_is_wronged() -> None:
    figures = measure(60, seed=8, failures=1, rest_periods=120, weather=Weather(loss=0.1))
    assert figures.false_dead == 0


@pytest.mark.slow
def test_members_that_stop_now_and_then_do_not_make_others_wrong() -> None:
    crowd = Crowd(50, 9, Timing(), Weather(loss=0.01, slow=0.1, stall_ms=1_500))
    for _ in range(60):
        crowd.stall()
        crowd.advance(1_000)
    healthy = {f"m{number:05}" for number in range(5, 50)}
    assert not {name for name, _ in crowd.false_dead} & healthy


@pytest.mark.slow
def test_a_broadcast_reaches_three_hundred_members_through_losses_and_costs_hardly_more() -> None:
    crowd = Crowd(300, 10, weather=Weather(loss=0.02))
    for number in range(4):
        body = b"large payload %d" % number
        crowd.broadcast(number * 7, body)
        crowd.advance(3_000)
        assert len(crowd.delivered[body]) == 299
    repeated = sum(core.counts["broadcasts-repeated"] for core in crowd.cores)
    crowd.broadcast(5, b"the last one")
    crowd.advance(3_000)
    assert len(crowd.delivered[b"the last one"]) == 299
    more = sum(core.counts["broadcasts-repeated"] for core in crowd.cores) - repeated
    assert more <= 15, "copies beyond the 299 that are needed"
