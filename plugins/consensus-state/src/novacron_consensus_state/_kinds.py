"""The data types: what their operations change, and what their rows mean.

An operation gives a `Change`: rows to add under the event's dot, rows to drop by their dots (only
what its writer has seen: what others write meanwhile stays), and amounts to count. All types:

========== ========================= ===========================================================
name       operations                of two writes that did not know of each other
========== ========================= ===========================================================
g-counter  increment N               both count
pn-counter increment N (may be < 0)  both count
g-set      add V…                    both are in
or-set     add V…, remove V…         an add wins over a remove
lww        set V                     the one with the later stamp shows
mv         set V                     both show
or-map     set F TYPE OP V…,         each field by its own type; a write of a field wins over
           remove F                  its removal
list       append V…, insert I V…,   both are in; see `_positions`
           remove I, set I V
========== ========================= ===========================================================

``delete`` works on all of them. What a counter's own replicas had counted comes back with their
next increment if that was made without knowledge of the deletion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import define, field

from novacron_consensus_state import _positions
from novacron_consensus_state._entry import Path, Rows
from novacron_consensus_state._values import NAME_CHARS_MAX, check_packed, pack, unpack
from novacron_consensus_state._vector import Dot

AMOUNT_MAX: Final = 1 << 53
ITEMS_MAX: Final = 4096
MAP_DEPTH_MAX: Final = 8


class WrongOperation(ValueError):
    """The type has no such operation, or not with these values. Nothing was changed."""


@define
class Change:
    """What an operation changes, for whoever makes it an event.

    Attributes:
        counts: Amounts up and down to add to the writer's own total, by path.
    """

    adds: list[tuple[Path, bytes]] = field(factory=list)
    drops: list[tuple[Path, list[Dot]]] = field(factory=list)
    counts: list[tuple[Path, int, int]] = field(factory=list)

    @property
    def empty(self) -> bool:
        return not (self.adds or self.drops or self.counts)

    def drop(self, path: Path, rows: Rows) -> None:
        if path in rows:
            self.drops.append((path, sorted(rows[path])))

    def replace(self, path: Path, value: bytes, rows: Rows) -> None:
        self.drop(path, rows)
        self.adds.append((path, value))


@define(frozen=True)
class Writer:
    """Who writes, and when.

    Attributes:
        tag: Of the writing replica, for positions.
        stamp: Of its hybrid clock.
    """

    tag: bytes
    stamp: int


Operation = Callable[[Rows, Sequence[Any], Writer], Change]


def change(kind: str, rows: Rows, operation: str, values: Sequence[Any], writer: Writer) -> Change:
    """What an operation changes. Raises WrongOperation."""
    operations = _OPERATIONS.get(kind)
    if operations is None:
        raise WrongOperation(f"there is no type {kind!r:.40}; there are {', '.join(KINDS)}")
    if operation == "delete":
        _count(kind, operation, values, 0, 0)
        made = Change()
        for path in sorted(rows):
            made.drop(path, rows)
        return made
    found = operations.get(operation)
    if found is None:
        names = ", ".join([*operations, "delete"])
        raise WrongOperation(f"a {kind} cannot {operation!r:.40}; it can {names}")
    try:
        return found(rows, values, writer)
    except WrongOperation:
        raise
    except ValueError as error:
        raise WrongOperation(str(error)) from error


def value(kind: str, rows: Rows) -> Any:
    """What the rows mean, as plain data."""
    return _VALUES[kind](rows)


def check_row(kind: str, path: Path, data: bytes, depth: int = 0) -> None:
    """Raises: ValueError for a row from a peer that this type cannot have."""
    if kind in ("g-counter", "pn-counter"):
        _shape(kind, path == () and _is_total(data, kind))
    elif kind == "lww":
        _shape(kind, path == () and len(data) > 8 and data[0] < 0x80)
        check_packed(data[8:])
    elif kind == "mv":
        _shape(kind, path == ())
        check_packed(data)
    elif kind in ("g-set", "or-set"):
        _shape(kind, len(path) == 1 and not data)
        check_packed(path[0])
    elif kind == "list":
        _shape(kind, len(path) == 1 and _positions.is_position(path[0]))
        check_packed(data)
    elif kind == "or-map":
        _shape(kind, len(path) >= 1 and depth < MAP_DEPTH_MAX)
        _, below = split_field(path[0])
        check_row(below, path[1:], data, depth + 1)
    else:
        raise ValueError(f"there is no type {kind!r:.40}")


def _shape(kind: str, sound: bool) -> None:
    if not sound:
        raise ValueError(f"a row that a {kind} cannot have")


def _count(kind: str, operation: str, values: Sequence[Any], least: int, most: int) -> None:
    if not least <= len(values) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise WrongOperation(
            f"{kind} {operation} takes {wanted} value{'s' * (most != 1)}, not {len(values)}"
        )


# Counters. A row holds what its writer has counted altogether.


def total(data: bytes) -> tuple[int, int]:
    up, down = unpack(data)
    return up, down


def packed_total(up: int, down: int) -> bytes:
    return pack([up, down])


def _is_total(data: bytes, kind: str) -> bool:
    found = unpack(data)
    return (
        isinstance(found, list)
        and len(found) == 2
        and all(type(n) is int and n >= 0 for n in found)
        and (kind == "pn-counter" or found[1] == 0)
    )


def counted(origin: str, path: Path, up: int, down: int, rows: Rows) -> Change:
    """The change that adds to the origin's own total."""
    made = Change()
    own = sorted(dot for dot in rows.get(path, ()) if dot[0] == origin)
    for dot in own:
        before = total(rows[path][dot])
        up, down = up + before[0], down + before[1]
    if own:
        made.drops.append((path, own))
    made.adds.append((path, packed_total(up, down)))
    return made


def _increment(kind: str) -> Operation:
    def increment(rows: Rows, values: Sequence[Any], writer: Writer) -> Change:
        _count(kind, "increment", values, 0, 1)
        amount = values[0] if values else 1
        if type(amount) is not int or not -AMOUNT_MAX <= amount <= AMOUNT_MAX:
            raise WrongOperation(f"{amount!r:.40} is no whole number that can be counted")
        if amount < 0 and kind == "g-counter":
            raise WrongOperation("a g-counter only grows; use a pn-counter")
        return Change(counts=[((), max(amount, 0), max(-amount, 0))] if amount else [])

    return increment


def _sum(rows: Rows) -> int:
    totals = [total(data) for data in rows.get((), {}).values()]
    return sum(up - down for up, down in totals)


# Registers.


def _set_lww(rows: Rows, values: Sequence[Any], writer: Writer) -> Change:
    _count("lww", "set", values, 1, 1)
    made = Change()
    made.replace((), writer.stamp.to_bytes(8, "big") + pack(values[0]), rows)
    return made


def _latest(rows: Rows) -> Any:
    # Those that lost are kept until the next write: if the one that won is taken away by somebody
    # who never saw them, they are what is left, at every replica alike.
    row = rows.get((), {})
    if not row:
        return None
    dot = max(row, key=lambda dot: (row[dot][:8], dot))
    return unpack(row[dot][8:])


def _set_mv(rows: Rows, values: Sequence[Any], writer: Writer) -> Change:
    _count("mv", "set", values, 1, 1)
    made = Change()
    made.replace((), pack(values[0]), rows)
    return made


def _all_values(rows: Rows) -> list[Any]:
    row = rows.get((), {})
    return [unpack(row[dot]) for dot in sorted(row)]


# Sets.


def _add_new(rows: Rows, values: Sequence[Any], writer: Writer) -> Change:
    _count("g-set", "add", values, 1, ITEMS_MAX)
    return Change(adds=[((e,), b"") for e in _distinct(values) if (e,) not in rows])


def _add(rows: Rows, values: Sequence[Any], writer: Writer) -> Change:
    _count("or-set", "add", values, 1, ITEMS_MAX)
    made = Change()
    # An element that is there gets the new dot, or a remove under way elsewhere would win.
    for element in _distinct(values):
        made.replace((element,), b"", rows)
    return made


def _remove(rows: Rows, values: Sequence[Any], writer: Writer) -> Change:
    _count("or-set", "remove", values, 1, ITEMS_MAX)
    made = Change()
    for element in _distinct(values):
        made.drop((element,), rows)
    return made


def _distinct(values: Iterable[Any]) -> list[bytes]:
    return sorted({pack(value) for value in values})


def _elements(rows: Rows) -> list[Any]:
    return [unpack(path[0]) for path in sorted(rows)]


# Lists.


def _places(rows: Rows) -> list[tuple[bytes, Dot]]:
    """Where each element is; an index of the list is an index of this."""
    return [(path[0], dot) for path in sorted(rows) for dot in sorted(rows[path])]


def _at(kind: str, places: Sequence[Any], index: Any, most: int) -> int:
    if type(index) is not int or not 0 <= index <= most:
        raise WrongOperation(f"{index!r:.40} is no place in a {kind} of {len(places)} elements")
    return index


def _insert_at(rows: Rows, index: int, values: Sequence[Any], writer: Writer) -> Change:
    places = _places(rows)
    low = places[index - 1][0] if index else b""
    high = places[index][0] if index < len(places) else b""
    made = _positions.run(low, high, writer.tag, len(values))
    return Change(
        adds=[((p,), pack(value)) for p, value in zip(made, values, strict=True)],
    )


def _append(rows: Rows, values: Sequence[Any], writer: Writer) -> Change:
    _count("list", "append", values, 1, ITEMS_MAX)
    return _insert_at(rows, sum(map(len, rows.values())), values, writer)


def _insert(rows: Rows, values: Sequence[Any], writer: Writer) -> Change:
    _count("list", "insert", values, 2, ITEMS_MAX + 1)
    places = _places(rows)
    return _insert_at(rows, _at("list", places, values[0], len(places)), values[1:], writer)


def _remove_at(rows: Rows, values: Sequence[Any], writer: Writer) -> Change:
    _count("list", "remove", values, 1, 1)
    places = _places(rows)
    position, dot = places[_at("list", places, values[0], len(places) - 1)]
    return Change(drops=[((position,), [dot])])


def _set_at(rows: Rows, values: Sequence[Any], writer: Writer) -> Change:
    _count("list", "set", values, 2, 2)
    places = _places(rows)
    position, dot = places[_at("list", places, values[0], len(places) - 1)]
    return Change(adds=[((position,), pack(values[1]))], drops=[((position,), [dot])])


def _in_order(rows: Rows) -> list[Any]:
    return [unpack(rows[position,][dot]) for position, dot in _places(rows)]


# Maps. A field is found by its name and its type, so two types of one name do not meet.


def field_of(name: str, kind: str) -> bytes:
    return f"{kind}:{name}".encode()


def split_field(data: bytes) -> tuple[str, str]:
    """Name and type of a field. Raises ValueError."""
    try:
        kind, colon, name = data.decode().partition(":")
    except UnicodeDecodeError as error:
        raise ValueError("a field's name is no text") from error
    if not colon or kind not in _OPERATIONS or not 0 < len(name) <= NAME_CHARS_MAX:
        raise ValueError("a field without a name or type")
    return name, kind


def _below(rows: Rows, key: bytes) -> Rows:
    return {path[1:]: row for path, row in rows.items() if path[0] == key}


def _set_field(rows: Rows, values: Sequence[Any], writer: Writer) -> Change:
    _count("or-map", "set", values, 3, ITEMS_MAX + 3)
    name, kind, operation = values[:3]
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX:
        raise WrongOperation(f"{name!r:.40} is no name for a field")
    for path in rows:
        other = split_field(path[0])
        if other[0] == name and other[1] != kind:
            raise WrongOperation(f"the field {name!r:.40} is a {other[1]}, not a {kind!r:.40}")
    key = field_of(name, str(kind))
    made = change(str(kind), _below(rows, key), str(operation), values[3:], writer)
    if any(len(path) >= MAP_DEPTH_MAX for path, _ in made.adds):
        raise WrongOperation(f"maps are nested more than {MAP_DEPTH_MAX - 1} levels deep")
    return Change(
        adds=[((key, *path), data) for path, data in made.adds],
        drops=[((key, *path), dots) for path, dots in made.drops],
        counts=[((key, *path), up, down) for path, up, down in made.counts],
    )


def _remove_field(rows: Rows, values: Sequence[Any], writer: Writer) -> Change:
    _count("or-map", "remove", values, 1, ITEMS_MAX)
    made = Change()
    for path in sorted(rows):
        if split_field(path[0])[0] in values:
            made.drop(path, rows)
    return made


def _fields(rows: Rows) -> dict[str, Any]:
    grouped: dict[bytes, Rows] = {}
    for path, row in rows.items():
        grouped.setdefault(path[0], {})[path[1:]] = row
    found: dict[str, Any] = {}
    for key in sorted(grouped):
        name, kind = split_field(key)
        # Of two types that were given to one name at once, the later by its name shows with it.
        found[f"{name}:{kind}" if name in found else name] = value(kind, grouped[key])
    return found


_OPERATIONS: Final[Mapping[str, Mapping[str, Operation]]] = {
    "g-counter": {"increment": _increment("g-counter")},
    "pn-counter": {"increment": _increment("pn-counter")},
    "g-set": {"add": _add_new},
    "or-set": {"add": _add, "remove": _remove},
    "lww": {"set": _set_lww},
    "mv": {"set": _set_mv},
    "or-map": {"set": _set_field, "remove": _remove_field},
    "list": {"append": _append, "insert": _insert, "remove": _remove_at, "set": _set_at},
}
_VALUES: Final[Mapping[str, Callable[[Rows], Any]]] = {
    "g-counter": _sum,
    "pn-counter": _sum,
    "g-set": _elements,
    "or-set": _elements,
    "lww": _latest,
    "mv": _all_values,
    "or-map": _fields,
    "list": _in_order,
}
KINDS: Final = tuple(_OPERATIONS)


def operations() -> dict[str, list[str]]:
    """The operations of each type."""
    return {kind: [*names, "delete"] for kind, names in _OPERATIONS.items()}
