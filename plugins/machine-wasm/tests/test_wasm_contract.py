"""The wasm driver under the laws that hold for every machine driver."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from novacron import Machine, MachineSpec
from novacron_machine_wasm._driver import WasmDriver, WasmMachine
from novacron_testkit.contracts.machine import MachineContract


@pytest.mark.slow
class TestWasmMachine(MachineContract):
    provider = WasmDriver

    def spec(self, name: str) -> MachineSpec:
        return MachineSpec(
            name=name,
            driver="wasm",
            memory_bytes=1 << 20,
            settings={"guest": "counter", "tick_ms": 5, "fill_bytes": 600_000},
        )

    async def heartbeat(self, machine: Machine) -> int:
        assert isinstance(machine, WasmMachine)
        return await machine.ticks()

    async def kill(self, machine: Machine) -> None:
        assert isinstance(machine, WasmMachine)
        pid = machine.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0)
