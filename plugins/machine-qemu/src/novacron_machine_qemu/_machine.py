"""The driver and its machines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final
from weakref import WeakValueDictionary

from attrs import asdict, frozen
from blake3 import blake3
from novacron import (
    ConfigError,
    Conflict,
    MachineError,
    MachineSpec,
    MachineState,
    MoveLimits,
    MoveWish,
    NodeFacts,
    Obstacle,
)

from novacron_machine_qemu._arrive import Arriving
from novacron_machine_qemu._command import Builder, Origin, read_origin
from novacron_machine_qemu._examine import examine_leaving
from novacron_machine_qemu._examine_arrival import examine_arrival
from novacron_machine_qemu._host import OLDEST, Host
from novacron_machine_qemu._landing import digest_disks, exported
from novacron_machine_qemu._leave import ACTIVE, Leaving, end_migration
from novacron_machine_qemu._mirror import Mirrors
from novacron_machine_qemu._process import Home, RunRecord, memory_in_use, open_memory
from novacron_machine_qemu._qmp import Monitor, MonitorGone
from novacron_machine_qemu._settings import Settings as DriverSettings
from novacron_machine_qemu._settings import machine_settings
from novacron_machine_qemu._storage import (
    check_places,
    describe_disks,
    discard_disks,
    leave_disks,
    leaving_disks,
    make_room,
    note_leaving,
    own_disks,
    refuse_staying,
    storage_of,
    unproved,
)

log = logging.getLogger("novacron.machine.qemu")

_HASH_BYTES: Final = 4 << 20

# QEMU's run states. Those that are not here, it is paused in: its memory is whole and no
# instruction is executed, for whatever reason.
_STATES: Final = {
    "running": MachineState.RUNNING,
    "suspended": MachineState.RUNNING,  # the guest sleeps (S3) and wakes by itself
    "inmigrate": MachineState.RECEIVING,
}


@frozen(kw_only=True)
class _Now:
    """A machine's state, with what it was judged by."""

    state: MachineState
    record: RunRecord | None = None
    pid: int | None = None
    word: str = ""


class QemuMachine:
    """One QEMU virtual machine (`novacron.Machine`)."""

    def __init__(
        self, spec: MachineSpec, folder: Path, host: Host, settings: DriverSettings
    ) -> None:
        self._spec = spec
        self._host = host
        self._settings = settings
        self._home = Home(folder, settings.runtime_dir)
        self._builder = Builder(host, settings, spec, self._home)
        self._lock = asyncio.Lock()
        self._monitor_: Monitor | None = None
        self._leaving: Leaving | None = None
        self._arriving: Arriving | None = None
        # The numbers of the disks that go along in the machine's present move.
        self._along: tuple[int, ...] = ()
        self._told: Mapping[str, Any] = {}

    @property
    def spec(self) -> MachineSpec:
        return self._spec

    # -- what it is ------------------------------------------------------------------------------

    @property
    def _monitor(self) -> Monitor:
        path = self._home.socket("qmp.sock")
        if self._monitor_ is None or self._monitor_.path != path:
            self._monitor_ = Monitor(path, self._spec.name)
        return self._monitor_

    async def _look(self) -> _Now:
        record = self._home.read_record()
        if record is None:
            return _Now(state=MachineState.STOPPED)
        pid = self._home.find(record)
        if pid is None:
            return _Now(state=MachineState.LOST, record=record)
        try:
            word = str((await self._monitor.execute("query-status"))["status"])
        except MonitorGone:
            if self._home.find(record) is None:
                return _Now(state=MachineState.LOST, record=record)
            raise
        if word == "shutdown":
            # The guest switched itself off; -no-shutdown kept the process so that this can be told
            # from a process that died.
            await self._home.end(record)
            self._home.forget()
            return _Now(state=MachineState.STOPPED)
        state = _STATES.get(word, MachineState.PAUSED)
        return _Now(state=state, record=record, pid=pid, word=word)

    async def state(self) -> MachineState:
        """See `novacron.Machine.state`."""
        return (await self._look()).state

    async def _expect(self, doing: str, *states: MachineState) -> _Now:
        now = await self._look()
        if now.state not in states:
            raise Conflict(
                f"machine {self._spec.name} is {now.state}, it cannot {doing}",
                hint=f"it must be {' or '.join(states)}",
                state=str(now.state),
            )
        return now

    def describe(self) -> Mapping[str, Any]:
        """See `novacron.Machine.describe`."""
        record = self._home.read_record()
        facts = self._builder.facts().to_json() if record is None else record.facts
        disks = describe_disks(self._builder)
        held: dict[str, Any] = {"disk_bytes": sum(disk.content_bytes for disk in disks)}
        pid = None if record is None else self._home.find(record)
        if pid is not None:
            with contextlib.suppress(MachineError):
                held["resident_bytes"] = memory_in_use(pid, self._spec.memory_bytes)
        return {**facts, **held, "disks": [asdict(disk) for disk in disks], **self._told}

    async def examine(self, wish: MoveWish) -> Sequence[Obstacle]:
        """See `novacron.Machine`. What the target needs to know, `describe` says from then on."""
        now = await self._look()
        lives = now.state in (MachineState.RUNNING, MachineState.PAUSED)
        found = await examine_leaving(
            self._builder, self._host, self.describe(), wish, self._monitor if lives else None
        )
        self._told = found.as_facts()
        return found.obstacles

    def own_arguments(self) -> tuple[str, ...]:
        """The arguments that its settings bring; none if they cannot be read."""
        try:
            return self._builder.extra()
        except ConfigError:
            return ()

    def console(self) -> Path:
        """See `novacron.Machine.console`. Who connects and does not read holds the guest up when
        it prints."""
        return self._home.socket("console.sock")

    def console_log(self) -> Path:
        """See `novacron.Machine.console_log`."""
        return self._home.console_log

    def process_id(self) -> int | None:
        """QEMU's process, None if there is none."""
        record = self._home.read_record()
        return None if record is None else self._home.find(record)

    # -- start and stop --------------------------------------------------------------------------

    async def start(self) -> None:
        """See `novacron.Machine.start`."""
        async with self._lock:
            await self._expect("start", MachineState.STOPPED, MachineState.LOST)
            await asyncio.to_thread(own_disks, self._builder, self._home)
            await self._launch(arriving=None)

    async def _launch(self, arriving: Origin | None) -> None:
        """Start the process and wait until its monitor answers; on error nothing is left."""
        home = self._home
        before = home.log_size()
        home.forget()
        try:
            home.make_sockets()
            arguments, facts = await asyncio.to_thread(
                self._builder.start if arriving is None else _bind(self._builder, arriving)
            )
            record = RunRecord(
                arguments=arguments, facts=facts.to_json(), arriving=arriving is not None
            )
            try:
                record = await asyncio.to_thread(home.spawn, record)
                await self._await_monitor(record, before)
            except BaseException:
                await asyncio.shield(home.end(record))
                raise
        except OSError as error:
            home.forget()
            raise MachineError(f"machine {self._spec.name} cannot start: {error}") from error
        except BaseException:
            home.forget()
            raise

    async def _await_monitor(self, record: RunRecord, log_before: int) -> None:
        assert record.pid is not None
        deadline = time.monotonic() + self._settings.start_timeout_s
        try:
            process = os.pidfd_open(record.pid)
        except ProcessLookupError:
            raise self._not_started(log_before) from None
        try:
            poll = select.poll()
            poll.register(process, select.POLLIN)
            while True:
                # The process listens before it answers: a connection that is made is answered.
                if self._monitor.path.exists():
                    with contextlib.suppress(MonitorGone):
                        await self._monitor.execute("query-status")
                        return
                if poll.poll(0):
                    raise self._not_started(log_before)
                if time.monotonic() > deadline:
                    raise MachineError(
                        f"machine {self._spec.name}: QEMU does not answer within "
                        f"{self._settings.start_timeout_s:g} s",
                        hint="raise start_timeout_s in [machine.qemu] if this host is slow",
                    )
                await asyncio.sleep(0.005)
        finally:
            os.close(process)

    def _not_started(self, log_before: int) -> MachineError:
        said = self._home.log_tail(log_before) or "it said nothing"
        return MachineError(
            f"machine {self._spec.name}: QEMU ended at once: {said}",
            hint=f"see {self._home.qemu_log}",
        )

    async def stop(self) -> None:
        """See `novacron.Machine.stop`."""
        async with self._lock:
            await self._end()

    async def _end(self) -> None:
        if self._arriving is not None:
            self._arriving.close()
        record = self._home.read_record()
        if record is not None:
            await self._home.end(record)
        self._home.forget()

    async def retire(self) -> None:
        """The machine runs elsewhere now: end what is left of it here. Its disks stay for its way
        back, or are removed, as ``keep_disks`` says."""
        async with self._lock:
            await self._end()
            await asyncio.to_thread(self._leave)

    def _leave(self) -> None:
        leave_disks(self._spec, self._builder, self._home, self._settings)
        shutil.rmtree(self._home.folder, ignore_errors=True)

    async def discard(self) -> None:
        """Its arrival came to nothing, and the node that began it is gone: remove what it left."""
        async with self._lock:
            await self._end()
            keep = self._settings.keep_partial_disks
            await asyncio.to_thread(
                discard_disks, self._spec, self._builder, self._home, keep_partial=keep
            )

    # -- pause and resume ------------------------------------------------------------------------

    async def pause(self) -> None:
        """See `novacron.Machine.pause`."""
        async with self._lock:
            await self._expect("pause", MachineState.RUNNING)
            await self._monitor.execute("stop")

    async def resume(self) -> None:
        """See `novacron.Machine.resume`."""
        async with self._lock, contextlib.AsyncExitStack() as hold:
            now = await self._expect("resume", MachineState.PAUSED)
            await hold.enter_async_context(self._monitor.held())
            if self._leaving is not None and self._leaving.switching:
                raise Conflict(
                    f"machine {self._spec.name} is leaving, it cannot resume",
                    hint="cancel the move first",
                    state=str(now.state),
                )
            self._along = ()
            await asyncio.to_thread(own_disks, self._builder, self._home)
            status = (await self._monitor.execute("query-migrate")).get("status", "none")
            if now.word == "finish-migrate" or status in ("pre-switchover", "device"):
                # A move that nobody finished (its node ended, or gave up): QEMU waits for a word
                # that does not come. Out of it, it runs by itself if it ran before.
                await end_migration(self._monitor)
            if not (await self._monitor.execute("query-status"))["running"]:
                await self._monitor.execute("cont")
            after = await self._monitor.execute("query-status")
            if not after["running"]:
                raise MachineError(
                    f"machine {self._spec.name} does not run, QEMU says {after['status']}",
                    hint="see qemu.log in the machine's home",
                )

    # -- memory ----------------------------------------------------------------------------------

    async def digest(self) -> str:
        """See `novacron.Machine.digest`: of the whole of guest memory, in order; and of the disks
        that go along in the machine's present move."""
        async with self._lock:
            now = await self._expect("be digested", MachineState.PAUSED)
            assert now.pid is not None
            memory = await asyncio.to_thread(_digest_memory, now.pid, self._spec.memory_bytes)
            if not self._along:
                return memory
            path = self._home.socket("nbd.sock")
            async with (
                self._monitor.held(),
                exported(self._monitor, path, self._along, writable=False) as disks,
            ):
                held = await asyncio.to_thread(digest_disks, disks)
            return blake3(bytes.fromhex(memory) + held).hexdigest()

    # -- moves -----------------------------------------------------------------------------------

    async def send(self, limits: MoveLimits) -> Leaving:
        """See `novacron.Machine.send`."""
        async with self._lock, contextlib.AsyncExitStack() as hold:
            now = await self._expect("leave", MachineState.RUNNING, MachineState.PAUSED)
            assert now.pid is not None
            if self._leaving is not None and self._leaving.active:
                raise Conflict(
                    f"machine {self._spec.name} is leaving already", hint="cancel that move first"
                )
            if now.word == "postmigrate":
                raise Conflict(
                    f"machine {self._spec.name} has left whole; QEMU lets it leave again only "
                    "after it has run",
                    hint="resume it first, if nobody else runs it",
                )
            await asyncio.to_thread(refuse_staying, self._spec, self._builder, limits.storage)
            await hold.enter_async_context(self._monitor.held())
            status = (await self._monitor.execute("query-migrate")).get("status", "none")
            if status in ACTIVE:
                await end_migration(self._monitor)
            for warning in self.describe().get("warnings", ()):
                log.warning("machine %s leaves: %s", self._spec.name, warning)
            disks = await leaving_disks(self._spec, self._builder, self._monitor, limits.storage)
            await asyncio.to_thread(note_leaving, self._home, disks)
            mirrors = Mirrors(
                self._spec.name,
                self._monitor,
                disks,
                socket_of=self._home.socket,
                throttle=limits.slow_guest,
                rate_bytes_per_s=limits.rate_bytes_per_s,
            )
            leaving = Leaving(
                self._spec.name,
                self._monitor,
                self._spec.memory_bytes,
                self._settings.max_rounds,
                tuple(now.record.facts["qemu"]) if now.record else (0,),
                mirrors if disks else None,
                lambda have: check_places(self._builder, limits.storage, have),
            )
            await leaving.begin(limits)
            self._leaving = leaving
            self._along = tuple(disk.number for disk in disks)
            return leaving

    async def receive(self, origin: Mapping[str, Any]) -> Arriving:
        """See `novacron.Machine.receive`."""
        facts = read_origin(origin)
        async with self._lock:
            await self._expect("arrive", MachineState.STOPPED)
            # A machine that comes back finds its logs of before; one that never was here has none.
            new = [p for p in (self._home.console_log, self._home.qemu_log) if not p.exists()]

            storage = storage_of(origin)

            def discard() -> None:
                keep = self._settings.keep_partial_disks
                discard_disks(self._spec, self._builder, self._home, keep_partial=keep)

            async def abandon() -> None:
                async with self._lock:
                    if (await self._look()).state is MachineState.RUNNING:
                        raise Conflict(
                            f"machine {self._spec.name} runs, its arrival cannot be given up",
                            hint="stop it, if its memory may be lost",
                        )
                    await self._end()
                    await asyncio.to_thread(discard)
                    for path in new:
                        path.unlink(missing_ok=True)

            coming = await asyncio.to_thread(
                make_room, self._spec, self._builder, self._home, facts, storage
            )
            try:
                await self._launch(arriving=facts)
                arriving = Arriving(
                    self._spec.name,
                    self._monitor,
                    self._home,
                    self._settings.load_timeout_s,
                    abandon,
                    coming,
                    lambda: unproved(self._builder),
                )
                await arriving.begin()
                self._arriving = arriving
                self._along = coming.numbers
            except BaseException:
                await asyncio.shield(self._end())
                await asyncio.to_thread(discard)
                for path in new:
                    path.unlink(missing_ok=True)
                raise
            return arriving


class QemuDriver:
    """Stock QEMU by QMP, 7.2 or newer (`novacron.MachineDriver`)."""

    name: ClassVar[str] = "qemu"
    Settings: ClassVar[type] = DriverSettings

    def __init__(self, settings: DriverSettings, node: NodeFacts) -> None:
        self._settings = settings
        self._node = node
        self._host = Host(settings.binary)
        self._opened = WeakValueDictionary[str, QemuMachine]()

    def check(self, spec: MachineSpec) -> None:
        """See `novacron.MachineDriver.check`."""
        self._refuse_foreign(spec)
        home = Home(self._node.state_dir, self._settings.runtime_dir)
        builder = Builder(self._host, self._settings, spec, home)
        builder.check(disks=False)
        if self._host.version[:2] < OLDEST:
            raise ConfigError(
                f"{self._host.version_text} is older than {'.'.join(map(str, OLDEST))}",
                hint="install a newer QEMU, or set binary in [machine.qemu]",
            )

    def _refuse_foreign(self, spec: MachineSpec) -> None:
        if spec.driver != self.name:
            raise ConfigError(
                f"machine {spec.name} is for the driver {spec.driver!r}, this is {self.name!r}",
                setting="driver",
            )

    async def open(self, spec: MachineSpec, home: Path) -> QemuMachine:
        """See `novacron.MachineDriver.open`. The files that the machine was made from need not
        exist any more: a running machine is found all the same."""
        self._refuse_foreign(spec)
        machine_settings(spec)
        machine = QemuMachine(spec, home, self._host, self._settings)
        self._opened[spec.name] = machine
        return machine

    async def examine(self, spec: MachineSpec, origin: Mapping[str, Any]) -> Sequence[Obstacle]:
        """See `novacron.MachineDriver`."""
        self._refuse_foreign(spec)
        home = Home(self._node.state_dir, self._settings.runtime_dir)
        builder = Builder(self._host, self._settings, spec, home)
        neighbours = {name: machine.own_arguments() for name, machine in self._opened.items()}
        return await asyncio.to_thread(
            examine_arrival, self._host, self._settings, spec, origin, builder, neighbours
        )


def _bind(builder: Builder, origin: Origin) -> Any:
    return lambda: builder.arrive(origin)


def _digest_memory(pid: int, size: int) -> str:
    # Read, not mapped: to map a hole of the file and look at it would allocate it.
    hasher = blake3(max_threads=blake3.AUTO)
    buffer = bytearray(_HASH_BYTES)
    view = memoryview(buffer)
    descriptor = open_memory(pid, size)
    try:
        offset = 0
        while offset < size:
            count = os.preadv(descriptor, [view[: min(len(view), size - offset)]], offset)
            if not count:
                raise MachineError(f"the memory of process {pid} ended at {offset} of {size}")
            hasher.update(view[:count])
            offset += count
    except OSError as error:
        raise MachineError(f"the memory of process {pid} cannot be read: {error}") from error
    finally:
        os.close(descriptor)
    return hasher.hexdigest()
