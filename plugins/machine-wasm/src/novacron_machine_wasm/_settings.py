"""The settings of the driver and of one machine, and their checks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
from novacron import ConfigError, MachineSpec

from novacron_machine_wasm._guest_settings import (
    BUILTIN_GUESTS,
    KV_MEMORY_MIN,
    MEMORY_MAX,
    WASM_PAGE,
    GuestSettings,
)


@attrs.frozen(kw_only=True)
class Settings:
    """The section ``[machine.wasm]``.

    Attributes:
        memory_bytes_max: The largest machine that may be made here or come here.
        base_bytes_max: The largest memory image that is kept on disk after a machine has left,
            so that less has to be sent when it comes back; 0 keeps none.
        console_log_bytes_max: When the console's log is longer, it becomes ``console.log.1`` and
            a new one begins.
        runs_log: Where to note when machines execute, for a proof over several nodes of one host;
            empty for ``runs.log`` in each machine's home.
        start_timeout_s: How long a machine's process may take until it answers.
        answer_timeout_s: How long it may take to answer one request.
    """

    memory_bytes_max: int = MEMORY_MAX
    base_bytes_max: int = MEMORY_MAX
    console_log_bytes_max: int = 16 << 20
    runs_log: str = ""
    start_timeout_s: float = 60.0
    answer_timeout_s: float = 60.0


_RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "tick_ms": (1, 3_600_000),
    "step_timeout_ms": (50, 600_000),
    "fill_bytes": (0, MEMORY_MAX),
    "tcp_port": (0, 65_535),
}


def guest_settings(spec: MachineSpec) -> GuestSettings:
    """The machine's settings, checked; ConfigError names the setting that is wrong."""
    names = [field.name for field in attrs.fields(GuestSettings)]
    for key, value in spec.settings.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"machine {spec.name!r}: there is no setting {key!r}",
                hint=f"did you mean {near!r}? (known: {', '.join(names)})",
                setting=str(key),
            )
        # A number in quotes or a bare true is a mistake, not something to convert.
        wanted = str if key == "guest" else int
        if type(value) is not wanted:
            raise ConfigError(
                f"machine {spec.name!r}: {key} is {value!r}, not {_KIND[wanted]}", setting=key
            )
    settings = GuestSettings(**spec.settings)
    for key, (low, high) in _RANGES.items():
        value = getattr(settings, key)
        if not low <= value <= high:
            raise ConfigError(
                f"machine {spec.name!r}: {key} is {value}, not within {low} to {high}", setting=key
            )
    return settings


_KIND: Final[Mapping[type, str]] = {str: "a text", int: "a whole number"}


def check_spec(spec: MachineSpec, limits: Settings) -> GuestSettings:
    """The settings of a machine that can be made here; else ConfigError."""
    settings = guest_settings(spec)
    memory = spec.memory_bytes
    if memory % WASM_PAGE or not WASM_PAGE <= memory <= MEMORY_MAX:
        raise ConfigError(
            f"machine {spec.name!r}: memory_bytes is {memory}",
            hint=f"a multiple of {WASM_PAGE} from {WASM_PAGE} to {MEMORY_MAX}",
            setting="memory_bytes",
        )
    if memory > limits.memory_bytes_max:
        raise ConfigError(
            f"machine {spec.name!r}: memory_bytes is {memory}, more than this node allows",
            hint=f"at most {limits.memory_bytes_max}, or raise [machine.wasm] memory_bytes_max",
            setting="memory_bytes",
        )
    if settings.guest == "kv" and memory < KV_MEMORY_MIN:
        raise ConfigError(
            f"machine {spec.name!r}: memory_bytes is {memory}, too little for the kv guest",
            hint=f"at least {KV_MEMORY_MIN}",
            setting="memory_bytes",
        )
    if settings.fill_bytes > memory:
        raise ConfigError(
            f"machine {spec.name!r}: fill_bytes is {settings.fill_bytes}, more than its memory",
            setting="fill_bytes",
        )
    if settings.guest not in BUILTIN_GUESTS:
        path = Path(settings.guest)
        if path.suffix not in (".wat", ".wasm") or not path.is_absolute():
            near = difflib.get_close_matches(settings.guest, BUILTIN_GUESTS, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"machine {spec.name!r}: {settings.guest!r} is no guest",
                hint=f"{near!r}, or the absolute path of a .wat or .wasm file",
                setting="guest",
            )
    return settings
