"""Where a node gets a machine's module from. Imports wasmtime: only when a machine is started."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import wasmtime
from novacron import ConfigError

from novacron_machine_wasm._guest_settings import BUILTIN_GUESTS, MODULE_BYTES_MAX
from novacron_machine_wasm._module import BadModule, inspect_module


def module_bytes(guest: str) -> bytes:
    """The module that the setting ``guest`` names. Raises ConfigError."""
    try:
        if guest in BUILTIN_GUESTS:
            source = resources.files("novacron_machine_wasm").joinpath("guests", f"{guest}.wat")
            return bytes(wasmtime.wat2wasm(source.read_text()))
        path = Path(guest)
        if path.stat().st_size > MODULE_BYTES_MAX:
            raise ConfigError(
                f"guest {guest!r} is larger than {MODULE_BYTES_MAX} bytes", setting="guest"
            )
        raw = path.read_bytes()
        wasm = bytes(wasmtime.wat2wasm(raw)) if path.suffix == ".wat" else raw
        if len(wasm) > MODULE_BYTES_MAX:
            raise ConfigError(f"guest {guest!r} is too large", setting="guest")
        inspect_module(wasm)
    except OSError as error:
        raise ConfigError(
            f"guest {guest!r} cannot be read: {error.strerror or error}",
            hint="the file has to be on the node that starts the machine",
            setting="guest",
        ) from error
    except (wasmtime.WasmtimeError, BadModule) as error:
        raise ConfigError(f"guest {guest!r} is no guest: {error}", setting="guest") from error
    return wasm
