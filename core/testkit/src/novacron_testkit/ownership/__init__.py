"""The ownership of machines, simulated whole: hand-overs, a replicated register and leases.

Give it your own replicated log, and `novacron simulate` holds it to the laws that a machine needs:

    OWNERSHIP = ownership_simulation("ownership", lambda node, members, records, rng: MyCore(…))
"""

from __future__ import annotations

from types import ModuleType

from attrs import asdict, evolve

from novacron_testkit.experiment import nodes_at_most
from novacron_testkit.faults import Faults
from novacron_testkit.ownership.mutants import MUTANTS
from novacron_testkit.ownership.world import MakeCore, OwnershipWorld, Parts, Plan
from novacron_testkit.simulation import Simulation
from novacron_testkit.simulator import Simulator

FAULTS_MS = 6000


_ROUGH = Faults(
    loss=0.02,
    duplicate=0.02,
    reorder=0.03,
    cut=0.0015,
    cut_one_way=0.001,
    partition=0.0008,
    partition_one_way=0.0005,
    crash=0.0008,
    stall=0.0008,
    disk=0.001,
    slow=0.01,
    drift=0.01,
    delay_ms=(1, 20),
    cut_ms=1500,
    partition_ms=3500,
    restart_ms=3000,
    stall_ms=3000,
    slow_ms=60,
)


def faults(seed: int) -> Faults:
    """What may go wrong: a bit of everything, or much of something."""
    match seed % 4:
        case 1:  # long partitions of a network that loses nothing
            return evolve(_ROUGH, loss=0.0, duplicate=0.0, partition=0.003, partition_one_way=0.002)
        case 2:  # partitions, and requests that come when nobody waits for them any more
            return evolve(_ROUGH, partition=0.001, cut=0.0, loss=0.0)
        case 3:  # processes that die and come back at once, or stand still
            return evolve(_ROUGH, crash=0.003, restart_ms=800, stall=0.002, reorder=0.1)
        case _:
            return _ROUGH


def ownership_simulation(name: str, make_core: MakeCore, plan: Plan | None = None) -> Simulation:
    """A simulation of machines whose register is kept by cores of your own.

    Args:
        make_core: Makes a member of the cluster (`novacron_agreement.LogCore`): its name, all
            members with their addresses, the durable records read back, and a seeded source of
            chance. Give it timeouts that suit a simulation: elections within half a second.
        plan: What happens; by default three nodes and one machine.
    """
    chosen = plan or Plan()

    def scenario(
        seed: int, trace: list[str] | None = None, core: ModuleType | None = None
    ) -> Simulator:
        nodes = chosen.nodes[: nodes_at_most(len(chosen.nodes))]
        late = 0.25 if seed % 4 >= 2 else chosen.late
        world = OwnershipWorld(evolve(chosen, nodes=nodes, late=late), make_core, parts(core))
        simulator = Simulator(seed, faults(seed), world, nodes, trace=trace)
        return simulator.run(
            faults_ms=FAULTS_MS,
            done=world.done,
            quiet_events=100_000,
            quiet_ms=4 * chosen.bound_ms,
        )

    return Simulation(name, scenario, MUTANTS)


def parts(core: ModuleType | None) -> Parts:
    """The modules to run, with a mutant in the place of the one that it is made of."""
    chosen = Parts()
    if core is not None:
        name = core.__name__.partition("__mutant")[0].rpartition(".")[2]
        if name not in asdict(chosen):
            raise ValueError(f"{core.__name__} is no module that this simulation runs")
        setattr(chosen, name, core)
    return chosen


__all__ = ["FAULTS_MS", "OwnershipWorld", "Parts", "Plan", "faults", "ownership_simulation"]
