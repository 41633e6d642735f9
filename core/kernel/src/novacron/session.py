"""The migration session on a real node: performs what the hand-over core asks for.

One task per session takes an event at a time, hands it to the core and performs the effects in
order. Bulk work runs in threads (`novacron_dwcp.pump`) and comes back as events.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, define, field
from novacron_dwcp import LinkBroken, ProtocolError
from novacron_dwcp import handover as ho
from novacron_dwcp import messages as msg
from novacron_dwcp.convergence import Convergence, GiveUp, Rate, Sample, Wish
from novacron_dwcp.driver import Link
from novacron_dwcp.modes import ModeDetector
from novacron_dwcp.pump import InwardPump, OutwardPump

from novacron import durable, planning
from novacron.codecs import Codecs
from novacron.errors import ConfigError, MigrationFailed, NovacronError
from novacron.hookspecs.consensus import Ownership
from novacron.hookspecs.machine import (
    Incoming,
    Machine,
    MachineSpec,
    MachineState,
    MoveLimits,
    Outgoing,
)
from novacron.hookspecs.move import MoveFacts

if TYPE_CHECKING:
    from novacron.node import Node

log = logging.getLogger("novacron.session")

TICK_S: Final = 1.0
PROGRESS_S: Final = 0.25
# Rates are means over so long: longer than a batch takes, shorter than a pass over memory.
RATE_WINDOW_S: Final = 1.0
# A machine that is paused waits so long for a broken link, then it runs on here and is sent again.
PAUSED_OUTAGE_S: Final = 3.0
RESULT_FIGURES: Final = ("raw_bytes", "wire_bytes", "resent_bytes", "round", "rungs")
# What a broken machine or disk may raise where a session must go on deciding.
FAULTS: Final = (NovacronError, LinkBroken, ProtocolError, OSError)


@define(kw_only=True)
class Record:
    """A session's journal: what a restarted node must know. One small file, replaced whole."""

    role: str
    terms: dict[str, Any]
    phase: str
    digest: str = ""
    operation: str = ""

    def write(self, folder: Path) -> None:
        durable.write_json(folder / f"{self.terms['session']}.json", asdict(self))

    @classmethod
    def read(cls, path: Path) -> Record:
        try:
            record = cls(**durable.read_json(path))  # type: ignore[arg-type]
            ho.Terms(**record.terms)
            ho.Phase(record.phase)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the session journal {path} is damaged: {error}") from error
        return record


def _failed(error: BaseException) -> ho.Failed:
    """A wrong batch may come of a reference that was damaged and is not trusted any more."""
    again = isinstance(error, ProtocolError | LinkBroken)
    return ho.Failed(str(error) or type(error).__name__, getattr(error, "hint", ""), again)


@define(eq=False, kw_only=True)
class Session:
    """What both sides have in common."""

    node: Node
    core: ho.Source | ho.Destination
    machine: Machine | None
    link: Link | None = None
    codecs: Codecs | None = None
    operation: str = ""
    outcome: asyncio.Future[ho.Finish] = field(init=False)
    ending: asyncio.Task[None] | None = field(default=None, init=False)
    _events: asyncio.Queue[ho.Input] = field(factory=asyncio.Queue, init=False)
    _tasks: set[asyncio.Task[None]] = field(factory=set, init=False)
    _repeating: bool = field(default=False, init=False)
    _loop: asyncio.AbstractEventLoop = field(factory=asyncio.get_running_loop, init=False)

    role = ""

    def __attrs_post_init__(self) -> None:
        self.outcome = self._loop.create_future()

    @property
    def terms(self) -> ho.Terms:
        return self.core.terms

    def post(self, event: ho.Input) -> None:
        """Feed an event, from any thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def run(self) -> None:
        """Until the core has ended and nothing of the session is left."""
        self._events.put_nowait(ho.Begin())
        try:
            while self.core.phase not in ho.ENDED:
                try:
                    async with asyncio.timeout(TICK_S):
                        event = await self._events.get()
                except TimeoutError:
                    event = ho.Tick()
                    await self._watch()
                self._repeating = isinstance(event, ho.Tick)
                await self._feed(event)
        finally:
            await self._let_go()
            await self._end_tasks()
            if self.ending is not None:
                await self.ending

    async def _feed(self, event: ho.Input) -> None:
        before = self.core.phase
        effects = self.core.handle(event, time.monotonic_ns() // 1_000_000)
        if self.core.phase is not before:
            log.info("session %s: %s -> %s", self.terms.session, before, self.core.phase)
            self._entered(self.core.phase)
        for effect in effects:
            log.debug("session %s: %s", self.terms.session, type(effect).__name__)
            try:
                await self._perform(effect)
            except OSError as error:
                if not isinstance(effect, ho.Persist):
                    raise
                await self._feed(ho.Unwritten(f"the session's journal cannot be written: {error}"))
                return

    async def _perform(self, effect: ho.Effect) -> None:
        match effect:
            case ho.Persist(phase, digest):
                self._record(phase, digest).write(self.node.sessions_folder)
            case ho.Forget():
                durable.remove(self.node.sessions_folder / f"{self.terms.session}.json")
            case ho.Send(message):
                # What the peer has not even received need not be said again.
                if self.link is not None and not (self._repeating and self.link.core.outstanding):
                    self.link.send_message(msg.encode(message))
            case ho.Record(record, expected_epoch):
                await self._feed(await self._advance(record, expected_epoch))
            case ho.ReadOwner():
                await self._read_owner()
            case ho.Finish():
                await self._finished(effect)
                if self.codecs is not None and self.ending is None:
                    ended = self.codecs.ended(moved=effect.phase is ho.Phase.MOVED)
                    self.ending = asyncio.create_task(ended)
                if not self.outcome.done():
                    self.outcome.set_result(effect)
            case _:
                await self._act(effect)

    def _record(self, phase: ho.Phase, digest: str) -> Record:
        return Record(
            role=self.role,
            terms=asdict(self.terms),
            phase=phase.value,
            digest=digest,
            operation=self.operation,
        )

    async def _advance(self, record: Ownership, expected_epoch: int | None) -> ho.Event:
        try:
            await self.node.register.advance(record, expected_epoch=expected_epoch)
        except FAULTS as error:
            log.error("session %s: ownership: %s", self.terms.session, error)
            try:
                return ho.OwnerIs(await self.node.register.read(record.machine))
            except FAULTS as unreadable:
                # Nothing may be decided without the register; a Tick asks again.
                log.error("session %s: ownership: %s", self.terms.session, unreadable)
                return ho.Event()
        return ho.Recorded()

    async def _read_owner(self) -> None:
        try:
            record = await self.node.register.read(self.terms.machine)
        except FAULTS as error:
            log.error("session %s: ownership: %s", self.terms.session, error)
            return
        await self._feed(ho.OwnerIs(record))

    def _background(self, work: Coroutine[Any, Any, ho.Event | None]) -> None:
        """Do something that takes long; what it returns, or how it fails, becomes an event."""

        async def guarded() -> None:
            try:
                event = await work
            except FAULTS as error:
                event = _failed(error)
            if event is not None:
                self.post(event)

        task = asyncio.create_task(guarded(), name=f"{self.terms.session} {self.role}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _resume_if_paused(self) -> MachineState:
        """Let the machine run, whoever asked before; the state afterwards, paused if unknown."""
        assert self.machine is not None
        try:
            if await self.machine.state() is MachineState.PAUSED:
                await self.machine.resume()
            return await self.machine.state()
        except FAULTS as error:
            log.error("%s could not be resumed: %s", self.terms.machine, error)
        try:
            return await self.machine.state()
        except FAULTS as error:
            log.error("the state of %s is unknown: %s", self.terms.machine, error)
            return MachineState.PAUSED

    # What the two sides do differently.

    async def _act(self, effect: ho.Effect) -> None:
        raise RuntimeError(f"nobody performs {effect}")

    async def _watch(self) -> None:
        """Called once per tick."""

    async def _let_go(self) -> None:
        """Called at the end, and when the node stops in the middle: leave no thread behind."""

    def _entered(self, phase: ho.Phase) -> None:
        """Called when the core enters a phase, before its effects are performed."""
        self.node.manager.notify(
            "novacron_on_session_phase",
            session=self.terms.session,
            machine=self.terms.machine,
            role=self.role,
            phase=phase.value,
            node=self.node.facts,
        )

    async def _finished(self, finish: ho.Finish) -> None:
        """Called when the outcome is certain."""


@define(eq=False, kw_only=True)
class SourceSession(Session):
    """The side that the machine leaves. Its operation watches `outcome`."""

    limits: MoveLimits = field(factory=MoveLimits)
    wish: Wish = field(factory=lambda: Wish(max_downtime_ms=300))
    verify: str = "stream"
    mode: str = "internet"
    detector: ModeDetector | None = None
    peer_codecs: frozenset[str] = frozenset()
    rate_bytes_per_s: int | None = None
    share_bytes_per_s: int | None = None
    used_bytes: int = 0
    priority: int = 0
    deadline_s: float | None = None  # of time.monotonic()
    round_trip_ms: float | None = None
    providers: dict[str, str] = field(factory=dict)
    report: Callable[..., None] = field(default=lambda **figures: None)
    enter: Callable[[str], None] = field(default=lambda phase: None)
    say: Callable[[str], None] = field(default=lambda text: None)
    downtime_ms: float = field(default=0.0, init=False)
    memory_digest: str = field(default="", init=False)
    pump: OutwardPump | None = field(default=None, init=False)
    _outgoing: Outgoing | None = field(default=None, init=False)
    _copied: asyncio.Future[None] | None = field(default=None, init=False)
    _paused_at: float = field(default=0.0, init=False)
    _began: float = field(factory=time.monotonic, init=False)
    _last: dict[str, Any] = field(factory=dict, init=False)
    _facts: MoveFacts | None = field(default=None, init=False)
    _rate: Rate = field(factory=lambda: Rate(RATE_WINDOW_S), init=False)
    _wire_rate: Rate = field(factory=lambda: Rate(RATE_WINDOW_S), init=False)

    role = "source"

    def _entered(self, phase: ho.Phase) -> None:
        if phase is ho.Phase.RELEASE:
            self._last = self.figures()
        if phase is ho.Phase.RELEASE and self._paused_at:
            self.downtime_ms = (time.monotonic() - self._paused_at) * 1000
        self.enter(phase.value)
        Session._entered(self, phase)

    async def _act(self, effect: ho.Effect) -> None:
        match effect:
            case ho.Copy(have, codec_have):
                self._background(self._copy(have, codec_have))
            case ho.Pause():
                self._background(self._pause())
            case ho.CancelCopy():
                await self._cancel_copy()
            case ho.Resume():
                state = await self._resume_if_paused()
                if state is not MachineState.RUNNING:
                    self.say(f"{self.terms.machine} could not be resumed here: it is {state}")
            case ho.Destroy():
                await self._cancel_copy()
                try:
                    await self.node.hosted.retire(self.terms.machine)
                except FAULTS as error:
                    log.error("%s could not be cleared: %s", self.terms.machine, error)
                else:
                    await self._feed(ho.Destroyed())
            case ho.Tell(message, hint):
                log.error("session %s: %s; %s", self.terms.session, message, hint)
                self.say(f"{message}; {hint}")
            case _:
                await Session._act(self, effect)

    async def _let_go(self) -> None:
        if self.core.phase in ho.UNCOMMITTED:  # later, all has been read and nobody may resume
            await self._cancel_copy()

    async def _copy(self, have: bytes, codec_have: bytes) -> ho.Event:
        assert self.machine is not None
        assert self.link is not None
        assert self.codecs is not None
        encoder = await self.codecs.encoder(self.codecs.first)
        await self.codecs.peer_has(codec_have)
        self._outgoing = outgoing = await self.machine.send(self.limits)
        if have and (peer_has := getattr(outgoing, "peer_has", None)) is not None:
            peer_has(have)
        self.pump = OutwardPump(outgoing, self.codecs.first, encoder, self.link)
        self._background(self._steer())
        running = asyncio.get_running_loop().run_in_executor(None, self.pump.run)
        self._copied = asyncio.ensure_future(running)
        converged = asyncio.ensure_future(outgoing.converged())
        try:
            done, _ = await asyncio.wait((self._copied, converged), return_when="FIRST_COMPLETED")
            if self._copied in done and converged not in done:
                self._copied.result()
                return ho.Failed("the machine's state ended before it was paused")
            converged.result()
        finally:
            # Nobody waits for it any more, and nobody wants to hear why it failed then.
            converged.cancel()
            await asyncio.gather(converged, return_exceptions=True)
        return ho.Converged()

    async def _pause(self) -> ho.Event:
        assert self._outgoing is not None
        assert self._copied is not None
        assert self.pump is not None
        self._paused_at = time.monotonic()
        await self._outgoing.switch_over()
        await self._copied
        if self.verify == "memory":
            assert self.machine is not None
            self.memory_digest = await self.machine.digest()
        return ho.Copied(self.pump.digest.hex(), self.pump.batches, self.memory_digest)

    async def _cancel_copy(self) -> None:
        outgoing, self._outgoing = self._outgoing, None
        await self._end_tasks()
        if outgoing is not None:
            try:
                await outgoing.cancel()
            except FAULTS as error:
                log.error("%s: the copy could not be cancelled: %s", self.terms.machine, error)
        copied, self._copied = self._copied, None
        if copied is not None and not copied.done():
            # The reading thread ends by itself now; the next session must not meet it.
            await asyncio.wait((copied,), timeout=10)
        if copied is not None and copied.done() and not copied.cancelled():
            copied.exception()

    async def _steer(self) -> ho.Event:
        """Show progress and hold the copy to what was asked of it, until it has to end."""
        convergence = Convergence(self.wish, slows_guest=self.limits.slow_guest)
        while True:
            self.report(**self.figures())
            manager, facts = self.node.manager, self.node.facts
            manager.notify("novacron_on_move_sample", move=self.facts(), node=facts)
            decision = convergence.decide(self._sample())
            if isinstance(decision, GiveUp) and not self._paused_at:
                return ho.Failed(f"it cannot be moved as asked: {decision.reason}", decision.hint)
            detector, link = self.detector, self.link
            if detector is not None and link is not None and not self._paused_at:
                mode = detector.see(time.monotonic(), link.measure())
                if mode is not None:
                    try:
                        await self.switch(mode, detector.reason)
                    except ConfigError as error:  # the move is good as it is
                        log.warning("session %s stays as it is: %s", self.terms.session, error)
                        self.detector = None
            aim = getattr(self._outgoing, "aim", None)
            if aim is not None and not isinstance(decision, GiveUp):
                aim(decision.last_set_ms, decision.state_bytes_per_s)
            await asyncio.sleep(PROGRESS_S)

    async def switch(self, mode: str, reason: str) -> None:
        """Go on with the providers of another mode, between two batches; no frame is lost.

        Raises: ConfigError if none is chosen there; nothing is changed then.
        """
        assert self.codecs is not None
        assert self.link is not None
        assert self.pump is not None
        assert self.machine is not None
        configured = self.node.config.chosen
        for domain in ("compression", "transport", "security"):
            configured(domain, mode)
        chosen = planning.choose_providers(
            self.node,
            self.machine.spec,
            self.terms.target,
            mode,
            self.peer_codecs,
            self.link.core.version,
        )
        codec, transport = chosen["compression"], chosen["transport"]
        before = self.providers.get("transport") or configured("transport", self.mode)
        moves = transport != before
        moves |= configured("security", mode) != configured("security", self.mode)
        if codec != self.pump.codec and codec in self.peer_codecs:
            encoder = await self.codecs.encoder(codec)
            self.pump.switch(codec, encoder, lambda: self.report_from_thread(codec=codec))
        if moves:
            self.node.redial(self.link, self.terms.target, mode, transport)
            self.providers["transport"] = transport
        self.mode = mode
        self.report(mode=mode)
        self.say(f"mode {mode}: {reason}")

    def report_from_thread(self, **figures: Any) -> None:
        self._loop.call_soon_threadsafe(lambda: self.report(**figures))

    def _sample(self) -> Sample:
        assert self._outgoing is not None
        assert self.pump is not None
        assert self.link is not None
        progress, path = self._outgoing.progress(), self.link.measure()
        now = time.monotonic()
        return Sample(
            at_s=now - self._began,
            round=progress.round,
            remaining_bytes=progress.remaining_bytes,
            dirty_bytes_per_s=progress.dirty_bytes_per_s,
            state_bytes_per_s=self._rate.of(now, self.pump.raw_bytes),
            wire_bytes=self.link.sent_bytes,
            waiting_s=path.unsent_bytes / path.rate_bytes_per_s if path.rate_bytes_per_s else 0.0,
            round_trip_s=path.rtt_s,
        )

    def limit(self) -> None:
        """Hold the link to what the operator allows, and to this move's share of the link."""
        limits = [limit for limit in (self.rate_bytes_per_s, self.share_bytes_per_s) if limit]
        if self.link is not None:
            self.link.limit(min(limits, default=None))

    def facts(self) -> MoveFacts:
        """What is known of this move now; only while there is a link and a copy."""
        assert self.machine is not None
        assert self._outgoing is not None
        assert self.pump is not None
        assert self.link is not None
        progress = self._outgoing.progress()
        self._facts = MoveFacts(
            machine=self.machine.spec,
            target=self.terms.target,
            mode=self.mode,
            codec=self.pump.codec,
            session=self.terms.session,
            used_bytes=self.used_bytes or progress.total_bytes,
            done_bytes=progress.done_bytes,
            remaining_bytes=progress.remaining_bytes,
            dirty_bytes_per_s=progress.dirty_bytes_per_s,
            raw_bytes=self.pump.raw_bytes,
            wire_bytes=self.link.sent_bytes,
            elapsed_s=time.monotonic() - self._began,
            round_trip_ms=self.round_trip_ms,
            rate_bytes_per_s=self.wire_rate(),
            limit_bytes_per_s=self.rate_bytes_per_s,
        )
        return self._facts

    @property
    def copies(self) -> bool:
        """Whether there is a copy to tell of."""
        return None not in (self._outgoing, self.pump, self.link)

    def wire_rate(self) -> float:
        """Bytes per second on the wire, over the last second or so."""
        assert self.link is not None
        return self._wire_rate.of(time.monotonic(), self.link.sent_bytes)

    def figures(self) -> dict[str, Any]:
        """Progress for the operation: bytes, rates, time left."""
        if self._outgoing is None or self.link is None or not self.copies:
            return self._last
        progress, facts = self._outgoing.progress(), self.facts()
        left = planning.estimate(self.node, facts).seconds or (None, None, None)
        low, eta, high = (None if bound is None else round(bound, 1) for bound in left)
        return {
            "round": progress.round,
            "done_bytes": progress.done_bytes,
            "remaining_bytes": progress.remaining_bytes,
            "total_bytes": progress.total_bytes,
            "dirty_bytes_per_s": progress.dirty_bytes_per_s,
            "raw_bytes": facts.raw_bytes,
            "wire_bytes": facts.wire_bytes,
            "rate_bytes_per_s": round(progress.done_bytes / max(facts.elapsed_s, 1e-3)),
            "resent_bytes": self.link.core.resent_bytes,
            "rungs": self.codecs.figures() if self.codecs else {},
            "eta_s": eta,
            "eta_low_s": low,
            "eta_high_s": high,
        }

    def _used(self) -> dict[str, str]:
        """The provider in each domain that the move ended with."""
        used = dict(self.providers)
        if self.pump is not None and self.link is not None:
            used |= {"compression": self.pump.codec, "protocol": str(self.link.core.version)}
        return used

    async def _watch(self) -> None:
        assert self.link is not None
        paused_s = time.monotonic() - self._paused_at if self._paused_at else 0.0
        broken = not self.link.connected and paused_s > PAUSED_OUTAGE_S
        if broken and self.core.phase in ho.UNCOMMITTED:
            await self._feed(ho.LinkLost("the link broke while the machine was paused"))

    async def _finished(self, finish: ho.Finish) -> None:
        self.report(**self.figures(), downtime_ms=round(self.downtime_ms, 1))
        if self.pump and self.link and finish.phase is ho.Phase.MOVED:
            rate = self.link.sent_bytes / max(time.monotonic() - self._began, 1e-3)
            self.node.rates[self.terms.target] = rate
        if self._facts is not None:
            self.node.manager.notify(
                "novacron_on_move_end",
                move=self._facts,
                moved=finish.phase is ho.Phase.MOVED,
                reason=finish.reason,
                downtime_ms=self.downtime_ms,
                node=self.node.facts,
            )

    async def result(self) -> dict[str, Any]:
        """Wait for the outcome. Raises MigrationFailed if the machine did not move."""
        finish = await asyncio.shield(self.outcome)
        terms = self.terms
        if finish.phase is ho.Phase.MOVED:
            figures = self.figures()
            return {
                "machine": terms.machine,
                "node": terms.target,
                "epoch": terms.epoch + 1,
                "seconds": round(time.monotonic() - self._began, 3),
                "downtime_ms": round(self.downtime_ms, 1),
                "memory_digest": self.memory_digest,
                "providers": self._used(),
                **{key: figures[key] for key in RESULT_FIGURES if figures},
            }
        truth = f"{terms.machine} is owned by {terms.source} and was resumed there"
        if not terms.runs:
            truth = f"{terms.machine} is owned by {terms.source} and is paused there, as it was"
        if finish.phase is ho.Phase.FENCED:
            truth = f"{terms.machine} does not run on {terms.source}: {finish.reason}"
        raise MigrationFailed(
            f"{terms.machine} did not move to {terms.target}: {finish.reason}",
            hint=finish.hint,
            truth=truth,
            session=terms.session,
            again=finish.again,
        )


@define(eq=False, kw_only=True)
class DestinationSession(Session):
    """The side that the machine comes to."""

    offer: msg.Offer | None = None
    _incoming: Incoming | None = field(default=None, init=False)
    _pump: InwardPump | None = field(default=None, init=False)
    _pumping: asyncio.Future[None] | None = field(default=None, init=False)

    role = "destination"

    async def _act(self, effect: ho.Effect) -> None:
        match effect:
            case ho.Prepare():
                self._background(self._prepare())
            case ho.Load(batches, memory):
                self._background(self._load(batches, memory))
            case ho.Resume():
                await self._feed(await self._resume())
            case ho.Destroy():
                await self._destroy()
            case _:
                await Session._act(self, effect)

    async def _prepare(self) -> ho.Event:
        offer, link = self.offer, self.link
        assert offer is not None
        assert link is not None
        spec = MachineSpec(
            name=offer.machine,
            driver=offer.driver,
            memory_bytes=offer.memory_bytes,
            settings=offer.settings,
            tenant=offer.tenant,
        )
        self.codecs = codecs = Codecs.of(self.node, offer, "destination", offer.compression)
        codecs.decoder(offer.compression)  # an unknown one is refused before anything is made
        # Both take a moment: what is held here is read while the machine's process starts.
        holds = asyncio.ensure_future(self._holds(codecs, offer))
        try:
            self.machine = await self.node.hosted.admit(spec, session=offer.session)
            self._incoming = incoming = await self.machine.receive(offer.origin)
        finally:
            await asyncio.wait((holds,))
        self._pump = InwardPump(link, codecs.decoder, incoming)
        running = asyncio.get_running_loop().run_in_executor(None, self._pump.run)
        self._pumping = asyncio.ensure_future(running)
        self._pumping.add_done_callback(self._pump_ended)
        have = getattr(incoming, "have", None)
        return ho.Prepared(have() if have is not None else b"", holds.result())

    async def _holds(self, codecs: Codecs, offer: msg.Offer) -> bytes:
        await codecs.peer_has(offer.codec_have)
        return await codecs.have()

    def _pump_ended(self, pumping: asyncio.Future[None]) -> None:
        if not pumping.cancelled() and (error := pumping.exception()) is not None:
            self.post(_failed(error))

    async def _load(self, batches: int, memory: str) -> ho.Event:
        assert self._pump is not None
        assert self._incoming is not None
        assert self.machine is not None
        if not await asyncio.to_thread(self._pump.wait_for, batches):
            return ho.Failed(f"{self._pump.batches} of {batches} batches arrived")
        await self._incoming.finish()
        if memory and (here := await self.machine.digest()) != memory:
            return ho.Failed(f"its memory is {here} here and was {memory}", "report this")
        return ho.Loaded(self._pump.digest.hex())

    async def _resume(self) -> ho.Event:
        if self.machine is None:
            return ho.Gone("the machine is not here")
        state = await self._resume_if_paused()
        if state is MachineState.RUNNING:
            return ho.Resumed()
        if state is MachineState.PAUSED:
            return ho.Event()  # a Tick tries again
        return ho.Gone(f"its process is {state}")

    async def _let_go(self) -> None:
        if self._pump is not None:  # its link may be an older one than the session's
            self._pump.link.end_data()

    async def _destroy(self) -> None:
        await self._end_tasks()
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            try:
                await incoming.abandon()
            except FAULTS as error:
                log.error("%s: leftovers: %s", self.terms.machine, error)
        await self.node.hosted.remove(self.terms.machine, session=self.terms.session)
        if self._pumping is not None and not self._pumping.done():
            await self._let_go()
            await asyncio.wait((self._pumping,), timeout=10)

    async def _watch(self) -> None:
        if self.core.phase in (ho.Phase.COMMIT, ho.Phase.RUN) and self.machine is not None:
            state = await self.machine.state()
            if state in (MachineState.LOST, MachineState.STOPPED):
                await self._feed(ho.Gone(f"its process is {state}"))

    async def _finished(self, finish: ho.Finish) -> None:
        if finish.phase is ho.Phase.MOVED:
            self.node.hosted.arrived(self.terms.machine)
        log.info("session %s ended: %s %s", self.terms.session, finish.phase, finish.reason)
