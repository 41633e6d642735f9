"""What replicas say to each other, as MessagePack behind a version and the cluster's mark.

Every message is bounded in all its parts; anything else is refused with a `WireError`.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from novacron_agreement import MESSAGE_BYTES_MAX

from novacron_consensus_state import _kinds
from novacron_consensus_state._values import NAME_CHARS_MAX, VALUE_BYTES_MAX

VERSION: Final = 1
MARK_BYTES: Final = 8
# The parts of a message that others build up to; a message has room for one longest event or page.
EVENT_BYTES_MAX: Final = 512 << 10
PAGE_BYTES_MAX: Final = 512 << 10
ORIGINS_MAX: Final = 4096
BRANCHES: Final = 64
LEAVES: Final = BRANCHES * BRANCHES
DIGEST_BYTES: Final = 8
_ROWS_MAX: Final = 65_536


class WireError(ValueError):
    """Bytes from a peer or a file that are no sound message. They change nothing."""


Number = Annotated[int, Meta(ge=1, le=1 << 53)]
Stamp = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Origin = Annotated[str, Meta(min_length=1, max_length=300)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Kind = Annotated[str, Meta(min_length=1, max_length=16)]
Part = Annotated[bytes, Meta(max_length=VALUE_BYTES_MAX)]
Value = Annotated[bytes, Meta(max_length=VALUE_BYTES_MAX + 16)]
Digest = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
Path = Annotated[tuple[Part, ...], Meta(max_length=_kinds.MAP_DEPTH_MAX)]
Dot = tuple[Origin, Number]
Vector = Annotated[dict[Origin, Number], Meta(max_length=ORIGINS_MAX)]
Ages = Annotated[dict[Origin, Annotated[int, Meta(ge=0)]], Meta(max_length=ORIGINS_MAX)]
Raw = Annotated[bytes, Meta(max_length=EVENT_BYTES_MAX)]
Index = Annotated[int, Meta(ge=0, lt=LEAVES)]
Session = Annotated[int, Meta(ge=0, le=1 << 53)]
Ticket = Annotated[int, Meta(ge=0, le=1 << 62)]
# A key, and the path behind which to go on in it; None: behind the whole key.
After = tuple[Name, Kind, Path | None]


class Event(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One change of one key.

    Attributes:
        origin: The replica that made it, or ``~log`` for what the replicated log has decided.
        number: Its number there, from 1 without gaps.
        stamp: Of the origin's hybrid clock.
        deps: What must have been seen before, as far as the origin's event before has not said it.
        name, kind: The key.
        adds: Rows that it writes, under its dot.
        drops: Rows that it takes away, by the dots of those who wrote them.
    """

    origin: Origin
    number: Number
    stamp: Stamp
    deps: Vector
    name: Name
    kind: Kind
    adds: Annotated[list[tuple[Path, Value]], Meta(max_length=_ROWS_MAX)]
    drops: Annotated[
        list[tuple[Path, Annotated[list[Dot], Meta(max_length=_ROWS_MAX)]]],
        Meta(max_length=_ROWS_MAX),
    ]


class State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A key's rows, or those with low < path <= high."""

    name: Name
    kind: Kind
    low: Path | None
    high: Path | None
    rows: Annotated[list[tuple[Path, Dot, Value]], Meta(max_length=_ROWS_MAX)]
    doomed: Annotated[list[tuple[Path, Dot]], Meta(max_length=_ROWS_MAX)]


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of all."""


class Events(Message, frozen=True, tag="e"):
    """Encoded events. ``urgent``: acknowledge at once; ``more``: there are more, ask again."""

    events: Annotated[list[Raw], Meta(max_length=16_384)]
    urgent: bool = False
    more: bool = False


class Ack(Message, frozen=True, tag="a"):
    """What is durable here."""

    vector: Vector


class Probe(Message, frozen=True, tag="p"):
    """I am here; answer with my stamp.

    Attributes:
        stamp: The sender's time in ms, to be echoed.
        vector: What is durable at the sender.
        floor: What all members of the sender's region have, as far as it knows.
        root: The digest over all keys of the sender.
    """

    stamp: Annotated[int, Meta(ge=0)]
    vector: Vector
    floor: Vector
    root: Digest


class Answer(Message, frozen=True, tag="q"):
    """The answer to a probe. ``ages``: for each other member, how long ago (ms, on the sender's
    clock) was the time up to which the sender has all of that member's events."""

    stamp: Annotated[int, Meta(ge=0)]
    vector: Vector
    floor: Vector
    root: Digest
    ages: Ages


class Pull(Message, frozen=True, tag="l"):
    """Send me what I have not seen."""

    after: Vector


class Offer(Message, frozen=True, tag="o"):
    """My recent events do not reach back to where you are: compare trees with me."""

    vector: Vector


class Compare(Message, frozen=True, tag="c"):
    """Send digests: of all branches (``branches`` empty), or of the leaves of these branches."""

    session: Session
    branches: Annotated[list[Index], Meta(max_length=BRANCHES)]


class Digests(Message, frozen=True, tag="d"):
    """Digests by branch (of all branches, under -1) in their order."""

    session: Session
    vector: Vector
    digests: Annotated[
        dict[
            Annotated[int, Meta(ge=-1, lt=BRANCHES)],
            Annotated[list[Digest], Meta(min_length=BRANCHES, max_length=BRANCHES)],
        ],
        Meta(max_length=BRANCHES + 1),
    ]


class Want(Message, frozen=True, tag="w"):
    """Send the keys of these leaves that differ from what I have: their digests by the key's."""

    session: Session
    leaves: Annotated[list[Index], Meta(max_length=LEAVES)]
    have: Annotated[dict[Digest, Digest], Meta(max_length=_ROWS_MAX)]
    after: After | None = None


class States(Message, frozen=True, tag="s"):
    """Keys that differ.

    Attributes:
        absent: The digests of keys that were named in the `Want`'s ``have`` and that the sender
            does not have at all.
        after: Where to go on, if there are more keys.
    """

    session: Session
    vector: Vector
    leaves: Annotated[list[Index], Meta(max_length=LEAVES)]
    states: Annotated[list[State], Meta(max_length=_ROWS_MAX)]
    absent: Annotated[list[Digest], Meta(max_length=_ROWS_MAX)] = []
    after: After | None = None


class Fetch(Message, frozen=True, tag="f"):
    """A quorum read: what do you have of this key?"""

    ticket: Ticket
    name: Name
    kind: Kind


class Fetched(Message, frozen=True, tag="g"):
    """The answer. ``whole``: False if the key is too large for a message."""

    ticket: Ticket
    vector: Vector
    states: Annotated[list[State], Meta(max_length=64)]
    whole: bool = True


class Forward(Message, frozen=True, tag="r"):
    """For the log's leader: commit this command, or (if empty) say when a read may be served."""

    ticket: Ticket
    command: Annotated[bytes, Meta(max_length=EVENT_BYTES_MAX)]


class Forwarded(Message, frozen=True, tag="t"):
    """The answer. ``number``: the log's event that must be seen; -1 if it was refused, and then
    perhaps who leads."""

    ticket: Ticket
    number: Annotated[int, Meta(ge=-1, le=1 << 53)]
    reason: Annotated[str, Meta(max_length=200)] = ""
    leader: Annotated[str, Meta(max_length=300)] = ""


class Log(Message, frozen=True, tag="x"):
    """A message of the replicated log's own protocol."""

    payload: Annotated[bytes, Meta(max_length=MESSAGE_BYTES_MAX)]


AnyMessage = (
    Events
    | Ack
    | Probe
    | Answer
    | Pull
    | Offer
    | Compare
    | Digests
    | Want
    | States
    | Fetch
    | Fetched
    | Forward
    | Forwarded
    | Log
)
# A log's longest message, and what stands around it.
WIRE_BYTES_MAX: Final = MESSAGE_BYTES_MAX + 64

_encoder: Final = msgspec.msgpack.Encoder()
# An event has the same bytes wherever it is made of the same parts.
_canonical: Final = msgspec.msgpack.Encoder(order="deterministic")
_messages: Final[msgspec.msgpack.Decoder[AnyMessage]] = msgspec.msgpack.Decoder(AnyMessage)
_events: Final = msgspec.msgpack.Decoder(Event)
_vectors: Final = msgspec.msgpack.Decoder(Vector)


def mark_of(cluster: str) -> bytes:
    """What stands before each message, so that two clusters never mix."""
    return bytes([VERSION]) + hashlib.blake2b(cluster.encode(), digest_size=MARK_BYTES).digest()


def encode(mark: bytes, message: Message) -> bytes:
    return mark + _encoder.encode(message)


def decode(mark: bytes, data: bytes) -> AnyMessage:
    """Raises: WireError."""
    if len(data) > WIRE_BYTES_MAX:
        raise WireError(f"a message of {len(data)} bytes; the most is {WIRE_BYTES_MAX}")
    if data[:1] != mark[:1]:
        spoken = data[0] if data else "none"
        raise WireError(
            f"the peer speaks version {spoken} of the state protocol, and this node {VERSION}: "
            "run the same release on both"
        )
    if data[: len(mark)] != mark:
        raise WireError("a message of another cluster: look at both nodes' cluster settings")
    try:
        return _messages.decode(memoryview(data)[len(mark) :])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise WireError(f"not a message of the state protocol: {error}") from error


def encode_event(event: Event) -> bytes:
    return _canonical.encode(event)


def decode_event(data: bytes) -> Event:
    """Raises: WireError if it is no event, or has rows that its type cannot have."""
    if len(data) > EVENT_BYTES_MAX:
        raise WireError(f"an event of {len(data)} bytes; the most is {EVENT_BYTES_MAX}")
    try:
        event = _events.decode(data)
        for path, value in event.adds:
            _kinds.check_row(event.kind, path, value)
    except (ValueError, RecursionError, OverflowError) as error:  # msgspec's are ValueErrors
        raise WireError(f"not an event: {error}") from error
    if event.kind not in _kinds.KINDS:
        raise WireError(f"an event of the unknown type {event.kind!r}")
    return event


def check_state(state: State) -> None:
    """Raises: WireError for rows that the type cannot have."""
    try:
        if state.kind not in _kinds.KINDS:
            raise ValueError(f"there is no type {state.kind!r}")
        for path, _, value in state.rows:
            _kinds.check_row(state.kind, path, value)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not a key's state: {error}") from error


def encode_vector(vector: dict[str, int]) -> bytes:
    return _encoder.encode(vector)


def decode_vector(data: bytes) -> dict[str, int]:
    """Raises: WireError."""
    try:
        return _vectors.decode(data)
    except (ValueError, OverflowError) as error:
        raise WireError(f"not a vector: {error}") from error
