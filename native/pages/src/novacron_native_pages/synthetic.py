"""QEMU migration streams made without QEMU, for tests, fuzzing and benchmarks."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from typing import Final

_RAM_ID: Final = 2
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_XBZRLE, _COMPRESS, _MULTIFD_FLUSH = 0x40, 0x100, 0x200


class StreamWriter:
    """Writes a stream in the order in which QEMU would; ``stream`` is what was written.

    Args:
        blocks: The guest's RAM blocks and their sizes.
        page_size: The guest's page size.
    """

    def __init__(self, blocks: Mapping[str, int] | None = None, page_size: int = 4096) -> None:
        self.stream = bytearray(struct.pack(">II", 0x5145564D, 3))
        self.blocks = dict(
            blocks or {"pc.ram": 1 << 26, "vga.vram": 1 << 24, "/rom@etc/acpi": 65536}
        )
        self.page_size = page_size
        self._last_block: str | None = None

    def configuration(self, machine: str = "pc-q35-10.0", *, page_bits: int | None = None) -> None:
        name = machine.encode()
        self.stream += struct.pack(">BI", 7, len(name)) + name
        if page_bits is not None:
            self.subsection("configuration/target-page-bits", struct.pack(">I", page_bits))

    def subsection(self, name: str, data: bytes) -> None:
        self.stream += (
            struct.pack(">BB", 5, len(name)) + name.encode() + struct.pack(">I", 1) + data
        )

    def command(self, number: int, data: bytes = b"") -> None:
        self.stream += struct.pack(">BHH", 8, number, len(data)) + data

    def start_ram(self) -> None:
        """The RAM section that lists the blocks."""
        self._header(1, _RAM_ID, "ram", 4)
        self.stream += struct.pack(">Q", sum(self.blocks.values()) | _MEM_SIZE)
        for name, size in self.blocks.items():
            self.stream += bytes([len(name)]) + name.encode() + struct.pack(">Q", size)
        self.end_part()

    def begin_part(self, last: bool = False) -> None:
        """Begin a section of records; `end_part` ends it."""
        self.stream += struct.pack(">BI", 3 if last else 2, _RAM_ID)

    def end_part(self) -> None:
        self.stream += struct.pack(">Q", _EOS)
        self.footer(_RAM_ID)

    def page(self, block: str, offset: int, content: bytes) -> None:
        self._record(block, offset, _PAGE)
        self.stream += content

    def zero(self, block: str, offset: int, fill: int = 0) -> None:
        self._record(block, offset, _ZERO)
        self.stream.append(fill)

    def xbzrle(self, block: str, offset: int, data: bytes) -> None:
        self._record(block, offset, _XBZRLE)
        self.stream += struct.pack(">BH", 1, len(data)) + data

    def compressed(self, block: str, offset: int, data: bytes) -> None:
        self._record(block, offset, _COMPRESS)
        self.stream += struct.pack(">I", len(data)) + data

    def multifd_flush(self) -> None:
        self.stream += struct.pack(">Q", _MULTIFD_FLUSH)

    def device(self, name: str, data: bytes, *, kind: int = 4, number: int = 9) -> None:
        """A section whose contents have no visible length."""
        self._header(kind, number, name, 1)
        self.stream += data
        self.footer(number)

    def footer(self, number: int) -> None:
        self.stream += struct.pack(">BI", 0x7E, number)

    def end(self, description: bytes = b'{"page_size": 4096, "devices": []}') -> None:
        self.stream.append(0)
        self.stream += struct.pack(">BI", 6, len(description)) + description

    def _header(self, kind: int, number: int, name: str, version: int) -> None:
        self.stream += struct.pack(">BIB", kind, number, len(name)) + name.encode()
        self.stream += struct.pack(">II", 0, version)

    def _record(self, block: str, offset: int, flags: int) -> None:
        if block == self._last_block:
            self.stream += struct.pack(">Q", offset | flags | _CONTINUE)
        else:
            self.stream += struct.pack(">QB", offset | flags, len(block)) + block.encode()
        self._last_block = block


def random_stream(rng: random.Random, records: int = 200) -> bytes:
    """A sound stream with a bit of everything, about ``records`` records long."""
    bits = rng.choice([12, 12, 12, 12, 13, 14, 16])
    writer = StreamWriter(page_size=1 << bits)
    names = list(writer.blocks)
    if rng.random() < 0.8:
        writer.configuration(page_bits=bits if bits != 12 or rng.random() < 0.2 else None)
        if rng.random() < 0.2:
            writer.subsection("configuration/uuid", rng.randbytes(16))
    if rng.random() < 0.2:
        writer.command(1, rng.randbytes(4))
    if rng.random() < 0.2:
        writer.device("virtio-mem-early", rng.randbytes(rng.randrange(200)))
    writer.start_ram()
    if rng.random() < 0.2:
        writer.device("dirty-bitmap", rng.randbytes(rng.randrange(60)), kind=1, number=7)
    left = records
    while left > 0:
        writer.begin_part()
        block, index = rng.choice(names), 0
        for _ in range(rng.randrange(1, 40)):
            if rng.random() < 0.05:
                block, index = rng.choice(names), 0
            index += rng.choice([1, 1, 1, 2, 50])
            offset = index * writer.page_size
            kind = rng.random()
            if kind < 0.5:
                writer.page(block, offset, _content(rng, writer.page_size))
            elif kind < 0.95:
                for _ in range(rng.choice([1, 1, 3, 20])):
                    writer.zero(block, offset, 0 if rng.random() < 0.98 else 255)
                    index += 1
                    offset += writer.page_size
            elif kind < 0.98:
                writer.xbzrle(block, offset, rng.randbytes(rng.randrange(100)))
            else:
                writer.compressed(block, offset, rng.randbytes(rng.randrange(100)))
            left -= 1
        writer.end_part()
        if rng.random() < 0.05:
            number = writer.stream[-1] + 5
            writer.stream += struct.pack(">BI", 2, number) + rng.randbytes(30)
            writer.footer(number)
    writer.begin_part(last=True)
    writer.end_part()
    for number in range(rng.randrange(4)):
        writer.device(f"device{number}", rng.randbytes(rng.randrange(500)), number=20 + number)
    writer.end()
    return bytes(writer.stream)


def _content(rng: random.Random, size: int) -> bytes:
    if rng.random() < 0.5:
        return rng.randbytes(16) * (size // 16)
    # Looks like the stream's own structure, to tempt the search for RAM sections.
    return (struct.pack(">BIBIQ", 0x7E, _RAM_ID, 2, _RAM_ID, _EOS) * (size // 18 + 1))[:size]
