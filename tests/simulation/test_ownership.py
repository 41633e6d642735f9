"""Hand-overs, a register of real raft members, leases and partitions: never two runners, and soon
one again when the faults are over."""

from __future__ import annotations

import pytest
from novacron_agreement.leases import LeaseSettings
from novacron_consensus_raft._simulation_ownership import OWNERSHIP, _member
from novacron_testkit.mutants import require_found
from novacron_testkit.ownership import OwnershipWorld, Plan, ownership_simulation
from novacron_testkit.simulator import explore

# Millions of events: to trace each line of them would take longer than all the rest.
pytestmark = pytest.mark.no_cover


@pytest.mark.slow
def test_a_machine_never_runs_twice_and_runs_soon_after_the_faults() -> None:
    assert explore(OWNERSHIP.scenario, 300, first_seed=1_000_000) == 300


@pytest.mark.slow
def test_two_machines_of_five_nodes_are_as_safe() -> None:
    plan = Plan(nodes=tuple("abcde"), machines=("vm1", "vm2"), moves=6)
    assert explore(ownership_simulation("five", _member, plan).scenario, 40) == 40


@pytest.mark.slow
def test_without_takeovers_a_machine_is_as_safe_and_is_never_taken() -> None:
    leases = LeaseSettings(lease_ms=1500, renew_ms=400, takeover=False)
    bold = ownership_simulation("bold", _member, Plan(leases=leases))
    for seed in range(60):
        world = bold.scenario(seed, None).world
        assert isinstance(world, OwnershipWorld)
        assert world.taken == 0


@pytest.mark.slow
def test_the_simulated_nodes_do_move_machines_and_take_over_those_of_others() -> None:
    moved = taken = paused_ms = 0
    for seed in range(30):
        world = OWNERSHIP.scenario(seed, None).world
        assert isinstance(world, OwnershipWorld)
        moved += world.moved
        taken += world.taken
        paused_ms = max(paused_ms, world.longest_ms)
    assert moved > 10
    assert taken > 2
    assert 0 < paused_ms <= Plan().bound_ms


@pytest.mark.slow
def test_every_bug_that_was_planted_is_found() -> None:
    assert len(OWNERSHIP.mutants) >= 20
    require_found(OWNERSHIP.mutants, OWNERSHIP.scenario, seeds=OWNERSHIP.mutant_seeds)
