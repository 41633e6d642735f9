"""The link: frames in order, acknowledged, and sent again over a new stream when one breaks.

Each side numbers its frames and keeps them until the other has taken them (not merely received:
an acknowledgement is sent when a batch is written to the machine, so memory is bounded end to
end). After a break the dialling side connects anew and both say which frame they want next.
The wire format is stated in ``docs/protocol.md``.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import msgspec
from attrs import define, field, frozen

from novacron_dwcp.values import BATCH_BYTES_MAX, Buffer, ProtocolError

VERSION: Final = 1
HEADER: Final = struct.Struct(">IBxxxQ")  # payload length, kind, sequence
# A batch, the little that an encoder may add to what it cannot shrink, and its digest.
FRAME_BYTES_MAX: Final = BATCH_BYTES_MAX + (128 << 10)
GREETING_BYTES_MAX: Final = 1 << 10
# No honest receiver asks for more; it bounds what a sender keeps.
WINDOW_BYTES_MAX: Final = 1 << 30


class Kind(IntEnum):
    HELLO = 1
    WELCOME = 2
    MESSAGE = 3
    DATA = 4
    ACK = 5
    GOODBYE = 6


NUMBERED: Final = frozenset({Kind.MESSAGE, Kind.DATA})


class Greeting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The payload of HELLO and WELCOME, MessagePack.

    Attributes:
        version: Of this protocol; both must have the same.
        link: 16 random bytes that name the link; only its two nodes know them.
        session: The migration session, empty for a link that only asks.
        expects: The number of the next frame that this side wants.
        window: Bytes of DATA that this side is ready to hold.
        known: WELCOME only: whether the link was known; if not, both begin from nothing.
    """

    version: int
    link: bytes
    session: str
    expects: int
    window: int
    known: bool = False


_greetings: Final = msgspec.msgpack.Decoder(Greeting)


@frozen
class Frame:
    """``sequence`` counts MESSAGE and DATA from 1; in an ACK it is the last one taken.

    ``lead`` are the first bytes of a payload to send, apart so that the rest need not be copied.
    """

    kind: Kind
    sequence: int
    payload: Buffer = b""
    lead: bytes = b""

    @property
    def size(self) -> int:
        return len(self.lead) + len(self.payload)

    def head(self) -> bytes:
        return HEADER.pack(self.size, self.kind, self.sequence) + self.lead


def parse_head(head: Buffer) -> tuple[Kind, int, int]:
    """Kind, sequence and payload length, bounded before anything is allocated.

    Raises: ProtocolError for an unknown kind or a length that the kind does not allow.
    """
    length, number, sequence = HEADER.unpack(head)
    try:
        kind = Kind(number)
    except ValueError:
        raise ProtocolError(f"unknown frame kind {number}") from None
    limit = {Kind.DATA: FRAME_BYTES_MAX, Kind.MESSAGE: 1 << 20, Kind.ACK: 0, Kind.GOODBYE: 0}
    if length > limit.get(kind, GREETING_BYTES_MAX):
        raise ProtocolError(f"a {kind.name} frame of {length} bytes is too long")
    return kind, sequence, length


def parse_greeting(payload: Buffer) -> Greeting:
    """Raises: ProtocolError for anything but a greeting of this version."""
    try:
        greeting = _greetings.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a greeting: {error}") from error
    if greeting.version != VERSION:
        raise ProtocolError(
            f"the peer speaks version {greeting.version} of the protocol, and this node {VERSION}",
            hint="run the same release of NovaCron on both nodes",
        )
    sound = greeting.expects >= 1 and greeting.window >= 0
    if len(greeting.link) != 16 or len(greeting.session) > 128 or not sound:
        raise ProtocolError("a greeting with impossible values")
    return greeting


@define
class LinkCore:
    """One side of a link, without I/O.

    Attributes:
        link: The link's name, 16 bytes.
        session: What it is for.
        window: Bytes of DATA that this side is ready to hold.
        peer_window: The same of the peer, from its greeting.
    """

    link: bytes
    session: str
    window: int
    peer_window: int = 0
    _kept: deque[Frame] = field(factory=deque, init=False)
    _kept_bytes: int = field(default=0, init=False)
    _next: int = field(default=1, init=False)
    _expects: int = field(default=1, init=False)
    _taken: int = field(default=0, init=False)
    _held_bytes: dict[int, int] = field(factory=dict, init=False)
    _held: int = field(default=0, init=False)

    def greeting(self, *, known: bool = False) -> Frame:
        """What to say first on a new stream; ``known`` makes it a WELCOME that knows the link."""
        greeting = Greeting(
            version=VERSION,
            link=self.link,
            session=self.session,
            expects=self._expects,
            window=self.window,
            known=known,
        )
        return Frame(Kind.HELLO, 0, msgspec.msgpack.encode(greeting))

    def resume(self, greeting: Greeting) -> Sequence[Frame]:
        """The frames to send again on a new stream, in order.

        Raises: ProtocolError if the peer wants frames that it has acknowledged, or that were
        never sent.
        """
        first = self._kept[0].sequence if self._kept else self._next
        if not first <= greeting.expects <= self._next:
            raise ProtocolError(
                f"the peer wants frame {greeting.expects}, and {first} to {self._next} are possible"
            )
        self.peer_window = min(greeting.window, WINDOW_BYTES_MAX)
        return [frame for frame in self._kept if frame.sequence >= greeting.expects]

    def room(self, size: int) -> bool:
        """Whether the peer can hold that many bytes more. One frame always fits an empty window."""
        return not self._kept_bytes or self._kept_bytes + size <= min(self.window, self.peer_window)

    def number(self, kind: Kind, payload: Buffer, lead: bytes = b"") -> Frame:
        """A numbered frame to send; it is kept until it is acknowledged."""
        frame = Frame(kind, self._next, payload, lead)
        self._next += 1
        self._kept.append(frame)
        self._kept_bytes += frame.size if kind is Kind.DATA else 0
        return frame

    def acknowledged(self, sequence: int) -> None:
        """The peer has taken all frames up to that one.

        Raises: ProtocolError if it was never sent.
        """
        if sequence >= self._next:
            raise ProtocolError(f"frame {sequence} is acknowledged and was never sent")
        while self._kept and self._kept[0].sequence <= sequence:
            frame = self._kept.popleft()
            self._kept_bytes -= frame.size if frame.kind is Kind.DATA else 0

    def received(self, kind: Kind, sequence: int, size: int) -> bool:
        """Whether a numbered frame is new (False: it was sent again, and is here already).

        Raises: ProtocolError for a gap, or if the peer sends more than the window.
        """
        if sequence < self._expects:
            return False
        if sequence > self._expects:
            raise ProtocolError(f"frame {sequence} came where {self._expects} was due")
        self._expects += 1
        self._held_bytes[sequence] = size if kind is Kind.DATA else 0
        self._held += self._held_bytes[sequence]
        if self._held > self.window + FRAME_BYTES_MAX:
            raise ProtocolError(f"the peer sent more than the window of {self.window} bytes")
        return True

    def taken(self, sequence: int) -> Frame | None:
        """A frame has been dealt with; the ACK to send, if all before it have been too."""
        self._held -= self._held_bytes.pop(sequence, 0)
        last = min(self._held_bytes, default=self._expects) - 1
        if last <= self._taken:
            return None
        self._taken = last
        return Frame(Kind.ACK, last)

    def last_ack(self) -> Frame:
        return Frame(Kind.ACK, self._taken)

    @property
    def outstanding(self) -> int:
        """Frames that the peer has not acknowledged."""
        return len(self._kept)
