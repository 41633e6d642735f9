"""The link: frames in order, acknowledged, striped over streams, and sent again when one breaks.

Each side numbers its frames and keeps them until the other has taken them (not merely received:
an acknowledgement is sent when a batch is written to the machine, so memory is bounded end to
end). A frame goes out on whichever stream is free; the receiver puts them back in order. When a
stream breaks, what it carried and the peer has not got is sent again, and nothing else.
The wire format is stated in ``docs/protocol.md``.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Sequence
from enum import IntEnum
from heapq import heappop, heappush
from typing import Final

import msgspec
from attrs import define, field, frozen

from novacron_dwcp.values import BATCH_BYTES_MAX, Buffer, ProtocolError

# The newest version of the protocol that is spoken here, and the oldest. Since 3, the two sides of
# a link agree on the newest that both speak; a node of version 2 refuses every other one.
VERSION: Final = 3
OLDEST: Final = 2
# From this one on, a peer can be asked what would stand in the way of a machine's coming, and
# knows that disks may come along.
EXAMINES: Final = 3
HEADER: Final = struct.Struct(">IBxxxQ")  # payload length, kind, sequence
_NUMBER: Final = struct.Struct(">Q")
_RANGE: Final = struct.Struct(">QQ")
# A batch, the little that an encoder may add to what it cannot shrink, and its digest.
FRAME_BYTES_MAX: Final = BATCH_BYTES_MAX + (128 << 10)
GREETING_BYTES_MAX: Final = 2 << 10
MESSAGE_FRAME_BYTES_MAX: Final = 16 << 20
CHANNEL_BYTES_MAX: Final = 64  # the name of what a channel is for
# So many runs of frames that came early are told at the most; untold ones may be sent again.
RANGES_MAX: Final = 32
ACK_BYTES_MAX: Final = _NUMBER.size + RANGES_MAX * _RANGE.size
# No honest receiver asks for more; it bounds what a sender keeps.
WINDOW_BYTES_MAX: Final = 1 << 30
STREAMS_MAX: Final = 64
# Parts of one batch: small ones, even empty ones, must not add up without end.
PARTS_MAX: Final = 512
# How far a frame may be ahead of the one that is due, and what messages may wait for their turn.
AHEAD_MAX: Final = 1 << 16
EARLY_MESSAGE_BYTES_MAX: Final = 2 * MESSAGE_FRAME_BYTES_MAX
# A message up to this size goes out on every stream, so that one lost packet does not delay it.
BROADCAST_BYTES_MAX: Final = 32 << 10


class Kind(IntEnum):
    HELLO = 1
    WELCOME = 2
    MESSAGE = 3
    DATA = 4
    ACK = 5
    GOODBYE = 6
    PART = 7
    CHANNEL = 8


# What counts against the window, and what has a number.
BULK: Final = frozenset({Kind.DATA, Kind.PART})
NUMBERED: Final = BULK | {Kind.MESSAGE}
_LONGEST: Final = {
    Kind.HELLO: GREETING_BYTES_MAX,
    Kind.WELCOME: GREETING_BYTES_MAX,
    Kind.MESSAGE: MESSAGE_FRAME_BYTES_MAX,
    Kind.DATA: FRAME_BYTES_MAX,
    Kind.ACK: ACK_BYTES_MAX,
    Kind.GOODBYE: 0,
    Kind.PART: FRAME_BYTES_MAX,
    Kind.CHANNEL: CHANNEL_BYTES_MAX,
}

Ranges = tuple[tuple[int, int], ...]


class Greeting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The payload of HELLO and WELCOME, MessagePack.

    Attributes:
        version: Of this protocol. HELLO: the newest that may be used; WELCOME: the one that is.
        link: 16 random bytes that name the link; only its two nodes know them.
        session: The migration session, empty for a link that only asks.
        expects: The number of the next frame that this side wants: it has all before.
        received: Runs of frames beyond that which are here too, first and last of each.
        window: Bytes of DATA that this side is ready to hold.
        stream: HELLO only: the stream's number, from 1, never used twice.
        replaces: HELLO only: the number of a stream that is dead; 0 if there is none.
        known: WELCOME only: whether the link was known; if not, both begin from nothing.
    """

    version: int
    link: bytes
    session: str
    expects: int
    window: int
    received: Ranges = ()
    stream: int = 0
    replaces: int = 0
    known: bool = False


class _Newer(Greeting, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A greeting of a newer version: it has all that this one has, and more."""


_greetings: Final = msgspec.msgpack.Decoder(Greeting)
_newer_greetings: Final = msgspec.msgpack.Decoder(_Newer)


@frozen
class Frame:
    """``sequence`` counts MESSAGE and DATA from 1; in an ACK it is the last one taken, in a
    GOODBYE the last one that there is.

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


@frozen
class Ack:
    """What an ACK says.

    Attributes:
        taken: All frames up to this one have been dealt with.
        arrived: All up to this one are there.
        received: Runs of frames beyond that which are there too.
    """

    taken: int
    arrived: int
    received: Ranges = ()

    def frame(self) -> Frame:
        payload = _NUMBER.pack(self.arrived) + b"".join(_RANGE.pack(*run) for run in self.received)
        return Frame(Kind.ACK, self.taken, payload)


def parse_head(head: Buffer) -> tuple[Kind, int, int]:
    """Kind, sequence and payload length, bounded before anything is allocated.

    Raises: ProtocolError for an unknown kind or a length that the kind does not allow.
    """
    length, number, sequence = HEADER.unpack(head)
    try:
        kind = Kind(number)
    except ValueError:
        raise ProtocolError(f"unknown frame kind {number}") from None
    if length > _LONGEST[kind]:
        raise ProtocolError(f"a {kind.name} frame of {length} bytes is too long")
    return kind, sequence, length


def parse_ack(frame: Frame) -> Ack:
    """Raises: ProtocolError for an ACK that contradicts itself."""
    size = len(frame.payload)
    if size < _NUMBER.size or (size - _NUMBER.size) % _RANGE.size or size > ACK_BYTES_MAX:
        raise ProtocolError(f"an ACK frame of {size} bytes")
    (arrived,) = _NUMBER.unpack_from(frame.payload)
    received = tuple(_RANGE.iter_unpack(memoryview(frame.payload)[_NUMBER.size :]))
    if frame.sequence > arrived or not _sound(arrived, received):
        raise ProtocolError("an acknowledgement that contradicts itself")
    return Ack(frame.sequence, arrived, received)


def _sound(arrived: int, received: Ranges) -> bool:
    """Whether the runs are in order, apart from each other, and not joined to what arrived."""
    last = arrived
    for first, end in received:
        if not last + 1 < first <= end:
            return False
        last = end
    return len(received) <= RANGES_MAX


def parse_greeting(payload: Buffer, newest: int = VERSION) -> Greeting:
    """A greeting of a version that can be spoken, or that is newer than ``newest``.

    Raises: ProtocolError for anything else. A node that is held at version 2 refuses newer ones.
    """
    try:
        version = msgspec.msgpack.decode(payload, type=_Versioned).version
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a greeting: {error}") from error
    if version < OLDEST or (newest == OLDEST and version != OLDEST):
        raise ProtocolError(
            f"the peer speaks version {version} of the protocol, this node {OLDEST} to {newest}",
            hint="upgrade the older of the two nodes",
        )
    try:
        decoder = _newer_greetings if version > newest else _greetings
        greeting: Greeting = decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a greeting: {error}") from error
    sound = (
        greeting.expects >= 1
        and greeting.window >= 0
        and greeting.stream >= 0
        and greeting.replaces >= 0
        and _sound(greeting.expects - 1, greeting.received)
    )
    if len(greeting.link) != 16 or len(greeting.session) > 128 or not sound:
        raise ProtocolError("a greeting with impossible values")
    return greeting


class _Versioned(msgspec.Struct):
    """What greetings of all versions have."""

    version: int


@define
class LinkCore:
    """One side of a link, without I/O.

    Attributes:
        link: The link's name, 16 bytes.
        session: What it is for.
        window: Bytes of DATA that this side is ready to hold.
        version: Of the protocol; until the peer has answered, the newest that may be used.
        peer_window: The same of the peer, from its greeting.
        resent_bytes: Of frames that were sent again.
        duplicates: Frames that came again and were dropped.
    """

    link: bytes
    session: str
    window: int
    version: int = VERSION
    peer_window: int = 0
    resent_bytes: int = field(default=0, init=False)
    duplicates: int = field(default=0, init=False)
    # Sending. A frame is kept from its number on until the peer has taken it. Until a stream has
    # taken it, it is in _outbox; if its streams are lost, it goes by _orphans to _again.
    _next: int = field(default=1, init=False)
    _first: int = field(default=1, init=False)
    _kept: dict[int, Frame] = field(factory=dict, init=False)
    _kept_bytes: int = field(default=0, init=False)
    _outbox: deque[Frame] = field(factory=deque, init=False)
    _unsent: int = field(default=0, init=False)
    _again: list[int] = field(factory=list, init=False)
    _orphans: dict[int, float] = field(factory=dict, init=False)
    # By stream: what goes out on it besides what it takes from the outbox.
    _broadcast: dict[int, deque[Frame]] = field(factory=dict, init=False)
    _carriers: dict[int, set[int]] = field(factory=dict, init=False)
    # What the peer has got: everything up to _arrived_there, and these.
    _arrived_there: int = field(default=0, init=False)
    _confirmed: set[int] = field(factory=set, init=False)
    # Receiving. What came early waits for its turn; what was handed on waits to be taken.
    _expects: int = field(default=1, init=False)
    _taken: int = field(default=0, init=False)
    _early: dict[int, Frame] = field(factory=dict, init=False)
    _early_message_bytes: int = field(default=0, init=False)
    _untaken: dict[int, int] = field(factory=dict, init=False)
    _held: int = field(default=0, init=False)

    # Streams.

    def greeting(
        self, *, known: bool = False, stream: int = 0, replaces: int = 0, version: int = 0
    ) -> Frame:
        """What to say first on a new stream; ``known`` makes it a WELCOME that knows the link.
        ``version`` is proposed instead of the link's."""
        greeting = Greeting(
            version=version or self.version,
            link=self.link,
            session=self.session,
            expects=self._expects,
            received=self._runs(),
            window=self.window,
            stream=stream,
            replaces=replaces,
            known=known,
        )
        return Frame(Kind.HELLO, 0, msgspec.msgpack.encode(greeting))

    def opened(self, stream: int, greeting: Greeting) -> None:
        """A stream is there, and the peer has said on it what it has got.

        Raises: ProtocolError if the peer has got what was never sent.
        """
        self._learn(greeting.expects - 1, greeting.received)
        self.peer_window = min(greeting.window, WINDOW_BYTES_MAX)
        self._broadcast[stream] = deque()
        # What the peer says now it said after the streams that are lost were lost.
        self._send_again(list(self._orphans))

    def lost(self, stream: int, due_s: float) -> None:
        """A stream is gone. What only it carried is sent again at that time, or when a new stream's
        greeting has said what did arrive, whichever comes first."""
        self._broadcast.pop(stream, None)
        for number, carriers in self._carriers.items():
            if stream in carriers:
                carriers.discard(stream)
                if not carriers:
                    self._orphans[number] = due_s

    def settle(self, now_s: float) -> float | None:
        """Queue again what is due; when to call next, if ever."""
        self._send_again([number for number, due in self._orphans.items() if due <= now_s])
        return min(self._orphans.values(), default=None)

    def _send_again(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            del self._orphans[number]
            self._carriers.pop(number, None)
            if number in self._kept and not self._arrived(number):
                heappush(self._again, number)
                self._unsent += self._kept[number].size

    # Sending.

    def room(self, size: int) -> bool:
        """Whether the peer can hold that many bytes more. One frame always fits an empty window."""
        if self.outstanding >= AHEAD_MAX // 2:
            return False
        return not self._kept_bytes or self._kept_bytes + size <= min(self.window, self.peer_window)

    def number(self, kind: Kind, payload: Buffer, lead: bytes = b"") -> Frame:
        """A numbered frame to send; it is kept until it is acknowledged."""
        frame = Frame(kind, self._next, payload, lead)
        self._next += 1
        self._kept[frame.sequence] = frame
        self._kept_bytes += frame.size if kind in BULK else 0
        if kind is Kind.MESSAGE and frame.size <= BROADCAST_BYTES_MAX and self._broadcast:
            for queue in self._broadcast.values():
                queue.append(frame)
            self._carriers[frame.sequence] = set(self._broadcast)
        else:
            self._outbox.append(frame)
            self._unsent += frame.size
        return frame

    def number_batch(self, payload: Buffer, lead: bytes, part_bytes: int) -> None:
        """A batch to send, in parts of about that size, so that several streams can carry it."""
        view = memoryview(payload)
        while len(view) > part_bytes * 3 // 2:
            self.number(Kind.PART, view[:part_bytes], lead)
            view, lead = view[part_bytes:], b""
        self.number(Kind.DATA, view if view.nbytes < len(payload) else payload, lead)

    def waits(self, stream: int, *, data: bool = True) -> bool:
        """Whether there is something to send on a stream; ``data`` as for `take_out`."""
        return bool(self._broadcast.get(stream)) or (
            data and bool(self._again or self._outbox) and stream in self._broadcast
        )

    def take_out(self, stream: int, size: int, *, data: bool = True) -> list[Frame]:
        """The frames to send on a stream now, at least one if there is any and up to a size.

        Args:
            data: False for a stream that is to carry messages only.
        """
        taken: list[Frame] = []
        queue = self._broadcast.get(stream)
        if queue is None:
            return taken
        while queue:
            frame = queue.popleft()
            if frame.sequence in self._kept and not self._arrived(frame.sequence):
                taken.append(frame)
                size -= frame.size
        while data and size > 0 and (one := self._take_one()) is not None:
            self._carriers[one.sequence] = {stream}
            taken.append(one)
            size -= one.size
        return taken

    def _take_one(self) -> Frame | None:
        while self._again:
            number = heappop(self._again)
            frame = self._kept.get(number)
            if frame is not None:
                self._unsent -= frame.size
                if not self._arrived(number):
                    self.resent_bytes += HEADER.size + frame.size
                    return frame
        if self._outbox:
            frame = self._outbox.popleft()
            self._unsent -= frame.size
            return frame
        return None

    def acknowledged(self, ack: Ack) -> None:
        """The peer has said what it has taken, and what it has got.

        Raises: ProtocolError if it was never sent.
        """
        self._learn(ack.arrived, ack.received)
        while self._first <= ack.taken:
            frame = self._kept.pop(self._first)
            self._confirmed.discard(self._first)
            self._carriers.pop(self._first, None)
            if self._orphans:
                self._orphans.pop(self._first, None)
            if self._again and self._first in self._again:
                # Sent again, and the first one had come after all.
                self._again = sorted(number for number in self._again if number != self._first)
                self._unsent -= frame.size
            self._kept_bytes -= frame.size if frame.kind in BULK else 0
            self._first += 1

    def _learn(self, arrived: int, received: Ranges) -> None:
        last = received[-1][1] if received else arrived
        # Messages may be ahead of what waits in the outbox, but nothing without a gap before them.
        unsent = self._outbox[0].sequence if self._outbox else self._next
        if last >= self._next or arrived >= unsent:
            last = arrived if arrived >= unsent else last
            raise ProtocolError(f"frame {last} is acknowledged and was never sent")
        self._arrived_there = max(self._arrived_there, arrived)
        for first, end in received:
            self._confirmed.update(range(max(first, self._arrived_there + 1), end + 1))

    def _arrived(self, number: int) -> bool:
        return number <= self._arrived_there or number in self._confirmed

    @property
    def outstanding(self) -> int:
        """Frames that the peer has not taken."""
        return self._next - self._first

    @property
    def last(self) -> int:
        """The number of the last frame that there is."""
        return self._next - 1

    @property
    def unsent_bytes(self) -> int:
        """Of frames that no stream has taken yet."""
        return self._unsent

    @property
    def unacknowledged_bytes(self) -> int:
        """Of DATA that the peer has not taken."""
        return self._kept_bytes

    # Receiving.

    def received(self, frame: Frame) -> Sequence[Frame]:
        """The frames whose turn it is now that this one has come; none if it came before.

        Raises: ProtocolError if the peer sends more than the window, or too far ahead.
        """
        sequence, size = frame.sequence, frame.size
        if sequence < self._expects or sequence in self._early:
            self.duplicates += 1
            return ()
        if sequence - self._expects >= AHEAD_MAX:
            raise ProtocolError(f"frame {sequence} came where {self._expects} was due")
        if frame.kind in BULK:
            if self._held + size > self.window + FRAME_BYTES_MAX:
                raise ProtocolError(f"the peer sent more than the window of {self.window} bytes")
            self._held += size
        else:
            if self._early_message_bytes + size > EARLY_MESSAGE_BYTES_MAX:
                raise ProtocolError("the peer sent too many messages ahead of their turn")
            self._early_message_bytes += size
        self._early[sequence] = frame
        ready = []
        while (due := self._early.pop(self._expects, None)) is not None:
            self._untaken[self._expects] = due.size if due.kind in BULK else 0
            if due.kind is Kind.MESSAGE:
                self._early_message_bytes -= due.size
            self._expects += 1
            ready.append(due)
        return ready

    def taken(self, sequence: int) -> bool:
        """A frame has been dealt with; whether that is news for the peer."""
        self._held -= self._untaken.pop(sequence, 0)
        before = self._taken
        while self._taken + 1 < self._expects and self._taken + 1 not in self._untaken:
            self._taken += 1
        return self._taken > before

    def ack(self) -> Ack:
        """What to acknowledge now."""
        return Ack(self._taken, self._expects - 1, self._runs())

    @property
    def arrived(self) -> int:
        """All frames up to this one are here."""
        return self._expects - 1

    def _runs(self) -> Ranges:
        runs: list[tuple[int, int]] = []
        for number in sorted(self._early):
            if runs and runs[-1][1] + 1 == number:
                runs[-1] = runs[-1][0], number
            elif len(runs) == RANGES_MAX:
                break
            else:
                runs.append((number, number))
        return tuple(runs)


@define
class Assembly:
    """Puts the parts of batches together, in the order of their numbers."""

    _parts: list[Frame] = field(factory=list, init=False)
    _size: int = field(default=0, init=False)
    _made_of: dict[int, tuple[int, ...]] = field(factory=dict, init=False)

    def add(self, frame: Frame) -> Frame | None:
        """The batch that is whole with this part, under the number of its last part.

        Raises: ProtocolError for a batch that is too large, or in too many parts.
        """
        self._parts.append(frame)
        self._size += frame.size
        if self._size > FRAME_BYTES_MAX:
            raise ProtocolError(f"a batch of more than {FRAME_BYTES_MAX} bytes, in parts")
        if len(self._parts) > PARTS_MAX:
            raise ProtocolError(f"a batch in more than {PARTS_MAX} parts")
        if frame.kind is Kind.PART:
            return None
        parts, self._parts, self._size = self._parts, [], 0
        if len(parts) == 1:
            return frame
        self._made_of[frame.sequence] = tuple(part.sequence for part in parts)
        return Frame(Kind.DATA, frame.sequence, b"".join(part.payload for part in parts))

    def parts_of(self, batch: Frame) -> tuple[int, ...]:
        """The numbers that a batch is taken with."""
        return self._made_of.pop(batch.sequence, (batch.sequence,))


@define
class Meter:
    """A rate limit, without I/O: a frame may go whenever those before it are paid for."""

    bytes_per_s: float | None = None
    _free_at_s: float = field(default=0.0, init=False)

    def wait_s(self, now_s: float) -> float:
        """How long the next frame has to wait."""
        return 0.0 if self.bytes_per_s is None else max(0.0, self._free_at_s - now_s)

    def spend(self, size: int, now_s: float) -> None:
        if self.bytes_per_s is not None:
            self._free_at_s = max(self._free_at_s, now_s) + size / self.bytes_per_s

    def limit(self, bytes_per_s: float | None, now_s: float) -> None:
        """Another rate from now on; a debt of the old one is kept for a second at the most."""
        self.bytes_per_s = bytes_per_s
        self._free_at_s = min(self._free_at_s, now_s + 1.0)
