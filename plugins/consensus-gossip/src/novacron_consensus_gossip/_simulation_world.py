"""The simulated world of a few members: their disks, their network, and the laws that must hold.

After every event: nobody holds a member at an incarnation that it never gave itself; what is held
of a member only ever gets newer; nobody doubts itself; nobody is held dead who was not suspected
for at least the shortest time; no broadcast is delivered twice; a restarted member outranks its
past, and what it says of itself is on its disk before.
"""

from __future__ import annotations

import random
from collections import Counter
from types import ModuleType
from typing import Final

from attrs import frozen
from novacron_testkit.simulator import Faults, Simulator, World

from novacron_consensus_gossip import _core
from novacron_consensus_gossip._effects import (
    Changed,
    Deliver,
    Effect,
    Note,
    Save,
    Send,
    Stream,
)
from novacron_consensus_gossip._values import Me, Member, State, Timing
from novacron_consensus_gossip._wire import WireError, decode_bulk, decode_datagram, decode_saved

PERIOD: Final = 200
TIMING: Final = Timing(
    period_ms=PERIOD,
    probe_ms=60,
    gossip_ms=40,
    sync_ms=10 * PERIOD,
    gossip_dead_ms=10 * PERIOD,
    forget_ms=60 * PERIOD,
    members_max=24,
    graft_ms=80,
    keep_ms=40 * PERIOD,
    keep_bytes=4_096,
)
FAULTS: Final = Faults(
    loss=0.08,
    duplicate=0.05,
    reorder=0.05,
    cut=0.004,
    cut_one_way=0.004,
    crash=0.0008,
    cut_ms=6 * PERIOD,
    restart_ms=4 * PERIOD,
)


@frozen
class Packet:
    """What is under way; its repr is for reading a trace."""

    stream: bool
    data: bytes

    def __repr__(self) -> str:
        try:
            return repr(decode_bulk(self.data) if self.stream else decode_datagram(self.data))
        except WireError:
            return f"garbage of {len(self.data)} bytes"


class Cluster(World):
    """The processes; each one's address is its name in the simulator.

    Attributes:
        cores: By process; None while it does not run.
        names: What each process calls itself.
        saved: What each has on its disk.
        published: The highest incarnation that each name gave itself.
        pings: Pings sent from one process to another since `clear`.
        sent: All messages since `clear`.
        dead_held: Who was held dead by whom since `clear`, and when first: (observer, name).
        suspected_held: The same for suspicions.
        got: What each process delivered in this life.
        notes: What was noted.
        stalled: Until when a process does not run.
        stalled_hear_nothing: Whether what comes meanwhile is lost, or waits.
    """

    def __init__(self, core: ModuleType, processes: int, rng: random.Random) -> None:
        self.module = core
        self.rng = rng
        self.processes = [f"p{number}" for number in range(processes)]
        self.names = {process: f"n{process[1:]}" for process in self.processes}
        self.cores: dict[str, _core.GossipCore | None] = dict.fromkeys(self.processes)
        self.saved: dict[str, tuple[bytes, ...]] = dict.fromkeys(self.processes, ())
        self.published: dict[str, int] = {}
        self.got: dict[str, Counter[bytes]] = {}
        self.notes: list[Note] = []
        self.stalled: dict[str, int] = {}
        self.stalled_hear_nothing = False
        self._offset: dict[str, int] = {}
        self._life: Counter[str] = Counter()
        self._held: dict[tuple[str, str], tuple[int, int]] = {}
        self._first_suspected: dict[tuple[str, int], int] = {}
        self._planned: dict[str, int] = {}
        self.clear()

    def clear(self) -> None:
        """Begin to count anew."""
        self.pings: Counter[tuple[str, str]] = Counter()
        self.sent: Counter[str] = Counter()
        self.dead_held: dict[tuple[str, str], int] = {}
        self.suspected_held: dict[tuple[str, str], int] = {}
        self.worst_health: Counter[str] = Counter()

    # Processes.

    def boot(self, node: str) -> None:
        seeds = tuple(self.processes[:2])
        me = Me(name=self.names[node], address=node, seeds=seeds)
        self._life[node] += 1
        # A process's clock begins anywhere, and so does each life's.
        self._offset[node] = self.rng.randrange(10**6) - self.sim.now
        core = self.module.GossipCore(
            me, TIMING, random.Random(self.rng.getrandbits(62)), self.saved[node]
        )
        before = self.published.get(me.name)
        if self.saved[node] and before is not None and self._is_alone(me.name):
            assert core.incarnation > before, (
                f"{me.name} begins again with incarnation {core.incarnation}; it had {before}"
            )
        self.cores[node] = core
        self.got[node] = Counter()
        for key in [key for key in self._held if key[0] == node]:
            del self._held[key]
        self.perform(node, core.start(self.clock(node)))

    def _is_alone(self, name: str) -> bool:
        return sum(one == name for one in self.names.values()) == 1

    def crashed(self, node: str) -> None:
        self.cores[node] = None
        self._planned.pop(node, None)
        self._life[node] += 1

    def kill(self, node: str) -> None:
        """It ends, and nothing brings it back but `boot`."""
        self.crashed(node)

    def clock(self, node: str) -> int:
        return self.sim.now + self._offset[node]

    @property
    def running(self) -> list[str]:
        return [node for node, core in self.cores.items() if core is not None and not core.closed]

    def core(self, node: str) -> _core.GossipCore:
        found = self.cores[node]
        assert found is not None
        return found

    # Events.

    def deliver(self, src: str, dst: str, message: Packet) -> None:
        core = self.cores[dst]
        if core is None:
            return
        if self.stalled.get(dst, 0) > self.sim.now:
            if self.stalled_hear_nothing:
                return
            self.sim.at(self.stalled[dst] - self.sim.now, self.deliver, src, dst, message)
            return
        now = self.clock(dst)
        if message.stream:
            effects = core.receive_stream(now, message.data)
        else:
            effects = core.receive(now, src, message.data)
        self.perform(dst, effects)

    def _tick(self, node: str, life: int) -> None:
        core = self.cores[node]
        if core is None or life != self._life[node]:
            return
        self._planned.pop(node, None)
        if self.stalled.get(node, 0) > self.sim.now:
            self.sim.at(self.stalled[node] - self.sim.now, self._tick, node, life)
            return
        self.perform(node, core.tick(self.clock(node)))

    def perform(self, node: str, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send | Stream):
                self.sent[node] += 1
                # An array whose first element is the kind; a Ping's is 1.
                if effect.message[1] == 1 and isinstance(effect, Send):
                    self.pings[node, effect.to] += 1
                packet = Packet(isinstance(effect, Stream), effect.message)
                if effect.to in self.cores:
                    self.sim.send(node, effect.to, packet)
            elif isinstance(effect, Save):
                self.sim.point(node)
                assert effect.replaces
                self.saved[node] = effect.records
            elif isinstance(effect, Changed):
                self._changed(node, effect)
            elif isinstance(effect, Deliver):
                self.got[node][effect.body] += 1
                assert self.got[node][effect.body] == 1, f"{node} got {effect.body!r} twice"
            elif isinstance(effect, Note):
                self.notes.append(effect)
        self._plan(node)

    def _plan(self, node: str) -> None:
        core = self.cores[node]
        if core is None:
            return
        self.worst_health[node] = max(self.worst_health[node], core.health)
        due = core.deadline_ms
        if due is None:
            return
        planned = self._planned.get(node)
        if planned is None or due < planned:
            self._planned[node] = due
            life = self._life[node]
            self.sim.at(max(0, due - self.clock(node)), self._tick, node, life)

    # Laws.

    def _changed(self, node: str, effect: Changed) -> None:
        member, now = effect.member, self.sim.now
        name = member.name
        if effect.state is None:
            assert member.state >= State.DEAD or self.notes, f"{node} forgot {member!r}"
            self._held.pop((node, name), None)
            return
        if name == self.names[node]:
            core = self.core(node)
            assert member.state is State.ALIVE or core._desk.leaving, f"{node} doubts itself"
            self.published[name] = max(self.published.get(name, -1), member.incarnation)
            kept = [decode_saved(record).incarnation for record in self.saved[node]]
            assert kept == [core.incarnation], f"{node} tells {core.incarnation} and kept {kept}"
        highest = self.published.get(name, -1)
        assert member.incarnation <= highest, f"{node} holds {member!r}, which has {highest}"
        before = self._held.get((node, name))
        held = (member.incarnation, int(member.state))
        assert before is None or before < held, f"{node} held {before} of {name}, now {held}"
        self._held[node, name] = held
        suspicion = (name, member.incarnation)
        if member.state is State.SUSPECT:
            self._first_suspected.setdefault(suspicion, now)
            self.suspected_held.setdefault((node, name), now)
        elif member.state is State.DEAD:
            self.dead_held.setdefault((node, name), now)
            began = self._first_suspected.get(suspicion)
            least = int(TIMING.suspicion_floor * PERIOD)
            assert began is not None, f"{node} holds {name} dead, whom nobody suspected"
            assert now - began >= least, f"{name} had {now - began} ms to refute, not {least}"

    def held(self, node: str, name: str) -> Member | None:
        return self.core(node).members.get(name)

    def agrees(self, node: str, gone: dict[str, State]) -> str:
        """What a process holds wrongly of the others; empty if nothing."""
        running = self.running
        for other in running:
            name, truth = self.names[other], self.core(other).incarnation
            found = self.held(node, name)
            if found is None or found.state is not State.ALIVE or found.incarnation != truth:
                return f"{node} holds {found!r} of {name}, which lives with {truth}"
        names = {self.names[other] for other in running}
        for member in self.core(node).members:
            if member.name not in names:
                wanted = gone.get(member.name, State.DEAD)
                if member.state is not wanted:
                    return f"{node} holds {member!r}; {wanted.name.lower()} is right"
        return ""

    def dissent(self, gone: dict[str, State]) -> str:
        """What anybody holds wrongly; empty if all agree with the truth."""
        return next(filter(None, (self.agrees(node, gone) for node in self.running)), "")


def make(core: ModuleType, seed: int, trace: list[str] | None) -> Cluster:
    """A cluster of four to eight processes in a simulator of its own."""
    rng = random.Random(seed * 7919 + 17)
    world = Cluster(core, rng.randrange(4, 9), rng)
    Simulator(seed, FAULTS, world, world.processes, trace=trace)
    return world
