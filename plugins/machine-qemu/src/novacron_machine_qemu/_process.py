"""The QEMU process of a machine: how it is started, found again and ended.

It belongs to no node. What a later node needs to find it lies in the machine's home:

``run.json``     the arguments that QEMU was started with, its process id, and what it runs with
``qemu.log``     what QEMU itself said
``console.log``  what the guest printed
``sockets``      the folder of the sockets, if the home's own path is too long for them
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import cattrs
from attrs import field, frozen
from novacron import MachineError

# sizeof(sockaddr_un.sun_path) on Linux is 108, the last byte a zero.
SOCKET_PATH_MAX: Final = 107
RECORD_BYTES_MAX: Final = 1 << 20
_LONGEST_SOCKET: Final = "console.sock"
_SHELL: Final = b"/bin/sh\0"
_END_TIMEOUT_S: Final = 10.0
_SPAWN_TIMEOUT_S: Final = 20.0


@frozen(kw_only=True)
class RunRecord:
    """What a machine runs with, written before its process begins.

    Attributes:
        arguments: QEMU's command line, the program first. It names files in the machine's home and
            so tells this process from every other.
        pid: Its process id; None if the node was killed in the moment between.
        facts: What `Machine.describe` says.
        arriving: Started to receive a machine.
    """

    arguments: tuple[str, ...]
    pid: int | None = None
    facts: Mapping[str, Any] = field(factory=dict)
    arriving: bool = False


class Home:
    """A machine's folder."""

    def __init__(self, folder: Path, runtime_dir: str) -> None:
        self.folder = folder.absolute()
        self._runtime_dir = runtime_dir
        self.record_file = self.folder / "run.json"
        self.qemu_log = self.folder / "qemu.log"
        self.console_log = self.folder / "console.log"
        self._pointer = self.folder / "sockets"

    # -- the record ------------------------------------------------------------------------------

    def read_record(self) -> RunRecord | None:
        """The record, None if the machine was not started.

        Raises: MachineError if it cannot be read.
        """
        try:
            with self.record_file.open("rb") as file:
                data = file.read(RECORD_BYTES_MAX)
        except FileNotFoundError:
            return None
        try:
            return cattrs.structure(json.loads(data), RunRecord)
        except (ValueError, TypeError, KeyError, cattrs.BaseValidationError) as error:
            raise MachineError(
                f"{self.record_file} is damaged: {error}",
                hint="end the QEMU that names this folder, then delete the file",
            ) from error

    def write_record(self, record: RunRecord) -> None:
        """Replace the record; durable when it returns. Raises OSError; the old one is kept."""
        temporary = self.record_file.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(json.dumps(cattrs.unstructure(record), default=list).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.record_file)

    def forget(self) -> None:
        """Remove the record and the sockets; the logs stay."""
        for path in (self.record_file, self.record_file.with_suffix(".new")):
            path.unlink(missing_ok=True)
        sockets = self._sockets()
        for path in sockets.glob("*.sock"):
            with contextlib.suppress(OSError):
                path.unlink()
        if sockets != self.folder:
            with contextlib.suppress(OSError):
                sockets.rmdir()
            self._pointer.unlink(missing_ok=True)

    # -- the sockets -----------------------------------------------------------------------------

    def socket(self, name: str) -> Path:
        return self._sockets() / name

    def _sockets(self) -> Path:
        if _fits(self.folder):
            return self.folder
        try:
            noted = Path(self._pointer.read_text())
        except (OSError, ValueError):
            return self.folder
        return noted if _is_private(noted) else self.folder

    def make_sockets(self) -> None:
        """Make sure that there is a folder whose path is short enough for sockets.

        Raises: MachineError if there is no such place.
        """
        if _fits(self._sockets()):
            return
        runtime = self._runtime_dir or os.environ.get("XDG_RUNTIME_DIR")
        places = [runtime] if runtime else [f"/run/user/{os.geteuid()}"]
        for place in [*places, tempfile.gettempdir()]:
            # mkdtemp adds eight characters of its own to the prefix.
            if not _fits(Path(place, "novacron-12345678")):
                continue
            try:
                folder = Path(tempfile.mkdtemp(prefix="novacron-", dir=place))
            except OSError:
                continue
            self._pointer.write_text(str(folder))
            return
        raise MachineError(
            f"no folder for sockets: {self.folder} is too long ({SOCKET_PATH_MAX} bytes at most "
            "with the socket's name) and no shorter place can be written to",
            hint="set runtime_dir in [machine.qemu] to a short path",
        )

    # -- the process -----------------------------------------------------------------------------

    def find(self, record: RunRecord) -> int | None:
        """The process of this record, None if it is gone. A re-used process id fools nobody."""
        wanted = b"".join(os.fsencode(argument) + b"\0" for argument in record.arguments)
        if record.pid is not None:
            return record.pid if _command_line(record.pid) == wanted else None
        for name in os.listdir("/proc"):
            if name.isdigit() and _command_line(int(name)) == wanted:
                return int(name)
        return None

    def spawn(self, record: RunRecord) -> RunRecord:
        """Start the process of a record, in a session of its own. Blocks for milliseconds.

        Returns: The record with the process id, written.
        Raises: MachineError or OSError; the process may have begun, call `end` then.
        """
        self.write_record(record)
        # The shell ends at once, so that the process is nobody's child: a node that goes on leaves
        # no zombie of it, one that ends takes nothing with it.
        script = 'log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'
        try:
            done = subprocess.run(
                [
                    os.fsdecode(_SHELL[:-1]),
                    "-c",
                    script,
                    "sh",
                    str(self.qemu_log),
                    *record.arguments,
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=self.folder,
                start_new_session=True,
                timeout=_SPAWN_TIMEOUT_S,
                check=True,
            )
            pid = int(done.stdout)
        except (subprocess.SubprocessError, ValueError) as error:
            raise MachineError(f"{record.arguments[0]} could not be started: {error}") from error
        started = RunRecord(
            arguments=record.arguments, pid=pid, facts=record.facts, arriving=record.arriving
        )
        self.write_record(started)
        self._await_program(started)
        return started

    def _await_program(self, started: RunRecord) -> None:
        """Wait until the process is QEMU: the shell's fork, which it is first, `find` passes over.

        Without this an `end` that follows at once would find nothing, and QEMU would stay.
        """
        assert started.pid is not None
        deadline = time.monotonic() + _SPAWN_TIMEOUT_S
        while _command_line(started.pid).startswith(_SHELL) and time.monotonic() < deadline:
            time.sleep(0.001)

    async def end(self, record: RunRecord) -> None:
        """End the process of a record, if there is one. Raises MachineError if it will not."""
        for number, patience_s in ((signal.SIGTERM, _END_TIMEOUT_S), (signal.SIGKILL, 10.0)):
            pid = self.find(record)
            if pid is None:
                return
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            try:
                if self.find(record) != pid:
                    return
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
                if await asyncio.to_thread(_wait_for_end, descriptor, patience_s):
                    return
            finally:
                os.close(descriptor)
        raise MachineError(f"process {pid} does not end", hint="it may hang in the kernel")

    def log_tail(self, since: int = 0) -> str:
        """The last lines that QEMU said since the log had ``since`` bytes."""
        try:
            with self.qemu_log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(since, size - 2000))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def log_size(self) -> int:
        try:
            return self.qemu_log.stat().st_size
        except OSError:
            return 0


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / _LONGEST_SOCKET)) <= SOCKET_PATH_MAX


def _is_private(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o77


def _command_line(pid: int) -> bytes:
    """A process's arguments; empty for a zombie and for none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _wait_for_end(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def open_memory(pid: int, size: int) -> int:
    """A descriptor of the guest's memory, which QEMU was told to keep in a memory file.

    Raises: MachineError if it is not there.
    """
    folder = f"/proc/{pid}/fd"
    try:
        for name in sorted(os.listdir(folder), key=int):
            with contextlib.suppress(FileNotFoundError):
                if not os.readlink(f"{folder}/{name}").startswith("/memfd:memory-backend-memfd"):
                    continue
                descriptor = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
                if os.fstat(descriptor).st_size == size:
                    return descriptor
                os.close(descriptor)
    except OSError as error:
        raise MachineError(f"the memory of process {pid} cannot be read: {error}") from error
    raise MachineError(f"process {pid} has no memory file of {size} bytes")


def memory_in_use(pid: int, size: int) -> int:
    """Bytes of a guest's memory that it, or its firmware, has ever written to.

    Raises: MachineError if the memory is not there.
    """
    descriptor = open_memory(pid, size)
    try:
        return min(os.fstat(descriptor).st_blocks * 512, size)
    finally:
        os.close(descriptor)


def option(path: Path | str) -> str:
    """A value inside one of QEMU's comma-separated options: a comma in it is written twice."""
    return str(path).replace(",", ",,")
