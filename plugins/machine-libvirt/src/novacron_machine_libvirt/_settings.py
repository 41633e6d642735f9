"""What an operator may set: for the node, and for each machine."""

from __future__ import annotations

import difflib
from typing import Any, Final

import attrs
from attrs import field, frozen
from novacron import ConfigError, MachineSpec

XML_CHARACTERS_MAX: Final = 1 << 20


@frozen(kw_only=True)
class Settings:
    """The section ``[machine.libvirt]``.

    Attributes:
        uri: libvirt's address of this host's libvirtd: ``qemu:///system``, ``qemu:///session``, or
            with a socket of its own, ``qemu+unix:///session?socket=/path``.
        socket_dir: Where the sockets of moves and consoles lie. libvirtd connects to those that the
            node makes, and QEMU makes others there, so both need access. Empty for a folder of the
            node's user in XDG_RUNTIME_DIR, /run/user/UID or the folder for temporary files.
        answer_timeout_s: How long libvirtd may take for one call, a start included.
        restart_s: How long libvirtd may be away, for a restart, before a call to it fails.
        load_timeout_s: How long an arriving machine may take to load after its last byte.
        max_rounds: Passes over memory after which a copy is said not to converge.
    """

    uri: str = "qemu:///system"
    socket_dir: str = ""
    answer_timeout_s: float = field(default=60.0, validator=attrs.validators.gt(0))
    restart_s: float = field(default=20.0, validator=attrs.validators.ge(0))
    load_timeout_s: float = field(default=60.0, validator=attrs.validators.gt(0))
    max_rounds: int = field(default=200, validator=attrs.validators.ge(2))


@frozen(kw_only=True)
class MachineSettings:
    """The settings of one machine. Exactly one of the first three says what it is.

    Attributes:
        xml: A domain's XML. The domain is NovaCron's: named as the machine, made at its start,
            removed at its end, its first serial port the machine's console.
        xml_file: A file with the same, read when the machine starts for the first time.
        domain: The name of a domain that libvirtd has already. It is taken over as it is, running
            or not.
        shared: A promise that every node reaches the very same disks at the same paths.
    """

    xml: str = ""
    xml_file: str = ""
    domain: str = ""
    shared: bool = False

    @property
    def own(self) -> bool:
        """Whether NovaCron made the domain."""
        return not self.domain


def machine_settings(spec: MachineSpec) -> MachineSettings:
    """The spec's settings, checked. Raises ConfigError, which names the setting."""
    where = f"machine {spec.name}: "
    known = {a.name: a.type for a in attrs.fields(MachineSettings)}
    for name, value in spec.settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{where}{name} is no setting of a libvirt machine",
                hint=f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}",
            )
        wanted: type[Any] = bool if name == "shared" else str
        if type(value) is not wanted:
            kind = "true or false" if wanted is bool else "text"
            raise ConfigError(f"{where}{name} is {value!r}, not {kind}", setting=name)
    settings = MachineSettings(**spec.settings)
    given = [name for name in ("xml", "xml_file", "domain") if getattr(settings, name)]
    if len(given) != 1:
        said = " and ".join(given) if given else "none of them"
        raise ConfigError(
            f"{where}{said} says what it is",
            hint="give one of xml, xml_file and domain (the name of a domain that exists)",
        )
    if len(settings.xml) > XML_CHARACTERS_MAX:
        raise ConfigError(f"{where}its xml has more than {XML_CHARACTERS_MAX} characters")
    return settings
