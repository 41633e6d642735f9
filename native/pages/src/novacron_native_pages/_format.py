"""What both implementations share: limits, values and checks of arguments."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Buffer: TypeAlias = bytes | bytearray | memoryview
Indices: TypeAlias = "npt.NDArray[np.uint64]"

PAGE_SIZE_MIN: Final = 64
PAGE_SIZE_MAX: Final = 1 << 24

# A batch is closed when one of the targets is reached and exceeds none of the maxima.
PAGES_TARGET: Final = 1 << 20
LAYOUT_TARGET: Final = 1 << 20
JOINED_TARGET: Final = 2 << 20
LAYOUT_MAX: Final = LAYOUT_TARGET + (128 << 10)
JOINED_MAX: Final = 4 << 20

PAGE_BITS_MIN: Final = 12
PAGE_BITS_MAX: Final = 16
BLOCKS_MAX: Final = 1024
ADDRESS_BYTES: Final = 8


class Reason(IntEnum):
    """Why a stream is not walked now."""

    WALKING = 0
    DEVICE = 1
    BAD_RECORD = 2
    NOT_QEMU = 3
    CONFIGURATION = 4
    POSTCOPY = 5
    MULTIFD = 6
    TOO_MANY_BLOCKS = 7


class JoinProblem(IntEnum):
    """Why a batch cannot be joined."""

    BAD_HEADER = -1
    BAD_COUNT = -2
    BAD_OPERATION = -3
    TOO_LONG = -4


PROBLEM_TEXT: Final = {
    JoinProblem.BAD_HEADER: "its layout does not begin as a layout of this version does",
    JoinProblem.BAD_COUNT: "its layout, addresses and pages do not belong together",
    JoinProblem.BAD_OPERATION: "its layout holds an operation that is unknown or impossible",
    JoinProblem.TOO_LONG: f"it would give more stream than it says, or than {JOINED_MAX} bytes",
}


class StreamFormatError(ValueError):
    """A batch is not one that a splitter makes. Nothing was read or written out of bounds."""

    def __init__(self, problem: JoinProblem) -> None:
        super().__init__(f"a batch of a QEMU stream cannot be joined: {PROBLEM_TEXT[problem]}")
        self.problem = problem


class Piece(NamedTuple):
    """A piece of a stream, taken apart: layout, 8-byte little-endian addresses, page contents."""

    layout: Buffer
    addresses: Buffer
    pages: Buffer


class Counters(NamedTuple):
    """What a splitter has seen so far.

    Attributes:
        bytes: Of the stream.
        opaque_bytes: Of them passed through unwalked.
        pages: Records with the content of a page, packed ones too.
        zero_pages: Records that say a page is zero.
        ram_bytes: The guest's memory, as the stream states it; 0 before it does.
        rounds: Passes over memory that were begun.
        blocks: RAM blocks.
        resyncs: Times a RAM section was found again in opaque bytes.
        reason: WALKING, or why the stream is not walked now.
        page_size: The guest's page size.
        section: The section that made it so if the reason is DEVICE, where it is known.
    """

    bytes: int
    opaque_bytes: int
    pages: int
    zero_pages: int
    ram_bytes: int
    rounds: int
    blocks: int
    resyncs: int
    reason: Reason
    page_size: int
    section: str


def page_count(size: int, page_size: int) -> int:
    """How many pages `size` bytes are; ValueError if the sizes make no sense."""
    if not PAGE_SIZE_MIN <= page_size <= PAGE_SIZE_MAX or page_size & (page_size - 1):
        raise ValueError(
            f"page_size is {page_size}; it must be a power of two from {PAGE_SIZE_MIN} to "
            f"{PAGE_SIZE_MAX}"
        )
    count, odd = divmod(size, page_size)
    if odd:
        raise ValueError(f"{size} bytes are no whole number of pages of {page_size}")
    return count


def page_bits(page_size: int) -> int:
    """The exponent of a guest's page size; ValueError if no QEMU stream has such pages."""
    bits = page_size.bit_length() - 1
    if page_size != 1 << bits or not PAGE_BITS_MIN <= bits <= PAGE_BITS_MAX:
        raise ValueError(f"page_size is {page_size}; QEMU streams have 4096 to 65536")
    return bits
