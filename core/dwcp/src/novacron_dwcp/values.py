"""What the modules of the protocol share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Protocol

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


class LinkBroken(Exception):
    """The path to the peer broke, or the link was closed.

    Attributes:
        mendable: Whether trying again may help; False if the peer is the wrong one.
    """

    mendable: ClassVar[bool] = True


class ByteStream(Protocol):
    """What a link needs of a stream, which must be secured. Failures raise LinkBroken."""

    def send(self, buffers: Sequence[Buffer]) -> None: ...

    def receive_into(self, buffer: memoryview) -> int: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


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
