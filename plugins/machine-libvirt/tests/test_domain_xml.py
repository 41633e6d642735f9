"""A domain's XML, and what a stranger may write into it."""

from __future__ import annotations

from pathlib import Path

import pytest
from novacron import ConfigError, MachineSpec, Refused
from novacron_machine_libvirt._domain_xml import Disk, DomainXml
from novacron_machine_libvirt._origin import Origin, read_origin
from novacron_machine_libvirt._settings import machine_settings

UUID = "8a0c2d3e-0000-4000-8000-000000000001"
XML = f"""<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name><uuid>{UUID}</uuid>
  <memory unit='GiB'>4</memory>
  <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type><loader>/usr/share/ovmf</loader></os>
  <devices>
    <emulator>/opt/other/qemu</emulator>
    <disk type='file' device='disk'><source file='/srv/a.qcow2'/><target dev='vda'/></disk>
    <disk type='block' device='disk'><source dev='/dev/b'/><target dev='vdb'/><readonly/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/></disk>
    <interface type='network'><source network='default'/></interface>
    <interface type='bridge'><source bridge='br0'/></interface>
    <hostdev mode='subsystem' type='pci'/>
    <filesystem type='mount'/>
    <graphics type='vnc' passwd='secret'/>
    <serial type='pty'><source path='/dev/pts/3'/><target port='0'/></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <console type='pty'><target type='virtio'/></console>
  </devices>
  <qemu:commandline><qemu:arg value='-drive'/></qemu:commandline>
</domain>"""


def test_a_domain_tells_what_a_move_must_know() -> None:
    domain = DomainXml(XML, "here")
    assert (domain.name, domain.uuid, domain.memory_bytes) == ("web1", UUID, 4 << 30)
    assert (domain.machine_type, domain.architecture) == ("pc-q35-10.0", "x86_64")
    assert list(domain.disks()) == [
        Disk(target="vda", kind="file", path="/srv/a.qcow2", written=True),
        Disk(target="vdb", kind="block", path="/dev/b", written=False),
        Disk(target="sda", kind="file", path="", written=False),
    ]
    assert list(domain.networks()) == [("network", "default"), ("bridge", "br0")]
    assert list(domain.files()) == ["/usr/share/ovmf"]
    assert list(domain.passed_through()) == ["<hostdev type='pci'>"]
    assert domain.shared_folders() == 1
    assert domain.has_password()
    assert domain.has_qemu_arguments()


def test_it_is_fitted_to_its_node_and_keeps_the_rest() -> None:
    domain = DomainXml(XML, "here")
    domain.without_emulator()
    fitted = DomainXml(domain.fitted("m1", UUID, Path("/s/console"), Path("/h/log")), "there")
    assert fitted.name == "m1"
    serial = fitted.root.find("devices/serial")
    assert serial is not None
    assert serial.get("type") == "unix"
    assert [(part.tag, dict(part.attrib)) for part in serial] == [
        ("source", {"mode": "bind", "path": "/s/console"}),
        ("log", {"file": "/h/log", "append": "on"}),
        ("target", {"port": "0"}),
    ]
    # The console that is the serial port is libvirt's to make again; the other one stays.
    consoles = fitted.root.findall("devices/console/target")
    assert [target.get("type") for target in consoles] == ["virtio"]
    assert fitted.root.find("devices/emulator") is None
    assert list(fitted.disks()) == list(domain.disks())


@pytest.mark.parametrize(
    ("machine", "memory_mib", "ranges"),
    [
        ("pc-q35-10.0", 2815, [(0, 2815 << 20)]),
        ("pc-q35-10.0", 2816, [(0, 2 << 30), (4 << 30, 768 << 20)]),
        ("pc-i440fx-10.0", 3583, [(0, 3583 << 20)]),
        ("pc-i440fx-10.0", 4096, [(0, 3 << 30), (4 << 30, 1 << 30)]),
    ],
)
def test_memory_has_a_hole_below_4_gib(
    machine: str, memory_mib: int, ranges: list[tuple[int, int]]
) -> None:
    text = XML.replace("pc-q35-10.0", machine).replace("'GiB'>4<", f"'MiB'>{memory_mib}<")
    assert DomainXml(text, "here").memory_ranges() == ranges


def test_where_another_machine_has_its_memory_is_not_guessed() -> None:
    with pytest.raises(ConfigError, match="virt-9"):
        DomainXml(XML.replace("pc-q35-10.0", "virt-9"), "here").memory_ranges()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<domain", "no XML"),
        ("<network/>", "not a <domain>"),
        ('<!DOCTYPE d [<!ENTITY a "b">]><domain/>', "document type"),
        ("<domain/>", "<memory>"),
        ("<domain><memory>much</memory></domain>", "<memory>"),
        ("<domain>" + " " * (1 << 20) + "</domain>", "characters"),
    ],
)
def test_what_is_no_domain_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        DomainXml(text, "here")


def test_a_strangers_word_is_read_with_care() -> None:
    sound = Origin(uuid=UUID, xml=XML, libvirt=9_000_000, qemu=10_000_002).to_json()
    assert read_origin(sound).to_json() == sound
    wrong = [
        {},
        {**sound, "uuid": "../../etc"},
        {**sound, "uuid": 1},
        {**sound, "xml": "x" * ((1 << 20) + 1)},
        {**sound, "qemu": True},
        {**sound, "qemu": -1},
        {**sound, "libvirt": "9"},
        {**sound, "storage": ["copy"]},
    ]
    for origin in wrong:
        with pytest.raises(Refused, match="not understood"):
            read_origin(origin)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "none of them"),
        ({"xml": "<domain/>", "domain": "web1"}, "xml and domain"),
        ({"domian": "web1"}, "domian"),
        ({"domain": 7}, "domain is 7"),
        ({"domain": "web1", "shared": "yes"}, "shared is 'yes'"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], why: str) -> None:
    spec = MachineSpec(name="m1", driver="libvirt", memory_bytes=1 << 30, settings=settings)
    with pytest.raises(ConfigError, match=why):
        machine_settings(spec)
