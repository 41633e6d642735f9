"""Two nodes bring each other's revocation list up to date, over a channel of theirs.

The side that opened the channel says the number of its list, and so does the other one. The one
whose number is higher sends its list, and gets back the number that the other one has then. A frame
is its length (4 bytes, big-endian) and as many bytes; a number has 8 bytes, a list is DER.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from novacron import ProtocolError, SecureStream

from novacron_security_tls._files import FILE_BYTES_MAX

PROTOCOL: Final = "trust/1"
_LENGTH: Final = struct.Struct(">I")
_NUMBER: Final = struct.Struct(">Q")


class Lists(Protocol):
    """What a node has."""

    def revocations(self) -> tuple[int, bytes]:
        """The number of its list, and the list."""
        ...

    def take(self, data: bytes) -> int:
        """Put a list in force if it is sound and newer; the number of the one in force then.

        Raises: Untrusted, ConfigError if it is not sound.
        """
        ...


def tell(stream: SecureStream, lists: Lists) -> int:
    """The side that opened the channel; returns which list the peer has at the end."""
    number, data = lists.revocations()
    _send(stream, _NUMBER.pack(number))
    return _level(stream, lists, number, data, _receive_number(stream))


def answer(stream: SecureStream, lists: Lists) -> int:
    """The side that serves the channel; returns which list the peer has at the end."""
    theirs = _receive_number(stream)
    number, data = lists.revocations()
    _send(stream, _NUMBER.pack(number))
    return _level(stream, lists, number, data, theirs)


def _level(stream: SecureStream, lists: Lists, number: int, data: bytes, theirs: int) -> int:
    if number > theirs:
        _send(stream, data)
        return _receive_number(stream)
    if theirs > number:
        _send(stream, _NUMBER.pack(lists.take(_receive(stream, FILE_BYTES_MAX))))
    return theirs


def _send(stream: SecureStream, data: bytes) -> None:
    stream.send([_LENGTH.pack(len(data)), data])


def _receive_number(stream: SecureStream) -> int:
    number: int = _NUMBER.unpack(_receive(stream, _NUMBER.size, exactly=True))[0]
    return number


def _receive(stream: SecureStream, most: int, *, exactly: bool = False) -> bytes:
    (length,) = _LENGTH.unpack(_fill(stream, _LENGTH.size))
    if length > most or (exactly and length != most):
        raise ProtocolError(f"a frame of {length} bytes where {most} is the most")
    return bytes(_fill(stream, length))


def _fill(stream: SecureStream, length: int) -> bytearray:
    # As it comes, so that a length alone allocates nothing much.
    data = bytearray()
    room = memoryview(bytearray(min(length, 64 << 10)))
    while len(data) < length:
        count = stream.receive_into(room[: length - len(data)])
        if not count:
            raise ProtocolError("the peer ended the channel in the middle")
        data += room[:count]
    return data
