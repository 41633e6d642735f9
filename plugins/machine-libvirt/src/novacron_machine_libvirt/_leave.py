"""A machine that leaves: what its libvirtd lets QEMU write into a socket, as batches.

QEMU decides the rounds, and the guest is paused when what is left fits the downtime that it was
told. The stream ends at the relay, which gives the answer that QEMU waits for (`_stream_end`); then
the domain is paused and libvirtd waits for the last word, `Leaving.confirm`. `read` says that all
was read only when libvirtd has come to that point: from there on it keeps the domain paused
whatever happens to it or to this node, and before it nobody at the destination could verify.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from novacron import Batch, CopyProgress, MachineError, MoveLimits
from novacron_qemu.stream import StreamSplitter

from novacron_machine_libvirt import _libvirt as libvirt
from novacron_machine_libvirt import _phases
from novacron_machine_libvirt._daemon import Daemon, refused, words
from novacron_machine_libvirt._home import Home
from novacron_machine_libvirt._stream_end import DONE, StreamEnd

log = logging.getLogger("novacron.machine.libvirt")

_POLL_S: Final = 0.02
_SETTLE_TIMEOUT_S: Final = 30.0
_ACCEPT_POLL_MS: Final = 100
_ABORT_AGAIN_S: Final = 0.1
_READ_BYTES: Final = 1 << 20
# How long a read waits for more, so that batches are full: while the guest runs, and while not.
_LINGER_MS: Final = 5
_LINGER_PAUSED_MS: Final = 1
# A paused guest's stream that says nothing for so long has no end that can be seen.
_SILENCE_MAX_S: Final = 30.0
_MIB: Final = 1 << 20
# QEMU's own limit: 2000 s. What is left then goes at once.
_DOWNTIME_MAX_MS: Final = 2_000_000


class Leaving:
    """The source's half of a move (`novacron.Outgoing`)."""

    def __init__(
        self, name: str, daemon: Daemon, home: Home, total_bytes: int, max_rounds: int
    ) -> None:
        self._name = name
        self._daemon = daemon
        self._home = home
        self._max_rounds = max_rounds
        self._connection: libvirt.Connection | None = None
        self._domain: libvirt.Domain | None = None
        self._peer: _phases.Peer | None = None
        self._listener: socket.socket | None = None
        self._stream: socket.socket | None = None
        self._splitter = StreamSplitter()
        self._end = StreamEnd()
        self._ready: deque[Batch] = deque()
        self._buffer = bytearray(_READ_BYTES)
        self._linger_ms = 0
        self._reading = threading.Lock()
        self._ended = threading.Event()
        self._asked = threading.Event()  # for the switch-over, or to give up
        self._settled = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._watcher: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._failure = ""
        self._performed = False
        self._cancelled = False
        self._paused = False
        self._switching = False
        self._rounds_spent = False
        self._downtime_ms = 0
        self._progress = CopyProgress(
            round=1, done_bytes=0, remaining_bytes=total_bytes, total_bytes=total_bytes
        )

    # -- beginning --------------------------------------------------------------------------------

    async def begin(self, uuid: str, limits: MoveLimits) -> None:
        """Start the migration. Raises MachineError; the machine is as it was."""
        path = self._home.socket("out.sock")
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            listener.listen(1)
            await asyncio.to_thread(self._open, uuid, limits)
        except OSError as error:
            listener.close()
            raise MachineError(f"machine {self._name} cannot begin to leave: {error}") from error
        except libvirt.LibvirtError as error:
            listener.close()
            raise refused(f"machine {self._name} cannot leave", error) from error
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        flags = _phases.FLAGS
        if limits.slow_guest:
            flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
        rate = limits.rate_bytes_per_s
        rate_mib_s = max(1, round(rate / _MIB)) if rate else 0
        # Not in the executor: it blocks for as long as the move takes.
        threading.Thread(
            target=self._perform,
            args=(f"unix://{path}", flags, rate_mib_s),
            name=f"leave {self._name}",
            daemon=True,
        ).start()
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self._name}")

    def _open(self, uuid: str, limits: MoveLimits) -> None:
        connection = self._daemon.new()
        self._domain = domain = connection.find_uuid(uuid)
        self._peer = _phases.Peer(name=domain.name(), uuid=uuid)
        self._connection = connection
        _phases.begin(domain)
        self._downtime_ms = max(1, min(limits.max_downtime_ms, _DOWNTIME_MAX_MS))
        domain.set_max_downtime(self._downtime_ms)

    def _perform(self, uri: str, flags: int, rate_mib_s: int) -> None:
        assert self._domain is not None
        assert self._peer is not None
        try:
            _phases.perform(self._domain, self._peer, uri, flags=flags, rate_mib_s=rate_mib_s)
            self._performed = True
        except libvirt.LibvirtError as error:
            self._failure = words(error)
        finally:
            self._failure = self._failure or ("" if self._performed else "libvirt ended it")
            self._ended.set()
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._settled.set)

    # -- watching ---------------------------------------------------------------------------------

    async def _watch(self) -> None:
        try:
            while not self._ended.is_set():
                await asyncio.to_thread(self._look)
                if self._paused or self._rounds_spent:
                    self._settled.set()
                await asyncio.sleep(_POLL_S)
        except libvirt.LibvirtError as error:
            # The thread that performs meets the same fault, and says what became of the move.
            log.debug("machine %s is not watched any more: %s", self._name, error)

    def _look(self) -> None:
        assert self._domain is not None
        state, _ = self._domain.state()
        self._note(self._domain.job()[1])
        self._paused = self._paused or state == libvirt.VIR_DOMAIN_PAUSED
        if self._progress.round > self._max_rounds and not self._paused:
            self._rounds_spent = True

    def _note(self, stats: Mapping[str, Any]) -> None:
        if not stats.get("memory_total"):
            return
        page = int(stats.get("memory_page_size", 4096))
        done = int(stats.get("memory_normal", 0)) + int(stats.get("memory_constant", 0))
        self._progress = CopyProgress(
            round=max(1, int(stats.get("memory_iteration", 1))),
            done_bytes=done * page,
            remaining_bytes=int(stats.get("memory_remaining", 0)),
            total_bytes=int(stats["memory_total"]),
            dirty_bytes_per_s=int(stats.get("memory_dirty_rate", 0)) * page,
        )

    def aim(self, last_set_ms: int, state_bytes_per_s: int) -> None:
        """See `novacron.Outgoing`. libvirt 9 cannot be told the rate; the downtime it can."""
        wanted = max(1, min(last_set_ms, _DOWNTIME_MAX_MS))
        if state_bytes_per_s and wanted != self._downtime_ms and not self._switching:
            self._downtime_ms = wanted
            self._telling = asyncio.create_task(asyncio.to_thread(self._tell_downtime, wanted))

    def _tell_downtime(self, downtime_ms: int) -> None:
        if self._domain is not None and not self._ended.is_set():
            with contextlib.suppress(libvirt.LibvirtError):  # the move has just ended
                self._domain.set_max_downtime(downtime_ms)

    # -- the contract -----------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether libvirtd is still sending."""
        return self._domain is not None and not self._ended.is_set()

    @property
    def performed(self) -> bool:
        """Whether all was sent and libvirtd waits for `confirm`."""
        return self._performed

    @property
    def switching(self) -> bool:
        return self._switching and self.active

    def read(self) -> Batch | None:
        """See `novacron.Outgoing.read`."""
        with self._reading:
            while True:
                if self._cancelled:
                    raise MachineError(f"machine {self._name}: its move was cancelled")
                if self._ready:
                    return self._ready.popleft()
                if self._listener is not None:
                    self._accept(self._listener)
                elif self._stream is not None:
                    self._fill(self._stream)
                else:
                    self._judge_end()
                    return None

    def _accept(self, listener: socket.socket) -> None:
        """libvirtd connects before it lets QEMU begin; or says why it does not."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while not poll.poll(_ACCEPT_POLL_MS):
            if self._cancelled or self._ended.is_set():
                break
        else:
            self._stream, _ = listener.accept()
        self._listener = None
        listener.close()
        self._home.socket("out.sock").unlink(missing_ok=True)

    def _fill(self, stream: socket.socket) -> None:
        """Read until there is at least one batch, or the stream has ended."""
        view = memoryview(self._buffer)
        pending = False
        while not self._ready:
            self._linger(stream)
            try:
                count = stream.recv_into(view, len(view), socket.MSG_WAITALL)
            except BlockingIOError:
                if pending:
                    self._ready.extend(self._splitter.flush())
                    pending = False
                else:
                    self._await(stream)
                continue
            except OSError as error:
                raise MachineError(f"machine {self._name}: its stream broke: {error}") from error
            if not count:
                self._ready.extend(self._splitter.end())
                self._stream = None
                stream.close()
                return
            pending = True
            self._ready.extend(self._splitter.feed(view[:count]))
            if self._splitter.progress.opaque and self._end.feed(view[:count]):
                self._ready.extend(self._splitter.end())
                with contextlib.suppress(OSError):
                    stream.sendall(DONE)

    def _await(self, stream: socket.socket) -> None:
        """Return when there is something to read, or the stream has ended."""
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        silent_since = time.monotonic()
        while not poll.poll(1000):
            silent_s = time.monotonic() - silent_since
            if self._paused and self._switching and silent_s > _SILENCE_MAX_S:
                raise MachineError(
                    f"machine {self._name}: the end of its stream cannot be seen",
                    hint="its machine type may be one that does not describe its devices "
                    "(suppress-vmdesc): use a newer one",
                )

    def _linger(self, stream: socket.socket) -> None:
        linger_ms = _LINGER_PAUSED_MS if self._paused else _LINGER_MS
        if linger_ms != self._linger_ms:
            self._linger_ms = linger_ms
            wait = struct.pack("ll", 0, linger_ms * 1000)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)

    def _judge_end(self) -> None:
        """The stream has ended; whether it was whole, libvirt tells."""
        deadline = time.monotonic() + _SETTLE_TIMEOUT_S
        while not self._ended.wait(_ABORT_AGAIN_S):
            if self._cancelled or time.monotonic() > deadline:
                raise MachineError(f"machine {self._name}: libvirtd does not end its move")
        if not self._performed:
            raise self._not_left()
        # libvirt goes on to the end by itself, perhaps before anybody has asked for it.
        while not self._asked.wait(_ABORT_AGAIN_S):
            pass
        if self._cancelled:
            raise MachineError(f"machine {self._name}: its move was cancelled")

    def _not_left(self) -> MachineError:
        return MachineError(
            f"machine {self._name} did not leave: {self._failure}",
            hint="see libvirtd's log; libvirt resumes the machine by itself",
        )

    async def converged(self) -> None:
        """See `novacron.Outgoing.converged`."""
        await self._settled.wait()
        if self._performed or (self._paused and not self._ended.is_set()):
            return
        if self._ended.is_set():
            raise self._not_left()
        now = self._progress
        raise MachineError(
            f"machine {self._name} writes its memory faster than it leaves: after "
            f"{self._max_rounds} passes {now.remaining_bytes} bytes are left",
            hint="allow a longer downtime or a higher rate, or force the pause",
            dirty_bytes_per_s=now.dirty_bytes_per_s,
            remaining_bytes=now.remaining_bytes,
        )

    async def switch_over(self) -> None:
        """See `novacron.Outgoing.switch_over`."""
        if self._cancelled:
            raise MachineError(f"machine {self._name}: its move was cancelled")
        self._switching = True
        self._asked.set()
        if self._performed:
            return
        if self._ended.is_set():
            raise self._not_left()
        try:
            await asyncio.to_thread(self._force)
        except libvirt.LibvirtError as error:
            raise refused(f"machine {self._name} was not paused", error) from error

    def _force(self) -> None:
        assert self._domain is not None
        with contextlib.suppress(libvirt.LibvirtError):  # it ends by itself just now
            self._domain.set_max_downtime(_DOWNTIME_MAX_MS)
        if self._domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            try:
                self._domain.suspend()
            except libvirt.LibvirtError:
                if self._domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
                    raise
        self._paused = True

    async def cancel(self) -> None:
        """See `novacron.Outgoing.cancel`. A machine that has left whole stays paused."""
        self._cancelled = True
        self._asked.set()
        stream = self._stream
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        await asyncio.to_thread(self._close_when_unread)
        if self._domain is not None:
            await asyncio.to_thread(self._abort)
        if self._watcher is not None:
            await asyncio.wait([self._watcher], timeout=_SETTLE_TIMEOUT_S)
        if self._ended.is_set() and not self._performed:
            self._let_go()

    def _abort(self) -> None:
        """Let libvirtd end the move. What comes before QEMU's migration has begun has no effect, so
        it is said until it has ended."""
        assert self._domain is not None
        deadline = time.monotonic() + _SETTLE_TIMEOUT_S
        while not self._ended.is_set() and time.monotonic() < deadline:
            with contextlib.suppress(libvirt.LibvirtError):  # ended by itself, or its daemon did
                self._domain.abort_job()
            self._ended.wait(_ABORT_AGAIN_S)

    def _close_when_unread(self) -> None:
        with self._reading:
            self.close()
            self._ready.clear()

    def close(self) -> None:
        """Close the sockets; the domain is left as it is."""
        for stream in (self._listener, self._stream):
            if stream is not None:
                stream.close()
        self._listener = self._stream = None

    def progress(self) -> CopyProgress:
        """See `novacron.Outgoing.progress`."""
        return self._progress

    # -- the last word ----------------------------------------------------------------------------

    async def confirm(self, *, moved: bool) -> None:
        """Tell libvirtd how the move went, once everything was sent.

        Raises: MachineError if it is not reached, or was restarted meanwhile: then the domain is
        paused, and is resumed or ended as any other.
        """
        assert self._performed
        domain, peer = self._domain, self._peer
        assert domain is not None
        assert peer is not None
        self._performed = False
        try:
            await asyncio.to_thread(lambda: _phases.confirm(domain, peer, moved=moved))
        except libvirt.LibvirtError as error:
            raise refused(f"the move of machine {self._name} was not confirmed", error) from error
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._domain = self._connection = None

    def __del__(self) -> None:
        self.close()
