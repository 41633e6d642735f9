"""Contract tests, a fake wire, fake clocks and the simulator, for authors of NovaCron plugins.

    from novacron_testkit import CompressionContract

    class TestMyCodec(CompressionContract):
        provider = MyCodec

The simulator is in `novacron_testkit.simulator`, planted bugs in `novacron_testkit.mutants`, and
histories are judged by `novacron_testkit.linearizability`. This module is also a plugin: it gives
the command line ``novacron plugins check``, ``novacron plugins new`` and ``novacron simulate``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from novacron import hookimpl

from novacron_testkit import hookspecs

if TYPE_CHECKING:
    import click

    from novacron_testkit.check import CheckReport, check_plugin
    from novacron_testkit.clock import FakeClock
    from novacron_testkit.contracts import (
        ComplianceContract,
        CompressionContract,
        ConsensusContract,
        Contract,
        MachineContract,
        PlacementContract,
        SecurityContract,
        TransportContract,
        TrustSetup,
    )
    from novacron_testkit.fakes import (
        FakeWire,
        MemoryDisk,
        MemoryNetwork,
        MemoryRegister,
        MemoryRegisterSettings,
        MemoryTransport,
        MemoryTransportSettings,
    )

NOVACRON_API = 1
NOVACRON_HOOKSPECS = (hookspecs,)

# Where each public name lives. The names are looked up when used: this module is loaded by every
# `novacron` command, and pytest and hypothesis would make each of them slow.
_HOMES = {
    "CheckReport": "check",
    "ComplianceContract": "contracts",
    "CompressionContract": "contracts",
    "ConsensusContract": "contracts",
    "Contract": "contracts",
    "FakeClock": "clock",
    "FakeWire": "fakes",
    "MachineContract": "contracts",
    "MemoryDisk": "fakes",
    "MemoryNetwork": "fakes",
    "MemoryRegister": "fakes",
    "MemoryRegisterSettings": "fakes",
    "MemoryTransport": "fakes",
    "MemoryTransportSettings": "fakes",
    "PlacementContract": "contracts",
    "SecurityContract": "contracts",
    "TransportContract": "contracts",
    "TrustSetup": "contracts",
    "check_plugin": "check",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_testkit.commands import plugins
    from novacron_testkit.simulate_command import simulate

    return [plugins, simulate]


__all__ = [
    "NOVACRON_API",
    "NOVACRON_HOOKSPECS",
    "CheckReport",
    "ComplianceContract",
    "CompressionContract",
    "ConsensusContract",
    "Contract",
    "FakeClock",
    "FakeWire",
    "MachineContract",
    "MemoryDisk",
    "MemoryNetwork",
    "MemoryRegister",
    "MemoryRegisterSettings",
    "MemoryTransport",
    "MemoryTransportSettings",
    "PlacementContract",
    "SecurityContract",
    "TransportContract",
    "TrustSetup",
    "check_plugin",
    "novacron_register_commands",
]
