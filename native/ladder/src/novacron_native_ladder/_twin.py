"""The same in Python, page by page: the oracle of the C part, and its stand-in where there is none.

A decoder of one implementation understands an encoder of the other. They may choose different rungs
for a page only where the table of contents of C, which is bounded, has forgotten one.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from novacron_native_ladder import _format
from novacron_native_ladder._format import (
    MASK_OF,
    WORD_BYTES,
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

_ADDRESS: Final = struct.Struct("<Q")
_ALL_BITS: Final = (1 << 64) - 1
_WORK_PAGES: Final = 64


def _read(fd: int, size: int, at: int) -> bytes:
    data = os.pread(fd, size, at)
    while len(data) < size:
        more = os.pread(fd, size - len(data), at + len(data))
        if not more:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        data += more
    return data


def _write(fd: int, data: Buffer, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def hash_pages(buffer: Buffer, page_size: int, seed: int) -> Hashes:
    """XXH64 of each page."""
    view = memoryview(buffer).cast("B")
    _format.check_pages(view.nbytes, page_size)
    pages = (view[at : at + page_size] for at in range(0, view.nbytes, page_size))
    return np.array([xxhash.xxh64_intdigest(page, seed) for page in pages], np.uint64)


def hash_file(fd: int, at: int, count: int, page_size: int, seeds: Sequence[int]) -> list[Hashes]:
    """XXH64 of ``count`` pages of a file, by one seed or by two, in one pass.

    Raises: OSError, also if the file ends too early.
    """
    _format.check_sizes(page_size, 0)
    if not 1 <= len(seeds) <= 2:
        raise ValueError(f"one or two seeds can be used in a pass, not {len(seeds)}")
    hashes: list[list[Hashes]] = [[] for _ in seeds]
    for done in range(0, count, _WORK_PAGES):
        some = min(_WORK_PAGES, count - done)
        data = _read(fd, some * page_size, at + done * page_size)
        for seed, found in zip(seeds, hashes, strict=True):
            found.append(hash_pages(data, page_size, seed))
    return [np.concatenate([np.empty(0, np.uint64), *found]) for found in hashes]


class References:
    """Pages that the other side offered, found by the hash of their content."""

    def __init__(self, hashes: Hashes) -> None:
        if len(hashes) > _format.REFERENCES_MAX:
            raise ValueError(f"{len(hashes)} pages are more than {_format.REFERENCES_MAX}")
        self._count = len(hashes)
        self._numbers: dict[int, int] = {}
        for number, value in enumerate(hashes.tolist()):
            if value:
                self._numbers.setdefault(value, number)

    def __len__(self) -> int:
        return self._count

    def find(self, value: int) -> int | None:
        return self._numbers.get(value)

    def drop(self, first: int, count: int) -> None:
        """Look no more for the numbers ``first`` to ``first + count - 1``."""
        if not 0 <= first <= first + count <= self._count:
            raise ValueError(f"{count} pages from {first} are not among {self._count}")
        self._numbers = {
            value: number
            for value, number in self._numbers.items()
            if not first <= number < first + count
        }


class Origins:
    """Where the pages are that this side offered."""

    def __init__(
        self,
        fds: Sequence[int],
        origin: npt.NDArray[np.uint32],
        offset: npt.NDArray[np.uint64],
    ) -> None:
        _format.check_offers(fds, origin, offset)  # type: ignore[arg-type]
        self._fds = list(fds)
        self._origin = origin
        self._offset = offset

    def __len__(self) -> int:
        return len(self._origin)

    def find(self, number: int) -> tuple[int, int] | None:
        """File and offset of a page; None if there is no such page any more."""
        which = int(self._origin[number])
        if which >= len(self._fds) or self._fds[which] < 0:
            return None
        return self._fds[which], int(self._offset[number])

    def close(self, which: int) -> None:
        """Refuse pages of this file from now on."""
        self._fds[which] = -1


def _fold(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _unfold(value: int) -> int:
    return value >> 1 if not value & 1 else -((value + 1) >> 1)


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Cursor:
    def __init__(self, part: Buffer, problem: DecodeProblem) -> None:
        self._view = memoryview(part).cast("B")
        self._at = 0
        self._problem = problem

    def take(self, size: int) -> memoryview:
        if self._view.nbytes - self._at < size:
            raise LadderFormatError(self._problem)
        self._at += size
        return self._view[self._at - size : self._at]

    def number(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > _ALL_BITS:
                    break
                return value
        raise LadderFormatError(self._problem)

    def near(self, expected: int, count: int) -> int:
        value = (expected + _unfold(self.number())) & _ALL_BITS
        if value >= count:
            raise LadderFormatError(self._problem)
        return value

    def finish(self) -> None:
        if self._at != self._view.nbytes:
            raise LadderFormatError(self._problem)


def _delta(old: bytes, now: bytes) -> tuple[bytes, bytes] | None:
    """Mask and words; None if more than half of the words differ."""
    by = np.frombuffer(old, "<u8") ^ np.frombuffer(now, "<u8")
    changed = by != 0
    if np.count_nonzero(changed) > len(by) // 2:
        return None
    return np.packbits(changed, bitorder="little").tobytes(), by[changed].tobytes()


class Store:
    """Pages in a file, and the rungs that need them. One thread at a time."""

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
        self._fd = fd
        self._places = places
        self._page_size = page_size
        self._capacity = capacity
        self._seed = seed
        self._by_content = by_content
        self._slots: dict[int, int] = {}
        self._hashes: dict[int, int] = {}  # of the content of a slot
        self._contents: dict[int, int] = {}  # where a content was last seen

    @property
    def count(self) -> int:
        """Slots in use."""
        return len(self._slots)

    @property
    def memory_bytes(self) -> int:
        """What the tables take, about."""
        return 100 * (len(self._slots) + len(self._hashes) + len(self._contents))

    def load(self, count: int, hashes: Hashes | None = None) -> None:
        """Begin with the first ``count`` slots of the file; once, before anything else."""
        if hashes is not None and len(hashes) != count:
            raise ValueError(f"{len(hashes)} hashes for {count} slots")
        if count > self._capacity or self._slots:
            raise StoreTableError
        table = _read(self._fd, count * _ADDRESS.size, self._places.addresses_at)
        for slot, (address,) in enumerate(_ADDRESS.iter_unpack(table)):
            if address in self._slots:
                raise StoreTableError
            self._slots[address] = slot
            if hashes is not None:
                self._note(slot, int(hashes[slot]))

    def encode(
        self,
        addresses: Buffer,
        pages: Buffer,
        references: References | None = None,
        *,
        content: bool = True,
        delta: bool = True,
    ) -> Encoded:
        """Take a batch apart, and keep its pages."""
        count = _format.check_batch(addresses, pages, self._page_size)
        known = self.count
        size = self._page_size
        places, ops, args = bytearray(), bytearray(), bytearray()
        masks, words, literals = bytearray(), bytearray(), bytearray()
        expected = next_copy = next_reference = 0
        view = memoryview(pages).cast("B")
        for number, (address,) in enumerate(_ADDRESS.iter_unpack(memoryview(addresses).cast("B"))):
            page = bytes(view[number * size : (number + 1) * size])
            places += self._place(address, expected)
            expected = (address + size) & _ALL_BITS
            slot = self._slots.get(address)
            rung = Rung.LITERAL
            value = 0
            old = None if slot is None else self._content(slot)
            if page == page[:1] * size:
                rung = Rung.UNIFORM
                args.append(page[0])
            elif page == old:
                rung = Rung.SAME
            else:
                if content:
                    value = xxhash.xxh64_intdigest(page, self._seed)
                    other = self._find(value)
                    if other is not None and self._content(other) == page:
                        rung = Rung.COPY
                        args += _number(_fold(other - next_copy))
                        next_copy = other + 1
                    elif references is not None and value:
                        other = references.find(value)
                        if other is not None:
                            rung = Rung.REFERENCE
                            args += _number(_fold(other - next_reference))
                            next_reference = other + 1
                if rung is Rung.LITERAL and old is not None and delta:
                    changed = _delta(old, page)
                    if changed is not None:
                        rung = Rung.DELTA
                        masks += changed[0]
                        words += changed[1]
                if rung is Rung.LITERAL:
                    literals += page
            ops.append(rung)
            self._keep(rung, address, page, value)
        self._save(known)
        counts = np.bincount(np.frombuffer(ops, np.uint8), minlength=len(Rung))
        assert count == len(ops)
        parts = Parts(*(bytes(part) for part in (places, ops, args, masks, words, literals)))
        return Encoded(parts, tuple(counts.tolist()))

    def decode(self, parts: Parts, origins: Origins | None = None) -> tuple[memoryview, memoryview]:
        """Addresses and pages of a batch; its pages are kept."""
        size = self._page_size
        known = self.count
        places = _Cursor(parts.places, DecodeProblem.BAD_PLACE)
        args = _Cursor(parts.args, DecodeProblem.BAD_ARGUMENT)
        masks, words, literals = (
            _Cursor(part, DecodeProblem.BAD_LENGTH)
            for part in (parts.masks, parts.words, parts.literals)
        )
        addresses, pages = bytearray(), bytearray()
        expected = next_copy = next_reference = 0
        for op in bytes(parts.ops):
            address = self._address(places, expected)
            expected = (address + size) & _ALL_BITS
            addresses += _ADDRESS.pack(address)
            slot = self._slots.get(address)
            if op == Rung.UNIFORM:
                page = bytes(args.take(1)) * size
            elif op in (Rung.SAME, Rung.DELTA):
                if slot is None:
                    raise LadderFormatError(DecodeProblem.BAD_OPERATION)
                page = self._content(slot)
                if op == Rung.DELTA:
                    page = self._apply(page, masks, words)
            elif op == Rung.COPY:
                other = args.near(next_copy, self.count)
                next_copy = other + 1
                page = self._content(other)
            elif op == Rung.REFERENCE:
                other = args.near(next_reference, 0 if origins is None else len(origins))
                next_reference = other + 1
                found = None if origins is None else origins.find(other)
                if found is None:
                    raise LadderFormatError(DecodeProblem.BAD_ARGUMENT)
                page = _read(found[0], size, found[1])
            elif op == Rung.LITERAL:
                page = bytes(literals.take(size))
            else:
                raise LadderFormatError(DecodeProblem.BAD_OPERATION)
            pages += page
            self._keep(Rung(op), address, page, 0)
        for cursor in (places, args, masks, words, literals):
            cursor.finish()
        self._save(known)
        return memoryview(addresses), memoryview(pages)

    def _place(self, address: int, expected: int) -> bytes:
        off = (address - expected) & _ALL_BITS
        if off >> 63:
            off -= 1 << 64
        if off % self._page_size == 0:
            return _number(_fold(off // self._page_size) << 1)
        return b"\1" + _ADDRESS.pack(address)

    def _address(self, places: _Cursor, expected: int) -> int:
        value = places.number()
        if not value & 1:
            return (expected + _unfold(value >> 1) * self._page_size) & _ALL_BITS
        if value != 1:
            raise LadderFormatError(DecodeProblem.BAD_PLACE)
        address: int = _ADDRESS.unpack(places.take(_ADDRESS.size))[0]
        return address

    def _apply(self, page: bytes, masks: _Cursor, words: _Cursor) -> bytes:
        mask = np.frombuffer(masks.take(self._page_size // MASK_OF), np.uint8)
        changed = np.unpackbits(mask, bitorder="little").astype(bool)
        by = words.take(int(np.count_nonzero(changed)) * WORD_BYTES)
        content = np.frombuffer(page, "<u8").copy()
        content[changed] ^= np.frombuffer(by, "<u8")
        return content.tobytes()

    def _content(self, slot: int) -> bytes:
        size = self._page_size
        return _read(self._fd, size, self._places.pages_at + slot * size)

    def _keep(self, rung: Rung, address: int, page: bytes, value: int) -> None:
        """The rule by which both sides keep their stores alike."""
        slot = self._slots.get(address)
        if rung is Rung.SAME or (rung is Rung.UNIFORM and slot is None):
            return
        if slot is None:
            if self.count >= self._capacity:
                return
            slot = self._slots[address] = self.count
        self._note(slot, value)
        _write(self._fd, page, self._places.pages_at + slot * self._page_size)

    def _note(self, slot: int, value: int) -> None:
        if self._by_content:
            self._hashes[slot] = value
            if value and self._find(value) is None:
                self._contents[value] = slot

    def _find(self, value: int) -> int | None:
        slot = self._contents.get(value)
        return slot if slot is not None and self._hashes.get(slot) == value else None

    def _save(self, known: int) -> None:
        if self.count == known:
            return
        # A dictionary keeps the order in which the slots were given.
        fresh = b"".join(map(_ADDRESS.pack, islice(self._slots, known, None)))
        _write(self._fd, fresh, self._places.addresses_at + known * _ADDRESS.size)
        _write(self._fd, _ADDRESS.pack(self.count), self._places.count_at)
