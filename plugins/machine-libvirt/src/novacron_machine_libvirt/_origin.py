"""What a machine's source tells its destination, and how that is read: as a stranger's word."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Mapping
from typing import Any, Final

import attrs
from attrs import frozen
from novacron import Refused

from novacron_machine_libvirt._settings import XML_CHARACTERS_MAX

_TEXT_MAX: Final = 256


@frozen(kw_only=True)
class Origin:
    """Facts of a domain that may leave.

    Attributes:
        uuid: The domain's.
        xml: The domain as libvirt describes it for a migration, without secrets.
        libvirt: The daemon's version: major * 1,000,000 + minor * 1,000 + release.
        qemu: QEMU's, in the same way.
        storage: What becomes of the disks, see `novacron.MoveWish`.
    """

    uuid: str
    xml: str
    libvirt: int
    qemu: int
    storage: str = ""

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(self)


def read_origin(origin: Mapping[str, Any]) -> Origin:
    """Raises Refused, naming what is wrong with it."""
    try:
        limits = {"xml": XML_CHARACTERS_MAX}
        texts: dict[str, str] = {}
        for name in ("uuid", "xml", "storage"):
            value = origin.get(name, "") if name == "storage" else origin[name]
            if not isinstance(value, str) or len(value) > limits.get(name, _TEXT_MAX):
                raise ValueError(f"{name} is no text of a sound length")
            texts[name] = value
        texts["uuid"] = str(uuids.UUID(texts["uuid"]))
        numbers = {name: origin[name] for name in ("libvirt", "qemu")}
        for name, value in numbers.items():
            if type(value) is not int or not 0 <= value < 1 << 40:
                raise ValueError(f"{name} is no version")
    except (KeyError, ValueError) as error:
        raise Refused(
            f"what the source says of the machine is not understood: {error}",
            hint="both nodes need the same novacron-machine-libvirt, and the machine must run",
        ) from error
    return Origin(
        uuid=texts["uuid"],
        xml=texts["xml"],
        libvirt=numbers["libvirt"],
        qemu=numbers["qemu"],
        storage=texts["storage"],
    )
