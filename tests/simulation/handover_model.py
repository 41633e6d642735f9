"""The hand-over in a simulated world: two nodes, their disks, one machine that moves to and fro.

The nodes run the very classes that real nodes run (`novacron.protocol.handover`); only what those
ask for (journal, register, machine, network) is simulated, and everything of it fails at times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, field
from novacron_dwcp import Ownership
from novacron_dwcp import handover as ho
from novacron_dwcp import messages as msg
from novacron_testkit.simulator import Crash, Faults, Simulator, World

MACHINE = "vm"
TICK_MS = 60
LINK_TIMEOUT_MS = 400


@define(eq=False)
class Disk:
    """What survives a crash of the node: its journal and its register."""

    journal: dict[str, tuple[str, ho.Terms, ho.Phase, str]] = field(factory=dict)
    register: dict[str, Ownership] = field(factory=dict)


@define(eq=False)
class Process:
    """A machine's process; it outlives the node that started it."""

    session: str  # the session that it belongs to while it arrives
    whole: bool
    running: bool


@define(eq=False)
class Node:
    """A node's volatile state."""

    sessions: dict[str, ho.Source | ho.Destination] = field(factory=dict)
    heard: dict[str, int] = field(factory=dict)
    data: set[str] = field(factory=set)
    ticking: bool = False


class HandoverWorld(World):
    """Two nodes and an operator who keeps asking for moves.

    Args:
        moves: How many migrations are begun.
        shared: Whether both nodes use one register (as with etcd), or each its own.
        source_class, destination_class: What the nodes run; a broken variant must be caught.
    """

    def __init__(
        self,
        moves: int,
        *,
        shared: bool = False,
        source_class: type[ho.Source] = ho.Source,
        destination_class: type[ho.Destination] = ho.Destination,
    ) -> None:
        self.source_class = source_class
        self.destination_class = destination_class
        self.moves_left = moves
        self.session_count = 0
        self.moved = 0
        self.process_killed = False
        self.disks = {"a": Disk(), "b": Disk()}
        first = Ownership(machine=MACHINE, owner="a", epoch=1)
        self.disks["a"].register[MACHINE] = first
        if shared:
            self.disks["b"].register = self.disks["a"].register
        self.machines: dict[str, Process | None] = {
            "a": Process(session="", whole=True, running=True),
            "b": None,
        }
        self.nodes: dict[str, Node] = {}

    # The node's life.

    def boot(self, node: str) -> None:
        self.nodes[node] = Node()
        for session, (role, terms, phase, digest) in list(self.disks[node].journal.items()):
            core: ho.Source | ho.Destination
            if role == "source":
                core = self.source_class(terms, offer=self._offer(terms), recovered=True)
            else:
                core = self.destination_class(terms, recovered=phase, digest=digest)
            self.nodes[node].sessions[session] = core
            self._feed(node, session, ho.Begin())
        self._tick_later(node)

    def crashed(self, node: str) -> None:
        self.nodes[node] = Node()
        process = self.machines[node]
        # The stream ends when its reader dies: a source that was being copied runs on (or stays
        # paused), a destination that had not got everything can never be whole.
        if process is not None and not process.whole:
            self.machines[node] = None

    def _tick_later(self, node: str) -> None:
        self.nodes[node].ticking = True
        self.sim.at(TICK_MS, self._tick, node, node=node)

    def _tick(self, node: str) -> None:
        sessions = self.nodes[node].sessions
        if not sessions and not self.moves_left:
            # Nothing is left to do here, unless a message comes. A third of all events would be
            # ticks at which nothing happens.
            self.nodes[node].ticking = False
            return
        self._tick_later(node)
        for session, core in list(sessions.items()):
            quiet_ms = self.sim.now - self.nodes[node].heard.setdefault(session, self.sim.now)
            if quiet_ms > LINK_TIMEOUT_MS:
                self.nodes[node].heard[session] = self.sim.now
                self._feed(node, session, ho.LinkLost("the link is broken"))
            self._watch(node, session, core)
            self._feed(node, session, ho.Tick())
        self._operator(node)

    def _watch(self, node: str, session: str, core: ho.Source | ho.Destination) -> None:
        waits = isinstance(core, ho.Destination) and core.phase in (ho.Phase.COMMIT, ho.Phase.RUN)
        if waits and self.machines[node] is None:
            self._feed(node, session, ho.Gone("its process died"))

    def _operator(self, node: str) -> None:
        """Begins a move, cancels one, kills a waiting process: whatever people do."""
        busy = self.nodes[node].sessions
        if not busy:
            if self.moves_left:
                self._begin(node)
            return
        chance = self.sim.rng.random
        for session, core in list(busy.items()):
            source = isinstance(core, ho.Source)
            if source and core.phase in ho.UNCOMMITTED and chance() < 0.02:
                self._feed(node, session, ho.Failed("cancelled by the operator"))
            elif not source and core.phase is ho.Phase.COMMIT and chance() < 0.02:
                if chance() < 0.5:
                    self._feed(node, session, ho.Failed("abandoned by the operator"))
                else:
                    self.process_killed = True
                    self.machines[node] = None

    def _begin(self, node: str) -> None:
        """Begin a move, if the machine is there to be moved."""
        process, record = self.machines[node], self.disks[node].register.get(MACHINE)
        if process is None or not process.running or record is None or record.owner != node:
            return
        self.moves_left -= 1
        self.session_count += 1
        terms = ho.Terms(
            session=f"s{self.session_count:03}",
            machine=MACHINE,
            source=node,
            target="b" if node == "a" else "a",
            epoch=record.epoch,
            runs=True,
        )
        self.nodes[node].sessions[terms.session] = self.source_class(
            terms, offer=self._offer(terms)
        )
        self._feed(node, terms.session, ho.Begin())

    # Messages.

    def _offer(self, terms: ho.Terms) -> msg.Offer:
        return msg.Offer(
            session=terms.session,
            machine=terms.machine,
            source=terms.source,
            target=terms.target,
            epoch=terms.epoch,
            runs=terms.runs,
            driver="sim",
            memory_bytes=1,
            compression="none",
            settings={},
            origin={},
        )

    def deliver(self, src: str, dst: str, message: Any) -> None:
        node = self.nodes[dst]
        if not node.ticking:
            self._tick_later(dst)
        if isinstance(message, str):  # the bulk data of a session
            node.data.add(message)
            return
        session = message.session
        node.heard[session] = self.sim.now
        if session in node.sessions:
            self._feed(dst, session, message)
        elif isinstance(message, msg.Offer):
            self._offered(src, dst, message)
        else:
            record = self.disks[dst].register.get(MACHINE)
            named = record if isinstance(message, msg.Run) else None
            answer = ho.answer_without_session(message, dst, named)
            if answer is not None:
                self.sim.send(dst, src, answer)

    def _offered(self, src: str, dst: str, offer: msg.Offer) -> None:
        node = self.nodes[dst]
        for session, core in list(node.sessions.items()):
            if session > offer.session or isinstance(core, ho.Source):
                return
            if core.phase in (ho.Phase.RUN, ho.Phase.ROLLBACK):
                return
            # The owner has begun anew, so it has given the old session up.
            self._feed(dst, session, msg.Abort(session=session, reason="superseded"))
        record = self.disks[dst].register.get(MACHINE)
        stale = record is not None and (record.epoch > offer.epoch or record.owner == dst)
        if stale or self.machines[dst] is not None:
            return
        terms = ho.Terms(
            session=offer.session,
            machine=MACHINE,
            source=src,
            target=dst,
            epoch=offer.epoch,
            runs=offer.runs,
        )
        node.sessions[offer.session] = self.destination_class(terms)
        self._feed(dst, offer.session, ho.Begin())

    # Effects.

    def _feed(self, node: str, session: str, event: ho.Input) -> None:
        core = self.nodes[node].sessions.get(session)
        if core is None:
            return
        for effect in core.handle(event):
            self.sim.point(node)
            try:
                self._perform(node, session, core.terms, effect)
            except OSError as error:
                self._feed(node, session, ho.Unwritten(str(error)))
                return
        if core.phase in ho.ENDED:
            self.nodes[node].sessions.pop(session, None)

    def _soon(self, node: str, session: str, event: ho.Event) -> None:
        self.sim.at(
            1 + int(self.sim.rng.random() * 40), self._feed, node, session, event, node=node
        )

    def _perform(self, node: str, session: str, terms: ho.Terms, effect: ho.Effect) -> None:
        _PERFORMED[type(effect)](self, node, session, terms, effect)

    def _persist(self, node: str, session: str, terms: ho.Terms, effect: ho.Persist) -> None:
        if self.sim.disk_fails():
            raise OSError("no space left on the device")
        role = "source" if node == terms.source else "destination"
        self.disks[node].journal[session] = (role, terms, effect.phase, effect.digest)

    def _forget(self, node: str, session: str, terms: ho.Terms, effect: ho.Forget) -> None:
        self.disks[node].journal.pop(session, None)

    def _send(self, node: str, session: str, terms: ho.Terms, effect: ho.Send) -> None:
        peer = terms.target if node == terms.source else terms.source
        self.sim.send(node, peer, effect.message)

    def _prepare(self, node: str, session: str, terms: ho.Terms, effect: ho.Prepare) -> None:
        self.machines[node] = Process(session=session, whole=False, running=False)
        self._soon(node, session, ho.Prepared())

    def _copy(self, node: str, session: str, terms: ho.Terms, effect: ho.Copy) -> None:
        self._soon(node, session, ho.Converged())

    def _pause(self, node: str, session: str, terms: ho.Terms, effect: ho.Pause) -> None:
        self._source(node).running = False
        self.sim.send(node, terms.target, session)
        self._soon(node, session, ho.Copied("d-" + session, 1))

    def _noted(self, node: str, session: str, terms: ho.Terms, effect: ho.Effect) -> None:
        self.moved += isinstance(effect, ho.Finish) and effect.phase is ho.Phase.MOVED

    def _read_owner(self, node: str, session: str, terms: ho.Terms, effect: ho.ReadOwner) -> None:
        self._feed(node, session, ho.OwnerIs(self.disks[node].register.get(MACHINE)))

    def _destroy(self, node: str, session: str, terms: ho.Terms, effect: ho.Destroy) -> None:
        self.machines[node] = None
        if node == terms.source:
            self._feed(node, session, ho.Destroyed())

    def _source(self, node: str) -> Process:
        process = self.machines[node]
        assert process is not None, f"the machine is missing on {node}"
        return process

    def _load(self, node: str, session: str, terms: ho.Terms, effect: ho.Load) -> None:
        process = self.machines[node]
        if process is None or session not in self.nodes[node].data:
            self._soon(node, session, ho.Failed("batches are missing"))
            return
        process.whole = True
        self._soon(node, session, ho.Loaded("d-" + session))

    def _record(self, node: str, session: str, terms: ho.Terms, effect: ho.Record) -> None:
        register = self.disks[node].register
        present = register.get(MACHINE)
        epoch = present.epoch if present else 0
        expected = effect.expected_epoch
        sound = present == effect.record or (
            effect.record.epoch > epoch and (expected is None or expected == epoch)
        )
        failed = self.sim.disk_fails()
        if sound and (not failed or self.sim.rng.random() < 0.5):  # it may fail after the write
            register[MACHINE] = effect.record
            self.sim.point(node)
        if sound and not failed:
            self._feed(node, session, ho.Recorded())
        else:
            self._feed(node, session, ho.OwnerIs(register.get(MACHINE)))

    def _resume(self, node: str, session: str, terms: ho.Terms, effect: ho.Resume) -> None:
        process = self.machines[node]
        if process is None or not process.whole:
            self._feed(node, session, ho.Gone("there is no process"))
            return
        process.running = True
        self.check()
        self.sim.point(node)
        self._feed(node, session, ho.Resumed())

    # What must hold.

    def check(self) -> None:
        a, b = self.machines.values()
        both = a is not None and a.running and b is not None and b.running
        assert not both, "the machine runs on both nodes"

    def done(self) -> bool:
        """Exactly one runs, where its register says, and nothing is left over."""
        if self.moves_left or any(disk.journal for disk in self.disks.values()):
            return self._lost()
        if any(node.sessions for node in self.nodes.values()):
            return False
        left = [node for node, process in self.machines.items() if process is not None]
        if len(left) != 1 or not self._source(left[0]).running:
            return False
        record = self.disks[left[0]].register[MACHINE]
        return record.owner == left[0]

    def _lost(self) -> bool:
        # A process that died between Run and its resuming is a person's decision; the source's
        # copy must still be there, paused.
        stuck = [
            core
            for node in self.nodes.values()
            for core in node.sessions.values()
            if isinstance(core, ho.Source) and core.phase is ho.Phase.RUN
        ]
        alive = [process for process in self.machines.values() if process is not None]
        return self.process_killed and bool(stuck) and len(alive) == 1 and not alive[0].running


# How each effect is performed; one that is not here is one that the model does not know.
_PERFORMED: dict[type[ho.Effect], Callable[..., None]] = {
    ho.Persist: HandoverWorld._persist,
    ho.Forget: HandoverWorld._forget,
    ho.Send: HandoverWorld._send,
    ho.Prepare: HandoverWorld._prepare,
    ho.Copy: HandoverWorld._copy,
    ho.Pause: HandoverWorld._pause,
    ho.CancelCopy: HandoverWorld._noted,
    ho.Tell: HandoverWorld._noted,
    ho.Finish: HandoverWorld._noted,
    ho.Load: HandoverWorld._load,
    ho.Record: HandoverWorld._record,
    ho.ReadOwner: HandoverWorld._read_owner,
    ho.Resume: HandoverWorld._resume,
    ho.Destroy: HandoverWorld._destroy,
}

FAULTS = Faults(
    loss=0.05,
    duplicate=0.05,
    reorder=0.1,
    cut=0.02,
    cut_one_way=0.01,
    crash=0.015,
    disk=0.03,
    cut_ms=500,
)


def scenario(
    world: Callable[[int], HandoverWorld] | None = None,
) -> Callable[[int, list[str] | None], Simulator]:
    """A scenario for `novacron_testkit.simulator.explore`."""

    def run(seed: int, trace: list[str] | None = None) -> Simulator:
        made = world(seed) if world else HandoverWorld(3, shared=bool(seed % 2))
        simulator = Simulator(seed, FAULTS, made, ("a", "b"), trace=trace)
        return simulator.run(faults_ms=2500, done=made.done)

    return run


__all__ = ["FAULTS", "Crash", "HandoverWorld", "scenario"]
