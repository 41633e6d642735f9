"""A whole compression plugin: batches as zlib streams, for hosts that have nothing better."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

from attrs import frozen
from novacron import (
    BATCH_BYTES_MAX,
    Batch,
    Buffer,
    CodecSession,
    Compression,
    NodeFacts,
    PeerProtocolError,
    Pressure,
    hookimpl,
)

NOVACRON_API = 1


@frozen(kw_only=True)
class Settings:
    """The section ``[compression.deflate]``.

    Attributes:
        level: From 1, the fastest, to 9, the smallest.
    """

    level: int = 6


class DeflateEncoder:
    def __init__(self, level: int) -> None:
        self._level = level

    def encode(self, batch: Batch) -> Buffer:
        return zlib.compress(batch.pack(), self._level)

    def adapt(self, pressure: Pressure) -> None:
        """Stays at the level that was asked for."""


class DeflateDecoder:
    def decode(self, payload: Buffer) -> Batch:
        stream = zlib.decompressobj()
        try:
            # A little more than any sound batch: a bomb stops there, whatever it claims.
            packed = stream.decompress(payload, BATCH_BYTES_MAX + 64)
        except zlib.error as error:
            raise PeerProtocolError(f"a frame is no sound zlib stream: {error}") from error
        if not stream.eof or stream.unused_data:
            raise PeerProtocolError("a frame's zlib stream does not end where the frame does")
        return Batch.unpack(packed)


class Deflate:
    name: ClassVar[str] = "deflate"
    Settings: ClassVar[type] = Settings

    def __init__(self, settings: Any, node: NodeFacts) -> None:
        self._settings: Settings = settings

    def encoder(self, session: CodecSession) -> DeflateEncoder:
        return DeflateEncoder(self._settings.level)

    def decoder(self, session: CodecSession) -> DeflateDecoder:
        return DeflateDecoder()


@hookimpl
def novacron_register_compression() -> Sequence[type[Compression]]:
    return [Deflate]
