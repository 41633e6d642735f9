"""The driver and its machines."""

from __future__ import annotations

import asyncio
import logging
import uuid as uuids
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from attrs import frozen
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
    NovacronError,
    Obstacle,
    Refused,
)

from novacron_machine_libvirt import _examine, _phases
from novacron_machine_libvirt import _libvirt as libvirt
from novacron_machine_libvirt._arrive import Arriving
from novacron_machine_libvirt._daemon import Daemon, is_missing, refused
from novacron_machine_libvirt._domain_xml import DomainXml
from novacron_machine_libvirt._home import Home, Record
from novacron_machine_libvirt._leave import Leaving
from novacron_machine_libvirt._origin import Origin, read_origin
from novacron_machine_libvirt._settings import XML_CHARACTERS_MAX, machine_settings
from novacron_machine_libvirt._settings import Settings as DriverSettings

T = TypeVar("T")
log = logging.getLogger("novacron.machine.libvirt")

# libvirt gives at most so much of memory in one answer.
_PEEK_BYTES: Final = 4 << 20

_STATES: Final = {
    libvirt.VIR_DOMAIN_RUNNING: MachineState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: MachineState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: MachineState.RUNNING,  # the guest is switching itself off
    libvirt.VIR_DOMAIN_PMSUSPENDED: MachineState.RUNNING,  # the guest sleeps and wakes by itself
    libvirt.VIR_DOMAIN_PAUSED: MachineState.PAUSED,
    libvirt.VIR_DOMAIN_CRASHED: MachineState.LOST,
}
# Why a domain is off, if it was asked to be; anything else is a loss.
_ASKED: Final = (
    *(libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED),
    *(libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED, libvirt.VIR_DOMAIN_SHUTOFF_SAVED),
)
_UNDEFINE: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)


@frozen(kw_only=True)
class _Now:
    """A machine's state, with what it was judged by."""

    state: MachineState
    record: Record | None = None


def _find(connection: libvirt.Connection, uuid: str) -> libvirt.Domain | None:
    try:
        return connection.find_uuid(uuid)
    except libvirt.LibvirtError as error:
        if is_missing(error):
            return None
        raise


def _remove(connection: libvirt.Connection, uuid: str, flags: int | None) -> None:
    """End a domain, and undefine it with these flags (None: leave it defined)."""
    domain = _find(connection, uuid)
    if domain is None:
        return
    try:
        if domain.is_active():
            domain.destroy()
        if flags is not None and domain.is_persistent():
            domain.undefine(flags)
    except libvirt.LibvirtError as error:
        # One that is not persistent is gone with its process.
        if not is_missing(error) and _find(connection, uuid) is not None:
            raise


class LibvirtMachine:
    """One libvirt domain (`novacron.Machine`)."""

    def __init__(
        self, spec: MachineSpec, folder: Path, daemon: Daemon, settings: DriverSettings
    ) -> None:
        self._spec = spec
        self._machine = machine_settings(spec)
        self._daemon = daemon
        self._settings = settings
        self._home = Home(folder, settings.socket_dir)
        self._lock = asyncio.Lock()
        self._leaving: Leaving | None = None
        self._arriving: Arriving | None = None
        self._described: Mapping[str, Any] = {}

    @property
    def spec(self) -> MachineSpec:
        return self._spec

    def _text(self, what: str) -> str:
        return f"machine {self._spec.name} cannot {what}"

    async def _ask(self, what: str, function: Callable[[libvirt.Connection], T]) -> T:
        return await self._daemon.call(self._text(what), function)

    # -- what it is -------------------------------------------------------------------------------

    async def _look(self) -> _Now:
        record = self._home.read()
        if record is None:
            return _Now(state=MachineState.STOPPED)
        uuid = record.uuid

        def ask(connection: libvirt.Connection) -> tuple[int, int] | None:
            try:
                return connection.find_uuid(uuid).state()
            except libvirt.LibvirtError as error:
                if is_missing(error):  # perhaps only since a moment
                    return None
                raise

        found = await self._ask("be looked at", ask)
        if found is None:
            if record.arriving and self._arriving is None:
                self._home.forget()  # its node ended, and libvirtd undid the arrival
                return _Now(state=MachineState.STOPPED)
            return _Now(state=MachineState.LOST, record=record)
        number, reason = found
        if number == libvirt.VIR_DOMAIN_SHUTOFF:
            if reason not in _ASKED:
                return _Now(state=MachineState.LOST, record=record)
            await self._clear(record)
            return _Now(state=MachineState.STOPPED)
        state = _STATES.get(number, MachineState.PAUSED)
        if state is MachineState.PAUSED and record.arriving:
            state = MachineState.RECEIVING
        return _Now(state=state, record=record)

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
        """See `novacron.Machine.describe`. One short call to libvirtd; if that is not reached, what
        it said last."""
        record = self._home.read()
        if record is not None and not record.arriving:
            try:
                origin = _examine.describe(self._daemon.connection(wait=False), record.uuid)
                self._described = origin.to_json()
            except (libvirt.LibvirtError, NovacronError) as error:
                log.debug("machine %s is not described anew: %s", self._spec.name, error)
        return self._described

    def console(self) -> Path:
        """See `novacron.Machine.console`. A domain that NovaCron did not make has none here."""
        return self._home.socket("console.sock")

    def console_log(self) -> Path:
        """See `novacron.Machine.console_log`."""
        return self._home.console_log

    def process_id(self) -> int | None:
        """QEMU's process where libvirtd says it (a file beside its sockets); for tests."""
        record = self._home.read()
        return None if record is None else _examine.process_id(self._daemon.connection(), record)

    # -- start and stop ---------------------------------------------------------------------------

    async def start(self) -> None:
        """See `novacron.Machine.start`. A domain that exists is taken over as it is."""
        async with self._lock:
            await self._expect("start", MachineState.STOPPED, MachineState.LOST)
            if self._machine.own:
                await self._make()
            else:
                await self._take_over()

    async def _make(self) -> None:
        record = self._home.read()
        if record is not None:  # a lost one: its definition is made anew
            await self._clear(record)
        xml = await asyncio.to_thread(self._definition)
        domain = DomainXml(xml, self._text("start"))
        self._check_memory(domain)
        uuid = domain.uuid or str(uuids.uuid4())
        self._home.make_socket_dir()
        text = domain.fitted(self._spec.name, uuid, self.console(), self.console_log())

        def make(connection: libvirt.Connection) -> str:
            self._refuse_strangers(connection, uuid)
            made = connection.define(text)
            # Only now is it ours to remove.
            self._home.write(Record(uuid=uuid))
            made.create()
            return made.xml(libvirt.VIR_DOMAIN_XML_INACTIVE)

        try:
            self._home.keep_definition(await self._ask("start", make))
        except BaseException:
            if (record := self._home.read()) is not None:
                await asyncio.shield(self._clear(record))
            raise

    def _definition(self) -> str:
        kept = self._home.definition()
        if kept is not None:
            return kept
        if self._machine.xml:
            return self._machine.xml
        path = Path(self._machine.xml_file)
        try:
            with path.open("rb") as file:
                return file.read(XML_CHARACTERS_MAX + 1).decode()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self._text('start')}: {path}: {error}", hint="correct xml_file"
            ) from error

    def _refuse_strangers(self, connection: libvirt.Connection, uuid: str) -> None:
        """Raises Conflict if libvirtd has a domain of this name or UUID already."""
        for obstacle in _examine.strangers(connection, self._domain_name, uuid):
            raise Conflict(f"{self._text('start')}: {obstacle.what}", hint=obstacle.cure)

    @property
    def _domain_name(self) -> str:
        return self._machine.domain or self._spec.name

    def _check_memory(self, domain: DomainXml) -> None:
        if domain.memory_bytes != self._spec.memory_bytes:
            raise ConfigError(
                f"machine {self._spec.name}: memory_bytes is {self._spec.memory_bytes}, its domain "
                f"has {domain.memory_bytes}",
                hint=f"say memory_bytes = {domain.memory_bytes}, or change the domain's <memory>",
                setting="memory_bytes",
            )

    async def _take_over(self) -> None:
        name = self._machine.domain

        def take(connection: libvirt.Connection) -> None:
            try:
                domain = connection.find_name(name)
            except libvirt.LibvirtError as error:
                if is_missing(error):
                    raise ConfigError(
                        f"machine {self._spec.name}: libvirtd at {self._daemon.uri} has no domain "
                        f"{name!r}",
                        hint="see `virsh list --all`, and domain in the machine's settings",
                    ) from error
                raise
            self._check_memory(DomainXml(domain.xml(), f"domain {name}"))
            if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                raise Conflict(f"the domain {name} is paused", hint=f"virsh resume {name}")
            self._home.write(Record(uuid=domain.uuid()))
            if not domain.is_active():
                domain.create()

        before = self._home.read()
        try:
            await self._ask("start", take)
        except BaseException:
            if before is None:
                self._home.forget()
            raise

    async def _clear(self, record: Record, flags: int | None = None) -> None:
        """End the domain and forget it; undefine it if NovaCron made it, or it came in part."""
        if flags is None and (self._machine.own or record.arriving):
            flags = _UNDEFINE | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        await self._ask("be ended", lambda connection: _remove(connection, record.uuid, flags))
        self._home.clear_sockets()
        self._home.forget()

    async def stop(self) -> None:
        """See `novacron.Machine.stop`."""
        async with self._lock:
            await self._end()

    async def _end(self, flags: int | None = None) -> None:
        if self._arriving is not None:
            self._arriving.close()
        record = self._home.read()
        if record is not None:
            await self._say_moved()
            await self._clear(record, flags)

    async def retire(self) -> None:
        """End the machine after it has moved away, and undefine its domain whoever made it: a
        second start here would be a second machine. What lies in files stays for its new place."""
        async with self._lock:
            await self._end(_UNDEFINE | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
            for path in self._home.folder.iterdir():
                path.unlink()

    async def _say_moved(self) -> None:
        """Where libvirtd waits for the last word of a move, ending the machine is that word."""
        leaving = self._leaving
        if leaving is None or not leaving.performed:
            return
        try:
            await leaving.confirm(moved=True)
        except MachineError as error:
            log.warning("%s; it is ended without", error)

    # -- pause and resume -------------------------------------------------------------------------

    async def pause(self) -> None:
        """See `novacron.Machine.pause`."""
        async with self._lock:
            now = await self._expect("pause", MachineState.RUNNING)
            await self._on_domain(now, "pause", lambda domain: domain.suspend())

    async def _on_domain(self, now: _Now, what: str, function: Callable[[libvirt.Domain], T]) -> T:
        assert now.record is not None
        uuid = now.record.uuid
        return await self._ask(what, lambda c: function(c.find_uuid(uuid)))

    async def resume(self) -> None:
        """See `novacron.Machine.resume`."""
        async with self._lock:
            now = await self._expect("resume", MachineState.PAUSED)
            if self._leaving is not None and self._leaving.switching:
                raise Conflict(
                    f"machine {self._spec.name} is leaving, it cannot resume",
                    hint="cancel the move first",
                    state=str(now.state),
                )
            await self._say_not_moved()

            def go_on(domain: libvirt.Domain) -> int:
                if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                    domain.resume()
                return domain.state()[0]

            if await self._on_domain(now, "resume", go_on) != libvirt.VIR_DOMAIN_RUNNING:
                raise MachineError(f"{self._text('resume')}: libvirt says that it does not run")

    async def _say_not_moved(self) -> None:
        """End a move that libvirtd waits for; a domain that ran before it is resumed by that."""
        if self._leaving is not None and self._leaving.performed:
            try:
                await self._leaving.confirm(moved=False)
            except MachineError as error:
                # libvirtd was restarted: it has forgotten the move and kept the domain paused.
                log.info("%s; it is resumed without", error)

    # -- memory -----------------------------------------------------------------------------------

    async def digest(self) -> str:
        """See `novacron.Machine.digest`: of the whole of guest memory, in order."""
        async with self._lock:
            now = await self._expect("be digested", MachineState.PAUSED)
            assert now.record is not None
            uuid = now.record.uuid

            def read() -> str:
                domain = self._daemon.connection().find_uuid(uuid)
                ranges = DomainXml(domain.xml(), self._text("be digested")).memory_ranges()
                hasher = blake3()
                for begin, length in ranges:
                    for at in range(begin, begin + length, _PEEK_BYTES):
                        size = min(_PEEK_BYTES, begin + length - at)
                        hasher.update(domain.memory(at, size))
                return hasher.hexdigest()

            try:
                return await asyncio.to_thread(read)
            except libvirt.LibvirtError as error:
                raise refused(self._text("be digested"), error) from error

    # -- moves ------------------------------------------------------------------------------------

    async def examine(self, wish: MoveWish) -> Sequence[Obstacle]:
        """See `novacron.Machine`."""
        record = self._home.read()
        if record is None:
            return []
        return await self._ask(
            "be examined",
            lambda c: _examine.leaving(c.find_uuid(record.uuid), self._machine, wish),
        )

    async def send(self, limits: MoveLimits) -> Leaving:
        """See `novacron.Machine.send`."""
        async with self._lock:
            now = await self._expect("leave", MachineState.RUNNING, MachineState.PAUSED)
            if self._leaving is not None and self._leaving.active:
                raise Conflict(
                    f"machine {self._spec.name} is leaving already", hint="cancel that move first"
                )
            assert now.record is not None
            await self._say_not_moved()
            found = await self.examine(MoveWish(storage=limits.storage))
            _refuse(self._text("leave"), found)
            self._home.make_socket_dir()
            leaving = Leaving(
                self._spec.name,
                self._daemon,
                self._home,
                self._spec.memory_bytes,
                self._settings.max_rounds,
            )
            await leaving.begin(now.record.uuid, limits)
            self._leaving = leaving
            return leaving

    async def receive(self, origin: Mapping[str, Any]) -> Arriving:
        """See `novacron.Machine.receive`."""
        async with self._lock:
            await self._expect("arrive", MachineState.STOPPED)
            told = read_origin(origin)
            what = self._text("arrive")
            found = await self._ask(
                "arrive", lambda c: _examine.arriving(c, self._spec, self._machine, told)
            )
            _refuse(what, found)
            self._home.make_socket_dir()
            # What was here before a machine comes back stays if it does not come.
            before = set(self._home.folder.iterdir())

            async def abandon() -> None:
                async with self._lock:
                    if (await self._look()).state is MachineState.RUNNING:
                        raise Conflict(
                            f"machine {self._spec.name} runs, its arrival cannot be given up",
                            hint="stop it, if its memory may be lost",
                        )
                    await undo()

            async def undo() -> None:
                # Undefined even if it is not NovaCron's own: it came in part.
                await self._clear(record, _UNDEFINE | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
                for path in set(self._home.folder.iterdir()) - before:
                    path.unlink()

            arriving = Arriving(
                self._spec.name,
                self._daemon,
                self._home,
                self._settings.load_timeout_s,
                self._arrived,
                abandon,
            )
            record = Record(uuid=told.uuid, arriving=True)
            self._home.write(record)
            peer = _phases.Peer(name=self._domain_name, uuid=told.uuid)
            xml = self._fitted(told, what)
            try:
                await arriving.begin(peer, xml, self._settings.answer_timeout_s)
            except BaseException:
                await asyncio.shield(undo())
                raise
            self._arriving = arriving
            return arriving

    def _fitted(self, told: Origin, what: str) -> str:
        """The domain's XML as it is to be here."""
        domain = DomainXml(told.xml, what)
        domain.without_emulator()
        if not self._machine.own:
            return domain.text()
        return domain.fitted(self._spec.name, told.uuid, self.console(), self.console_log())

    async def _arrived(self) -> None:
        """Note that the machine is here, whole and paused."""
        record = self._home.read()
        if record is None:
            raise MachineError(f"machine {self._spec.name}: it was stopped while it arrived")
        uuid, flags = record.uuid, libvirt.VIR_DOMAIN_XML_INACTIVE
        xml = await self._ask("arrive", lambda connection: connection.find_uuid(uuid).xml(flags))
        self._home.keep_definition(xml)
        self._home.write(Record(uuid=uuid))


def _refuse(what: str, found: Sequence[Obstacle]) -> None:
    """Raises Refused by the first obstacle that blocks."""
    for obstacle in found:
        if obstacle.blocks:
            raise Refused(f"{what}: {obstacle.what}", hint=obstacle.cure, code=obstacle.code)


class LibvirtDriver:
    """Domains of an unmodified libvirtd (`novacron.MachineDriver`)."""

    name: ClassVar[str] = "libvirt"
    Settings: ClassVar[type] = DriverSettings

    def __init__(self, settings: DriverSettings, node: NodeFacts) -> None:
        self._settings = settings
        self._daemon = Daemon(settings.uri, settings.answer_timeout_s, settings.restart_s)

    def check(self, spec: MachineSpec) -> None:
        """See `novacron.MachineDriver.check`."""
        self._refuse_foreign(spec)
        settings = machine_settings(spec)
        if settings.xml:
            domain = DomainXml(settings.xml, f"machine {spec.name}: xml")
            if domain.memory_bytes != spec.memory_bytes:
                raise ConfigError(
                    f"machine {spec.name}: memory_bytes is {spec.memory_bytes}, its xml says "
                    f"{domain.memory_bytes}",
                    hint="make them equal",
                    setting="memory_bytes",
                )

    def _refuse_foreign(self, spec: MachineSpec) -> None:
        if spec.driver != self.name:
            raise ConfigError(
                f"machine {spec.name} is for the driver {spec.driver!r}, not {self.name!r}"
            )

    async def open(self, spec: MachineSpec, home: Path) -> LibvirtMachine:
        """See `novacron.MachineDriver.open`."""
        self._refuse_foreign(spec)
        return LibvirtMachine(spec, home, self._daemon, self._settings)

    async def examine(self, spec: MachineSpec, origin: Mapping[str, Any]) -> Sequence[Obstacle]:
        """See `novacron.MachineDriver`."""
        try:
            told, settings = read_origin(origin), machine_settings(spec)
        except NovacronError as error:
            return [_examine.unsound(error)]
        return await self._daemon.call(
            f"machine {spec.name} cannot be examined",
            lambda connection: _examine.arriving(connection, spec, settings, told),
        )
