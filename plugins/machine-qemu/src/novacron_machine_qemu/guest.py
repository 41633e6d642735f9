"""A small guest for tests and the demo: a distribution's kernel and a busybox initramfs.

The guest counts on its serial console ("tick 1", "tick 2", …), writes random bytes to memory at a
modest rate, and answers each line that it is sent with "echo: LINE"; "poweroff" switches it off.
Its counter shows a skipped or repeated instant of its life at once. If it is made with a disk, it
keeps writing numbers to its first disk and reads older ones back: "wrote 1", "wrote 2", …, and
"disk wrong" if one of them is not what it was.

Run as a program to make the files: ``python -m novacron_machine_qemu.guest FOLDER``.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import stat
import sys
from pathlib import Path
from typing import Final

from attrs import field, frozen
from novacron import ConfigError, NotFound

KERNEL_VARIABLE: Final = "NOVACRON_GUEST_KERNEL"
BUSYBOX_VARIABLE: Final = "NOVACRON_GUEST_BUSYBOX"
HINT: Final = "run scripts/debian-packages, which fetches it"

# In the order of their needs.
DISK_MODULES: Final = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    "virtio_blk",
)

# Kernel messages go to the console too and could fall into a line of the counter; "quiet" and
# loglevel=0 keep them out. noapictimer-free and tsc-free settings would hide faults, so there are
# none. panic=-1 reboots at once: a guest that fails to start does not hang a test.
APPEND: Final = "console=ttyS0 quiet loglevel=0 panic=-1 mitigations=off random.trust_cpu=on"

_INIT: Final = r"""#!/bin/busybox sh
# Process 1 of the guest. Everything in the counting loop is built into the shell: a fork per tick
# would make the tick's length a matter of luck under emulation.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs -o size=@DIRTY_MIB@m,mode=0755 churn /churn
exec </dev/ttyS0 >/dev/ttyS0 2>&1
/bin/busybox stty -echo raw opost onlcr icrnl icanon
(
  i=0
  while :; do
    i=$(( (i + 1) % @DIRTY_FILES@ ))
    /bin/busybox dd if=/dev/urandom of=/churn/$i bs=64k count=1 conv=notrunc 2>/dev/null
    /bin/busybox sleep @DIRTY_PERIOD@
  done
) &
# Who answers is not who counts: a timed read that runs out in the middle of a line drops its start.
(
  while read -r line; do
    echo "echo: $line"
    if [ "$line" = poweroff ]; then /bin/busybox poweroff -f; fi
  done
) </dev/ttyS0 &
@DISK@/bin/busybox mkfifo /never
exec 3<>/never
n=0
echo "guest ready"
while :; do
  n=$((n + 1))
  echo "tick $n"
  read -r -t @TICK@ nothing <&3
done
"""


# Eight sectors, each in a MiB of its own, one after the other; what was written seven turns ago is
# in the next one. The guest's own cache is emptied first, so that it is the disk that answers.
_DISK: Final = r"""(
  for module in /modules/*; do /bin/busybox insmod $module; done
  while [ ! -b /dev/vda ]; do /bin/busybox sleep 0.05; done
  n=0
  while :; do
    n=$((n + 1))
    /bin/busybox printf '%-511s
' $n |
      /bin/busybox dd of=/dev/vda bs=512 seek=$((n % 64)) conv=notrunc,fsync 2>/dev/null
    if [ $n -gt 63 ]; then
      /bin/busybox blockdev --flushbufs /dev/vda
      old=$(/bin/busybox dd if=/dev/vda bs=512 skip=$(((n + 1) % 64)) count=1 2>/dev/null)
      [ ${old%% *} = $((n - 63)) ] || echo "disk wrong"
    fi
    echo "wrote $n"
    /bin/busybox sleep @DIRTY_PERIOD@
  done
) &
"""


@frozen(kw_only=True)
class GuestOptions:
    """How lively the guest is.

    Attributes:
        tick_s: Seconds between two ticks.
        dirty_mib: The memory that it keeps writing over, at least 1.
        dirty_period_s: Seconds between two writes of 64 KiB.
        disk: Whether it writes to its first disk, too.
    """

    tick_s: float = field(default=0.05)
    dirty_mib: int = field(default=8)
    dirty_period_s: float = field(default=0.05)
    disk: bool = field(default=False)


def cache_dir() -> Path:
    """The folder that scripts/debian-packages unpacks a kernel into."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "novacron" / "guest-kernel"


def _version_key(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", path.name))


def find_kernel() -> Path:
    """The kernel to start guests with.

    It is the one that NOVACRON_GUEST_KERNEL names, else the newest in `cache_dir`, else the newest
    readable one in /boot.

    Raises:
        NotFound: There is none, or the variable names something that is no file.
    """
    named = os.environ.get(KERNEL_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise NotFound(f"{KERNEL_VARIABLE} is {named}, which is no file", hint="correct it")
        return Path(named)
    for folder in (cache_dir() / "boot", Path("/boot")):
        kernels = [path for path in folder.glob("vmlinuz-*") if os.access(path, os.R_OK)]
        if kernels:
            return max(kernels, key=_version_key)
    raise NotFound(
        f"no guest kernel: nothing in {cache_dir()}/boot, no readable /boot/vmlinuz-*",
        hint=f"{HINT}, or set {KERNEL_VARIABLE}",
    )


def find_modules(kernel: Path) -> list[Path]:
    """The modules that a kernel needs to see a virtio disk, in the order to load them.

    Empty if there are none: many kernels have them built in.
    """
    release = kernel.name.removeprefix("vmlinuz-")
    drivers = Path("/lib/modules") / release / "kernel" / "drivers"
    for folders in ([cache_dir() / "modules" / release], [drivers / "virtio", drivers / "block"]):
        found = [folder / f"{name}.ko" for name in DISK_MODULES for folder in folders]
        if present := [path for path in found if path.is_file()]:
            return present
    return []


def find_busybox() -> Path:
    """A busybox that needs no libraries.

    Raises:
        NotFound: There is none, or it is not static.
    """
    named = os.environ.get(BUSYBOX_VARIABLE)
    found = named or shutil.which("busybox") or shutil.which("busybox", path="/bin:/usr/bin")
    if not found or not Path(found).is_file():
        raise NotFound("no busybox for the guest", hint=f"{HINT} (the package busybox-static)")
    path = Path(found)
    if _needs_loader(path):
        raise NotFound(f"{path} is not statically linked", hint="install busybox-static instead")
    return path


def _needs_loader(path: Path) -> bool:
    """Whether an ELF file asks for a dynamic loader (it has a PT_INTERP program header)."""
    data = path.read_bytes()
    if data[:5] != b"\x7fELF\x02":
        return False
    offset = int.from_bytes(data[32:40], "little")
    size = int.from_bytes(data[54:56], "little")
    count = int.from_bytes(data[56:58], "little")
    kinds = [int.from_bytes(data[offset + i * size :][:4], "little") for i in range(count)]
    return 3 in kinds


def cpio_archive(entries: list[tuple[str, int, bytes]]) -> bytes:
    """A "newc" archive, the form that Linux unpacks as its first root file system.

    Args:
        entries: Name, mode (with the file type's bits) and content of each, folders first.
    """
    parts: list[bytes] = []

    def add(number: int, name: str, mode: int, content: bytes) -> None:
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % value for value in fields) + encoded
        parts.append(header + b"\0" * (-len(header) % 4))
        parts.append(content + b"\0" * (-len(content) % 4))

    for number, (name, mode, content) in enumerate(entries, start=1):
        add(number, name, mode, content)
    add(0, "TRAILER!!!", 0, b"")
    return b"".join(parts)


def build_initrd(
    busybox: Path,
    options: GuestOptions | None = None,
    modules: list[tuple[str, bytes]] | None = None,
) -> bytes:
    """The initramfs, the same bytes for the same input.

    Args:
        modules: What the kernel needs to see a disk, by names in the order to load them.
    """
    modules = modules or []
    options = options or GuestOptions()
    init = _INIT.replace("@DISK@", _DISK if options.disk else "")
    for key, value in {
        "TICK": f"{options.tick_s:g}",
        "DIRTY_MIB": str(options.dirty_mib),
        "DIRTY_FILES": str(max(1, options.dirty_mib * 14)),  # of 64 KiB each, with some to spare
        "DIRTY_PERIOD": f"{options.dirty_period_s:g}",
    }.items():
        init = init.replace(f"@{key}@", value)
    folder, program = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    archive = cpio_archive(
        [
            ("bin", folder, b""),
            ("churn", folder, b""),
            ("dev", folder, b""),
            ("proc", folder, b""),
            ("modules", folder, b""),
            *[(f"modules/{name}", program, content) for name, content in modules],
            ("bin/busybox", program, busybox.read_bytes()),
            ("init", program, init.encode()),
        ]
    )
    return gzip.compress(archive, compresslevel=6, mtime=0)


def build_guest(out_dir: Path, options: GuestOptions | None = None) -> tuple[Path, Path]:
    """Put a kernel and an initramfs into a folder (made if need be).

    Returns:
        The paths of the kernel and of the initramfs, both absolute.

    Raises:
        NotFound: This host has no kernel or no static busybox; the hint is the cure.
        ConfigError: An option makes no sense.
    """
    options = options or GuestOptions()
    if options.tick_s <= 0 or options.dirty_period_s <= 0 or options.dirty_mib < 1:
        raise ConfigError(f"{options} would not count: its numbers must be above zero")
    kernel, busybox = find_kernel(), find_busybox()
    out_dir = out_dir.resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    made = out_dir / "vmlinuz", out_dir / "initrd.gz"
    shutil.copyfile(kernel, made[0])
    modules = find_modules(kernel) if options.disk else []
    named = [(f"{n}-{path.name}", path.read_bytes()) for n, path in enumerate(modules)]
    made[1].write_bytes(build_initrd(busybox, options, named))
    return made


def main() -> int:
    """Make the guest in the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m novacron_machine_qemu.guest FOLDER\n")
        return 2
    try:
        kernel, initrd = build_guest(Path(sys.argv[1]))
    except (NotFound, ConfigError) as error:
        sys.stderr.write(f"{error}\n{error.hint}\n")
        return 1
    sys.stdout.write(f"kernel: {kernel}\ninitrd: {initrd}\nappend: {APPEND}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
