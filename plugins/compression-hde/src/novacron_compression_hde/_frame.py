"""How a batch is written. A payload begins with a byte that says how:

- 0x20: the packed batch as it is. The page stores are left alone.
- 0x21: the lengths of layout, addresses, pages and of the first zstd frame, 4 bytes each; a zstd
  frame with layout and addresses; the pages, packed wide. The page stores are left alone.
- 0x22: by the ladder: `LADDER`, if it is the first `BEGIN`, then three parts, each packed or (by a
  flag) as it is: layout, places, operations and arguments; masks and words; literals. With the flag
  `PASSING` its pages, of a disk, are not kept and refer only to what the destination has offered.

What is packed is one zstd frame; literals and pages are packed wide (`WidePacker`). All numbers
are little-endian. What is empty has no frame.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from novacron import BATCH_BYTES_MAX, Batch, Buffer, PeerProtocolError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PLAIN: Final = 0x20
PACKED: Final = 0x21
ON_LADDER: Final = 0x22

# The first part is packed at this level always, for it is small.
HEAD_LEVEL: Final = 1

BEGINS: Final = 0x01
ON_BASELINE: Final = 0x02
HEAD_AS_IT_IS: Final = 0x04
DELTA_AS_IT_IS: Final = 0x08
LITERALS_AS_THEY_ARE: Final = 0x10
# Pages of a disk, of 4096 bytes: they are not kept, and refer to nothing that was sent.
PASSING: Final = 0x20
FLAGS: Final = 0x3F

PACKED_HEADER: Final = struct.Struct("<BIIII")
PLAIN_HEADER: Final = struct.Struct("<BIII")
# Kind, flags; number of pages; lengths of layout, places, arguments and words; of the first and of
# the second part as they are written here.
LADDER: Final = struct.Struct("<BBIIIIIII")
# Page size, capacity.
BEGIN: Final = struct.Struct("<II")

PLAIN_BYTES_MAX: Final = 1 + len(Batch().pack()) + BATCH_BYTES_MAX
# No part of a batch is larger by much, so no frame of ours has a larger window.
_WINDOW_LOG_MAX: Final = (BATCH_BYTES_MAX - 1).bit_length()

# Pages of other sizes do not go to the store: smaller ones would cost more than they gain.
PAGE_SIZE_LEAST: Final = 512

# A look at so many pieces of so many bytes tells whether the whole is worth the effort.
_SAMPLES: Final = 16
_SAMPLE_BYTES: Final = 1024
_SAMPLE_LEVEL: Final = 1
# Stored as it is unless at least this share is gained.
_GAIN_MIN: Final = 1 / 64


# Literals are packed by so many threads at once, in pieces that are no smaller than this; a peer
# may have more processors.
_CORES: Final = os.cpu_count() or 1
WIDTH: Final = max(1, min(4, _CORES // 2))
WIDTH_MAX: Final = 16
PIECE_LEAST: Final = 256 << 10


class Packer:
    """zstd at one level."""

    def __init__(self, level: int) -> None:
        self.level = level
        self._compressor = zstd.ZstdCompressor(level=level)

    def pack(self, data: Buffer) -> bytes:
        if not len(data):
            return b""
        # With the size known, zstd chooses its tables by it.
        self._compressor.set_pledged_input_size(len(data))
        return self._compressor.compress(data, self._compressor.FLUSH_FRAME)


class WidePacker:
    """zstd at one level, on several processors: pieces of the data, each a frame of its own.

    What comes out: a byte with the number of pieces, the length of each frame but the last (4
    bytes, little-endian), and the frames. All pieces but the last are equally long.
    """

    def __init__(self, level: int) -> None:
        self.level = level
        self._packers = [Packer(level) for _ in range(WIDTH)]

    def pack(self, data: Buffer) -> bytes:
        if not len(data):
            return b""
        view = memoryview(data)
        count = max(1, min(WIDTH, len(view) // PIECE_LEAST))
        if count == 1:
            return b"".join((b"\x01", self._packers[0].pack(view)))
        frames = list(_pool().map(Packer.pack, self._packers[:count], _pieces(view, count)))
        lengths = struct.pack(f"<B{count - 1}I", count, *map(len, frames[:-1]))
        return b"".join((lengths, *frames))


def unpack_wide(packed: memoryview, size: int) -> Buffer:
    """What `WidePacker` was given, which must be so many bytes."""
    if not size:
        return unpack(packed, size)
    count = packed[0] if packed.nbytes else 0
    begin = 1 + 4 * (count - 1)
    if not 1 <= count <= WIDTH_MAX or packed.nbytes < begin:
        raise PeerProtocolError(f"literals in {count} pieces")
    frames, left = [], packed[begin:]
    for length in struct.unpack_from(f"<{count - 1}I", packed, 1):
        frames.append(left[:length])
        left = left[length:]
    frames.append(left)
    sizes = [len(range(size)[piece]) for piece in _slices(size, count)]
    if count == 1:
        return unpack(left, size)
    return b"".join(_pool().map(unpack, frames, sizes))


def _slices(size: int, count: int) -> list[slice]:
    step = -(-size // count)
    return [slice(at * step, (at + 1) * step) for at in range(count)]


def _pieces(view: memoryview, count: int) -> list[memoryview]:
    return [view[piece] for piece in _slices(len(view), count)]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """One for all sessions: more threads than processors would only wait for each other."""
    return ThreadPoolExecutor(WIDTH, thread_name_prefix="hde")


# A process that is forked off has none of its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


class Sampler:
    """Tells noise from what can be compressed."""

    def __init__(self) -> None:
        self._packer = Packer(_SAMPLE_LEVEL)

    def is_noise(self, data: Buffer) -> bool:
        if len(data) < 4 * _SAMPLES * _SAMPLE_BYTES:
            return False
        view = memoryview(data)
        step = len(view) // _SAMPLES
        # From the pieces' ends rather than their beginnings: pages begin with what is alike.
        ends = range(step, step * _SAMPLES + 1, step)
        sample = b"".join(view[end - _SAMPLE_BYTES : end] for end in ends)
        return not gains(self._packer.pack(sample), sample)


def gains(packed: Buffer, data: Buffer) -> bool:
    """Whether packing is worth unpacking."""
    return len(packed) <= len(data) * (1 - _GAIN_MIN)


def plain(batch: Batch) -> bytes:
    """The batch as it is: as `Batch.pack` does, and the kind with it, for one copy of two."""
    lengths = PLAIN_HEADER.pack(PLAIN, len(batch.layout), len(batch.addresses), len(batch.pages))
    return b"".join((lengths, batch.layout, batch.addresses, batch.pages))


def unpack(frame: memoryview, size: int) -> Buffer:
    """The contents of one zstd frame, which must be so many bytes and nothing else."""
    if not size:
        if frame.nbytes:
            raise PeerProtocolError(f"{frame.nbytes} bytes came where none were announced")
        return b""
    decompressor = zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
    )
    try:
        # One more than announced, so that a frame that holds more shows itself.
        data = decompressor.decompress(frame, size + 1)
    except zstd.ZstdError as error:
        raise PeerProtocolError(f"a zstd frame is damaged: {error}") from error
    if len(data) != size or not decompressor.eof:
        raise PeerProtocolError(f"a zstd frame does not hold the {size} bytes that it announced")
    if decompressor.unused_data:
        raise PeerProtocolError("something follows the end of a zstd frame")
    return data


def literals_part(packed: memoryview, size: int, as_it_is: int) -> Buffer:
    """The literals: so many bytes, packed wide or not at all."""
    return part(packed, size, as_it_is) if as_it_is else unpack_wide(packed, size)


def part(frame: memoryview, size: int, as_it_is: int) -> Buffer:
    """One of the three parts: so many bytes, packed or not."""
    if not as_it_is:
        return unpack(frame, size)
    if frame.nbytes != size:
        raise PeerProtocolError(f"a part has {frame.nbytes} bytes where {size} were announced")
    return frame
