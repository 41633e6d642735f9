"""The register as members that may lie have it: who said a thing decides whether it is done.

A log of such members agrees on what was said, not on whether it was right. Two things must not be
left to each member's honesty:

- A member is a client of the register in its own name only. Otherwise one could use up another's
  request numbers, and lock it out for good.
- A record is changed, given away or removed by its owner alone; a new one names who writes it. So a
  liar can lose only what it has.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from novacron_agreement.ownership import (
    Advance,
    Forget,
    Outcome,
    OwnershipMachine,
    decode,
    refuse,
)

Writers = Literal["owner", "member"]


class _Said(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A command, and the member that has signed it."""

    origin: str
    command: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_said: Final = msgspec.msgpack.Decoder(_Said)


def said_by(origin: str, command: bytes) -> bytes:
    """A command as `JudgedRegister` takes it. It goes no further than this process."""
    return _encode(_Said(origin, command))


class JudgedRegister(OwnershipMachine):
    """See the module.

    Args:
        writers: Who may change a record: its owner, or every member. On all members the same.
    """

    __slots__ = ("_writers",)

    def __init__(self, writers: Writers) -> None:
        super().__init__()
        self._writers = writers

    def apply(self, index: int, command: bytes) -> bytes:
        said = _said.decode(command)
        asked = decode(said.command)
        if asked is not None and asked.client != said.origin:
            return refuse(f"{said.origin} asked in the name of {asked.client!r:.40}")
        return super().apply(index, said.command)

    def _do(self, asked: Advance | Forget) -> bytes:
        # Within what is done once: a request that is repeated gets the answer that it had.
        if self._writers == "owner":
            if isinstance(asked, Forget):
                present = self.read(asked.machine)
                foreign = present is not None and present.epoch == asked.epoch
            else:
                present = self.read(asked.record.machine)
                foreign = present != asked.record
            if present is None and isinstance(asked, Advance):
                if asked.record.owner != asked.client:
                    return refuse(f"a new record is its writer's, and {asked.client} is not")
            elif present is not None and foreign and present.owner != asked.client:
                return _encode(Outcome(False, present))
        return super()._do(asked)
