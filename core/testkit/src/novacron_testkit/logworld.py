"""Members of a replicated log in a simulated world, whose state is the list of all commands.

What a driver does for a core is done by the simulator: effects in their order, saves that take
time and fail, a process that dies in between. The laws: all members have the same command at each
index, each command once, and nobody reads what is out of date.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from novacron_agreement import Commit, Effect, Readable, Rejected, Restore, Save, Send

from novacron_testkit.disk import SimulatedDisk
from novacron_testkit.world import World


class SimulatedSigner:
    """Signs fast: a digest keyed with a secret that only this signer and the verifier know."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.public_key = b"simulated:" + hashlib.blake2b(secret, digest_size=16).digest()

    def sign(self, statement: bytes) -> bytes:
        return hashlib.blake2b(statement, key=self._secret, digest_size=16).digest()


class SimulatedVerifier:
    """Knows all secrets; nobody else in a simulation gets to it but through `verify`."""

    def __init__(self, signers: Iterable[SimulatedSigner]) -> None:
        self._signers = {signer.public_key: signer for signer in signers}

    def verify(self, public_key: bytes, statement: bytes, signature: bytes) -> bool:
        signer = self._signers.get(public_key)
        return signer is not None and signer.sign(statement) == signature

    def signature_bytes(self, public_key: bytes) -> int:
        return 16


class Process:
    """What is volatile in a process: the core, the state machine, and effects that wait.

    Attributes:
        tickets: What was proposed here and is not answered.
        reads: By ticket, the index that a read must be as new as.
    """

    def __init__(self, core: Any) -> None:
        self.core = core
        self.log: list[bytes] = []
        self.outbox: deque[Effect] = deque()
        self.waits = False
        self.tick_at = -1
        self.tickets: dict[int, bytes] = {}
        self.reads: dict[int, int] = {}


class LogWorld(World):
    """See the module. Commands are ``name:number``, with the name of the member that asks.

    Attributes:
        log: What is true for all, learnt from the first honest member that says so.
        asked: All commands that an honest member asked for.
        acknowledged: The newest index of which somebody was told.
    """

    def __init__(self, compact_every: int) -> None:
        self.compact_every = compact_every
        self.disks: dict[str, SimulatedDisk] = {}
        self.processes: dict[str, Process] = {}
        self.tickets = 0
        self.log: dict[int, bytes] = {}
        self.asked: set[bytes] = set()
        self.acknowledged = 0

    def is_honest(self, node: str) -> bool:
        """Whether what a node does is held to the laws."""
        return True

    @abstractmethod
    def post(self, node: str, effect: Send) -> None:
        """A member's message leaves."""

    def noted(self, node: str, process: Process, effect: Effect) -> None:
        """An effect that is none of the log's own."""

    def crashed(self, node: str) -> None:
        self.processes.pop(node, None)
        if node in self.disks:
            self.disks[node].crash()

    def perform(self, node: str, effects: Sequence[Effect]) -> None:
        """Do what a core wants, and see when it wants to be called."""
        process = self.processes.get(node)
        if process is None:
            return  # it crashed while it performed what came before these
        process.outbox.extend(effects)
        if not process.waits:
            self._drain(node)
        if self.processes.get(node) is not process:
            return
        deadline = process.core.deadline_ms
        assert deadline is not None
        if process.tick_at < 0 or deadline < process.tick_at:
            process.tick_at = deadline
            self.sim.at(self.sim.until(node, deadline), self._tick, node, node=node)

    def propose(self, node: str) -> None:
        """The next command that a member asks for."""
        process = self.processes[node]
        self.tickets += 1
        command = f"{node}:{self.tickets}".encode()
        self.asked.add(command)
        process.tickets[self.tickets] = command
        now = self.sim.steady(node)
        self.perform(node, process.core.propose(now, self.tickets, command))

    def read(self, node: str) -> None:
        """A member reads."""
        process = self.processes.get(node)
        if process is None:
            return
        self.tickets += 1
        process.reads[self.tickets] = self.acknowledged
        self.perform(node, process.core.read(self.sim.steady(node), self.tickets))

    def _tick(self, node: str) -> None:
        process = self.processes[node]
        process.tick_at = -1
        self.perform(node, process.core.tick(self.sim.steady(node)))

    def _resume(self, node: str) -> None:
        self.processes[node].waits = False
        self._drain(node)

    def _drain(self, node: str) -> None:
        process = self.processes[node]
        while process.outbox and self.processes.get(node) is process and not process.waits:
            effect = process.outbox.popleft()
            if isinstance(effect, Send):
                self.post(node, effect)
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
        honest = self.is_honest(node)
        match effect:
            case Commit(index, command, ticket):
                if honest:
                    self._committed(node, process, index, command)
                process.log.append(command)
                if ticket is not None and honest:
                    assert process.tickets.pop(ticket) == command, "another ticket's command"
                    self.acknowledged = max(self.acknowledged, index)
                if index % self.compact_every == 0:
                    snapshot = msgspec.msgpack.encode(process.log)
                    self.perform(node, process.core.compact(index, snapshot))
            case Restore(index, snapshot):
                process.log = msgspec.msgpack.decode(snapshot, type=list[bytes])
                if honest:
                    assert len(process.log) == index, "a snapshot of another index"
                    for number, command in enumerate(process.log, 1):
                        self._agree(node, number, command)
            case Readable(ticket, index):
                if honest:
                    seen = process.reads.pop(ticket)
                    assert len(process.log) >= index >= seen, f"{node} reads what is out of date"
            case Rejected(ticket):
                process.tickets.pop(ticket, None)
                process.reads.pop(ticket, None)
            case _:
                self.noted(node, process, effect)

    def _committed(self, node: str, process: Process, index: int, command: bytes) -> None:
        assert index == len(process.log) + 1, f"{node} commits {index} after {len(process.log)}"
        self._agree(node, index, command)
        if self.is_honest(command.partition(b":")[0].decode()):  # a liar may ask for it twice
            assert command not in process.log, f"{node} commits {command!r} twice"
            assert command in self.asked, f"{node} commits {command!r}, which nobody asked for"

    def _agree(self, node: str, index: int, command: bytes) -> None:
        known = self.log.setdefault(index, command)
        assert known == command, f"{node} has {command!r} at {index}, another has {known!r}"


__all__ = ["LogWorld", "Process", "SimulatedSigner", "SimulatedVerifier"]
