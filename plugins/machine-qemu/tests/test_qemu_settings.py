"""What may be set, and how what may not is refused. Needs no QEMU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from novacron import ConfigError, MachineSpec, NodeFacts, NotFound
from novacron_machine_qemu import Disk, QemuDriver, Settings
from novacron_machine_qemu._host import Host, unsound_dirty_tracking
from novacron_machine_qemu._settings import machine_settings, read_arguments_file, resolve

GOOD: dict[str, Any] = {"kernel": "/k", "initrd": "/i", "append": "console=ttyS0"}


def spec_with(settings: dict[str, Any], memory_bytes: int = 128 << 20) -> MachineSpec:
    return MachineSpec(name="m", driver="qemu", memory_bytes=memory_bytes, settings=settings)


def test_settings_become_typed() -> None:
    disks = ["/a.img", {"path": "/b.img", "format": "qcow2", "shared": True}]
    settings = machine_settings(spec_with({**GOOD, "disks": disks, "arguments": ["-no-reboot"]}))
    assert settings.kernel == "/k"
    assert settings.disks == (Disk(path="/a.img"), Disk(path="/b.img", format="qcow2", shared=True))
    assert settings.arguments == ("-no-reboot",)
    assert settings.machine_type == "q35"


@pytest.mark.parametrize(
    ("settings", "said", "hint"),
    [
        ({**GOOD, "kernal": "/k"}, "kernal is no setting", "kernel"),
        ({**GOOD, "wheels": 4}, "wheels is no setting", "known are"),
        ({"disks": [{"path": "/a", "formt": "raw"}]}, "disks: formt is no setting", "format"),
        ({**GOOD, "cpus": "2"}, "cpus: '2' is not a whole number", ""),
        ({**GOOD, "cpus": True}, "cpus: True is not a whole number", ""),
        ({**GOOD, "cpus": 0}, "cpus", ""),
        ({**GOOD, "cpus": 10**9}, "cpus", ""),
        ({**GOOD, "kernel": 7}, "kernel: 7 is not text", ""),
        ({**GOOD, "kernel": None}, "kernel: None is not text", ""),
        ({**GOOD, "disks": "/a.img"}, "disks: '/a.img' is not a list", ""),
        ({**GOOD, "disks": [7]}, "disks: 7 is neither a path nor a table", ""),
        ({"disks": [{"format": "raw"}]}, "path", ""),
        ({"disks": [{"path": "/a", "shared": "yes"}]}, "shared: 'yes' is not true or false", ""),
        ({"disks": [{"path": "/a", "format": "vhd"}]}, "format", ""),
        ({**GOOD, "accel": "xen"}, "accel", ""),
        ({**GOOD, "cpu": "host enabled"}, "cpu", ""),
        ({**GOOD, "machine_type": "q35,accel=kvm"}, "machine_type", ""),
        (
            {**GOOD, "arguments": ["-incoming", "tcp:0:1"]},
            "-incoming is set by the driver",
            "leave",
        ),
        ({**GOOD, "arguments": ["--daemonize"]}, "--daemonize is set by the driver", "leave"),
        ({**GOOD, "arguments": "-s"}, "arguments: '-s' is not a list", ""),
        ({}, "nothing to start from", "kernel"),
        ({"initrd": "/i", "disks": ["/a"]}, "initrd means nothing without kernel", "kernel"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], said: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        machine_settings(spec_with(settings))
    assert said in error.value.message
    assert "machine m" in error.value.message
    assert hint in error.value.hint


@pytest.mark.parametrize("memory_bytes", [0, -1, 1 << 20, (128 << 20) + 1])
def test_memory_is_whole_mib(memory_bytes: int) -> None:
    with pytest.raises(ConfigError, match="memory_bytes"):
        machine_settings(spec_with(GOOD, memory_bytes))


def test_relative_paths_start_from_the_nodes_folder(tmp_path: Path) -> None:
    assert resolve("k", Settings(files=str(tmp_path)), "m") == tmp_path / "k"
    assert resolve("/k", Settings(), "m") == Path("/k")
    with pytest.raises(ConfigError, match="relative"):
        resolve("k", Settings(), "m")


@pytest.mark.parametrize("text", ["-device 'virtio", "-pidfile /x", "\0", "x" * 70_000])
def test_an_argument_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "arguments"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_arguments_file(path, "m: arguments_file")


def test_a_machine_of_another_driver_is_refused(tmp_path: Path) -> None:
    driver = QemuDriver(Settings(), NodeFacts(name="n", state_dir=tmp_path))
    with pytest.raises(ConfigError, match="wasm"):
        driver.check(MachineSpec(name="m", driver="wasm", memory_bytes=1 << 20))


def test_a_qemu_that_is_not_there_is_said_with_the_cure() -> None:
    with pytest.raises(NotFound) as error:
        assert Host("/nowhere/qemu-system-x86_64").version
    assert "install QEMU" in error.value.hint


def test_old_qemu_under_emulation_is_warned_of() -> None:
    assert "7.2.0" in unsound_dirty_tracking((7, 2, 0), "tcg")
    assert unsound_dirty_tracking((7, 2, 0), "kvm") == ""
    assert unsound_dirty_tracking((10, 0, 2), "tcg") == ""
