"""Strong reads and writes: through a replicated log, whose decisions are events like all others.

The log's commands are numbered as they are applied, the same at every member, and each becomes the
event (``~log``, number). So a strong write is ordered by the log, reaches members of the log by it
and all others as events do, and can be read at every level. It takes away what its writer had seen
of the key, wherever that was written; rows that a member has not seen yet are doomed there (see
`_entry`). A strong read asks the log how far it has come, waits until that is seen here, and reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from attrs import define
from msgspec import Meta
from novacron_agreement import (
    Commit,
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
from novacron_agreement.machine import Sessions, SnapshotError

from novacron_consensus_state import _kinds, _records
from novacron_consensus_state._effects import Outbox
from novacron_consensus_state._entry import Entry
from novacron_consensus_state._messages import (
    Dot,
    Event,
    Forward,
    Forwarded,
    Kind,
    Log,
    Name,
    Part,
    Stamp,
    Value,
)
from novacron_consensus_state._settings import ReplicaSettings
from novacron_consensus_state._tree import Key
from novacron_consensus_state._values import unpack

LOG_ORIGIN: Final = "~log"
COMPACT_EVERY: Final = 256
_PathType = tuple[Part, ...]


class Command(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A strong write.

    Attributes:
        client: Chosen for this one request: it takes effect once, however often it is asked.
        stamp, tag: Of the writer: its hybrid clock, and what marks its positions.
        values: The operation's values, packed.
        adds: For a list: the rows to write, whose places only the writer can tell.
        drops: Rows to take away that the writer has seen, and that the log has not written.
        expected: The key's version that must hold; None if any will do.
    """

    client: Annotated[str, Meta(min_length=1, max_length=100)]
    name: Name
    kind: Kind
    stamp: Stamp
    tag: Annotated[bytes, Meta(min_length=4, max_length=4)]
    operation: Annotated[str, Meta(max_length=40)]
    values: bytes
    adds: list[tuple[_PathType, Value]]
    drops: list[tuple[_PathType, list[Dot]]]
    expected: int | None = None


class _Snapshot(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: str
    count: int
    versions: list[tuple[str, str, int]]
    rows: list[tuple[str, str, _PathType, int, bytes]]
    sessions: list[tuple[str, int, bytes]]


class _Reply(msgspec.Struct, frozen=True, array_like=True):
    number: int
    reason: str = ""


_FORMAT: Final = "novacron-state-log-1"
_commands: Final = msgspec.msgpack.Decoder(Command)
_snapshots: Final = msgspec.msgpack.Decoder(_Snapshot)
_replies: Final = msgspec.msgpack.Decoder(_Reply)
_encoder: Final = msgspec.msgpack.Encoder()


def command_of(
    client: str,
    key: Key,
    operation: str,
    values: Sequence[Any],
    writer: _kinds.Writer,
    change: _kinds.Change,
    expected: int | None,
) -> bytes:
    """The command for a change that was worked out on what the writer sees.

    Raises: ValueError if the values are no plain data, or too much of it.
    """
    is_list = key[1] == "list"
    drops = [
        (path, [dot for dot in dots if is_list or dot[0] != LOG_ORIGIN])
        for path, dots in change.drops
    ]
    return _encoder.encode(
        Command(
            client,
            *key,
            writer.stamp,
            writer.tag,
            operation,
            b"" if is_list else _encoder.encode(list(values)),
            change.adds if is_list else [],
            [(path, dots) for path, dots in drops if dots],
            expected,
        )
    )


class LogMachine:
    """What the log's commands amount to: the same at every member after the same commands.

    An operation is worked out again when its command is applied, on the rows that the log itself
    has written: so strong writes follow each other as if there were one copy, also those that did
    not know of each other.

    Attributes:
        count: How many events the log has made.
        versions: The number of each key's last one.
    """

    def __init__(self) -> None:
        self.count = 0
        self.versions: dict[Key, int] = {}
        self._entries: dict[Key, Entry] = {}
        self._sessions = Sessions()

    def apply(self, command: bytes) -> tuple[Event | None, int, str]:
        """The event that a command makes (if it makes one), what has to be seen by whoever asked,
        and why it was refused (then that is -1)."""
        try:
            asked = _commands.decode(command)
            values = unpack(asked.values) if asked.values else []
            if asked.kind not in _kinds.KINDS or not isinstance(values, list):
                raise ValueError("its type or values")
            for path, value in asked.adds:
                _kinds.check_row(asked.kind, path, value)
        except (ValueError, RecursionError) as error:
            return None, -1, f"not a command: {error}"[:200]
        made: list[Event] = []

        def work() -> bytes:
            held = self.versions.get((asked.name, asked.kind), 0)
            if asked.expected is not None and asked.expected != held:
                return _encoder.encode(_Reply(-1, f"version {held} holds"))
            try:
                event = self._event(asked, values)
            except _kinds.WrongOperation as error:
                return _encoder.encode(_Reply(-1, str(error)[:200]))
            if event is not None:
                made.append(event)
            return _encoder.encode(_Reply(self.count))

        reply = self._sessions.once(
            asked.client, 1, work, lambda reason: _encoder.encode(_Reply(-1, reason[:200]))
        )
        found = _replies.decode(reply)
        return (made[0] if made else None), found.number, found.reason

    def _event(self, asked: Command, values: Sequence[Any]) -> Event | None:
        key = (asked.name, asked.kind)
        entry = self._entries.get(key) or Entry()
        adds, drops = list(asked.adds), list(asked.drops)
        if asked.kind != "list":
            writer = _kinds.Writer(asked.tag, asked.stamp)
            change = _kinds.change(asked.kind, entry.rows, asked.operation, values, writer)
            adds, drops = adds + change.adds, drops + change.drops
            for path, up, down in change.counts:
                counted = _kinds.counted(LOG_ORIGIN, path, up, down, entry.rows)
                adds, drops = adds + counted.adds, drops + counted.drops
        if not adds and not drops:
            return None
        self.count += 1
        dot = (LOG_ORIGIN, self.count)
        ours = [(path, [d for d in dots if d[0] == LOG_ORIGIN]) for path, dots in drops]
        entry.apply(dot, adds, ours, {LOG_ORIGIN: self.count})
        if entry.empty:
            self._entries.pop(key, None)
        else:
            self._entries[key] = entry
        self.versions[key] = self.count
        return Event(LOG_ORIGIN, self.count, asked.stamp, {}, *key, adds, drops)

    def snapshot(self) -> bytes:
        rows = [
            (*key, path, dot[1], value)
            for key, entry in sorted(self._entries.items())
            for path, dot, value in entry.sorted_rows()
        ]
        versions = [(*key, number) for key, number in sorted(self.versions.items())]
        return _encoder.encode(
            _Snapshot(_FORMAT, self.count, versions, rows, self._sessions.rows())
        )

    def restore(self, snapshot: bytes) -> None:
        """Raises: SnapshotError."""
        try:
            found = _snapshots.decode(snapshot)
        except ValueError as error:
            raise SnapshotError(f"not a snapshot of strong writes: {error}") from error
        if found.format != _FORMAT:
            raise SnapshotError(f"a snapshot of format {found.format!r:.40}, not {_FORMAT}")
        self.count = found.count
        self.versions = {(name, kind): number for name, kind, number in found.versions}
        self._entries = {}
        for name, kind, path, number, value in found.rows:
            entry = self._entries.setdefault((name, kind), Entry())
            entry.rows.setdefault(path, {})[LOG_ORIGIN, number] = value
        self._sessions = Sessions.of(found.sessions)


@define
class _Ask:
    """A request of this node's own. ``command`` is empty for a read."""

    command: bytes
    due_ms: int
    tries: int = 0


@define
class Outcome:
    """What came of a request.

    Attributes:
        number: The log's event that must be seen before the request is done; -1 if refused.
    """

    number: int
    reason: str = ""


class StrongLog:
    """The way to the log's leader, which may be this node.

    Args:
        core: This node's member of the log; None if it takes no part and only asks others.
    """

    def __init__(
        self,
        me: str,
        others: tuple[str, ...],
        core: LogCore | None,
        records: list[bytes],
        settings: ReplicaSettings,
        out: Outbox,
    ) -> None:
        self.me = me
        self.others = others
        self.core = core
        self.records = records
        self.settings = settings
        self.out = out
        self.machine = LogMachine()
        self.outcomes: dict[int, Outcome] = {}
        self.started = False
        self.rewrite = False  # the log's records were replaced: all records have to be
        self._asks: dict[int, _Ask] = {}
        self._served: dict[int, tuple[str, int]] = {}  # the core's ticket -> who asked, their own
        self._ticket = 0
        self._leader = ""
        self._index = 0
        self._compacted = 0

    @property
    def leader(self) -> str:
        known = self.core.leader if self.core and self.started else None
        return known or self._leader

    @property
    def members(self) -> Mapping[str, str]:
        return self.core.members if self.core else {}

    def start(self, now_ms: int) -> list[Event]:
        """Take part in the log from now on; before this, its messages are not heard."""
        self.started = True
        return self._performed(now_ms, self.core.start(now_ms)) if self.core else []

    def leave(self) -> None:
        """Take part in the log no more, and forget its records."""
        self.core = None
        self.records.clear()
        self.rewrite = True
        self._served.clear()

    def receive(self, now_ms: int, sender: str, payload: bytes) -> list[Event]:
        """A message of the log's own; returns events that it has decided."""
        if self.core is None or not self.started:
            return []
        return self._performed(now_ms, self.core.receive(now_ms, sender, payload))

    def deadline_ms(self) -> int | None:
        times = [ask.due_ms for ask in self._asks.values()]
        if self.started and self.core is not None and self.core.deadline_ms is not None:
            times.append(self.core.deadline_ms)
        return min(times, default=None)

    def tick(self, now_ms: int) -> list[Event]:
        made: list[Event] = []
        core = self.core if self.started else None
        if core is not None and core.deadline_ms is not None and now_ms >= core.deadline_ms:
            made += self._performed(now_ms, core.tick(now_ms))
        for ticket, ask in list(self._asks.items()):
            if now_ms >= ask.due_ms:
                made += self._try(now_ms, ticket, ask)
        return made

    # This node's own requests.

    def ask(self, now_ms: int, ticket: int, command: bytes) -> list[Event]:
        """Have a command committed, or (if it is empty) learn when a read may be served. The
        outcome comes into ``outcomes``."""
        ask = self._asks[ticket] = _Ask(command, now_ms)
        return self._try(now_ms, ticket, ask)

    def forget(self, ticket: int) -> None:
        """Nobody waits for the outcome any more."""
        self._asks.pop(ticket, None)
        self.outcomes.pop(ticket, None)

    def _try(self, now_ms: int, ticket: int, ask: _Ask) -> list[Event]:
        ask.due_ms = now_ms + self.settings.forward_ms
        ask.tries += 1
        leader = self.leader
        if self.started and self.core is not None and leader in ("", self.me):
            return self._serve(now_ms, self.me, ticket, ask.command)
        if self.core is None and (not leader or ask.tries % 3 == 0):
            # Nobody here knows who leads, or whoever did does not answer: ask around.
            leader = self.others[(ticket + ask.tries) % len(self.others)] if self.others else ""
        if leader and leader != self.me:
            self.out.send(leader, Forward(ticket, ask.command))
        return []

    def forwarded(self, now_ms: int, message: Forwarded) -> None:
        """The leader's answer to a request of ours."""
        self._settle(now_ms, message.ticket, message.number, message.reason, message.leader)

    def _settle(self, now_ms: int, ticket: int, number: int, reason: str, leader: str) -> None:
        ask = self._asks.get(ticket)
        if ask is None:
            return
        if number < 0 and reason in (Reason.NOT_LEADER, Reason.BUSY, Reason.UNCERTAIN):
            # The same command again: it takes effect once. At once if somebody else leads.
            moved = bool(leader) and leader != self._leader and leader != self.me
            self._leader = leader
            ask.due_ms = now_ms if moved else now_ms + self.settings.forward_ms // 4
            return
        del self._asks[ticket]
        self.outcomes[ticket] = Outcome(number, reason)

    # What the log's member here does, for this node and for others.

    def serve(self, now_ms: int, sender: str, message: Forward) -> list[Event]:
        """Another node's request."""
        if self.core is None or not self.started:
            answer = Forwarded(message.ticket, -1, Reason.NOT_LEADER, self._leader)
            self.out.send(sender, answer)
            return []
        return self._serve(now_ms, sender, message.ticket, message.command)

    def _serve(self, now_ms: int, who: str, theirs: int, command: bytes) -> list[Event]:
        if self.core is None or (who, theirs) in self._served.values():
            return []  # it is under way
        self._ticket += 1
        self._served[self._ticket] = (who, theirs)
        if command:
            return self._performed(now_ms, self.core.propose(now_ms, self._ticket, command))
        return self._performed(now_ms, self.core.read(now_ms, self._ticket))

    def _answer(
        self, now_ms: int, ticket: int, number: int, reason: str = "", leader: str = ""
    ) -> None:
        who, theirs = self._served.pop(ticket, ("", 0))
        if who == self.me:
            self._settle(now_ms, theirs, number, reason, leader)
        elif who:
            self.out.send(who, Forwarded(theirs, number, reason, leader))

    def _performed(self, now_ms: int, effects: list[Effect]) -> list[Event]:
        made: list[Event] = []
        for effect in effects:
            match effect:
                case Send(to, payload):
                    self.out.send(to, Log(payload))
                case Save(records, replaces):
                    if replaces:
                        self.records.clear()
                        self.rewrite = True
                    self.records += records
                    self.out.save(*(_records.LOG + record for record in records))
                case Commit(index, command, ticket):
                    self._index = index
                    event, number, reason = self.machine.apply(command)
                    if event is not None:
                        made.append(event)
                    if ticket is not None:
                        self._answer(now_ms, ticket, number, reason)
                case Restore(index, snapshot):
                    self._index = self._compacted = index
                    self.machine.restore(snapshot)
                case Readable(ticket, _):
                    self._answer(now_ms, ticket, self.machine.count)
                case Rejected(ticket, reason, leader):
                    self._answer(now_ms, ticket, -1, reason, leader or "")
                case Note(kind, detail):
                    self.out.note(f"log-{kind}", detail)
        if self.core is not None and self._index - self._compacted >= COMPACT_EVERY:
            self._compacted = self._index
            compacting = self.core.compact(self._index, self.machine.snapshot())
            made += self._performed(now_ms, compacting)
        return made
