"""A disk that does what disks do to a log when the power goes.

What is appended is safe only after `SimulatedDisk.sync`. When the process's machine crashes before
it, each sector that was not synced may have been written or not, in any order: the log's tail is
lost, or torn in the midst of a record, or even whole. Later a synced sector may prove corrupt.

    disk = SimulatedDisk(sim, "a")
    disk.append(records)
    sim.point("a")             # a crash here loses or tears them
    wait_ms = disk.sync()      # what follows in the core's effects happens so much later
    ...
    def crashed(self, node):   # of the World
        disk.crash()
    def boot(self, node):
        records = disk.read()

A disk keeps records in the framing of `frame` and `parse`: length, how much of the log was safe
already when the record was written, CRC-32, bytes. From the second a reader can tell a torn tail
from decay: a damaged record is torn as long as nothing sound behind it says that it was safe. Decay
in what was synced last looks like a torn tail to everybody, so chance spares that. Give your own
log's functions in their place, and they are what is tested.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from novacron_testkit.simulator import Simulator

SECTOR_BYTES: Final = 512
_HEADER: Final = 16


class CorruptDisk(Exception):
    """A record in the midst of a log is damaged: what is durable is not what was synced.

    A torn tail is no damage, since nobody was told that it is safe. After this, nothing of the log
    may be believed; the member must be replaced, or take its state from the others.
    """


def frame(record: bytes, safe_bytes: int) -> bytes:
    """A record as it stands in a log of which so many bytes were safe when it was written."""
    head = len(record).to_bytes(4, "big") + safe_bytes.to_bytes(8, "big")
    return head + zlib.crc32(record, zlib.crc32(head)).to_bytes(4, "big") + record


def parse(data: bytes) -> tuple[list[bytes], int]:
    """The records of a log, and how many of its bytes are sound; what follows those is torn.

    Raises:
        CorruptDisk: A record is damaged that was safe.
    """
    records: list[bytes] = []
    at = 0
    while (found := _record_at(data, at)) is not None:
        records.append(found[0])
        at += _HEADER + len(found[0])
    for later in range(at + 1, len(data) - _HEADER + 1):
        found = _record_at(data, later)
        if found is not None and found[1] > at:
            raise CorruptDisk(f"the record at byte {at} is damaged, and it was safe")
    return records, at


def _record_at(data: bytes, at: int) -> tuple[bytes, int] | None:
    length = int.from_bytes(data[at : at + 4], "big")
    body = at + _HEADER
    if body + length > len(data) or not any(data[at:body]):
        return None
    record = data[body : body + length]
    crc = zlib.crc32(record, zlib.crc32(data[at : at + 12]))
    if crc != int.from_bytes(data[at + 12 : body], "big"):
        return None
    return record, int.from_bytes(data[at + 4 : at + 12], "big")


class SimulatedDisk:
    """One process's log of records. See the module.

    Args:
        sim: Whose faults befall it: ``disk`` (it is full), ``slow`` and ``corrupt``; whether a
            crash tears what was not synced is its chance too, counted as ``torn``.
        node: Whose it is.
        frame: Makes of a record, and of how much of the log is safe, what stands in the log.
        parse: The records of a log and how many bytes of it are sound. Raises what it wants if the
            log is damaged.
        sector_bytes: What is written as a whole or not at all.

    Attributes:
        data: What a reader sees now; may be spoilt by hand.
        synced_bytes: How much of it survives a crash.
    """

    def __init__(
        self,
        sim: Simulator,
        node: str,
        *,
        frame: Callable[[bytes, int], bytes] = frame,
        parse: Callable[[bytes], tuple[list[bytes], int]] = parse,
        sector_bytes: int = SECTOR_BYTES,
    ) -> None:
        self.data = bytearray()
        self.synced_bytes = 0
        self._last_batch = 0  # where what was synced last begins
        self._sim, self._node = sim, node
        self._frame, self._parse = frame, parse
        self._sector = sector_bytes

    def append(self, records: Iterable[bytes]) -> None:
        """Write records behind the others; they are not safe yet.

        Raises:
            OSError: The disk is full: some of them may be there and some not, as after a crash.
        """
        start = len(self.data)
        for record in records:
            self.data += self._frame(record, self.synced_bytes)
        if self._sim.disk_fails():
            kept = self._sim.rng.randint(start, len(self.data))
            del self.data[kept:]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._node)

    def sync(self) -> int:
        """Make safe what was appended. Returns: how many milliseconds that takes.

        Raises:
            OSError: It failed: what was appended may be safe or not, and a second sync that
                succeeds says nothing about it.
        """
        if self._sim.disk_fails():
            if self._sim.rng.random() < 0.5:
                self._synced()
            raise OSError(errno.EIO, os.strerror(errno.EIO), self._node)
        self._synced()
        return self._sim.disk_ms()

    def replace(self, records: Iterable[bytes]) -> int:
        """Put records in the place of all others, in one step, and safe. Returns: milliseconds.

        Raises:
            OSError: The disk is full; the old ones are there as before.
        """
        if self._sim.disk_fails():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._node)
        data = bytearray(b"".join(self._frame(record, 0) for record in records))
        self._sim.point(self._node)  # before the file gets its name
        self.data, self.synced_bytes, self._last_batch = data, len(data), 0
        return self._sim.disk_ms()

    def read(self) -> list[bytes]:
        """The records that are there, when a process begins; a torn tail is cut off.

        Raises:
            CorruptDisk: By the disk's own ``parse``, if the log is damaged.
        """
        if self._last_batch and self._sim.disk_corrupt():
            self.spoil(self._sim.rng.randrange(self._last_batch))
        records, sound = self._parse(bytes(self.data))
        del self.data[sound:]
        self.synced_bytes = len(self.data)
        self._last_batch = min(self._last_batch, self.synced_bytes)
        return records

    def crash(self) -> None:
        """The machine loses what was not synced, or some of it."""
        start, end = self.synced_bytes, len(self.data)
        if start == end:
            return
        if not self._sim.strikes("torn", 0.5):
            del self.data[start:]
            return
        chance = self._sim.rng.random
        if chance() < 0.3:  # it was written in time, though nobody waited for it
            self._synced()
            return
        del self.data[start + 1 + int(chance() * (end - start)) :]
        for at in range(start - start % self._sector, len(self.data), self._sector):
            if chance() < 0.3:  # this sector was not, though later ones may have been
                lost = slice(max(start, at), min(at + self._sector, len(self.data)))
                self.data[lost] = bytes(lost.stop - lost.start)
        self._synced()

    def _synced(self) -> None:
        if self.synced_bytes < len(self.data):
            self._last_batch, self.synced_bytes = self.synced_bytes, len(self.data)

    def spoil(self, at: int) -> None:
        """Turn a bit of the byte at that place: a sector has decayed."""
        self.data[at] ^= 1 << self._sim.rng.randrange(8)
