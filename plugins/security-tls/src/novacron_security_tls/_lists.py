"""Two nodes bring each other's revocation list up to date, over a channel of theirs.

The side that opened the channel says the number of its list, and so does the other one. The one
whose number is higher sends its list, and gets back the number that the other one has then. A
number has 8 bytes, a list is DER.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from novacron import SecureStream

from novacron_security_tls._files import FILE_BYTES_MAX
from novacron_security_tls._frames import receive, send

PROTOCOL: Final = "trust/1"
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
    send(stream, _NUMBER.pack(number))
    return _level(stream, lists, number, data, _receive_number(stream))


def answer(stream: SecureStream, lists: Lists) -> int:
    """The side that serves the channel; returns which list the peer has at the end."""
    theirs = _receive_number(stream)
    number, data = lists.revocations()
    send(stream, _NUMBER.pack(number))
    return _level(stream, lists, number, data, theirs)


def _level(stream: SecureStream, lists: Lists, number: int, data: bytes, theirs: int) -> int:
    if number > theirs:
        send(stream, data)
        return _receive_number(stream)
    if theirs > number:
        send(stream, _NUMBER.pack(lists.take(receive(stream, FILE_BYTES_MAX))))
    return theirs


def _receive_number(stream: SecureStream) -> int:
    number: int = _NUMBER.unpack(receive(stream, _NUMBER.size, least=_NUMBER.size))[0]
    return number
