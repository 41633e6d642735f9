"""What a machine's own arguments ask of a host is read as QEMU reads it."""

from __future__ import annotations

import pytest
from hypothesis import given as holds_for
from hypothesis import strategies as st
from novacron_machine_qemu import _arguments as given


def read(line: str) -> list[given.Option]:
    return list(given.options(line.split()))


def test_options_are_taken_apart_as_qemu_does() -> None:
    drive, device, flag = read("-drive file=/a,,b.raw,media=cdrom,readonly -device e1000 --no-hpet")
    assert (drive.name, drive.first, drive.values) == (
        "drive",
        "",
        {"file": "/a,b.raw", "media": "cdrom", "readonly": "on"},
    )
    assert (device.first, device.values) == ("e1000", {})
    assert (flag.name, flag.words) == ("no-hpet", ("--no-hpet",))
    (node,) = given.options(
        ["-blockdev", '{"driver": "file", "filename": "/x,y", "node-name": "n"}']
    )
    assert (node.first, node.get("filename")) == ("file", "/x,y")
    (broken,) = given.options(["-device", "{nonsense"])
    assert (broken.first, broken.values) == ("{nonsense", {})


def test_files_are_found_by_what_they_are() -> None:
    found = given.files(
        read(
            "-bios /rom -cdrom /cd,,1.iso -hda /old.raw -drive file=/data.raw,if=virtio "
            "-drive file=/ro.raw,readonly=on -drive if=pflash,file=/vars.fd "
            "-blockdev driver=file,node-name=n,filename=/node.raw -fw_cfg name=opt/x,file=/cfg "
            "-drive file=nbd:unix:/sock -drive media=cdrom -drive file=fat:rw:/folder -cdrom none"
        )
    )
    assert [(file.path, file.medium, file.written) for file in found] == [
        ("/rom", False, False),
        ("/cd,1.iso", True, False),
        ("/old.raw", False, True),
        ("/data.raw", False, True),
        ("/ro.raw", False, False),
        ("/vars.fd", False, False),
        ("/node.raw", False, True),
        ("/cfg", False, False),
    ]


def test_networks_of_the_host_are_found_and_those_of_the_process_ask_only_for_ports() -> None:
    found = given.networks(
        read(
            "-netdev bridge,id=a -netdev tap,id=b,ifname=tap7,script=no "
            "-netdev tap,id=c,br=br3,helper=/lib/helper -netdev tap,id=d,fd=3 "
            "-nic user,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-:53 -nic none"
        )
    )
    assert [(network.kind, network.name, network.helper) for network in found] == [
        ("bridge", "br0", ""),
        ("tap", "tap7", ""),
        ("bridge", "br3", "/lib/helper"),
        ("user", "", ""),
    ]
    (user,) = given.networks(read("-nic user,hostfwd=tcp::2222-:22"))
    assert user.ports == (("tcp", "", 2222),)


@pytest.mark.parametrize(
    ("line", "macs"),
    [
        (
            "-netdev tap,id=n -device virtio-net-pci,netdev=n,mac=52:54:00:AA:00:01",
            ["52:54:00:aa:00:01"],
        ),
        # What nobody named, QEMU counts up from its default; inside of a process it meets nobody.
        (
            "-netdev tap,id=n -device e1000,netdev=n -nic bridge",
            ["52:54:00:12:34:56", "52:54:00:12:34:57"],
        ),
        ("-netdev user,id=n -device e1000,netdev=n -nic user -nic none", []),
    ],
)
def test_hardware_addresses_on_shared_networks_are_known(line: str, macs: list[str]) -> None:
    assert list(given.macs(read(line))) == macs


def test_devices_of_the_host_are_named_and_can_be_taken_out() -> None:
    words = ["-device", "qemu-xhci", "-device", "usb-host,vendorid=1", "-device"]
    words += ["vfio-pci,host=01:00.0", "-virtfs", "local,path=/x,mount_tag=x", "-smp", "2"]
    found = list(given.host_devices(list(given.options(words))))
    assert [option.words[1].partition(",")[0] for option in found] == [
        "usb-host",
        "vfio-pci",
        "local",
    ]
    assert given.without(words, found) == ("-device", "qemu-xhci", "-smp", "2")


def test_a_tpm_is_known_by_its_emulators_socket_or_as_the_hosts_own() -> None:
    emulated = read("-chardev socket,id=c,path=/run/tpm -tpmdev emulator,id=t,chardev=c")
    assert list(given.tpm_sockets(emulated)) == ["/run/tpm"]
    own = read("-tpmdev passthrough,id=t,path=/dev/tpm0")
    assert [option.get("path") for option in given.passed_tpms(own)] == ["/dev/tpm0"]
    assert list(given.tpm_sockets(own)) == []


def test_memory_that_comes_from_elsewhere_is_found_with_its_size() -> None:
    found = list(
        given.memory_files(
            read(
                "-object memory-backend-file,id=m,mem-path=/huge,size=1G "
                "-object memory-backend-memfd,id=n,hugetlb=on,hugetlbsize=1G,size=2G "
                "-object memory-backend-ram,id=o,size=3G -overcommit mem-lock=on"
            )
        )
    )
    assert [(memory.folder, memory.size_bytes, memory.page_bytes) for memory in found] == [
        ("/huge", 1 << 30, 0),
        ("", 2 << 30, 1 << 30),
    ]
    assert given.locks_memory(read("-overcommit mem-lock=on"))
    assert not given.locks_memory(read("-overcommit cpu-pm=on"))


@pytest.mark.parametrize(
    ("text", "size"),
    [("64M", 64 << 20), ("1g", 1 << 30), ("512", 512), ("2GiB", 2 << 30), ("x", 0)],
)
def test_sizes_are_read_as_qemu_writes_them(text: str, size: int) -> None:
    assert given.read_size(text) == size


NAMES = ["drive", "device", "netdev", "nic", "blockdev", "object", "chardev", "tpmdev", "cdrom"]
NAMES += ["virtfs", "usbdevice", "overcommit", "fw_cfg", "hda", "net"]
PARTS = ["file=", "mac=", "br=", "hostfwd=tcp::99999-:1", "user", "bridge", "tap", "socket", ",,"]
PARTS += ["emulator", "memory-backend-memfd", "hugetlb=on", "size=9T", "driver=", "id=n", ",", "="]
PARTS += ["netdev=n", "path=", '{"driver":', '{"a":1}}', "usb-host", "-", "host:", "readonly"]
VALUES = st.builds("".join, st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=6))


@holds_for(st.lists(st.sampled_from([f"-{name}" for name in NAMES]) | VALUES, max_size=12))
def test_whatever_the_arguments_are_they_are_read(words: list[str]) -> None:
    """A peer's machine brings its own: reading them raises nothing, and takes nothing twice."""
    found = list(given.options(words))
    assert sum(len(option.words) for option in found) <= len(words)
    for read_them in (
        *(given.files, given.networks, given.macs, given.host_devices, given.tpm_sockets),
        *(given.memory_files, given.passed_tpms),
    ):
        assert list(read_them(found)) is not None
    devices = list(given.host_devices(found))
    assert len(given.without(words, devices)) == len(words) - sum(len(d.words) for d in devices)
