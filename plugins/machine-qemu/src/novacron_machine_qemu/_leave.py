"""A machine that leaves: QEMU's migration stream, read from a socket as batches.

How the phases of a move map to QEMU's:

- `send` starts `migrate` with the capability pause-before-switchover, so that QEMU stops the guest
  when what is left fits the downtime, and then waits for us (pre-switchover) instead of going on.
- `converged` returns at pre-switchover; the guest is paused then.
- `switch_over` lets QEMU go on (migrate-continue). Before convergence it stops the guest at once
  and raises the allowed downtime to QEMU's maximum, so that QEMU goes over to its last pass at its
  next look, and continues it when it gets there.
- The end is QEMU's word "completed" and its run state postmigrate, in which it never runs by
  itself again. Only then `read` returns None.

Disks that go along (`_mirror`) come first: memory begins to leave when each disk was read once, so
that no page is sent again because of a disk. QEMU is kept from converging while the guest's last
writes to a disk are more than fits the pause, and in the pause the disks end before it goes on.

If the reader goes away before that, QEMU's writing fails and it runs the guest again by itself
(if it ran before); the destination cannot have got everything in that case. Waiting in
pre-switchover it writes nothing and so notices nothing: `Machine.resume` ends such a move first.
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
from collections.abc import Callable
from typing import Any, Final

from novacron import (
    Batch,
    CopyProgress,
    MachineError,
    MoveLimits,
)
from novacron_qemu.blocks import Have
from novacron_qemu.stream import StreamSplitter
from qemu.qmp import EventListener, QMPError

from novacron_machine_qemu._mirror import Mirrors
from novacron_machine_qemu._qmp import Monitor, MonitorGone

log = logging.getLogger("novacron.machine.qemu")

# QEMU's largest downtime-limit; it makes any rest small enough.
_DOWNTIME_MAX_MS: Final = 2_000_000
# No limit: QEMU's own default is 128 MiB/s.
_RATE_MAX: Final = 1 << 40
_POLL_S: Final = 0.25
# QEMU judges the link by how fast its socket drains, and so by the buffers behind it. From 8.2 on
# it can be told better: the kernel says how fast state leaves this host, and how long the last set
# of pages may take (`aim`). Until it does: how much was read from QEMU lately.
_RATE_KNOWN: Final = (8, 2)
_RATE_WINDOW_S: Final = 2.0
_RATE_FIRST_S: Final = 0.2
# As good as nothing, but not nothing: QEMU takes a rest of no bytes at all for converged without
# looking whether the guest has written meanwhile.
_RATE_LEAST: Final = 1000
_SETTLE_TIMEOUT_S: Final = 20.0
_DISK_POLL_S: Final = 0.1
# What the disks may always have left when the guest is paused: a block or two of each.
_DISK_REST_BYTES: Final = 1 << 20
# How long to wait for more before a small batch goes out: while the guest runs, larger batches are
# worth some milliseconds; while it is paused, hardly one (with none at all, a last pass of 73 MB
# went out as 1,400 batches).
_LINGER_MS: Final = 5
_LINGER_PAUSED_MS: Final = 1
_READ_BYTES: Final = 1 << 20
# QEMU writes ahead this far while a batch is encoded; with the system's own size (208 KiB) both
# sides wake each other up several times a batch. Each byte of it is also a byte of the pause. The
# system counts its own use of memory too, and allows no more than net.core.wmem_max.
_BUFFER_BYTES: Final = 1 << 20
# What QEMU calls the end of the socket that it was handed.
_FD_NAME: Final = "novacron-out"

# What query-migrate says while a migration holds the machine, and when it does no more.
ACTIVE: Final = {
    *["setup", "wait-unplug", "active", "pre-switchover", "device", "cancelling"],
    *["postcopy-active", "postcopy-paused", "postcopy-recover"],
}


async def end_migration(monitor: Monitor) -> None:
    """Cancel whatever migration QEMU is in, and wait until it is out of it."""
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    async with monitor.held():
        await monitor.execute("migrate_cancel")
        while True:
            status = (await monitor.execute("query-migrate")).get("status", "none")
            state = (await monitor.execute("query-status"))["status"]
            if status not in ACTIVE and state != "finish-migrate":
                return
            if time.monotonic() > deadline:
                raise MachineError(f"QEMU does not leave its migration (it says {status})")
            await asyncio.sleep(0.005)


class Leaving:
    """The source's half of a move (`novacron.Outgoing`)."""

    def __init__(
        self,
        name: str,
        monitor: Monitor,
        total_bytes: int,
        max_rounds: int,
        version: tuple[int, ...],
        disks: Mirrors | None = None,
        check_places: Callable[[Have], None] = lambda have: None,
    ) -> None:
        self._name = name
        self._disks = disks
        self._check_places = check_places
        self._reading_begun = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._draining = asyncio.Lock()
        self._downtime_ms = 1
        self._monitor = monitor
        self._max_rounds = max_rounds
        self._socket: socket.socket | None = None
        self._splitter = StreamSplitter()
        self._ready: deque[Batch] = deque()
        self._linger_ms = 0
        self._buffer = bytearray(_READ_BYTES)
        self._reading = threading.Lock()
        self._ended = threading.Event()
        self._failure = ""
        self._cancelled = False
        self._paused = False
        self._switching = False
        self._continued = False
        self._at_switchover = False
        self._rounds_spent = False
        self._done = False
        self._settled = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._progress = CopyProgress(
            round=1, done_bytes=0, remaining_bytes=total_bytes, total_bytes=total_bytes
        )
        self._total = total_bytes
        self._tells_rate = version[:2] >= _RATE_KNOWN
        self._read_bytes = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._aim: tuple[int, int] | None = None
        self._aimed: tuple[int, int] | None = None

    # -- beginning -------------------------------------------------------------------------------

    async def begin(self, limits: MoveLimits) -> None:
        """Start the migration. Raises MachineError; the machine is as it was."""
        downtime = max(1, min(limits.max_downtime_ms, _DOWNTIME_MAX_MS))
        self._downtime_ms = downtime
        rate = limits.rate_bytes_per_s
        stream, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        hold = contextlib.AsyncExitStack()
        try:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            if self._disks is not None:
                await self._disks.begin()
            client = await hold.enter_async_context(self._monitor.held())
            # The listener is there before the migration: no event of it is missed.
            events = EventListener(("MIGRATION",))
            client.register_listener(events)
            hold.callback(client.remove_listener, events)
            await self._monitor.execute(
                "migrate-set-capabilities",
                {
                    "capabilities": [
                        {"capability": "events", "state": True},
                        {"capability": "pause-before-switchover", "state": True},
                        {"capability": "auto-converge", "state": limits.slow_guest},
                    ]
                },
            )
            await self._set(
                {"downtime-limit": downtime, "max-bandwidth": min(rate or _RATE_MAX, _RATE_MAX)}
            )
            if self._tells_rate:
                # Until something was measured it must not converge.
                await self._set({"avail-switchover-bandwidth": _RATE_LEAST})
            client.send_fd_scm(theirs.fileno())
            await self._monitor.execute("getfd", {"fdname": _FD_NAME})
            if self._disks is None:
                await self._monitor.execute("migrate", {"uri": f"fd:{_FD_NAME}"})
        except BaseException as error:
            if self._disks is not None:
                await asyncio.shield(self._disks.cancel())
            await hold.aclose()
            stream.close()
            if isinstance(error, OSError):
                raise MachineError(
                    f"machine {self._name} cannot begin to leave: {error}"
                ) from error
            raise
        finally:
            theirs.close()
        self._socket = stream
        self._watcher = asyncio.create_task(self._watch(hold, events), name=f"leave {self._name}")

    # -- watching QEMU ---------------------------------------------------------------------------

    async def _watch(self, hold: contextlib.AsyncExitStack, events: EventListener) -> None:
        """Follow the migration to its end."""
        async with hold:
            try:
                if self._disks is not None:
                    await self._copy_disks(self._disks)
                while not await self._look():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(events.get(), _POLL_S)
            except MonitorGone as error:
                self._failure = f"QEMU is gone: {error}"
            except (MachineError, QMPError) as error:
                self._failure = str(error)
                await self._give_up()
            finally:
                self._failure = self._failure or ("" if self._done else "nobody watches it")
                self._ended.set()
                self._settled.set()

    async def _copy_disks(self, disks: Mirrors) -> None:
        """Return when each disk was read once, and memory has begun to leave."""
        # Until somebody reads, nothing is known of what the destination holds.
        await self._reading_begun.wait()
        if not self._cancelled:
            await disks.start()
        while not await disks.look():
            if self._cancelled:
                raise MachineError("its move was cancelled")
            await asyncio.sleep(_DISK_POLL_S)
        if self._cancelled:
            raise MachineError("its move was cancelled")
        await self._monitor.execute("migrate", {"uri": f"fd:{_FD_NAME}"})

    async def _give_up(self) -> None:
        """The move has failed while QEMU lives: it goes on as if nothing had been."""
        with contextlib.suppress(MachineError, QMPError):
            if self._disks is not None:
                await self._disks.cancel()
            await end_migration(self._monitor)
        stream = self._socket
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    async def _look(self) -> bool:
        """Take in what QEMU says; True when the migration has ended."""
        if self._disks is not None:
            await self._disks.look()
        info: dict[str, Any] = await self._monitor.execute("query-migrate")
        status = str(info.get("status", "none"))
        self._note(info)
        if status == "pre-switchover":
            self._at_switchover = self._paused = True
            self._settled.set()
            if self._switching:
                await self._continue()
        elif status == "device":
            self._paused = True
        elif status == "completed":
            await self._await_postmigrate()
            self._done = True
            return True
        elif status not in ACTIVE:
            self._failure = str(info.get("error-desc") or f"the migration is {status}")
            return True
        if status == "active" and not self._switching:
            await self._tell_aim()
        if self._progress.round > self._max_rounds and not self._paused:
            self._rounds_spent = True
            self._settled.set()
        return False

    async def _set(self, parameters: dict[str, int]) -> None:
        await self._monitor.execute("migrate-set-parameters", parameters)

    def aim(self, last_set_ms: int, state_bytes_per_s: int) -> None:
        """See `novacron.Outgoing`."""
        self._aim = (max(1, min(last_set_ms, _DOWNTIME_MAX_MS)), state_bytes_per_s)

    async def _tell_aim(self) -> None:
        """Tell QEMU when to go over to its last pass."""
        if self._disks_lag():
            if self._tells_rate:
                await self._set({"avail-switchover-bandwidth": _RATE_LEAST})
            self._aimed = None
            return
        if self._aim is None or not self._aim[1]:
            if self._tells_rate:
                await self._tell_rate()
            return
        if self._aim == self._aimed:
            return
        self._aimed = self._aim
        last_set_ms, rate = self._aim
        parameters = {"downtime-limit": last_set_ms}
        if self._tells_rate:
            parameters["avail-switchover-bandwidth"] = max(_RATE_LEAST, rate)
        await self._set(parameters)

    def _disks_lag(self) -> bool:
        """Whether what the guest wrote to its disks last takes more than half of the pause."""
        if self._disks is None:
            return False
        last_set_ms, rate = self._aim or (self._downtime_ms, 0)
        fits = max(rate * last_set_ms // 2000, _DISK_REST_BYTES)
        return self._disks.remaining_bytes > fits

    async def _tell_rate(self) -> None:
        """Tell QEMU how fast it is really read."""
        now, samples = time.monotonic(), self._samples
        samples.append((now, self._read_bytes))
        while len(samples) > 2 and now - samples[1][0] >= _RATE_WINDOW_S:
            samples.popleft()
        since, bytes_then = samples[0]
        if now - since >= _RATE_FIRST_S:
            rate = int((self._read_bytes - bytes_then) / (now - since))
            await self._set({"avail-switchover-bandwidth": max(_RATE_LEAST, rate)})

    async def _continue(self) -> None:
        async with self._draining:
            if self._continued:
                return
            if self._disks is not None:
                await self._disks.drain()
            self._continued = True
            await self._monitor.execute("migrate-continue", {"state": "pre-switchover"})

    async def _await_postmigrate(self) -> None:
        """QEMU says "completed" a moment before it is in the state in which it stays paused."""
        deadline = time.monotonic() + _SETTLE_TIMEOUT_S
        while (state := (await self._monitor.execute("query-status"))["status"]) != "postmigrate":
            if state == "running" or time.monotonic() > deadline:
                raise MachineError(f"QEMU is {state} after its migration was completed")
            await asyncio.sleep(0.001)

    def _note(self, info: dict[str, Any]) -> None:
        ram = info.get("ram")
        if not ram:
            return
        page = int(ram.get("page-size", 4096))
        done = (int(ram.get("normal", 0)) + int(ram.get("duplicate", 0))) * page
        self._progress = CopyProgress(
            round=max(1, int(ram.get("dirty-sync-count", 1))),
            done_bytes=done,
            remaining_bytes=0 if info.get("status") == "completed" else int(ram["remaining"]),
            total_bytes=int(ram.get("total", self._total)),
            dirty_bytes_per_s=int(ram.get("dirty-pages-rate", 0)) * page,
        )

    # -- the contract ----------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether QEMU is still in this migration."""
        return not self._ended.is_set()

    @property
    def switching(self) -> bool:
        return self._switching and self.active

    def read(self) -> Batch | None:
        """See `novacron.Outgoing.read`."""
        disks = self._disks
        with self._reading:
            if disks is not None and not self._reading_begun.is_set():
                self._loop.call_soon_threadsafe(self._reading_begun.set)
            while True:
                if self._cancelled:
                    raise MachineError(f"machine {self._name}: its move was cancelled")
                if self._ready:
                    return self._ready.popleft()
                if disks is not None and (batch := disks.take()) is not None:
                    return batch
                if self._socket is None:
                    self._judge_end()
                    return None
                self._fill(self._socket)

    def _fill(self, stream: socket.socket) -> None:
        """Read until there is at least one batch, or the stream has ended."""
        view = memoryview(self._buffer)
        pending = False
        while not self._ready:
            if self._disks is not None and self._disks.queue.waiting():
                return
            # The system collects a whole batch in one call, and gives up when nothing has come for
            # a moment.
            self._linger(stream)
            try:
                count = stream.recv_into(view, len(view), socket.MSG_WAITALL)
            except BlockingIOError:
                if pending:
                    self._ready.extend(self._splitter.flush())
                    pending = False
                else:
                    _await(stream, None if self._disks is None else self._disks.queue.wake)
                continue
            except OSError as error:
                raise MachineError(f"machine {self._name}: its stream broke: {error}") from error
            if not count:
                self._ready.extend(self._splitter.end())
                self._close()
                return
            self._read_bytes += count
            self._ready.extend(self._splitter.feed(view[:count]))
            pending = True

    def _linger(self, stream: socket.socket) -> None:
        linger_ms = _LINGER_PAUSED_MS if self._paused else _LINGER_MS
        if linger_ms != self._linger_ms:
            self._linger_ms = linger_ms
            wait = struct.pack("ll", 0, linger_ms * 1000)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)

    def _judge_end(self) -> None:
        """The stream has ended; whether it was whole, QEMU tells."""
        if not self._ended.wait(_SETTLE_TIMEOUT_S):
            raise MachineError(f"machine {self._name}: QEMU closed its stream and says no more")
        if not self._done:
            raise MachineError(
                f"machine {self._name} did not leave: {self._failure}",
                hint="see qemu.log in the machine's home",
            )

    def _close(self) -> None:
        stream, self._socket = self._socket, None
        if stream is not None:
            stream.close()

    async def converged(self) -> None:
        """See `novacron.Outgoing.converged`."""
        await self._settled.wait()
        if self._done or self._at_switchover:
            return
        if self._failure:
            raise MachineError(f"machine {self._name} did not leave: {self._failure}")
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
        if not self.active:
            raise MachineError(
                f"machine {self._name} has ended its move: {self._failure or 'done'}"
            )
        self._switching = True
        try:
            if not self._at_switchover:
                await self._monitor.execute("stop")
                self._paused = True
                everything = {"downtime-limit": _DOWNTIME_MAX_MS}
                if self._tells_rate:
                    everything["avail-switchover-bandwidth"] = _RATE_MAX
                await self._set(everything)
            if self._at_switchover:
                await self._continue()
        except MonitorGone as error:
            raise MachineError(f"machine {self._name} was not paused: {error}") from error

    async def cancel(self) -> None:
        """See `novacron.Outgoing.cancel`."""
        self._cancelled = True
        stream = self._socket
        self._reading_begun.set()
        if self._disks is not None:
            await self._disks.cancel()
        if self.active:
            with contextlib.suppress(MonitorGone):  # ended by itself: there is nothing to cancel
                await end_migration(self._monitor)
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        if self._watcher is not None:
            await asyncio.wait([self._watcher], timeout=_SETTLE_TIMEOUT_S)
        await asyncio.to_thread(self._close_when_unread)

    def __del__(self) -> None:
        self._close()

    def _close_when_unread(self) -> None:
        with self._reading:
            self._close()
            self._ready.clear()

    def peer_has(self, have: bytes) -> None:
        """What the destination says of the machine's disks, before anything is read.

        Raises: BlocksRefused if that is not sound; Refused if a disk that is said to be shared is
            not the same one there.
        """
        word = Have.unpack(have)
        self._check_places(word)
        if self._disks is not None:
            self._disks.know(word.disks)

    def progress(self) -> CopyProgress:
        """See `novacron.Outgoing.progress`."""
        now, disks = self._progress, self._disks
        if disks is None:
            return now
        return CopyProgress(
            round=now.round,
            done_bytes=now.done_bytes + disks.done_bytes,
            remaining_bytes=now.remaining_bytes + disks.remaining_bytes,
            total_bytes=now.total_bytes + disks.total_bytes,
            dirty_bytes_per_s=now.dirty_bytes_per_s,
        )


def _await(stream: socket.socket, wake: int | None = None) -> None:
    """Return when there is something to read, or the stream has ended."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    if wake is not None:
        poll.register(wake, select.POLLIN)
    poll.poll()
