from __future__ import annotations

import pytest
from novacron_consensus_acp._simulation import ACP, scenario
from novacron_testkit.mutants import find
from novacron_testkit.simulator import explore

# Millions of events: to trace each line of them would take longer than all the rest.
pytestmark = pytest.mark.no_cover


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_laws_hold_over_switches_under_faults() -> None:
    explore(scenario, 60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_planted_bug_is_found() -> None:
    assert len(ACP.mutants) >= 20
    found = find(ACP.mutants, scenario, ACP.mutant_seeds)
    assert [finding.mutant.name for finding in found if finding.seed is None] == []
