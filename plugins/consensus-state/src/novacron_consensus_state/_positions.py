"""Places in a list that lie densely: between any two there is always room for another.

A position is a path of (digit, tag) pairs, eight bytes each, compared as bytes; the tag is of the
replica that made it. An element keeps its position for life, so a removed one leaves nothing behind
(Weiss, Urso and Molli, "Logoot", ICDCS 2009). That is why lists here are not RGA: there a removed
element stays as a tombstone until nobody can refer to it, and in a queue, where each element hangs
on the one before, that is never. What is given up: two replicas that insert one by one at the same
place may find their elements mixed. Elements inserted by one call stay together.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

_PAIR: Final = struct.Struct(">I4s")
_END: Final = 1 << 32
# Room for ten halvings between neighbours, and four million appends before a path gets longer.
_STEP: Final = 1 << 10
LEVELS_MAX: Final = 64
POSITION_BYTES_MAX: Final = LEVELS_MAX * _PAIR.size


class PositionsFull(ValueError):
    """There was inserted so often at one place that its positions got too long. Nothing changed."""


def tag_of(origin: str) -> bytes:
    """The four bytes that stand for a replica. If two have the same, their elements at one place
    share a position and are told apart by their dots."""
    return hashlib.blake2b(origin.encode(), digest_size=4).digest()


def is_position(data: bytes) -> bool:
    """Whether it is a position that `between` could have made."""
    if not data or len(data) % _PAIR.size or len(data) > POSITION_BYTES_MAX:
        return False
    return data[-_PAIR.size : -4] != b"\0\0\0\0"


def between(low: bytes, high: bytes, tag: bytes) -> bytes:
    """A position after ``low`` and before ``high`` (empty: the list's beginning, its end).

    Raises: PositionsFull.
    """
    made = b""
    open_above = not high  # nothing above bounds this level any more
    for at in range(0, POSITION_BYTES_MAX, _PAIR.size):
        below = low[at : at + _PAIR.size]
        above = b"" if open_above else high[at : at + _PAIR.size]
        first = _PAIR.unpack(below)[0] if below else 0
        last = _PAIR.unpack(above)[0] if above else _END
        if last - first > 1:
            return made + _PAIR.pack(_between(first, last, bool(below), bool(above)), tag)
        if below:
            made += below
            open_above = open_above or below != above
        else:
            # Before ``high``, whose digit is the lowest: below a zero there is room again. If
            # ``high`` has such a zero itself, stay beside it on its path.
            made += above if last == 0 else _PAIR.pack(0, tag)
            open_above = open_above or last != 0
    raise PositionsFull("the list has no room left at this place")


def run(low: bytes, high: bytes, tag: bytes, count: int) -> list[bytes]:
    """Positions in a row, which nobody else's come between: all are below the first one.

    Raises: PositionsFull.
    """
    first = between(low, high, tag)
    if count > 1 and len(first) >= POSITION_BYTES_MAX:
        raise PositionsFull("the list has no room left at this place")
    return [first, *(first + _PAIR.pack(n * _STEP, tag) for n in range(1, count))]


def _between(first: int, last: int, bounded_below: bool, bounded_above: bool) -> int:
    if bounded_below and not bounded_above:  # an append
        return min(first + _STEP, last - 1)
    if bounded_above and not bounded_below:  # a prepend
        return max(last - _STEP, first + 1)
    return (first + last) // 2
