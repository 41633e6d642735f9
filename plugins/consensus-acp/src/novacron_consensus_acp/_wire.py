"""Entries of the adaptive log, what its members say besides, and its records. MessagePack, bounded.

Entries are signed by their origin, whatever engine carries them: under an engine whose members may
lie, nobody can use up another's numbers or wish in its name.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta
from novacron_agreement import COMMAND_BYTES_MAX, MESSAGE_BYTES_MAX, NAME_CHARS_MAX

SIGNATURE_BYTES_MAX: Final = 5 << 10
# What an entry has beside its command.
ENTRY_EXTRA: Final = SIGNATURE_BYTES_MAX + 2 * NAME_CHARS_MAX + 256
NUMBER_MAX: Final = 2**62
REASON_CHARS_MAX: Final = 400
MEMBERS_MAX: Final = 64

Number = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Reason = Annotated[str, Meta(max_length=REASON_CHARS_MAX)]
Signature = Annotated[bytes, Meta(max_length=SIGNATURE_BYTES_MAX)]
Data = Annotated[bytes, Meta(max_length=MESSAGE_BYTES_MAX)]
T = TypeVar("T")


class WireError(ValueError):
    """Bytes that are nothing of this protocol. Nothing was changed."""


class _Value(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of all that is encoded here."""


class Entry(_Value, frozen=True):
    """What stands in an engine's log.

    Attributes:
        origin: The member that asks.
        epoch: Which of its lives: one more after each restart.
        number: From 1 in each epoch.
        signature: Of the origin, over the rest.
    """

    origin: Name
    epoch: Number
    number: Number
    signature: Signature

    @property
    def key(self) -> tuple[str, int, int]:
        return self.origin, self.epoch, self.number


class Command(Entry, frozen=True):
    """Something for the state machine."""

    command: Annotated[bytes, Meta(max_length=COMMAND_BYTES_MAX)]


class Marker(Entry, frozen=True):
    """The origin wants to know when everything asked before is done."""


class Wish(Entry, frozen=True):
    """The origin wants to go on with this engine. The wish that completes a quorum seals the log:
    nothing after it counts, and the next generation begins.

    Attributes:
        generation: The one that is to end.
        place: How far members are from each other, see `_policy`.
    """

    generation: Number
    engine: Name
    place: Name
    reason: Reason


AnyEntry = Command | Marker | Wish


class Inner(_Value, frozen=True):
    """A message, or a record, of one generation's engine."""

    generation: Number
    data: Data


class Forward(_Value, frozen=True):
    """An entry on its way to the engine's leader."""

    generation: Number
    entry: Data


class Ping(_Value, frozen=True):
    """A sign of life is wanted.

    Attributes:
        generation: Where the sender is.
        settled: The newest generation that it can begin again from by itself.
    """

    generation: Number
    settled: Number
    number: Number


class Pong(_Value, frozen=True):
    """The answer to a `Ping` of that number."""

    generation: Number
    settled: Number
    number: Number


class Born(_Value, frozen=True):
    """A life of the process began: the first record of each, and of a rewritten log."""

    format: Number
    cluster: str
    name: str
    epoch: Number


class Opened(_Value, frozen=True):
    """A generation began here.

    Attributes:
        settled: Its engine's own records hold a snapshot, so it can be begun from these alone.
    """

    generation: Number
    engine: Name
    place: Name
    settled: bool


class State(_Value, frozen=True):
    """What an engine's snapshot holds: ours, and the state machine's."""

    generation: Number
    ledger: Data
    snapshot: bytes


_entries: Final[msgspec.msgpack.Decoder[AnyEntry]] = msgspec.msgpack.Decoder(AnyEntry)
_messages: Final[msgspec.msgpack.Decoder[Inner | Forward | Ping | Pong]] = msgspec.msgpack.Decoder(
    Inner | Forward | Ping | Pong
)
_records: Final[msgspec.msgpack.Decoder[Born | Opened | Inner]] = msgspec.msgpack.Decoder(
    Born | Opened | Inner
)
_states: Final = msgspec.msgpack.Decoder(State)
encode: Final = msgspec.msgpack.Encoder().encode


def decode_entry(data: bytes) -> AnyEntry:
    """Raises: WireError."""
    return _decode(_entries, data)


def decode_message(data: bytes) -> Inner | Forward | Ping | Pong:
    """Raises: WireError."""
    if len(data) > MESSAGE_BYTES_MAX + 64:
        raise WireError(f"a message of {len(data)} bytes is too long")
    return _decode(_messages, data)


def decode_record(data: bytes) -> Born | Opened | Inner:
    """Raises: WireError."""
    return _decode(_records, data)


def decode_state(data: bytes) -> State:
    """Raises: WireError."""
    return _decode(_states, data)


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"nothing of this protocol: {error}") from error


def statement(cluster: str, entry: Any) -> bytes:
    """What an entry's origin signs."""
    return encode(("acp", cluster, msgspec.structs.replace(entry, signature=b"")))
