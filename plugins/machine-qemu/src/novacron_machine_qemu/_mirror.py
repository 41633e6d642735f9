"""The disks of a machine that leaves: QEMU mirrors them into NBD exports that are served here.

Each disk has a job ``blockdev-mirror`` (sync=full): it reads the whole disk once, keeps track of
what the guest writes meanwhile, and sends that again. Its writes end in this process, as extents
for batches; what the destination holds already is left out. The source's own disk is only read.

A thread per disk serves QEMU, so that its main loop never waits for us to notice; it waits for room
in the queue instead, and so QEMU feels the link. On the way out (`cancel`) the queue is closed
first, and what QEMU still writes is answered by an error: QEMU could wait for that answer
otherwise, and answer nobody itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import define, frozen
from novacron import Batch, MachineError, Refused
from novacron_qemu.blocks import BLOCK_BYTES, BatchMaker, Extent, Held, HeldDisk
from novacron_qemu.nbd import Command, Export, NbdError, Request, ServerCore
from qemu.qmp import EventListener

from novacron_machine_qemu._disk_files import NODE
from novacron_machine_qemu._qmp import CommandFailed, Monitor, MonitorGone

# The names of each disk's mirror job, and of the node that it mirrors into.
_JOB: Final = "novacron-mirror"
_TARGET: Final = "novacron-leaving"
_READ_BYTES: Final = 1 << 20
# What waits between QEMU and the encoder, of all disks; each byte may be one of the pause.
_QUEUE_BYTES: Final = 4 << 20
# What a job has under way at once: as much again.
_JOB_BYTES: Final = 4 << 20
_DRAIN_TIMEOUT_S: Final = 600.0
_END_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.05


@frozen(kw_only=True)
class LeavingDisk:
    """A disk that goes along: its number among the machine's, its size, and about what it holds."""

    number: int
    size_bytes: int
    content_bytes: int

    @property
    def node(self) -> str:
        return f"{NODE}{self.number}"

    @property
    def job(self) -> str:
        return f"{_JOB}{self.number}"

    @property
    def target(self) -> str:
        return f"{_TARGET}{self.number}"


class Queue:
    """What has come from QEMU and waits to be read; bounded, for several threads."""

    def __init__(self) -> None:
        self._extents: deque[Extent] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, extent: Extent) -> None:
        """Blocks while it is full. Raises BrokenPipeError once it is closed."""
        size = 64 if extent.data is None else extent.length
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._bytes < _QUEUE_BYTES)
            if self._closed:
                raise BrokenPipeError(errno.EPIPE, "nobody reads the disks any more")
            self._extents.append(extent)
            self._bytes += size
            os.eventfd_write(self.wake, 1)

    def take(self) -> Batch | None:
        """What waits, as much as goes into a batch; None if nothing does."""
        with self._changed:
            if not self._extents:
                return None
            maker = BatchMaker()
            while self._extents and not maker.full:
                extent = self._extents.popleft()
                self._bytes -= 64 if extent.data is None else extent.length
                maker.add(extent)
            if not self._extents and not self._closed:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.wake)
            self._changed.notify_all()
            return maker.take()

    def waiting(self) -> bool:
        return bool(self._extents)

    def close(self) -> None:
        """Nothing is taken in any more; what waits may still be read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __del__(self) -> None:
        os.close(self.wake)


class _Served:
    """One disk's export, and the thread that serves it to QEMU.

    Attributes:
        taken_bytes: Of data that QEMU has written here so far.
    """

    def __init__(self, disk: LeavingDisk, queue: Queue, path: Path) -> None:
        self.disk = disk
        self.path = path
        self.taken_bytes = 0
        self.failure = ""
        self.known = False
        self._queue = queue
        self._held = Held(disk.size_bytes)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stream: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name=f"disk-{disk.number}", daemon=True)

    @property
    def block_bytes(self) -> int:
        return self._held.block_bytes

    def begin(self) -> None:
        """Serve the one that connects to `path`. Raises OSError."""
        self.path.unlink(missing_ok=True)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self._thread.start()

    def know(self, held: HeldDisk) -> None:
        """What the destination holds of this disk already; before the job begins.

        Raises: Refused if the disk has changed its size since the destination made room for it.
        """
        if held.size_bytes != self.disk.size_bytes:
            raise Refused(
                f"disk {self.disk.number} has {self.disk.size_bytes} bytes here and "
                f"{held.size_bytes} at the target: it has changed its size meanwhile",
                hint="retry; if the target keeps a disk of an earlier move, remove it there first",
            )
        self._held = Held(self.disk.size_bytes, held)
        self.known = True

    def _serve(self) -> None:
        try:
            self._stream, _ = self._listener.accept()
        except OSError as error:
            self.failure = str(error)
            return
        finally:
            self.path.unlink(missing_ok=True)
        self._serve_stream(self._stream)

    def _serve_stream(self, stream: socket.socket) -> None:
        core = ServerCore(Export(name=self.disk.target, size_bytes=self.disk.size_bytes))
        buffer = memoryview(bytearray(_READ_BYTES))
        try:
            stream.sendall(core.output())
            while not core.ended:
                count = stream.recv_into(buffer)
                if not count:
                    break
                for request in core.feed(buffer[:count]):
                    self._perform(core, request)
                    if out := core.output():
                        stream.sendall(out)
                if out := core.output():
                    stream.sendall(out)
        except (NbdError, OSError) as error:
            self.failure = str(error)
        finally:
            # Closed, not shut down: while what it has written lies unread in a socket that is only
            # shut down, QEMU waits for room to write more, for ever.
            stream.close()

    def _perform(self, core: ServerCore, request: Request) -> None:
        if request.command is Command.DISCONNECT:
            return
        error = 0
        try:
            self._take(request)
        except BrokenPipeError:
            error = errno.EIO  # the move was given up: QEMU's job ends by this answer
        except PermissionError:
            error = errno.EPERM
        core.reply(request, error)

    def _take(self, request: Request) -> None:
        number = self.disk.number
        match request.command:
            case Command.WRITE:
                self.taken_bytes += request.length
                for offset, length, data in self._held.differing(request.offset, request.data):
                    self._queue.put(Extent(number, offset, length, data))
            case Command.WRITE_ZEROES:
                for offset, length in self._held.zeroed(request.offset, request.length):
                    self._queue.put(Extent(number, offset, length, None))
            case Command.FLUSH:
                pass  # what is durable at the destination is its own affair, before the commit
            case _:
                raise PermissionError(errno.EPERM, "nothing is kept here that could be read")

    def close(self) -> None:
        """QEMU has hung up, or never called."""
        for stream in (self._listener, self._stream):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join(_END_TIMEOUT_S)
        self._listener.close()
        if self._stream is not None:
            self._stream.close()


@define
class _Job:
    ready: bool = False
    ended: bool = False
    error: str = ""
    left_bytes: int = 0


class Mirrors:
    """The disks' half of a machine that leaves. All but `take` on the event loop.

    Args:
        socket_of: Where a socket of that name may be made.
        throttle: Let the guest's writes wait for the link, so that it cannot outrun it.
        rate_bytes_per_s: The fastest a disk may be read, None for no limit.
    """

    def __init__(
        self,
        name: str,
        monitor: Monitor,
        disks: Sequence[LeavingDisk],
        *,
        socket_of: Callable[[str], Path],
        throttle: bool,
        rate_bytes_per_s: int | None,
    ) -> None:
        self._name = name
        self._monitor = monitor
        self._throttle = throttle
        self._rate = rate_bytes_per_s
        self.queue = Queue()
        self._served = [
            _Served(disk, self.queue, socket_of(f"disk{disk.number}.sock")) for disk in disks
        ]
        self._jobs = {served.disk.job: _Job() for served in self._served}
        self._events = EventListener(("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR"))
        self._hold = contextlib.AsyncExitStack()
        self._started = False
        self._drained = False

    async def begin(self) -> None:
        """Connect QEMU to the exports. Raises MachineError; QEMU is as it was then."""
        client = await self._hold.enter_async_context(self._monitor.held())
        client.register_listener(self._events)
        self._hold.callback(client.remove_listener, self._events)
        await clear_mirrors(self._monitor)
        try:
            for served in self._served:
                disk = served.disk
                served.begin()
                await self._monitor.execute(
                    "blockdev-add",
                    {
                        "driver": "nbd",
                        "node-name": disk.target,
                        "server": {"type": "unix", "path": str(served.path)},
                        "export": disk.target,
                    },
                )
        except BaseException as error:
            await asyncio.shield(self.cancel())
            if isinstance(error, OSError):
                raise MachineError(
                    f"machine {self._name}: its disks cannot leave: {error}"
                ) from error
            raise

    def know(self, held: Sequence[HeldDisk]) -> None:
        """What the destination holds already. Raises BlocksRefused, Refused."""
        served = {one.disk.number: one for one in self._served}
        for one in held:
            if one.disk in served:
                served[one.disk].know(one)

    async def start(self) -> None:
        """Let QEMU mirror. Raises MachineError, also if the destination awaits no disks."""
        for served in self._served:
            if not served.known:
                raise MachineError(
                    f"machine {self._name}: the target says nothing of disk {served.disk.number}",
                    hint="both nodes need a version of novacron-machine-qemu that moves disks",
                )
        self._started = True
        for served in self._served:
            disk = served.disk
            await self._monitor.execute(
                "blockdev-mirror",
                {
                    "job-id": disk.job,
                    "device": disk.node,
                    "target": disk.target,
                    "sync": "full",
                    "copy-mode": "write-blocking" if self._throttle else "background",
                    # A block that the guest writes to goes whole, and is compared whole.
                    "granularity": max(served.block_bytes, BLOCK_BYTES),
                    "buf-size": _JOB_BYTES,
                    "on-source-error": "report",
                    "on-target-error": "report",
                    **({"speed": self._rate} if self._rate else {}),
                },
            )

    async def look(self) -> bool:
        """Whether all disks have been read once. Raises MachineError if one of the jobs failed."""
        if self._drained:
            return True
        self._hear(self._events.clear())
        found = await self._monitor.execute("query-block-jobs")
        self._hear(self._events.clear())
        seen = {str(one["device"]): one for one in found}
        for served in self._served:
            job = self._jobs[served.disk.job]
            info = seen.get(served.disk.job)
            if info is not None:
                job.ready = bool(info["ready"])
                job.left_bytes = max(0, int(info["len"]) - int(info["offset"]))
            elif self._started and not job.ended:
                job.ended, job.error = True, "it ended without a word"
            if job.error or served.failure:
                raise self._failed(served, job.error)
        return all(job.ready or job.ended for job in self._jobs.values())

    def _failed(self, served: _Served, error: str) -> MachineError:
        said = error or served.failure
        if served.failure and served.failure not in said:
            said = f"{said} ({served.failure})"
        return MachineError(
            f"machine {self._name}: its disk {served.disk.number} could not be copied: {said}",
            hint="see qemu.log in the machine's home, and look at the disk with qemu-img check "
            "while the machine is stopped",
        )

    def _hear(self, events: Sequence[Mapping[str, Any]]) -> None:
        for event in events:
            about = event.get("data", {})
            job = self._jobs.get(str(about.get("device")))
            if job is None:
                continue
            if event["event"] == "BLOCK_JOB_READY":
                job.ready = True
            elif event["event"] == "BLOCK_JOB_COMPLETED":
                job.ended, job.left_bytes = True, 0
                job.error = job.error or str(about.get("error", ""))
            elif about.get("action") != "ignore":
                job.error = f"its {about.get('operation', 'copy')} failed"

    async def drain(self) -> None:
        """The guest is paused and all disks were read once: wait for the rest, and end the jobs.

        Raises: MachineError.
        """
        if self._drained:
            return
        for served in self._served:
            # Without force, and once it is ready: the job sends what is left, and ends.
            await self._monitor.execute("block-job-cancel", {"device": served.disk.job})
        deadline = time.monotonic() + _DRAIN_TIMEOUT_S
        while not all(job.ended for job in self._jobs.values()):
            self._hear(self._events.clear())
            for served in self._served:
                job = self._jobs[served.disk.job]
                if job.error or served.failure:
                    raise self._failed(served, job.error)
            if time.monotonic() > deadline:
                raise MachineError(f"machine {self._name}: the copy of its disks does not end")
            with contextlib.suppress(TimeoutError):
                self._hear([await asyncio.wait_for(self._events.get(), _POLL_S)])
        for job, served in zip(self._jobs.values(), self._served, strict=True):
            if job.error:
                raise self._failed(served, job.error)
        self._drained = True
        for served in self._served:
            await self._monitor.execute("blockdev-del", {"node-name": served.disk.target})
        await self._close()

    async def cancel(self) -> None:
        """End the jobs whatever they are at. Twice is once."""
        self.queue.close()
        with contextlib.suppress(MonitorGone):
            await clear_mirrors(self._monitor)
        await self._close()

    async def _close(self) -> None:
        self.queue.close()
        for served in self._served:
            await asyncio.to_thread(served.close)
        await self._hold.aclose()

    # -- figures ---------------------------------------------------------------------------------

    @property
    def total_bytes(self) -> int:
        return sum(served.disk.content_bytes for served in self._served)

    @property
    def done_bytes(self) -> int:
        return sum(served.taken_bytes for served in self._served)

    @property
    def remaining_bytes(self) -> int:
        """About what is left: while a disk is read for the first time, what it holds; then what
        the guest has written since."""
        left = 0
        for served in self._served:
            job, disk = self._jobs[served.disk.job], served.disk
            first = max(0, disk.content_bytes - served.taken_bytes)
            left += job.left_bytes if job.ready else max(first, 1)
        return 0 if self._drained else left

    def take(self) -> Batch | None:
        """The next batch of blocks, None if none waits. From any thread."""
        return self.queue.take()


async def clear_mirrors(monitor: Monitor) -> None:
    """End what is left of mirrors in a QEMU: a node may have been killed in the middle of a move.

    Raises: MachineError if that does not come to an end.
    """
    begun = time.monotonic()
    told: set[str] = set()
    async with monitor.held():
        while True:
            jobs = await monitor.execute("query-block-jobs")
            ours = [str(job["device"]) for job in jobs if str(job["device"]).startswith(_JOB)]
            if not ours:
                break
            if time.monotonic() - begun > _END_TIMEOUT_S:
                raise MachineError(
                    "QEMU does not end the copy of its disks",
                    hint="stop the machine and start it again, if it may stop",
                )
            for job in [job for job in ours if job not in told]:
                told.add(job)
                with contextlib.suppress(CommandFailed):  # it has just ended by itself
                    await monitor.execute("block-job-cancel", {"device": job, "force": True})
            await asyncio.sleep(0.01)
        for node in await monitor.execute("query-named-block-nodes", {"flat": True}):
            name = str(node.get("node-name", ""))
            if name.startswith(_TARGET):
                with contextlib.suppress(CommandFailed):
                    await monitor.execute("blockdev-del", {"node-name": name})
