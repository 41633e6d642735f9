"""How this plugin is tested: its machines are held to the laws of the domain.

Needs novacron-testkit, libvirtd and QEMU; `novacron plugins check machine-libvirt` finds it here.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import signal
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from novacron import (
    Batch,
    Machine,
    MachineSpec,
    MachineState,
    MoveLimits,
    NodeFacts,
    NotFound,
)
from novacron_qemu.counter import counter_rom, read_counter
from novacron_testkit.contracts import MachineContract
from novacron_testkit.contracts.machine import Move, Yard

from novacron_machine_libvirt._machine import LibvirtDriver, LibvirtMachine
from novacron_machine_libvirt._settings import Settings
from novacron_machine_libvirt.private_daemon import PrivateLibvirtd

MEMORY_MIB = 16


@cache
def _folder() -> Path:
    """Of the whole run; short, for sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="nc-lv-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def daemon(host: str) -> PrivateLibvirtd:
    """The libvirtd of a host, the same for the whole run."""
    made = PrivateLibvirtd(_folder() / host)
    made.folder.mkdir(exist_ok=True)
    made.start()
    atexit.register(made.stop)
    return made


@cache
def rom() -> Path:
    """The guest's ROM."""
    path = _folder() / "counter.rom"
    path.write_bytes(counter_rom())
    return path


def counter_xml(*, memory_mib: int = MEMORY_MIB, more: str = "", machine: str = "q35") -> str:
    """A domain that counts as soon as it starts."""
    return f"""<domain type='qemu'>
  <name>any</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type><loader type='rom'>{rom()}</loader></os>
  <features><acpi/></features>
  <devices><controller type='usb' model='none'/><memballoon model='none'/>{more}</devices>
</domain>"""


def driver_of(host: str, state: Path) -> LibvirtDriver:
    """A driver for a node on that host; skips the test where libvirt is not."""
    try:
        uri = daemon(host).uri
    except NotFound as error:
        pytest.skip(f"{error}; {error.hint}")
    settings = Settings(uri=uri, socket_dir=str(_folder() / "sockets"))
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return LibvirtDriver(settings, NodeFacts(name=host, state_dir=state))


@pytest.mark.qemu
@pytest.mark.xdist_group("host")
class TestLibvirtMachine(MachineContract):
    """Two libvirtd, and a guest that is a ROM."""

    provider: ClassVar[type[Any]] = LibvirtDriver

    def driver(self, tmp_path: Path) -> LibvirtDriver:
        return driver_of(tmp_path.name, tmp_path / "state")

    def spec(self, name: str) -> MachineSpec:
        return MachineSpec(
            name=name,
            driver="libvirt",
            memory_bytes=MEMORY_MIB << 20,
            settings={"xml": counter_xml()},
        )

    def heartbeat(self, machine: Machine) -> int:
        return read_counter(machine.console_log())

    async def kill(self, machine: Machine) -> None:
        assert isinstance(machine, LibvirtMachine)
        pid = await asyncio.to_thread(machine.process_id)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def test_the_guest_runs_on_while_it_is_copied(self, tmp_path: Path) -> None:
        # QEMU pauses the guest by itself once what is left fits the downtime, which this guest of
        # 16 MiB does some milliseconds after its first batch. At this rate it never does: it
        # writes 64 KiB between two looks, and 1 KiB may be left.
        limits = MoveLimits(max_downtime_ms=1, rate_bytes_per_s=1 << 20)

        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            destination = await yard.open("destination")
            incoming = await destination.receive(source.describe())
            move = Move(await source.send(limits), incoming)
            await asyncio.wait_for(move.first.wait(), self.deadline_s)
            await self._beats_past(source, await self._beat(source))
            assert await destination.state() is MachineState.RECEIVING
            await self._finish(move, force=True)
            assert await source.digest() == await destination.digest()

        self._run(work)

    async def _batches(self, source: Machine) -> list[Batch]:
        # QEMU does not let a machine leave a second time that left whole and has not run since.
        batches = await super()._batches(source)
        await source.resume()
        return batches
