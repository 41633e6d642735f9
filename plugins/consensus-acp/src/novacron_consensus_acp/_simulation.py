"""What ``novacron simulate acp`` runs: a log that changes its engine while members crash and links
break.

The laws: no two members apply different commands at one index, in whatever generation; no command
is lost that was acknowledged, none is applied twice, none that nobody asked for; a read sees what
was acknowledged before it; members that are in one generation run the same engine; and once the
faults are over, everything is done and all members are in one generation. The engines are the real
ones, as the installed plugins offer them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any, Final

from novacron import PluginManager
from novacron_agreement import Effect, Note, Send
from novacron_agreement.engines import LogEngine
from novacron_testkit.disk import SimulatedDisk
from novacron_testkit.faults import Faults
from novacron_testkit.logworld import LogWorld, Process, SimulatedSigner, SimulatedVerifier
from novacron_testkit.simulation import Simulation
from novacron_testkit.simulator import Simulator

from novacron_consensus_acp import _core as real
from novacron_consensus_acp import _wire as wire
from novacron_consensus_acp._engines import engines
from novacron_consensus_acp._policy import Choice, Declared
from novacron_consensus_acp._settings import AcpSettings
from novacron_consensus_acp._simulation_mutants import MUTANTS

NAMES: Final = ("a", "b", "c", "d")
PLUGINS: Final = ("consensus-acp", "consensus-bft", "consensus-raft")
COMPACT_EVERY: Final = 4
SETTINGS: Final = AcpSettings(ping_ms=60, retry_ms=60, hold_ms=40, dwell_ms=100)
FAULTS: Final = Faults(
    loss=0.02,
    duplicate=0.02,
    reorder=0.03,
    cut=0.004,
    cut_one_way=0.003,
    partition=0.002,
    crash=0.002,
    disk=0.001,
    slow=0.02,
    slow_ms=30,
    stall=0.001,
    drift=0.05,
    delay_ms=(1, 10),
    cut_ms=200,
    partition_ms=400,
    restart_ms=200,
)


@cache
def installed() -> Mapping[str, LogEngine]:
    """The engines of the installed plugins."""
    return engines(PluginManager.load(only=PLUGINS, strict=True))


class Told(bytes):
    """A message, readable in traces."""

    def __repr__(self) -> str:
        try:
            said = wire.decode_message(self)
        except wire.WireError:
            return f"garbage {bytes(self[:12]).hex()}"
        if isinstance(said, wire.Inner):
            return f"[{said.generation}] {said.data[:40]!r}"
        return repr(said)[:200]


class AcpWorld(LogWorld):
    """Four members; people declare trust, now this way and now that."""

    def __init__(self, core: ModuleType) -> None:
        super().__init__(COMPACT_EVERY)
        self.core_module = core
        self.signers = {name: SimulatedSigner(name.encode()) for name in NAMES}
        self.verifier = SimulatedVerifier(self.signers.values())
        self.keys = {name: signer.public_key for name, signer in self.signers.items()}
        self.declared = Declared()
        self.final = False
        self.next_client = 0
        self.newest = 0
        self.engine_of: dict[int, tuple[str, str]] = {}
        self.entries: list[wire.AnyEntry] = []
        self.pauses_ms: list[int] = []

    def plan(self, faults_ms: int) -> None:
        """When clients ask for what, and what people declare."""
        rng = self.sim.rng
        for _ in range(rng.randint(10, 22)):
            self.sim.at(rng.randrange(faults_ms), self._client, rng.choice(NAMES))
        for number in range(rng.randint(3, 4)):
            at = (number * faults_ms + rng.randrange(faults_ms)) // 5
            declared = Declared(trust="own" if number % 2 else "mixed")
            self.sim.at(at, self._declare, declared)
        for _ in range(8):
            self.sim.at(rng.randrange(faults_ms), self._mischief, rng.choice(NAMES))
        if rng.random() < 0.3:
            name, at = rng.choice(NAMES), rng.randrange(faults_ms // 2)
            self.sim.at(at, self._away, name, faults_ms - at)

    # Processes.

    def boot(self, node: str) -> None:
        disk = self.disks.get(node)
        if disk is None:
            disk = self.disks[node] = SimulatedDisk(self.sim, node)
        core = self.core_module.AcpCore(
            node,
            dict.fromkeys(NAMES, ""),
            disk.read(),
            SETTINGS,
            random.Random(self.sim.rng.random()),
            engines=installed(),
            keys=self.keys,
            signer=self.signers[node],
            verifier=self.verifier,
            declared=self.declared,
        )
        self.processes[node] = Process(core)
        self.perform(node, core.start(self.sim.steady(node)))
        # Whoever comes back is behind, and must not read what it finds.
        self.sim.at(self.sim.rng.randrange(1, 40), self.read, node, node=node)

    def deliver(self, src: str, dst: str, message: Any) -> None:
        process = self.processes.get(dst)
        if process is not None:
            self.perform(dst, process.core.receive(self.sim.steady(dst), src, bytes(message)))

    def post(self, node: str, effect: Send) -> None:
        self.sim.send(node, effect.to, Told(effect.message))

    def noted(self, node: str, process: Process, effect: Effect) -> None:
        if isinstance(effect, Note) and effect.kind == "pause":
            self.pauses_ms.append(process.core.pauses_ms[-1])

    # What people do.

    def _client(self, node: str) -> None:
        process = self.processes.get(node)
        if process is None:
            return
        if self.sim.rng.random() < 0.35:
            self.read(node)
        else:
            self.propose(node)
            self.entries += [pending.entry for pending in process.core._pending.values()]

    def _declare(self, declared: Declared) -> None:
        """Everybody who is there hears of it now; the others when they are back."""
        self.declared = declared
        for node, process in list(self.processes.items()):
            self.perform(node, process.core.declare(self.sim.steady(node), declared))

    def _away(self, node: str, for_ms: int) -> None:
        """Longer than a switch takes, or two."""
        if self.sim.strikes("away", 1.0):
            self.sim.crash(node, for_ms)

    def _mischief(self, node: str) -> None:
        """Entries that their origin has not signed, and a wish of one member alone: neither may
        count, and bytes that are nothing."""
        process = self.processes.get(node)
        if process is None:
            return
        core, rng = process.core, self.sim.rng
        if node == "d":  # it alone wants what nobody else does
            core._wish(Choice(engine=rng.choice(("bft", "raft")), place="globe"))
            self.perform(node, core._take())
            return
        victim = rng.choice([name for name in NAMES if name != node])
        number, generation = rng.randint(1, 6), core.ledger.generation
        forged: list[wire.AnyEntry] = [
            wire.Command(victim, core.epoch, number, b"forged", b"forged"),
            wire.Wish(victim, core.epoch, number, b"", generation, "bft", "globe", "forged"),
            wire.Wish(victim, core.epoch, number, b"", generation, "raft", "globe", "forged"),
        ]
        # Or what its origin did sign, once more.
        again = self.entries and rng.random() < 0.6
        entry = wire.encode(rng.choice(self.entries if again else forged))
        for to in NAMES:
            if to != node:
                self.sim.send(node, to, Told(wire.encode(wire.Forward(generation, entry))))
                self.sim.send(node, to, Told(rng.randbytes(9)))
        # As a lying leader would: past the checks, into the engine's log.
        core._inner_ticket += 1
        ticket = core._inner_ticket
        effects = core.inner.propose(self.sim.steady(node), ticket, entry)
        core._asked[ticket] = ("", 0, 0)
        core._run(generation, effects)
        self.perform(node, core._take())

    # What must hold.

    def check(self) -> None:
        for node, process in self.processes.items():
            ledger = process.core.ledger
            self.newest = max(self.newest, ledger.generation)
            runs = (ledger.engine, ledger.place)
            known = self.engine_of.setdefault(ledger.generation, runs)
            assert known == runs, f"{node} runs {runs} in generation {ledger.generation}"
            assert ledger.place != "globe", "a wish counted that no quorum had"
            assert len(process.core._asked) < 500, "what engines were asked for piles up"
            assert len(process.core._history) < 500, "what was done piles up"

    def done(self) -> bool:
        """Everything that was asked for is done, everywhere, in the generation that is right."""
        if len(self.processes) < len(NAMES):
            return False
        if not self.final:
            self.final = True
            self._declare(self.declared)
            for name in NAMES:
                self._client(name)
            return False
        if self.sim.now >= self.next_client:  # life goes on
            self.next_client = self.sim.now + 500
            self._client(NAMES[self.tickets % len(NAMES)])
        running = list(self.processes.values())
        states = {(p.core.ledger.generation, p.core.ledger.index, len(p.log)) for p in running}
        if len(states) > 1 or any(p.tickets or p.reads for p in running):
            return False
        return all(p.core.ledger.engine == self._right() for p in running)

    def _right(self) -> str:
        return "bft" if self.declared.trust == "mixed" else "raft"


def scenario(
    seed: int, trace: list[str] | None = None, core: ModuleType = real, *, faults_ms: int = 1800
) -> AcpWorld:
    """One seed. Raises AssertionError if a law is broken."""
    world = AcpWorld(core)
    simulator = Simulator(seed, FAULTS, world, NAMES, trace=trace)
    world.plan(faults_ms)
    simulator.run(faults_ms=faults_ms, done=world.done, quiet_events=60_000, quiet_ms=15_000)
    return world


ACP: Final = Simulation("acp", scenario, MUTANTS)
