"""What becomes of a machine's disks in a move: which go along, which are shared, what stays behind.

Two notes in the machine's home say what a node that is killed has to know: ``leaving.json`` which
disks go along with it, ``arriving.json`` which disks were made for it here, or taken over from an
earlier stay. Both are gone as soon as the machine runs.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from novacron import MachineError, MachineSpec, NovacronError, Refused
from novacron_qemu.blocks import DISK_BYTES_MAX, DISKS_MAX, Have, HeldPlace

from novacron_machine_qemu import _disk_files as files
from novacron_machine_qemu._command import Builder, Origin
from novacron_machine_qemu._disk_files import NODE, ImageFacts, OriginDisk
from novacron_machine_qemu._mirror import LeavingDisk
from novacron_machine_qemu._process import Home
from novacron_machine_qemu._qmp import Monitor
from novacron_machine_qemu._settings import Disk, Settings

log = logging.getLogger("novacron.machine.qemu")

COPY: Final = "copy"
SHARED: Final = "shared"


@frozen(kw_only=True)
class OwnDisk:
    """One of a machine's disks, with its place on this node."""

    number: int
    path: Path
    disk: Disk


def disks_of(builder: Builder) -> list[OwnDisk]:
    """The machine's disks. Raises ConfigError if a path cannot be resolved."""
    paths = builder.files()
    return [
        OwnDisk(number=number, path=paths[f"disks[{number}].path"], disk=disk)
        for number, disk in enumerate(builder.machine.disks)
    ]


def goes_along(own: OwnDisk, storage: str) -> bool:
    return storage == COPY and not own.disk.shared


def is_proved(own: OwnDisk, storage: str) -> bool:
    """Whether both sides must be shown to have the very same disk: of one that nobody writes to
    and that is said to be shared, an equal copy is as good."""
    if own.disk.shared:
        return not own.disk.readonly
    return storage == SHARED


def describe_disks(builder: Builder) -> tuple[OriginDisk, ...]:
    """How the machine's own disks look now; those that cannot be read are left out (and refused
    when the machine is to leave)."""
    found: list[OriginDisk] = []
    for own in disks_of(builder):
        if own.disk.shared:
            continue
        with contextlib.suppress(MachineError):
            image = files.read_image(own.path, own.disk.format)
            found.append(
                OriginDisk(
                    number=own.number,
                    format=own.disk.format,
                    size_bytes=image.size_bytes,
                    content_bytes=image.content_bytes,
                    cluster_bytes=image.cluster_bytes,
                )
            )
    return tuple(found)


# -- the source ------------------------------------------------------------------------------------


def refuse_staying(spec: MachineSpec, builder: Builder, storage: str) -> None:
    """Raise Refused if a disk would be left behind."""
    stay = [own.disk.path for own in disks_of(builder) if not own.disk.shared and not storage]
    if stay:
        raise Refused(
            f"machine {spec.name} has disks that a move would leave behind: {', '.join(stay)}",
            hint="move them too (novacron migrate --with-storage); or put them on storage that all "
            "nodes reach at this path, then say --storage shared, or set shared = true for each",
        )


async def leaving_disks(
    spec: MachineSpec, builder: Builder, monitor: Monitor, storage: str
) -> list[LeavingDisk]:
    """The disks that go along, as QEMU has them open.

    Raises: Refused, with the cure, if one of them cannot; MachineError.
    """
    chosen = [own for own in disks_of(builder) if goes_along(own, storage)]
    if not chosen:
        return []
    used = {
        str(block["inserted"]["node-name"]): block["inserted"]
        for block in await monitor.execute("query-block")
        if "inserted" in block
    }
    found: list[LeavingDisk] = []
    for own in chosen:
        inserted = used.get(f"{NODE}{own.number}")
        if inserted is None:
            raise Refused(
                f"machine {spec.name} does not write to its disk {own.path} itself: a snapshot was "
                "taken, and the guest's changes go to another image",
                hint="merge the snapshot into the disk (QMP block-commit, `virsh blockcommit`), or "
                "stop the machine, name the active image in its disks and start it",
            )
        if own.disk.readonly:
            raise Refused(
                f"machine {spec.name}: its disk {own.path} is read-only, and such disks do not go "
                "along",
                hint="copy it to the same path on the target's node and set shared = true for it: "
                "where nobody writes, an equal copy is as good",
            )
        image = files.read_image(own.path, own.disk.format)
        size = int(inserted["image"]["virtual-size"])
        if size > DISK_BYTES_MAX or own.number >= DISKS_MAX:
            raise Refused(
                f"machine {spec.name}: disk {own.number} with {size} bytes cannot go along",
                hint=f"at most {DISKS_MAX} disks of {DISK_BYTES_MAX >> 40} TiB can; put it on "
                "shared storage",
            )
        found.append(
            LeavingDisk(number=own.number, size_bytes=size, content_bytes=image.content_bytes)
        )
    return found


def check_places(builder: Builder, storage: str, have: Have) -> None:
    """Raise Refused unless the disks that both sides are to share are the same ones.

    A target that says nothing of its disks is believed where only the settings say so: it may be
    an older one.
    """
    places = {place.disk: place for place in have.places}
    for own in disks_of(builder):
        if not is_proved(own, storage):
            continue
        place = places.get(own.number)
        if place is not None:
            files.check_proof(own.path, place.name, place.proof)
        elif storage == SHARED:
            raise Refused(
                f"the target does not show that it has the disk {own.path}",
                hint="both nodes need a version of novacron-machine-qemu that proves it",
            )


def note_leaving(home: Home, disks: Sequence[LeavingDisk]) -> None:
    """Remember which disks go along. Raises OSError."""
    path = home.folder / "leaving.json"
    if disks:
        files.write_json(path, {"disks": [disk.number for disk in disks]})
    else:
        path.unlink(missing_ok=True)


def leave_disks(spec: MachineSpec, builder: Builder, home: Home, settings: Settings) -> None:
    """The machine runs elsewhere, and its QEMU here has ended: keep or remove what it left."""
    try:
        numbers = files.read_json(home.folder / "leaving.json")["disks"]
    except (OSError, ValueError, KeyError):
        return
    for own in disks_of(builder):
        if own.number not in numbers:
            continue
        try:
            if settings.keep_disks and own.path.is_file():
                files.leave_note(own.path, spec.name, spec.tenant, own.disk.format)
            elif own.path.is_file():
                files.remove_disk(own.path)
        except (OSError, NovacronError) as error:
            log.warning("machine %s left its disk %s here: %s", spec.name, own.path, error)


# -- the destination -------------------------------------------------------------------------------


@frozen(kw_only=True)
class Coming:
    """The disks of a machine that arrives.

    Attributes:
        numbers: Of those that come.
        kept: Of them those that were here before.
        places: What proves that the shared ones are the source's.
    """

    numbers: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    places: tuple[HeldPlace, ...] = ()


def make_room(
    spec: MachineSpec, builder: Builder, home: Home, origin: Origin, storage: str
) -> Coming:
    """Prepare this node for the machine's disks: make empty ones, or take over what it left here.

    Raises: Refused, with the cure; nothing is left then.
    """
    if storage not in ("", COPY, SHARED):
        raise Refused(
            f"machine {spec.name}: its source wants {storage[:40]!r} done with its disks",
            hint="use the same version of novacron on both nodes",
        )
    own = disks_of(builder)
    coming = [disk for disk in own if goes_along(disk, storage)]
    told = {disk.number: disk for disk in origin.disks}
    facts = {disk.number: _checked(spec, disk, told.get(disk.number)) for disk in coming}
    kept = [disk for disk in coming if _is_kept(spec, disk, facts[disk.number])]
    fresh = [disk for disk in coming if disk not in kept]
    try:
        for disk in fresh:
            files.prepare_image(disk.path, disk.disk.format, facts[disk.number])
        if coming:
            _forget_strangers(fresh)
            # By their inodes: whatever comes to lie under those names, only these are ours.
            note = {
                "made": {str(d.path): files.unfinished_of(d.path).stat().st_ino for d in fresh},
                "kept": {str(d.path): d.path.stat().st_ino for d in kept},
            }
            files.write_json(home.folder / "arriving.json", note)
        for disk in fresh:
            files.publish_image(disk.path)
        places = tuple(
            HeldPlace(disk=d.number, name=d.path.name, proof=files.write_proof(d.path))
            for d in own
            if is_proved(d, storage)
        )
    except BaseException as error:
        discard_disks(spec, builder, home, keep_partial=False)
        if isinstance(error, OSError):
            raise Refused(
                f"machine {spec.name}: no room can be made for its disks: {error}",
                hint="let the node's user write to the folders of the machine's disks",
            ) from error
        raise
    return Coming(
        numbers=tuple(disk.number for disk in coming),
        kept=tuple(disk.number for disk in kept),
        places=places,
    )


def _checked(spec: MachineSpec, own: OwnDisk, told: OriginDisk | None) -> ImageFacts:
    if told is None or told.format != own.disk.format or told.size_bytes < 1:
        raise Refused(
            f"machine {spec.name}: its source says nothing sound of its disk {own.disk.path}",
            hint="look at the disk at the source (qemu-img check), and use the same version of "
            "novacron-machine-qemu on both nodes",
        )
    if told.size_bytes > DISK_BYTES_MAX or told.size_bytes % 512:
        raise Refused(
            f"machine {spec.name}: its disk {own.disk.path} is said to have "
            f"{told.size_bytes} bytes",
            hint=f"disks of at most {DISK_BYTES_MAX >> 40} TiB and whole sectors can go along",
        )
    if own.disk.format == "raw" and told.size_bytes % 4096:
        raise Refused(
            f"machine {spec.name}: its raw disk {own.disk.path} has {told.size_bytes} bytes, which "
            "are no whole pages of 4096: QEMU does not write to such an image from outside",
            hint="stop the machine and make the disk a little larger: qemu-img resize -f raw",
        )
    cluster = told.cluster_bytes
    if cluster and (cluster & (cluster - 1) or not 512 <= cluster <= 2 << 20):
        cluster = 0
    return ImageFacts(
        size_bytes=told.size_bytes,
        content_bytes=min(max(told.content_bytes, 0), told.size_bytes),
        cluster_bytes=cluster,
    )


def _is_kept(spec: MachineSpec, own: OwnDisk, facts: ImageFacts) -> bool:
    """Whether the machine left this disk here. Raises Refused if it is somebody else's."""
    if not own.path.exists() and not own.path.is_symlink():
        return False
    left = files.left_by(own.path, spec.name, spec.tenant)
    if left is None:
        raise files.exists(own.path)
    try:
        here = files.read_image(own.path, own.disk.format)
    except MachineError:
        here = None
    if here is None or here.backing or here.size_bytes != facts.size_bytes:
        # Another size, or damaged since: of no use, and the machine's own.
        files.remove_disk(own.path)
        return False
    return True


def _forget_strangers(disks: Sequence[OwnDisk]) -> None:
    """A note whose disk is gone says nothing any more."""
    for own in disks:
        files.forget_note(own.path)


def discard_disks(spec: MachineSpec, builder: Builder, home: Home, *, keep_partial: bool) -> None:
    """The arrival came to nothing, and its QEMU has ended: remove what was made for it."""
    for own in disks_of(builder):
        files.remove_proof(own.path)
        with contextlib.suppress(OSError):
            files.unfinished_of(own.path).unlink(missing_ok=True)
    note = home.folder / "arriving.json"
    try:
        found = files.read_json(note)
        made, kept = dict(found["made"]), dict(found["kept"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    for own in disks_of(builder):
        place = str(own.path)
        try:
            if own.path.stat().st_ino not in (made.get(place), kept.get(place)):
                continue
            if place in kept or keep_partial:
                # Some of its blocks are older, some newer: they are told by their digests.
                files.leave_note(own.path, spec.name, spec.tenant, own.disk.format)
            else:
                files.remove_disk(own.path)
        except (OSError, NovacronError) as error:
            log.warning("machine %s left a part of %s here: %s", spec.name, own.path, error)
    note.unlink(missing_ok=True)


def own_disks(builder: Builder, home: Home) -> None:
    """The machine runs here from now on: what lies here is its disks, and nothing else."""
    for own in disks_of(builder):
        files.forget_note(own.path)
        files.remove_proof(own.path)
    for name in ("leaving.json", "arriving.json"):
        (home.folder / name).unlink(missing_ok=True)


def unproved(builder: Builder) -> None:
    """The source has looked: what proved the disks to be its own is not needed any more."""
    for own in disks_of(builder):
        files.remove_proof(own.path)


def storage_of(origin: Mapping[str, Any]) -> str:
    """What the source wants done with the disks."""
    return str(origin.get("storage", ""))
