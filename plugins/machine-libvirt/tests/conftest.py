"""Two hosts with a libvirtd each, and machines on them without their nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from novacron import Machine, MachineSpec, MoveLimits
from novacron_machine_libvirt import LibvirtDriver, LibvirtMachine
from novacron_machine_libvirt._leave import Leaving
from novacron_machine_libvirt._libvirt import Connection
from novacron_machine_libvirt.contract import MEMORY_MIB, counter_xml, daemon, driver_of
from novacron_qemu.counter import read_counter

T = TypeVar("T")
DEADLINE_S = 60.0


class Hosts:
    """``source`` and ``destination``, as the contract's tests have them."""

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self._folder = folder
        self._machines: list[Machine] = []
        self.drivers = {host: driver_of(host, folder / host) for host in ("source", "destination")}

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(what, DEADLINE_S)

        return self._runner.run(bounded())

    def driver(self, host: str) -> LibvirtDriver:
        return self.drivers[host]

    def connection(self, host: str) -> Connection:
        return Connection(daemon(host).uri)

    def spec(self, name: str = "m1", **settings: Any) -> MachineSpec:
        return MachineSpec(
            name=name,
            driver="libvirt",
            memory_bytes=MEMORY_MIB << 20,
            settings=settings or {"xml": counter_xml()},
        )

    def open(self, host: str, spec: MachineSpec | None = None) -> LibvirtMachine:
        """The machine as a node that has just started sees it."""
        spec = spec or self.spec()
        home = self._folder / host / "homes" / spec.name
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        machine = self.run(self.driver(host).open(spec, home))
        self._machines.append(machine)
        return machine

    def running(self, host: str = "source", spec: MachineSpec | None = None) -> LibvirtMachine:
        machine = self.open(host, spec)
        self.run(machine.start())
        return machine

    def beats(self, machine: LibvirtMachine) -> None:
        """Wait until the guest has counted on."""
        before = read_counter(machine.console_log())
        self.wait(lambda: read_counter(machine.console_log()) > before, "the guest counts on")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"not in {DEADLINE_S:g} s: {what}"
            time.sleep(0.01)

    def copied(self, source: LibvirtMachine, target: LibvirtMachine) -> Leaving:
        """All of the machine's state is at the target; both are paused."""

        async def work() -> Leaving:
            incoming = await target.receive(source.describe())
            outgoing = await source.send(MoveLimits())

            def pump() -> None:
                while (batch := outgoing.read()) is not None:
                    incoming.write(batch)

            pumping = asyncio.create_task(asyncio.to_thread(pump))
            await outgoing.converged()
            await outgoing.switch_over()
            await pumping
            await incoming.finish()
            return outgoing

        return self.run(work())

    def close(self) -> None:
        for machine in reversed(self._machines):
            self.run(machine.stop())
        self._runner.close()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()
