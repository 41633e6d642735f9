"""A domain's XML: read, held to bounds, and fitted to the node that it is for.

What comes from another node is a stranger's word: it is bounded, has no document type (and so no
entities), and is read for what the driver must know before libvirtd sees any of it.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from attrs import frozen
from novacron import ConfigError

from novacron_machine_libvirt._settings import XML_CHARACTERS_MAX

QEMU_NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", QEMU_NAMESPACE)

_UNITS: Final = {
    "b": 1,
    "bytes": 1,
    "KB": 10**3,
    "k": 1 << 10,
    "KiB": 1 << 10,
    "MB": 10**6,
    "M": 1 << 20,
    "MiB": 1 << 20,
    "GB": 10**9,
    "G": 1 << 30,
    "GiB": 1 << 30,
    "TB": 10**12,
    "T": 1 << 40,
    "TiB": 1 << 40,
}


@frozen(kw_only=True)
class Disk:
    """One disk, as far as a move must know.

    Attributes:
        target: What the guest knows it by: ``vda``.
        kind: ``file``, ``block``, ``network`` and so on.
        path: The image or device on the host; empty for an empty drive and for other kinds.
        written: Whether the guest may write to it.
    """

    target: str
    kind: str
    path: str
    written: bool


class DomainXml:
    """One domain's description.

    Args:
        text: The XML.
        where: What errors begin with.

    Raises: ConfigError if it is not a domain's XML.
    """

    def __init__(self, text: str, where: str) -> None:
        if len(text) > XML_CHARACTERS_MAX:
            raise ConfigError(f"{where}: over {XML_CHARACTERS_MAX} characters of XML")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ConfigError(f"{where}: XML with a document type is not taken", hint="remove it")
        try:
            self.root = ET.fromstring(text)
        except ET.ParseError as error:
            raise ConfigError(f"{where}: this is no XML: {error}") from error
        if self.root.tag != "domain":
            raise ConfigError(
                f"{where}: this is a <{self.root.tag}>, not a <domain>",
                hint="`virsh dumpxml NAME` shows what is meant",
            )
        self._where = where
        self.virt_type = self.root.get("type", "")
        self.name = (self.root.findtext("name") or "").strip()
        self.memory_bytes = self._memory()

    def _memory(self) -> int:
        element = self.root.find("memory")
        try:
            assert element is not None
            number = int((element.text or "").strip())
            return number * _UNITS[element.get("unit", "KiB")]
        except (AssertionError, ValueError, KeyError) as error:
            raise ConfigError(f"{self._where}: its <memory> is missing or wrong") from error

    def without_passwords(self) -> str:
        """The XML for others' eyes: libvirt itself leaves passwords in what it calls migratable."""
        for element in self.root.iter():
            element.attrib.pop("passwd", None)
        return ET.tostring(self.root, encoding="unicode")

    @property
    def uuid(self) -> str:
        """In its usual form, "" if there is none. Raises ConfigError if it is wrong."""
        given = (self.root.findtext("uuid") or "").strip()
        try:
            return str(uuids.UUID(given)) if given else ""
        except ValueError as error:
            raise ConfigError(f"{self._where}: {given!r} is no UUID") from error

    # -- what examinations ask --------------------------------------------------------------------

    @property
    def architecture(self) -> str:
        return self._type().get("arch", "x86_64")

    @property
    def machine_type(self) -> str:
        return self._type().get("machine", "")

    def _type(self) -> ET.Element:
        found = self.root.find("os/type")
        return ET.Element("type") if found is None else found

    @property
    def cpu(self) -> ET.Element | None:
        return self.root.find("cpu")

    def disks(self) -> Iterator[Disk]:
        for disk in self.root.iterfind("devices/disk"):
            source, target = disk.find("source"), disk.find("target")
            found = {} if source is None else source.attrib
            yield Disk(
                target="?" if target is None else target.get("dev", "?"),
                kind=disk.get("type", "file"),
                path=found.get("file") or found.get("dev") or "",
                written=disk.find("readonly") is None and disk.get("device") != "cdrom",
            )

    def networks(self) -> Iterator[tuple[str, str]]:
        """Kind and name of what the interfaces are connected to: ("network", "default")."""
        for interface in self.root.iterfind("devices/interface"):
            kind = interface.get("type", "")
            source = interface.find("source")
            if source is not None and kind in ("network", "bridge"):
                yield kind, source.get(kind, "")

    def files(self) -> Iterator[str]:
        """Files of the host that it is started from, disks not counted."""
        for path in ("kernel", "initrd", "dtb", "loader"):
            if text := (self.root.findtext(f"os/{path}") or "").strip():
                yield text

    def passed_through(self) -> Iterator[str]:
        """Devices of the host itself, in words."""
        for device in self.root.iterfind("devices/hostdev"):
            yield f"<hostdev type='{device.get('type', '')}'>"
        for interface in self.root.iterfind("devices/interface[@type='hostdev']"):
            mac = interface.find("mac")
            yield f"<interface type='hostdev'> {'' if mac is None else mac.get('address', '')}"
        for tpm in self.root.iterfind("devices/tpm/backend[@type='passthrough']"):
            yield f"<tpm type='{tpm.get('type')}'>"

    def shared_folders(self) -> int:
        return len(self.root.findall("devices/filesystem"))

    def has_password(self) -> bool:
        return any(g.get("passwd") for g in self.root.iterfind("devices/graphics"))

    def has_qemu_arguments(self) -> bool:
        return any(element.tag.startswith(f"{{{QEMU_NAMESPACE}}}") for element in self.root)

    def memory_ranges(self) -> list[tuple[int, int]]:
        """Where the guest's memory lies for the guest: address and length, in order.

        QEMU leaves a hole for devices below 4 GiB once memory is large; where it begins is part of
        the machine type (hw/i386/pc_q35.c, pc_piix.c and microvm.c state it).
        """
        holes = {"q35": (0xB0000000, 2 << 30), "i440fx": (0xE0000000, 3 << 30)}
        holes["microvm"] = (0xC0000000, 3 << 30)
        for family, (least, below) in holes.items():
            if family in self.machine_type:
                size = self.memory_bytes
                if size < least:
                    return [(0, size)]
                return [(0, below), (4 << 30, size - below)]
        raise ConfigError(f"{self._where}: where {self.machine_type} has its memory is not known")

    # -- made for a node --------------------------------------------------------------------------

    def fitted(self, name: str, uuid: str, console: Path, log: Path) -> str:
        """As NovaCron's own domain on this node."""
        self._set("name", name)
        self._set("uuid", uuid)
        devices = self.root.find("devices")
        if devices is None:
            devices = ET.SubElement(self.root, "devices")
        # The first console is the first serial port once more; libvirt makes it again.
        for old in devices.findall("console"):
            target = old.find("target")
            if target is None or target.get("type", "serial") == "serial":
                devices.remove(old)
        serial = devices.find("serial")
        if serial is None:
            serial = ET.SubElement(devices, "serial")
        serial.set("type", "unix")
        for tag in ("source", "protocol", "log"):
            for old in serial.findall(tag):
                serial.remove(old)
        serial.insert(0, ET.Element("log", {"file": str(log), "append": "on"}))
        serial.insert(0, ET.Element("source", {"mode": "bind", "path": str(console)}))
        return self.text()

    def without_emulator(self) -> None:
        """Let the node's libvirtd take its own QEMU: paths differ between hosts, and a stranger
        does not say which program runs here."""
        devices = self.root.find("devices")
        for emulator in [] if devices is None else devices.findall("emulator"):
            assert devices is not None
            devices.remove(emulator)

    def text(self) -> str:
        return ET.tostring(self.root, encoding="unicode")

    def _set(self, tag: str, text: str) -> None:
        element = self.root.find(tag)
        if element is None:
            element = ET.Element(tag)
            self.root.insert(0, element)
        element.text = text
