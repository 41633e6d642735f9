"""What ``novacron simulate acp`` runs: a log that changes its engine while members crash and links
break.

The laws: no two members apply different commands at one index, in whatever generation; no command
is lost that was acknowledged, none is applied twice, none that nobody asked for; a read sees what
was acknowledged before it; members that are in one generation run the same engine; and once the
faults are over, everything is done and all members are in one generation. The engines are the real
ones, as the installed plugins offer them.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, Final

import msgspec
from novacron import PluginManager
from novacron_agreement import Commit, Effect, Note, Readable, Rejected, Restore, Save, Send
from novacron_agreement.engines import LogEngine
from novacron_testkit.disk import SimulatedDisk
from novacron_testkit.faults import Faults
from novacron_testkit.simulation import Simulation
from novacron_testkit.simulator import Simulator, World

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


class SimulatedSigner:
    """Signs fast: a digest keyed with a secret that only this signer and the verifier know."""

    def __init__(self, name: str) -> None:
        self._secret = name.encode()
        self.public_key = b"simulated:" + self._secret

    def sign(self, statement: bytes) -> bytes:
        return hashlib.blake2b(statement, key=self._secret, digest_size=16).digest()


class SimulatedVerifier:
    """Makes the signature again."""

    def verify(self, public_key: bytes, statement: bytes, signature: bytes) -> bool:
        name = public_key.partition(b":")[2].decode()
        return SimulatedSigner(name).sign(statement) == signature

    def signature_bytes(self, public_key: bytes) -> int:
        return 16


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


class Process:
    """What is volatile in a process: the core, the state machine, and effects that wait."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.log: list[bytes] = []
        self.outbox: deque[Effect] = deque()
        self.waits = False
        self.tick_at = -1
        self.tickets: dict[int, bytes] = {}
        self.reads: dict[int, int] = {}


class AcpWorld(World):
    """Four members; people declare trust, now this way and now that."""

    def __init__(self, core: ModuleType) -> None:
        self.core_module = core
        self.signers = {name: SimulatedSigner(name) for name in NAMES}
        self.keys = {name: signer.public_key for name, signer in self.signers.items()}
        self.disks: dict[str, SimulatedDisk] = {}
        self.processes: dict[str, Process] = {}
        self.declared = Declared()
        self.tickets = 0
        self.final = False
        self.next_client = 0
        self.newest = 0
        self.log: dict[int, bytes] = {}
        self.engine_of: dict[int, tuple[str, str]] = {}
        self.asked: set[bytes] = set()
        self.entries: list[wire.AnyEntry] = []
        self.acknowledged = 0
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
            verifier=SimulatedVerifier(),
            declared=self.declared,
        )
        self.processes[node] = Process(core)
        self._perform(node, core.start(self.sim.steady(node)))
        # Whoever comes back is behind, and must not read what it finds.
        self.sim.at(self.sim.rng.randrange(1, 40), self._read, node, node=node)

    def crashed(self, node: str) -> None:
        self.processes.pop(node, None)
        if node in self.disks:
            self.disks[node].crash()

    def deliver(self, src: str, dst: str, message: Any) -> None:
        process = self.processes.get(dst)
        if process is not None:
            self._perform(dst, process.core.receive(self.sim.steady(dst), src, bytes(message)))

    def _tick(self, node: str) -> None:
        process = self.processes[node]
        process.tick_at = -1
        self._perform(node, process.core.tick(self.sim.steady(node)))

    # Effects.

    def _perform(self, node: str, effects: Sequence[Effect]) -> None:
        process = self.processes.get(node)
        if process is None:
            return  # it crashed while it performed what came before these
        process.outbox.extend(effects)
        if not process.waits:
            self._drain(node)
        if self.processes.get(node) is not process:
            return
        deadline = process.core.deadline_ms
        if process.tick_at < 0 or deadline < process.tick_at:
            process.tick_at = deadline
            self.sim.at(self.sim.until(node, deadline), self._tick, node, node=node)

    def _resume(self, node: str) -> None:
        self.processes[node].waits = False
        self._drain(node)

    def _drain(self, node: str) -> None:
        process = self.processes[node]
        while process.outbox and self.processes.get(node) is process and not process.waits:
            effect = process.outbox.popleft()
            if isinstance(effect, Send):
                self.sim.send(node, effect.to, Told(effect.message))
            elif isinstance(effect, Save):
                try:
                    wait = self._write(node, effect)
                except OSError:
                    self.sim.crash(node)
                    return
                if wait:
                    process.waits = True
                    self.sim.at(wait, self._resume, node, node=node)
            else:
                self._answer(node, process, effect)

    def _write(self, node: str, effect: Save) -> int:
        disk = self.disks[node]
        if effect.replaces:
            return disk.replace(effect.records)
        disk.append(effect.records)
        self.sim.point(node)
        return disk.sync()

    def _answer(self, node: str, process: Process, effect: Effect) -> None:
        match effect:
            case Commit(index, command, ticket):
                self._committed(node, process, index, command)
                process.log.append(command)
                if ticket is not None:
                    assert process.tickets.pop(ticket) == command, "another ticket's command"
                    self.acknowledged = max(self.acknowledged, index)
                if index % COMPACT_EVERY == 0:
                    snapshot = msgspec.msgpack.encode(process.log)
                    self._perform(node, process.core.compact(index, snapshot))
            case Restore(index, snapshot):
                process.log = msgspec.msgpack.decode(snapshot, type=list[bytes])
                assert len(process.log) == index, "a snapshot of another index"
                for number, command in enumerate(process.log, 1):
                    self._agree(node, number, command)
            case Readable(ticket, index):
                seen = process.reads.pop(ticket)
                assert len(process.log) >= index >= seen, f"{node} reads what is out of date"
            case Rejected(ticket):
                process.tickets.pop(ticket, None)
                process.reads.pop(ticket, None)
            case Note("pause"):
                self.pauses_ms.append(process.core.pauses_ms[-1])
            case _:
                pass

    def _committed(self, node: str, process: Process, index: int, command: bytes) -> None:
        assert index == len(process.log) + 1, f"{node} commits {index} after {len(process.log)}"
        self._agree(node, index, command)
        assert command not in process.log, f"{node} applies {command!r} twice"
        assert command in self.asked, f"{node} applies {command!r}, which nobody asked for"

    def _agree(self, node: str, index: int, command: bytes) -> None:
        known = self.log.setdefault(index, command)
        assert known == command, f"{node} has {command!r} at {index}, another has {known!r}"

    # What people do.

    def _client(self, node: str) -> None:
        process = self.processes.get(node)
        if process is None:
            return
        self.tickets += 1
        now = self.sim.steady(node)
        if self.sim.rng.random() < 0.35:
            self._read(node)
            return
        command = f"{node}:{self.tickets}".encode()
        self.asked.add(command)
        process.tickets[self.tickets] = command
        effects = process.core.propose(now, self.tickets, command)
        self.entries += [pending.entry for pending in process.core._pending.values()]
        self._perform(node, effects)

    def _read(self, node: str) -> None:
        process = self.processes.get(node)
        if process is None:
            return
        self.tickets += 1
        process.reads[self.tickets] = self.acknowledged
        self._perform(node, process.core.read(self.sim.steady(node), self.tickets))

    def _declare(self, declared: Declared) -> None:
        """Everybody who is there hears of it now; the others when they are back."""
        self.declared = declared
        for node, process in list(self.processes.items()):
            self._perform(node, process.core.declare(self.sim.steady(node), declared))

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
            self._perform(node, core._take())
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
        self._perform(node, core._take())

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
