"""A guest without a system, for tests of drivers: it counts, and prints its count."""

from __future__ import annotations

import io
import re
from pathlib import Path


def counter_rom() -> bytes:
    """A guest without a system, for tests that need no more than a machine that goes on.

    It is a ROM for ``-bios`` that runs some milliseconds after its start. A thousand times a second
    it counts in memory, prints the count to the serial port as eight letters from A to P, one per
    nibble, and a newline, and writes the count to a page that depends on it; in between it sleeps.
    `read_counter` reads what it printed.
    """
    code = bytes.fromhex(
        "fa"  # cli
        "31c0 8ed8 8ed0 bc000f"  # xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0xf00
        # Interrupt 8 is the timer's; it ends at `tick`, which is at 0xfffc0 and below 1 MiB too.
        "c7062000c0ff c706220000f0"  # mov word [0x20], 0xffc0; mov word [0x22], 0xf000
        # The processor's own interrupt controller off, or it would hold back the other one's.
        "66b91b000000 66b80001e0fe 6631d2 0f30"  # mov ecx, 0x1b; mov eax, 0xfee00100; wrmsr
        "b011e620 b008e621 b004e621 b001e621"  # interrupt controller: begins at 8
        "b0fee621"  # and lets only the timer through
        "b034e643 b0a9e640 b004e640"  # timer: every 0x4a9 beats of 1.193 MHz
        "fb"  # sti
        # next:
        "f4"  # hlt
        "66ff060010"  # inc dword [0x1000]
        "668b1e0010"  # mov ebx, [0x1000]
        "b109 b00a eb0a"  # mov cl, 9; mov al, newline; jmp emit
        # digit:
        "66c1c304 88d8 240f 0441"  # rol ebx, 4; mov al, bl; and al, 15; add al, 'A'
        # emit:
        "88c4 bafd03"  # mov ah, al; mov dx, line status
        # wait:
        "ec a820 74fb"  # in al, dx; test al, transmitter empty; jz wait
        "baf803 88e0 ee"  # mov dx, data; mov al, ah; out dx, al
        "fec9 75e2"  # dec cl; jnz digit
        "89df c1e70c 81cf0020 66891d"  # mov di, bx; shl di, 12; or di, 0x2000; mov [di], ebx
        "ebc3"  # jmp next
    )
    # tick: push ax; mov al, 0x20; out 0x20, al (heard); pop ax; iret
    tick = bytes.fromhex("50 b020 e620 58 cf")
    rom = bytearray(b"\xff" * 65536)
    assert len(code) <= 0xC0
    rom[0xFF00 : 0xFF00 + len(code)] = code
    rom[0xFFC0 : 0xFFC0 + len(tick)] = tick
    rom[0xFFF0:0xFFF3] = b"\xe9\x0d\xff"  # where a processor begins: jmp 0xff00
    return bytes(rom)


def read_counter(console_log: Path) -> int:
    """The last whole count that a `counter_rom` printed, 0 if there is none."""
    try:
        with console_log.open("rb") as file:
            file.seek(max(0, file.seek(0, io.SEEK_END) - 64))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return 0
    whole = [line for line in lines if re.fullmatch(rb"[A-P]{8}", line)]
    if not whole:
        return 0
    return int("".join(f"{letter - 65:x}" for letter in whole[-1]), 16)
