"""What a machine's own arguments for QEMU ask of a host: files, networks, devices, sockets.

Reads them as QEMU does (a comma in a value is written twice; devices and block nodes may also be
JSON). What it does not know it passes over: QEMU itself says no to that, later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import field, frozen

# Options whose whole value is a file that the machine reads.
_FILE_OPTIONS: Final = (
    "bios",
    "pflash",
    "cdrom",
    "dtb",
    "fda",
    "fdb",
    "mtdblock",
    "sd",
    "option-rom",
)
_DISK_OPTIONS: Final = ("hda", "hdb", "hdc", "hdd")
# Other options with a key that names a file: (option, key).
_FILE_KEYS: Final = (
    ("fw_cfg", "file"),
    ("smbios", "file"),
    ("acpitable", "file"),
    ("acpitable", "data"),
    ("option-rom", "romfile"),
)
# A file name that is no file: nbd:…, http://…, fat:rw:…
_PROTOCOL: Final = re.compile(r"[a-z][a-z0-9+.-]*:")
# Devices that are a piece of this very host.
_HOST_DEVICES: Final = re.compile(
    r"vfio-.*|usb-host|scsi-generic|scsi-block|vhost-vdpa-device.*|u2f-passthru|ccid-card-passthru"
    r"|ipmi-bmc-extern|virtio-input-host(-.*)?|usb-redir"
)
# Network back ends that stay inside this process: nothing of the host is asked for but ports.
_OWN_NETWORKS: Final = ("user", "hubport", "passt")
DEFAULT_BRIDGE: Final = "br0"
DEFAULT_MAC: Final = "52:54:00:12:34:56"


@frozen(kw_only=True)
class Option:
    """One option with its value taken apart.

    Attributes:
        name: Without its dashes.
        first: What stands before the first comma, if it is no ``key=value``.
        values: The ``key=value`` pairs; a key alone is ``on``.
        words: The arguments as they were written.
    """

    name: str
    first: str = ""
    values: Mapping[str, Any] = field(factory=dict)
    words: tuple[str, ...] = ()

    def get(self, *keys: str) -> str:
        """The first of the keys that is there, as text."""
        for key in keys:
            if (value := self.values.get(key)) not in (None, ""):
                return str(value)
        return ""

    def on(self, key: str) -> bool:
        return str(self.values.get(key, "")).lower() in ("on", "true", "yes")


@frozen(kw_only=True)
class File:
    """A file that the arguments name.

    Attributes:
        path: As written.
        medium: Something to look at, such as a CD-ROM; else something the machine is made of.
        written: The guest may change it: in truth a disk.
        words: The arguments that name it.
    """

    path: str
    medium: bool = False
    written: bool = False
    words: tuple[str, ...] = ()


@frozen(kw_only=True)
class Network:
    """One connection to a network of the host.

    Attributes:
        kind: ``bridge``, ``tap``, ``user``, ``vde``, …
        name: The bridge's or the device's, empty if it has none.
        helper: The program that sets it up; empty for QEMU's own.
        script: Run when it is set up; empty for QEMU's default, ``no`` for none.
        ports: (protocol, address, port) that it takes of the host.
    """

    kind: str
    name: str = ""
    helper: str = ""
    script: str = ""
    ports: tuple[tuple[str, str, int], ...] = ()


def options(arguments: Sequence[str]) -> Iterator[Option]:
    """The options among a machine's arguments."""
    at = 0
    while at < len(arguments):
        word = arguments[at]
        at += 1
        if not word.startswith("-") or word == "-":
            continue
        name = word.lstrip("-")
        if at < len(arguments) and not _begins_option(arguments[at]):
            first, values = _take_apart(arguments[at])
            yield Option(name=name, first=first, values=values, words=(word, arguments[at]))
            at += 1
        else:
            yield Option(name=name, words=(word,))


def _begins_option(word: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", word))


def _take_apart(value: str) -> tuple[str, dict[str, Any]]:
    if value.startswith("{"):
        try:
            made = json.loads(value)
        except (ValueError, RecursionError):
            return value, {}
        return str(made.get("driver") or made.get("qom-type") or made.get("type") or ""), made
    parts = [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]
    first = ""
    values: dict[str, Any] = {}
    for number, part in enumerate(parts):
        key, equals, text = part.partition("=")
        if not equals and number == 0:
            first = part
        else:
            values[key] = text if equals else "on"
    return first, values


def files(found: Sequence[Option]) -> Iterator[File]:
    """The files that must be there before QEMU starts."""
    for option in found:
        words = option.words
        if option.name in _FILE_OPTIONS:
            medium = option.name in ("cdrom", "fda", "fdb")
            yield from _file(_whole(option), words, medium=medium)
        elif option.name in _DISK_OPTIONS:
            yield from _file(_whole(option), words, written=True)
        elif option.name == "drive":
            medium = option.get("media") == "cdrom"
            kept = medium or option.on("readonly") or option.on("snapshot")
            kept = kept or option.get("if") == "pflash"
            yield from _file(option.get("file"), words, medium=medium, written=not kept)
        elif option.name == "blockdev":
            node = option.values
            inner = node.get("file") if isinstance(node.get("file"), Mapping) else {}
            path = option.get("filename", "file.filename") or str((inner or {}).get("filename", ""))
            kept = option.on("read-only") or node.get("read-only") is True
            yield from _file(path, words, written=not kept)
        else:
            for name, key in _FILE_KEYS:
                if option.name == name:
                    yield from _file(option.get(key), words)


def _whole(option: Option) -> str:
    return option.words[1].replace(",,", ",") if len(option.words) > 1 else ""


def _file(
    path: str, words: tuple[str, ...], *, medium: bool = False, written: bool = False
) -> Iterator[File]:
    path = path.removeprefix("file:")
    if path and not _PROTOCOL.match(path) and path != "none":
        yield File(path=path, medium=medium, written=written, words=words)


def networks(found: Sequence[Option]) -> Iterator[Network]:
    """The networks of the host that the machine is joined to."""
    for option in found:
        if option.name not in ("netdev", "nic", "net"):
            continue
        kind = option.first or option.get("type")
        if kind == "bridge":
            name, helper = option.get("br") or DEFAULT_BRIDGE, option.get("helper")
            yield Network(kind=kind, name=name, helper=helper)
        elif kind == "tap" and not option.get("fd", "fds"):
            if helper := option.get("helper"):
                name = option.get("br") or DEFAULT_BRIDGE
                yield Network(kind="bridge", name=name, helper=helper)
            else:
                yield Network(kind=kind, name=option.get("ifname"), script=option.get("script"))
        elif kind == "user":
            yield Network(kind=kind, ports=tuple(_ports(option)))


def _ports(option: Option) -> Iterator[tuple[str, str, int]]:
    # The key may come several times; only the words have them all.
    for protocol, address, port in re.findall(
        r"(?:^|,)hostfwd=(tcp|udp|):([^:,]*):(\d{1,5})-", option.words[-1]
    ):
        yield protocol or "tcp", address, int(port)


def macs(found: Sequence[Option]) -> Iterator[str]:
    """The guest's hardware addresses on networks that other machines may be on, too."""
    inside = {
        option.get("id")
        for option in found
        if option.name == "netdev" and (option.first or option.get("type")) in _OWN_NETWORKS
    }
    # QEMU counts the cards that were given no address up from its default one.
    unnamed = int(DEFAULT_MAC.replace(":", ""), 16)
    for option in found:
        card = option.name == "device" and "netdev" in option.values
        card = card or (option.name == "nic" and (option.first or option.get("type")) != "none")
        if not card:
            continue
        mac = option.get("mac")
        if not mac:
            mac = ":".join(re.findall("..", f"{unnamed:012x}"))
            unnamed += 1
        own = (
            option.first in _OWN_NETWORKS
            if option.name == "nic"
            else option.get("netdev") in inside
        )
        if not own:
            yield mac.lower().replace("-", ":")


def host_devices(found: Sequence[Option]) -> Iterator[Option]:
    """Devices that belong to this host and cannot come along."""
    for option in found:
        if option.name == "device":
            if _HOST_DEVICES.fullmatch(option.first or option.get("driver")):
                yield option
        elif option.name in ("virtfs", "fsdev") or (
            option.name == "usbdevice" and _whole(option).startswith("host:")
        ):
            yield option


def without(arguments: Sequence[str], gone: Sequence[Option]) -> tuple[str, ...]:
    """The arguments without some of their options."""
    left = list(arguments)
    for option in gone:
        span = len(option.words)
        for at in range(len(left) - span + 1):
            if tuple(left[at : at + span]) == option.words:
                del left[at : at + span]
                break
    return tuple(left)


def tpm_sockets(found: Sequence[Option]) -> Iterator[str]:
    """Where the machine expects the emulator of its TPM."""
    sockets = {
        option.get("id"): option.get("path")
        for option in found
        if option.name == "chardev" and option.first == "socket"
    }
    for option in found:
        if option.name == "tpmdev" and option.first == "emulator":
            yield sockets.get(option.get("chardev"), "")


def passed_tpms(found: Sequence[Option]) -> list[Option]:
    """Those that are the host's own chip, whose keys cannot leave it."""
    return [option for option in found if option.name == "tpmdev" and option.first == "passthrough"]


def locks_memory(found: Sequence[Option]) -> bool:
    return any(option.name == "overcommit" and option.on("mem-lock") for option in found)


@frozen(kw_only=True)
class MemoryFile:
    """Memory that is taken from a folder, or from huge pages; ``size`` as QEMU writes it."""

    folder: str
    size_bytes: int
    huge: bool = False
    page_bytes: int = 0


def memory_files(found: Sequence[Option]) -> Iterator[MemoryFile]:
    """Memory that does not come from where all memory does."""
    for option in found:
        if option.name != "object":
            continue
        kind = option.first or option.get("qom-type")
        size = read_size(option.get("size"))
        if kind == "memory-backend-file" and option.get("mem-path"):
            yield MemoryFile(folder=option.get("mem-path"), size_bytes=size)
        elif kind == "memory-backend-memfd" and option.on("hugetlb"):
            page = read_size(option.get("hugetlbsize")) or 2 << 20
            yield MemoryFile(folder="", size_bytes=size, huge=True, page_bytes=page)


def read_size(text: str) -> int:
    """A size as QEMU writes it (``64M``, ``1G``; a plain number is bytes); 0 if it is none."""
    if not (read := re.fullmatch(r"(\d{1,18})([bkmgt]?)(?:i?b)?", text.lower())):
        return 0
    shift: int = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[read[2]]
    return int(read[1]) << shift
