"""What in a module's binary form says whether its whole state can move."""

from __future__ import annotations

from typing import Final

GLOBALS_MAX: Final = 256


class BadModule(ValueError):
    """The module is no guest, or one whose state could not be moved."""


class _Reader:
    """Reads the binary form; everything in it is hostile."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise BadModule("the module is cut short")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self) -> int:
        """A LEB128 number; the sign does not matter to any caller."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise BadModule("a number in the module is too long")

    def skip_constant(self) -> None:
        """One constant expression, up to its end."""
        while (op := self.take(1)[0]) != 0x0B:
            if op in (0x41, 0x42, 0x23, 0xD0, 0xD2):
                self.number()
            elif op == 0x43:
                self.take(4)
            elif op == 0x44:
                self.take(8)
            elif op == 0xFD and self.number() == 12:
                self.take(16)
            elif op not in (0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E):
                raise BadModule("a global begins with an expression that is not known here")


_NUMBER_TYPES: Final = {0x7F: "i32", 0x7E: "i64"}


def inspect_module(wasm: bytes) -> tuple[str, ...]:
    """The names of the globals that are state. Raises BadModule if state would be left behind.

    wasmtime checks the module itself; this looks only for what cannot travel.
    """
    reader = _Reader(wasm)
    if reader.take(8) != b"\0asm\x01\0\0\0":
        raise BadModule("not a WebAssembly module of version 1")
    mutable: dict[int, int] = {}
    exported: dict[int, str] = {}
    while reader.at < len(wasm):
        section = reader.take(1)[0]
        body = _Reader(reader.take(reader.number()))
        if section == 8:
            # It would run at the destination before the machine is handed over.
            raise BadModule("it has a start function; export it as `init` instead")
        if section == 4 and body.number():
            raise BadModule("it has a table, and what a table holds cannot move")
        if section == 6:
            for index in range(body.number()):
                kind, is_mutable = body.take(2)
                if is_mutable:
                    mutable[index] = kind
                body.skip_constant()
        if section == 7:
            for _ in range(body.number()):
                name = body.take(body.number())
                sort = body.take(1)
                index = body.number()
                if sort == b"\x03":
                    exported.setdefault(index, name.decode(errors="replace"))
    if len(mutable) > GLOBALS_MAX:
        raise BadModule(f"it has {len(mutable)} mutable globals, more than {GLOBALS_MAX}")
    for index, kind in mutable.items():
        if index not in exported:
            raise BadModule(f"its mutable global number {index} is not exported, so it cannot move")
        if kind not in _NUMBER_TYPES:
            raise BadModule(f"its mutable global {exported[index]!r} is neither i32 nor i64")
    return tuple(sorted(exported[index] for index in mutable))
