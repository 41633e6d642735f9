"""What a member keeps, in files: segments of records, appended, synced, replaced and recovered.

    <folder>/lock                 held by the process that uses the log
    <folder>/00000001.log         segments, in their order
    <folder>/00000002.log.new     being written; of no account until it is renamed

Each segment begins with a header that says its number and whether it begins a generation: then it
takes the place of all segments before it, which are removed. So a log is replaced in one step, by
renaming one file. Only the last segment can have a torn tail.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from novacron_agreement.framing import Damaged, frames, parse

_MAGIC: Final = b"NVCRLOG1"
# Magic, number, whether it begins a generation, bytes that were written with it, CRC-32.
_HEADER: Final = struct.Struct(">8sQBQI")
_UNCHECKED: Final = struct.Struct(">8sQBQ")
SEGMENT_BYTES: Final = 64 << 20
# Space is reserved in steps: a sync is cheaper if the file need not grow.
RESERVE_BYTES: Final = 4 << 20


class LogDamaged(ValueError):
    """The log's files are not what was written. Nothing was changed.

    Args:
        message: What is wrong, and in which file.
        hint: What to do.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


_RESTORE: Final = (
    "this member must not go on with a part of its log: move the folder aside, remove the member "
    "from the cluster and let it join again, or restore the whole cluster from a backup"
)


class LogFile:
    """The log in a folder. One thread at a time.

    An OSError of `append`, `sync` or `replace` leaves it open what was written of that call, and
    ends this object's use: close it, and read what is there with a new one.

    Args:
        folder: Made if it is not there.
        segment_bytes: A segment that is longer is followed by a new one.

    Attributes:
        records: What was there when the log was opened; drop it when it is read.
        torn_bytes: How many bytes of a torn tail were cut off when it was opened.

    Raises:
        LogDamaged: See there.
        OSError: The folder cannot be used; EWOULDBLOCK if another process uses it.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self.records: list[bytes] = []
        self.torn_bytes = 0
        self._segment_bytes = segment_bytes
        self._failed = ""
        self._file = -1
        self._number = 0
        self._end = 0  # where the next record goes
        self._safe = 0  # up to where the segment is synced
        self._reserved = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take_lock()
            self._open()
        except BaseException:
            self.close()
            raise

    # Use.

    def append(self, records: Iterable[bytes]) -> None:
        """Write records behind the others. They are safe after the next `sync` only."""
        with self._writing():
            if self._end >= self._segment_bytes:
                self._sync()
                self._begin_segment(self._number + 1, b"", replaces=False)
            data = frames(records, self._safe - _HEADER.size)
            self._reserve(self._end + len(data))
            _write(self._file, data, self._end)
            self._end += len(data)

    def sync(self) -> None:
        """Make everything that was appended safe, by one sync."""
        with self._writing():
            self._sync()

    def replace(self, records: Iterable[bytes]) -> None:
        """Put records in the place of all others, in one step, and safe."""
        with self._writing():
            older = self._segments()
            self._begin_segment(self._number + 1, frames(records, 0), replaces=True)
            for _, path in older:
                path.unlink()

    def close(self) -> None:
        """Let the files go; what was not synced may be lost. Twice is once."""
        for file in (self._file, self._lock):
            if file >= 0:
                os.close(file)
        self._file = self._lock = -1

    @property
    def size_bytes(self) -> int:
        """What the segments hold, without what is reserved."""
        older = (path.stat().st_size for number, path in self._segments() if number < self._number)
        return sum(older) + self._end

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        if self._file < 0 or self._failed:
            why = self._failed or "it was closed"
            raise RuntimeError(f"the log in {self.folder} is not usable any more: {why}; open it")
        try:
            yield
        except OSError as error:
            # What the disk has now is in doubt, also after a second sync that succeeds.
            self._failed = str(error)
            if error.filename is None:
                error.filename = str(self.folder)
            raise

    def _sync(self) -> None:
        if self._safe < self._end:
            os.fdatasync(self._file)
            self._safe = self._end

    def _reserve(self, end: int) -> None:
        if end <= self._reserved:
            return
        wanted = max(RESERVE_BYTES, end - self._reserved)
        try:
            os.posix_fallocate(self._file, self._reserved, wanted)
        except OSError as error:
            # Not every file system can, and near its end a disk need not have that much.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC, errno.EFBIG):
                raise
            self._reserved = end
            return
        self._reserved += wanted

    def _begin_segment(self, number: int, data: bytes, *, replaces: bool) -> None:
        """Write a segment and give it its name, all of it safe."""
        path = self._path(number)
        fresh = path.with_name(path.name + ".new")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        file = os.open(fresh, flags, 0o600)
        try:
            _write(file, _header(number, replaces, len(data)) + data, 0)
            os.fsync(file)
            os.rename(fresh, path)
            self._sync_folder()
        except BaseException:
            os.close(file)
            # A full disk gets back what this took.
            fresh.unlink(missing_ok=True)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._number = file, number
        self._end = self._safe = self._reserved = _HEADER.size + len(data)

    def _sync_folder(self) -> None:
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    # Opening.

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                error.errno,
                "another process uses this log; stop it first, or give this one its own folder",
                str(self.folder),
            ) from None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08}.log"

    def _segments(self) -> list[tuple[int, Path]]:
        found = [(int(path.stem), path) for path in self.folder.glob("[0-9]*.log")]
        return sorted(found)

    def _open(self) -> None:
        for leftover in self.folder.glob("*.log.new"):
            leftover.unlink()
        segments = self._segments()
        if not segments:
            self._begin_segment(1, b"", replaces=True)
            return
        read = [(number, path, path.read_bytes()) for number, path in segments]
        heads = [_parse_header(*one) for one in read]
        begins = [begin for begin, _ in heads]
        if True not in begins:
            raise LogDamaged(f"{segments[0][1]}: the segments before it are gone", hint=_RESTORE)
        first = len(begins) - 1 - begins[::-1].index(True)
        for (number, path, data), (_, safe) in zip(read[first:], heads[first:], strict=True):
            self._read_segment(number, path, data, safe, last=number == segments[-1][0])
        # What a replacement did not come to remove.
        for _, path in segments[:first]:
            path.unlink()

    def _read_segment(self, number: int, path: Path, data: bytes, safe: int, *, last: bool) -> None:
        if self._number and number != self._number + 1:
            missing = self._path(self._number + 1)
            raise LogDamaged(f"{missing} is missing, and {path} is there", hint=_RESTORE)
        try:
            records, sound = parse(data[_HEADER.size :], safe)
        except Damaged as damage:
            at = _HEADER.size + damage.at
            raise LogDamaged(f"{path}: byte {at} was safe and is damaged", hint=_RESTORE) from None
        end = _HEADER.size + sound
        beyond = len(data[end:].rstrip(b"\x00"))
        if beyond and not last:
            raise LogDamaged(
                f"{path}: byte {end} is damaged, and {number} is not the last", hint=_RESTORE
            )
        self.records += records
        self._number = number
        if last:
            self._go_on(path, end, beyond)

    def _go_on(self, path: Path, end: int, torn: int) -> None:
        """Write behind what is sound. A torn tail is cut off before, and all of the rest made
        safe: it may have been written without ever being synced."""
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.torn_bytes = torn
        os.ftruncate(self._file, end)
        os.fsync(self._file)
        self._sync_folder()
        self._end = self._safe = self._reserved = end


def _header(number: int, begins: bool, safe: int) -> bytes:
    unchecked = (_MAGIC, number, begins, safe)
    return _HEADER.pack(*unchecked, zlib.crc32(_UNCHECKED.pack(*unchecked)))


def _parse_header(number: int, path: Path, data: bytes) -> tuple[bool, int]:
    """Whether a segment begins a generation, and how much was written together with its header."""
    if len(data) >= _HEADER.size:
        _, _, begins, safe, _ = _HEADER.unpack_from(data)
        if data[: _HEADER.size] == _header(number, begins, safe):
            return bool(begins), safe
    raise LogDamaged(f"{path}: its header is not that of segment {number}", hint=_RESTORE)


def _write(file: int, data: bytes, at: int) -> None:
    """All of it: one call may write less, and then the next says why."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written
