"""The simulation finds nothing, and finds every bug that was planted."""

from __future__ import annotations

import pytest
from novacron_consensus_state import novacron_register_simulations
from novacron_consensus_state._simulation import STATE, scenario
from novacron_consensus_state._simulation_mutants import MUTANTS
from novacron_testkit.mutants import Mutant, find_one
from novacron_testkit.simulation import load
from novacron_testkit.simulator import explore

# Millions of events: to trace each line of them would take longer than all the rest.
pytestmark = pytest.mark.no_cover

# The seed that is tried first for each planted bug: one that found it. If it does no more, all are.
FOUND_BY: dict[str, int] = {
    "a row that was taken away before it came is written all the same": 1,
    "what is doomed is not remembered when it comes": 1,
    "a second add of an element gets no dot of its own": 2,
    "the last writer is whoever has the last name": 2,
    "a register keeps what its writer has replaced": 1,
    "an insertion goes to the beginning of the list": 1,
    "elements that are inserted together get one position": 1,
    "doomed rows stay after states were taken over": 4,
    "events that were never seen here are said to be at hand": 23,
    "a range is called fresh while its keys are still to come": 2,
    "the member that was asked to write counts twice for a majority": 5,
    "the member that was asked to read counts twice for a majority": 15,
    "a session's token is not looked at": 7,
    "a strong read does not wait for what the log has decided": 2,
    "a snapshot does not say what was seen": 1,
    "a snapshot forgets doomed rows and large keys' ends": 1,
    "a strong write that is asked for twice takes effect twice": 4,
    "a strong write replaces only what its writer saw": 18,
    "a strong read is served by whoever is asked": 2,
}


@pytest.mark.slow
def test_nothing_is_found_in_some_worlds() -> None:
    assert explore(scenario, runs=25, first_seed=1_000) == 25


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: Mutant) -> None:
    first = FOUND_BY.get(mutant.name, 0)
    finding = find_one(mutant, scenario, [first, *range(STATE.mutant_seeds)])
    assert finding.seed is not None


def test_there_are_enough_planted_bugs() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


def test_the_simulation_is_offered_by_its_name() -> None:
    (target,) = novacron_register_simulations().values()
    assert load(target) is STATE
