"""The core's own replicated state: who takes part, and which requests were done already.

A request stands in the chain more than once when its origin asked again, or when a leader repeats
it. Each origin numbers its requests, so a floor and the few done above it say which were done.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta
from novacron_agreement.numbers import Numbers, Row, Verdict

from novacron_consensus_bft._wire import (
    Change,
    Digest,
    Members,
    Number,
    Request,
    WireError,
    encode,
)


class _State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    index: Number
    era: Number
    before: Digest
    members: Members
    rows: Annotated[tuple[Row, ...], Meta(max_length=4096)]


_states: Final = msgspec.msgpack.Decoder(_State)


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
        self._numbers = Numbers()

    def judge(self, request: Request) -> Verdict:
        """What becomes of a request if it is executed now."""
        return self._numbers.judge(request.origin, request.epoch, request.number)

    def execute(self, request: Request) -> Verdict:
        """Judge it, and if it is to be done, count it as done."""
        verdict = self._numbers.execute(request.origin, request.epoch, request.number)
        if verdict is not Verdict.DO:
            return verdict
        if not request.marker:
            self.index += 1
        return verdict

    def change(self, change: Change, digest: bytes) -> None:
        """A new era begins. Origins that left are forgotten: they can ask for nothing any more."""
        self.era += 1
        self.before = digest
        self.members = change.members
        self._numbers.keep({member.name for member in change.members})

    def epoch_of(self, origin: str) -> int:
        return self._numbers.epoch_of(origin)

    def encode(self) -> bytes:
        """Equal states give equal bytes."""
        return encode(_State(self.index, self.era, self.before, self.members, self._numbers.rows()))

    @classmethod
    def decode(cls, data: bytes) -> Ledger:
        """Raises: WireError."""
        try:
            state = _states.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise WireError(f"not a ledger: {error}") from error
        made = cls(state.before, state.members)
        made.index, made.era = state.index, state.era
        made._numbers = Numbers(state.rows)
        return made
