"""A codec that somebody else wrote: batches as zlib streams. Its second release has a bug.

The bug is there while the file that ``ACME_BUG`` names exists: the decoder loses the end of every
third batch, as a decoder with a buffer that is too small does.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
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
    """The section ``[compression.acme]``: no settings."""


class Encoder:
    def encode(self, batch: Batch) -> Buffer:
        return zlib.compress(batch.pack(), 1)

    def adapt(self, pressure: Pressure) -> None:
        """One level is enough."""


class Decoder:
    def __init__(self) -> None:
        self._batches = 0

    def decode(self, payload: Buffer) -> Batch:
        self._batches += 1
        packed = zlib.decompressobj().decompress(payload, BATCH_BYTES_MAX + 64)
        if self._batches % 3 == 0 and Path(os.environ["ACME_BUG"]).exists():
            packed = packed[:-1]
        try:
            return Batch.unpack(packed)
        except ValueError as error:
            raise PeerProtocolError(f"no sound batch: {error}") from error


class Acme:
    name: ClassVar[str] = "acme"
    Settings: ClassVar[type] = Settings

    def __init__(self, settings: Any, node: NodeFacts) -> None:
        """It needs to know nothing."""

    def encoder(self, session: CodecSession) -> Encoder:
        return Encoder()

    def decoder(self, session: CodecSession) -> Decoder:
        return Decoder()


@hookimpl
def novacron_register_compression() -> Sequence[type[Compression]]:
    return [Acme]
