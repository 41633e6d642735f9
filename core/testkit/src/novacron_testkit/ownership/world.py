"""Nodes that move machines to and fro, agree on their owners by a replicated log, and take over the
machines of a node that is away: all of it the code that real nodes run, and all of it failing.

The laws: a machine never runs on two hosts; and when faults are over, it is never for longer than a
bound that it runs on none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from attrs import asdict, define, field, frozen
from novacron_agreement import leases as _leases
from novacron_agreement import requests as _requests
from novacron_agreement.leases import LeaseSettings
from novacron_agreement.ownership import Outcome, Record
from novacron_dwcp import handover as _handover

from novacron_testkit.disk import SimulatedDisk
from novacron_testkit.ownership import register as _register
from novacron_testkit.ownership.host import Host, Node, Process
from novacron_testkit.ownership.member import Member
from novacron_testkit.ownership.register import Asked, Told
from novacron_testkit.ownership.sessions import Sessions

TICK_MS = 70
# A node looks what it owns after so long at least, and twice as long at most.
LOOK_MS = 400
LATE_MS = 2500
MakeCore = Callable[[str, Mapping[str, str], list[bytes], random.Random], Any]


@define
class Parts:
    """The modules that are simulated; a mutant stands in the place of one."""

    handover: ModuleType = _handover
    leases: ModuleType = _leases
    requests: ModuleType = _requests
    register: ModuleType = _register


@frozen(kw_only=True)
class Plan:
    """What a run is about.

    Attributes:
        nodes, machines: Their names. Every node is a member of the cluster and has a host.
        moves: How many hand-overs are begun.
        bound_ms: When faults are over, for how long a machine may run nowhere.
        leases: The leases of nodes.
        late: How likely a request to the register, or its answer, comes very late.
    """

    nodes: tuple[str, ...] = ("a", "b", "c")
    machines: tuple[str, ...] = ("vm",)
    moves: int = 10
    bound_ms: int = 8000
    leases: LeaseSettings = field(
        factory=lambda: LeaseSettings(lease_ms=1500, renew_ms=400, drift=0.01)
    )
    late: float = 0.01


class OwnershipWorld(Sessions):
    """Hosts, their nodes, and an operator who asks for moves.

    Args:
        make_core: Makes a member of the register's cluster: its name, all members, the durable
            records, chance.

    Attributes:
        running_on: The host that each machine runs on now.
        longest_ms: The longest that a machine ran nowhere after the faults were over.
        taken: How many machines were taken over.
        moved: How many hand-overs came to their end.
    """

    def __init__(self, plan: Plan, make_core: MakeCore, parts: Parts | None = None) -> None:
        self.plan = plan
        self.make_core = make_core
        self.parts = parts or Parts()
        self.settings = self.parts.leases.LeaseSettings(**asdict(plan.leases))
        self.nodes: dict[str, Node] = {}
        self.hosts: dict[str, Host] = {}
        self.moves_left = plan.moves
        self.session_count = 0
        self.tickets = 0
        self.moved = 0
        self.taken = 0
        self.longest_ms = 0
        self.quiet_since_ms = 0  # 0 while there are faults
        self.stopped_ms: dict[str, int] = {}
        self.running_on: dict[str, str | None] = dict.fromkeys(plan.machines)

    # A node's life.

    def boot(self, node: str) -> None:
        if not self.hosts:
            for name in self.plan.nodes:
                self.hosts[name] = Host(SimulatedDisk(self.sim, name))
        host = self.hosts[node]
        host.lives += 1
        rng = random.Random(self.sim.rng.random())
        members = dict.fromkeys(self.plan.nodes, "")
        core = self.make_core(node, members, host.log.read(), rng)
        life = f"{node}{host.lives}"
        leases = self.parts.leases
        self.nodes[node] = made = Node(
            Member(self.sim, node, host.log, core, lambda *said: self._answer(node, *said)),
            self.parts.register.Registrar(
                self.parts.requests.Requests(node, host.lives), self.plan.nodes
            ),
            leases.Lease(node, life, self.settings),
            leases.Watch(node, life, self.settings),
        )
        made.member.start()
        self.recover_sessions(node)
        self.sim.at(TICK_MS, self._tick, node, node=node)

    def crashed(self, node: str) -> None:
        self.nodes.pop(node, None)
        host = self.hosts[node]
        host.log.crash()
        # A stream ends when its reader dies: what had not come whole never will.
        for machine, process in list(host.processes.items()):
            if not process.whole:
                del host.processes[machine]

    def deliver(self, src: str, dst: str, message: Any) -> None:
        node = self.nodes[dst]
        if isinstance(message, bytes):
            node.member.receive(src, message)
        elif isinstance(message, Asked):
            self._propose(dst, src, message)
        elif isinstance(message, Told):
            if message.life == self.hosts[dst].lives:
                now = self.sim.steady(dst)
                self._ask(dst, message.to(node.registrar, now))
        else:
            self.handed(src, dst, message)

    def _tick(self, node: str) -> None:
        self.sim.at(TICK_MS, self._tick, node, node=node)
        now = self.sim.steady(node)
        here = self.nodes[node]
        self._lease(node, here.lease.tick(now))
        self._watch_others(node)
        self.tick_sessions(node)
        self._look_after(node)
        self._begin_a_move(node)
        self._ask(node, here.registrar.tick(now))

    # The register: this node's questions, and those of others when it leads.

    def _ask(self, node: str, asked: list[Any]) -> None:
        life = self.hosts[node].lives
        for ask in asked:
            message = Asked(life, ask.number, ask.command)
            if ask.to == node:
                self.sim.at(1, self._propose, node, node, message, node=node)
            else:
                self._send(node, ask.to, message)

    def _send(self, src: str, dst: str, message: Asked | Told) -> None:
        """A request with all its repetitions, or an answer, may wait in some queue until nobody
        expects it any more."""
        until_ms = 0
        if isinstance(message, Told) or message.number not in self.nodes[src].late:
            if self.sim.strikes("late", self.plan.late):
                until_ms = self.sim.now + int(self.sim.rng.random() * LATE_MS)
            if isinstance(message, Asked):
                stuck = self.nodes[src].stuck
                if stuck is not None and stuck in message.command:
                    self.nodes[src].stuck = None
                    until_ms = self.sim.now + int((0.3 + 0.7 * self.sim.rng.random()) * LATE_MS)
                self.nodes[src].late = {message.number: until_ms}
        else:
            until_ms = self.nodes[src].late[message.number]
        self.sim.at(max(0, until_ms - self.sim.now), self.sim.send, src, dst, message)

    def _propose(self, node: str, src: str, asked: Asked) -> None:
        self.tickets += 1
        self.nodes[node].tickets[self.tickets] = (src, asked.life, asked.number)
        self.nodes[node].member.propose(self.tickets, asked.command)

    def _answer(self, node: str, ticket: int, answer: bytes | None, leader: str | None) -> None:
        src, life, number = self.nodes[node].tickets.pop(ticket)
        message = Told(life, number, answer, leader)
        if src == node:
            self.sim.at(1, self.deliver, node, node, message, node=node)
        else:
            self._send(node, src, message)

    # Leases: this node's own, and what it sees of the others'.

    def _lease(self, node: str, effects: list[Any]) -> None:
        leases, here = self.parts.leases, self.nodes[node]
        for effect in effects:
            self.sim.point(node)
            match effect:
                case leases.Look():
                    here.registrar.read(
                        _leases.lease_of(node), lambda said: self._lease_said(node, said, True)
                    )
                case leases.Renew(record, expected):
                    here.registrar.advance(
                        record, expected, lambda said: self._lease_said(node, said, False)
                    )
                case leases.Confirm():
                    here.generation += 1
                    self._look_after(node, at_once=True)
                case leases.Guard():
                    for machine in self.plan.machines:
                        self.let_run(node, machine)
                case _:
                    raise AssertionError(f"the world does not know {effect}")

    def _lease_said(self, node: str, said: Outcome | None, looked: bool) -> None:
        lease, now = self.nodes[node].lease, self.sim.steady(node)
        if said is None:
            self._lease(node, lease.unanswered())
        elif looked:
            self._lease(node, lease.looked(now, said.present))
        else:
            self._lease(node, lease.written(now, said.done, said.present))
            if self.sim.strikes("isolate", 0.02):  # now that the others begin to wait
                self.sim.partition((node,), for_ms=3500)

    def _watch_others(self, node: str) -> None:
        here, now = self.nodes[node], self.sim.steady(node)
        for other in self.plan.nodes:
            if other == node:
                continue
            here.watch.see(now, here.member.machine.read(_leases.lease_of(other)))
            found = None if here.breaking else here.watch.run_out(now, other)
            if found is not None and here.lease.holds(now):
                here.breaking = True
                then = partial(self._broken, node, found)
                here.registrar.advance(found.record, found.expected_epoch, then)

    def _broken(self, node: str, found: Any, said: Outcome | None) -> None:
        here = self.nodes[node]
        here.breaking = False
        if said is None or not said.done:
            return
        for present in here.member.machine.owned_by(found.node):
            if present.machine not in self.plan.machines or here.session_of(present.machine):
                continue
            record, only_while = self.parts.leases.taken_over(present, node, found.record)
            then = partial(self._took, node, record, here.generation)
            here.registrar.advance(record, present.epoch, then, only_while)

    def _took(self, node: str, record: Record, generation: int, said: Outcome | None) -> None:
        if said is None or not said.done:
            return
        self.taken += 1
        self.destroy(node, record.machine)  # if there is a copy here, it is out of date
        self.owns(node, record, generation)

    # What runs where.

    def owns(self, node: str, record: Record, generation: int) -> None:
        """The register said, when asked in a generation of the lease, that a machine is ours."""
        here, machine = self.nodes[node], record.machine
        here.known[machine] = record
        if generation == here.generation:
            here.confirmed[machine] = generation
        if here.session_of(machine) is None:
            processes = self.hosts[node].processes
            processes.setdefault(machine, Process()).wanted = True
        self.let_run(node, machine)

    def let_run(self, node: str, machine: str) -> None:
        """Let a machine run, or run on, if it may."""
        here, now = self.nodes[node], self.sim.steady(node)
        process = self.hosts[node].processes.get(machine)
        if process is None or not process.whole or not process.wanted:
            return
        if here.confirmed.get(machine) != here.generation or not here.lease.holds(now):
            return
        if self.settings.takeover:
            process.guard_ms = until_ms = here.lease.until_ms
            self.sim.at(self.sim.until(node, until_ms), self._guard, node, machine, process)
        if not process.running:
            process.running = True
            self._changed(machine)

    def _guard(self, host: str, machine: str, process: Process) -> None:
        # Not the node's timer: it fires when the node is dead or stands still.
        if process.running and self.sim.steady(host) >= process.guard_ms:
            self.stop(host, machine)

    def stop(self, host: str, machine: str) -> None:
        """Pause a machine."""
        process = self.hosts[host].processes.get(machine)
        if process is not None and process.running:
            process.running = False
            self._changed(machine)

    def destroy(self, host: str, machine: str) -> None:
        self.stop(host, machine)
        self.hosts[host].processes.pop(machine, None)

    def _look_after(self, node: str, at_once: bool = False) -> None:
        """Ask the register what this host should have."""
        here = self.nodes[node]
        for machine in self.plan.machines:
            unsure = here.confirmed.get(machine) != here.generation
            at_once = at_once or (unsure and machine in self.hosts[node].processes)
            due = self.sim.now >= here.look_ms.get(machine, 0)
            if machine not in here.reading and (at_once or due):
                here.look_ms[machine] = self.sim.now + int(LOOK_MS * (1 + self.sim.rng.random()))
                here.reading.add(machine)
                then = partial(self._looked, node, machine, here.generation)
                here.registrar.read(machine, then)

    def _looked(self, node: str, machine: str, generation: int, said: Outcome | None) -> None:
        here = self.nodes[node]
        here.reading.discard(machine)
        if said is None:
            return
        record = said.present
        if record is None:
            if node == self.plan.nodes[0]:  # nobody has it yet: it is created here
                first = Record(machine, node, 1)
                then = partial(self._created, node, first, generation)
                here.registrar.advance(first, 0, then)
            return
        session = here.session_of(machine)
        if session is not None:
            self.remind(node, session, record)
        if record.owner == node:
            self.owns(node, record, generation)
        elif here.session_of(machine) is None:
            self.destroy(node, machine)

    def _created(self, node: str, first: Record, generation: int, said: Outcome | None) -> None:
        if said is not None and said.done:
            self.owns(node, first, generation)

    def _begin_a_move(self, node: str) -> None:
        """The operator moves whatever runs, as long as there are faults."""
        here = self.nodes[node]
        if not self.moves_left or self.sim.quiet_now:
            return
        for machine, process in self.hosts[node].processes.items():
            record = here.known.get(machine)
            if record is None or record.owner != node or not process.running:
                continue
            if here.session_of(machine) is None:
                if self.sim.rng.random() < 0.5:
                    self.moves_left -= 1
                    others = [name for name in self.plan.nodes if name != node]
                    self.begin_move(node, self.sim.rng.choice(others), record)
                return

    # The laws.

    def _changed(self, machine: str) -> None:
        on = [
            name
            for name, host in self.hosts.items()
            if (process := host.processes.get(machine)) is not None and process.running
        ]
        assert len(on) <= 1, f"{machine} runs on {' and '.join(on)}"
        before, self.running_on[machine] = self.running_on[machine], on[0] if on else None
        if self.sim.trace is not None:
            where = f"runs on {on[0]}" if on else f"pauses on {before}"
            self.sim.trace.append(f"{self.sim.now:6} {machine} {where}")
        if not on:
            self.stopped_ms[machine] = self.sim.now
        elif before is None:
            self._count_pause(machine)

    def _count_pause(self, machine: str) -> None:
        since = max(self.stopped_ms.get(machine, 0), self.quiet_since_ms)
        if self.sim.quiet_now:
            pause_ms = self.sim.now - since
            self.longest_ms = max(self.longest_ms, pause_ms)
            assert pause_ms <= self.plan.bound_ms, (
                f"{machine} ran nowhere for {pause_ms} ms, though there were no faults"
            )

    def check(self) -> None:
        if self.sim.quiet_now:
            if not self.quiet_since_ms:
                self.quiet_since_ms = self.sim.now
            for machine, where in self.running_on.items():
                if where is None:
                    self._count_pause(machine)

    def done(self) -> bool:
        """All sessions have ended, all leases hold, and each machine has run for a while where the
        register says, and is nowhere else."""
        if self.sim.now <= self.quiet_since_ms + self.plan.leases.takeover_ms:
            return False
        if any(node.sessions for node in self.nodes.values()):
            return False
        for machine, where in self.running_on.items():
            having = [name for name, host in self.hosts.items() if machine in host.processes]
            if having != [where] or where not in self.nodes:
                return False
            record = self.nodes[where].known.get(machine)
            if record is None or record.owner != where:
                return False
        leased = all(node.lease.holds(self.sim.steady(name)) for name, node in self.nodes.items())
        return leased and not any(host.journal for host in self.hosts.values())
