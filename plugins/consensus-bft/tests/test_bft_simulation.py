from __future__ import annotations

import pytest
from novacron_consensus_bft._simulation import BFT, scenario
from novacron_testkit.mutants import find
from novacron_testkit.simulator import explore

# Millions of events: to trace each line of them would take longer than all the rest.
pytestmark = pytest.mark.no_cover


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_laws_hold_under_faults_and_a_liar() -> None:
    explore(scenario, 100)


@pytest.mark.slow
def test_the_laws_hold_with_real_signatures() -> None:
    for seed in range(1000, 1004):
        scenario(seed, None, sound_keys=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_planted_bug_is_found() -> None:
    assert len(BFT.mutants) >= 20
    found = find(BFT.mutants, scenario, BFT.mutant_seeds)
    assert [finding.mutant.name for finding in found if finding.seed is None] == []
