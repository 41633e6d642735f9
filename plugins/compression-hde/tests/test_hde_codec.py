"""The codec ``hde``: its contract, and payloads that no encoder makes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from novacron_compression_hde import HdeCompression
from novacron_compression_hde import _frame as fr
from novacron_testkit.contracts.compression import CompressionContract


class TestHde(CompressionContract):
    provider = HdeCompression

    def bombs(self, tmp_path: Path) -> Iterable[bytes]:
        zeros = fr.Packer(3).pack(bytes(96 << 20))
        yield fr.PACKED_HEADER.pack(fr.PACKED, 0, 8, 4096, 8) + bytes(8) + zeros
        yield fr.PACKED_HEADER.pack(fr.PACKED, 0xFFFFFFFF, 8, 8, 8) + zeros
        yield bytes((fr.PLAIN,)) + bytes(96 << 20)
        opening = fr.BEGIN.pack(4096, 1000)
        for count, layout in ((1, 0), (1000, 0), (0, 4 << 20), (0xFFFFFFFF, 0)):
            header = fr.LADDER.pack(fr.ON_LADDER, fr.BEGINS, count, layout, 0, 0, 0, len(zeros), 0)
            yield header + opening + zeros
        yield fr.LADDER.pack(fr.ON_LADDER, fr.BEGINS, 0, 0, 0, 0, 0, 0, 0) + b"\xff" * 8
