"""The wasm driver under the laws that hold for every machine driver."""

from __future__ import annotations

from novacron_machine_wasm.contract import TestWasmMachine

__all__ = ["TestWasmMachine"]
