"""What the modules of the protocol share."""

from __future__ import annotations

from typing import Final

from attrs import frozen

Buffer = bytes | bytearray | memoryview

# What a batch may hold at the most, whatever the peer claims.
BATCH_BYTES_MAX: Final = 4 << 20


class ProtocolError(Exception):
    """The peer broke the protocol's rules. The stream is to be closed and not used again.

    Args:
        message: What it did.
        hint: What to do about it, if there is something.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@frozen(kw_only=True)
class Ownership:
    """One machine's owner.

    Attributes:
        machine: The machine's name.
        owner: The node that may run it, and the only one.
        epoch: The fencing token: every change of owner raises it, so a stale owner is known by it.
        session: The migration session that made this record, empty if none did.
    """

    machine: str
    owner: str
    epoch: int
    session: str = ""
