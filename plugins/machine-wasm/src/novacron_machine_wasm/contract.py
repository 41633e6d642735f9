"""How this plugin is tested: its machines are held to the laws of the domain.

Needs novacron-testkit; `novacron plugins check machine-wasm` finds it here.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any, ClassVar

import pytest
from novacron import Machine, MachineSpec
from novacron_testkit.contracts import MachineContract

from novacron_machine_wasm._driver import WasmDriver, WasmMachine


@pytest.mark.slow
class TestWasmMachine(MachineContract):
    """The counter, with enough in its memory that a move takes several batches."""

    provider: ClassVar[type[Any]] = WasmDriver

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
