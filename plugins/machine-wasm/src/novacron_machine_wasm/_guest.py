"""A guest: a WebAssembly module in wasmtime, whose whole state is its memory and its globals.

What a guest exports: ``memory``, ``step`` and every mutable global; ``init`` if it wants to be
called once at the start; ``mailbox``, ``mailbox_bytes`` and ``handle`` if it serves requests;
``scratch`` if memory from there on is free. It may import ``novacron.console_write`` (address,
length) and ``novacron.console_read`` (address, length; gives how many bytes came).
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Final

import wasmtime
from blake3 import blake3

from novacron_machine_wasm._fill import fill_pattern
from novacron_machine_wasm._guest_settings import WASM_PAGE
from novacron_machine_wasm._module import BadModule, inspect_module

# An interrupted guest is late by at most this; the thread that counts costs nothing beside it.
EPOCH_S: Final = 0.05
MAILBOX_BYTES_MAX: Final = 1 << 20
CONSOLE_BYTES_PER_CALL: Final = 1 << 20
_FILL_VALUE: Final = 4000


class GuestFailed(Exception):
    """The guest trapped or took too long; it cannot go on."""


def _engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.epoch_interruption = True
    # What has state that is neither memory nor global, or is of no use in one thread.
    config.wasm_threads = False
    config.wasm_function_references = False
    config.wasm_gc = False
    config.wasm_exceptions = False
    config.wasm_multi_memory = False
    config.wasm_memory64 = False
    config.wasm_relaxed_simd_deterministic = True
    # The same computation must give the same bits on every host.
    config.cranelift_nan_canonicalization = True
    return wasmtime.Engine(config)


def _count_epochs(engine: weakref.ref[wasmtime.Engine]) -> None:
    """Count as long as the engine is there."""
    while (counted := engine()) is not None:
        counted.increment_epoch()
        del counted
        # Counted naps, not the clock: a host that slept does not end its guests on waking.
        time.sleep(EPOCH_S)


class Guest:
    """One instance. One thread at a time may call it; the caller sees to that."""

    def __init__(
        self,
        wasm: bytes,
        memory_bytes: int,
        step_timeout_ms: int,
        read_console: Callable[[int], bytes],
    ) -> None:
        """Raises BadModule. Not one instruction of the guest is executed here."""
        self._state_names = inspect_module(wasm)
        self._read_console = read_console
        self._printed = bytearray()
        self._deadline = max(2, round(step_timeout_ms / (1000 * EPOCH_S)) + 1)
        self._timeout_ms = step_timeout_ms
        try:
            self._engine = _engine()
            self._store = wasmtime.Store(self._engine)
            self._store.set_limits(
                memory_size=memory_bytes, table_elements=100_000, instances=1, tables=8, memories=1
            )
            # Data segments are no instructions, yet wasmtime counts time from here.
            self._store.set_epoch_deadline(self._deadline)
            module = wasmtime.Module(self._engine, wasm)
            self._exports = self._link(module).exports(self._store)
            memory = self._exports.get("memory")
            if not isinstance(memory, wasmtime.Memory):
                raise BadModule("it exports no memory named `memory`")
            self._initial = memory.data_len(self._store)
            missing = memory_bytes - self._initial
            if missing:
                memory.grow(self._store, missing // WASM_PAGE)
        except wasmtime.WasmtimeError as error:
            raise BadModule(_short(error)) from error
        # Its place is fixed from here on: the store's limit lets the memory grow no further.
        place = memoryview(memory.get_buffer_ptr(self._store)).cast("B")
        self.memory: memoryview = place
        if len(self.memory) != memory_bytes:
            raise BadModule(f"its memory is {len(self.memory)} bytes, not {memory_bytes}")
        self._step = self._function("step")
        self._init = self._function("init") if "init" in self._exports else None
        self._handle = self._function("handle") if "handle" in self._exports else None
        self._mailbox = self._mailbox_bytes = 0
        if self._handle is not None:
            self._mailbox = self._constant("mailbox")
            self._mailbox_bytes = self._constant("mailbox_bytes")
            if (
                not 0 < self._mailbox_bytes <= MAILBOX_BYTES_MAX
                or self._mailbox + self._mailbox_bytes > memory_bytes
            ):
                raise BadModule("its mailbox is not within its memory")
        threading.Thread(
            target=_count_epochs, args=(weakref.ref(self._engine),), name="epochs", daemon=True
        ).start()

    def _link(self, module: wasmtime.Module) -> wasmtime.Instance:
        i32 = wasmtime.ValType.i32
        linker = wasmtime.Linker(self._engine)
        offered = {
            "console_write": (wasmtime.FuncType([i32(), i32()], []), self._console_write),
            "console_read": (wasmtime.FuncType([i32(), i32()], [i32()]), self._console_read),
        }
        for name, (kind, function) in offered.items():
            linker.define_func("novacron", name, kind, function)
        for wanted in module.imports:
            if wanted.module != "novacron" or wanted.name not in offered:
                raise BadModule(
                    f"it imports {wanted.module}.{wanted.name}, which is not offered "
                    f"(novacron.{', novacron.'.join(offered)} are)"
                )
        return linker.instantiate(self._store, module)

    def _function(self, name: str) -> wasmtime.Func:
        function = self._exports.get(name)
        if not isinstance(function, wasmtime.Func):
            raise BadModule(f"it exports no function named `{name}`")
        kind = function.type(self._store)
        wanted = (["i32"], ["i32"]) if name == "handle" else ([], [])
        if ([str(p) for p in kind.params], [str(r) for r in kind.results]) != wanted:
            raise BadModule(f"its `{name}` takes or gives other values than it should")
        return function

    def _constant(self, name: str) -> int:
        value = self._exports.get(name)
        if not isinstance(value, wasmtime.Global):
            raise BadModule(f"it exports no global named `{name}`")
        return int(value.value(self._store)) & 0xFFFF_FFFF

    # What the guest may call -----------------------------------------------------------------

    def _within(self, address: int, length: int) -> slice:
        address &= 0xFFFF_FFFF
        length &= 0xFFFF_FFFF
        if address + length > len(self.memory):
            raise GuestFailed(f"the guest named {length} bytes at {address}, outside its memory")
        return slice(address, address + length)

    def _console_write(self, address: int, length: int) -> None:
        text = self.memory[self._within(address, length)]
        room = CONSOLE_BYTES_PER_CALL - len(self._printed)
        self._printed += text[:room]

    def _console_read(self, address: int, length: int) -> int:
        place = self._within(address, length)
        data = self._read_console(place.stop - place.start)
        self.memory[place.start : place.start + len(data)] = data
        return len(data)

    # What the runner calls ---------------------------------------------------------------------

    @property
    def serves(self) -> bool:
        return self._handle is not None

    @property
    def request_bytes_max(self) -> int:
        return self._mailbox_bytes

    def _call(self, function: wasmtime.Func, *values: int) -> int:
        self._store.set_epoch_deadline(self._deadline)
        try:
            return int(function(self._store, *values) or 0)
        except wasmtime.Trap as trap:
            if trap.trap_code is wasmtime.TrapCode.INTERRUPT:
                raise GuestFailed(
                    f"a call into the guest did not end within {self._timeout_ms} ms"
                ) from trap
            raise GuestFailed(f"the guest trapped: {_short(trap)}") from trap
        except wasmtime.WasmtimeError as error:
            raise GuestFailed(f"the guest failed: {_short(error)}") from error

    def step(self) -> None:
        self._call(self._step)

    def handle(self, request: bytes) -> bytes:
        """The guest's answer. The request is at most ``request_bytes_max`` long."""
        if self._handle is None or len(request) > self._mailbox_bytes:
            raise ValueError("the guest takes no such request")
        start = self._mailbox
        self.memory[start : start + len(request)] = request
        length = self._call(self._handle, len(request))
        if not 0 <= length <= self._mailbox_bytes:
            raise GuestFailed(f"the guest claims an answer of {length} bytes")
        return self.memory[start : start + length].tobytes()

    def printed(self) -> bytes:
        """What the guest has written to its console since the last time."""
        if not self._printed:
            return b""
        out = bytes(self._printed)
        self._printed.clear()
        return out

    def begin(self, fill_bytes: int, seed: bytes) -> None:
        """Start from nothing: call `init`, then fill."""
        if self._init is not None:
            self._call(self._init)
        if not fill_bytes:
            return
        if self._handle is not None:
            # As requests, so that the guest's own order of things holds.
            values = fill_pattern(fill_bytes // 4096 * _FILL_VALUE, seed)
            for number in range(fill_bytes // 4096):
                key = b"fill-%07d" % number
                value = values[number * _FILL_VALUE : (number + 1) * _FILL_VALUE]
                request = b"\x01" + len(key).to_bytes(2, "little") + key + value
                if self.handle(request)[:1] != b"\0":
                    return  # it is full
        elif "scratch" in self._exports:
            start = self._constant("scratch")
            count = max(0, min(fill_bytes, len(self.memory) - start))
            self.memory[start : start + count] = fill_pattern(count, seed)
        else:
            raise BadModule("it can be filled only if it exports `handle` or `scratch`")

    def clear(self) -> None:
        """Forget what the module itself put into memory: all of it is about to arrive."""
        zeros = bytes(WASM_PAGE)
        for start in range(0, self._initial, WASM_PAGE):
            self.memory[start : start + WASM_PAGE] = zeros

    def globals(self) -> dict[str, int]:
        return {name: int(self._global(name).value(self._store)) for name in self._state_names}

    def set_globals(self, values: Mapping[str, int]) -> None:
        """Raises BadModule unless exactly this guest's globals are given, each within its type."""
        if tuple(sorted(values)) != self._state_names:
            raise BadModule("the globals that came are not this guest's")
        for name, value in values.items():
            one = self._global(name)
            bits = 31 if str(one.type(self._store).content) == "i32" else 63
            if not -(1 << bits) <= value < 1 << bits:
                raise BadModule(f"the global {name!r} cannot be {value}")
            one.set_value(self._store, value)

    def _global(self, name: str) -> wasmtime.Global:
        found = self._exports[name]
        if not isinstance(found, wasmtime.Global):
            raise BadModule(f"its export {name!r} is no global")
        return found

    def digest(self) -> str:
        """BLAKE3 of the memory, then of each global as ``name=value`` and a newline."""
        hasher = blake3(self.memory)
        for name, value in sorted(self.globals().items()):
            hasher.update(f"{name}={value}\n".encode())
        return hasher.hexdigest()


def _short(error: Exception) -> str:
    """The first lines of what wasmtime says; it adds a backtrace as long as the guest likes."""
    return " ".join(str(error).split())[:500]
