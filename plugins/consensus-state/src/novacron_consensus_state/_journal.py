"""The replica's records on disk: one file that grows, and is written anew now and then.

A record is framed by its length, how much of the file was safe already when it was written, and a
CRC-32 over both and the record. What was not safe when the power went may be torn, and is cut off:
nobody was ever told of it. A record that was safe and is damaged means that the disk has lost
something, and then nothing in the file is believed.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from novacron import NovacronError

MAGIC: Final = b"NOVSTAT1"
_HEAD: Final = struct.Struct(">IQI")  # length, safe bytes, CRC-32
RECORD_BYTES_MAX: Final = 64 << 20


class StateDamaged(NovacronError):
    """The replica's file is damaged, foreign or cannot be read. It was left as it is."""

    code = "state-damaged"


def frame(record: bytes, safe_bytes: int) -> bytes:
    """A record as it stands in the file."""
    head = struct.pack(">IQ", len(record), safe_bytes)
    return head + zlib.crc32(record, zlib.crc32(head)).to_bytes(4, "big") + record


def parse(data: bytes) -> tuple[list[bytes], int]:
    """The records in a file's bytes, and how many of them are sound; the rest is a torn tail.

    Raises: ValueError if a record is damaged that was safe.
    """
    records: list[bytes] = []
    at = 0
    while (found := _record_at(data, at)) is not None:
        records.append(found[0])
        at += _HEAD.size + len(found[0])
    # Whoever wrote behind this place knew it to be safe: then it is not torn but damaged.
    for later in range(at + 1, len(data) - _HEAD.size + 1):
        behind = _record_at(data, later)
        if behind is not None and behind[1] > at:
            raise ValueError(f"the record at byte {at} is damaged, and it was safe")
    return records, at


def _record_at(data: bytes, at: int) -> tuple[bytes, int] | None:
    body = at + _HEAD.size
    if body > len(data):
        return None
    length, safe, crc = _HEAD.unpack_from(data, at)
    if not length or length > RECORD_BYTES_MAX or body + length > len(data):
        return None
    record = data[body : body + length]
    if zlib.crc32(record, zlib.crc32(data[at : body - 4])) != crc:
        return None
    return record, safe


class Journal:
    """See the module. One process at a time; its methods block.

    Args:
        path: The file; it is made, with its folder, if it is not there.
    Raises:
        StateDamaged, OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.with_name(path.name + ".new").unlink(missing_ok=True)
        if not path.exists():
            self._write_new([])
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            self.records = self._read()
        except BaseException:
            os.close(self._file)
            raise

    def _read(self) -> list[bytes]:
        data = self.path.read_bytes()
        hint = (
            "stop the node and move the file aside: it then begins a new life and gets everything "
            "from the other members; what only this one had is lost. Or restore a backup"
        )
        if data[: len(MAGIC)] != MAGIC:
            raise StateDamaged(f"{self.path} is no state of this release", hint=hint)
        try:
            records, sound = parse(data[len(MAGIC) :])
        except ValueError as error:
            raise StateDamaged(f"{self.path}: {error}", hint=hint) from error
        self._safe = sound
        if len(MAGIC) + sound < len(data):
            os.ftruncate(self._file, len(MAGIC) + sound)
            os.fsync(self._file)
        return records

    def append(self, records: Sequence[bytes]) -> None:
        """Write records; durable after `sync`. Raises OSError: they may be there in part."""
        data = memoryview(b"".join(frame(record, self._safe) for record in records))
        while data:
            data = data[os.write(self._file, data) :]

    def sync(self) -> None:
        """Make durable what was appended. Raises OSError: nothing may be appended any more, since
        what the system has dropped it does not write at the next attempt."""
        os.fdatasync(self._file)
        self._safe = os.lseek(self._file, 0, os.SEEK_END) - len(MAGIC)

    def replace(self, records: Sequence[bytes]) -> None:
        """Put records in the place of all others, in one step, durably. Raises OSError: the old
        ones are there."""
        self._write_new(records)
        old, self._file = self._file, os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        os.close(old)
        self._safe = os.lseek(self._file, 0, os.SEEK_END) - len(MAGIC)

    def close(self) -> None:
        """Twice is once."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _write_new(self, records: Sequence[bytes]) -> None:
        new = self.path.with_name(self.path.name + ".new")
        with open(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb"
        ) as file:
            file.write(MAGIC)
            for record in records:
                file.write(frame(record, 0))
            file.flush()
            os.fsync(file.fileno())
        new.rename(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
