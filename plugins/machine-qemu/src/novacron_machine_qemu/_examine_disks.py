"""What stands in the way of a machine's disks: those that go along, and those that are shared."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from novacron import Obstacle
from novacron_qemu.blocks import DISK_BYTES_MAX

from novacron_machine_qemu._candidate import Candidate, found, mib
from novacron_machine_qemu._disk_files import (
    RESERVE_BYTES,
    OriginDisk,
    device_identity,
    find_tool,
    left_by,
)
from novacron_machine_qemu._storage import OwnDisk, goes_along, is_proved
from novacron_machine_qemu._told import ToldDisk

# File systems that no other host can have mounted at the same time.
_LOCAL: Final = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs", "zfs")
_BIG: Final = 1 << 62


def about_disks(arrival: Candidate) -> Iterator[Obstacle]:
    """What keeps them from coming here, or from being the same here."""
    told = {disk.number: disk for disk in arrival.told.disks}
    images = {disk.number: disk for disk in arrival.source.disks}
    needed: dict[Path, int] = {}
    for number, disk in enumerate(arrival.machine.disks):
        where = arrival.place(f"disks[{number}].path", disk.path)
        if isinstance(where, Obstacle):
            yield where
            continue
        own = OwnDisk(number=number, path=where, disk=disk)
        if goes_along(own, arrival.storage):
            image = images.get(number)
            yield from _about_copied(arrival, own, image)
            kept = left_by(where, arrival.spec.name, arrival.spec.tenant) is not None
            if image is not None and where.parent.is_dir() and not kept:
                needed[where.parent] = needed.get(where.parent, 0) + max(
                    0, min(image.content_bytes, image.size_bytes, DISK_BYTES_MAX)
                )
        elif disk.shared or arrival.storage:
            yield from _about_shared(arrival, own, told.get(number))
    yield from _about_room(needed)


def _about_shared(arrival: Candidate, own: OwnDisk, told: ToldDisk | None) -> Iterator[Obstacle]:
    where, medium = own.path, own.disk.readonly
    if not where.exists():
        yield found(
            "media.missing" if medium else "disk.not-reachable",
            f"its disk {where} is said to be shared, and is not there on this node",
            f"mount the storage that it lies on here, so that it is at {where}; or "
            + (
                "copy it there, for nobody writes to it"
                if medium
                else "do not call it shared, and take it along (--with-storage)"
            ),
            path=str(where),
            disk=own.number,
        )
        return
    proved = is_proved(own, arrival.storage)
    if proved and where.is_file() and not os.access(where.parent, os.W_OK | os.X_OK):
        yield _not_writable(
            where, "a file beside it proves to the source that both have the same disk"
        )
    elif proved and not where.is_file() and not device_identity(where):
        yield found(
            "disk.not-provable",
            f"nothing tells whether the device {where} is the same one on both nodes",
            "use a device with a WWID or a device-mapper UUID, or a file",
            path=str(where),
            disk=own.number,
        )
    if told is None or not where.is_file():
        return
    here = where.stat()
    if not proved:
        if here.st_size != told.length:
            yield found(
                "media.different",
                f"its disk {where} is another one here ({here.st_size} bytes, "
                f"{told.length} at the source)",
                f"copy it from the source to {where}, for nobody writes to it",
                path=str(where),
                size_bytes=told.length,
            )
    elif told.inode and here.st_ino != told.inode:
        yield found(
            "disk.not-shared",
            f"its disk {where} is said to be shared, and is another file here than at the source",
            "mount the very same storage on both nodes; or do not call it shared, move the "
            "file here away, and take the disk along (--with-storage)",
            # Some network file systems number their files anew on each host.
            blocks=_is_local(where),
            path=str(where),
            disk=own.number,
        )
    below = where
    for backing in told.backing:
        below = below.parent / backing.removeprefix("file:")
        if not backing.startswith("json:") and not below.exists():
            yield found(
                "disk.backing-missing",
                f"its disk {where} stands on the image {below}, which is not there on this node",
                f"copy it from the source to {below}, or mount the storage that it lies on",
                path=str(below),
                disk=own.number,
            )


def _about_copied(arrival: Candidate, own: OwnDisk, image: OriginDisk | None) -> Iterator[Obstacle]:
    where, folder = own.path, own.path.parent
    if image is None or image.format != own.disk.format or image.size_bytes < 1:
        yield found(
            "disk.unsound",
            f"the source says nothing sound of its disk {own.disk.path}",
            "look at the disk at the source (qemu-img check), and use the same version of "
            "novacron-machine-qemu on both nodes",
            disk=own.number,
        )
    elif image.size_bytes > DISK_BYTES_MAX or image.size_bytes % 512:
        yield found(
            "disk.too-large",
            f"its disk {own.disk.path} has {min(image.size_bytes, _BIG)} bytes: it cannot go along",
            f"disks of at most {DISK_BYTES_MAX >> 40} TiB and whole sectors can; put it on "
            "shared storage (--storage shared)",
            disk=own.number,
            option="storage",
            value="shared",
        )
    if not folder.is_dir():
        yield found(
            "disk.no-folder",
            f"its disk would come to {where}, and there is no folder {folder} here",
            f"make it: mkdir -p {shlex.quote(str(folder))}",
            path=str(folder),
            run=["mkdir", "-p", str(folder)],
        )
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield _not_writable(where, "it would come there")
    present = where.exists() or where.is_symlink()
    if present and left_by(where, arrival.spec.name, arrival.spec.tenant) is None:
        aside = f"{where}.aside"
        yield found(
            "disk.exists",
            f"its disk would come to {where}, where there is a file already that this machine "
            "did not leave here",
            f"move it away (mv {shlex.quote(str(where))} {shlex.quote(aside)}), or name "
            "another path in the machine's disks",
            path=str(where),
            run=["mv", "--no-clobber", str(where), aside],
        )
    if own.disk.format == "qcow2" and find_tool() is None:
        yield found(
            "disk.tool-missing",
            f"qemu-img, which makes images like {own.disk.path}, is not on this node",
            "install it (Debian: the package qemu-utils)",
            disk=own.number,
        )


def _not_writable(disk: Path, why: str) -> Obstacle:
    return found(
        "disk.not-writable",
        f"its disk is {disk}, and this node may not write to {disk.parent}: {why}",
        "let the node's user write there",
        path=str(disk.parent),
    )


def _about_room(needed: Mapping[Path, int]) -> Iterator[Obstacle]:
    """Whether the disks that come fit, those on one file system together."""
    systems: dict[int, tuple[Path, int]] = {}
    for folder, count in needed.items():
        first, before = systems.get(folder.stat().st_dev, (folder, 0))
        systems[folder.stat().st_dev] = (first, before + count)
    for folder, count in systems.values():
        free, wanted = shutil.disk_usage(folder).free, count + RESERVE_BYTES
        if free < wanted:
            yield found(
                "disk.no-room",
                f"its disks take {mib(count)} and {mib(RESERVE_BYTES)} must stay free, and "
                f"{folder} has {mib(free)}",
                f"free {mib(wanted - free)} there, or set files in [machine.qemu] to a folder "
                "with room",
                path=str(folder),
                needed_bytes=wanted,
                free_bytes=free,
            )


def _is_local(path: Path) -> bool:
    """Whether a file lies on a file system that no other host can have mounted."""
    number = path.stat().st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        fields = left.split()
        if len(fields) > 2 and fields[2] == wanted:
            return right.split(" ", 1)[0] in _LOCAL
    return False
