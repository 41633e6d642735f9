"""What all members know alike of the adaptive log: what was done, who wishes what.

It is carried from one generation to the next, so that an entry which was in the old engine's log
and is asked for again in the new one is not done twice.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from attrs import define
from msgspec import Meta

from novacron_consensus_acp._wire import (
    MEMBERS_MAX,
    AnyEntry,
    Command,
    Name,
    Number,
    Reason,
    WireError,
    Wish,
    encode,
)

# How far an entry's number may be above the first one of its origin that is not done.
WINDOW: Final = 256


class _Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    origin: Name
    epoch: Number
    floor: Number
    above: Annotated[tuple[Number, ...], Meta(max_length=WINDOW)]


class _State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    index: Number
    generation: Number
    engine: Name
    place: Name
    reason: Reason
    rows: Annotated[tuple[_Row, ...], Meta(max_length=MEMBERS_MAX)]
    wishes: Annotated[tuple[tuple[Name, Name, Name, Reason], ...], Meta(max_length=MEMBERS_MAX)]


_states: Final = msgspec.msgpack.Decoder(_State)


@define
class _Origin:
    epoch: int
    floor: int
    above: set[int]


class Ledger:
    """See the module.

    Attributes:
        index: Of the newest command.
        generation: How often the log has changed its engine.
        engine, place, reason: The present choice.
        wishes: What each member wishes for the next generation: engine, place, reason.
    """

    def __init__(self, engine: str, place: str) -> None:
        self.index = 0
        self.generation = 0
        self.engine = engine
        self.place = place
        self.reason = "the cluster began with it"
        self.wishes: dict[str, tuple[str, str, str]] = {}
        self._origins: dict[str, _Origin] = {}

    def is_new(self, key: tuple[str, int, int]) -> bool:
        """Whether an entry would be done now; else it was, or never will be."""
        origin, epoch, number = key
        row = self._origins.get(origin)
        if row is None or epoch > row.epoch:
            return 1 <= number <= WINDOW
        if epoch < row.epoch or number <= row.floor or number in row.above:
            return False
        return number <= row.floor + WINDOW

    def execute(self, entry: AnyEntry) -> bool:
        """Whether it was done now."""
        if not self.is_new(entry.key):
            return False
        row = self._origins.get(entry.origin)
        if row is None or row.epoch < entry.epoch:
            row = self._origins[entry.origin] = _Origin(entry.epoch, 0, set())
        row.above.add(entry.number)
        while row.floor + 1 in row.above:
            row.floor += 1
            row.above.discard(row.floor)
        if isinstance(entry, Command):
            self.index += 1
        elif isinstance(entry, Wish) and entry.generation == self.generation:
            self.wishes[entry.origin] = (entry.engine, entry.place, entry.reason)
        return True

    def wished_by(self, engine: str, place: str) -> int:
        """How many members wish this for the next generation."""
        return sum(wish[:2] == (engine, place) for wish in self.wishes.values())

    def begin(self, engine: str, place: str, reason: str) -> None:
        """The next generation."""
        self.generation += 1
        self.engine, self.place, self.reason = engine, place, reason
        self.wishes = {}

    def epoch_of(self, origin: str) -> int:
        row = self._origins.get(origin)
        return row.epoch if row else 0

    def encode(self) -> bytes:
        """Equal states give equal bytes."""
        rows = tuple(
            _Row(name, row.epoch, row.floor, tuple(sorted(row.above)))
            for name, row in sorted(self._origins.items())
        )
        wishes = tuple((name, *wish) for name, wish in sorted(self.wishes.items()))
        here = (self.index, self.generation, self.engine, self.place, self.reason)
        return encode(_State(*here, rows, wishes))

    @classmethod
    def decode(cls, data: bytes) -> Ledger:
        """Raises: WireError."""
        try:
            state = _states.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise WireError(f"not a ledger: {error}") from error
        made = cls(state.engine, state.place)
        made.index, made.generation, made.reason = state.index, state.generation, state.reason
        for row in state.rows:
            made._origins[row.origin] = _Origin(row.epoch, row.floor, set(row.above))
        made.wishes = {name: (engine, place, why) for name, engine, place, why in state.wishes}
        return made
