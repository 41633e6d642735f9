"""The hand-over: how a machine changes its owner so that at most one side ever runs it.

Two rules hold everything else up:

1. The ownership register is the only truth. The source commits by one compare-and-set that makes
   the destination the owner; before it, only the source may run the machine, after it, only the
   destination. A destination that cannot run what it was given gives it back by a newer record.
2. ``Run`` leaves the source only after that record is durable, and the destination records its
   ownership before it runs. So each side can be killed at any instant and decide from the register
   alone, when it is back, whether it may run the machine.

`Source` and `Destination` are fed events (messages among them) and return effects, to be performed
in order; if a `Persist` fails, the effects after it are dropped and `Unwritten` is fed. Messages
may be lost, repeated and reordered: each side repeats what is unanswered on `Tick`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from attrs import define, field, frozen

from novacron_dwcp import messages as msg
from novacron_dwcp.values import Ownership


class Phase(StrEnum):
    PREPARE = "prepare"  # the destination makes room
    COPY = "copy"  # state flows while the machine runs
    PAUSE = "pause"  # the machine is paused, the rest flows
    VERIFY = "verify"  # the destination loads and compares
    COMMIT = "commit"  # source: the record is being written; destination: it waits for Run
    RUN = "run"  # it is the destination's; it is being told, or resumes the machine
    RELEASE = "release"  # source: its copy is being destroyed
    ROLLBACK = "rollback"  # the source keeps it, or gets it back; leftovers are cleared
    MOVED = "moved"
    KEPT = "kept"  # it stayed, or is again, at the source
    FENCED = "fenced"  # somebody else owns it: neither side of this session may run it


ENDED: Final = frozenset({Phase.MOVED, Phase.KEPT, Phase.FENCED})


@frozen(kw_only=True)
class Terms:
    """What both sides know of a session from its Offer on."""

    session: str
    machine: str
    source: str
    target: str
    epoch: int  # by which the source owns it
    runs: bool  # whether it ran when the session began, and is to run when it ends

    def given(self) -> Ownership:
        """The record that commits the hand-over."""
        return Ownership(
            machine=self.machine, owner=self.target, epoch=self.epoch + 1, session=self.session
        )

    def given_back(self) -> Ownership:
        """The record by which a destination that never ran the machine returns it."""
        return Ownership(
            machine=self.machine, owner=self.source, epoch=self.epoch + 2, session=self.session
        )


TERMS: Final = ("session", "machine", "source", "target", "epoch", "runs")


# Events beside messages: what the driver was asked to do has happened, or has not.


@frozen
class Event:
    """Base of the events that are no messages."""


@frozen
class Begin(Event):
    """Start, or go on after a restart."""


@frozen
class Tick(Event):
    """Time has passed: repeat what is unanswered."""


@frozen
class Prepared(Event):
    """Destination: there is room, and ``have`` is what the driver has already, ``codec_have`` what
    the decoder has."""

    have: bytes = b""
    codec_have: bytes = b""


@frozen
class Converged(Event):
    """Source: what is left can leave within the downtime asked for."""


@frozen
class Copied(Event):
    """Source: the machine is paused and every batch has been sent."""

    digest: str
    batches: int
    memory: str = ""


@frozen
class Loaded(Event):
    """Destination: the machine is whole, paused, and this is what arrived."""

    digest: str


@frozen
class Recorded(Event):
    """The record asked for by the last `Record` is durable."""


@frozen
class OwnerIs(Event):
    """What the register holds, after a doubt or a restart."""

    record: Ownership | None


@frozen
class Resumed(Event):
    """Destination: the machine runs (or is paused, if it was when it left)."""


@frozen
class Destroyed(Event):
    """Source: its copy is gone."""


@frozen
class Gone(Event):
    """The machine's process is gone."""

    reason: str


@frozen
class Failed(Event):
    """The last effect, or the copy, failed; or an operator cancels. For ``again`` see `Finish`."""

    reason: str
    hint: str = ""
    again: bool = False


@frozen
class LinkLost(Event):
    """The link has been broken for longer than it may."""

    reason: str


@frozen
class Unwritten(Event):
    """The journal could not be written, and the effects after it were dropped."""

    reason: str


# Effects.


@frozen
class Effect:
    """Base of what a core asks its driver to do."""


@frozen
class Persist(Effect):
    """Write the session's journal: durable before the next effect."""

    phase: Phase
    digest: str = ""


@frozen
class Forget(Effect):
    """Remove the session's journal."""


@frozen
class Send(Effect):
    message: msg.Message


@frozen
class Prepare(Effect):
    """Make room. Then `Prepared` or `Failed`."""


@frozen
class Copy(Effect):
    """Begin to send the state. Then `Converged`, or `Failed`."""

    have: bytes
    codec_have: bytes = b""


@frozen
class Pause(Effect):
    """Pause the machine and send the rest. Then `Copied`, or `Failed`."""


@frozen
class CancelCopy(Effect):
    """Stop copying, if it was going on; the machine may be left paused."""


@frozen
class Load(Effect):
    """Take what has arrived as complete, and compare the loaded machine's digest with ``memory``
    if that is not empty. Then `Loaded` or `Failed`."""

    batches: int
    memory: str = ""


@frozen
class Record(Effect):
    """Advance the register. Then `Recorded`, or, whatever went wrong, `OwnerIs`."""

    record: Ownership
    expected_epoch: int | None


@frozen
class ReadOwner(Effect):
    """Read the register. Then `OwnerIs`; nothing if it cannot be read (a `Tick` asks again)."""


@frozen
class Resume(Effect):
    """Let the machine run; if it runs already, good. The destination wants `Resumed` or `Gone`."""


@frozen
class Destroy(Effect):
    """End the machine's process here and remove what the session left. The source wants
    `Destroyed`; a `Tick` asks again."""


@frozen
class Tell(Effect):
    """Something that the operator must know."""

    message: str
    hint: str = ""


@frozen
class Finish(Effect):
    """The outcome is certain; what follows is cleaning up.

    ``again``: nothing speaks against beginning anew; what failed was the path or a peer's process.
    """

    phase: Phase
    reason: str = ""
    hint: str = ""
    again: bool = False


Effects = tuple[Effect, ...]
Input = Event | msg.Message

# The legal moves. `handle` may stay in a phase or move along these, and nothing else.
SOURCE_MOVES: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.PREPARE: frozenset({Phase.COPY, Phase.ROLLBACK, Phase.RUN, Phase.FENCED, Phase.KEPT}),
    Phase.COPY: frozenset({Phase.PAUSE, Phase.ROLLBACK}),
    Phase.PAUSE: frozenset({Phase.VERIFY, Phase.ROLLBACK}),
    Phase.VERIFY: frozenset({Phase.COMMIT, Phase.ROLLBACK}),
    Phase.COMMIT: frozenset({Phase.RUN, Phase.ROLLBACK, Phase.FENCED}),
    Phase.RUN: frozenset({Phase.RELEASE, Phase.ROLLBACK, Phase.FENCED}),
    Phase.RELEASE: frozenset({Phase.MOVED}),
    Phase.ROLLBACK: frozenset({Phase.KEPT, Phase.FENCED}),
}
DESTINATION_MOVES: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.PREPARE: frozenset({Phase.COPY, Phase.COMMIT, Phase.RUN, Phase.ROLLBACK, Phase.KEPT}),
    Phase.COPY: frozenset({Phase.VERIFY, Phase.KEPT}),
    Phase.VERIFY: frozenset({Phase.COMMIT, Phase.KEPT}),
    Phase.COMMIT: frozenset({Phase.RUN, Phase.ROLLBACK, Phase.KEPT}),
    Phase.RUN: frozenset({Phase.MOVED, Phase.ROLLBACK}),
    Phase.ROLLBACK: frozenset({Phase.KEPT, Phase.RUN}),
}
# Before these the source has not committed, so it may simply go on.
UNCOMMITTED: Final = frozenset({Phase.PREPARE, Phase.COPY, Phase.PAUSE, Phase.VERIFY})


@define
class _Side:
    terms: Terms
    phase: Phase = Phase.PREPARE
    reason: str = ""

    def _move(self, phase: Phase, moves: dict[Phase, frozenset[Phase]]) -> None:
        if phase is not self.phase and phase not in moves.get(self.phase, frozenset()):
            raise RuntimeError(f"{type(self).__name__} cannot go from {self.phase} to {phase}")
        self.phase = phase


@define
class Source(_Side):
    """The side that owns the machine when the session begins.

    Args:
        terms: What is handed over.
        offer: The Offer to repeat until it is answered.
        recovered: Whether the node was restarted: nothing but the journal's terms is known.
    """

    offer: msg.Offer = field(kw_only=True)
    recovered: bool = field(default=False, kw_only=True)
    _sealed: msg.Seal | None = field(default=None, init=False)
    _stuck: bool = field(default=False, init=False)
    _taking_back: bool = field(default=False, init=False)

    def handle(self, event: Input, now_ms: int = 0) -> Effects:
        """The effects of an event, to be performed in order."""
        if isinstance(event, msg.Message) and event.session != self.terms.session:
            return ()
        match self.phase:
            case Phase.PREPARE | Phase.COPY | Phase.PAUSE | Phase.VERIFY:
                return self._uncommitted(event)
            case Phase.COMMIT:
                return self._committing(event)
            case Phase.RUN:
                return self._handing(event)
            case Phase.RELEASE:
                return self._releasing(event)
            case Phase.ROLLBACK:
                return self._rolling_back(event)
            case _:
                return ()

    def _to(self, phase: Phase) -> None:
        self._move(phase, SOURCE_MOVES)

    def _releasing(self, event: Input) -> Effects:
        match event:
            case Destroyed():
                self._to(Phase.MOVED)
                return (Finish(Phase.MOVED), Forget())
            case Tick():
                return (Destroy(),)
            case _:
                return ()

    def _uncommitted(self, event: Input) -> Effects:
        if self.recovered:
            return self._recover(event)
        match event:
            case Begin():
                return (Persist(Phase.PREPARE), Send(self.offer))
            case Unwritten():
                self._to(Phase.KEPT)  # nothing was begun: nothing to undo
                return (Finish(Phase.KEPT, event.reason, "free some room and retry"),)
            case Failed() | msg.Refuse():
                return self._roll_back(event.reason, event.hint, again=event.again)
            case Gone():
                return self._roll_back(event.reason)
            case LinkLost():
                return self._roll_back(event.reason, again=True)
            case msg.Unknown() | msg.Aborted():
                reason, hint = "the destination lost the session", "retry the migration"
                return self._roll_back(reason, hint, again=True)
            case msg.Abandoned():
                return self._take_back(event)
            case Tick() if self.phase is Phase.PREPARE:
                return (Send(self.offer),)
            case msg.Accept() if self.phase is Phase.PREPARE:
                self._to(Phase.COPY)
                return (Copy(event.have, event.codec_have),)
            case Converged() if self.phase is Phase.COPY:
                self._to(Phase.PAUSE)
                return (Pause(),)
            case Copied() if self.phase is Phase.PAUSE:
                self._to(Phase.VERIFY)
                self._sealed = msg.Seal(
                    session=self.terms.session,
                    digest=event.digest,
                    batches=event.batches,
                    memory=event.memory,
                )
                return (Send(self._sealed),)
            case Tick() if self._sealed is not None:
                return (Send(self._sealed),)
            case msg.Verified() if self._sealed is not None:
                if event.digest != self._sealed.digest:
                    why = "what arrived is not what was sent"
                    return self._roll_back(why, "report this", again=True)
                self._to(Phase.COMMIT)
                return (Record(self.terms.given(), self.terms.epoch),)
            case _:
                return ()

    def _recover(self, event: Input) -> Effects:
        if isinstance(event, Begin | Tick):
            return (ReadOwner(),)
        if not isinstance(event, OwnerIs):
            return ()
        if event.record == self.terms.given():
            self._to(Phase.RUN)
            return self._say_run()
        if event.record is not None and event.record.owner != self.terms.source:
            return self._fence(event.record)
        reason, hint = "the node was restarted in the middle", "retry the migration"
        return self._roll_back(reason, hint, again=True)

    def _committing(self, event: Input) -> Effects:
        match event:
            case Recorded():
                self._to(Phase.RUN)
                return self._say_run()
            case Tick():
                return (ReadOwner(),)
            case OwnerIs(record) if record == self.terms.given():
                self._to(Phase.RUN)
                return self._say_run()
            case OwnerIs(record) if record is not None and record.owner != self.terms.source:
                return self._fence(record)
            case OwnerIs():
                return self._roll_back("the change of owner could not be recorded", "see the log")
            case _:
                return ()  # in doubt whether it is ours: nobody may cancel now

    def _say_run(self) -> Effects:
        terms = self.terms
        return (Send(msg.Run(session=terms.session, machine=terms.machine, epoch=terms.epoch + 1)),)

    def _handing(self, event: Input) -> Effects:
        match event:
            case Tick() | Begin():
                return self._say_run()
            case msg.Running() if event.epoch > self.terms.epoch:
                self._to(Phase.RELEASE)
                return (Destroy(),)
            case msg.Abandoned():
                return self._take_back(event)
            case OwnerIs(record) if record is not None and record.epoch > self.terms.epoch + 2:
                # The destination had it, and somebody took it over from there.
                return self._fence(record)
            case msg.Lost() | msg.Unknown() if not self._stuck:
                self._stuck = True
                why = event.reason if isinstance(event, msg.Lost) else "it knows nothing of it"
                return (
                    Tell(
                        f"{self.terms.target} owns {self.terms.machine} and does not run it: {why}",
                        "the copy here stays paused and whole; repair the other node",
                    ),
                )
            case _:
                return ()

    def _take_back(self, event: msg.Abandoned) -> Effects:
        if event.epoch != self.terms.epoch + 2:
            return ()
        self.reason = event.reason
        self._taking_back = True
        self._to(Phase.ROLLBACK)
        return (CancelCopy(), Record(self.terms.given_back(), None))

    def _roll_back(self, reason: str, hint: str = "", *, again: bool = False) -> Effects:
        self.reason = reason
        self._to(Phase.ROLLBACK)
        running = (Resume(),) if self.terms.runs else ()
        finish = Finish(Phase.KEPT, reason, hint, again)
        return (CancelCopy(), *running, finish, self._say_abort())

    def _rolling_back(self, event: Input) -> Effects:
        given_back = self.terms.given_back()
        match event:
            case Recorded():
                return self._taken_back()
            case OwnerIs(record) if record == given_back:
                return self._taken_back()
            case OwnerIs(record) if record is not None and record.epoch > given_back.epoch:
                return self._fence(record)
            case msg.Aborted() if not self._taking_back:
                self._to(Phase.KEPT)
                return (Forget(),)
            case msg.Abandoned():
                return self._take_back(event)
            case Tick() if self._taking_back:
                return (Record(given_back, None),)
            case Tick():
                return (self._say_abort(),)
            case _:
                return ()

    def _taken_back(self) -> Effects:
        self._to(Phase.KEPT)
        running = (Resume(),) if self.terms.runs else ()
        return (*running, Finish(Phase.KEPT, self.reason), Forget())

    def _say_abort(self) -> Send:
        return Send(msg.Abort(session=self.terms.session, reason=self.reason))

    def _fence(self, record: Ownership) -> Effects:
        self._to(Phase.FENCED)
        reason = f"{record.owner} owns {record.machine} by epoch {record.epoch}"
        return (CancelCopy(), Finish(Phase.FENCED, reason, "do not start it here"), Forget())


@define
class Destination(_Side):
    """The side that the machine comes to.

    Args:
        terms: What the Offer said.
        recovered: The journalled phase, if the node was restarted; None if not.
        digest: The journalled digest of what arrived.
    """

    recovered: Phase | None = field(default=None, kw_only=True)
    _loaded: str = field(default="", kw_only=True, alias="digest")
    _have: bytes = field(default=b"", init=False)
    _codec_have: bytes = field(default=b"", init=False)
    _adopted: bool = field(default=False, init=False)
    _lost: str = field(default="", init=False)

    def handle(self, event: Input, now_ms: int = 0) -> Effects:
        """The effects of an event, to be performed in order."""
        if isinstance(event, msg.Message) and event.session != self.terms.session:
            return ()
        match self.phase:
            case Phase.PREPARE if self.recovered is not None:
                return self._recover(event)
            case Phase.PREPARE | Phase.COPY | Phase.VERIFY:
                return self._receiving(event)
            case Phase.COMMIT:
                return self._waiting(event)
            case Phase.RUN:
                return self._adopting(event)
            case Phase.ROLLBACK:
                return self._giving_back(event)
            case _:
                return ()

    def _to(self, phase: Phase) -> None:
        self._move(phase, DESTINATION_MOVES)

    def _receiving(self, event: Input) -> Effects:
        match event:
            case Begin():
                return (Persist(Phase.PREPARE), Prepare())
            case Prepared() if self.phase is Phase.PREPARE:
                self._to(Phase.COPY)
                self._have, self._codec_have = event.have, event.codec_have
                return (self._accept(),)
            case msg.Offer() if self.phase is Phase.COPY:
                return (self._accept(),)
            case msg.Seal() if self.phase is Phase.COPY:
                self._to(Phase.VERIFY)
                self._loaded = event.digest
                return (Load(event.batches, event.memory),)
            case Loaded() if self.phase is Phase.VERIFY and event.digest != self._loaded:
                return self._drop("what arrived is not what was sent", "report this")
            case Loaded() if self.phase is Phase.VERIFY:
                self._to(Phase.COMMIT)
                return (Persist(Phase.COMMIT, self._loaded), self._say_verified())
            case msg.Abort():
                return self._drop(event.reason, aborted=True)
            case Failed():
                return self._drop(event.reason, event.hint, again=event.again)
            case Gone():
                return self._drop(event.reason)
            case LinkLost():
                return self._drop(event.reason, again=True)
            case Unwritten():
                return self._drop(event.reason, "free some room on the destination and retry")
            case _:
                return ()

    def _accept(self) -> Send:
        session = self.terms.session
        return Send(msg.Accept(session=session, have=self._have, codec_have=self._codec_have))

    def _say_verified(self) -> Send:
        return Send(msg.Verified(session=self.terms.session, digest=self._loaded))

    def _drop(
        self, reason: str, hint: str = "", *, aborted: bool = False, again: bool = False
    ) -> Effects:
        """End a session that the source cannot have committed."""
        self._to(Phase.KEPT)
        session = self.terms.session
        refusal = msg.Refuse(session=session, reason=reason, hint=hint, again=again)
        return (
            Destroy(),
            Forget(),
            Send(msg.Aborted(session=session) if aborted else refusal),
            Finish(Phase.KEPT, reason, hint, again),
        )

    def _recover(self, event: Input) -> Effects:
        if self.recovered is not Phase.COMMIT:
            reason, hint = "the destination was restarted in the middle", "retry the migration"
            return self._drop(reason, hint, again=True)
        match event:
            case Begin() | Tick():
                return (ReadOwner(),)
            case OwnerIs(record) if record == self.terms.given():
                self._to(Phase.RUN)
                self._adopted = True
                return (Resume(),) if self.terms.runs else self._done()
            case OwnerIs(record) if record == self.terms.given_back():
                self._to(Phase.ROLLBACK)
                return self._giving_back(Recorded())
            case OwnerIs():
                self._to(Phase.COMMIT)
                return ()
            case _:
                return ()

    def _waiting(self, event: Input) -> Effects:
        match event:
            case msg.Run() if event.epoch == self.terms.epoch + 1:
                self._to(Phase.RUN)
                return (Record(self.terms.given(), None),)
            case msg.Seal():
                return (self._say_verified(),)
            case msg.Abort():
                return self._drop(event.reason, aborted=True)
            case Unwritten():  # so Verified was not sent, and the source cannot have committed
                return self._drop(event.reason, "free some room on the destination and retry")
            case Gone() | Failed():
                return self._abandon(event.reason)
            case OwnerIs(record) if self._overtaken(record):
                return self._give_up()
            case _:
                return ()

    def _overtaken(self, record: Ownership | None) -> bool:
        """Whether the register holds what this session can no longer change."""
        return record is not None and record.epoch > self.terms.epoch + 2

    def _give_up(self) -> Effects:
        """Somebody took the machine over; what is here is of no use to anybody."""
        self._to(Phase.KEPT)
        return (Destroy(), Forget(), Finish(Phase.KEPT, "the register has moved on"))

    def _abandon(self, reason: str) -> Effects:
        self.reason = reason
        self._to(Phase.ROLLBACK)
        return (Record(self.terms.given_back(), None),)

    def _giving_back(self, event: Input) -> Effects:
        match event:
            case Recorded():
                self._to(Phase.KEPT)
                answer = msg.Abandoned(
                    session=self.terms.session, epoch=self.terms.epoch + 2, reason=self.reason
                )
                return (Destroy(), Forget(), Send(answer), Finish(Phase.KEPT, self.reason))
            case OwnerIs(record) if record == self.terms.given_back():
                return self._giving_back(Recorded())
            case OwnerIs(record) if self._overtaken(record):
                return self._give_up()
            case Tick():
                return (Record(self.terms.given_back(), None),)
            case _:
                return ()

    def _adopting(self, event: Input) -> Effects:
        match event:
            case Recorded():
                self._adopted = True
                return (Resume(),) if self.terms.runs else self._done()
            case OwnerIs(record) if record == self.terms.given():
                return self._adopting(Recorded())
            case OwnerIs(record) if record is not None and record.epoch > self.terms.epoch + 1:
                return self._abandon("the register has moved on")
            case Tick() if not self._adopted:
                return (Record(self.terms.given(), None),)
            case Tick() if not self._lost:
                return (Resume(),)
            case Resumed():
                return self._done()
            case Gone() if not self._adopted:
                return self._abandon(event.reason)
            case Gone() if not self._lost:
                self._lost = event.reason  # it may have run: only a person can decide
                return (Send(msg.Lost(session=self.terms.session, reason=self._lost)),)
            case msg.Run() if self._lost:
                return (Send(msg.Lost(session=self.terms.session, reason=self._lost)),)
            case _:
                return ()

    def _done(self) -> Effects:
        self._to(Phase.MOVED)
        running = msg.Running(session=self.terms.session, epoch=self.terms.epoch + 1)
        return (Finish(Phase.MOVED), Forget(), Send(running))


def answer_without_session(
    message: msg.Message, here: str, record: Ownership | None
) -> msg.Message | None:
    """What a node answers for a session that it holds no journal of.

    As a source it has ended it without the destination: the journal is there until the machine
    runs at the destination, or is certain never to. An Offer or a Seal of it that comes late begins
    at the destination what nobody would end, so the destination is told to.

    Args:
        message: What came.
        here: This node's name.
        record: What its register holds of the machine that a Run names; None for others.
    """
    session = message.session
    match message:
        case msg.Abort():
            return msg.Aborted(session=session)
        case msg.Seal():
            return msg.Unknown(session=session)
        case msg.Accept() | msg.Verified():
            return msg.Abort(session=session, reason=f"{here} has ended this session")
        case msg.Run():
            if record is None or record.epoch < message.epoch:
                return msg.Unknown(session=session)
            if record.session == session and record.owner != here:
                reason = f"{here} gave it back"
                return msg.Abandoned(session=session, epoch=record.epoch, reason=reason)
            return msg.Running(session=session, epoch=record.epoch)
        case _:
            return None
