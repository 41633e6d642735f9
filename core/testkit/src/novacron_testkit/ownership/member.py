"""One member of the register's cluster in the simulated world: what a driver does for a core."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import define, field
from novacron_agreement import Commit, Effect, Readable, Rejected, Restore, Save, Send
from novacron_agreement.ownership import OwnershipMachine

from novacron_testkit.disk import SimulatedDisk
from novacron_testkit.world import Crash

if TYPE_CHECKING:
    from novacron_testkit.simulator import Simulator

COMPACT_EVERY = 25


class _Brief(bytes):
    """A message that says little in a trace: what it means, its core alone knows."""

    def __repr__(self) -> str:
        return f"({len(self)} bytes of the log's)"


@define(eq=False)
class Member:
    """A core that runs: its effects are performed in order, saves take their time.

    Args:
        core: A `novacron_agreement.LogCore`.
        answer: Gets a ticket and the state machine's answer; None if the request was refused, with
            who might serve it.
    """

    sim: Simulator
    node: str
    disk: SimulatedDisk
    core: Any
    answer: Callable[[int, bytes | None, str | None], None]
    machine: OwnershipMachine = field(factory=OwnershipMachine)
    _waiting: deque[Effect] = field(factory=deque, init=False)
    _syncing: bool = field(default=False, init=False)
    _timer_ms: int | None = field(default=None, init=False)
    _applied: int = field(default=0, init=False)
    _compacted: int = field(default=0, init=False)

    def start(self) -> None:
        self.take(self.core.start(self.sim.steady(self.node)))

    def receive(self, sender: str, message: bytes) -> None:
        self.take(self.core.receive(self.sim.steady(self.node), sender, message))

    def propose(self, ticket: int, command: bytes) -> None:
        self.take(self.core.propose(self.sim.steady(self.node), ticket, command))

    def take(self, effects: list[Effect]) -> None:
        """Perform effects, and see when the core wants to be called."""
        self._waiting.extend(effects)
        due = self.core.deadline_ms
        if due is not None and (self._timer_ms is None or due < self._timer_ms):
            self._timer_ms = due
            self.sim.at(self.sim.until(self.node, due), self._timer, due, node=self.node)
        if not self._syncing:
            self._go_on()

    def _timer(self, due: int) -> None:
        if self._timer_ms == due:
            self._timer_ms = None
            self.take(self.core.tick(self.sim.steady(self.node)))

    def _synced(self) -> None:
        self._syncing = False
        self._go_on()

    def _go_on(self) -> None:
        waiting = self._waiting
        while waiting:
            effect = waiting.popleft()
            if not isinstance(effect, Save):
                self._perform(effect)
                continue
            wait_ms = self._save(effect)
            if wait_ms:
                self._syncing = True
                self.sim.at(wait_ms, self._synced, node=self.node)
                return
        if self._applied >= self._compacted + COMPACT_EVERY:
            self._compacted = self._applied
            self.take(self.core.compact(self._applied, self.machine.snapshot()))

    def _save(self, save: Save) -> int:
        self.sim.point(self.node)
        try:
            if save.replaces:
                return self.disk.replace(save.records)
            self.disk.append(save.records)
            wait_ms = self.disk.sync()
        except OSError:
            raise Crash(self.node) from None  # the driver begins anew from what is durable
        self.sim.point(self.node)
        return wait_ms

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                self.sim.send(self.node, to, _Brief(message))
            case Commit(index, command, ticket):
                answer = self.machine.apply(index, command)
                self._applied = index
                if ticket is not None:
                    self.answer(ticket, answer, None)
            case Restore(index, snapshot):
                self.machine.restore(snapshot)
                self._applied = self._compacted = index
            case Rejected(ticket, _, leader):
                self.answer(ticket, None, leader)
            case Readable():
                raise AssertionError("nobody asked to read beside the log")
            case _:
                pass  # notes
