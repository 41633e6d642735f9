"""Which of the entries that each member numbers were done already.

An entry may stand in a log more than once: its origin asked again, or a leader repeated it. An
origin numbers its entries from 1 in each of its lives (epochs), so a floor and the few numbers done
above it tell which were done. This is part of a replicated state: equal states give equal rows.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from enum import Enum
from typing import Annotated, Final

import msgspec
from attrs import define
from msgspec import Meta

from novacron_agreement.effects import NAME_CHARS_MAX

# How far an entry's number may be above the first one of its origin that is not done: what an
# origin may have under way, and what is kept of it at the most.
WINDOW: Final = 256
NUMBER_MAX: Final = 2**62

_Number = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]


class Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One origin: all numbers up to ``floor`` are done, and those in ``above``."""

    origin: Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
    epoch: _Number
    floor: _Number
    above: Annotated[tuple[_Number, ...], Meta(max_length=WINDOW)]


class Verdict(Enum):
    """What becomes of an entry if it is executed now."""

    DO = "do"
    DONE = "done"  # it was done before
    REFUSE = "refuse"  # of an earlier life of its origin, or too far ahead


@define
class _Origin:
    epoch: int
    floor: int
    above: set[int]


class Numbers:
    """See the module."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._origins = {row.origin: _Origin(row.epoch, row.floor, set(row.above)) for row in rows}

    def judge(self, origin: str, epoch: int, number: int) -> Verdict:
        row = self._origins.get(origin)
        known = row.epoch if row else 0
        if epoch < known:
            return Verdict.REFUSE
        if row is None or epoch > known:
            return Verdict.DO if 1 <= number <= WINDOW else Verdict.REFUSE
        if number <= row.floor or number in row.above:
            return Verdict.DONE
        return Verdict.DO if number <= row.floor + WINDOW else Verdict.REFUSE

    def execute(self, origin: str, epoch: int, number: int) -> Verdict:
        """Judge an entry, and if it is to be done, count it as done."""
        verdict = self.judge(origin, epoch, number)
        if verdict is not Verdict.DO:
            return verdict
        row = self._origins.get(origin)
        if row is None or row.epoch < epoch:
            row = self._origins[origin] = _Origin(epoch, 0, set())
        row.above.add(number)
        while row.floor + 1 in row.above:
            row.floor += 1
            row.above.discard(row.floor)
        return verdict

    def keep(self, origins: Container[str]) -> None:
        """Forget all other origins: they can ask for nothing any more."""
        self._origins = {name: row for name, row in self._origins.items() if name in origins}

    def epoch_of(self, origin: str) -> int:
        """The newest life of an origin that has had something done; 0 if there is none."""
        row = self._origins.get(origin)
        return row.epoch if row else 0

    def rows(self) -> tuple[Row, ...]:
        return tuple(
            Row(name, row.epoch, row.floor, tuple(sorted(row.above)))
            for name, row in sorted(self._origins.items())
        )
