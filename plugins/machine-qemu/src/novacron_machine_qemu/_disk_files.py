"""Disk images as files: what an image says of itself, how one is made, and whose it is.

Beside a disk that a machine has left behind lies a note (``<disk>.novacron``): the next time that
machine comes, what is there need not be sent. The note says whose the file is and how it looked
when it was left (its inode, length and time of change); a file that somebody has touched since is
not overwritten. What the file holds is not believed by it: it is read and hashed anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import asdict, frozen
from novacron import ConfigError, MachineError, NotFound, Refused

# The name that each of a machine's disks has in its QEMU, with the disk's number behind it.
NODE: Final = "novacron-disk"
QCOW2_MAGIC: Final = b"QFI\xfb"
_QCOW2 = struct.Struct(">4sIQIIQI")
_CLUSTER_BITS: Final = range(9, 22)
_NOTE_BYTES_MAX: Final = 4096
_SECTOR: Final = 512
_CREATE_TIMEOUT_S: Final = 120.0
# Left free on the disk besides what comes: qcow2's tables, and the node's own files.
RESERVE_BYTES: Final = 64 << 20


@frozen(kw_only=True)
class ImageFacts:
    """What an image says of itself.

    Attributes:
        size_bytes: The disk that the guest sees.
        content_bytes: What the image takes of this host, about what there is to send.
        cluster_bytes: Of a qcow2 image; 0 for others.
        backing: The file that a qcow2 image is laid over; empty if there is none.
        regular: Whether it is a file, not a block device.
    """

    size_bytes: int
    content_bytes: int
    cluster_bytes: int = 0
    backing: str = ""
    regular: bool = True


@frozen(kw_only=True)
class OriginDisk:
    """A disk as its source describes it: which of the machine's it is, and its image's facts."""

    number: int
    format: str
    size_bytes: int
    content_bytes: int
    cluster_bytes: int = 0


def read_image(path: Path, format: str) -> ImageFacts:
    """Look at an image; QEMU may have it open. Reads little, so that it need not wait.

    Raises: MachineError if it cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            regular = stat.S_ISREG(status.st_mode)
            length = status.st_size if regular else os.lseek(file.fileno(), 0, os.SEEK_END)
            head = file.read(_QCOW2.size) if format == "qcow2" and regular else b""
            if format == "qcow2" and not regular:
                head = os.pread(file.fileno(), _QCOW2.size, 0)
            content = status.st_blocks * _SECTOR if regular else length
            if format != "qcow2":
                length = -(-length // _SECTOR) * _SECTOR  # as QEMU has it
                return ImageFacts(size_bytes=length, content_bytes=content, regular=regular)
            if len(head) < _QCOW2.size or head[:4] != QCOW2_MAGIC:
                raise _damaged(path, "it does not begin as a qcow2 image does")
            _, version, name_at, name_length, bits, size, crypt = _QCOW2.unpack(head)
            if version not in (2, 3) or bits not in _CLUSTER_BITS or size % _SECTOR or crypt > 2:
                raise _damaged(path, "its header is not sound")
            if name_length > 1023 or (name_at and name_at > length):
                raise _damaged(path, "its header names a backing file outside of itself")
            backing = os.pread(file.fileno(), name_length, name_at) if name_at else b""
    except OSError as error:
        raise MachineError(
            f"the disk {path} cannot be read: {error.strerror or error}",
            hint="look at the file and at who may read it",
        ) from error
    below = backing.decode(errors="replace")
    if below:
        # What comes is the disk as the guest sees it, with what lies below.
        try:
            content += (path.parent / below).stat().st_blocks * _SECTOR
        except OSError:
            content = size
    return ImageFacts(
        size_bytes=size,
        content_bytes=min(content, size) if regular else size,
        cluster_bytes=1 << bits,
        backing=below,
        regular=regular,
    )


def _damaged(path: Path, what: str) -> MachineError:
    return MachineError(
        f"the disk {path} is no sound qcow2 image: {what}",
        hint="check it with `qemu-img check`, and restore it from a copy if it is damaged",
    )


def find_tool() -> str | None:
    """The qemu-img of this host."""
    return shutil.which("qemu-img")


def prepare_image(path: Path, format: str, facts: ImageFacts) -> Path:
    """Make an empty image beside the place of a disk that comes; `publish_image` gives it its name.

    Raises: Refused, with the cure, if there is no room; MachineError.
    """
    if not path.parent.is_dir():
        raise Refused(
            f"there is no folder {path.parent} for the disk {path.name}",
            hint="make the folder on the target's node, or set files in [machine.qemu]",
        )
    room_for(path.parent, facts.content_bytes)
    unfinished = unfinished_of(path)
    try:
        unfinished.unlink(missing_ok=True)
        if format == "raw":
            with unfinished.open("xb") as file:
                os.ftruncate(file.fileno(), facts.size_bytes)
        else:
            _make_qcow2(unfinished, facts)
    except OSError as error:
        raise Refused(
            f"the disk {path} cannot be made: {error.strerror or error}",
            hint="let the node's user write to that folder of the target",
        ) from error
    return unfinished


def publish_image(path: Path) -> None:
    """Give a prepared image its name. What is there is never written over.

    Raises: Refused if there is something; OSError.
    """
    try:
        os.link(unfinished_of(path), path)
    except FileExistsError:
        raise exists(path) from None
    finally:
        unfinished_of(path).unlink(missing_ok=True)
    sync_folder(path.parent)


def unfinished_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.novacron-new")


def _make_qcow2(path: Path, facts: ImageFacts) -> None:
    tool = find_tool()
    if tool is None:
        raise Refused(
            "qemu-img, which makes qcow2 images, is not on the target",
            hint="install qemu-utils there (scripts/debian-packages does)",
        )
    size = str(facts.size_bytes)
    options = f"cluster_size={facts.cluster_bytes}" if facts.cluster_bytes else "compat=1.1"
    try:
        done = subprocess.run(
            [tool, *("create", "-q", "-f", "qcow2", "-o", options), str(path), size],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CREATE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"qemu-img does not end: {error}") from error
    if done.returncode:
        raise MachineError(f"qemu-img cannot make {path}: {done.stderr.strip()[-300:]}")


def exists(path: Path) -> Refused:
    return Refused(
        f"there is a file {path} already, and this machine did not leave it here",
        hint="move it away or remove it on the target's node, or name another path in the "
        "machine's disks",
    )


def room_for(folder: Path, content_bytes: int) -> None:
    """Raises Refused if a disk of so much content does not fit."""
    free = shutil.disk_usage(folder).free
    if free < content_bytes + RESERVE_BYTES:
        raise Refused(
            f"{folder} has {free} bytes free, and a disk of {content_bytes} bytes comes",
            hint=f"free {content_bytes + RESERVE_BYTES - free} bytes there, or put the machine's "
            "disks elsewhere",
        )


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Whose a disk is.


@frozen(kw_only=True)
class Left:
    """A note beside a disk: that a machine has left it.

    Attributes:
        machine, tenant: Whose it is.
        format, size_bytes: Of the disk.
        inode, length, changed_ns: How the file looked then.
    """

    machine: str
    tenant: str
    format: str
    size_bytes: int
    inode: int
    length: int
    changed_ns: int


def note_of(disk: Path) -> Path:
    """Where the note of a disk lies."""
    return disk.with_name(f"{disk.name}.novacron")


def leave_note(disk: Path, machine: str, tenant: str, format: str) -> None:
    """Note that a machine has left its disk; nobody has it open any more.

    Raises: OSError, MachineError; there is no note then.
    """
    size = read_image(disk, format).size_bytes
    status = disk.stat()
    left = Left(
        machine=machine,
        tenant=tenant,
        format=format,
        size_bytes=size,
        inode=status.st_ino,
        length=status.st_size,
        changed_ns=status.st_mtime_ns,
    )
    write_json(note_of(disk), asdict(left))


def left_by(disk: Path, machine: str, tenant: str) -> Left | None:
    """The note beside a disk if that machine left it and nobody has touched it since."""
    try:
        left = Left(**read_json(note_of(disk)))
        status = disk.stat()
    except (OSError, ValueError, TypeError):
        return None
    same = (left.inode, left.length, left.changed_ns) == (
        *(status.st_ino, status.st_size, status.st_mtime_ns),
    )
    return left if same and (left.machine, left.tenant) == (machine, tenant) else None


def forget_note(disk: Path) -> None:
    """From now on it is a machine's disk again."""
    with contextlib.suppress(FileNotFoundError):
        note_of(disk).unlink()


def remove_disk(disk: Path) -> None:
    """Remove a disk and its note; what is not there is fine. Raises OSError."""
    disk.unlink(missing_ok=True)
    forget_note(disk)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a small file; durable when it returns. Raises OSError."""
    unfinished = path.with_name(f".{path.name}.new")
    with unfinished.open("wb") as file:
        file.write(json.dumps(values).encode())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """Raises OSError, ValueError."""
    with path.open("rb") as file:
        found = json.loads(file.read(_NOTE_BYTES_MAX * 16))
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no table")
    return found


# The same file?


def place_proof(disk: Path) -> Path:
    """Where a destination writes what its source has to find beside the same disk."""
    return disk.with_name(f".{disk.name}.novacron-same")


def device_identity(path: Path) -> str:
    """What a block device is known by on every host that sees it; empty if nothing is."""
    try:
        status = path.stat()
    except OSError:
        return ""
    if not stat.S_ISBLK(status.st_mode):
        return ""
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    for name in ("dm/uuid", "wwid", "device/wwid"):
        with contextlib.suppress(OSError):
            said = Path(f"/sys/dev/block/{number}/{name}").read_text().strip()
            if said:
                return f"{name} {said}"
    return ""


def write_proof(disk: Path) -> str:
    """At the destination: say what this disk is, so that the source can prove that it is its own.

    Returns: ``device …`` or ``file …``; in the second case a file lies beside the disk until
        `remove_proof`.
    Raises: NotFound, ConfigError.
    """
    if not disk.exists():
        raise NotFound(
            f"there is no disk {disk} on the target",
            hint="mount the shared storage there, or move the disks too (--with-storage)",
        )
    if not disk.is_file():
        identity = device_identity(disk)
        if not identity:
            raise ConfigError(
                f"nothing tells whether the device {disk} is the same one on both nodes",
                hint="use a device with a WWID or a device-mapper UUID, or a file",
            )
        return f"device {identity}"
    proof = f"file {secrets.token_hex(16)}"
    try:
        place_proof(disk).write_text(proof)
    except OSError as error:
        raise ConfigError(
            f"beside the disk {disk} nothing can be written ({error.strerror}), so it cannot be "
            "told whether both nodes see the same",
            hint="let the node's user write to that folder on both nodes",
        ) from error
    return proof


def remove_proof(disk: Path) -> None:
    with contextlib.suppress(OSError):
        place_proof(disk).unlink(missing_ok=True)


def check_proof(disk: Path, name: str, proof: str) -> None:
    """At the source: raise Refused unless the destination's disk is this one."""
    if proof.startswith("device "):
        same = proof == f"device {device_identity(disk)}"
    else:
        try:
            found = place_proof(disk).read_text()
        except (OSError, ValueError):
            found = ""
        same = bool(found) and secrets.compare_digest(found.encode(), proof.encode())
        same = same and name == disk.name
    if not same:
        raise Refused(
            f"the disk {disk} is not the one that the target finds as {name!r}",
            hint="mount the same storage on both nodes at that path, or move the disks too "
            "(--with-storage)",
        )
