"""Runs a replica on a real node: one thread, one file, messages by whoever carries them.

The thread owns the replica. It takes whatever has come since it last looked, asks the replica about
each, makes durable with one sync all that is to be, and then does the rest in order. So while the
disk works for some requests, others gather.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import random
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from attrs import define, field
from novacron import NovacronError, Refused
from novacron_agreement import Effect, Note, Save, Send

from novacron_consensus_state import _effects
from novacron_consensus_state._effects import Answer, Changed, Done
from novacron_consensus_state._journal import Journal, StateDamaged
from novacron_consensus_state._member import LogFactory
from novacron_consensus_state._messages import WireError
from novacron_consensus_state._replica import TIMEOUT_MS, Level, Replica
from novacron_consensus_state._settings import ReplicaSettings

log = logging.getLogger("novacron.state")

GATHER_MAX: Final = 256
LOOK_AFTER_S: Final = 1.0
REOPEN_S: Final = 1.0
NOTES_KEPT: Final = 50
T = TypeVar("T")


class StateRefused(Refused):
    """A read or write of state was refused, or nobody knows what came of it (see ``truth``).

    ``facts["reason"]`` is the constant word of `_effects.Refused`.
    """

    code = "state"


class Carrier(Protocol):
    """What carries messages to other members; they may be lost."""

    def send(self, to: str, message: bytes) -> None: ...

    def look_after(self) -> None: ...


class _NotServed(Exception):
    """There is no replica at the moment."""


@define
class _Asked:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Answer]


@define(eq=False)
class StateDriver:
    """One member, running. See the module.

    Args:
        name: The member's.
        members: All members and their regions.
        path: The journal's file.
        settings: Of the replica.
        cluster: The cluster's name.
        carrier: For messages; `receive` takes those that come.
        log: Makes the member's part of the replicated log, for strong requests.

    Attributes:
        failure: Why it does not serve now; None while it does.
        counts: How often each kind of note was made.
    """

    name: str
    members: Mapping[str, str]
    path: Path
    settings: ReplicaSettings
    cluster: str
    carrier: Carrier
    log: LogFactory | None = None
    failure: BaseException | None = field(default=None, init=False)
    counts: Counter[str] = field(factory=Counter, init=False)
    notes: deque[tuple[float, Note]] = field(factory=lambda: deque(maxlen=NOTES_KEPT), init=False)
    _replica: Replica | None = field(default=None, init=False)
    _journal: Journal | None = field(default=None, init=False)
    _events: queue.SimpleQueue[Callable[[], Sequence[Effect]] | None] = field(
        factory=queue.SimpleQueue, init=False
    )
    _asked: dict[int, _Asked] = field(factory=dict, init=False)
    _watchers: list[Callable[[str, str], None]] = field(factory=list, init=False)
    _tickets: itertools.count[int] = field(factory=lambda: itertools.count(1), init=False)
    _ended: bool = field(default=False, init=False)
    _ready: threading.Event = field(factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    # From any thread.

    def start(self) -> None:
        """Begin; blocks until the state is read. Raises StateDamaged or OSError."""
        self._thread = threading.Thread(target=self._run, name="novacron-state", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self.failure is not None:
            self.stop()
            raise self.failure

    def stop(self) -> None:
        """End; blocks until the file is closed. Twice is once."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ended = True
            self._events.put(None)
            thread.join()

    def receive(self, sender: str, message: bytes) -> None:
        """A member's message; ``sender`` is its proved name."""
        self._events.put(lambda: self._here.receive(_now_ms(), sender, message))

    def watch(self, changed: Callable[[str, str], None]) -> Callable[[], None]:
        """Have a function called, in the driver's thread, with name and type of each key that
        changes; it must not block. Returns: what ends that."""
        self._watchers.append(changed)
        return lambda: self._watchers.remove(changed)

    async def write(
        self,
        name: str,
        kind: str,
        operation: str,
        values: Sequence[Any] = (),
        *,
        level: Level = Level.EVENTUAL,
        token: bytes = b"",
        expected: int | None = None,
        timeout_s: float = TIMEOUT_MS / 1000,
    ) -> Answer:
        """See `Replica.write`. Raises StateRefused."""
        timeout_ms = int(timeout_s * 1000)
        return await self._ask(
            lambda ticket: self._here.write(
                _now_ms(),
                ticket,
                name,
                kind,
                operation,
                values,
                level=level,
                token=token,
                expected=expected,
                timeout_ms=timeout_ms,
            )
        )

    async def read(
        self,
        name: str,
        kind: str,
        *,
        level: Level = Level.EVENTUAL,
        token: bytes = b"",
        max_staleness_s: float | None = None,
        timeout_s: float = TIMEOUT_MS / 1000,
    ) -> Answer:
        """See `Replica.read`. Raises StateRefused."""
        most = None if max_staleness_s is None else int(max_staleness_s * 1000)
        timeout_ms = int(timeout_s * 1000)
        return await self._ask(
            lambda ticket: self._here.read(
                _now_ms(),
                ticket,
                name,
                kind,
                level=level,
                token=token,
                max_staleness_ms=most,
                timeout_ms=timeout_ms,
            )
        )

    async def inspect(self, look: Callable[[Replica, int], T]) -> T:
        """What a function sees of the replica (and its time in ms) between two events."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def event() -> Sequence[Effect]:
            try:
                found = look(self._here, _now_ms())
            except Exception as error:
                loop.call_soon_threadsafe(_settle, future, None, error)
            else:
                loop.call_soon_threadsafe(_settle, future, found, None)
            return ()

        self._check()
        self._events.put(event)
        return await future

    async def _ask(self, call: Callable[[int], Sequence[Effect]]) -> Answer:
        self._check()
        loop = asyncio.get_running_loop()
        ticket = next(self._tickets)
        asked = _Asked(loop, loop.create_future())

        def event() -> Sequence[Effect]:
            self._asked[ticket] = asked
            return call(ticket)

        self._events.put(event)
        try:
            return await asked.future
        except asyncio.CancelledError:
            self._events.put(lambda: self._cancelled(ticket))
            raise

    def _check(self) -> None:
        if self.failure is not None or self._thread is None:
            raise StateRefused(
                f"the state of {self.name} is not served now: {self.failure or 'it has ended'}",
                hint="see the node's log",
                truth="nothing was changed",
                reason="not-served",
            )

    # In the driver's thread.

    @property
    def _here(self) -> Replica:
        if self._replica is None:
            raise _NotServed
        return self._replica

    def _cancelled(self, ticket: int) -> Sequence[Effect]:
        self._asked.pop(ticket, None)
        self._here.cancel(ticket)
        return ()

    def _run(self) -> None:
        while not self._ended:
            try:
                self._begin()
                self.failure = None
                self._ready.set()
                self._serve()
            except OSError as error:
                # What the replica believes and what is durable may differ now: begin anew from it.
                self._fail(error)
                log.error("the state cannot be kept in %s: %s", self.path, error)
                if self._ready.is_set() and not self._ended:
                    time.sleep(REOPEN_S)
                else:
                    break
            # The boundary of the protocol: a fault of ours ends this member, and is seen.
            except Exception as error:
                self._fail(error)
                if self._ready.is_set():
                    log.exception("the state of %s is served no more", self.name)
                break
        self._fail(self.failure or OSError("the node has stopped"))
        self._ready.set()

    def _begin(self) -> None:
        self._journal = Journal(self.path)
        try:
            self._replica = Replica(
                self.name,
                self.members,
                self._journal.records,
                self.settings,
                random.Random(secrets.randbits(128)),
                cluster=self.cluster,
                wall_offset_ms=time.time_ns() // 1_000_000 - _now_ms(),
                log=self.log,
            )
        except WireError as error:
            raise StateDamaged(
                f"{self.path}: {error}",
                hint="correct [node] name and [service.state] cluster, or move the file aside",
            ) from error
        self._journal.records = []
        self._perform(self._replica.start(_now_ms()))

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
                    event = None
                    break
            if event is not None:
                effects += event()
            now_ms = _now_ms()
            if self._here.deadline_ms <= now_ms:
                effects += self._here.tick(now_ms)
            self._perform(effects)
            self.carrier.look_after()

    def _next_event(self) -> Callable[[], Sequence[Effect]] | None:
        wait_s = min(LOOK_AFTER_S, (self._here.deadline_ms - _now_ms()) / 1000 + 0.001)
        try:
            return self._events.get(timeout=wait_s) if wait_s > 0 else self._events.get_nowait()
        except queue.Empty:
            return None

    def _perform(self, effects: Sequence[Effect]) -> None:
        assert self._journal is not None
        appended = False
        for effect in effects:
            if not isinstance(effect, Save):
                continue
            if effect.replaces:
                self._journal.replace(effect.records)
                appended = False
            else:
                self._journal.append(effect.records)
                appended = True
        if appended:
            self._journal.sync()
        for effect in effects:
            match effect:
                case Send(to, message):
                    self.carrier.send(to, message)
                case Done(ticket, answer):
                    self._answer(ticket, answer, None)
                case _effects.Refused():
                    self._answer(effect.ticket, None, _refused(effect))
                case Changed(name, kind):
                    for watcher in list(self._watchers):
                        watcher(name, kind)
                case Note(kind, detail):
                    self.counts[kind] += 1
                    self.notes.append((time.time(), effect))
                    log.info("%s: %s", kind, detail)

    def _answer(self, ticket: int, answer: Answer | None, error: NovacronError | None) -> None:
        asked = self._asked.pop(ticket, None)
        if asked is not None:
            asked.loop.call_soon_threadsafe(_settle, asked.future, answer, error)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self._replica = None
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        while True:
            # Requests that nobody has looked at yet learn of it, too.
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
            if event is not None:
                with contextlib.suppress(_NotServed):
                    event()
        for ticket in list(self._asked):
            refused = StateRefused(
                f"the state cannot be kept: {error}",
                hint="make room on the disk; the member goes on by itself",
                truth="whether a write was made is known after reading it",
                reason="not-served",
            )
            self._answer(ticket, None, refused)


def _refused(effect: _effects.Refused) -> StateRefused:
    return StateRefused(effect.reason, hint=effect.hint, truth=effect.truth, reason=effect.code)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
