"""The zstd provider, its encoder and its decoder.

A payload begins with a byte that says how the rest is written:

- 0x10: the packed batch as it is, because compressing it gains nothing.
- 0x11: the lengths of layout, addresses and pages, and of the first zstd frame, each 4 bytes,
  little-endian; a zstd frame with layout and addresses; a zstd frame with the pages. What is empty
  has no frame.

Two frames, because then the pages go from the driver's buffer into zstd without a copy.
"""

from __future__ import annotations

import struct
import sys
from typing import Any, ClassVar, Final

from attrs import field, frozen
from attrs.validators import and_, ge, instance_of, le
from novacron import (
    ADDRESS_BYTES,
    BATCH_BYTES_MAX,
    Batch,
    Buffer,
    CodecSession,
    Decoder,
    Effort,
    Encoder,
    NodeFacts,
    PeerProtocolError,
    Pressure,
)

from novacron_compression_zstd._levels import LEVELS, STORED, effort

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_RAW: Final = 0x10
_ZSTD: Final = 0x11
_HEADER: Final = struct.Struct("<BIIII")
_STORED_HEADER: Final = struct.Struct("<BIII")
_STORED_BYTES_MAX: Final = 1 + len(Batch().pack()) + BATCH_BYTES_MAX

# No part of a batch is larger, so no frame of ours has a larger window.
_WINDOW_LOG_MAX: Final = (BATCH_BYTES_MAX - 1).bit_length()
_LEVEL_MIN: Final = -50
# Levels beyond use windows and memory that are out of proportion to a batch.
_LEVEL_MAX: Final = 19

# Where "auto" begins: little is lost on a slow link until it has been seen to be one.
_START_LEVEL: Final = -10

# A look at so many pieces of so many bytes tells whether the whole is worth the effort.
_SAMPLES: Final = 16
_SAMPLE_BYTES: Final = 1024
_SAMPLE_LEVEL: Final = 1
# Stored as it is unless at least this share is gained.
_GAIN_MIN: Final = 1 / 64


def _check_level(instance: object, attribute: object, value: object) -> None:
    if value == "auto":
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f'level must be "auto" or a number, not {value!r}')
    if not _LEVEL_MIN <= value <= _LEVEL_MAX:
        raise ValueError(f"level must be between {_LEVEL_MIN} and {_LEVEL_MAX}, not {value}")


_in_range = and_(ge(_LEVEL_MIN), le(_LEVEL_MAX))


@frozen(kw_only=True)
class Settings:
    """How hard to compress. The section is ``[compression.zstd]``.

    Attributes:
        level: A zstd level, or ``auto``: chosen again and again by whether the encoder or the link
            is what the migration waits for.
        level_min: ``auto`` goes no lower.
        level_max: ``auto`` goes no higher.
        store: ``auto`` may send batches as they are where the link outruns ``level_min``.
    """

    level: int | str = field(default="auto", validator=_check_level)
    level_min: int = field(default=LEVELS[0], validator=_in_range)
    level_max: int = field(default=LEVELS[-1], validator=_in_range)
    store: bool = field(default=True, validator=instance_of(bool))

    def __attrs_post_init__(self) -> None:
        if self.level_min > self.level_max:
            raise ValueError(
                f"level_min {self.level_min} must be <= level_max, which is {self.level_max}"
            )


class ZstdEncoder:
    """Encodes one session's batches."""

    def __init__(self, settings: Settings) -> None:
        self._effort: Effort | None = None
        self._raw_bytes = self._sent_bytes = 0
        if isinstance(settings.level, int):
            level = settings.level
        else:
            self._effort = effort(
                settings.level_min, settings.level_max, _START_LEVEL, store=settings.store
            )
            level = self._effort.step
        self._level = level
        self._compressor = zstd.ZstdCompressor(level=level)
        self._sampler = zstd.ZstdCompressor(level=_SAMPLE_LEVEL)

    @property
    def level(self) -> int:
        """The zstd level of the batches that follow; `STORED` if they are sent as they are."""
        return self._level

    def encode(self, batch: Batch) -> Buffer:
        size = batch.nbytes
        if size > BATCH_BYTES_MAX:
            raise ValueError(f"a batch of {size} bytes is larger than {BATCH_BYTES_MAX}")
        payload = self._encode(batch)
        self._raw_bytes += size
        self._sent_bytes += len(payload)
        return payload

    def _encode(self, batch: Batch) -> bytes:
        if self._level == STORED or self._is_noise(batch.pages):
            return _store(batch)
        head = self._frame(b"".join((batch.layout, batch.addresses)))
        pages = self._frame(batch.pages)
        if len(head) + len(pages) > batch.nbytes * (1 - _GAIN_MIN):
            return _store(batch)
        header = _HEADER.pack(
            _ZSTD, len(batch.layout), len(batch.addresses), len(batch.pages), len(head)
        )
        return b"".join((header, head, pages))

    def adapt(self, pressure: Pressure) -> None:
        if self._effort is None:
            return
        self._effort.adapt(pressure, self._raw_bytes, self._sent_bytes)
        self._raw_bytes = self._sent_bytes = 0
        if self._effort.step != self._level:
            self._level = self._effort.step
            if self._level != STORED:
                self._compressor = zstd.ZstdCompressor(level=self._level)

    def _frame(self, data: Buffer) -> bytes:
        if not len(data):
            return b""
        compressor = self._compressor
        # With the size known, zstd chooses its tables by it.
        compressor.set_pledged_input_size(len(data))
        return compressor.compress(data, compressor.FLUSH_FRAME)

    def _is_noise(self, pages: Buffer) -> bool:
        if len(pages) < 4 * _SAMPLES * _SAMPLE_BYTES:
            return False
        view = memoryview(pages)
        step = len(view) // _SAMPLES
        # From the pieces' ends rather than their beginnings: pages begin with what is alike.
        ends = range(step, step * _SAMPLES + 1, step)
        sample = b"".join(view[end - _SAMPLE_BYTES : end] for end in ends)
        sampler = self._sampler
        sampler.set_pledged_input_size(len(sample))
        packed = sampler.compress(sample, sampler.FLUSH_FRAME)
        return len(packed) > len(sample) * (1 - _GAIN_MIN)


def _store(batch: Batch) -> bytes:
    # As `Batch.pack` does, and the kind with it, for one copy instead of two.
    lengths = _STORED_HEADER.pack(_RAW, len(batch.layout), len(batch.addresses), len(batch.pages))
    return b"".join((lengths, batch.layout, batch.addresses, batch.pages))


class ZstdDecoder:
    """Decodes one session's frames."""

    def decode(self, payload: Buffer) -> Batch:
        view = memoryview(payload).cast("B")
        tag = view[0] if view.nbytes else None
        if tag == _RAW:
            if view.nbytes > _STORED_BYTES_MAX:
                raise PeerProtocolError(
                    f"a payload holds {view.nbytes} bytes; at most {_STORED_BYTES_MAX} are allowed"
                )
            # Not copied, for on a fast link that would be a good part of what a batch costs.
            return Batch.unpack(view[1:])
        if tag != _ZSTD:
            what = "an empty payload" if tag is None else f"a payload of the unknown kind {tag:#x}"
            raise PeerProtocolError(
                f"{what} came where zstd was agreed on",
                hint="both nodes need compatible versions of novacron-compression-zstd",
            )
        if view.nbytes < _HEADER.size:
            raise PeerProtocolError(f"a payload of {view.nbytes} bytes is shorter than its header")
        _, layout, addresses, pages, first = _HEADER.unpack_from(view)
        if layout + addresses + pages > BATCH_BYTES_MAX:
            raise PeerProtocolError(
                f"a payload claims {layout + addresses + pages} bytes; "
                f"at most {BATCH_BYTES_MAX} are allowed"
            )
        count, odd = divmod(addresses, ADDRESS_BYTES)
        if odd or (pages % count if count else pages):
            raise PeerProtocolError(f"{pages} bytes of pages do not fit {addresses} of addresses")
        frames = view[_HEADER.size :]
        if first > frames.nbytes:
            raise PeerProtocolError("a payload is shorter than the frame in it")
        head = memoryview(_open(frames[:first], layout + addresses))
        return Batch(head[:layout], head[layout:], _open(frames[first:], pages))


def _open(frame: memoryview, size: int) -> bytes:
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


class ZstdCompression:
    """The provider ``zstd``."""

    name: ClassVar[str] = "zstd"
    Settings: ClassVar[type] = Settings

    def __init__(self, settings: Any, node: NodeFacts) -> None:
        self._settings: Settings = settings

    def encoder(self, session: CodecSession) -> Encoder:
        return ZstdEncoder(self._settings)

    def decoder(self, session: CodecSession) -> Decoder:
        return ZstdDecoder()
