"""The same routines in Python and numpy: the oracle of the C code, and what works without it.

The stream's and the layout's form are described once, in c/stream.c. Both implementations make
byte for byte the same pieces.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from novacron_native_pages import _format
from novacron_native_pages._format import (
    BLOCKS_MAX,
    JOINED_MAX,
    JOINED_TARGET,
    LAYOUT_TARGET,
    PAGE_BITS_MAX,
    PAGE_BITS_MIN,
    PAGES_TARGET,
    Buffer,
    Counters,
    Indices,
    JoinProblem,
    Piece,
    Reason,
    StreamFormatError,
)

Bytes = npt.NDArray[np.uint8]

_SLICE: Final = 4 << 20  # bounds what comparing needs besides the buffers


def _rows(buffer: Buffer, count: int, page_size: int) -> Bytes:
    return np.frombuffer(buffer, np.uint8).reshape(count, page_size)


def zero_pages(buffer: Buffer, page_size: int) -> bytes:
    """Which pages are all zero: one bit per page, lowest bit first."""
    count = _format.page_count(memoryview(buffer).nbytes, page_size)
    if count == 0:
        return b""
    words = np.frombuffer(buffer, np.uint64).reshape(count, page_size // 8)
    return np.packbits(~words.any(axis=1), bitorder="little").tobytes()


def changed_pages(old: Buffer, new: Buffer, page_size: int) -> Indices:
    """The indices, ascending, of the pages that differ."""
    count = _format.page_count(memoryview(new).nbytes, page_size)
    if memoryview(old).nbytes != memoryview(new).nbytes:
        raise ValueError(f"old has {len(old)} bytes and new has {len(new)}")
    if count == 0:
        return np.empty(0, np.uint64)
    before, after = _rows(old, count, page_size), _rows(new, count, page_size)
    step = max(1, _SLICE // page_size)
    found = [
        np.flatnonzero((before[at : at + step] != after[at : at + step]).any(axis=1)) + at
        for at in range(0, count, step)
    ]
    return np.concatenate(found).astype(np.uint64)


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
    if memoryview(old).readonly or memoryview(out).readonly:
        raise BufferError("old and out must be writable")
    if count == 0:
        return np.empty(0, np.uint64), 0
    before, after = _rows(old, count, page_size), _rows(new, count, page_size)
    copies = np.frombuffer(out, np.uint8)[: room * page_size].reshape(room, page_size)
    step = max(1, _SLICE // page_size)
    found: list[Indices] = []
    have = 0
    at = start
    while at < count and have < room:
        end = min(at + step, count)
        changed = np.flatnonzero((before[at:end] != after[at:end]).any(axis=1)) + at
        full = len(changed) >= room - have
        changed = changed[: room - have]
        copies[have : have + len(changed)] = after[changed]
        before[changed] = copies[have : have + len(changed)]
        have += len(changed)
        found.append(changed.astype(np.uint64))
        at = int(changed[-1]) + 1 if full else end
    return (np.concatenate(found) if found else np.empty(0, np.uint64)), at


def hash_pages(buffer: Buffer, page_size: int) -> Indices:
    """XXH64 (seed 0) of each page."""
    count = _format.page_count(memoryview(buffer).nbytes, page_size)
    view = memoryview(buffer).cast("B")
    pages = (view[i * page_size : (i + 1) * page_size] for i in range(count))
    return np.fromiter(map(xxhash.xxh64_intdigest, pages), np.uint64, count)


# --- QEMU migration streams ---------------------------------------------------------------------

_LAYOUT_VERSION: Final = 1
_HEADER: Final = struct.Struct("<BBHI")
_OP: Final = struct.Struct("<BI")
_OP_LITERAL, _OP_PAGES, _OP_ZEROS, _OP_CONTENT = 1, 2, 3, 4

_MAGIC: Final = bytes.fromhex("5145564d00000003")
_RAM_VERSION: Final = 4
_EOF, _START, _PART, _END, _FULL = 0, 1, 2, 3, 4
_SUBSECTION, _DESCRIPTION, _CONFIGURATION, _COMMAND, _FOOTER = 5, 6, 7, 8, 0x7E
_POSTCOPY_COMMANDS: Final = range(3, 8)
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_XBZRLE, _COMPRESS, _MULTIFD_FLUSH = 0x40, 0x100, 0x200
_OFFSET_LIMIT: Final = 1 << 48
_NAME_MAX: Final = 4096
_MARK_START: Final = 22
_MARK_PART: Final = 10
_TAIL_MAX: Final = _MARK_START - 1

_S_MAGIC, _S_TOP, _S_CONFIGURATION, _S_RAM, _S_BLOCKS, _S_SKIP, _S_OPAQUE = range(7)


class _More(Exception):
    """The record under way needs so many bytes to be understood."""

    def __init__(self, need: int) -> None:
        self.need = need


class _Broken(Exception):
    """The stream cannot be walked from here."""

    def __init__(self, reason: Reason, section: str = "") -> None:
        self.reason = reason
        self.section = section


class Splitter:
    """Takes a QEMU migration stream apart, whatever pieces it arrives in.

    Never fails for what the stream holds: what it does not understand goes into layouts as it is.
    One thread at a time.
    """

    def __init__(self, page_size: int = 4096) -> None:
        _format.page_bits(page_size)
        self._page_size = page_size
        self._state = self._after_skip = _S_MAGIC
        self._sealed = False
        self._skip = 0
        self._blocks_left = 0
        self._ram_id: bytes | None = None
        self._blocks: dict[bytes, int] = {}
        self._block: int | None = None
        self._last_key = -1
        self._record = bytearray()
        self._emitted = 0
        self._tail = b""
        # What the record under way is: flags (0 if it has no form of its own), offset, contents
        self._flags = self._offset = self._body = 0
        self._bytes = self._opaque_bytes = self._pages_seen = self._zeros_seen = 0
        self._ram_bytes = self._rounds = self._resyncs = 0
        self._reason = Reason.WALKING
        self._section = ""
        self._begin()

    def _begin(self) -> None:
        self._layout = bytearray(_HEADER.size)
        self._addresses = bytearray()
        self._pages = bytearray()
        self._joined = 0
        self._op = self._op_at = self._op_count = 0
        self._zero_next = 0

    def feed(self, data: Buffer) -> list[Piece]:
        """Take the next bytes of the stream; returns the pieces that are full now."""
        view = memoryview(data).cast("B")
        full: list[Piece] = []
        at, end = 0, len(view)
        while True:
            if self._is_full():
                full.extend(self.flush())
            if at == end:
                break
            rest = view[at:]
            if self._state == _S_SKIP:
                used = min(self._skip, self._literal_room(len(rest)))
                self._put_literal(rest[:used])
                self._skip -= used
                if self._skip == 0:
                    self._state = self._after_skip
            elif self._state == _S_OPAQUE:
                used = self._pass_opaque(rest)
            else:
                used = 0
                if self._state == _S_RAM and not self._record:
                    used = self._walk_ram(rest)
                if used == 0:
                    used = self._walk(rest)
            at += used
        self._bytes += end
        return full

    def flush(self, everything: bool = False) -> list[Piece]:
        """What was fed and has not been returned yet; a list of one piece, or of none.

        With ``everything`` also the beginning of a record whose rest has not arrived (at most a
        page and its name); otherwise that waits inside for its rest.
        """
        if everything:
            self._put_literal(self._record[self._emitted :])
            self._emitted = len(self._record)
        if not self._joined:
            return []
        bits = _format.page_bits(self._page_size)
        _HEADER.pack_into(self._layout, 0, _LAYOUT_VERSION, bits, 0, self._joined)
        piece = Piece(bytes(self._layout), bytes(self._addresses), memoryview(self._pages))
        self._begin()
        return [piece]

    @property
    def counters(self) -> Counters:
        """What was seen so far."""
        return Counters(
            bytes=self._bytes,
            opaque_bytes=self._opaque_bytes,
            pages=self._pages_seen,
            zero_pages=self._zeros_seen,
            ram_bytes=self._ram_bytes,
            rounds=self._rounds,
            blocks=len(self._blocks),
            resyncs=self._resyncs,
            reason=self._reason,
            page_size=self._page_size,
            section=self._section,
        )

    # --- the batch under way ---

    def _is_full(self) -> bool:
        return (
            len(self._layout) >= LAYOUT_TARGET
            or self._joined >= JOINED_TARGET
            or len(self._pages) >= PAGES_TARGET
        )

    def _operation(self, kind: int, more: int) -> None:
        if self._op != kind:
            self._op, self._op_at, self._op_count = kind, len(self._layout), 0
            self._layout += bytes(_OP.size)
        self._op_count += more
        _OP.pack_into(self._layout, self._op_at, kind, self._op_count)

    def _put_literal(self, data: Buffer) -> None:
        if data:
            self._operation(_OP_LITERAL, len(data))
            self._layout += data
            self._joined += len(data)

    def _put_pages(self, kind: int, offsets: list[int], content: Buffer) -> None:
        self._operation(kind, len(offsets))
        for offset in offsets:
            self._addresses += ((self._block or 0) << 48 | offset).to_bytes(8, "little")
        self._pages += content
        self._joined += len(content) + (8 * len(offsets) if kind == _OP_PAGES else 0)

    def _put_zero(self, offset: int) -> None:
        if self._op == _OP_ZEROS and offset != self._zero_next:
            self._op = 0
        fresh = self._op != _OP_ZEROS
        self._operation(_OP_ZEROS, 1)
        if fresh:
            self._layout += offset.to_bytes(8, "little")
        self._zero_next = offset + self._page_size
        self._joined += 9

    # --- understanding records ---

    def _go(self, state: int) -> None:
        self._state = state
        self._reason = Reason.WALKING

    def _skip_to(self, size: int, state: int) -> None:
        self._skip, self._after_skip = size, state
        self._state = _S_SKIP if size else state

    def _want(self, size: int) -> None:
        if len(self._record) < size:
            raise _More(size)

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self._record[at : at + size], "big")

    def _mark(self, offset: int) -> None:
        key = (self._block or 0) << 48 | offset
        if self._rounds == 0 or key < self._last_key:
            self._rounds += 1
        self._last_key = key

    def _parse(self) -> None:
        self._flags = 0
        if self._state == _S_MAGIC:
            self._want(8)
            if self._record != _MAGIC:
                raise _Broken(Reason.NOT_QEMU)
            self._go(_S_TOP)
        elif self._state == _S_RAM:
            self._parse_ram()
        elif self._state == _S_BLOCKS:
            self._parse_block()
        else:
            self._want(1)
            if self._state == _S_CONFIGURATION and self._record[0] == _SUBSECTION:
                self._parse_configuration()
            else:
                self._parse_top()

    def _parse_configuration(self) -> None:
        self._want(2)
        at = 2 + self._record[1] + 4
        self._want(at)
        name = bytes(self._record[2 : at - 4])
        if name == b"configuration/target-page-bits":
            self._want(at + 4)
            bits = self._number(at, 4)
            if not PAGE_BITS_MIN <= bits <= PAGE_BITS_MAX:
                raise _Broken(Reason.CONFIGURATION)
            if self._pages and 1 << bits != self._page_size:
                raise _Broken(Reason.CONFIGURATION)
            self._page_size = 1 << bits
        elif name == b"configuration/uuid":
            self._want(at + 16)
        else:
            raise _Broken(Reason.CONFIGURATION)

    def _parse_top(self) -> None:
        kind = self._record[0]
        if kind == _EOF:
            self._go(_S_TOP)
        elif kind == _FOOTER:
            self._want(5)
            self._go(_S_TOP)
        elif kind in (_START, _FULL):
            self._want(6)
            end = 6 + self._record[5]
            self._want(end + 8)
            name = bytes(self._record[6:end])
            if kind == _START and name == b"ram" and self._number(end + 4, 4) == _RAM_VERSION:
                self._ram_id = bytes(self._record[1:5])
                self._go(_S_RAM)
            else:
                name = name.split(b"\0")[0]
                raise _Broken(Reason.DEVICE, name.decode("ascii", "backslashreplace"))
        elif kind in (_PART, _END):
            self._want(5)
            if bytes(self._record[1:5]) != self._ram_id:
                raise _Broken(Reason.DEVICE)
            self._go(_S_RAM)
        elif kind == _DESCRIPTION:
            self._want(5)
            self._skip_to(self._number(1, 4), _S_TOP)
        elif kind == _CONFIGURATION:
            self._want(5)
            if self._number(1, 4) > _NAME_MAX:
                raise _Broken(Reason.CONFIGURATION)
            self._skip_to(self._number(1, 4), _S_CONFIGURATION)
        elif kind == _COMMAND:
            self._want(5)
            if self._number(1, 2) in _POSTCOPY_COMMANDS:
                raise _Broken(Reason.POSTCOPY)
            self._skip_to(self._number(3, 2), _S_TOP)
        else:
            raise _Broken(Reason.BAD_RECORD)

    def _parse_ram(self) -> None:
        self._want(8)
        word = self._number(0, 8)
        flags = word & (self._page_size - 1)
        offset = word - flags
        kind = flags & ~_CONTINUE
        if word == _EOS:
            self._go(_S_TOP)
            return
        if flags == _MEM_SIZE and offset:
            self._blocks_left = self._ram_bytes = offset
            self._blocks = {}
            self._block = None
            self._state = _S_BLOCKS
            return
        if flags == _MULTIFD_FLUSH:
            raise _Broken(Reason.MULTIFD)
        if kind not in (_PAGE, _ZERO, _XBZRLE, _COMPRESS) or offset >= _OFFSET_LIMIT:
            raise _Broken(Reason.BAD_RECORD)
        at = 8
        block = self._block
        if not flags & _CONTINUE:
            self._want(9)
            at = 9 + self._record[8]
            self._want(at)
            block = self._blocks.get(bytes(self._record[9:at]))
        if block is None:
            raise _Broken(Reason.BAD_RECORD)
        if kind == _PAGE:
            self._want(at + self._page_size)
            self._pages_seen += 1
        elif kind == _ZERO:
            self._want(at + 1)
            self._zeros_seen += 1
        else:
            self._want(at + (3 if kind == _XBZRLE else 4))
            if kind == _XBZRLE:
                packed, limit = self._number(at + 1, 2), self._page_size
                if self._record[at] != 1:
                    raise _Broken(Reason.BAD_RECORD)
            else:
                packed, limit = self._number(at, 4), 2 * self._page_size
            if packed > limit:
                raise _Broken(Reason.BAD_RECORD)
            self._pages_seen += 1
            self._skip_to(packed, _S_RAM)
        self._block = block
        self._flags, self._offset, self._body = flags, offset, at
        self._mark(offset)

    def _parse_block(self) -> None:
        self._want(1)
        end = 1 + self._record[0]
        self._want(end + 8)
        name, length = bytes(self._record[1:end]), self._number(end, 8)
        if not name or not length or length > self._blocks_left:
            raise _Broken(Reason.BAD_RECORD)
        if len(self._blocks) == BLOCKS_MAX:
            raise _Broken(Reason.TOO_MANY_BLOCKS)
        if name in self._blocks:
            raise _Broken(Reason.BAD_RECORD)
        self._blocks[name] = len(self._blocks)
        self._blocks_left -= length
        if self._blocks_left == 0:
            self._state = _S_RAM

    def _put_record(self) -> None:
        r, body = self._record, self._body
        if self._emitted:
            self._put_literal(r[self._emitted :])
        elif self._flags == _PAGE | _CONTINUE:
            self._put_pages(_OP_PAGES, [self._offset], r[body:])
        elif self._flags == _PAGE:
            self._put_literal(r[:body])
            self._put_pages(_OP_CONTENT, [self._offset], r[body:])
        elif self._flags == _ZERO | _CONTINUE and r[body] == 0:
            self._put_zero(self._offset)
        else:
            self._put_literal(r)
        self._record = bytearray()
        self._emitted = 0

    def _walk(self, data: memoryview) -> int:
        at = 0
        while True:
            try:
                self._parse()
            except _More as more:
                if at == len(data):
                    return at
                piece = data[at : at + more.need - len(self._record)]
                self._record += piece
                at += len(piece)
            except _Broken as broken:
                self._reason, self._section = broken.reason, broken.section
                self._sealed = broken.reason > Reason.BAD_RECORD
                self._tail = bytes(self._record[-_TAIL_MAX:])
                self._flags = 0
                self._opaque_bytes += len(self._record) - self._emitted
                self._put_record()
                self._state = _S_OPAQUE
                return at
            else:
                self._put_record()
                return at

    def _walk_ram(self, data: memoryview) -> int:
        """The common records that lie whole in the input."""
        if self._block is None:
            return 0
        at = 0
        while len(data) - at >= 9 and not self._is_full():
            word = int.from_bytes(data[at : at + 8], "big")
            flags = word & (self._page_size - 1)
            if word >= _OFFSET_LIMIT:
                break
            if flags == _PAGE | _CONTINUE:
                used = self._walk_pages(data[at:])
            elif flags == _ZERO | _CONTINUE and data[at + 8] == 0:
                offset = word - flags
                self._put_zero(offset)
                self._mark(offset)
                self._zeros_seen += 1
                used = 9
            else:
                break
            if used == 0:
                break
            at += used
        return at

    def _walk_pages(self, data: memoryview) -> int:
        size = 8 + self._page_size
        count = min(
            len(data) // size,
            (PAGES_TARGET - len(self._pages)) // self._page_size,
            -(-(JOINED_TARGET - self._joined) // size),
        )
        records = np.frombuffer(data[: count * size], np.uint8).reshape(count, size)
        words = np.ascontiguousarray(records[:, :8]).view(">u8").reshape(count)
        wrong = (words & np.uint64(self._page_size - 1)) != _PAGE | _CONTINUE
        wrong |= words >= _OFFSET_LIMIT
        stop = np.flatnonzero(wrong)
        if len(stop):
            count = int(stop[0])
        if count:
            offsets = [int(word) - (_PAGE | _CONTINUE) for word in words[:count]]
            self._put_pages(_OP_PAGES, offsets, records[:count, 8:].tobytes())
            for offset in offsets:
                self._mark(offset)
            self._pages_seen += count
        return count * size

    def _literal_room(self, available: int) -> int:
        used = len(self._layout) + (0 if self._op == _OP_LITERAL else _OP.size)
        return min(available, max(1, LAYOUT_TARGET - used))

    def _is_mark(self, data: bytes) -> bool:
        if self._ram_id is not None:
            return data[5] in (_PART, _END) and data[6:10] == self._ram_id
        return data[5] == _START and data[10:14] == b"\3ram" and data[18:22] == b"\0\0\0\4"

    def _pass_opaque(self, data: memoryview) -> int:
        chunk = bytes(data[: self._literal_room(len(data))])
        if not self._sealed:
            size = _MARK_START if self._ram_id is None else _MARK_PART
            before = self._tail[-(size - 1) :]
            window = before + chunk
            at = window.find(_FOOTER)
            while at >= 0 and not (
                len(window) - at >= size and self._is_mark(window[at : at + size])
            ):
                at = window.find(_FOOTER, at + 1)
            if at >= 0:
                chunk = chunk[: at + size - len(before)]
                if self._ram_id is None:
                    self._ram_id = window[at + 6 : at + 10]
                self._tail = b""
                self._resyncs += 1
                self._go(_S_RAM)
            else:
                self._tail = (self._tail + chunk)[-_TAIL_MAX:]
        self._put_literal(chunk)
        self._opaque_bytes += len(chunk)
        return len(chunk)


def join_into(out: Buffer, layout: Buffer, addresses: Buffer, pages: Buffer) -> int:
    """Write the piece of stream that this came from into ``out``; returns its length.

    Raises:
        StreamFormatError: These are not the parts of one piece, or ``out`` is too small. What
            ``out`` holds then means nothing.
    """
    target = memoryview(out).cast("B")
    if target.readonly:
        raise BufferError("out must be writable")
    plan = memoryview(layout).cast("B")
    contents = memoryview(pages).cast("B")
    numbers = memoryview(addresses).cast("B")
    if len(plan) < _HEADER.size:
        raise StreamFormatError(JoinProblem.BAD_HEADER)
    version, bits, zero, total = _HEADER.unpack_from(plan)
    if version != _LAYOUT_VERSION or zero or not PAGE_BITS_MIN <= bits <= PAGE_BITS_MAX:
        raise StreamFormatError(JoinProblem.BAD_HEADER)
    if total > min(len(target), JOINED_MAX):
        raise StreamFormatError(JoinProblem.TOO_LONG)
    page_size = 1 << bits
    count, odd = divmod(len(numbers), 8)
    if odd or len(contents) != count * page_size:
        raise StreamFormatError(JoinProblem.BAD_COUNT)
    page = done = 0
    at = _HEADER.size
    while at < len(plan):
        if len(plan) - at < _OP.size:
            raise StreamFormatError(JoinProblem.BAD_OPERATION)
        kind, n = _OP.unpack_from(plan, at)
        at += _OP.size
        if n == 0:
            raise StreamFormatError(JoinProblem.BAD_OPERATION)
        room = total - done
        if kind == _OP_LITERAL:
            if n > len(plan) - at:
                raise StreamFormatError(JoinProblem.BAD_OPERATION)
            if n > room:
                raise StreamFormatError(JoinProblem.TOO_LONG)
            target[done : done + n] = plan[at : at + n]
            at += n
            done += n
        elif kind in (_OP_PAGES, _OP_CONTENT):
            header = 8 if kind == _OP_PAGES else 0
            if n > count - page:
                raise StreamFormatError(JoinProblem.BAD_COUNT)
            if n > room // (header + page_size):
                raise StreamFormatError(JoinProblem.TOO_LONG)
            for i in range(page, page + n):
                if header:
                    number = int.from_bytes(numbers[8 * i : 8 * i + 8], "little")
                    offset = number & (_OFFSET_LIMIT - 1)
                    if offset & (page_size - 1):
                        raise StreamFormatError(JoinProblem.BAD_OPERATION)
                    target[done : done + 8] = (offset | _PAGE | _CONTINUE).to_bytes(8, "big")
                    done += 8
                target[done : done + page_size] = contents[i * page_size : (i + 1) * page_size]
                done += page_size
            page += n
        elif kind == _OP_ZEROS:
            if len(plan) - at < 8:
                raise StreamFormatError(JoinProblem.BAD_OPERATION)
            offset = int.from_bytes(plan[at : at + 8], "little")
            at += 8
            if offset & (page_size - 1) or offset + n * page_size > _OFFSET_LIMIT:
                raise StreamFormatError(JoinProblem.BAD_OPERATION)
            if n > room // 9:
                raise StreamFormatError(JoinProblem.TOO_LONG)
            words = np.arange(offset, offset + n * page_size, page_size, dtype=np.uint64)
            records = np.zeros((n, 9), np.uint8)
            records[:, :8] = (
                (words | np.uint64(_ZERO | _CONTINUE)).astype(">u8").view(np.uint8).reshape(n, 8)
            )
            target[done : done + 9 * n] = records.tobytes()
            done += 9 * n
        else:
            raise StreamFormatError(JoinProblem.BAD_OPERATION)
    if done != total or page != count:
        raise StreamFormatError(JoinProblem.BAD_COUNT)
    return int(done)
