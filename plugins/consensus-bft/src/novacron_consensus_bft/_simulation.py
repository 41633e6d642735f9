"""What ``novacron simulate bft`` runs: members with faulty disks and networks, and one that lies.

The laws: no two honest members commit different things at one place (agreement), nothing is
committed that its origin did not ask for, and nothing twice (validity), a read sees what was
acknowledged before it, no honest member can be convicted (accountability), what is held for others
stays within bounds, and once the faults are over everything that was asked for is done (liveness),
though the liar goes on to lie.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

import msgspec
from novacron_agreement import Effect, Note, Send
from novacron_testkit.disk import CorruptDisk, SimulatedDisk
from novacron_testkit.faults import Faults
from novacron_testkit.logworld import LogWorld, Process, SimulatedSigner, SimulatedVerifier
from novacron_testkit.simulation import Simulation
from novacron_testkit.simulator import Simulator

from novacron_consensus_bft import _core as real
from novacron_consensus_bft import _wire as wire
from novacron_consensus_bft._evidence import verify_proof
from novacron_consensus_bft._settings import CoreSettings
from novacron_consensus_bft._signing import Ed25519Signer, Schemes, Signer, Verifier
from novacron_consensus_bft._simulation_liar import Liar
from novacron_consensus_bft._simulation_mutants import MUTANTS
from novacron_consensus_bft._simulation_oracle import Oracle

TWIN: Final = "~"
MUTE: Final = 1.0
CHECKPOINT_EVERY: Final = 3
SETTINGS: Final = CoreSettings(
    view_timeout_ms=120,
    retry_ms=40,
    status_ms=150,
    window=3,
    share_bytes=2_000,
    checkpoint_every=CHECKPOINT_EVERY,
)
FAULTS: Final = Faults(
    loss=0.03,
    duplicate=0.02,
    reorder=0.04,
    cut=0.006,
    cut_one_way=0.006,
    partition=0.004,
    crash=0.004,
    disk=0.002,
    slow=0.02,
    slow_ms=40,
    stall=0.002,
    drift=0.05,
    cut_ms=200,
    restart_ms=150,
)


class Told(bytes):
    """A message, readable in traces."""

    def __repr__(self) -> str:
        try:
            return repr(wire.decode(self))[:300]
        except wire.WireError:
            return f"garbage {bytes(self[:12]).hex()}"


class BftWorld(LogWorld):
    """Members a to d, of whom one may lie; e may come later."""

    def __init__(self, seed: int, core: ModuleType, *, sound_keys: bool = False) -> None:
        super().__init__(CHECKPOINT_EVERY)
        rng = random.Random(seed ^ 0x5EED)
        self.core_module = core
        self.honest = ["a", "b", "c", "d", "e"]
        self.signers: dict[str, Signer] = {}
        self.verifier: Verifier
        if sound_keys:
            self.verifier = Schemes()
            self.signers = {n: Ed25519Signer.from_seed(rng.randbytes(32)) for n in self.honest}
        else:
            made = {name: SimulatedSigner(rng.randbytes(32)) for name in self.honest}
            self.verifier = SimulatedVerifier(made.values())
            self.signers = dict(made)
        self.first = tuple(self._member(name) for name in "abcd")
        self.liar: Liar | None = None
        if seed % 5:
            # Those that lead first do the most harm.
            name = "abcdab"[seed % 6]
            share = rng.choice((0.05, 0.3, 0.6, MUTE))
            self.liar = Liar(name, self.signers[name], rng, share)
            self.honest.remove(name)
        self.lost: set[str] = set()
        self.wanted: tuple[wire.Member, ...] | None = None
        self.final = False
        self.blocks: dict[tuple[int, int], bytes] = {}
        self.oracle = Oracle(self.verifier)

    def _member(self, name: str) -> wire.Member:
        return wire.Member(name, self.signers[name].public_key)

    @property
    def nodes(self) -> tuple[str, ...]:
        twin = (self.liar.name + TWIN,) if self.liar else ()
        return ("a", "b", "c", "d", "e", *twin)

    def plan(self, faults_ms: int) -> None:
        """When clients ask for what, and whether the members change."""
        rng = self.sim.rng
        for _ in range(rng.randint(4, 9)):
            self.sim.at(rng.randrange(faults_ms), self._client, rng.choice("abcd"))
        if self.liar:
            for _ in range(12):
                self.sim.at(rng.randrange(faults_ms), self._mischief)
        if rng.random() < 0.5:
            self.sim.at(rng.randrange(faults_ms), self._stop_leader)
        if rng.random() < 0.4:
            names = rng.choice(("abcde", "abce", "abde", "acde", "bcde"))
            self.wanted = tuple(self._member(name) for name in names)
            for name in self.honest:
                self.sim.at(rng.randrange(faults_ms), self._change, name)

    # Processes.

    def boot(self, node: str) -> None:
        if node in self.lost:
            return
        disk = self.disks.get(node)
        if disk is None:
            disk = self.disks[node] = SimulatedDisk(self.sim, node)
        # A member that has forgotten what it voted for counts as faulty, so it may be one at most;
        # decay of what was written last is a torn tail to every reader, and spared.
        one_may = self.liar is None and not self.lost and disk._last_batch > 0
        if one_may and self.sim.strikes("corrupt", 0.03):
            disk.spoil(self.sim.rng.randrange(disk._last_batch))
        try:
            records = disk.read()
        except CorruptDisk:
            self.lost.add(node)  # it says so, and stays away
            return
        name = node.removesuffix(TWIN)
        core = self.core_module.BftCore(
            name,
            self.first,
            records,
            SETTINGS,
            random.Random(self.sim.rng.random()),
            signer=self.signers[name],
            verifier=self.verifier,
        )
        if node in self.honest:
            self.oracle.back(node, core)
        self.processes[node] = Process(core)
        self.perform(node, core.start(self.sim.steady(node)))

    def deliver(self, src: str, dst: str, message: Any) -> None:
        process = self.processes.get(dst)
        if process is None:
            return
        sender = src.removesuffix(TWIN)
        effects = process.core.receive(self.sim.steady(dst), sender, bytes(message))
        self.perform(dst, effects)

    def is_honest(self, node: str) -> bool:
        return node in self.honest

    def post(self, node: str, effect: Send) -> None:
        name = node.removesuffix(TWIN)
        said = [(effect.to, effect.message)]
        if node in self.honest:
            self.oracle.said(node, self.processes[node].core, effect.message)
        if self.liar is not None and name == self.liar.name:
            said = self.liar.say(self.processes[node].core, effect.to, effect.message)
        self._post(node, said)

    def _post(self, node: str, said: Sequence[tuple[str, bytes]]) -> None:
        for to, message in said:
            if self.liar is not None and to == self.liar.name:
                self.liar.hear(message) if node.removesuffix(TWIN) != to else None
                if self.sim.rng.random() < 0.7:
                    self.sim.send(node, to, Told(message))
                if self.sim.rng.random() < 0.7:
                    self.sim.send(node, to + TWIN, Told(message))
            else:
                self.sim.send(node, to, Told(message))

    def noted(self, node: str, process: Process, effect: Effect) -> None:
        match effect:
            case Note("equivocation"):
                if node in self.honest:
                    self._convicted(process)
            case Note("diverged"):
                raise AssertionError(f"{node} has another state than a quorum: {effect.detail}")
            case _:
                pass

    def _convicted(self, process: Process) -> None:
        key = {member.name: member.key for member in (*self.first, self._member("e"))}
        for proof in process.core.proofs:
            member = msgspec.msgpack.decode(proof)[0]
            verify_proof(proof, process.core.cluster, key[member], self.verifier)
            assert member not in self.honest, f"{member} is honest, and convicted"

    # What people do.

    def _client(self, node: str) -> None:
        if node in self.processes:
            if self.sim.rng.random() < 0.25:
                self.read(node)
            else:
                self.propose(node)

    def _mischief(self) -> None:
        assert self.liar is not None
        process = self.processes.get(self.liar.name)
        if process is not None and self.liar.share < MUTE:
            self._post(self.liar.name, self.liar.act(process.core))

    def _stop_leader(self) -> None:
        """The leader is away for longer than its view lasts."""
        for process in self.processes.values():
            if self.sim.strikes("leader", 1.0):
                self.sim.crash(process.core.leader, 3 * SETTINGS.view_timeout_ms)
            return

    def _change(self, node: str) -> None:
        process = self.processes.get(node)
        if process is None or self.wanted is None:
            return
        if process.core.place is not None and process.core.era.number == 0:
            self.perform(node, process.core.change(self.sim.steady(node), self.wanted))

    # What must hold.

    def check(self) -> None:
        for node in self.honest:
            process = self.processes.get(node)
            if process is not None:
                self._same_blocks(node, process)
                self.oracle.holds(node, process.core)
                self._bounded(process.core)

    def _same_blocks(self, node: str, process: Process) -> None:
        chain = process.core.chain
        if chain.committed:
            newest = chain.committed[-1]
            at = (newest.block.era, newest.block.position)
            known = self.blocks.setdefault(at, newest.digest)
            assert known == newest.digest, f"{node} has committed another block at {at}"

    def _bounded(self, core: Any) -> None:
        assert len(core._early) <= 2 * SETTINGS.window, "blocks that came early pile up"
        sizes: dict[str, int] = {}
        for waiting in core.pool:
            request = waiting.request
            sizes[request.origin] = sizes.get(request.origin, 0) + len(request.command)
        assert all(size <= SETTINGS.share_bytes for size in sizes.values()), "requests pile up"

    def _present(self) -> list[str]:
        """The honest members of the newest era."""
        cores = [p.core for n, p in self.processes.items() if n in self.honest]
        newest = max(cores, key=lambda core: core.era.number)
        names = [m.name for m in newest.era.members]
        return [name for name in names if name in self.honest and name not in self.lost]

    def done(self) -> bool:
        """Everything that was asked for is done, everywhere."""
        present = self._present()
        if any(name not in self.processes for name in present):
            return False
        if not self.final:
            self.final = True
            for name in sorted(self.honest):
                self._change(name)
            for name in present:
                self._client(name)
            return False
        running = [self.processes[name] for name in present]
        states = {(p.core.era.number, p.core.ledger.index, len(p.log)) for p in running}
        return len(states) == 1 and not any(p.tickets or p.reads for p in running)


def scenario(
    seed: int,
    trace: list[str] | None = None,
    core: ModuleType = real,
    *,
    faults_ms: int = 900,
    sound_keys: bool = False,
) -> BftWorld:
    """One seed. Raises AssertionError if a law is broken."""
    world = BftWorld(seed, core, sound_keys=sound_keys)
    simulator = Simulator(seed, FAULTS, world, world.nodes, trace=trace)
    world.plan(faults_ms)
    simulator.run(faults_ms=faults_ms, done=world.done, quiet_events=30_000, quiet_ms=12_000)
    return world


BFT: Final = Simulation("bft", scenario, MUTANTS)
