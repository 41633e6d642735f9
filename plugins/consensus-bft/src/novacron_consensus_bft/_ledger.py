"""The core's own replicated state: who takes part, and which requests were done already.

A request stands in the chain more than once when its origin asked again, or when a leader repeats
it. Each origin numbers its requests, so a floor and the few done above it say which were done.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Final

import msgspec
from attrs import define
from msgspec import Meta

from novacron_consensus_bft._wire import (
    Change,
    Digest,
    Members,
    Name,
    Number,
    Request,
    WireError,
    encode,
)

# How far a request's number may be above the first that is not done: what one origin may have
# under way, and what the ledger and the pool keep of it at the most.
WINDOW: Final = 256


class Verdict(Enum):
    DO = "do"
    DONE = "done"  # it was done before
    REFUSE = "refuse"  # of an earlier life of its origin, or too far ahead


class Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One origin: all numbers up to ``floor`` are done, and those in ``above``."""

    origin: Name
    epoch: Number
    floor: Number
    above: Annotated[tuple[Number, ...], Meta(max_length=WINDOW)]


class _State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    index: Number
    era: Number
    before: Digest
    members: Members
    rows: Annotated[tuple[Row, ...], Meta(max_length=4096)]


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
        era: The present one.
        before: Digest of the block whose change began the era (the cluster's for era 0).
        members: The era's.
    """

    def __init__(self, before: bytes, members: Members) -> None:
        self.index = 0
        self.era = 0
        self.before = before
        self.members = members
        self._origins: dict[str, _Origin] = {}

    def judge(self, request: Request) -> Verdict:
        """What becomes of a request if it is executed now."""
        known = self._origins.get(request.origin)
        epoch, floor = (known.epoch, known.floor) if known else (0, 0)
        if request.epoch < epoch:
            return Verdict.REFUSE
        if known is None or request.epoch > epoch:
            return Verdict.DO if 1 <= request.number <= WINDOW else Verdict.REFUSE
        if request.number <= floor or request.number in known.above:
            return Verdict.DONE
        return Verdict.DO if request.number <= floor + WINDOW else Verdict.REFUSE

    def execute(self, request: Request) -> Verdict:
        """Judge it, and if it is to be done, count it as done."""
        verdict = self.judge(request)
        if verdict is not Verdict.DO:
            return verdict
        row = self._origins.get(request.origin)
        if row is None or row.epoch < request.epoch:
            row = self._origins[request.origin] = _Origin(request.epoch, 0, set())
        row.above.add(request.number)
        while row.floor + 1 in row.above:
            row.floor += 1
            row.above.discard(row.floor)
        if not request.marker:
            self.index += 1
        return verdict

    def change(self, change: Change, digest: bytes) -> None:
        """A new era begins. Origins that left are forgotten: they can ask for nothing any more."""
        self.era += 1
        self.before = digest
        self.members = change.members
        names = {member.name for member in change.members}
        self._origins = {name: row for name, row in self._origins.items() if name in names}

    def epoch_of(self, origin: str) -> int:
        row = self._origins.get(origin)
        return row.epoch if row else 0

    def encode(self) -> bytes:
        """Equal states give equal bytes."""
        rows = tuple(
            Row(name, row.epoch, row.floor, tuple(sorted(row.above)))
            for name, row in sorted(self._origins.items())
        )
        return encode(_State(self.index, self.era, self.before, self.members, rows))

    @classmethod
    def decode(cls, data: bytes) -> Ledger:
        """Raises: WireError."""
        try:
            state = _states.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise WireError(f"not a ledger: {error}") from error
        made = cls(state.before, state.members)
        made.index, made.era = state.index, state.era
        for row in state.rows:
            made._origins[row.origin] = _Origin(row.epoch, row.floor, set(row.above))
        return made
