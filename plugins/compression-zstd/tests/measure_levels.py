"""Prints speed and ratio of each level on real data: ``python measure_levels.py [FOLDER] [MIB]``.

Speeds are per second of processor time, so that other work on the host changes them little.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from novacron import BATCH_BYTES_TARGET, Batch
from novacron_compression_zstd import LEVELS, Settings, ZstdDecoder, ZstdEncoder

_PAGE = 4096


def contents(folder: Path, size: int) -> Iterator[bytes]:
    """The files' bytes in batches, until there are enough."""
    data = bytearray()
    for root, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(root, name) for name in sorted(names)):
            if path.is_symlink() or not path.is_file():
                continue
            try:
                data += path.read_bytes()
            except OSError:
                continue
            while len(data) >= BATCH_BYTES_TARGET:
                if size <= 0:
                    return
                yield bytes(data[:BATCH_BYTES_TARGET])
                del data[:BATCH_BYTES_TARGET]
                size -= BATCH_BYTES_TARGET


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/lib")
    size = int(sys.argv[2]) << 20 if len(sys.argv) > 2 else 256 << 20
    count = BATCH_BYTES_TARGET // _PAGE
    addresses = struct.pack(f"<{count}Q", *range(0, BATCH_BYTES_TARGET, _PAGE))
    batches = [Batch(b"", addresses, pages) for pages in contents(folder, size)]
    total = sum(batch.nbytes for batch in batches)
    sys.stdout.write(f"{total / 2**20:.0f} MiB of {folder}, by 1 MiB\n")
    sys.stdout.write("level  encode MB/s  ratio  decode MB/s\n")
    for level in LEVELS:
        encoder, decoder = ZstdEncoder(Settings(level=level)), ZstdDecoder()
        encode_s = decode_s = 0.0
        packed = 0
        for batch in batches:
            begun = time.process_time()
            payload = encoder.encode(batch)
            between = time.process_time()
            decoder.decode(payload)
            decode_s += time.process_time() - between
            encode_s += between - begun
            packed += len(payload)
        sys.stdout.write(
            f"{level:5}  {total / encode_s / 1e6:11.0f}  {total / packed:5.2f}"
            f"  {total / decode_s / 1e6:11.0f}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
