"""A machine that arrives: batches, written to QEMU as the stream that its source's QEMU sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final

from novacron import Batch, MachineError, PeerProtocolError
from novacron_qemu.blocks import BlocksRefused, Have, extents_of, holds_blocks
from novacron_qemu.stream import StreamJoiner, StreamRefused
from qemu.qmp import EventListener

from novacron_machine_qemu._landing import Disk, begin_export, end_export, hold
from novacron_machine_qemu._process import Home
from novacron_machine_qemu._qmp import Monitor, MonitorGone
from novacron_machine_qemu._storage import Coming

_CONNECT_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.01
# While QEMU loads one batch the next may be unpacked; the system's own size is a fifth of one.
_BUFFER_BYTES: Final = 2 << 20


class Arriving:
    """The destination's half of a move (`novacron.Incoming`)."""

    def __init__(
        self,
        name: str,
        monitor: Monitor,
        home: Home,
        load_timeout_s: float,
        abandon: Callable[[], Awaitable[None]],
        coming: Coming | None = None,
        loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self._coming = coming or Coming()
        self._loaded_disks = loaded
        self._disks: dict[int, Disk] = {}
        self._have = b""
        self._name = name
        self._monitor = monitor
        self._home = home
        self._load_timeout_s = load_timeout_s
        self._abandon = abandon
        self._log_before = home.log_size()
        self._joiner = StreamJoiner()
        self._socket: socket.socket | None = None
        self._writing = threading.Lock()
        self._over = False

    def have(self) -> bytes:
        """What is here already of the machine's disks, for the source; see `Have`."""
        return self._have

    async def begin(self) -> None:
        """Let QEMU listen, and connect to it. Raises MachineError."""
        if self._coming.numbers:
            await self._begin_disks()
        elif self._coming.places:
            self._have = Have(places=list(self._coming.places)).pack()
        path = self._home.socket("in.sock")
        path.unlink(missing_ok=True)
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            async with self._monitor.held():
                await self._monitor.execute(
                    "migrate-set-capabilities",
                    {"capabilities": [{"capability": "events", "state": True}]},
                )
                await self._monitor.execute("migrate-incoming", {"uri": f"unix:{path}"})
            stream.setblocking(False)
            await asyncio.wait_for(
                asyncio.get_running_loop().sock_connect(stream, str(path)), _CONNECT_TIMEOUT_S
            )
            stream.setblocking(True)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        except BaseException as error:
            stream.close()
            if isinstance(error, (OSError, TimeoutError)):
                raise MachineError(f"machine {self._name} cannot arrive: {error}") from error
            raise
        finally:
            path.unlink(missing_ok=True)
        self._socket = stream

    async def _begin_disks(self) -> None:
        """Let QEMU export the disks that come, and see what they hold. Blocks nobody; takes as long
        as it takes to read what the machine left here."""
        path, coming = self._home.socket("nbd.sock"), self._coming
        await begin_export(self._monitor, path, coming.numbers, writable=True)

        def look() -> bytes:
            for number in coming.numbers:
                self._disks[number] = Disk(path, number)
            found = hold(list(self._disks.values()), coming.kept)
            return Have(disks=found, places=list(coming.places)).pack()

        self._have = await asyncio.to_thread(look)

    def write(self, batch: Batch) -> None:
        """See `novacron.Incoming.write`."""
        with self._writing:
            stream = self._socket
            if stream is None or self._over:
                raise MachineError(f"machine {self._name}: its arrival is over")
            if holds_blocks(batch):
                self._write_blocks(batch)
                return
            try:
                joined = self._joiner.join(batch)
            except StreamRefused as error:
                raise PeerProtocolError(
                    str(error),
                    hint="both nodes need the same version of novacron-qemu",
                    problem=error.problem,
                    at=error.at,
                ) from error
            try:
                stream.sendall(joined)
            except OSError as error:
                raise self._refused(f"QEMU does not take its stream ({error})") from error

    def _write_blocks(self, batch: Batch) -> None:
        sizes = [0] * (max(self._disks, default=-1) + 1)
        for number, disk in self._disks.items():
            sizes[number] = disk.size_bytes
        try:
            extents = extents_of(batch, sizes)
        except BlocksRefused as error:
            raise PeerProtocolError(str(error), hint=error.hint) from error
        for extent in extents:
            self._disks[extent.disk].write(extent)
        for disk in self._disks.values():
            disk.settle()

    async def _finish_disks(self) -> None:
        """All blocks have come: they are on the disk, and nobody writes to it but the guest."""
        if self._disks:
            await asyncio.to_thread(self._flush)
            await end_export(self._monitor, self._home.socket("nbd.sock"))
        self._loaded_disks()

    def _flush(self) -> None:
        with self._writing:
            for disk in self._disks.values():
                disk.flush()
                disk.close()

    def _refused(self, what: str) -> MachineError:
        said = self._home.log_tail(self._log_before)
        return MachineError(
            f"machine {self._name} cannot be loaded: {what}"
            + (f"; it said: {said}" if said else ""),
            hint="see qemu.log in the machine's home; both nodes need a QEMU that has the "
            "machine's type and the same arguments",
        )

    async def finish(self) -> None:
        """See `novacron.Incoming.finish`."""
        if self._over or self._socket is None:
            raise MachineError(f"machine {self._name}: its arrival is over")
        await self._finish_disks()
        deadline = time.monotonic() + self._load_timeout_s
        try:
            async with self._monitor.held() as client:
                with client.listener("MIGRATION") as events:
                    await asyncio.to_thread(self._finish_writing)
                    while not await self._loaded():
                        if time.monotonic() > deadline:
                            raise self._refused(f"not ready after {self._load_timeout_s:g} s")
                        await _wait(events)
        except MonitorGone as error:
            raise self._refused(f"QEMU has ended ({error})") from error
        self._close()

    def _finish_writing(self) -> None:
        with self._writing:
            stream = self._socket
            if stream is not None:
                with contextlib.suppress(OSError):  # QEMU read all it needs and closed
                    stream.shutdown(socket.SHUT_WR)

    async def _loaded(self) -> bool:
        info = await self._monitor.execute("query-migrate")
        status = info.get("status", "none")
        if status == "failed":
            raise self._refused(str(info.get("error-desc") or "its stream is not whole"))
        if status != "completed":
            return False
        state: str = (await self._monitor.execute("query-status"))["status"]
        return state != "inmigrate"

    async def abandon(self) -> None:
        """See `novacron.Incoming.abandon`."""
        if self._over:
            return
        await self._abandon()
        self._over = True
        stream = self._socket
        for disk in self._disks.values():
            disk.hang_up()
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        await asyncio.to_thread(self._close_when_unwritten)

    def close(self) -> None:
        """The machine was stopped: there is nothing to arrive at any more."""
        self._over = True
        self._close()

    def __del__(self) -> None:
        self._close()

    def _close_when_unwritten(self) -> None:
        with self._writing:
            self._close()

    def _close(self) -> None:
        stream, self._socket = self._socket, None
        for disk in self._disks.values():
            disk.close()
        if stream is not None:
            stream.close()


async def _wait(events: EventListener) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(events.get(), _POLL_S)
