"""Page traces: what a machine driver reads while a guest leaves, kept to be replayed without one.

A trace is a zstd stream of a line of JSON (what it is of) and records: eight bytes of time in
microseconds since the first, four of length, and a batch as `novacron.Batch.pack` writes it; all
numbers little-endian.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from novacron import Batch, ConfigError, MachineError
from novacron_native_pages import Splitter

from novacron_bench._qmp import Qmp

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT: Final = "novacron-trace-1"
_RECORD: Final = struct.Struct("<QI")
# A batch is bounded by the protocol; a file that says more is no trace.
RECORD_BYTES_MAX: Final = 16 << 20
_HEAD_BYTES_MAX: Final = 64 << 10
_READ_BYTES: Final = 1 << 20
_LEVEL: Final = 1


@frozen(kw_only=True)
class Recorded:
    """What a trace holds.

    Attributes:
        seconds: How long the machine took to leave.
    """

    batches: int
    pages: int
    raw_bytes: int
    seconds: float


def write_trace(path: Path, about: dict[str, Any], batches: Iterator[tuple[float, Batch]]) -> int:
    """Write batches with their times in seconds; how many there were."""
    count = 0
    with zstd.open(path, "wb", level=_LEVEL) as file:
        file.write(json.dumps({"format": FORMAT, **about}).encode() + b"\n")
        for at_s, batch in batches:
            packed = batch.pack()
            file.write(_RECORD.pack(int(at_s * 1e6), len(packed)))
            file.write(packed)
            count += 1
    return count


def read_trace(path: Path) -> Iterator[tuple[float, Batch]]:
    """The batches of a trace with their times. Raises ConfigError if it is none."""
    try:
        with zstd.open(path, "rb") as file:
            head = file.readline(_HEAD_BYTES_MAX)
            if json.loads(head).get("format") != FORMAT:
                raise ValueError("another format")
            while record := file.read(_RECORD.size):
                at_us, length = _RECORD.unpack(record)
                if length > RECORD_BYTES_MAX:
                    raise ValueError(f"a batch of {length} bytes")
                packed = file.read(length)
                if len(packed) < length:
                    raise ValueError("it was cut off")
                yield at_us / 1e6, Batch.unpack(packed)
    except (OSError, EOFError, ValueError, AttributeError, struct.error, zstd.ZstdError) as error:
        raise ConfigError(
            f"{path} is no trace that can be replayed: {error}",
            hint="record one with `novacron bench record`",
        ) from error


def leave(source: Qmp, socket_path: Path, rate_bytes_per_s: int) -> Iterator[tuple[float, Batch]]:
    """Have a QEMU's guest leave through a socket, and give its batches as they come.

    The guest goes on afterwards. Raises MachineError if it does not leave.
    """
    socket_path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen(1)
        listener.settimeout(30)
        source.execute(
            "migrate-set-parameters",
            **{
                "max-bandwidth": rate_bytes_per_s,
                "avail-switchover-bandwidth": rate_bytes_per_s,
            },
        )
        source.execute("migrate", uri=f"unix:{socket_path}")
        stream, _ = listener.accept()
    splitter = Splitter()
    buffer = memoryview(bytearray(_READ_BYTES))
    began_s = time.monotonic()
    with stream:
        stream.settimeout(60)
        while count := stream.recv_into(buffer):
            for piece in splitter.feed(buffer[:count]):
                yield time.monotonic() - began_s, Batch(*piece)
    for piece in splitter.flush(everything=True):
        yield time.monotonic() - began_s, Batch(*piece)
    deadline = time.monotonic() + 20
    while (status := source.execute("query-migrate").get("status")) != "completed":
        if status in ("failed", "cancelled") or time.monotonic() > deadline:
            raise MachineError(f"the guest did not leave: QEMU says {status}")
        time.sleep(0.01)
    source.execute("cont")
