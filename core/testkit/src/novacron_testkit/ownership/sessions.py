"""The hand-overs of the simulated world of ownership: what a node does for their cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from novacron_agreement.ownership import Outcome, Record
from novacron_dwcp import Ownership
from novacron_dwcp import messages as msg

from novacron_testkit.ownership.host import Host, Node, Process
from novacron_testkit.world import World

if TYPE_CHECKING:
    from novacron_testkit.ownership.world import Parts

LINK_TIMEOUT_MS = 600
SAY_AGAIN_MS = 100


class Sessions(World):
    """The part of the world that moves machines. See `world.OwnershipWorld`."""

    nodes: dict[str, Node]
    hosts: dict[str, Host]
    parts: Parts
    session_count: int
    moved: int

    owns: Callable[[str, Record, int], None]
    let_run: Callable[[str, str], None]
    stop: Callable[[str, str], None]
    destroy: Callable[[str, str], None]

    def recover_sessions(self, node: str) -> None:
        """A node that was restarted goes on with what its journal has."""
        ho = self.parts.handover
        for session, (role, terms, phase, digest) in list(self.hosts[node].journal.items()):
            core: Any = (
                ho.Source(terms, offer=_offer(terms), recovered=True)
                if role == "source"
                else ho.Destination(terms, recovered=phase, digest=digest)
            )
            self.nodes[node].sessions[session] = core
            self.feed(node, session, core, ho.Begin())

    def begin_move(self, node: str, target: str, record: Record) -> None:
        ho = self.parts.handover
        self.session_count += 1
        terms = ho.Terms(
            session=f"s{self.session_count:03}",
            machine=record.machine,
            source=node,
            target=target,
            epoch=record.epoch,
            runs=True,
        )
        core = ho.Source(terms, offer=_offer(terms))
        self.nodes[node].sessions[terms.session] = core
        self.feed(node, terms.session, core, ho.Begin())

    def tick_sessions(self, node: str) -> None:
        ho, here = self.parts.handover, self.nodes[node]
        for session, core in list(here.sessions.items()):
            heard = here.heard.setdefault(session, self.sim.now)
            if self.sim.now - heard > LINK_TIMEOUT_MS:
                here.heard[session] = self.sim.now
                self.feed(node, session, core, ho.LinkLost("the link is broken"))
            if self.sim.now % SAY_AGAIN_MS < SAY_AGAIN_MS // 2:
                self.feed(node, session, core, ho.Tick())
            source = isinstance(core, ho.Source)
            may_cancel = source and core.phase in ho.UNCOMMITTED
            may_abandon = not source and core.phase is ho.Phase.COMMIT
            if may_cancel and self.sim.strikes("cancel", 0.01):
                self.feed(node, session, core, ho.Failed("cancelled by the operator"))
            elif may_abandon and self.sim.strikes("abandon", 0.01):
                self.feed(node, session, core, ho.Failed("abandoned by the operator"))

    def remind(self, node: str, session: str, record: Record) -> None:
        """The register was read: a side that waits may find that the world has gone on."""
        ho, core = self.parts.handover, self.nodes[node].sessions[session]
        source = isinstance(core, ho.Source)
        waits = (ho.Phase.RUN,) if source else (ho.Phase.COMMIT, ho.Phase.ROLLBACK)
        if core.phase in waits:
            self.feed(node, session, core, ho.OwnerIs(_owned(record)))

    def handed(self, src: str, dst: str, message: Any) -> None:
        """A message, or the bulk data of a session, arrives."""
        here = self.nodes[dst]
        if isinstance(message, str):
            here.data.add(message)
            return
        session = message.session
        here.heard[session] = self.sim.now
        if session in here.sessions:
            self.feed(dst, session, here.sessions[session], message)
        elif isinstance(message, msg.Offer):
            here.registrar.read(
                message.machine, lambda said: self._offered(src, dst, message, said)
            )
        elif isinstance(message, msg.Run):
            here.registrar.read(
                message.machine, lambda said: self._unknown(src, dst, message, said)
            )
        else:
            self._unknown(src, dst, message, Outcome(True, None))

    def _unknown(self, src: str, dst: str, message: Any, said: Outcome | None) -> None:
        if said is None or message.session in self.nodes[dst].sessions:
            return
        answer = self.parts.handover.answer_without_session(message, dst, _owned(said.present))
        if answer is not None:
            self.sim.send(dst, src, answer)

    def _offered(self, src: str, dst: str, offer: msg.Offer, said: Outcome | None) -> None:
        ho, here = self.parts.handover, self.nodes[dst]
        if said is None or offer.session in here.sessions:
            return
        record = said.present
        if record is None or record.epoch != offer.epoch or record.owner != src:
            return
        for session, core in list(here.sessions.items()):
            if core.terms.machine != offer.machine:
                continue
            late = isinstance(core, ho.Source) or session > offer.session
            if late or core.phase in (ho.Phase.RUN, ho.Phase.ROLLBACK):
                return
            # The owner has begun anew, so it has given the old session up.
            self.feed(dst, session, core, msg.Abort(session=session, reason="superseded"))
        if offer.machine in self.hosts[dst].processes:
            return
        terms = ho.Terms(
            session=offer.session,
            machine=offer.machine,
            source=src,
            target=dst,
            epoch=offer.epoch,
            runs=offer.runs,
        )
        core = here.sessions[offer.session] = ho.Destination(terms)
        self.feed(dst, offer.session, core, ho.Begin())

    # Effects.

    def feed(self, node: str, session: str, core: Any, event: object) -> None:
        """Give an event to a core, if it is still the one of that session, and do what it says."""
        here = self.nodes.get(node)
        if here is None or session not in here.sessions or here.sessions[session] is not core:
            return
        ho = self.parts.handover
        for effect in core.handle(event):
            self.sim.point(node)
            try:
                self._perform(node, session, core, effect)
            except OSError as error:
                self.feed(node, session, core, ho.Unwritten(str(error)))
                return
        if core.phase in ho.ENDED and session in here.sessions:
            del here.sessions[session]

    def _soon(self, node: str, session: str, core: Any, event: Any) -> None:
        delay = 1 + int(self.sim.rng.random() * 40)
        self.sim.at(delay, self.feed, node, session, core, event, node=node)

    def _perform(self, node: str, session: str, core: Any, effect: Any) -> None:
        ho, terms, host = self.parts.handover, core.terms, self.hosts[node]
        machine = terms.machine
        if self.sim.trace is not None and not isinstance(effect, ho.Send):
            self.sim.trace.append(f"{self.sim.now:6} {node} {session} {effect}")
        match effect:
            case ho.Persist(phase, digest):
                if self.sim.disk_fails():
                    raise OSError("no space left on the device")
                role = "source" if node == terms.source else "destination"
                host.journal[session] = (role, terms, phase, digest)
            case ho.Forget():
                host.journal.pop(session, None)
            case ho.Send(message):
                peer = terms.target if node == terms.source else terms.source
                self.sim.send(node, peer, message)
            case ho.Prepare():
                self.destroy(node, machine)
                host.processes[machine] = Process(session=session, whole=False)
                self._soon(node, session, core, ho.Prepared())
            case ho.Copy():
                self._soon(node, session, core, ho.Converged())
            case ho.Pause():
                process = host.processes[machine]
                process.wanted = False
                self.stop(node, machine)
                self.sim.send(node, terms.target, session)
                self._soon(node, session, core, ho.Copied("d-" + session, 1))
            case ho.Finish(phase):
                self._finished(node, core, phase)
            case ho.CancelCopy() | ho.Tell():
                pass
            case ho.Load():
                self._load(node, session, core)
            case ho.Record():
                self._record(node, session, core, effect)
            case ho.ReadOwner():
                self._read(node, session, core)
            case ho.Resume():
                self._resume(node, session, core)
            case ho.Destroy():
                self.destroy(node, machine)
                if node == terms.source:
                    self.feed(node, session, core, ho.Destroyed())
            case _:
                raise AssertionError(f"the world does not know {effect}")

    def _finished(self, node: str, core: Any, phase: Any) -> None:
        ho, terms = self.parts.handover, core.terms
        self.moved += phase is ho.Phase.MOVED and node == terms.target
        if phase is ho.Phase.FENCED:
            # Somebody owns it who did not get this copy: it is of no use.
            self.destroy(node, terms.machine)

    def _load(self, node: str, session: str, core: Any) -> None:
        ho = self.parts.handover
        process = self.hosts[node].processes.get(core.terms.machine)
        if process is None or session not in self.nodes[node].data:
            self._soon(node, session, core, ho.Failed("batches are missing"))
            return
        process.whole = True
        self._soon(node, session, core, ho.Loaded("d-" + session))

    def _record(self, node: str, session: str, core: Any, effect: Any) -> None:
        ho, here = self.parts.handover, self.nodes[node]
        asked = effect.record
        record = Record(asked.machine, asked.owner, asked.epoch, asked.session)
        generation = here.generation

        def said(outcome: Outcome | None) -> None:
            if outcome is None:
                self._read(node, session, core)
            elif outcome.done:
                if record.owner == node:
                    self.owns(node, record, generation)
                self.feed(node, session, core, ho.Recorded())
            else:
                self.feed(node, session, core, ho.OwnerIs(_owned(outcome.present)))

        here.registrar.advance(record, effect.expected_epoch, said)
        if self.sim.strikes("stuck", 0.15):
            # Another bad moment: the request waits in a queue until its node has given it up.
            here.stuck = record.session.encode()
        if self.sim.strikes("kill", 0.15):
            # A bad moment: it will not know what became of its record.
            chance = self.sim.rng.random
            self.sim.at(int(chance() * 300), self._kill, node, int(chance() * 500))

    def _kill(self, node: str, away_ms: int) -> None:
        if not self.sim.quiet_now:
            self.sim.crash(node, away_ms)

    def _read(self, node: str, session: str, core: Any) -> None:
        ho, here = self.parts.handover, self.nodes[node]
        generation = here.generation

        def said(outcome: Outcome | None) -> None:
            if outcome is None:
                return  # a tick asks again
            if outcome.present is not None and outcome.present.owner == node:
                self.owns(node, outcome.present, generation)
            self.feed(node, session, core, ho.OwnerIs(_owned(outcome.present)))

        here.registrar.read(core.terms.machine, said)

    def _resume(self, node: str, session: str, core: Any) -> None:
        ho, machine = self.parts.handover, core.terms.machine
        process = self.hosts[node].processes.get(machine)
        if process is None or not process.whole:
            self.feed(node, session, core, ho.Gone("there is no process"))
            return
        # It runs as soon as the lease lets it; the session need not wait for that.
        process.wanted = True
        self.let_run(node, machine)
        self.sim.point(node)
        self.feed(node, session, core, ho.Resumed())


def _owned(record: Record | None) -> Ownership | None:
    if record is None:
        return None
    return Ownership(
        machine=record.machine, owner=record.owner, epoch=record.epoch, session=record.session
    )


def _offer(terms: Any) -> msg.Offer:
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
