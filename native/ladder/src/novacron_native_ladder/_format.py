"""What both implementations share: types, limits, errors and checks."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Buffer: TypeAlias = bytes | bytearray | memoryview
Hashes: TypeAlias = "npt.NDArray[np.uint64]"

PAGE_SIZE_MIN: Final = 64
PAGE_SIZE_MAX: Final = 65536
CAPACITY_MAX: Final = 1 << 30
REFERENCES_MAX: Final = 1 << 29
ADDRESS_BYTES: Final = 8
# Bytes that one page takes at most in `places` and in `args`.
PLACE_MAX: Final = 10
ARG_MAX: Final = 10
# A delta speaks of words of so many bytes, with one bit each in `masks`.
WORD_BYTES: Final = 8
MASK_OF: Final = 64


class Rung(IntEnum):
    """How a page is written: one byte per page in `ops`."""

    UNIFORM = 0
    SAME = 1
    COPY = 2
    REFERENCE = 3
    DELTA = 4
    LITERAL = 5


class DecodeProblem(IntEnum):
    """Why a batch cannot be decoded."""

    BAD_PLACE = -1
    BAD_OPERATION = -2
    BAD_ARGUMENT = -3
    BAD_LENGTH = -4


PROBLEM_TEXT: Final = {
    DecodeProblem.BAD_PLACE: "its addresses are not written as they should be",
    DecodeProblem.BAD_OPERATION: "it holds an operation that is unknown or impossible",
    DecodeProblem.BAD_ARGUMENT: "it names a page that is not there, or its arguments are damaged",
    DecodeProblem.BAD_LENGTH: "its parts are longer or shorter than its operations say",
}


class LadderFormatError(ValueError):
    """A batch is not one that an encoder makes for this store. The store is spent."""

    def __init__(self, problem: DecodeProblem) -> None:
        super().__init__(f"a batch cannot be decoded: {PROBLEM_TEXT[problem]}")
        self.problem = problem


class StoreTableError(ValueError):
    """A file's table of addresses names one of them twice: no store wrote it."""

    def __init__(self) -> None:
        super().__init__("a page file's table of addresses is damaged")


class Places(NamedTuple):
    """Where a store's file keeps what: offsets in bytes.

    Attributes:
        count_at: 8 bytes, how many slots are in use.
        addresses_at: 8 bytes per slot.
        pages_at: The contents of the slots.
    """

    count_at: int
    addresses_at: int
    pages_at: int


class Parts(NamedTuple):
    """A batch of pages, taken apart. All but `ops` may be empty.

    Attributes:
        places: Each address, by how far it is from where the one before makes one expect it.
        ops: One `Rung` per page.
        args: What some of the operations need.
        masks: Of each delta: a bit for each word that differs.
        words: These words, old XOR new.
        literals: Contents of pages.
    """

    places: Buffer
    ops: Buffer
    args: Buffer
    masks: Buffer
    words: Buffer
    literals: Buffer


class Encoded(NamedTuple):
    """What encoding a batch gave.

    Attributes:
        parts: The parts. They share memory with the store until its next call.
        pages: How many pages took each rung, by its number.
    """

    parts: Parts
    pages: tuple[int, ...]


def check_sizes(page_size: int, capacity: int) -> None:
    """ValueError if no store can have these."""
    if not PAGE_SIZE_MIN <= page_size <= PAGE_SIZE_MAX or page_size % MASK_OF:
        raise ValueError(
            f"page_size is {page_size}; it must be a multiple of {MASK_OF} from {PAGE_SIZE_MIN} "
            f"to {PAGE_SIZE_MAX}"
        )
    if not 0 <= capacity <= CAPACITY_MAX:
        raise ValueError(f"capacity is {capacity} pages; it must be from 0 to {CAPACITY_MAX}")


def check_file(fd: int, places: Places, page_size: int, capacity: int) -> None:
    """ValueError if a file is too short, or its pages begin where none can be mapped."""
    size = os.fstat(fd).st_size
    end = max(
        places.pages_at + capacity * page_size, places.addresses_at + capacity * ADDRESS_BYTES
    )
    if size < end:
        raise ValueError(f"the file has {size} bytes; a store of {capacity} pages needs {end}")
    if places.pages_at % mmap.ALLOCATIONGRANULARITY:
        raise ValueError(
            f"pages begin at {places.pages_at}, no multiple of {mmap.ALLOCATIONGRANULARITY}"
        )


def check_batch(addresses: Buffer, pages: Buffer, page_size: int) -> int:
    """How many pages these are; ValueError if they do not belong together."""
    count, odd = divmod(memoryview(addresses).nbytes, ADDRESS_BYTES)
    if odd or memoryview(pages).nbytes != count * page_size:
        raise ValueError(
            f"{len(pages)} bytes of pages of {page_size} do not fit {len(addresses)} of addresses"
        )
    return count


def check_pages(size: int, page_size: int) -> int:
    """How many pages so many bytes are; ValueError if they are no whole number."""
    check_sizes(page_size, 0)
    count, odd = divmod(size, page_size)
    if odd:
        raise ValueError(f"{size} bytes are no whole number of pages of {page_size}")
    return count


def check_offers(fds: Sequence[int], origin: Sequence[int], offset: Sequence[int]) -> None:
    """ValueError if the lists of what was offered do not belong together."""
    if len(origin) != len(offset):
        raise ValueError(f"{len(origin)} origins and {len(offset)} offsets do not fit together")
    if len(fds) > 1 << 16:
        raise ValueError(f"{len(fds)} files are more than {1 << 16}")
