"""Runs a core on a real node: one thread, one disk, many requests at a time.

One thread owns the core, its store and its state machine. It takes whatever has come since it last
looked (messages, requests, the time), asks the core about each, and performs the effects of all
together in their order: what stands before the first `Save` at once, then every `Save` with one
sync, then the rest. So while the disk works for some, others gather, and share the next sync.

Rules that the code relies on are stated in `effects`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from attrs import define, field, frozen

from novacron_agreement.effects import (
    Commit,
    Done,
    Effect,
    LogCore,
    Note,
    Readable,
    Reason,
    Rejected,
    Restore,
    Save,
    Send,
)
from novacron_agreement.forwarding import Kind, Outcome, Settle
from novacron_agreement.life import Carrier, Life, Machine

log = logging.getLogger("novacron.agreement")

# What is taken from the queue before effects are performed.
GATHER_MAX: Final = 256
# What peers have sent and the core has not heard yet; more is dropped. Each message counts for a
# little more than it holds.
UNHEARD_BYTES: Final = 64 << 20
MESSAGE_COST: Final = 512
# How often streams are looked after, and a store that failed is opened again.
LOOK_AFTER_S: Final = 1.0
REOPEN_S: Final = (0.1, 0.2, 0.5, 1.0)
# The state machine's state is given to the core after so many bytes of commands.
COMPACT_BYTES: Final = 16 << 20
NOTES_KEPT: Final = 50

T = TypeVar("T")


class NotServing(Exception):
    """This member cannot serve a request.

    Attributes:
        reason: One of `Reason`: whether it may still take effect.
        leader: Who might serve it.
    """

    def __init__(self, message: str, reason: str, leader: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.leader = leader


@frozen
class _Waiting:
    """What is called when a request has its outcome; ``query`` serves a read in the core's
    thread."""

    settle: Settle
    query: Callable[[Any], bytes] | None = None


@define(eq=False)
class LogDriver(Generic[Machine]):
    """One member of a replicated log, running.

    Args:
        name: The member's.
        begin: Makes a core from what is durable. Called in the driver's thread, when it starts and
            again after a store has failed. Raises OSError (tried again), or anything else, which
            ends the driver: `failure` has it then.
        carrier: Its `send` is called in the driver's thread, and must not block.
        answer_query: Answers a query of another node from the state machine; must not raise.
        compact_bytes: The state machine's state takes the place of the log after so many bytes of
            commands.
        compact_every: If not 0, it does so at each multiple of this index instead, for logs whose
            members must take equal snapshots.

    Attributes:
        failure: Why the driver does not serve now; None while it does.
        applied: The index of the last command that the state machine has taken.
        notes: The newest notes of the core, with the time of day; ``counts`` has how many of each
            kind there were.
        dropped: How many messages came faster than the core could hear them.
    """

    name: str
    begin: Callable[[], Life[Machine]]
    carrier: Carrier
    answer_query: Callable[[Machine, bytes], bytes] = lambda machine, query: b""
    compact_bytes: int = COMPACT_BYTES
    compact_every: int = 0
    failure: BaseException | None = field(default=None, init=False)
    applied: int = field(default=0, init=False)
    notes: deque[tuple[float, Note]] = field(factory=lambda: deque(maxlen=NOTES_KEPT), init=False)
    counts: Counter[str] = field(factory=Counter, init=False)
    dropped: int = field(default=0, init=False)
    _life: Life[Machine] | None = field(default=None, init=False)
    _events: queue.SimpleQueue[Callable[[], Sequence[Effect]] | None] = field(
        factory=queue.SimpleQueue, init=False
    )
    _waiting: dict[int, _Waiting] = field(factory=dict, init=False)
    _proposals: list[tuple[int, bytes]] = field(factory=list, init=False)
    _tickets: itertools.count[int] = field(factory=lambda: itertools.count(1), init=False)
    _uncompacted: int = field(default=0, init=False)
    _snapshots: list[tuple[int, bytes]] = field(factory=list, init=False)
    _settled: list[tuple[Settle, Outcome]] = field(factory=list, init=False)
    _leader: str | None = field(default=None, init=False)
    _members: dict[str, str] = field(factory=dict, init=False)
    _watchers: list[Callable[[], None]] = field(factory=list, init=False)
    _looked_s: float = field(default=0.0, init=False)
    _thread: threading.Thread = field(init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _unheard_bytes: int = field(default=0, init=False)
    _ended: bool = field(default=False, init=False)
    _gone: bool = field(default=False, init=False)

    # From any thread.

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"log of {self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the store. Blocks until both have happened."""
        self._ended = True
        self._events.put(None)
        self._thread.join()

    @property
    def leader(self) -> str | None:
        """Who can serve requests, as far as this member knows; None while it does not serve."""
        return self._leader

    @property
    def members(self) -> dict[str, str]:
        """Who takes part, with the addresses that are known."""
        return self._members

    def watch(self, changed: Callable[[], None]) -> None:
        """Have something called, in the driver's thread, when the leader or the members change."""
        self._watchers.append(changed)

    def receive(self, sender: str, message: bytes) -> None:
        """A peer's message; ``sender`` is its proved name. More than the core has come to hear of
        for a while is dropped."""

        size = len(message) + MESSAGE_COST
        with self._lock:
            if self._unheard_bytes + size > UNHEARD_BYTES:
                self.dropped += 1
                return
            self._unheard_bytes += size

        def event() -> Sequence[Effect]:
            with self._lock:
                self._unheard_bytes -= size
            if self._life is None:
                return ()  # lost, as messages may be
            return self._core.receive(_now_ms(), sender, message)

        self._post(event)

    def submit(self, kind: Kind, command: bytes, settle: Settle) -> None:
        """A request (see `forwarding.Request`); ``settle`` is called once, in the driver's thread,
        and must not block."""
        if kind == "query":
            self.act(_read, settle, lambda machine: self.answer_query(machine, command))
            return
        if kind != "propose":
            settle(Outcome(Reason.INVALID, b"nothing is managed here"))
            return
        ticket = next(self._tickets)

        def event() -> Sequence[Effect]:
            if self._life is None:
                self._settled.append((settle, Outcome(Reason.NOT_LEADER)))
            else:
                self._waiting[ticket] = _Waiting(settle)
                self._proposals.append((ticket, command))
            return ()

        self._post(event)

    def act(
        self,
        action: Callable[[Any, int, int], Sequence[Effect]],
        settle: Settle,
        query: Callable[[Machine], bytes] | None = None,
    ) -> None:
        """Ask the core for something that ends in `Commit`, `Readable` or `Rejected`.

        Args:
            action: Gets the core, the time and a fresh ticket; its effects are performed.
            query: Called with the state machine when the ticket becomes readable; what it returns
                is the outcome's answer.
        """
        ticket = next(self._tickets)

        def event() -> Sequence[Effect]:
            if self._life is None:
                self._settled.append((settle, Outcome(Reason.NOT_LEADER)))
                return ()
            self._waiting[ticket] = _Waiting(settle, query)
            try:
                return action(self._core, _now_ms(), ticket)
            except ValueError as error:  # what was asked makes no sense, and nothing was changed
                self._settle(ticket, Outcome(Reason.INVALID, str(error).encode()))
                return ()

        self._post(event)

    def inspect(self, look: Callable[[Life[Machine] | None], T]) -> Awaitable[T]:
        """What a function sees in the driver's thread, between two events."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def event() -> Sequence[Effect]:
            try:
                found = look(self._life)
            except Exception as error:
                _tell(loop, future, error=error)
            else:
                _tell(loop, future, found)
            return ()

        self._post(event)
        return future

    async def propose(self, command: bytes) -> bytes:
        """Have a command committed; the state machine's answer.

        Raises: NotServing; by its ``reason`` the command may be proposed again at once, or may
            still take effect.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        self.submit("propose", command, lambda outcome: _tell(loop, future, outcome))
        return _answer(await future, self).answer

    async def read(self, query: Callable[[Machine], T]) -> T:
        """What a function sees of the state machine, with everything in it that was committed
        before this call. Raises: NotServing; then it may be asked again."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        found: list[T] = []

        def look(machine: Machine) -> bytes:
            found.append(query(machine))
            return b""

        self.act(_read, lambda outcome: _tell(loop, future, outcome), look)
        _answer(await future, self)
        return found[0]

    # In the driver's thread.

    @property
    def _core(self) -> LogCore:
        assert self._life is not None
        core: LogCore = self._life.core
        return core

    def _run(self) -> None:
        failures = 0
        while not self._ended:
            try:
                self._life = self.begin()
                self.applied, self._uncompacted = 0, 0
                self._snapshots.clear()
                self._perform(self._core.start(_now_ms()))
                self.failure, failures = None, 0
                self._serve()
            except OSError as error:
                # What the core believes and what is durable may differ now: begin anew from there.
                self._fail(error)
                log.error("%s cannot use its store: %s", self.name, error)
                self._refuse_for(REOPEN_S[min(failures, len(REOPEN_S) - 1)])
                failures += 1
            # The boundary of the protocol: a fault of ours ends this member and must be seen.
            except Exception as error:
                self._fail(error)
                log.exception("%s takes part no longer", self.name)
                while not self._ended:
                    self._refuse_for(LOOK_AFTER_S)
        self._fail(None)
        self._gone = True
        self._refuse_waiting()

    def _post(self, event: Callable[[], Sequence[Effect]]) -> None:
        self._events.put(event)
        if self._gone:
            self._refuse_waiting()  # there is no thread any more that would

    def _serve(self) -> None:
        while not self._ended:
            effects: list[Effect] = []
            event = self._next_event()
            for _ in range(GATHER_MAX):
                if event is not None:
                    effects += event()
                try:
                    event = self._events.get_nowait()
                except queue.Empty:
                    break
            else:
                effects += event() if event is not None else ()
            effects += self._propose_gathered()
            deadline_ms = self._core.deadline_ms
            if deadline_ms is not None and deadline_ms <= (now_ms := _now_ms()):
                effects += self._core.tick(now_ms)
            self._perform(effects)
            self._look_after()

    def _propose_gathered(self) -> Sequence[Effect]:
        """All proposals that came together, in one call if the core takes them so."""
        gathered, self._proposals = self._proposals, []
        if not gathered:
            return ()
        together = getattr(self._core, "propose_all", None)
        if together is not None:
            effects: Sequence[Effect] = together(_now_ms(), gathered)
            return effects
        return [
            effect
            for ticket, command in gathered
            for effect in self._core.propose(_now_ms(), ticket, command)
        ]

    def _next_event(self) -> Callable[[], Sequence[Effect]] | None:
        deadline_ms = self._core.deadline_ms
        wait_s = LOOK_AFTER_S
        if deadline_ms is not None:
            # A deadline is a whole millisecond: to wake within it is to wake after it began.
            wait_s = min(wait_s, (deadline_ms - time.monotonic_ns() / 1e6) / 1e3)
        try:
            return self._events.get(timeout=wait_s) if wait_s > 0 else self._events.get_nowait()
        except queue.Empty:
            return None

    def _perform(self, effects: Sequence[Effect]) -> None:
        saves = [effect for effect in effects if isinstance(effect, Save)]
        saved = not saves
        for effect in effects:
            if isinstance(effect, Save):
                if not saved:
                    self._settle_all()  # what was decided before need not wait for the disk
                    self._save(saves)
                    saved = True
            else:
                self._do(effect)
        self._compact()
        self._notice()
        self._settle_all()

    def _settle_all(self) -> None:
        settled, self._settled = self._settled, []
        for settle, outcome in settled:
            settle(outcome)

    def _save(self, saves: Sequence[Save]) -> None:
        assert self._life is not None
        store = self._life.store
        synced = True
        for save in saves:
            if save.replaces:
                store.replace(save.records)
            else:
                store.append(save.records)
            synced = save.replaces
        if not synced:
            store.sync()

    def _do(self, effect: Effect) -> None:
        assert self._life is not None
        match effect:
            case Send(to, message):
                self.carrier.send(to, message)
            case Commit(index, command, ticket):
                answer = self._life.machine.apply(index, command)
                self.applied = index
                self._uncompacted += len(command) + 64
                if self.compact_every and index % self.compact_every == 0:
                    # At this very index: the next command is applied before `compact` can be.
                    self._snapshots.append((index, self._life.machine.snapshot()))
                self._settle(ticket, Outcome(answer=answer))
            case Restore(index, snapshot):
                self._life.machine.restore(snapshot)
                self.applied, self._uncompacted = index, 0
            case Readable(ticket, _) | Done(ticket, _):
                self._settle(ticket, Outcome())
            case Rejected(ticket, reason, leader):
                self._settle(ticket, Outcome(reason, leader=leader))
            case Note(kind, detail):
                log.info("%s: %s %s", self.name, kind, detail)
                self.counts[kind] += 1
                self.notes.append((time.time(), effect))
            case _:
                raise TypeError(f"no driver performs {effect!r}")

    def _settle(self, ticket: int | None, outcome: Outcome) -> None:
        waiting = self._waiting.pop(ticket, None) if ticket is not None else None
        if waiting is None:
            return
        if waiting.query is not None and not outcome.reason and self._life is not None:
            outcome = Outcome(answer=waiting.query(self._life.machine))
        self._settled.append((waiting.settle, outcome))

    def _compact(self) -> None:
        assert self._life is not None
        if not self.compact_every and self._uncompacted >= self.compact_bytes:
            self._uncompacted = 0
            self._snapshots.append((self.applied, self._life.machine.snapshot()))
        while self._snapshots:
            self._perform(self._core.compact(*self._snapshots.pop(0)))

    def _notice(self) -> None:
        """Tell those who watch, if the core's leader or members changed."""
        leader = self._core.leader if self._life is not None else None
        members = dict(self._core.members) if self._life is not None else self._members
        if members != self._members:
            self._members = members
            self.carrier.know({name: at for name, at in members.items() if name != self.name})
        elif leader == self._leader:
            return
        self._leader = leader
        for changed in self._watchers:
            changed()

    def _look_after(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_AFTER_S:
            self._looked_s = now_s
            self.carrier.look_after()

    def _fail(self, error: BaseException | None) -> None:
        """End this life of the core: whatever waits is in doubt."""
        life, self._life = self._life, None
        self.failure = error
        if life is not None:
            with contextlib.suppress(OSError):
                life.store.close()
        waiting = list(self._waiting.values())
        self._waiting.clear()
        self._proposals.clear()
        for one in waiting:
            one.settle(Outcome(Reason.UNCERTAIN))
        self._notice()

    def _refuse_for(self, seconds: float) -> None:
        """Answer what comes while there is no core: messages are lost, requests refused."""
        ends_s = time.monotonic() + seconds
        while not self._ended and (left_s := ends_s - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self._refuse(self._events.get(timeout=left_s))

    def _refuse_waiting(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._refuse(self._events.get_nowait())

    def _refuse(self, event: Callable[[], Sequence[Effect]] | None) -> None:
        if event is not None:
            event()
        self._settle_all()


def _read(core: LogCore, now_ms: int, ticket: int) -> Sequence[Effect]:
    return core.read(now_ms, ticket)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _tell(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[T],
    value: Any = None,
    error: BaseException | None = None,
) -> None:
    """Settle a future of another thread's loop; one that is gone wants no answer."""

    def settle() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(settle)


def _answer(outcome: Outcome, driver: LogDriver[Any]) -> Outcome:
    if outcome.reason:
        why = f": {driver.failure}" if driver.failure is not None else ""
        why = f": {outcome.answer.decode(errors='replace')}" if outcome.answer else why
        raise NotServing(
            f"{driver.name} did not serve it ({outcome.reason}){why}",
            outcome.reason,
            outcome.leader or driver.leader,
        )
    return outcome
