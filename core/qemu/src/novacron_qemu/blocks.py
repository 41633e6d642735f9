"""A disk's blocks as batches, beside the memory's pages; and what the other side holds of them.

The addresses of a disk's pages lie above those of any memory: bit 63 is set, bits 48 to 55 are the
disk's number, and the rest is the offset in the disk. So memory and disks go through the same
codec, link and digest, and equal addresses still mean the same page.

The layout of such a batch begins with `MARK`, which no stream of QEMU's has there, and a version;
then come records: kind, disk, length, offset. ``PAGES`` takes its bytes from the batch's pages,
``BYTES`` (what does not fill a page) from the layout behind the record, ``ZEROS`` needs none: an
empty disk of any size costs some bytes per GiB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
from attrs import frozen
from blake3 import blake3
from novacron_dwcp import ADDRESS_BYTES, BATCH_BYTES_TARGET, Batch, Buffer, ProtocolError

PAGE: Final = 4096
REGION: Final = 1 << 63
DISK_SHIFT: Final = 48
DISKS_MAX: Final = 256
DISK_BYTES_MAX: Final = 16 << 40
MARK: Final = 0xD5
_VERSION: Final = 1

BLOCK_BYTES: Final = 64 << 10
BLOCK_BYTES_MAX: Final = 1 << 20
DIGEST_BYTES: Final = 16
KEY_BYTES: Final = 32
# What a destination says of all its disks goes into one message of at most 16 MiB.
HAVE_BYTES_MAX: Final = 3 << 20

_HEAD = struct.Struct("<BBH")
_RECORD = struct.Struct("<BBHIQ")
_PAGES: Final = 1
_BYTES: Final = 2
_ZEROS: Final = 3
# A run of zeros in one record; a multiple of any block.
_ZEROS_MAX: Final = 1 << 31
_LAYOUT_BYTES_MAX: Final = 256 << 10
_ZERO_DIGEST: Final = bytes(DIGEST_BYTES)
_UNKNOWN: Final = b"\xff" * DIGEST_BYTES
_ZEROS_OF: Final = {size: bytes(size) for size in (BLOCK_BYTES, BLOCK_BYTES_MAX)}


class BlocksRefused(ProtocolError):
    """What a peer says of a disk's blocks is not sound."""


@frozen
class Extent:
    """A part of a disk and what is in it; ``data`` is None for zeros."""

    disk: int
    offset: int
    length: int
    data: Buffer | None


def address_of(disk: int, offset: int) -> int:
    """The address of a disk's page."""
    return REGION | disk << DISK_SHIFT | offset


def holds_blocks(batch: Batch) -> bool:
    """Whether a batch is of disks, not of memory."""
    return len(batch.layout) > 0 and batch.layout[0] == MARK


class BatchMaker:
    """Gathers extents until they fill a batch. One thread at a time."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._layout = [_HEAD.pack(MARK, _VERSION, 0)]
        self._layout_bytes = _HEAD.size
        self._addresses: list[bytes] = []
        self._pages: list[Buffer] = []
        self._page_bytes = 0

    @property
    def empty(self) -> bool:
        return len(self._layout) == 1

    @property
    def full(self) -> bool:
        """Whether it is time to `take`."""
        return (
            self._page_bytes >= BATCH_BYTES_TARGET or self._layout_bytes >= _LAYOUT_BYTES_MAX // 2
        )

    def add(self, extent: Extent) -> None:
        """Take an extent of at most 1 MiB of data, or of zeros as long as they may be."""
        disk, offset, data = extent.disk, extent.offset, extent.data
        if data is None:
            left = extent.length
            while left:
                size = min(left, _ZEROS_MAX)
                self._record(_ZEROS, disk, size, offset)
                offset, left = offset + size, left - size
            return
        view = memoryview(data)
        head = min(-offset % PAGE, len(view))
        middle = (len(view) - head) // PAGE * PAGE
        self._bytes(disk, offset, view[:head])
        if middle:
            at = offset + head
            self._record(_PAGES, disk, middle, at)
            first = address_of(disk, at)
            places = np.arange(middle // PAGE, dtype="<u8") * np.uint64(PAGE) + np.uint64(first)
            self._addresses.append(places.astype("<u8").tobytes())
            self._pages.append(view[head : head + middle])
            self._page_bytes += middle
        self._bytes(disk, offset + head + middle, view[head + middle :])

    def _bytes(self, disk: int, offset: int, data: memoryview) -> None:
        if data:
            self._record(_BYTES, disk, len(data), offset)
            self._layout.append(bytes(data))
            self._layout_bytes += len(data)

    def _record(self, kind: int, disk: int, length: int, offset: int) -> None:
        self._layout.append(_RECORD.pack(kind, disk, 0, length, offset))
        self._layout_bytes += _RECORD.size

    def take(self) -> Batch:
        """All that was added."""
        batch = Batch(b"".join(self._layout), b"".join(self._addresses), b"".join(self._pages))
        self._begin()
        return batch


def extents_of(batch: Batch, sizes: Sequence[int]) -> list[Extent]:
    """What a batch says of disks of these sizes.

    Raises: BlocksRefused if no `BatchMaker` makes such a batch, or it lies outside of its disk.
    """
    layout, pages = memoryview(batch.layout), memoryview(batch.pages)
    if len(layout) < _HEAD.size or _HEAD.unpack_from(layout) != (MARK, _VERSION, 0):
        raise BlocksRefused(
            "a batch of blocks does not begin as one of this version does",
            hint="both nodes need the same version of novacron-qemu",
        )
    if len(batch.addresses) // ADDRESS_BYTES * PAGE != len(pages):
        raise BlocksRefused("a batch of blocks has pages that are not of 4096 bytes")
    addresses = np.frombuffer(batch.addresses, "<u8")
    found: list[Extent] = []
    at, used = _HEAD.size, 0
    while at < len(layout):
        if len(layout) - at < _RECORD.size:
            raise BlocksRefused("a batch of blocks ends inside of a record")
        kind, disk, zero, length, offset = _RECORD.unpack_from(layout, at)
        at += _RECORD.size
        if zero or not length or disk >= len(sizes) or offset + length > sizes[disk]:
            raise BlocksRefused(f"a batch has {length} bytes at {offset} of disk {disk}")
        data: Buffer | None = None
        if kind == _PAGES:
            if length % PAGE or offset % PAGE or used + length > len(pages):
                raise BlocksRefused("a batch of blocks has fewer pages than it says")
            first, count = used // PAGE, length // PAGE
            wanted = address_of(disk, offset)
            if addresses[first] != wanted or addresses[first + count - 1] != wanted + length - PAGE:
                raise BlocksRefused("a batch of blocks has other addresses than it says")
            data = pages[used : used + length]
            used += length
        elif kind == _BYTES:
            if length > 2 * PAGE or at + length > len(layout):
                raise BlocksRefused("a batch of blocks has fewer bytes than it says")
            data = layout[at : at + length]
            at += length
        elif kind != _ZEROS:
            raise BlocksRefused(f"a batch of blocks has a record of the unknown kind {kind}")
        found.append(Extent(disk, offset, length, data))
    if used != len(pages):
        raise BlocksRefused("a batch of blocks has more pages than it says")
    return found


# What a destination holds already.


class HeldDisk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The blocks of one disk that are not zero: their numbers, 4 bytes each in little-endian order,
    and the first 16 bytes of their BLAKE3 by the key. ``block_bytes`` is what each covers,
    ``size_bytes`` what the whole disk has. A disk that was made anew has no such blocks."""

    disk: int
    size_bytes: int
    block_bytes: int = BLOCK_BYTES
    key: bytes = bytes(KEY_BYTES)
    blocks: bytes = b""
    digests: bytes = b""


class HeldPlace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a disk that both sides reach lies: its name, and what proves that it is the same."""

    disk: int
    name: str
    proof: str


class Have(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A destination's word on the disks of a machine before it comes."""

    disks: list[HeldDisk] = []
    places: list[HeldPlace] = []

    def pack(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def unpack(cls, data: bytes) -> Have:
        """Raises BlocksRefused."""
        if len(data) > HAVE_BYTES_MAX + (64 << 10):
            raise BlocksRefused(f"the destination says {len(data)} bytes of its disks")
        try:
            have = msgspec.msgpack.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BlocksRefused(
                f"the destination's word on its disks is not sound: {error}"
            ) from error
        for held in have.disks:
            sound = held.block_bytes & (held.block_bytes - 1) == 0
            sound &= BLOCK_BYTES <= held.block_bytes <= BLOCK_BYTES_MAX
            sound &= len(held.key) == KEY_BYTES and len(held.blocks) % 4 == 0
            sound &= len(held.digests) == len(held.blocks) // 4 * DIGEST_BYTES
            if not sound:
                raise BlocksRefused("the destination's word on its disks does not add up")
        return have


def digest_of(block: Buffer, key: bytes | None = None) -> bytes:
    """The digest of a block; never that of zeros, nor the one of what is not known."""
    hasher = blake3(block) if key is None else blake3(block, key=key)
    found = hasher.digest(DIGEST_BYTES)
    return found if found not in (_ZERO_DIGEST, _UNKNOWN) else b"\x01" * DIGEST_BYTES


def is_zero(block: bytes) -> bool:
    """Whether all of a block of at most 1 MiB is zero."""
    zeros = _ZEROS_OF.get(len(block))
    return block == zeros if zeros is not None else not block.strip(b"\0")


class Held:
    """What the destination's disk holds, block by block, as far as it is known: what was there
    before, and what has been sent since. 16 bytes for each block.

    Args:
        size_bytes: The disk's.
        held: What the destination says of it; None: that it is zero.

    Raises: BlocksRefused if what the destination says does not fit the disk.
    """

    def __init__(self, size_bytes: int, held: HeldDisk | None = None) -> None:
        self.block_bytes = held.block_bytes if held is not None else BLOCK_BYTES
        self._size = size_bytes
        self._key = held.key if held is not None else None
        count = -(-size_bytes // self.block_bytes)
        self._table = np.zeros((count, DIGEST_BYTES), np.uint8)
        if held is not None and held.blocks:
            blocks = np.frombuffer(held.blocks, "<u4")
            if int(blocks.max()) >= count:
                raise BlocksRefused("the destination says more of its disk than there is")
            self._table[blocks] = np.frombuffer(held.digests, np.uint8).reshape(-1, DIGEST_BYTES)

    def differing(self, offset: int, data: bytes) -> Iterator[tuple[int, int, bytes | None]]:
        """The parts of a write that the destination has not yet: offset, length and bytes (None for
        zeros). It counts as having them from now on."""
        run_at, run_end, end = offset, offset, offset + len(data)
        while run_end < end:
            block = run_end // self.block_bytes
            stop = min((block + 1) * self.block_bytes, end)
            piece = data[run_end - offset : stop - offset]
            whole = run_end == block * self.block_bytes and stop == min(
                (block + 1) * self.block_bytes, self._size
            )
            digest = _UNKNOWN
            if whole:
                digest = _ZERO_DIGEST if is_zero(piece) else digest_of(piece, self._key)
            known = self._table[block].tobytes()
            if whole and (known == digest or digest == _ZERO_DIGEST):
                if run_at < run_end:
                    yield run_at, run_end - run_at, data[run_at - offset : run_end - offset]
                if known != digest:
                    yield run_end, stop - run_end, None
                run_at = stop
            self._table[block] = np.frombuffer(digest, np.uint8)
            run_end = stop
        if run_at < end:
            yield run_at, end - run_at, data[run_at - offset :]

    def zeroed(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The parts of a run of zeros that are not zero at the destination: offset and length."""
        end = offset + length
        first, last = offset // self.block_bytes, -(-end // self.block_bytes)
        dirty = self._table[first:last].any(axis=1)
        for number in np.flatnonzero(dirty):
            block = first + int(number)
            start = max(offset, block * self.block_bytes)
            stop = min(end, (block + 1) * self.block_bytes)
            yield start, stop - start
            whole = stop - start == min(self.block_bytes, self._size - block * self.block_bytes)
            self._table[block] = 0 if whole else np.frombuffer(_UNKNOWN, np.uint8)
