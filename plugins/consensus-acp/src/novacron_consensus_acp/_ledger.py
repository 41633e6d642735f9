"""What all members know alike of the adaptive log: what was done, who wishes what.

It is carried from one generation to the next, so that an entry which was in the old engine's log
and is asked for again in the new one is not done twice.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta
from novacron_agreement.numbers import Numbers, Row, Verdict

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


class _State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    index: Number
    generation: Number
    engine: Name
    place: Name
    reason: Reason
    rows: Annotated[tuple[Row, ...], Meta(max_length=MEMBERS_MAX)]
    wishes: Annotated[tuple[tuple[Name, Name, Name, Reason], ...], Meta(max_length=MEMBERS_MAX)]


_states: Final = msgspec.msgpack.Decoder(_State)


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
        self._numbers = Numbers()

    def is_new(self, key: tuple[str, int, int]) -> bool:
        """Whether an entry would be done now; else it was, or never will be."""
        return self._numbers.judge(*key) is Verdict.DO

    def execute(self, entry: AnyEntry) -> bool:
        """Whether it was done now."""
        if self._numbers.execute(*entry.key) is not Verdict.DO:
            return False
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
        return self._numbers.epoch_of(origin)

    def encode(self) -> bytes:
        """Equal states give equal bytes."""
        wishes = tuple((name, *wish) for name, wish in sorted(self.wishes.items()))
        here = (self.index, self.generation, self.engine, self.place, self.reason)
        return encode(_State(*here, self._numbers.rows(), wishes))

    @classmethod
    def decode(cls, data: bytes) -> Ledger:
        """Raises: WireError."""
        try:
            state = _states.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise WireError(f"not a ledger: {error}") from error
        made = cls(state.engine, state.place)
        made.index, made.generation, made.reason = state.index, state.generation, state.reason
        made._numbers = Numbers(state.rows)
        made.wishes = {name: (engine, place, why) for name, engine, place, why in state.wishes}
        return made
