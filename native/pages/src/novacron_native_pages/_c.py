"""The routines in C. Each call releases the GIL while C works; buffers stay pinned meanwhile.

numpy is imported by those that return its arrays, when they are called: it is slow to import and
takes memory, and the splitter does without it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from novacron_native_pages import _format
from novacron_native_pages._ffi import ffi, lib
from novacron_native_pages._format import (
    Buffer,
    Counters,
    Indices,
    JoinProblem,
    Piece,
    Reason,
    StreamFormatError,
)

# Memory that C fills: it need not be cleared.
_allocate: Final = ffi.new_allocator(should_clear_after_alloc=False)

# Buffers less full than this are copied into bytes of the right size and used again.
_HAND_OVER_ABOVE = 256 << 10


def zero_pages(buffer: Buffer, page_size: int) -> bytes:
    """Which pages are all zero: one bit per page, lowest bit first."""
    count = _format.page_count(memoryview(buffer).nbytes, page_size)
    bitmap = bytearray((count + 7) // 8)
    # Buffers are borrowed for the call only: CPython 3.11's collector crashes on a traceback that
    # still holds one.
    lib.npg_zero_pages(
        ffi.from_buffer("uint8_t[]", buffer),
        count,
        page_size,
        ffi.from_buffer("uint8_t[]", bitmap),
    )
    return bytes(bitmap)


def changed_pages(old: Buffer, new: Buffer, page_size: int) -> Indices:
    """The indices, ascending, of the pages that differ."""
    count = _format.page_count(memoryview(new).nbytes, page_size)
    if memoryview(old).nbytes != memoryview(new).nbytes:
        raise ValueError(f"old has {len(old)} bytes and new has {len(new)}")
    import numpy as np

    indices = np.empty(count, np.uint64)
    found = lib.npg_changed_pages(
        ffi.from_buffer("uint8_t[]", old),
        ffi.from_buffer("uint8_t[]", new),
        count,
        page_size,
        ffi.from_buffer("uint64_t[]", indices.data),
    )
    return indices[:found].copy()


def take_changed(
    old: Buffer, new: Buffer, page_size: int, out: Buffer, start: int = 0
) -> tuple[Indices, int]:
    """Copy pages of ``new`` that differ from ``old`` to ``out``, and bring ``old`` up to date.

    Looks at pages from ``start`` on, until ``out`` is full or all were seen.

    Returns: the indices of the pages copied, and the page to start at next (the number of pages
    when all were seen).
    """
    count = _format.page_count(memoryview(new).nbytes, page_size)
    if memoryview(old).nbytes != memoryview(new).nbytes:
        raise ValueError(f"old has {len(old)} bytes and new has {len(new)}")
    if not 0 <= start <= count:
        raise ValueError(f"start is {start}; there are {count} pages")
    room = memoryview(out).nbytes // page_size
    if room == 0:
        raise ValueError(f"out has {memoryview(out).nbytes} bytes, less than a page of {page_size}")
    import numpy as np

    indices = np.empty(min(room, count - start), np.uint64)
    going_on = ffi.new("size_t *", start)
    found = lib.npg_take_changed(
        ffi.from_buffer("uint8_t[]", old, require_writable=True),
        ffi.from_buffer("uint8_t[]", new),
        count,
        page_size,
        ffi.from_buffer("uint8_t[]", out, require_writable=True),
        room,
        ffi.from_buffer("uint64_t[]", indices.data),
        going_on,
    )
    return indices[:found].copy(), going_on[0]


def hash_pages(buffer: Buffer, page_size: int) -> Indices:
    """XXH64 (seed 0) of each page."""
    count = _format.page_count(memoryview(buffer).nbytes, page_size)
    import numpy as np

    hashes = np.empty(count, np.uint64)
    lib.npg_hash_pages(
        ffi.from_buffer("uint8_t[]", buffer),
        count,
        page_size,
        ffi.from_buffer("uint64_t[]", hashes.data),
    )
    return hashes


def _new_buffer(size: int) -> tuple[Any, memoryview]:
    """The same memory for C and for Python; each keeps it alive."""
    memory = _allocate("uint8_t[]", size)
    return memory, memoryview(ffi.buffer(memory)).cast("B")


class Splitter:
    """Takes a QEMU migration stream apart, whatever pieces it arrives in.

    Never fails for what the stream holds: what it does not understand goes into layouts as it is.
    One thread at a time.
    """

    def __init__(self, page_size: int = 4096) -> None:
        state = lib.npg_splitter_new(_format.page_bits(page_size))
        if state == ffi.NULL:
            raise MemoryError("no memory for a stream splitter")
        self._state = ffi.gc(state, lib.npg_splitter_free)
        self._used = ffi.new("size_t *")
        self._sizes = ffi.new("size_t[2]")
        self._counters = ffi.new("npg_counters *")
        self._busy = threading.Lock()
        self._addresses_c, self._addresses = _new_buffer(
            (_format.PAGES_TARGET >> _format.PAGE_BITS_MIN) * _format.ADDRESS_BYTES
        )
        self._new_layout()
        self._new_pages()

    def _new_layout(self) -> None:
        self._layout_c, self._layout = _new_buffer(_format.LAYOUT_MAX)

    def _new_pages(self) -> None:
        self._pages_c, self._pages = _new_buffer(_format.PAGES_TARGET)

    def feed(self, data: Buffer) -> list[Piece]:
        """Take the next bytes of the stream; returns the pieces that are full now."""
        view = memoryview(data).cast("B")
        with self._alone(), ffi.from_buffer("uint8_t[]", view) as source:
            full: list[Piece] = []
            at, end = 0, len(view)
            while lib.npg_split(
                self._state,
                source + at,
                end - at,
                self._used,
                self._layout_c,
                self._addresses_c,
                self._pages_c,
            ):
                at += self._used[0]
                full.extend(self._take(False))
            return full

    def flush(self, everything: bool = False) -> list[Piece]:
        """What was fed and has not been returned yet; a list of one piece, or of none.

        With ``everything`` also the beginning of a record whose rest has not arrived (at most a
        page and its name); otherwise that waits inside for its rest.
        """
        with self._alone():
            return self._take(everything)

    @property
    def counters(self) -> Counters:
        """What was seen so far."""
        with self._alone():
            lib.npg_count(self._state, self._counters)
            c = self._counters
            return Counters(
                bytes=c.bytes,
                opaque_bytes=c.opaque_bytes,
                pages=c.pages,
                zero_pages=c.zero_pages,
                ram_bytes=c.ram_bytes,
                rounds=c.rounds,
                blocks=c.blocks,
                resyncs=c.resyncs,
                reason=Reason(c.reason),
                page_size=1 << c.page_bits,
                section=ffi.string(c.section).decode("ascii", "backslashreplace"),
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # C would corrupt memory where Python code would only be confused.
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("a stream splitter was used by two threads at once")
        try:
            yield
        finally:
            self._busy.release()

    def _take(self, everything: bool) -> list[Piece]:
        lib.npg_take(self._state, everything, self._layout_c, self._sizes, self._sizes + 1)
        layout_size, count = self._sizes[0], self._sizes[1]
        if layout_size == 0:
            return []
        pages_size = count << self._layout_c[1]  # the layout says how large a page is
        layout: Buffer
        pages: Buffer
        addresses = bytes(self._addresses[: count * _format.ADDRESS_BYTES])
        if pages_size > _HAND_OVER_ABOVE:
            pages = self._pages[:pages_size]
            self._new_pages()
        else:
            pages = bytes(self._pages[:pages_size])
        if layout_size > _HAND_OVER_ABOVE:
            layout = self._layout[:layout_size]
            self._new_layout()
        else:
            layout = bytes(self._layout[:layout_size])
        return [Piece(layout, addresses, pages)]


def join_into(out: Buffer, layout: Buffer, addresses: Buffer, pages: Buffer) -> int:
    """Write the piece of stream that this came from into ``out``; returns its length.

    Raises:
        StreamFormatError: These are not the parts of one piece, or ``out`` is too small. What
            ``out`` holds then means nothing.
    """
    length = lib.npg_join(
        ffi.from_buffer("uint8_t[]", layout),
        memoryview(layout).nbytes,
        ffi.from_buffer("uint8_t[]", addresses),
        memoryview(addresses).nbytes,
        ffi.from_buffer("uint8_t[]", pages),
        memoryview(pages).nbytes,
        ffi.from_buffer("uint8_t[]", out, require_writable=True),
        memoryview(out).nbytes,
    )
    if length < 0:
        raise StreamFormatError(JoinProblem(length))
    return length
