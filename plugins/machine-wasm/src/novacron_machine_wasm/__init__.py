"""WebAssembly machines: they run in wasmtime, in a process of their own, and move live.

Registers the machine provider ``wasm``. `KvClient` talks to the key-value guest that comes with
it, `service_path` says where, and `read_runs` reads when a machine executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from novacron import hookimpl

from novacron_machine_wasm._client import KvClient, TableFull
from novacron_machine_wasm._paths import service_path
from novacron_machine_wasm._runs import Run, read_runs

if TYPE_CHECKING:
    from novacron import Finding, MachineDriver

NOVACRON_API = 1


@hookimpl
def novacron_register_machine() -> Sequence[type[MachineDriver]]:
    from novacron_machine_wasm._driver import WasmDriver

    return (WasmDriver,)


@hookimpl
def novacron_register_findings() -> Sequence[Finding]:
    # Here, not above: the package is imported by each machine's process too.
    from importlib.metadata import version

    from novacron import Finding
    from novacron_native_pages import implementation

    kernels = implementation()
    native = kernels == "c"
    return (
        Finding(
            subject="wasmtime",
            status="ok",
            detail=f"version {version('wasmtime')}",
        ),
        Finding(
            subject="wasm page kernels",
            status="ok" if native else "note",
            detail=kernels,
            hint="" if native else "install a C compiler and build novacron-native-pages again",
        ),
    )


__all__ = [
    "NOVACRON_API",
    "KvClient",
    "Run",
    "TableFull",
    "novacron_register_findings",
    "novacron_register_machine",
    "read_runs",
    "service_path",
]
