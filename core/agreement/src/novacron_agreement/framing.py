"""How records stand in a file, so that a reader can tell a torn tail from damage.

    length (4) | safe (8) | CRC-32 of both and the record (4) | record

``safe`` is how many bytes before this record were known to be on the disk when it was written. A
record that is not sound is a torn tail, which nobody was told of, unless something sound behind it
says that this place was safe already: then the disk has lost what it had promised.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Final

HEAD: Final = struct.Struct(">IQI")
_UNCHECKED: Final = struct.Struct(">IQ")
# The longest record; a snapshot is one.
RECORD_BYTES_MAX: Final = (1 << 30) + (1 << 20)


class Damaged(ValueError):
    """What was safe is not there any more as it was written.

    Args:
        at: The first byte that cannot be believed.
    """

    def __init__(self, at: int) -> None:
        super().__init__(f"what stands at byte {at} was safe once and is damaged now")
        self.at = at


def frame(record: bytes, safe_bytes: int) -> bytes:
    """A record as it stands in the file."""
    unchecked = _UNCHECKED.pack(len(record), safe_bytes)
    crc = zlib.crc32(record, zlib.crc32(unchecked))
    return HEAD.pack(len(record), safe_bytes, crc) + record


def frames(records: Iterable[bytes], safe_bytes: int) -> bytes:
    """Several records as they stand in the file."""
    return b"".join([frame(record, safe_bytes) for record in records])


def parse(data: bytes, safe_bytes: int = 0) -> tuple[list[bytes], int]:
    """The records, and how many bytes are sound; what stands behind those is a torn tail.

    Args:
        safe_bytes: So much is known to have been safe.

    Raises: Damaged if something is not sound that was safe.
    """
    records: list[bytes] = []
    at = 0
    while (found := _read(data, at)) is not None:
        records.append(found[0])
        at += HEAD.size + len(found[0])
    if at < safe_bytes:
        raise Damaged(at)
    # What was reserved and not written yet is nothing but zeros.
    for later in range(at + 1, len(data.rstrip(b"\x00"))):
        found = _read(data, later)
        if found is not None and found[1] > at:
            raise Damaged(at)
    return records, at


def _read(data: bytes, at: int) -> tuple[bytes, int] | None:
    """The sound record at a place and what it says of those before; None if there is none."""
    body = at + HEAD.size
    if body > len(data):
        return None
    length, safe, crc = HEAD.unpack_from(data, at)
    # No record of ours is empty, so reserved space never looks like one.
    if not 0 < length <= min(RECORD_BYTES_MAX, len(data) - body):
        return None
    record = data[body : body + length]
    if crc != zlib.crc32(record, zlib.crc32(data[at : at + _UNCHECKED.size])):
        return None
    return record, safe
