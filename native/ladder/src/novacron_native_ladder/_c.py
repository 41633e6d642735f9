"""The routines in C. Each call releases the GIL while C works; buffers stay pinned meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from novacron_native_ladder import _format
from novacron_native_ladder._ffi import ffi, lib
from novacron_native_ladder._format import (
    Buffer,
    DecodeProblem,
    Encoded,
    Hashes,
    LadderFormatError,
    Parts,
    Places,
    Rung,
    StoreTableError,
)

# Memory that C fills: it need not be cleared.
_allocate: Final = ffi.new_allocator(should_clear_after_alloc=False)
_WORK_BYTES: Final = 256 << 10


def _uint64(values: Hashes) -> Any:
    return ffi.from_buffer("uint64_t[]", np.ascontiguousarray(values, np.uint64).data)


def hash_pages(buffer: Buffer, page_size: int, seed: int) -> Hashes:
    """XXH64 of each page."""
    count = _format.check_pages(memoryview(buffer).nbytes, page_size)
    hashes = np.empty(count, np.uint64)
    lib.nld_hash_pages(
        ffi.from_buffer("uint8_t[]", buffer), count, page_size, seed, _uint64(hashes)
    )
    return hashes


def hash_file(fd: int, at: int, count: int, page_size: int, seeds: Sequence[int]) -> list[Hashes]:
    """XXH64 of ``count`` pages of a file, by one seed or by two, in one pass.

    Raises: OSError, also if the file ends too early.
    """
    _format.check_sizes(page_size, 0)
    if not 1 <= len(seeds) <= 2:
        raise ValueError(f"one or two seeds can be used in a pass, not {len(seeds)}")
    hashes = [np.empty(count, np.uint64) for _ in seeds]
    work = _allocate("uint8_t[]", _WORK_BYTES)
    second = _uint64(hashes[1]) if len(seeds) > 1 else ffi.NULL
    error = lib.nld_hash_file(
        *(fd, at, count, page_size, seeds[0], _uint64(hashes[0]), seeds[-1], second),
        *(work, _WORK_BYTES),
    )
    if error:
        raise OSError(error, os.strerror(error))
    return hashes


class References:
    """Pages that the other side offered, found by the hash of their content.

    Args:
        hashes: XXH64 of each, by the seed of the store that is to look for them.
    """

    def __init__(self, hashes: Hashes) -> None:
        if len(hashes) > _format.REFERENCES_MAX:
            raise ValueError(f"{len(hashes)} pages are more than {_format.REFERENCES_MAX}")
        state = lib.nld_references_new(_uint64(hashes), len(hashes))
        if state == ffi.NULL:
            raise MemoryError("no memory for the table of offered pages")
        self._count = len(hashes)
        self.state = ffi.gc(state, lib.nld_references_free)

    def __len__(self) -> int:
        return self._count

    def drop(self, first: int, count: int) -> None:
        """Look no more for the numbers ``first`` to ``first + count - 1``."""
        if not 0 <= first <= first + count <= self._count:
            raise ValueError(f"{count} pages from {first} are not among {self._count}")
        lib.nld_references_drop(self.state, first, count)


class Origins:
    """Where the pages are that this side offered.

    Args:
        fds: Open files; they stay the caller's, and open while this is used.
        origin: Of each page, which of them it is in.
        offset: Of each page, at which byte.
    """

    def __init__(
        self,
        fds: Sequence[int],
        origin: npt.NDArray[np.uint32],
        offset: npt.NDArray[np.uint64],
    ) -> None:
        _format.check_offers(fds, origin, offset)  # type: ignore[arg-type]
        self._fds = np.array(fds, np.int32)
        self._origin = np.ascontiguousarray(origin, np.uint32)
        self._offset = np.ascontiguousarray(offset, np.uint64)
        self._kept = [
            ffi.from_buffer("int32_t[]", self._fds.data),
            ffi.from_buffer("uint32_t[]", self._origin.data),
            ffi.from_buffer("uint64_t[]", self._offset.data),
        ]
        self.state = ffi.new("nld_origins *")
        self.state.fds, self.state.origin, self.state.offset = self._kept
        self.state.fd_count = len(self._fds)
        self.state.count = len(self._origin)

    def __len__(self) -> int:
        return len(self._origin)

    def close(self, which: int) -> None:
        """Refuse pages of this file from now on."""
        self._fds[which] = -1


class Store:
    """Pages in a file, and the rungs that need them. One thread at a time.

    After an OSError or a `LadderFormatError` the store is spent.

    Args:
        fd: The file, open for reading and writing, long enough for ``capacity`` pages (it may have
            holes); it stays the caller's.
        places: Where the file keeps what.
        page_size: In bytes; a multiple of 64.
        capacity: How many pages are kept at most; more are encoded, but not kept.
        seed: Of the hashes of contents and addresses.
        by_content: Whether contents can be found, as encoding needs it.
    """

    def __init__(
        self,
        fd: int,
        places: Places,
        *,
        page_size: int,
        capacity: int,
        seed: int,
        by_content: bool,
    ) -> None:
        _format.check_sizes(page_size, capacity)
        _format.check_file(fd, places, page_size, capacity)
        state = lib.nld_store_new(fd, *places, page_size, capacity, by_content, seed)
        if state == ffi.NULL:
            raise MemoryError("no memory for a page store")
        self._state = ffi.gc(state, lib.nld_store_free)
        self._page_size = page_size
        self._busy = threading.Lock()
        self._room = 0
        self._out: dict[str, tuple[Any, memoryview]] = {}
        self._encoded = ffi.new("nld_encoded *")

    @property
    def count(self) -> int:
        """Slots in use."""
        return int(lib.nld_store_count(self._state))

    @property
    def memory_bytes(self) -> int:
        """What the tables take."""
        buffers = sum(view.nbytes for _, view in self._out.values())
        return int(lib.nld_store_memory(self._state)) + buffers

    def load(self, count: int, hashes: Hashes | None = None) -> None:
        """Begin with the first ``count`` slots of the file; once, before anything else.

        Args:
            hashes: Of their contents, by the store's seed; without them they are not found by it.

        Raises:
            OSError: The file could not be read.
            StoreTableError: It holds no sound table.
        """
        if hashes is not None and len(hashes) != count:
            raise ValueError(f"{len(hashes)} hashes for {count} slots")
        with self._alone():
            pointer = ffi.NULL if hashes is None else _uint64(hashes)
            self._check(lib.nld_store_load(self._state, count, pointer))

    def encode(
        self,
        addresses: Buffer,
        pages: Buffer,
        references: References | None = None,
        *,
        content: bool = True,
        delta: bool = True,
    ) -> Encoded:
        """Take a batch apart, and keep its pages.

        Args:
            references: What the other side offered.
            content: Look for contents, here and in ``references``.
            delta: Look for pages of which only a part has changed.

        Raises: OSError if the file could not be read or written.
        """
        count = _format.check_batch(addresses, pages, self._page_size)
        find = lib.NLD_FIND_CONTENT * content | lib.NLD_FIND_DELTA * delta
        with self._alone():
            self._make_room(count)
            encoded = self._encoded
            self._check(
                lib.nld_encode(
                    self._state,
                    ffi.NULL if references is None else references.state,
                    find,
                    ffi.from_buffer("uint8_t[]", addresses),
                    ffi.from_buffer("uint8_t[]", pages),
                    count,
                    *(self._out[name][0] for name in Parts._fields),  # type: ignore[call-arg]
                    encoded,
                )
            )
            views = {name: view for name, (_, view) in self._out.items()}
            literals: Buffer = views["literals"][: encoded.literals]
            if encoded.literals_are_pages:
                literals = pages
            parts = Parts(
                views["places"][: encoded.places],
                views["ops"][:count],
                views["args"][: encoded.args],
                views["masks"][: encoded.masks],
                views["words"][: encoded.words],
                literals,
            )
            return Encoded(parts, tuple(encoded.pages[rung] for rung in Rung))

    def decode(self, parts: Parts, origins: Origins | None = None) -> tuple[memoryview, memoryview]:
        """Addresses and pages of a batch; its pages are kept.

        The caller bounds ``len(parts.ops)``: so many pages are allocated.

        Raises:
            LadderFormatError: The parts are no batch that was encoded by a store like this one.
            OSError: A file could not be read or written.
        """
        count = len(parts.ops)
        addresses = _allocate("uint8_t[]", max(1, count * _format.ADDRESS_BYTES))
        pages = _allocate("uint8_t[]", max(1, count * self._page_size))
        borrowed = [ffi.from_buffer("uint8_t[]", part) for part in parts]
        given = ffi.new("nld_parts *")
        (given.places, given.ops, given.args, given.masks, given.words, given.literals) = borrowed
        given.places_size = memoryview(parts.places).nbytes
        given.args_size = memoryview(parts.args).nbytes
        given.masks_size = memoryview(parts.masks).nbytes
        given.words_size = memoryview(parts.words).nbytes
        given.literals_size = memoryview(parts.literals).nbytes
        with self._alone():
            result = lib.nld_decode(
                self._state,
                ffi.NULL if origins is None else origins.state,
                *(given, count, addresses, pages),
            )
        del borrowed
        self._check(result)
        return (
            memoryview(ffi.buffer(addresses)).cast("B")[: count * _format.ADDRESS_BYTES],
            memoryview(ffi.buffer(pages)).cast("B")[: count * self._page_size],
        )

    def _make_room(self, count: int) -> None:
        if count < self._room:
            return
        each = {
            "places": _format.PLACE_MAX,
            "ops": 1,
            "args": _format.ARG_MAX,
            "masks": self._page_size // _format.MASK_OF,
            "words": self._page_size // 2,
            "literals": self._page_size,
        }
        self._out.clear()
        for name, size in each.items():
            memory = _allocate("uint8_t[]", (count + 1) * size)
            self._out[name] = memory, memoryview(ffi.buffer(memory)).cast("B")
        self._room = count + 1

    def _check(self, result: int) -> None:
        if result == 0:
            return
        if result == lib.NLD_IO:
            error = lib.nld_errno(self._state)
            raise OSError(error, os.strerror(error))
        if result == lib.NLD_NO_MEMORY:
            raise MemoryError("no memory for the tables of a page store")
        if result == lib.NLD_BAD_TABLE:
            raise StoreTableError
        raise LadderFormatError(DecodeProblem(result))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # C would corrupt memory where Python code would only be confused.
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("a page store was used by two threads at once")
        try:
            yield
        finally:
            self._busy.release()
