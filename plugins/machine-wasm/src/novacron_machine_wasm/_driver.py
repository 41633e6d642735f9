"""The node's side: finds, starts and commands the runners, and carries batches to and from them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.metadata
import os
import secrets
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
from blake3 import blake3
from novacron import (
    Batch,
    ConfigError,
    Conflict,
    CopyProgress,
    Incoming,
    InternalError,
    Machine,
    MachineDriver,
    MachineError,
    MachineSpec,
    MachineState,
    MoveLimits,
    MoveWish,
    NodeFacts,
    NovacronError,
    Obstacle,
    Outgoing,
    PeerProtocolError,
    Refused,
)

from novacron_machine_wasm import _wire as wire
from novacron_machine_wasm._examine import examine_arrival, examine_leaving
from novacron_machine_wasm._guest_settings import MODULE_BYTES_MAX, settings_json
from novacron_machine_wasm._paths import (
    CONSOLE_SOCKET,
    CONTROL_SOCKET,
    SERVICE_SOCKET,
    service_path,
    sockets_dir,
)
from novacron_machine_wasm._settings import (
    Settings,
    check_spec,
    guest_settings,
)

FORMAT: Final = 1
_STATES: Final[Mapping[str, MachineState]] = {
    "running": MachineState.RUNNING,
    "paused": MachineState.PAUSED,
    "receiving": MachineState.RECEIVING,
}
_ERRORS: Final[Mapping[str, type[NovacronError]]] = {
    kind.code: kind for kind in (ConfigError, Conflict, MachineError, PeerProtocolError)
}


def _make_private(folder: Path) -> None:
    """A folder that is ours alone. Raises MachineError if somebody else has made it."""
    for path in (folder.parent, folder):
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise MachineError(
                f"{path} is not a folder of this user alone",
                hint="remove it, set XDG_RUNTIME_DIR, or give the node a shorter state directory",
            )


def _raise(reply: wire.Reply) -> wire.Reply:
    """The reply, or the error that it carries."""
    if reply.error:
        kind = _ERRORS.get(reply.error, MachineError)
        raise kind(reply.message, hint=reply.hint)
    return reply


class WasmMachine:
    """One machine on this node; see `novacron.Machine` for what the methods promise."""

    def __init__(self, spec: MachineSpec, home: Path, settings: Settings) -> None:
        self._spec = spec
        self._home = home
        self._settings = settings
        # Calls that make or end the process; everything else is ordered by the runner.
        self._life = asyncio.Lock()

    @property
    def spec(self) -> MachineSpec:
        return self._spec

    # The process -------------------------------------------------------------------------------

    def _record(self) -> wire.Record | None:
        try:
            raw = (self._home / wire.RECORD).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return msgspec.json.decode(raw, type=wire.Record)
        except msgspec.MsgspecError as error:
            raise MachineError(
                f"{self._home / wire.RECORD} is damaged: {error}",
                hint="stop the machine; if a runner still lives, end it by its runner.pid",
            ) from error

    def _lives(self) -> bool:
        """Whether a runner holds the lock, which only a living one does."""
        try:
            handle = os.open(self._home / wire.LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def _why_lost(self) -> str:
        try:
            return (self._home / wire.FAILURE).read_text()[:2000]
        except OSError:
            return "its process died"

    def _gone(self) -> NovacronError:
        """What to raise when a process is needed and there is none."""
        name = self._spec.name
        if self._record() is None:
            return Conflict(f"machine {name!r} is stopped", state="stopped")
        return Conflict(
            f"machine {name!r} is lost: {self._why_lost()}",
            hint="start it anew, with empty memory, or stop it",
            truth="the machine does not run",
            state="lost",
        )

    async def _ask(self, op: str, timeout_s: float | None = -1, **values: Any) -> wire.Reply:
        """One request to the runner. Raises Conflict if there is none."""
        record = self._record()
        if record is None or not self._lives():
            raise self._gone()
        request = wire.Request(op=op, token=record.token, **values)
        limit = self._settings.answer_timeout_s if timeout_s == -1 else timeout_s
        try:
            async with asyncio.timeout(limit):
                reply = await self._exchange(record, request)
        except TimeoutError as error:
            raise MachineError(
                f"the process of machine {self._spec.name!r} does not answer within {limit} s"
            ) from error
        except (OSError, asyncio.IncompleteReadError, wire.WireError) as error:
            # A process that is ending hangs up a moment before it is gone.
            for _ in range(50):
                if not self._lives():
                    raise self._gone() from error
                await asyncio.sleep(0.02)
            raise MachineError(
                f"the process of machine {self._spec.name!r} does not answer: {error}"
            ) from error
        return _raise(reply)

    async def _exchange(self, record: wire.Record, request: wire.Request) -> wire.Reply:
        path = Path(record.sockets) / CONTROL_SOCKET
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                # It is only just beginning (and its node was killed), or it is ending.
                if not self._lives():
                    raise
            await asyncio.sleep(0.02)
        try:
            writer.write(wire.pack_control(request))
            await writer.drain()
            header = await reader.readexactly(wire.LENGTH.size)
            reply = wire.parse_reply(await reader.readexactly(wire.control_length(header)))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        self._is_ours(record, reply)
        return reply

    @staticmethod
    def _is_ours(record: wire.Record, reply: wire.Reply) -> None:
        if not secrets.compare_digest(record.token.encode(), reply.token.encode()):
            raise wire.WireError("somebody else answers on the machine's socket")

    def _connect(self, op: str, **values: Any) -> tuple[socket.socket, int]:
        """A data connection, in a worker thread; and the number that the reply carried."""
        record = self._record()
        if record is None or not self._lives():
            raise self._gone()
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self._settings.answer_timeout_s)
            sock.connect(str(Path(record.sockets) / CONTROL_SOCKET))
            request = wire.Request(op=op, token=record.token, **values)
            wire.send_all(sock, (wire.pack_control(request),))
            reply = wire.receive_reply(sock)
            self._is_ours(record, reply)
            _raise(reply)
        except (OSError, wire.WireError) as error:
            sock.close()
            raise MachineError(
                f"the process of machine {self._spec.name!r} does not answer: {error}"
            ) from error
        except BaseException:
            sock.close()
            raise
        return sock, reply.number

    def _spawn(self, record: wire.Record) -> None:
        """Start a runner and wait until it is ready; in a worker thread."""
        home = self._home
        with contextlib.ExitStack() as stack:
            lock = os.open(home / wire.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(f"machine {self._spec.name!r} has a process already") from error
            self._clean(keep=(wire.BASE, wire.MODULE))
            sockets = Path(record.sockets)
            if sockets != home:
                _make_private(sockets)
            partial = home / f"{wire.RECORD}.new"
            partial.write_bytes(msgspec.json.encode(record))
            partial.chmod(0o600)
            partial.replace(home / wire.RECORD)
            ready, ready_end = os.pipe()
            stack.callback(os.close, ready)
            try:
                log = os.open(
                    home / wire.LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
                )
                try:
                    arguments = (str(home.absolute()), str(lock), str(ready_end))
                    subprocess.run(  # only the first half: the runner goes its own way
                        [sys.executable, "-P", "-m", "novacron_machine_wasm.runner", *arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        pass_fds=(lock, ready_end),
                        cwd="/",
                        start_new_session=True,
                        check=False,
                        # No helper threads in a process that forks and moves.
                        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                        timeout=self._settings.start_timeout_s,
                    )
                finally:
                    os.close(log)
            finally:
                os.close(ready_end)
            _raise(self._ready(ready))

    def _ready(self, ready: int) -> wire.Reply:
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        name = self._spec.name
        if not poll.poll(self._settings.start_timeout_s * 1000):
            raise MachineError(
                f"the process of machine {name!r} is not ready after "
                f"{self._settings.start_timeout_s} s",
                hint="raise [machine.wasm] start_timeout_s, or fill less",
            )
        raw = os.read(ready, 1 << 16)
        if not raw:
            raise MachineError(
                f"the process of machine {name!r} died at its start: {self._last_words()}"
            )
        return msgspec.json.decode(raw, type=wire.Reply)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return (self._home / wire.LOG).read_text(errors="replace").strip()[:500]
        return "it left no word"

    def pid(self) -> int | None:
        """The runner's process id, as it wrote it down; None if there is none."""
        with contextlib.suppress(OSError, ValueError):
            return int((self._home / wire.PID).read_text())
        return None

    async def _kill(self) -> None:
        """End the runner, by asking if it listens; afterwards it is dead."""
        if not self._lives():
            return
        with contextlib.suppress(NovacronError):
            await self._ask("end", timeout_s=5.0)
        await asyncio.to_thread(self._wait_dead)

    def _wait_dead(self) -> None:
        deadline = time.monotonic() + 10
        pid = self.pid()
        if pid is not None and self._lives():
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                try:
                    # The lock was held after the handle was taken: it is the runner that we have.
                    if self._lives():
                        poll = select.poll()
                        poll.register(handle, select.POLLIN)
                        if not poll.poll(3000):
                            signal.pidfd_send_signal(handle, signal.SIGKILL)
                            poll.poll(5000)
                finally:
                    os.close(handle)
        while self._lives():
            if time.monotonic() > deadline:
                raise MachineError(
                    f"the process of machine {self._spec.name!r} (pid {pid}) does not end",
                    hint=f"kill {pid}",
                    truth="the machine may still run here",
                )
            time.sleep(0.01)

    def _clean(self, keep: tuple[str, ...] = ()) -> None:
        """Remove what a process leaves; its logs and the lock's file stay."""
        names = (wire.RECORD, wire.PID, wire.LOG, wire.FAILURE, wire.SHADOW, wire.BASE, wire.MODULE)
        for name in names:
            if name not in keep:
                (self._home / name).unlink(missing_ok=True)
        folder = sockets_dir(self._home)
        for name in (CONTROL_SOCKET, SERVICE_SOCKET, CONSOLE_SOCKET):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        if folder != self._home:
            with contextlib.suppress(OSError):
                folder.rmdir()

    # The contract ------------------------------------------------------------------------------

    async def state(self) -> MachineState:
        while True:
            record = self._record()
            if record is None:
                return MachineState.STOPPED
            if not self._lives():
                return MachineState.LOST
            try:
                reply = await self._ask("state")
            except Conflict:
                continue  # it died between the two looks
            if reply.state in _STATES:
                return _STATES[reply.state]
            await asyncio.to_thread(self._wait_dead)  # it is ending just now

    async def start(self) -> None:
        async with self._life:
            state = await self.state()
            if state not in (MachineState.STOPPED, MachineState.LOST):
                raise Conflict(f"machine {self._spec.name!r} is {state} already", state=state)
            settings = check_spec(self._spec, self._settings)
            module = await asyncio.to_thread(self._find_module, settings.guest)
            (self._home / wire.BASE).unlink(missing_ok=True)
            (self._home / wire.MODULE).write_bytes(module)
            await self._launch(receiving=False, guest=module)

    def _find_module(self, guest: str) -> bytes:
        """From where the settings say, or what came with the machine."""
        from novacron_machine_wasm._source import module_bytes

        try:
            return module_bytes(guest)
        except ConfigError:
            with contextlib.suppress(FileNotFoundError):
                return (self._home / wire.MODULE).read_bytes()
            raise

    async def _launch(
        self, *, receiving: bool, guest: bytes = b"", digest: str = "", nbytes: int = 0
    ) -> None:
        record = wire.Record(
            token=secrets.token_hex(16),
            name=self._spec.name,
            memory_bytes=self._spec.memory_bytes,
            settings=settings_json(guest_settings(self._spec)),
            sockets=str(sockets_dir(self._home)),
            receiving=receiving,
            guest=digest or blake3(guest).hexdigest(),
            guest_bytes=nbytes or len(guest),
            base_bytes_max=self._settings.base_bytes_max,
            console_log_bytes_max=self._settings.console_log_bytes_max,
            runs_log=self._settings.runs_log,
        )
        try:
            await asyncio.to_thread(self._spawn, record)
        except (OSError, subprocess.SubprocessError) as error:
            await self._discard()
            raise MachineError(f"machine {self._spec.name!r} does not start: {error}") from error
        except Conflict:
            raise
        except BaseException:
            await self._discard()
            raise

    async def _discard(self) -> None:
        """Undo a start or an arrival. The image of an earlier stay is still good for a retry."""
        await self._kill()
        self._clean(keep=(wire.BASE,))
        self._unlock()

    def _unlock(self) -> None:
        """Remove the lock's file; nobody holds it, and who makes it anew waits for ``_life``."""
        (self._home / wire.LOCK).unlink(missing_ok=True)

    async def stop(self) -> None:
        async with self._life:
            await self._kill()
            self._clean(keep=(wire.MODULE,))
            self._unlock()

    async def retire(self) -> None:
        """The machine has moved away: end the process, and keep the image of its memory, if it
        was copied to the end, so that less has to be sent when it comes back. Twice is once.

        Afterwards STOPPED; `stop` drops the image. Raises Conflict if it is RUNNING or RECEIVING.
        """
        async with self._life:
            if await self.state() not in (MachineState.STOPPED, MachineState.LOST):
                await self._ask("retire")
                await asyncio.to_thread(self._wait_dead)
            self._clean(keep=(wire.BASE,))
            self._unlock()

    async def pause(self) -> None:
        await self._ask("pause")

    async def resume(self) -> None:
        await self._ask("resume")

    async def digest(self) -> str:
        return (await self._ask("digest")).text

    async def send(self, limits: MoveLimits) -> Outgoing:
        state = await self.state()
        if state not in (MachineState.RUNNING, MachineState.PAUSED):
            raise Conflict(f"machine {self._spec.name!r} is {state}, it cannot leave", state=state)
        sock, _ = await asyncio.to_thread(
            self._connect,
            "send",
            max_downtime_ms=limits.max_downtime_ms,
            rate_bytes_per_s=limits.rate_bytes_per_s,
        )
        return WasmOutgoing(self, sock)

    async def receive(self, origin: Mapping[str, Any]) -> Incoming:
        async with self._life:
            state = await self.state()
            if state is not MachineState.STOPPED:
                raise Conflict(
                    f"machine {self._spec.name!r} is {state}, it cannot arrive", state=state
                )
            guest, nbytes = judge(self._spec, self._settings, origin)
            await self._launch(receiving=True, digest=guest, nbytes=nbytes)
            try:
                sock, have_bytes = await asyncio.to_thread(self._connect, "receive")
                try:
                    if have_bytes > wire.HAVE_MAX:
                        raise MachineError("the runner's list of pages is too long")
                    have = await asyncio.to_thread(wire.receive_bytes, sock, have_bytes)
                except BaseException:
                    sock.close()
                    raise
            except (OSError, wire.WireError) as error:
                await self._discard()
                raise MachineError(f"machine {self._spec.name!r} cannot arrive: {error}") from error
            except BaseException:
                await self._discard()
                raise
        return WasmIncoming(self, sock, bytes(have))

    def describe(self) -> Mapping[str, Any]:
        record = self._record()
        return {
            "driver": "wasm",
            "format": FORMAT,
            "wasmtime": importlib.metadata.version("wasmtime"),
            "memory_bytes": self._spec.memory_bytes,
            "page_bytes": wire.PAGE,
            "guest": record.guest if record else "",
            "guest_bytes": record.guest_bytes if record else 0,
        }

    async def examine(self, wish: MoveWish) -> Sequence[Obstacle]:
        """See `novacron.Machine`. It has no disks, whatever is wished for them."""
        return list(examine_leaving(self._spec, self._home))

    def console(self) -> Path:
        return sockets_dir(self._home) / CONSOLE_SOCKET

    def console_log(self) -> Path:
        return self._home / wire.CONSOLE_LOG

    def service(self) -> Path:
        """The socket on which the guest serves requests, if it does."""
        return service_path(self._home)

    async def ticks(self) -> int:
        """How often the guest's `step` has been called, over all nodes; 0 while it arrives."""
        return (await self._ask("state")).number

    def runs_log(self) -> Path:
        """When the machine executed on this node; see `read_runs`."""
        return Path(self._settings.runs_log or self._home / wire.RUNS_LOG)


def judge(spec: MachineSpec, settings: Settings, origin: Mapping[str, Any]) -> tuple[str, int]:
    """The module's digest and length, from a description that may be anything. Raises Refused."""
    name = spec.name
    try:
        check_spec(spec, settings)
    except ConfigError as error:
        raise Refused(error.message, hint=error.hint) from error
    if origin.get("driver") != "wasm" or origin.get("format") != FORMAT:
        raise Refused(
            f"machine {name!r} comes from driver {origin.get('driver')!r}, "
            f"format {origin.get('format')!r}; here is wasm, format {FORMAT}",
            hint="install the same version of novacron-machine-wasm on both nodes",
        )
    memory, guest, nbytes = (origin.get(k) for k in ("memory_bytes", "guest", "guest_bytes"))
    if memory != spec.memory_bytes:
        raise Refused(
            f"machine {name!r} has {memory!r} bytes of memory at its source and "
            f"{spec.memory_bytes} here",
            hint="create it with the same memory_bytes on both sides",
        )
    if (
        not isinstance(guest, str)
        or len(guest) != 64
        or not isinstance(nbytes, int)
        or not 8 <= nbytes <= MODULE_BYTES_MAX
    ):
        raise Refused(
            f"machine {name!r} comes with a module of {nbytes!r} bytes",
            hint=f"a module may have 8 to {MODULE_BYTES_MAX} bytes",
        )
    return guest, nbytes


class _DataSocket:
    """A socket that one thread uses at a time and that any thread may close."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._use = threading.Lock()
        self.closed = False

    @contextlib.contextmanager
    def using(self) -> Iterator[socket.socket]:
        with self._use:
            if self.closed:
                raise wire.WireError("the connection was closed")
            yield self._sock

    def close(self) -> None:
        # First wake whoever is in it; its number must not be given to others before that.
        wire.hang_up(self._sock)
        with self._use:
            self.closed = True
            self._sock.close()

    def __del__(self) -> None:
        # A handle that nobody holds any more hangs up.
        self._sock.close()


class WasmOutgoing:
    """See `novacron.Outgoing`."""

    def __init__(self, machine: WasmMachine, sock: socket.socket) -> None:
        self._machine = machine
        self._data = _DataSocket(sock)
        self._have = b""
        self._begun = False
        self._ended = False
        self._cancelled = False
        self._progress = CopyProgress(
            round=0,
            done_bytes=0,
            remaining_bytes=machine.spec.memory_bytes,
            total_bytes=machine.spec.memory_bytes,
        )

    def peer_has(self, have: bytes) -> None:
        """What the destination's `have` said; before the first `read`.

        Raises: PeerProtocolError if it is not sound; RuntimeError after the first `read`.
        """
        if self._begun:
            raise RuntimeError("peer_has comes before the first read")
        if have:
            wire.check_have(have, self._machine.spec.memory_bytes)
        self._have = have

    def read(self) -> Batch | None:
        if self._ended:
            return None
        try:
            with self._data.using() as sock:
                if not self._begun:
                    self._begun = True
                    wire.send_all(sock, (wire.LENGTH.pack(len(self._have)), self._have))
                    self._have = b""
                return self._read(sock)
        except (OSError, wire.WireError) as error:
            name = self._machine.spec.name
            if self._cancelled:
                raise MachineError(f"the move of machine {name!r} was cancelled") from error
            raise MachineError(
                f"machine {name!r} gives its state no more: {error}",
                hint="look at the machine's state",
            ) from error

    def _read(self, sock: socket.socket) -> Batch | None:
        while True:
            header = wire.FRAME.unpack(wire.receive_bytes(sock, wire.FRAME.size))
            layout, addresses, pages = wire.frame_lengths(header)
            number, done, left, dirty = header[4:]
            self._progress = CopyProgress(
                round=number,
                done_bytes=done,
                remaining_bytes=left,
                total_bytes=self._machine.spec.memory_bytes,
                dirty_bytes_per_s=dirty,
            )
            if header[0] == wire.END:
                self._ended = True
                # Not `close`: this thread is the one that uses it.
                self._data.closed = True
                sock.close()
                return None
            body = memoryview(wire.receive_bytes(sock, layout + addresses + pages))
            if header[0] == wire.BATCH:
                first = layout + addresses
                return Batch(body[:layout], body[layout:first], body[first:])

    async def converged(self) -> None:
        await self._machine._ask("converged", timeout_s=None)

    async def switch_over(self) -> None:
        await self._machine._ask("switch-over")

    async def cancel(self) -> None:
        if self._cancelled:
            return
        self._cancelled = True
        self._ended = False
        try:
            await self._machine._ask("cancel")
        except Conflict:
            pass  # the process is gone, and with it the move
        finally:
            await asyncio.to_thread(self._data.close)

    def progress(self) -> CopyProgress:
        return self._progress


class WasmIncoming:
    """See `novacron.Incoming`."""

    def __init__(self, machine: WasmMachine, sock: socket.socket, have: bytes) -> None:
        self._machine = machine
        self._data = _DataSocket(sock)
        self._have = have
        self._finished = False
        self._abandoned = False

    def have(self) -> bytes:
        """What is here already, for the source's `peer_has`; empty if nothing is."""
        return self._have

    def write(self, batch: Batch) -> None:
        # What the runner would refuse by closing the connection is refused here, with a reason.
        lengths = (len(batch.layout), len(batch.addresses), len(batch.pages))
        try:
            wire.frame_lengths((wire.BATCH, *lengths))
        except wire.WireError as error:
            raise PeerProtocolError(str(error)) from error
        self._exchange(wire.BATCH, batch)

    def _exchange(self, kind: int, batch: Batch) -> None:
        buffers = (batch.layout, batch.addresses, batch.pages)
        header = wire.FRAME.pack(kind, *(len(buffer) for buffer in buffers), 0, 0, 0, 0)
        try:
            with self._data.using() as sock:
                wire.send_all(sock, (header, *buffers))
                reply = wire.receive_reply(sock)
        except (OSError, wire.WireError) as error:
            raise MachineError(
                f"the process of machine {self._machine.spec.name!r} takes no more: {error}"
            ) from error
        _raise(reply)

    async def finish(self) -> None:
        if self._finished or self._abandoned:
            raise RuntimeError("the arrival is over")
        await asyncio.to_thread(self._exchange, wire.END, Batch())
        self._finished = True
        await asyncio.to_thread(self._data.close)

    async def abandon(self) -> None:
        if self._abandoned:
            return
        machine = self._machine
        if self._finished and await machine.state() is MachineState.RUNNING:
            raise Conflict(f"machine {machine.spec.name!r} runs; it cannot be abandoned")
        self._abandoned = True
        await asyncio.to_thread(self._data.close)
        async with machine._life:
            await machine._discard()


class WasmDriver:
    """The machine provider ``wasm``."""

    name: ClassVar[str] = "wasm"
    Settings: ClassVar[type] = Settings

    def __init__(self, settings: Any, node: NodeFacts) -> None:
        if not isinstance(settings, Settings):
            raise InternalError(f"the wasm driver was given settings of {type(settings)}")
        self._settings = settings
        self._node = node

    def check(self, spec: MachineSpec) -> None:
        check_spec(spec, self._settings)

    async def examine(self, spec: MachineSpec, origin: Mapping[str, Any]) -> Sequence[Obstacle]:
        """See `novacron.MachineDriver`."""
        settings = self._settings
        return list(
            examine_arrival(
                spec,
                settings,
                self._node.state_dir,
                lambda origin: judge(spec, settings, origin),
                origin,
            )
        )

    async def open(self, spec: MachineSpec, home: Path) -> Machine:
        check_spec(spec, self._settings)
        return WasmMachine(spec, home, self._settings)


_DRIVER: type[MachineDriver] = WasmDriver
