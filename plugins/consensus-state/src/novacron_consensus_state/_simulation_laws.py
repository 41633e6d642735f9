"""What must hold in a simulated cluster, judged by what was asked for and not by how it was done.

`Truth` knows every event that became durable anywhere, and what its writer asked for and saw. From
that alone follows what each key must hold in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import define, field

from novacron_consensus_state._messages import Event, decode_event
from novacron_consensus_state._tree import Key, range_of
from novacron_consensus_state._vector import Dot, Vector, covers

Line = tuple[tuple[bytes, ...], Dot]


@define
class Asked:
    """What a writer asked for, and which rows of the key it saw then."""

    operation: str
    values: Sequence[Any]
    saw: frozenset[Dot]
    before: list[Any] = field(factory=list)  # of a list: what was in it
    at: int = 0  # of an insertion into a list: where


@define
class Truth:
    """See the module."""

    events: dict[Dot, tuple[bytes, Event, int]] = field(factory=dict)
    asked: dict[Dot, Asked] = field(factory=dict)
    causes: dict[Dot, Vector] = field(factory=dict)  # what its writer had seen
    of_key: dict[Key, list[Dot]] = field(factory=dict)
    of_member: dict[str, list[Dot]] = field(factory=dict)
    gone: dict[tuple[Key, Line], list[Dot]] = field(factory=dict)  # a row: by whom it is taken away

    def durable(self, raw: bytes, now: int) -> None:
        """An event was saved somewhere."""
        event = decode_event(raw)
        dot = (event.origin, event.number)
        known = self.events.get(dot)
        if known is not None:
            assert known[0] == raw, f"two events are called {dot}"
            return
        self.events[dot] = (raw, event, now)
        key = (event.name, event.kind)
        self.of_key.setdefault(key, []).append(dot)
        self.of_member.setdefault(event.origin.rpartition("/")[0], []).append(dot)
        for path, dots in event.drops:
            for one in dots:
                self.gone.setdefault((key, (path, one)), []).append(dot)

    def forgotten(self, member: str) -> None:
        """A member begins again: what it had made and not saved never was, and its numbers will be
        given to other events."""
        for known in (self.asked, self.causes):
            for dot in [d for d in known if d[0].startswith(f"{member}/") and d not in self.events]:
                del known[dot]

    @property
    def vector(self) -> Vector:
        """All events that ever became durable."""
        found: Vector = {}
        for origin, number in self.events:
            found[origin] = max(number, found.get(origin, 0))
        return found

    # What a replica may hold at any time.

    def check_causes(self, seen: Vector) -> None:
        """Whoever has seen an event has seen what its writer had seen."""
        for dot in seen.items():
            for origin, number in self.causes.get(dot, {}).items():
                assert covers(seen, (origin, number)), f"{dot} was delivered before its causes"

    def check_rows(self, key: Key, rows: dict[Any, dict[Dot, bytes]], seen: Vector) -> None:
        """A replica's rows of a key agree with what it says it has seen."""
        here = {(path, dot): value for path, row in rows.items() for dot, value in row.items()}
        for line, value in here.items():
            event = self.events.get(line[1])
            assert event is not None, f"{key}: a row of {line[1]}, which nobody wrote"
            assert (line[0], value) in event[1].adds, f"{key}: {line} was never written so"
            killers = [dot for dot in self.gone.get((key, line), ()) if covers(seen, dot)]
            assert not killers, f"{key}: {line} is there although {killers} took it away"
        for dot in self.of_key.get(key, ()):
            if covers(seen, dot):
                for path, _ in self.events[dot][1].adds:
                    if (path, dot) not in here:
                        lost = (key, (path, dot)) not in self.gone
                        assert not lost, f"{key}: {(path, dot)} is gone and nobody took it away"

    def unseen(self, member: str, seen: Vector) -> list[tuple[int, int, Event]]:
        """A member's events that a vector has not seen: when they were made, their key's range."""
        dots = [dot for dot in self.of_member.get(member, ()) if not covers(seen, dot)]
        events = [(self.events[dot][2], self.events[dot][1]) for dot in dots]
        return [(made, range_of((event.name, event.kind)), event) for made, event in events]

    # What a key must hold in the end, by its type's meaning.

    def expected(self, key: Key) -> Any:
        """The value after all events, or None if this type's is judged otherwise."""
        dots = self.of_key.get(key, [])
        asked = {dot: self.asked[dot] for dot in dots if dot in self.asked}
        if len(asked) < len(dots):
            return None  # a write that was not acknowledged, and yet came through
        removed: dict[Any, set[Dot]] = {}
        for one in asked.values():
            for element in self._takes_away(key[1], one):
                removed.setdefault(element, set()).update(one.saw)
        match key[1]:
            case "pn-counter" | "g-counter":
                return sum(one.values[0] for one in asked.values())
            case "g-set" | "or-set":
                return sorted(
                    {
                        element
                        for dot, one in asked.items()
                        if one.operation == "add"
                        for element in one.values
                        if dot not in removed.get(element, set()) | removed.get(None, set())
                    }
                )
            case "mv" | "lww":
                left = [
                    dot
                    for dot, one in sorted(asked.items())
                    if one.operation == "set" and dot not in removed.get(None, set())
                ]
                if key[1] == "mv":
                    return [asked[dot].values[0] for dot in left]
                latest = max(left, key=lambda d: (self.events[d][1].stamp, d), default=None)
                return asked[latest].values[0] if latest else None
            case "or-map":
                fields: dict[str, tuple[int, Dot, Any]] = {}
                for dot, one in asked.items():
                    if one.operation != "set":
                        continue
                    if dot not in removed.get(one.values[0], set()) | removed.get(None, set()):
                        claim = (self.events[dot][1].stamp, dot, one.values[3])
                        fields[one.values[0]] = max(claim, fields.get(one.values[0], claim))
                return {name: claim[2] for name, claim in fields.items()}
        return None

    def _takes_away(self, kind: str, one: Asked) -> Sequence[Any]:
        """Of which elements (None: of the whole key) a write replaces what its writer saw."""
        if one.operation == "delete" or kind in ("mv", "lww"):
            return [None]
        if kind == "or-map":
            return [one.values[0]]
        # What was added again lives on only by the later add.
        return one.values if kind == "or-set" else []

    def check_list(self, key: Key, found: list[Any]) -> None:
        """Elements of a list stand as their writers put them, and none is there twice."""
        asked = [self.asked[dot] for dot in self.of_key.get(key, []) if dot in self.asked]
        if len(asked) < len(self.of_key.get(key, [])):
            return
        inserted = [v for one in asked if one.operation != "remove" for v in one.values]
        removed = {v for one in asked if one.operation == "remove" for v in one.before}
        assert sorted(found) == sorted(set(inserted) - removed), f"{key} holds {found}"
        place = {value: at for at, value in enumerate(found)}
        for one in asked:
            if one.operation == "remove":
                continue
            order = [*one.before[: one.at], *one.values, *one.before[one.at :]]
            standing = [place[value] for value in order if value in place]
            assert standing == sorted(standing), f"{key}: {order} became {found}"
