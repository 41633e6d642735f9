"""What members say to each other; on the wire as MessagePack arrays.

Everything that arrives is hostile until `decode` has bounded it. The sealing of datagrams and
streams is the business of `_seal`; here a message is plain bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

# A datagram fits the least MTU of IPv6 (1,280 bytes) with its headers and its seal.
DATAGRAM_BYTES_MAX: Final = 1_180
# What a datagram's own fields may take; the rest is room for news.
NEWS_BYTES_MAX: Final = DATAGRAM_BYTES_MAX - 300
STREAM_BYTES_MAX: Final = 2 << 20
BODY_BYTES_MAX: Final = 1 << 20
# Records of members in one message; more are sent in several.
SHARE_BYTES_MAX: Final = 512 << 10
NEWS_MAX: Final = 128
NAME_CHARS_MAX: Final = 63
ADDRESS_CHARS_MAX: Final = 64
TAGS_MAX: Final = 16
TAGS_BYTES_MAX: Final = 512
TOPIC_CHARS_MAX: Final = 63
ANNOUNCED_MAX: Final = 32
BUCKETS: Final = 64
BUCKET_BYTES: Final = 8
ID_BYTES: Final = 16
# A member raises its incarnation by one each time; no honest one gets here.
INCARNATION_MAX: Final = 1 << 48
LIFE_MAX: Final = (1 << 62) - 1

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}\Z")]
Address = Annotated[str, msgspec.Meta(min_length=1, max_length=ADDRESS_CHARS_MAX)]
Incarnation = Annotated[int, msgspec.Meta(ge=0, le=INCARNATION_MAX)]
Life = Annotated[int, msgspec.Meta(ge=0, le=LIFE_MAX)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
Identifier = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
Identifiers = Annotated[tuple[Identifier, ...], msgspec.Meta(max_length=ANNOUNCED_MAX)]
Tags = Annotated[dict[str, str], msgspec.Meta(max_length=TAGS_MAX)]


class WireError(ValueError):
    """What arrived is no message; nothing of it was used."""


class Alive(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """A member lives, at this address; said first by the member itself."""

    name: Name
    incarnation: Incarnation
    address: Address
    life: Life
    tags: Tags


class Doubt(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """A member is suspected (1), dead (2) or has left (3), says ``by``."""

    name: Name
    incarnation: Incarnation
    state: Annotated[int, msgspec.Meta(ge=1, le=3)]
    by: Name


Claim = Alive | Doubt
News = Annotated[tuple[Claim, ...], msgspec.Meta(max_length=NEWS_MAX)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all; ``who`` is the sender's name."""

    who: Name


class Ping(Message, frozen=True, tag=1):
    """Are you ``target``, and do you live?"""

    number: Number
    target: Name
    news: News = ()


class Ack(Message, frozen=True, tag=2):
    """I do (or: ``who`` does, says one that was asked to try)."""

    number: Number
    news: News = ()


class Relay(Message, frozen=True, tag=3):
    """Please try to reach ``target`` for me."""

    number: Number
    target: Name
    address: Address
    news: News = ()


class Nack(Message, frozen=True, tag=4):
    """I tried, and it did not answer me either; so your own network is not the reason."""

    number: Number
    news: News = ()


class Gossip(Message, frozen=True, tag=5):
    """News alone."""

    news: News


class Announce(Message, frozen=True, tag=6):
    """I have these broadcasts."""

    ids: Identifiers


class Graft(Message, frozen=True, tag=7):
    """Send me this broadcast, and from now on the others, too."""

    id: Identifier


class Prune(Message, frozen=True, tag=8):
    """I get broadcasts from elsewhere: only announce them to me."""


class Compare(Message, frozen=True, tag=9):
    """This is the digest of each bucket of the members that I hold, and what I have of broadcasts.

    ``address`` is where the answer is to go.
    """

    address: Address
    digests: Annotated[
        bytes, msgspec.Meta(min_length=BUCKETS * BUCKET_BYTES, max_length=BUCKETS * BUCKET_BYTES)
    ]
    ids: Identifiers = ()


class Share(Message, frozen=True, tag=10):
    """All that I hold of the members in these buckets. ``reply``: tell me yours."""

    address: Address
    buckets: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, lt=BUCKETS)], ...],
        msgspec.Meta(max_length=BUCKETS),
    ]
    claims: tuple[Claim, ...]
    reply: bool
    ids: Identifiers = ()


class Payload(Message, frozen=True, tag=11):
    """A broadcast. ``hops``: how many members it has come through."""

    id: Identifier
    origin: Name
    topic: Annotated[str, msgspec.Meta(min_length=1, max_length=TOPIC_CHARS_MAX)]
    hops: Annotated[int, msgspec.Meta(ge=0, le=255)]
    body: Annotated[bytes, msgspec.Meta(max_length=BODY_BYTES_MAX)]


Datagram = Ping | Ack | Relay | Nack | Gossip | Announce | Graft | Prune
Bulk = Compare | Share | Payload


class Saved(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a member keeps for its next life."""

    name: Name
    incarnation: Incarnation
    seeds: Annotated[tuple[Address, ...], msgspec.Meta(max_length=64)]


def _refuse_extension(code: int, data: memoryview) -> None:
    raise ValueError(f"a MessagePack extension of type {code}")


_encoder: Final = msgspec.msgpack.Encoder()
_datagrams: Final = msgspec.msgpack.Decoder(Datagram, ext_hook=_refuse_extension)
_bulk: Final = msgspec.msgpack.Decoder(Bulk, ext_hook=_refuse_extension)
_saved: Final = msgspec.msgpack.Decoder(Saved)


def tags_bytes(tags: dict[str, str]) -> int:
    """How many bytes tags count for, against `TAGS_BYTES_MAX`."""
    return sum(len(key.encode()) + len(value.encode()) + 4 for key, value in tags.items())


def _check_tags(claims: Sequence[Claim]) -> None:
    for claim in claims:
        if type(claim) is Alive and claim.tags and tags_bytes(claim.tags) > TAGS_BYTES_MAX:
            raise WireError(f"the tags of {claim.name!r} take more than {TAGS_BYTES_MAX} bytes")


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def encode_claim(claim: Claim) -> bytes:
    return _encoder.encode(claim)


def embed(encoded: Sequence[bytes]) -> tuple[Claim, ...]:
    """Claims that are encoded already, to stand in a message that is about to be encoded.

    The type is a promise: the encoder copies them as they are, and nobody may look inside.
    """
    return tuple(map(msgspec.Raw, encoded))  # type: ignore[arg-type]


def decode_datagram(data: bytes) -> Datagram:
    """Raises WireError."""
    if len(data) > DATAGRAM_BYTES_MAX:
        raise WireError(f"a datagram of {len(data)} bytes; {DATAGRAM_BYTES_MAX} is the most")
    message: Datagram
    try:
        message = _datagrams.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WireError(f"no datagram of ours: {error}") from error
    news: tuple[Claim, ...] = getattr(message, "news", ())
    if news:
        _check_tags(news)
    return message


def decode_bulk(data: bytes) -> Bulk:
    """Raises WireError."""
    if len(data) > STREAM_BYTES_MAX:
        raise WireError(f"a message of {len(data)} bytes; {STREAM_BYTES_MAX} is the most")
    message: Bulk
    try:
        message = _bulk.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WireError(f"no message of ours: {error}") from error
    if type(message) is Share:
        _check_tags(message.claims)
    return message


def encode_saved(saved: Saved) -> bytes:
    return _encoder.encode(saved)


def decode_saved(data: bytes) -> Saved:
    """Raises WireError."""
    try:
        return _saved.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise WireError(f"the saved record is damaged: {error}") from error
