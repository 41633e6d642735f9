"""What the two sides of a hand-over say to each other; on the wire as MessagePack."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from novacron_dwcp.values import ProtocolError

# A machine's spec and origin travel in an Offer, and what a codec holds in an Accept; anything
# larger is no honest message.
MESSAGE_BYTES_MAX: Final = 16 << 20
# Of them a codec's word on what it holds: a decoder's, and an encoder's before it.
HAVE_BYTES_MAX: Final = 12 << 20
ENCODER_HAVE_BYTES_MAX: Final = 4 << 10
# What stands in the way of a move is read by a person.
OBSTACLES_MAX: Final = 256
OBSTACLE_CHARACTERS_MAX: Final = 4096
# Registers keep epochs as signed 64-bit integers, and a hand-over may add two.
EPOCH_MAX: Final = 1 << 62


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Base of all; ``session`` is the migration session that it belongs to."""

    session: str


class Offer(Message, frozen=True, kw_only=True):
    """Source: this machine wants to come. Repeated until it is answered. ``codec_have`` is the
    encoder's word on what is at the source already."""

    machine: str
    source: str
    target: str
    epoch: int
    runs: bool
    driver: str
    memory_bytes: int
    compression: str
    settings: dict[str, Any]
    origin: dict[str, Any]
    tenant: str = ""
    codec_have: bytes = b""


def with_codec_have(offer: Offer, have: bytes) -> Offer:
    """The offer with the encoder's word in it."""
    return msgspec.structs.replace(offer, codec_have=have)


class Accept(Message, frozen=True, kw_only=True):
    """Destination: come. ``have`` is the driver's word on what is here already, ``codec_have`` that
    of the decoder."""

    have: bytes = b""
    codec_have: bytes = b""


class Refuse(Message, frozen=True, kw_only=True):
    """Destination: this session has failed here, and nothing of it is left. ``again``: another one
    may be tried."""

    reason: str
    hint: str = ""
    again: bool = False


class Seal(Message, frozen=True, kw_only=True):
    """Source: paused; this was all. ``digest`` is over every batch, in order; ``memory``, if not
    empty, is the paused machine's own digest, to be compared when it has been loaded."""

    digest: str
    batches: int
    memory: str = ""


class Verified(Message, frozen=True, kw_only=True):
    """Destination: I hold everything, durably noted, and it has this digest."""

    digest: str


class Run(Message, frozen=True, kw_only=True):
    """Source: it is yours by this epoch, which is recorded; run it."""

    machine: str
    epoch: int


class Running(Message, frozen=True, kw_only=True):
    """Destination: I own it by this epoch or a later one; destroy yours."""

    epoch: int


class Abandoned(Message, frozen=True, kw_only=True):
    """Destination: I never ran it, never will, and gave it back by this epoch."""

    epoch: int
    reason: str


class Lost(Message, frozen=True, kw_only=True):
    """Destination: I was told to run it and its process is gone. Somebody must decide."""

    reason: str


class Abort(Message, frozen=True, kw_only=True):
    """Source: it stays here; clean up."""

    reason: str


class Aborted(Message, frozen=True, kw_only=True):
    """Destination: nothing of this session is left here."""


class Unknown(Message, frozen=True, kw_only=True):
    """Destination: I know nothing of this session."""


class Probe(Message, frozen=True, kw_only=True):
    """Anyone: what can you give, and how long does an answer take?"""


class Report(Message, frozen=True, kw_only=True):
    """The answer to a Probe."""

    node: str
    free_memory_bytes: int
    drivers: list[str]
    codecs: list[str] = []


class Examine(Message, frozen=True, kw_only=True):
    """Anyone: what would stand in the way of this machine's coming? As in an Offer, but nothing
    comes of it."""

    machine: str
    driver: str
    memory_bytes: int
    settings: dict[str, Any]
    origin: dict[str, Any]
    tenant: str = ""


class Found(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that stands in the way. Its code, what was found, its cure, and facts for
    programs."""

    code: str
    what: str
    cure: str
    blocks: bool = True
    facts: dict[str, Any] = {}


class Examined(Message, frozen=True, kw_only=True):
    """The answer to an Examine: all that was found."""

    found: list[Found]


AnyMessage = (
    Offer | Accept | Refuse | Seal | Verified | Run | Running | Abandoned | Lost | Abort | Aborted
    | Unknown | Probe | Report | Examine | Examined
)  # fmt: skip


def _refuse_extension(code: int, data: memoryview) -> None:
    raise ValueError(f"a MessagePack extension of type {code}")


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(AnyMessage, ext_hook=_refuse_extension)


def _check_machine(machine: Offer | Examine) -> None:
    epoch = machine.epoch if isinstance(machine, Offer) else 0
    if not 0 <= epoch < EPOCH_MAX or not 0 <= machine.memory_bytes < EPOCH_MAX:
        raise ValueError(f"an epoch of {epoch} or a memory of {machine.memory_bytes} bytes")
    # What a node writes to its disk must be what JSON can hold.
    _check_json(machine.settings)


def _check_examined(examined: Examined) -> None:
    if len(examined.found) > OBSTACLES_MAX:
        raise ValueError(f"{len(examined.found)} obstacles (at most {OBSTACLES_MAX})")
    for found in examined.found:
        texts = (found.code, found.what, found.cure)
        if max(map(len, texts)) > OBSTACLE_CHARACTERS_MAX:
            raise ValueError(f"an obstacle of over {OBSTACLE_CHARACTERS_MAX} characters")
        _check_json(found.facts)


def _check_json(values: dict[str, Any]) -> None:
    if msgspec.json.decode(msgspec.json.encode(values)) != values:
        raise ValueError("values that JSON cannot hold")


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(payload: bytes | bytearray | memoryview) -> Message:
    """Raises: ProtocolError for anything that is not exactly one sound message."""
    if len(payload) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a message of {len(payload)} bytes (at most {MESSAGE_BYTES_MAX})")
    try:
        message: Message = _decoder.decode(payload)
        if isinstance(message, Offer | Examine):
            _check_machine(message)
        elif isinstance(message, Examined):
            _check_examined(message)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"not a message of this protocol: {error}") from error
    return message
