"""What this host can do: which QEMU it has, its machine types, and whether KVM really works."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
from functools import cache, cached_property
from pathlib import Path
from typing import Final

from attrs import frozen
from novacron import ConfigError, MachineError, NotFound

KVM_DEVICE: Final = Path("/dev/kvm")
OLDEST: Final = (7, 2)
# Measured: 7.2 under emulation loses dirty pages from the fourth pass on, 10.0 does not.
TCG_SOUND: Final = (8, 0)
_QUERY_TIMEOUT_S: Final = 20.0
_PROBE_TIMEOUT_S: Final = 2.0
_PROBE_LOOPS: Final = 10_000_000
_PROBE_ANSWER: Final = 0x2A


def _probe_rom() -> bytes:
    """A ROM whose processor counts down and then writes `_PROBE_ANSWER` to port 0xf4.

    The count is the point: some hosts offer /dev/kvm and then emulate the guest one instruction at
    a time, thousands of times slower than QEMU's own emulation. A processor that really runs needs
    some 10 ms for it.
    """
    count = b"\x66\xb9" + struct.pack("<I", _PROBE_LOOPS)  # mov ecx, count
    count += b"\x66\x49\x75\xfc"  # loop: dec ecx; jnz loop
    count += bytes((0xB0, _PROBE_ANSWER, 0xE6, 0xF4))  # mov al, answer; out 0xf4, al
    count += b"\xf4\xeb\xfd"  # halt: hlt; jmp halt
    rom = bytearray(b"\xff" * 65536)
    rom[0xFF00 : 0xFF00 + len(count)] = count
    rom[0xFFF0:0xFFF3] = b"\xe9\x0d\xff"  # where a processor begins: jmp 0xff00
    return bytes(rom)


@frozen(kw_only=True)
class Kvm:
    """Whether KVM works, and what was seen."""

    works: bool
    reason: str
    hint: str = ""


class Host:
    """One QEMU on this host. What it says is asked once and kept; thread-safe, may block."""

    def __init__(self, binary: str) -> None:
        self._asked_for = binary

    @cached_property
    def binary(self) -> str:
        """Raises NotFound, with the cure, if there is no such program."""
        found = shutil.which(os.path.expanduser(self._asked_for))
        if found is None:
            raise NotFound(
                f"{self._asked_for} is not on this host",
                hint="install QEMU (Debian: the package qemu-system-x86, or run "
                "scripts/debian-packages), or set binary in [machine.qemu]",
            )
        return str(Path(found).absolute())

    def _ask(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [self.binary, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_QUERY_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MachineError(f"{self.binary} does not answer: {error}") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-500:]
            raise MachineError(f"{self.binary} {' '.join(arguments)} failed: {said}")
        return done.stdout.decode(errors="replace")

    @cached_property
    def version_text(self) -> str:
        return self._ask("--version").partition("\n")[0].strip()

    @cached_property
    def version(self) -> tuple[int, int, int]:
        found = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", self.version_text)
        if not found:
            raise MachineError(f"{self.binary} does not tell its version: {self.version_text!r}")
        return int(found[1]), int(found[2]), int(found[3] or 0)

    @cached_property
    def machine_types(self) -> dict[str, str]:
        """Every machine type that this QEMU has, with the one that it stands for."""
        types: dict[str, str] = {}
        for line in self._ask("-machine", "help").splitlines():
            name, _, about = line.partition(" ")
            alias = re.search(r"\(alias of (\S+)\)", about)
            if name and about:
                types[name] = alias[1] if alias else name
        return types

    def machine_type(self, name: str) -> str:
        """The versioned name of a machine type. Raises ConfigError if this QEMU has none such."""
        try:
            return self.machine_types[name]
        except KeyError:
            q35 = sorted(t for t in self.machine_types if t.startswith("pc-q35-"))
            raise ConfigError(
                f"{self.version_text} has no machine type {name!r}",
                hint=f"it has {', '.join(['q35', *q35])} and others",
            ) from None

    def kvm(self) -> Kvm:
        """Whether KVM works, tried with a machine that runs for some milliseconds."""
        with _trying:
            return _try_kvm(self.binary)


# One trial per program and process, whoever asks: where KVM only emulates it takes its full time.
_trying: Final = threading.Lock()


@cache
def _try_kvm(binary: str) -> Kvm:
    if not KVM_DEVICE.exists():
        return Kvm(
            works=False,
            reason=f"there is no {KVM_DEVICE}",
            hint="enable virtualization in the firmware, or nested virtualization in the "
            "hypervisor that this host runs under",
        )
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return Kvm(
            works=False,
            reason=f"{KVM_DEVICE} may not be used by this user",
            hint="add the user to the group kvm and log in again",
        )
    with tempfile.TemporaryDirectory(prefix="novacron-kvm-") as folder:
        rom = Path(folder, "probe.rom")
        rom.write_bytes(_probe_rom())
        command = [binary, "-accel", "kvm", "-machine", "q35", "-m", "16", "-nodefaults"]
        command += ["-no-user-config", "-display", "none", "-bios", str(rom)]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PROBE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Kvm(
                works=False,
                reason=f"KVM did not run {_PROBE_LOOPS} turns of a loop in "
                f"{_PROBE_TIMEOUT_S:g} s: it emulates instruction by instruction",
                hint="this host's hypervisor gives no real nested virtualization",
            )
        except OSError as error:
            return Kvm(works=False, reason=f"{binary} could not be started: {error}")
    # isa-debug-exit ends QEMU with twice the value and one.
    if done.returncode == _PROBE_ANSWER * 2 + 1:
        return Kvm(works=True, reason="a probe machine ran")
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return Kvm(works=False, reason=said[-1] if said else f"the probe ended {done.returncode}")


def unsound_dirty_tracking(version: tuple[int, int, int], accel: str) -> str:
    """A warning if this pair may lose pages that the guest writes during a move, else ""."""
    if accel != "tcg" or version[:2] >= TCG_SOUND:
        return ""
    text = ".".join(map(str, version))
    return (
        f"QEMU {text} under emulation (tcg) loses pages that the guest writes from the fourth pass "
        "of a move on; use KVM or QEMU 8 or newer (Debian 12: bookworm-backports)"
    )


def processor_flags() -> frozenset[str]:
    """What this host's processor can do, as Linux names it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()
