"""The machines of a node: their folders, their specs and the drivers' handles on them."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from attrs import asdict, define, field

from novacron import durable
from novacron.errors import Conflict, NotFound, NovacronError
from novacron.hookspecs.machine import Machine, MachineDriver, MachineSpec

log = logging.getLogger("novacron.machines")
SPEC_FILE: Final = "machine.json"


@define
class Entry:
    """A machine on this node; ``session`` is the one by which it is arriving, else empty."""

    spec: MachineSpec
    machine: Machine
    session: str = ""
    lock: asyncio.Lock = field(factory=asyncio.Lock)


@define(eq=False)
class Hosted:
    """All of them. Each has a folder with its spec and a home that belongs to its driver."""

    folder: Path
    driver: Callable[[str], MachineDriver]
    _entries: dict[str, Entry] = field(factory=dict, init=False)

    async def load(self, live_sessions: set[str]) -> None:
        """Find again what an earlier run of the node left, running or not."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(self.folder.glob(f"*/{SPEC_FILE}")):
            try:
                values = durable.read_json(path)
                session = str(values.pop("session", ""))
                spec = MachineSpec(**values)  # type: ignore[arg-type]
                machine = await self.driver(spec.driver).open(spec, path.parent / "home")
            except (NovacronError, OSError, TypeError) as error:
                log.error("the machine in %s is left alone: %s", path.parent, error)
                continue
            self._entries[spec.name] = Entry(spec, machine, session)
            if session and session not in live_sessions:
                await self.remove(spec.name, session=session)

    def __iter__(self) -> Iterator[Entry]:
        return iter([self._entries[name] for name in sorted(self._entries)])

    def find(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def get(self, name: str) -> Entry:
        """Raises NotFound."""
        if (entry := self._entries.get(name)) is None:
            raise NotFound(f"there is no machine {name!r} here", hint="see `novacron machine list`")
        return entry

    async def admit(self, spec: MachineSpec, *, session: str = "") -> Machine:
        """Make the folder of a machine that is created, or arrives by a session.

        Raises: Conflict if it is here already, ConfigError if the driver cannot make it.
        """
        if spec.name in self._entries:
            raise Conflict(
                f"there is a machine {spec.name!r} here already", hint="choose another name"
            )
        driver = self.driver(spec.driver)
        driver.check(spec)
        folder = self.folder / spec.name
        if not session:
            shutil.rmtree(folder, ignore_errors=True)  # what a machine that moved away left
        home = folder / "home"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(spec, session)
        machine = await driver.open(spec, home)
        self._entries[spec.name] = Entry(spec, machine, session)
        return machine

    def arrived(self, name: str) -> None:
        """Its session is over and it is this node's."""
        entry = self.get(name)
        entry.session = ""
        self._write(entry.spec, "")

    async def retire(self, name: str) -> None:
        """It has moved away: end its process; the driver may keep its last image for a way back."""
        entry = self._entries.get(name)
        if entry is None:
            return
        retire = getattr(entry.machine, "retire", None)
        if retire is None:
            await self._clear(entry)
        else:
            await retire()
            durable.remove(self.folder / name / SPEC_FILE)
        del self._entries[name]

    async def remove(self, name: str, *, session: str | None = None) -> None:
        """End and forget it; with ``session``, only if it belongs to that one."""
        entry = self._entries.get(name)
        if entry is not None and session in (None, entry.session):
            del self._entries[name]
            await self._clear(entry)

    async def _clear(self, entry: Entry) -> None:
        # One that was still arriving may have left more than a process: disks, for example.
        discard = getattr(entry.machine, "discard", None) if entry.session else None
        try:
            await (discard or entry.machine.stop)()
        finally:
            folder = self.folder / entry.spec.name
            durable.remove(folder / SPEC_FILE)
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, spec: MachineSpec, session: str) -> None:
        values = {**asdict(spec), "session": session}
        durable.write_json(self.folder / spec.name / SPEC_FILE, values)
