"""What stands in the way of a domain's leaving (at the source) and coming (at the target).

All of it by questions to libvirtd, which change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from novacron import ConfigError, MachineSpec, MoveWish, NovacronError, Obstacle

from novacron_machine_libvirt import _libvirt as libvirt
from novacron_machine_libvirt import _phases
from novacron_machine_libvirt._daemon import is_missing, words
from novacron_machine_libvirt._domain_xml import DomainXml
from novacron_machine_libvirt._home import Record
from novacron_machine_libvirt._origin import Origin
from novacron_machine_libvirt._settings import MachineSettings


def describe(connection: libvirt.Connection, uuid: str) -> Origin:
    """What the destination must know. Without secrets: it is shown to operators too."""
    domain = connection.find_uuid(uuid)
    xml = domain.xml(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
    parsed = DomainXml(xml, f"domain {domain.name()}")
    return Origin(
        uuid=uuid,
        xml=parsed.without_passwords() if parsed.has_password() else xml,
        libvirt=connection.libvirt_version(),
        qemu=connection.qemu_version(),
    )


def process_id(connection: libvirt.Connection, record: Record) -> int | None:
    """The domain's QEMU, by the file that libvirtd keeps where its sockets are."""
    domain = connection.find_uuid(record.uuid)
    _, _, query = connection.uri().partition("socket=")
    folder = Path(query).parent / "qemu" / "run" if query else Path("/run/libvirt/qemu")
    try:
        return int((folder / f"{domain.name()}.pid").read_text())
    except (OSError, ValueError):
        return None


# -- at the source --------------------------------------------------------------------------------


def leaving(domain: libvirt.Domain, settings: MachineSettings, wish: MoveWish) -> list[Obstacle]:
    """What stands in the way of its leaving."""
    found: list[Obstacle] = []
    xml = DomainXml(domain.xml(libvirt.VIR_DOMAIN_XML_SECURE), f"domain {domain.name()}")
    found += _about_disks(xml, settings, wish)
    for device in xml.passed_through():
        found.append(
            Obstacle(
                code="device.passthrough",
                what=f"the domain uses a device of this very host: {device}",
                cure=f"detach it: virsh detach-device {domain.name()}; it can be attached again "
                "at the target",
                facts={"device": device},
            )
        )
    if xml.shared_folders():
        found.append(
            Obstacle(
                code="device.shared-folder",
                what="the domain has folders of this host (<filesystem>), whose state cannot move",
                cure="unmount them in the guest, then virsh detach-device",
            )
        )
    if xml.has_password():
        found.append(
            Obstacle(
                code="graphics.password",
                what="the domain's display has a password, and secrets do not travel",
                cure="take passwd out of <graphics>; let its display listen on a socket instead",
                facts={"setting": "graphics/@passwd"},
            )
        )
    if domain.is_active():
        stays = any(obstacle.code.startswith("disk.") for obstacle in found)
        found += [o for o in _ask_libvirt(domain) if not (stays and o.code == "disk.not-shared")]
    return found


def _about_disks(xml: DomainXml, settings: MachineSettings, wish: MoveWish) -> Iterator[Obstacle]:
    local = [d for d in xml.disks() if d.path and d.written]
    if wish.storage == "copy" and local:
        yield Obstacle(
            code="disk.not-copied",
            what="the driver libvirt moves memory; these disks would stay: "
            + ", ".join(d.path for d in local),
            cure="put them on storage that both nodes reach at the same path, then "
            "--storage shared",
            facts={"option": "storage", "value": "shared", "disks": [d.path for d in local]},
        )
    elif local and wish.storage != "shared" and not settings.shared:
        yield Obstacle(
            code="disk.stays",
            what=f"the move would leave its disks behind: {', '.join(d.path for d in local)}",
            cure="put them on storage that both nodes reach at the same path, and say so: "
            "--storage shared, or shared = true in the machine's settings",
            facts={"option": "storage", "value": "shared", "disks": [d.path for d in local]},
        )


def _ask_libvirt(domain: libvirt.Domain) -> Iterator[Obstacle]:
    if domain.job()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
        yield Obstacle(
            code="machine.leaving",
            what="libvirtd has a job of this domain under way (a move, a dump, a save)",
            cure=f"wait for its end, or cancel it: virsh domjobabort {domain.name()}",
        )
        return
    try:
        _phases.begin(domain)
    except libvirt.LibvirtError as error:
        if error.code == libvirt.VIR_ERR_MIGRATE_UNSAFE:
            yield Obstacle(
                code="disk.not-shared",
                what=f"libvirt says of its disks: {words(error)}",
                cure="put them on storage that libvirt knows to be shared (NFS, CephFS, GFS2, "
                "OCFS2, iSCSI, RBD), with cache='none'",
                facts={"libvirt": error.code},
            )
            return
        yield Obstacle(
            code="machine.not-migratable",
            what=f"libvirt says: {words(error)}",
            cure="change what libvirt names in the domain's XML (virsh edit), and start it anew",
            facts={"libvirt": error.code},
        )


# -- at the target --------------------------------------------------------------------------------


def unsound(error: NovacronError) -> Obstacle:
    """The origin, or the settings, are not understood here."""
    return _at_target("origin.unsound", error.message, error.hint or "see the source's version")


def _at_target(code: str, what: str, cure: str, *, blocks: bool = True, **facts: Any) -> Obstacle:
    return Obstacle(code=code, what=what, cure=cure, blocks=blocks, side="target", facts=facts)


def strangers(connection: libvirt.Connection, name: str, uuid: str) -> Iterator[Obstacle]:
    """Domains that have the name or the UUID already."""
    ways = (
        ("name", name, connection.find_name),
        ("UUID", uuid, connection.find_uuid),
    )
    for kind, value, look_up in ways:
        try:
            found = look_up(value)
        except libvirt.LibvirtError as error:
            if is_missing(error):
                continue
            raise
        yield _at_target(
            "machine.exists",
            f"libvirtd has a domain {found.name()} already, with the {kind} {value}",
            f"see whether it is needed, then remove it (virsh undefine {found.name()})",
            domain=found.name(),
            uuid=found.uuid(),
        )
        return


def arriving(
    connection: libvirt.Connection, spec: MachineSpec, settings: MachineSettings, told: Origin
) -> list[Obstacle]:
    """What stands in the way of a domain's coming."""
    try:
        xml = DomainXml(told.xml, f"machine {spec.name}")
        name, memory = xml.name, xml.memory_bytes
        if xml.uuid != told.uuid:
            raise ConfigError(f"its UUID is {told.uuid}, and {xml.uuid} in its XML")
    except ConfigError as error:
        return [unsound(error)]
    found: list[Obstacle] = []
    expected = settings.domain or spec.name
    if name != expected:
        found.append(
            _at_target(
                "origin.unsound",
                f"a domain named {name} wants to come as {expected}",
                "rename it at its source",
            )
        )
    if memory != spec.memory_bytes:
        found.append(
            _at_target(
                "origin.unsound",
                f"the domain has {memory} bytes of memory, the machine was said to have "
                f"{spec.memory_bytes}",
                f"say memory_bytes = {memory} at its source",
                setting="memory_bytes",
                value=memory,
            )
        )
    found += strangers(connection, expected, told.uuid)
    if xml.has_qemu_arguments():
        found.append(
            _at_target(
                "settings.not-taken",
                "its XML has arguments for QEMU itself (<qemu:commandline>), which are not taken "
                "from another node",
                "use libvirt's own elements for what they do, and start it anew",
            )
        )
    found += _about_host(connection, xml)
    found += _about_files(xml)
    found += _about_networks(connection, xml)
    if told.qemu > connection.qemu_version():
        found.append(
            _at_target(
                "qemu.older",
                f"QEMU is {_version(connection.qemu_version())} here and {_version(told.qemu)} at "
                "the source",
                "upgrade it here first, if the move fails",
                blocks=False,
            )
        )
    return found


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _about_host(connection: libvirt.Connection, xml: DomainXml) -> Iterator[Obstacle]:
    """Machine type, processor and memory."""
    try:
        text = connection.domain_capabilities(
            xml.architecture, xml.machine_type or None, xml.virt_type
        )
    except libvirt.LibvirtError as error:
        known = machine_types(connection, xml.architecture, xml.virt_type)
        if known and xml.machine_type not in known:
            family = xml.machine_type.rpartition("-")[0]
            near = [name for name in known if name.startswith(family)] or known
            yield _at_target(
                "machine.type-missing",
                f"QEMU here has no machine type {xml.machine_type}",
                f"install a QEMU that has it, or use one that both have ({near[0]}): stop the "
                "machine, change it (virsh edit), and start it",
                setting="os/type/@machine",
                value=near[0],
                known=known,
            )
        else:
            yield _at_target(
                "accelerator.missing",
                f"a domain of type {xml.virt_type} cannot run here: {words(error)}",
                "see that KVM is there (ls -l /dev/kvm), and QEMU for its architecture",
            )
        return
    yield from _about_cpu(connection, xml, ET.fromstring(text))
    free = connection.free_memory()
    if free < xml.memory_bytes:
        yield _at_target(
            "memory.no-room",
            f"the domain needs {xml.memory_bytes} bytes of memory, {free} are free here",
            "stop something here, or choose another target",
            blocks=False,
            free_bytes=free,
        )


def machine_types(connection: libvirt.Connection, architecture: str, virt_type: str) -> list[str]:
    """The machine types that the target's QEMU has; newest as QEMU lists them."""
    root = ET.fromstring(connection.capabilities())
    names: list[str] = []
    for arch in root.iterfind(f"guest/arch[@name='{architecture}']"):
        if arch.find(f"domain[@type='{virt_type}']") is not None:
            names += [machine.text or "" for machine in arch.iterfind("machine")]
            names += [machine.text or "" for machine in arch.iterfind("domain/machine")]
    return list(dict.fromkeys(names))


def _about_cpu(
    connection: libvirt.Connection, xml: DomainXml, capabilities: ET.Element
) -> Iterator[Obstacle]:
    cpu = xml.cpu
    if cpu is None or not cpu.get("mode"):
        return
    if cpu.get("mode") == "host-passthrough":
        yield _at_target(
            "cpu.passthrough",
            "the domain has its host's very processor (host-passthrough); libvirt cannot say "
            "whether this host's is the same",
            "use host-model, or a named model that both hosts have",
            blocks=False,
        )
        return
    wanted = (cpu.findtext("model") or "").strip()
    models = {
        (m.text or ""): m.get("usable") for m in capabilities.iterfind("cpu/mode/model[@usable]")
    }
    if wanted and wanted not in models:
        yield _at_target(
            "cpu.model-missing",
            f"libvirt here does not know the processor {wanted}",
            "use a model that both hosts have (virsh domcapabilities lists them)",
            setting="cpu/model",
            known=sorted(models),
        )
    elif wanted and models[wanted] == "no":
        usable = sorted(name for name, can in models.items() if can == "yes")
        yield _at_target(
            "cpu.feature-missing",
            f"this host cannot give a guest the processor {wanted}",
            "use a model that both hosts have (usable='yes' in virsh domcapabilities)",
            setting="cpu/model",
            usable=usable,
        )
    elif xml.virt_type == "kvm":
        yield from _compare_cpu(connection, xml, cpu)


def _compare_cpu(
    connection: libvirt.Connection, xml: DomainXml, cpu: ET.Element
) -> Iterator[Obstacle]:
    """libvirt compares for KVM alone."""
    text = ET.tostring(cpu, encoding="unicode")
    where = (xml.architecture, xml.machine_type or None, xml.virt_type)
    try:
        connection.compare_cpu(*where, text)
    except libvirt.LibvirtError as error:
        if error.code != libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            return
        try:
            host = ET.fromstring(connection.domain_capabilities(*where)).find(
                "cpu/mode[@name='host-model']"
            )
            assert host is not None
            host.tag = "cpu"
            both = [text, ET.tostring(host, encoding="unicode")]
            value = connection.baseline_cpu(*where, both)
        except (libvirt.LibvirtError, AssertionError):
            value = ""
        yield _at_target(
            "cpu.feature-missing",
            f"the guest's processor has what this host does not: {words(error)}",
            "give it what both hosts have (the fact `value` is that <cpu>): stop it, virsh edit, "
            "start it",
            setting="cpu",
            value=value,
        )


def _about_files(xml: DomainXml) -> Iterator[Obstacle]:
    for disk in xml.disks():
        if disk.path and not os.path.exists(disk.path):
            yield _at_target(
                "disk.not-reachable",
                f"the disk {disk.target} is not here: {disk.path}",
                "mount the storage here at the same path, or eject it if it is a medium",
                path=disk.path,
            )
        elif disk.path and disk.written and not os.access(disk.path, os.W_OK):
            yield _at_target(
                "disk.not-writable",
                f"the disk {disk.target} cannot be written here: {disk.path}",
                "give the storage's users here the right to write",
                path=disk.path,
            )
    for path in xml.files():
        if not os.path.exists(path):
            yield _at_target(
                "file.missing",
                f"a file that it is started from is not here: {path}",
                "put it here at the same path",
                path=path,
            )


def _about_networks(connection: libvirt.Connection, xml: DomainXml) -> Iterator[Obstacle]:
    for kind, name in xml.networks():
        if kind == "bridge":
            if not os.path.isdir(f"/sys/class/net/{name}/bridge"):
                yield _at_target(
                    "network.missing",
                    f"there is no bridge {name} here",
                    f"make it: ip link add {name} type bridge; or connect the domain to another",
                    network=name,
                )
            continue
        try:
            active = connection.network_is_active(name)
        except libvirt.LibvirtError as error:
            if not is_missing(error):
                raise
            active = None
        if not active:
            state = "is off" if active is not None else "is missing"
            cure = (
                f"virsh net-start {name}" if active is not None else "virsh net-define, net-start"
            )
            yield _at_target(
                "network.missing", f"libvirt's network {name} {state} here", cure, network=name
            )
