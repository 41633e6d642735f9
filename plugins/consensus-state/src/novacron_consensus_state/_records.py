"""What a replica keeps on disk: records, from which its state is made again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from novacron_consensus_state._messages import (
    PAGE_BYTES_MAX,
    State,
    Vector,
    WireError,
    check_state,
    decode_event,
    decode_vector,
    encode_vector,
)
from novacron_consensus_state._store import Store

FORMAT: Final = 1


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first record: whose state this is.

    Attributes:
        cluster: The cluster's name.
        member: The member's name.
        origin: Under which this life of the member makes events: ``member/life``.
    """

    format: int
    cluster: str
    member: str
    origin: str


class Merged(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """States of a peer, and what it had seen."""

    vector: Vector
    states: list[State]


_headers: Final = msgspec.msgpack.Decoder(Header)
_merged: Final = msgspec.msgpack.Decoder(Merged)
_encoder: Final = msgspec.msgpack.Encoder()
HEADER, EVENT, MERGED, ADOPTED, LOG = b"H", b"E", b"M", b"V", b"L"


def header(cluster: str, member: str, origin: str) -> bytes:
    return HEADER + _encoder.encode(Header(FORMAT, cluster, member, origin))


def read_header(record: bytes) -> Header:
    """Raises: WireError."""
    try:
        if record[:1] != HEADER:
            raise ValueError("the first record is no header")
        found = _headers.decode(memoryview(record)[1:])
    except ValueError as error:
        raise WireError(f"not a replica's state: {error}") from error
    if found.format != FORMAT:
        raise WireError(f"a state of format {found.format}, and this release knows {FORMAT}")
    return found


def merged(vector: Mapping[str, int], states: Sequence[State]) -> bytes:
    return MERGED + _encoder.encode(Merged(dict(vector), list(states)))


def adopted(vector: Mapping[str, int]) -> bytes:
    return ADOPTED + encode_vector(dict(vector))


def snapshot(store: Store) -> Iterable[bytes]:
    """The records that make a store again, without its header."""
    part: list[State] = []
    size = 0
    for key in sorted(store.entries):
        for state in store.pages(key):
            cost = 64 + sum(48 + sum(map(len, path)) + len(v) for path, _, v in state.rows)
            if part and size + cost > PAGE_BYTES_MAX:
                yield merged({}, part)
                part, size = [], 0
            part.append(state)
            size += cost
    if part:
        yield merged({}, part)
    yield adopted(store.vector)


def replay(record: bytes, store: Store) -> int:
    """Do again what a record says; returns its stamp, 0 if it has none. Raises WireError."""
    kind, payload = record[:1], record[1:]
    if kind == EVENT:
        event = decode_event(payload)
        if not store.deliver(event, payload):
            raise WireError(f"the event {event.origin} {event.number} does not follow its causes")
        return event.stamp
    if kind == MERGED:
        try:
            found = _merged.decode(payload)
        except (ValueError, RecursionError) as error:
            raise WireError(f"not a record of states: {error}") from error
        for state in found.states:
            check_state(state)
            store.merge(state, found.vector)
        return 0
    if kind == ADOPTED:
        store.adopt(decode_vector(payload))
        return 0
    raise WireError(f"a record of the unknown kind {kind!r}")
