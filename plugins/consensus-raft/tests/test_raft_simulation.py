"""The simulation finds nothing in the core, and every bug that was planted in it."""

from __future__ import annotations

import pytest
from novacron_consensus_raft._simulation import RAFT, scenario
from novacron_testkit.mutants import Mutant, find_one
from novacron_testkit.simulator import explore

# Millions of events: to trace each line of them would take longer than all the rest.
pytestmark = pytest.mark.no_cover


@pytest.mark.slow
def test_the_laws_hold_under_faults_and_all_is_done_when_they_are_over() -> None:
    explore(scenario, 80)


@pytest.mark.slow
def test_a_seed_replays_to_the_letter() -> None:
    stories: list[list[str]] = [[], []]
    for story in stories:
        scenario(3, story)
    assert stories[0] == stories[1]
    assert len(stories[0]) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("mutant", RAFT.mutants, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: Mutant) -> None:
    found = find_one(mutant, scenario, range(RAFT.mutant_seeds))
    assert found.seed is not None, f"not found by {RAFT.mutant_seeds} seeds"


def test_there_are_enough_planted_bugs() -> None:
    assert len({mutant.name for mutant in RAFT.mutants}) >= 20
