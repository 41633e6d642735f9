"""Compression ``zstd``: each batch by itself, at a level that follows processor and link."""

from __future__ import annotations

from collections.abc import Sequence

from novacron import Compression, hookimpl

from novacron_compression_zstd._codec import Settings, ZstdCompression, ZstdDecoder, ZstdEncoder
from novacron_compression_zstd._levels import LEVELS, STORED

NOVACRON_API = 1

__all__ = [
    "LEVELS",
    "NOVACRON_API",
    "STORED",
    "Settings",
    "ZstdCompression",
    "ZstdDecoder",
    "ZstdEncoder",
    "novacron_register_compression",
]


@hookimpl
def novacron_register_compression() -> Sequence[type[Compression]]:
    return (ZstdCompression,)
