"""Frames on a secured stream: a length (4 bytes, big-endian) and as many bytes."""

from __future__ import annotations

import struct
from typing import Final

from novacron import ProtocolError, Stream

_LENGTH: Final = struct.Struct(">I")
_ROOM_BYTES: Final = 64 << 10


def send(stream: Stream, data: bytes) -> None:
    """Raises: TransportError."""
    stream.send([_LENGTH.pack(len(data)), data])


def receive(stream: Stream, most: int, *, least: int = 0) -> bytes:
    """The next frame. Raises: ProtocolError if its length is not within bounds, or if the stream
    ends before it does; TransportError."""
    (length,) = _LENGTH.unpack(_fill(stream, _LENGTH.size))
    if not least <= length <= most:
        raise ProtocolError(f"a frame of {length} bytes, not of {least} to {most}")
    return bytes(_fill(stream, length))


def _fill(stream: Stream, length: int) -> bytearray:
    # As it comes, so that a length alone allocates nothing much.
    data = bytearray()
    room = memoryview(bytearray(min(length, _ROOM_BYTES)))
    while len(data) < length:
        count = stream.receive_into(room[: length - len(data)])
        if not count:
            raise ProtocolError("the peer ended the stream in the middle")
        data += room[:count]
    return data
