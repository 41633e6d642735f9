"""``novacron simulate raft``: the scenario, and the bugs that it has to find."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Final

from novacron_testkit.linearizability import KeyValueModel, check
from novacron_testkit.simulation import Simulation
from novacron_testkit.simulator import Faults, Simulator

from novacron_consensus_raft import _core
from novacron_consensus_raft._settings import RaftSettings
from novacron_consensus_raft._simulation_members import CLUSTER, Plan
from novacron_consensus_raft._simulation_mutants import MUTANTS
from novacron_consensus_raft._simulation_world import RaftWorld

FAULTS_MS = 4_000
# What is done on purpose goes together so that it leads somewhere: each line is a way by which a
# replicated log is known to break if one rule is not kept.
# Some need leases, and some that there are none.
TROUBLE: Final[tuple[tuple[tuple[str, ...], bool | None], ...]] = (
    ((), None),
    (("stall-leader",), None),
    (("stall-leader", "crash-leader"), None),
    (("bridge", "isolate-deposed"), True),
    (("bridge", "isolate-deposed"), True),
    (("isolate-deposed", "transfer"), True),
    (("burst", "isolate-leader", "crash-leader"), None),
    (("isolate-leader", "isolate-new-leader"), None),
    (("isolate-new-leader", "crash-new-leader"), None),
    (("isolate-new-leader", "crash-new-leader"), False),
    (("crash-voter", "crash-leader"), False),
    (("crash-voter", "crash-leader"), False),
    (("power", "minority", "burst"), None),
)


def plan(rng: random.Random) -> Plan:
    """A kind of run, by chance."""
    changes, transfers = rng.random() < 0.5, rng.random() < 0.2
    trouble, lease = rng.choice(TROUBLE)
    settings = RaftSettings(
        cluster=CLUSTER,
        heartbeat_ms=rng.choice((40, 80)),
        election_ms=250,
        lease=rng.random() < 0.5 if lease is None else lease,
        drift=0.1,
        # One by one, so that an earlier leader's entry can have a majority before the own one.
        append_bytes=min(rng.choice((1, 300)), 1 if "crash-new-leader" in trouble else 300),
        inflight=rng.choice((1, 4)),
        chunk_bytes=rng.choice((40, 4096)),
        chunks_inflight=3,
        pending_bytes=rng.choice((150, 1 << 20)),
        keep_entries=rng.choice((0, 4)),
    )
    voters = rng.choice((2, 3, 3, 3, 3, 5))
    # A decayed disk is one voter less for good.
    decays = (voters - 1) // 2 if not changes and rng.random() < 0.3 else 0
    changes = changes and lease is not True
    if changes:
        trouble += ("split-change",)
    if "transfer" in trouble:
        trouble, transfers = tuple(what for what in trouble if what != "transfer"), True
    return Plan(
        voters=voters,
        spares=2 if changes else 0,
        changes=changes,
        transfers=transfers,
        compact_every=rng.choice((4, 10, 1000)),
        pause_ms=rng.choice((10, 60)),
        trouble=trouble,
        decays=decays,
        settings=settings,
    )


def faults(rng: random.Random, made: Plan) -> Faults:
    """What befalls a run, by chance."""
    # Some trouble needs that nothing else happens: it is played out to its end.
    often = 0.0 if "isolate-deposed" in made.trouble else rng.choice((0.3, 1.0, 2.0))
    return Faults(
        loss=0.03 * often,
        duplicate=0.03 if often else 0.0,
        reorder=0.1 if often else 0.0,
        cut=0.002 * often,
        cut_one_way=0.002 * often,
        partition=0.001 * often,
        partition_one_way=0.0005 * often,
        crash=0.002 * often,
        stall=0.0005 * often,
        disk=0.002 * often,
        slow=rng.choice((0.0, 0.2)),
        delay_ms=rng.choice(((1, 5), (1, 20), (5, 40))),
        reorder_ms=150,
        cut_ms=800,
        partition_ms=1500,
        restart_ms=600,
        stall_ms=800,
        slow_ms=30,
        drift=0.04,
    )


def scenario(seed: int, trace: list[str] | None = None, core: ModuleType = _core) -> Simulator:
    """One run. Raises AssertionError if a law is broken."""
    chance = random.Random(f"raft {seed}")
    made = plan(chance)
    world = RaftWorld(made, core)
    simulator = Simulator(seed, faults(chance, made), world, world.nodes, trace=trace)
    world.begin()
    simulator.run(faults_ms=FAULTS_MS, done=world.done, quiet_events=60_000, quiet_ms=30_000)
    problem = check(world.history.operations(), KeyValueModel())
    assert problem is None, str(problem)
    return simulator


RAFT: Final = Simulation("raft", scenario, list(MUTANTS))
