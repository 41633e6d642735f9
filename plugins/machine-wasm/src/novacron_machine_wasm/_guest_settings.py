"""A machine's own settings, and their bounds. Imports little: the machine's process uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

WASM_PAGE: Final = 65_536
# One WebAssembly page below 4 GiB: every address and length fits 32 bits.
MEMORY_MAX: Final = 65_535 * WASM_PAGE
BUILTIN_GUESTS: Final = ("counter", "kv")
KV_MEMORY_MIN: Final = 4 * WASM_PAGE
MODULE_BYTES_MAX: Final = 16 << 20


@attrs.frozen(kw_only=True)
class GuestSettings:
    """A machine's own settings (``MachineSpec.settings``).

    Attributes:
        guest: ``counter``, ``kv`` or the absolute path of a ``.wat`` or ``.wasm`` file. The file
            needs to be there only where the machine is started: it travels with the machine.
        tick_ms: The guest's ``step`` is called so often.
        step_timeout_ms: A call into the guest that takes longer ends the machine.
        fill_bytes: So much of the memory is filled at the start (the kv guest: with entries),
            as if the machine had worked for a while.
        tcp_port: Serve requests on this port of 127.0.0.1 too; 0 for none.
    """

    guest: str = "counter"
    tick_ms: int = 100
    step_timeout_ms: int = 5_000
    fill_bytes: int = 0
    tcp_port: int = 0


def runner_settings(values: Mapping[str, Any]) -> GuestSettings:
    """The inverse of `settings_json`, in the runner."""
    return GuestSettings(**values)


def settings_json(settings: GuestSettings) -> dict[str, Any]:
    """The settings for the runner's record."""
    return attrs.asdict(settings)
