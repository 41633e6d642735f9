"""One replica's state: its keys, what it has seen, and events that wait for their causes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from attrs import define, field

from novacron_consensus_state import _kinds
from novacron_consensus_state._entry import Entry, Path, Rows
from novacron_consensus_state._history import History
from novacron_consensus_state._messages import PAGE_BYTES_MAX, Event, State
from novacron_consensus_state._tree import DigestTree, Key
from novacron_consensus_state._vector import Dot, Vector, at_least, covers, join_into

WAITING_EVENTS_MAX: Final = 20_000
WAITING_BYTES_MAX: Final = 16 << 20
_canonical: Final = msgspec.msgpack.Encoder(order="deterministic")
_NOTHING: Final[Rows] = {}  # nobody writes into what `Store.rows` gives


@define
class Waiting:
    """Events that came before their causes, by origin and number; bounded."""

    events: dict[str, dict[int, tuple[Event, bytes]]] = field(factory=dict)
    count: int = 0
    nbytes: int = 0

    def add(self, event: Event, raw: bytes) -> bool:
        """Keep it; False if there is no room (it will be asked for again)."""
        of_origin = self.events.setdefault(event.origin, {})
        if event.number in of_origin:
            return True
        if self.count >= WAITING_EVENTS_MAX or self.nbytes + len(raw) > WAITING_BYTES_MAX:
            return False
        of_origin[event.number] = (event, raw)
        self.count += 1
        self.nbytes += len(raw)
        return True

    def take(self, origin: str, number: int) -> None:
        _, raw = self.events[origin].pop(number)
        self.count -= 1
        self.nbytes -= len(raw)

    def forget(self, seen: Mapping[str, int]) -> None:
        """Drop what has been seen by another way."""
        for origin, events in self.events.items():
            for number in [n for n in events if n <= seen.get(origin, 0)]:
                self.take(origin, number)


class Store:
    """See the module.

    Args:
        history_bytes: What recent events may take.

    Attributes:
        vector: What has been seen.
        held: While states are taken over from a peer: what they will cover. Events up to there are
            not delivered, because a row that the peer has seen taken away would come back.
    """

    def __init__(self, history_bytes: int) -> None:
        self.vector: Vector = {}
        self.entries: dict[Key, Entry] = {}
        self.history = History(history_bytes)
        self.waiting = Waiting()
        self.tree = DigestTree(self._canonical_state)
        self.held: Vector = {}
        self._doomed: set[Key] = set()  # keys that have doomed rows

    # Reading.

    def rows(self, key: Key) -> Rows:
        """A key's rows, to be read only."""
        entry = self.entries.get(key)
        return entry.rows if entry else _NOTHING

    def value(self, key: Key) -> Any:
        return _kinds.value(key[1], self.rows(key))

    def kinds_of(self, name: str) -> list[str]:
        """The types under which something of that name is there."""
        return [k for k in _kinds.KINDS if (e := self.entries.get((name, k))) and e.rows]

    # Events.

    def deliver(self, event: Event, raw: bytes) -> list[tuple[Event, bytes]]:
        """Take an event in, and those that waited for it; returns them in their order.

        An event that cannot be delivered yet waits; a known one changes nothing.
        """
        if covers(self.vector, (event.origin, event.number)):
            return []
        if not self._ready(event):
            self.waiting.add(event, raw)
            return []
        done = [(event, raw)]
        self._apply(event, raw)
        return done + self.deliver_waiting()

    def deliver_waiting(self) -> list[tuple[Event, bytes]]:
        """Deliver what waits and need not any more."""
        done: list[tuple[Event, bytes]] = []
        found = True
        while found:
            found = False
            for origin, events in self.waiting.events.items():
                while (here := events.get(self.vector.get(origin, 0) + 1)) and self._ready(here[0]):
                    self.waiting.take(origin, here[0].number)
                    self._apply(*here)
                    done.append(here)
                    found = True
        if done:
            self.waiting.forget(self.vector)
        return done

    def _ready(self, event: Event) -> bool:
        dot = (event.origin, event.number)
        return (
            self.vector.get(event.origin, 0) == event.number - 1
            and at_least(self.vector, event.deps)
            and not covers(self.held, dot)
        )

    def _apply(self, event: Event, raw: bytes) -> None:
        key, dot = (event.name, event.kind), (event.origin, event.number)
        entry = self._entry(key)
        entry.apply(dot, event.adds, event.drops, self.vector)
        self.vector[event.origin] = event.number
        self.history.add(dot, raw)
        self._changed(key, entry)

    # States.

    def merge(self, state: State, theirs: Mapping[str, int]) -> bool:
        """Take in a peer's state of a key (or a part of it); whether anything changed."""
        key = (state.name, state.kind)
        entry = self._entry(key)
        changed = entry.merge(state.rows, state.doomed, theirs, self.vector, state.low, state.high)
        self._changed(key, entry)
        return changed

    def adopt(self, vector: Mapping[str, int]) -> list[tuple[Event, bytes]]:
        """Everything up to here has been taken over as states; returns what need not wait now."""
        self.held = {}
        news = {o: n for o, n in vector.items() if n > self.vector.get(o, 0)}
        self.history.skipped(news)
        join_into(self.vector, news)
        for key in list(self._doomed):
            entry = self._entry(key)
            if entry.forgive(self.vector):
                self._changed(key, entry)
        self.waiting.forget(self.vector)
        return self.deliver_waiting()

    def pages(self, key: Key, after: Path | None = None) -> Iterable[State]:
        """A key's state in parts that fit into a message, in order; nothing if there is none."""
        entry = self.entries.get(key)
        if entry is None:
            return
        name, kind = key
        low = after
        rows: list[tuple[Path, Dot, bytes]] = []
        doomed = sorted(entry.doomed)
        size = 0
        paths = sorted(path for path in entry.rows if low is None or path > low)
        for path in paths:
            row = entry.rows[path]
            cost = sum(map(len, path)) + sum(len(value) + 48 for value in row.values())
            if rows and size + cost > PAGE_BYTES_MAX // 2:
                yield State(name, kind, low, rows[-1][0], rows, doomed)
                low, rows, doomed, size = rows[-1][0], [], [], 0
            rows += [(path, dot, row[dot]) for dot in sorted(row)]
            size += cost
        yield State(name, kind, low, None, rows, doomed)

    def _canonical_state(self, key: Key) -> bytes:
        entry = self.entries.get(key)
        if entry is None:
            return b""
        return _canonical.encode([entry.sorted_rows(), sorted(entry.doomed)])

    def _entry(self, key: Key) -> Entry:
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = Entry()
        return entry

    def _changed(self, key: Key, entry: Entry) -> None:
        if entry.empty:
            del self.entries[key]
        if entry.doomed:
            self._doomed.add(key)
        else:
            self._doomed.discard(key)
        self.tree.touch(key)
