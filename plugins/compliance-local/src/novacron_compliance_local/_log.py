"""The provider: appends to one locked file, durably, and repairs what a crash left."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from blake3 import blake3
from novacron import Conflict, LogEntry, NodeFacts, NovacronError

from novacron_compliance_local import _chain
from novacron_compliance_local._chain import Head
from novacron_compliance_local._rules import LocalSettings

FOLDER: Final = "compliance-local"
# What was moved aside and has no entry in the log yet.
_PENDING: Final = ".pending"

_T = TypeVar("_T")


class LogError(NovacronError, OSError):
    """The operation log cannot be written. Nothing was added to it."""

    code = "operation-log"


class LocalLog:
    """The operation log in one hash-chained file."""

    name: ClassVar[str] = "local"
    Settings: ClassVar[type] = LocalSettings

    def __init__(self, settings: LocalSettings, node: NodeFacts) -> None:
        self.path = node.state_dir / FOLDER / _chain.LOG_FILE
        self._node = node.name
        self._last = Head()
        self._size = 0  # as far as the file is known to be sound and on the disk
        self._in_doubt = False
        self._closed = False
        self._file = -1
        self._head_file = -1
        try:
            self._guarded(self._open)
        except BaseException:
            self._release()
            raise
        # One thread, so that entries are written in the order in which they were asked for.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="novacron-log")

    async def append(self, operation: str, event: str, detail: Mapping[str, Any]) -> LogEntry:
        if self._closed:
            raise RuntimeError("the operation log is closed")
        loop = asyncio.get_running_loop()
        add = self._append
        return await loop.run_in_executor(
            self._worker, self._guarded, lambda: add(operation, event, detail)
        )

    def entries(self, *, after: int = 0) -> Iterator[LogEntry]:
        # The size is taken now: an entry that is being written meanwhile is not one yet.
        return (e for e in _chain.read(self.path, self._size) if e.sequence > after)

    def verify(self) -> int:
        last, size = self._last, self._size
        return _chain.verify(self.path, last, size).sequence

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._worker, self._release)
        self._worker.shutdown(wait=False)

    def _guarded(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except NovacronError:
            raise
        except OSError as error:
            raise LogError(
                f"the operation log {self.path} cannot be written: {error.strerror or error}",
                hint="make room on the disk and check that the folder is writable for this user; "
                "operations that must be recorded are refused until then",
                truth="nothing was added to the log",
                path=str(self.path),
            ) from error

    def _release(self) -> None:
        for descriptor in (self._file, self._head_file):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._head_file = -1

    # Opening and repair.

    def _open(self) -> None:
        _make_folder(self.path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(self.path, flags | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another process writes the operation log {self.path}",
                hint="one node process per state folder: stop the other one, or use another folder",
                path=str(self.path),
            ) from None
        self._head_file = os.open(self.path.with_name(_chain.HEAD_FILE), flags, 0o600)
        _sync_folder(self.path.parent)
        acknowledged = Head.decode(os.pread(self._head_file, 256, 0)) or Head()
        end, self._last, torn = self._tail()
        if torn:
            self._move_aside(end, torn)
        self._size = end
        self._record_repairs()
        if acknowledged.sequence > self._last.sequence or (
            acknowledged.sequence == self._last.sequence and acknowledged != self._last
        ):
            self._append(
                "log",
                "repaired",
                {
                    "reason": "entries that were acknowledged are missing from the log's end",
                    "acknowledged_sequence": acknowledged.sequence,
                    "acknowledged_digest": acknowledged.digest,
                },
            )

    def _tail(self) -> tuple[int, Head, bytes]:
        """Where the last sound line ends, its link, and the bytes after it."""
        size = os.fstat(self._file).st_size
        start = max(0, size - 3 * _chain.LINE_BYTES_MAX)
        data = _pread(self._file, size - start, start)
        end = data.rfind(b"\n") + 1
        if end == 0 and start == 0:
            return 0, Head(), data
        for damaged in range(2):
            begin = data.rfind(b"\n", 0, max(0, end - 1)) + 1
            try:
                entry = _chain.decode(data[begin:end])
            except ValueError:
                # Torn too, if the disk kept the line's end and lost its middle.
                end = begin
            else:
                return start + end, Head(entry.sequence, entry.digest), data[end:]
            if end == 0 and start == 0 and not damaged:
                return 0, Head(), data
        # One torn line is a crash; two are something else, and nothing that is guessed helps.
        return _chain.refuse(self.path, 0, "its last two lines are both damaged")

    def _move_aside(self, end: int, torn: bytes) -> None:
        """Keep the torn bytes in a file of their own, and only then cut them off."""
        name = f"torn-{end}-{blake3(torn).hexdigest()[:16]}{_PENDING}"
        aside = self.path.with_name(name)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(descriptor, torn)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_folder(aside.parent)
        os.ftruncate(self._file, end)
        os.fsync(self._file)

    def _record_repairs(self) -> None:
        """Make an entry for what was moved aside; a crash in between only repeats this."""
        for pending in sorted(self.path.parent.glob(f"torn-*{_PENDING}")):
            kept_in = pending.name.removesuffix(_PENDING)
            reason = "the last line was torn, as by a crash while it was written"
            detail = {"reason": reason, "bytes": pending.stat().st_size, "kept_in": kept_in}
            if not any(e.detail == detail for e in self._newest()):
                self._append("log", "repaired", detail)
            pending.rename(pending.with_name(kept_in))
            _sync_folder(pending.parent)

    def _newest(self) -> list[LogEntry]:
        if not self._size:
            return []
        start = max(0, self._size - _chain.LINE_BYTES_MAX)
        data = _pread(self._file, self._size - start, start)
        return [_chain.decode(data[data.rfind(b"\n", 0, -1) + 1 :])]

    # Appending, in the worker thread.

    def _append(self, operation: str, event: str, detail: Mapping[str, Any]) -> LogEntry:
        if self._in_doubt:
            self._cut_back()
        self._require_untouched()
        time = datetime.now(UTC).isoformat(timespec="microseconds")
        entry = _chain.seal(self._last, time, self._node, operation, event, detail)
        line = _chain.encode(entry)
        try:
            _write(self._file, line)
            os.fsync(self._file)
        except OSError:
            self._in_doubt = True
            with contextlib.suppress(OSError):
                self._cut_back()
            raise
        self._size += len(line)
        self._last = Head(entry.sequence, entry.digest)
        # Not synced, and an error does not matter: an old head only guards fewer entries.
        with contextlib.suppress(OSError):
            os.pwrite(self._head_file, self._last.encode(), 0)
        return entry

    def _cut_back(self) -> None:
        os.ftruncate(self._file, self._size)
        os.fsync(self._file)
        self._in_doubt = False

    def _require_untouched(self) -> None:
        ours = os.fstat(self._file)
        try:
            there = self.path.stat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            what = "was removed or replaced"
        elif ours.st_size != self._size:
            what = f"has {ours.st_size} bytes where {self._size} were written"
        else:
            return
        raise LogError(
            f"the operation log {self.path} {what} while this node used it",
            hint="run `novacron log verify`, put the file back, and start the node again",
            truth="nothing was added to the log",
            path=str(self.path),
        )


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _pread(descriptor: int, count: int, offset: int) -> bytes:
    parts = []
    while count > 0:
        part = os.pread(descriptor, count, offset)
        if not part:
            break
        parts.append(part)
        count -= len(part)
        offset += len(part)
    return b"".join(parts)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
