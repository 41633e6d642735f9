"""Compression ``hde``: only what the destination does not hold, as deltas and zstd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from novacron import Compression, hookimpl

from novacron_compression_hde._decoder import HdeDecoder
from novacron_compression_hde._effort import UNPACKED, UNTOUCHED
from novacron_compression_hde._encoder import HdeEncoder
from novacron_compression_hde._offer import Offer
from novacron_compression_hde._pagefile import About, PageFile, PageFileError
from novacron_compression_hde._provider import HdeCompression
from novacron_compression_hde._settings import Settings
from novacron_compression_hde._store import Entry, ReferenceStore

if TYPE_CHECKING:
    import click

NOVACRON_API = 1

__all__ = [
    "NOVACRON_API",
    "UNPACKED",
    "UNTOUCHED",
    "About",
    "Entry",
    "HdeCompression",
    "HdeDecoder",
    "HdeEncoder",
    "Offer",
    "PageFile",
    "PageFileError",
    "ReferenceStore",
    "Settings",
    "novacron_register_commands",
    "novacron_register_compression",
]


@hookimpl
def novacron_register_compression() -> Sequence[type[Compression]]:
    return (HdeCompression,)


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_compression_hde._commands import commands

    return commands()
