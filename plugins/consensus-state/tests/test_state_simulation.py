"""The simulation finds nothing, and finds every bug that was planted."""

from __future__ import annotations

import pytest
from novacron_consensus_state import novacron_register_simulations
from novacron_consensus_state._simulation import STATE, scenario
from novacron_consensus_state._simulation_mutants import MUTANTS
from novacron_testkit.mutants import Mutant, find_one
from novacron_testkit.simulation import load
from novacron_testkit.simulator import explore

# The seed that is tried first for each planted bug: one that found it. If it does no more, all are.
FOUND_BY: dict[str, int] = {}


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
