"""How this plugin is tested: its machines are held to the laws of the domain.

Needs novacron-testkit, and QEMU; `novacron plugins check machine-qemu` finds it here.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from novacron import Batch, Machine, MachineSpec, MachineState, MoveLimits, NotFound
from novacron_qemu.counter import counter_rom, read_counter
from novacron_testkit.contracts import MachineContract
from novacron_testkit.contracts.machine import Move, Yard

from novacron_machine_qemu._host import Host
from novacron_machine_qemu._machine import QemuDriver, QemuMachine
from novacron_machine_qemu._settings import Settings


@cache
def _rom() -> Path:
    """The guest's ROM, the same file for the whole run."""
    folder = Path(tempfile.gettempdir(), f"novacron-contract-{os.geteuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "counter.rom"
    temporary = folder / f"counter.{os.getpid()}"
    temporary.write_bytes(counter_rom())
    temporary.replace(path)
    return path


@pytest.mark.qemu
class TestQemuMachine(MachineContract):
    """QEMU with a guest that is a ROM: it runs some milliseconds after its start."""

    provider: ClassVar[type[Any]] = QemuDriver

    def driver(self, tmp_path: Path) -> QemuDriver:
        try:
            assert Host(Settings().binary).version
        except NotFound as error:
            pytest.skip(f"{error}; {error.hint}")
        made = super().driver(tmp_path)
        assert isinstance(made, QemuDriver)
        return made

    def spec(self, name: str) -> MachineSpec:
        return MachineSpec(
            name=name,
            driver="qemu",
            memory_bytes=16 << 20,
            settings={"arguments": ["-bios", str(_rom())], "accel": "tcg"},
        )

    def heartbeat(self, machine: Machine) -> int:
        return read_counter(machine.console_log())

    async def kill(self, machine: Machine) -> None:
        assert isinstance(machine, QemuMachine)
        pid = machine.process_id()
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
