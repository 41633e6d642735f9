"""Members of a simulated raft cluster: what a driver does, done by the simulator.

The members run the class that real nodes run: effects in their order, saves that take time, a
process that dies in between.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections import deque
from types import ModuleType
from typing import Any

from attrs import define, field, frozen
from novacron_agreement import (
    Commit,
    Done,
    Effect,
    Note,
    Readable,
    Rejected,
    Restore,
    Save,
    Send,
    framing,
)
from novacron_agreement import keyvalue as kv
from novacron_testkit.disk import SimulatedDisk
from novacron_testkit.simulator import Crash, World

from novacron_consensus_raft._messages import decode
from novacron_consensus_raft._settings import RaftSettings
from novacron_consensus_raft._simulation_laws import Laws

CLUSTER = "sim"


@frozen(kw_only=True)
class Plan:
    """What a run is about; chosen by its seed.

    Attributes:
        voters, spares: How many members begin, and how many may join.
        clients: How many ask; each one thing at a time.
        pause_ms: How long a client may wait before it asks the next thing.
        requests: How many each client asks at least.
        changes: Whether an operator changes the members.
        transfers: Whether an operator hands the office over.
        compact_every: A member compacts when it has applied so many entries since the last time.
        trouble: What is done to the leader and its followers on purpose, besides what chance does.
        decays: How many members may lose their disk to a corrupt sector.
        settings: Of all members.
    """

    voters: int = 3
    spares: int = 0
    clients: int = 4
    pause_ms: int = 60
    requests: int = 12
    changes: bool = False
    transfers: bool = False
    compact_every: int = 8
    trouble: tuple[str, ...] = ()
    decays: int = 0
    settings: RaftSettings


class Shown(bytes):
    """A message that shows in a trace what it says."""

    def __repr__(self) -> str:
        return repr(decode(self, CLUSTER))


@define(eq=False)
class Process:
    """A member's volatile state."""

    core: Any
    machine: kv.KeyValueMachine
    waiting: deque[tuple[Effect, int]] = field(factory=deque)  # with the core's term then
    syncing: bool = False
    timer_ms: int | None = None
    applied: int = 0
    compacted: int = 0


class Members(World):
    """Members and their disks. ``core`` is the module whose `RaftCore` they run."""

    def __init__(self, plan: Plan, core: ModuleType) -> None:
        self.plan = plan
        self.core = core
        self.laws = Laws()
        voters = [chr(ord("a") + n) for n in range(plan.voters)]
        self.beginning = dict.fromkeys(voters, "")
        self.nodes = [*voters, *(chr(ord("p") + n) for n in range(plan.spares))]
        self.processes: dict[str, Process] = {}
        self.disks: dict[str, SimulatedDisk] = {}
        self.decayed: set[str] = set()
        # How much of each log is not of the last save: decay in that one looks like a torn tail.
        self.early: dict[str, int] = {}

    def begin(self) -> None:
        """Before the first event, when the simulator is there."""
        for node in self.nodes:
            self.disks[node] = SimulatedDisk(
                self.sim, node, frame=framing.frame, parse=framing.parse
            )

    def boot(self, node: str) -> None:
        try:
            records = self._read(node)
        except framing.Damaged:
            self.decayed.add(node)
            return
        self.laws.recovered(node, records)
        members = self.beginning if node in self.beginning else {}
        rng = random.Random(self.sim.rng.random())
        core = self.core.RaftCore(node, members, records, self.plan.settings, rng)
        self.processes[node] = Process(core, kv.KeyValueMachine())
        self._do(node, core.start(self.sim.steady(node)))

    def _read(self, node: str) -> list[bytes]:
        disk = self.disks[node]
        early = self.early.get(node, 0)
        if early and len(self.decayed) < self.plan.decays and self.sim.strikes("corrupt", 0.1):
            disk.spoil(int(self.sim.rng.random() * early))
        return disk.read()

    def crashed(self, node: str) -> None:
        self.processes.pop(node, None)
        self.disks[node].crash()

    def deliver(self, src: str, dst: str, message: bytes) -> None:
        process = self.processes.get(dst)
        if process is not None:
            self._do(dst, process.core.receive(self.sim.steady(dst), src, bytes(message)))

    def _tick(self, node: str) -> None:
        process = self.processes[node]
        process.timer_ms = None
        self._do(node, process.core.tick(self.sim.steady(node)))

    def _do(self, node: str, effects: list[Effect]) -> None:
        """Take a core's effects, and see when it wants to be called."""
        process = self.processes[node]
        core = process.core
        for effect in effects:
            if isinstance(effect, Note) and effect.kind == "leader":
                self.laws.leads(node, core)
                self._elected(node)
        process.waiting.extend((effect, core.term) for effect in effects)
        due = core.deadline_ms
        if due is not None and (process.timer_ms is None or due < process.timer_ms):
            process.timer_ms = due
            self.sim.at(self.sim.until(node, due), self._timer, node, due, node=node)
        if not process.syncing:
            self._go_on(node)

    def _timer(self, node: str, due: int) -> None:
        # A timer that was set before an earlier one is of no account.
        if self.processes[node].timer_ms != due:
            return
        if self.sim.steady(node) > due + 100 and not self.sim.quiet_now:
            # It stood still: chance says whether it sees its timers or what came meanwhile first.
            self.sim.at(self._random_ms(1, 60), self._late, node, due, node=node)
        else:
            self._tick(node)

    def _late(self, node: str, due: int) -> None:
        if self.processes[node].timer_ms == due:
            self._tick(node)

    def _synced(self, node: str) -> None:
        self.processes[node].syncing = False
        self._go_on(node)

    def _go_on(self, node: str) -> None:
        """Perform effects up to a save that takes time. The process may die before each."""
        process = self.processes[node]
        waiting = process.waiting
        while waiting:
            effect, term = waiting.popleft()
            if not isinstance(effect, Save):
                self._perform(node, process, effect, term)
                continue
            wait_ms = self._save(node, effect)
            if wait_ms:
                process.syncing = True
                self.sim.at(wait_ms, self._synced, node, node=node)
                return
        if process.applied >= process.compacted + self.plan.compact_every:
            process.compacted = process.applied
            self._do(node, process.core.compact(process.applied, process.machine.snapshot()))

    def _save(self, node: str, save: Save) -> int:
        self.sim.point(node)
        disk = self.disks[node]
        try:
            if save.replaces:
                wait_ms = disk.replace(save.records)
                self.early[node] = 0
            else:
                self.early[node] = disk.synced_bytes
                disk.append(save.records)
                self.sim.point(node)
                wait_ms = disk.sync()
        except OSError:
            # A core whose save failed is finished; the driver begins anew from the disk.
            raise Crash(node) from None
        self.laws.saved(node, save.records, replaces=save.replaces)
        self.sim.point(node)
        return wait_ms

    def _perform(self, node: str, process: Process, effect: Effect, term: int) -> None:
        if self.sim.trace is not None and not isinstance(effect, Send):
            self.sim.trace.append(f"{self.sim.now:6} {node} {effect!r:.200}")
        match effect:
            case Send(to, message):
                shown = Shown(message) if self.sim.trace is not None else message
                self.sim.send(node, to, shown)
                self._sent(node, to, message)
            case Commit(index, command, ticket):
                self.laws.applied(node, term, index, command)
                assert index > process.applied, f"{node} applies {index} twice"
                process.applied = index
                self._committed(node, process, index)
                answer = kv.answer(process.machine.apply(index, command))
                if ticket is not None and ticket >= 0:
                    self._answer(ticket, answer)
            case Restore(index, snapshot):
                assert index >= process.applied, f"{node} goes back to {index}"
                process.machine.restore(snapshot)
                process.applied = process.compacted = index
            case Readable(ticket):
                self._readable(ticket, process.machine)
            case Rejected(ticket, _, leader):
                self._rejected(ticket, leader)
            case Done() | Note():
                pass
            case _:
                raise AssertionError(f"the world does not know {effect}")

    def _random_ms(self, least: int, most: int) -> int:
        return least + int(self.sim.rng.random() * (most - least))

    # What stands round the members.

    @abstractmethod
    def _answer(self, ticket: int, answer: kv.Answer) -> None: ...

    @abstractmethod
    def _readable(self, ticket: int, machine: kv.KeyValueMachine) -> None: ...

    @abstractmethod
    def _rejected(self, ticket: int, leader: str | None) -> None: ...

    @abstractmethod
    def _elected(self, node: str) -> None: ...

    @abstractmethod
    def _committed(self, node: str, process: Process, index: int) -> None: ...

    @abstractmethod
    def _sent(self, node: str, to: str, message: bytes) -> None: ...
