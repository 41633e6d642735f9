"""What stands in the way of a QEMU machine's leaving, found at its source before it begins.

The other half, what stands in the way of its coming, is judged at the target (`_examine_arrival`)
by what is told from here. Nothing is changed on either side.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from blake3 import blake3
from novacron import ConfigError, MoveWish, NovacronError, Obstacle

from novacron_machine_qemu import _arguments as given
from novacron_machine_qemu import _networks
from novacron_machine_qemu._command import Builder, Origin, read_origin
from novacron_machine_qemu._disk_files import NODE
from novacron_machine_qemu._host import Host
from novacron_machine_qemu._processors import processors
from novacron_machine_qemu._qmp import CommandFailed, Monitor
from novacron_machine_qemu._storage import OwnDisk, disks_of, goes_along
from novacron_machine_qemu._told import Told, ToldDisk

FLAGS_TOLD_MAX: Final = 1024
# Long enough to tell a guest that writes much from one that does not.
_DIRTY_MS: Final = 100
# Per GiB, the most that QEMU takes: also of a small guest some pages are looked at.
_DIRTY_SAMPLES: Final = 4096


@frozen(kw_only=True)
class Examination:
    """What was found at the source, and what the target shall be told.

    ``dirty_bytes_per_s``: how fast the guest writes to pages that it had not written to since
    they were looked at last; 0 if that is not known.
    """

    obstacles: tuple[Obstacle, ...]
    told: Told
    dirty_bytes_per_s: int = 0

    def as_facts(self) -> dict[str, Any]:
        """What `describe` has to say of it."""
        return {**self.told.as_item(), "dirty_bytes_per_s": self.dirty_bytes_per_s}


async def examine_leaving(
    builder: Builder,
    host: Host,
    facts: Mapping[str, Any],
    wish: MoveWish,
    monitor: Monitor | None,
) -> Examination:
    """Look at a machine that is to leave.

    Args:
        facts: What `describe` says of it.
        monitor: Its QEMU's; None if it does not run.
    """
    found: list[Obstacle] = []
    disks: tuple[ToldDisk, ...] = ()
    dirty = 0
    if monitor is not None:
        async with monitor.held():
            found += await _ask_qemu(monitor)
            blocks = await monitor.execute("query-block")
            dirty = await _dirty_rate(monitor)
        inserted = [block["inserted"] for block in blocks if block.get("inserted")]
        used = {str(image.get("node-name", "")): image for image in inserted}
        own = disks_of(builder)
        found += _about_disks(own, used, wish)
        disks = tuple(_told_disks(own, used))
    found += _about_settings(builder, wish)
    origin = read_origin(facts)
    found += [_warning(text) for text in origin.warnings]
    told, more = await asyncio.to_thread(_tell, builder, host, origin, disks)
    return Examination(obstacles=(*found, *more), told=told, dirty_bytes_per_s=dirty)


def _warning(text: str) -> Obstacle:
    return Obstacle(
        code="qemu.loses-pages",
        what=text,
        cure="use a QEMU that is newer, or move the machine while it is paused",
        blocks=False,
    )


async def _ask_qemu(monitor: Monitor) -> list[Obstacle]:
    """What QEMU itself says of the machine's ability to leave."""
    migration = await monitor.execute("query-migrate")
    found = [
        Obstacle(
            code="machine.not-migratable",
            what=f"QEMU says: {reason}",
            cure="stop the machine, take the device or the option that QEMU names out of its "
            "arguments (or switch that feature off), and start it",
            facts={"reason": str(reason), "setting": "arguments"},
        )
        for reason in migration.get("blocked-reasons", ())
    ]
    if (await monitor.execute("query-status"))["status"] == "postmigrate":
        found.append(
            Obstacle(
                code="machine.left-whole",
                what="the machine has left whole once, and QEMU lets it leave again only after "
                "it has run",
                cure="resume it, if nobody else runs it: novacron machine resume",
            )
        )
    return found


async def _dirty_rate(monitor: Monitor) -> int:
    """Bytes per second, by QEMU's own samples of some of the guest's pages; 0 if it does not tell
    (8.1 and older only count in whole seconds)."""
    asked = {"calc-time": _DIRTY_MS, "calc-time-unit": "millisecond"}
    try:
        await monitor.execute("calc-dirty-rate", {**asked, "sample-pages": _DIRTY_SAMPLES})
        for _ in range(4):
            await asyncio.sleep(_DIRTY_MS / 1000)
            said = await monitor.execute("query-dirty-rate")
            if said["status"] == "measured":
                return int(said.get("dirty-rate", 0)) << 20
    except CommandFailed:
        pass  # an older one, or one that is at it already
    return 0


def _about_settings(builder: Builder, wish: MoveWish) -> Iterator[Obstacle]:
    machine = builder.machine
    stay = [disk.path for disk in machine.disks if not disk.shared]
    if stay and not wish.storage:
        yield Obstacle(
            code="disk.stays",
            what=f"the move would leave its disks behind: {', '.join(stay)}",
            cure="take them along (--with-storage), or put them on storage that both nodes reach "
            "at this path and say so (--storage shared, or shared = true for each)",
            facts={"option": "storage", "value": "copy", "disks": stay},
        )
    try:
        arguments = builder.extra()
    except ConfigError as error:
        yield Obstacle(
            code="file.missing",
            what=error.message,
            cure="put the file back, so that the target can be given the same",
            facts={"setting": "arguments_file", "path": machine.arguments_file},
        )
        return
    options = list(given.options(arguments))
    yield from _about_devices(machine.arguments, options)
    for file in given.files(options):
        if file.written and wish.storage != "shared":
            yield Obstacle(
                code="disk.in-arguments",
                what=f"its arguments name a disk that would stay behind: {file.path}",
                cure="name it in the machine's disks instead; or, if both nodes reach the very "
                "same one, move with --storage shared",
                facts={"path": file.path, "option": "storage", "value": "shared"},
            )


def _about_devices(own: Sequence[str], options: Sequence[given.Option]) -> Iterator[Obstacle]:
    for option in given.host_devices(options):
        if option.get("enable-migration", "x-enable-migration") == "on":
            continue  # its maker promises that its state can move
        yield Obstacle(
            code="device.passthrough",
            what=f"the machine uses a device of this very host: {' '.join(option.words)}",
            cure="unplug it in the guest, stop the machine, take it out of its arguments, and "
            "start it; it can be plugged in again at the target",
            facts={
                "setting": "arguments",
                "value": list(given.without(own, [option])),
                "device": " ".join(option.words),
            },
        )
    for option in given.passed_tpms(options):
        yield Obstacle(
            code="tpm.passthrough",
            what="the machine uses this host's own TPM, whose keys cannot leave it",
            cure="give it an emulated one (swtpm), and move the guest's keys to that: stop it, "
            "and replace -tpmdev passthrough by -tpmdev emulator in its arguments",
            facts={"setting": "arguments", "device": " ".join(option.words)},
        )


def _about_disks(
    own: Sequence[OwnDisk], used: Mapping[str, Mapping[str, Any]], wish: MoveWish
) -> Iterator[Obstacle]:
    for disk in own:
        if goes_along(disk, wish.storage) and f"{NODE}{disk.number}" not in used:
            yield Obstacle(
                code="disk.snapshot",
                what=f"the machine does not write to its disk {disk.path} itself: a snapshot was "
                "taken, and the guest's changes go to another image",
                cure="merge the snapshot into the disk (QMP block-commit), or stop the machine, "
                "name the active image in its disks, and start it",
                facts={"disk": disk.number, "path": str(disk.path)},
            )


def _told_disks(
    own: Sequence[OwnDisk], used: Mapping[str, Mapping[str, Any]]
) -> Iterator[ToldDisk]:
    for disk in own:
        try:
            status = disk.path.stat()
        except OSError:
            continue
        yield ToldDisk(
            number=disk.number,
            inode=status.st_ino if disk.path.is_file() else 0,
            length=status.st_size,
            backing=tuple(_chain(used.get(f"{NODE}{disk.number}", {}).get("image") or {})),
        )


def _chain(image: Mapping[str, Any]) -> Iterator[str]:
    """The names of the images below one, as they stand in each other."""
    for _ in range(64):
        if not (name := image.get("backing-filename")):
            return
        yield str(name)
        image = image.get("backing-image") or {}


def _tell(
    builder: Builder, host: Host, origin: Origin, disks: tuple[ToldDisk, ...]
) -> tuple[Told, list[Obstacle]]:
    """What only the source knows. Blocks for some tenths of a second when first asked."""
    found: list[Obstacle] = []
    guest: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    if origin.accel in ("kvm", "tcg"):
        try:
            known = processors(host.binary, origin.accel)
            guest = tuple(sorted(known.given(origin.cpu) or ()))[:FLAGS_TOLD_MAX]
            offered = tuple(sorted(known.offered()))[:FLAGS_TOLD_MAX]
        except NovacronError as error:
            found.append(
                Obstacle(
                    code="cpu.unknown",
                    what=f"what the guest's processor can do is not known: {error.message}",
                    cure="see that [machine.qemu] binary is the QEMU that the machine runs with",
                    blocks=False,
                )
            )
    try:
        options = list(given.options(builder.extra()))
    except ConfigError:
        options = []  # told above
    family = origin.machine_type.rpartition("-")[0]
    # The bridge is not named where a script joins it: then any of them may be meant.
    joined = [network.name for network in given.networks(options) if network.kind == "bridge"]
    told = Told(
        guest_flags=guest,
        host_flags=offered,
        machine_types=tuple(
            sorted(name for name in host.machine_types if name.rpartition("-")[0] == family)
        ),
        disks=disks,
        files={file.path: _size(Path(file.path)) for file in given.files(options)},
        networks={name: nets for name in joined if (nets := _networks.subnets(name))},
        arguments=arguments_digest(options),
        clock_s=time.time(),
    )
    return told, found


def arguments_digest(options: Sequence[given.Option]) -> str:
    """BLAKE3 over a machine's own arguments, those of its file too."""
    hasher = blake3()
    for option in options:
        for word in option.words:
            hasher.update(word.encode() + b"\0")
    return hasher.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
