"""A real guest, booted once, and the nodes' ends of a move without the nodes."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from novacron import MachineSpec, MachineState, MoveLimits, NodeFacts, NotFound
from novacron_machine_qemu import GuestOptions, QemuDriver, QemuMachine, Settings, build_guest
from novacron_machine_qemu._arrive import Arriving
from novacron_machine_qemu._host import Host
from novacron_machine_qemu._leave import Leaving
from novacron_machine_qemu.guest import APPEND
from novacron_qemu.counter import counter_rom

T = TypeVar("T")
MEMORY_BYTES = 96 << 20
DEADLINE_S = 60.0
LIMITS = MoveLimits(max_downtime_ms=300)


@pytest.fixture(scope="session")
def qemu_host() -> Host:
    host = Host(Settings().binary)
    try:
        assert host.version
    except NotFound as error:
        pytest.skip(f"{error}; {error.hint}")
    return host


@pytest.fixture(scope="session")
def guest_settings(tmp_path_factory: pytest.TempPathFactory, qemu_host: Host) -> dict[str, Any]:
    try:
        kernel, initrd = build_guest(tmp_path_factory.mktemp("guest"), GuestOptions(tick_s=0.02))
    except NotFound as error:
        pytest.skip(f"{error}; {error.hint}")
    return {"kernel": str(kernel), "initrd": str(initrd), "append": APPEND, "accel": "tcg"}


class World:
    """One guest and the folders it lives in, one after the other."""

    def __init__(self, folder: Path, spec: MachineSpec, settings: Settings | None = None) -> None:
        self._runner = asyncio.Runner()
        self._folder = folder
        self._homes = 0
        self.spec = spec
        self.settings = settings or Settings()
        self.here = self.open(self.new_home())
        self.logs = [self.here.console_log()]
        self._machines = [self.here]

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(what, DEADLINE_S)

        return self._runner.run(bounded())

    def new_home(self) -> Path:
        self._homes += 1
        home = self._folder / f"home{self._homes}"
        home.mkdir(mode=0o700)
        return home

    def driver(self, settings: Settings | None = None) -> QemuDriver:
        facts = NodeFacts(name="here", state_dir=self._folder)
        return QemuDriver(settings or self.settings, facts)

    def open(self, home: Path, settings: Settings | None = None) -> QemuMachine:
        """The machine of a home, as a node that has just started sees it."""
        return self.run(self.driver(settings).open(self.spec, home))

    def elsewhere(self) -> QemuMachine:
        machine = self.open(self.new_home())
        self._machines.append(machine)
        return machine

    def state(self, machine: QemuMachine | None = None) -> MachineState:
        return self.run((machine or self.here).state())

    def moved_to(self, machine: QemuMachine) -> None:
        self.run(self.here.stop())
        self.here = machine
        self.logs.append(machine.console_log())

    def ticks(self) -> list[int]:
        """What the guest counted so far, over all the places that it was in."""
        text = b"".join(log.read_bytes() for log in self.logs if log.exists())
        whole = text.decode(errors="replace").rpartition("\n")[0]
        return [int(n) for n in re.findall(r"^tick (\d+)\r?$", whole, re.MULTILINE)]

    def wait_for_ticks(self, more: int = 3) -> None:
        """Return once the guest has counted on."""
        wanted = len(self.ticks()) + more
        self.wait(lambda: len(self.ticks()) >= wanted, "the guest counts on")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"not in {DEADLINE_S:g} s: {what}"
            time.sleep(0.01)

    def counted_exactly(self) -> bool:
        ticks = self.ticks()
        return ticks == list(range(1, len(ticks) + 1))

    async def copy(
        self,
        target: QemuMachine,
        limits: MoveLimits = LIMITS,
        act: Callable[[Leaving], Coroutine[Any, Any, None]] | None = None,
    ) -> tuple[Leaving, Arriving]:
        """All of the machine's state from here to there; both are paused then."""
        incoming = await target.receive(self.here.describe())
        outgoing = await self.here.send(limits)
        pump = asyncio.create_task(asyncio.to_thread(pump_batches, outgoing, incoming))
        if act is None:
            await outgoing.converged()
            await outgoing.switch_over()
        else:
            await act(outgoing)
        await pump
        await incoming.finish()
        return outgoing, incoming

    def close(self) -> None:
        with contextlib.ExitStack() as ending:
            # Whatever fails, the others are stopped too and the loop is closed: nothing of this
            # world may show up as a fault of a later test.
            ending.callback(self._runner.close)
            for machine in self._machines:
                ending.callback(lambda machine=machine: self.run(machine.stop()))


def pump_batches(outgoing: Leaving, incoming: Arriving) -> None:
    while (batch := outgoing.read()) is not None:
        incoming.write(batch)


def drain(outgoing: Leaving) -> None:
    while outgoing.read() is not None:
        pass


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, guest_settings: dict[str, Any]
) -> Iterator[World]:
    spec = MachineSpec(
        name="guest", driver="qemu", memory_bytes=MEMORY_BYTES, settings=guest_settings
    )
    world = World(tmp_path_factory.mktemp("world"), spec)
    try:
        world.run(world.here.start())
        world.wait_for_ticks()
        yield world
    finally:
        world.close()


@pytest.fixture
def counter_world(tmp_path: Path, qemu_host: Host) -> Iterator[World]:
    """A machine that was not started, and needs only milliseconds for it."""
    assert qemu_host.version
    rom = tmp_path / "counter.rom"
    rom.write_bytes(counter_rom())
    settings = {"arguments": ["-bios", str(rom)], "accel": "tcg"}
    spec = MachineSpec(name="counter", driver="qemu", memory_bytes=16 << 20, settings=settings)
    world = World(tmp_path, spec)
    try:
        yield world
    finally:
        world.close()


@pytest.fixture
def idle_world(tmp_path: Path, guest_settings: dict[str, Any]) -> Iterator[World]:
    """A machine that was not started."""
    spec = MachineSpec(
        name="idle", driver="qemu", memory_bytes=MEMORY_BYTES, settings=guest_settings
    )
    world = World(tmp_path, spec)
    try:
        yield world
    finally:
        world.close()
