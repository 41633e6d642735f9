"""What the precheck of a QEMU machine finds that two whole nodes need not be started for.

The plants that a plan names, and whose cure is applied, are in tests/endtoend/test_precheck.py.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from novacron import MoveWish, NodeFacts, Obstacle
from novacron_machine_qemu import QemuDriver, Settings, _examine_arguments
from novacron_machine_qemu._host import Host, Kvm
from novacron_machine_qemu._networks import helper_allows, is_bridge, subnets, why_not_bindable
from novacron_machine_qemu._processors import Processors, processors, split_model
from novacron_machine_qemu._told import ITEMS_MAX, KEY, Told, ToldDisk, read_told

Ask = Callable[..., dict[str, Obstacle]]


@pytest.fixture
def ask(counter_world: Any) -> Ask:
    """What a node finds of a machine that could come to it, were it not for what is said here."""
    world = counter_world
    world.run(world.here.examine(MoveWish()))
    sound = json.loads(json.dumps(world.here.describe()))
    sound["accel"], sound["cpu"] = "tcg", "qemu64"

    def found(
        *arguments: str,
        driver: QemuDriver | None = None,
        told: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        **origin: Any,
    ) -> dict[str, Obstacle]:
        given = [*world.spec.settings["arguments"], *arguments]
        spec = evolve(
            world.spec, settings={**world.spec.settings, "arguments": given, **(settings or {})}
        )
        said = {**sound, **origin, KEY: {**sound[KEY], **(told or {})}}
        return {
            obstacle.code: obstacle
            for obstacle in world.run((driver or world.driver()).examine(spec, said))
        }

    assert found() == {}
    return found


def driver_with(folder: Path, script: str) -> QemuDriver:
    """A driver whose QEMU says what a script says."""
    program = folder / "qemu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    facts = NodeFacts(name="here", state_dir=folder)
    return QemuDriver(Settings(binary=str(program)), facts)


@pytest.mark.qemu
def test_a_qemu_that_is_missing_too_old_or_older_is_told_apart(ask: Ask, tmp_path: Path) -> None:
    facts = NodeFacts(name="here", state_dir=tmp_path)
    missing = ask(driver=QemuDriver(Settings(binary="/no/qemu"), facts))
    assert list(missing) == ["qemu.missing"]
    real = Host(Settings().binary).binary
    says = 'case "$1" in --version) echo "QEMU emulator version {}.0";; *) exec {} "$@";; esac'
    old = ask(driver=driver_with(tmp_path, says.format("5.2", real)))
    assert old["qemu.too-old"].blocks
    older = ask(driver=driver_with(tmp_path, says.format("7.2", real)))
    assert not older["qemu.older"].blocks
    assert older["qemu.older"].facts["here"] == "7.2.0"


@pytest.mark.qemu
def test_kvm_that_does_not_work_here_is_named_with_what_to_set(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Kvm(works=False, reason="there is no /dev/kvm", hint="enable it")
    monkeypatch.setattr(Host, "kvm", lambda self: broken)
    found = ask(accel="kvm")
    assert found["accelerator.missing"].facts == {"setting": "accel", "value": "tcg"}
    assert "accelerator.unknown" in ask(accel="auto")


@pytest.mark.qemu
def test_what_runs_is_held_against_what_its_settings_say(ask: Ask) -> None:
    found = ask(memory_bytes=32 << 20)
    assert found["settings.not-taken"].facts == {"setting": "memory_bytes", "value": 16 << 20}
    assert "settings.refused" in ask(settings={"no-such-setting": 1})
    assert "settings.refused" in ask(settings={"kernel": "relative"})


@pytest.mark.qemu
def test_a_processor_that_this_qemu_does_not_know_is_replaced_by_the_nearest(ask: Ask) -> None:
    flags = sorted(processors(Host(Settings().binary).binary, "tcg").offered() - {"avx2"})
    found = ask(cpu="Future", settings={"cpu": "Future"}, told={"guest_flags": flags})
    assert found["cpu.model-missing"].facts["value"]
    assert "cpu.feature-missing" not in found


@pytest.mark.qemu
def test_clocks_that_differ_are_worth_knowing_and_do_not_block(ask: Ask) -> None:
    found = ask(told={"clock_s": time.time() + 3600})
    assert not found["clock.skew"].blocks
    assert found["clock.skew"].facts["seconds"] == pytest.approx(3600, abs=30)
    assert ask(told={"clock_s": float("nan")}) == {}


@pytest.mark.qemu
def test_memory_that_cannot_be_locked_or_taken_from_huge_pages_is_told(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_examine_arguments, "_may_lock", lambda: False)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    locked = ask("-overcommit", "mem-lock=on")["memory.lock-limit"]
    assert locked.facts["run"][:3] == ["prlimit", "--pid", str(os.getpid())]
    backend = "memory-backend-memfd,id=m,hugetlb=on,size=1024G"
    assert ask("-object", backend)["memory.no-huge-pages"].facts["needed"] == 512 << 10
    backend = f"memory-backend-file,id=m,size=1M,mem-path={tmp_path / 'none'}"
    assert "memory.no-folder" in ask("-object", backend)


@pytest.mark.qemu
def test_a_script_or_a_helper_that_joins_a_network_must_be_here(ask: Ask, tmp_path: Path) -> None:
    script = tmp_path / "up.sh"
    found = ask("-netdev", f"tap,id=n,script={script}")
    assert found["network.script-missing"].facts == {"path": str(script)}


@pytest.mark.qemu
def test_a_disk_that_the_source_says_nothing_sound_of_cannot_come(ask: Ask, tmp_path: Path) -> None:
    disks = [{"path": str(tmp_path / "disk.raw"), "format": "raw"}]
    told = {"number": 0, "format": "raw", "size_bytes": 1 << 20, "content_bytes": 1 << 20}
    wish: dict[str, Any] = {"settings": {"disks": disks}, "storage": "copy"}
    assert ask(**wish, disks=[told]) == {}
    assert "disk.unsound" in ask(**wish, disks=[])
    huge = {**told, "size_bytes": 1 << 60}
    assert "disk.too-large" in ask(**wish, disks=[huge])
    full = {**told, "size_bytes": 1 << 45, "content_bytes": 1 << 45}
    assert "disk.no-room" in ask(**wish, disks=[full])


@pytest.mark.qemu
@pytest.mark.parametrize(
    "told",
    [
        {"guest_flags": ["x" * 5000]},
        {"guest_flags": ["x"] * (ITEMS_MAX + 1)},
        {"disks": [{"number": "many"}]},
        {"networks": {"a": {"b": {"c": {"d": {"e": {}}}}}}},
    ],
)
def test_what_a_stranger_tells_is_bounded_before_it_is_believed(ask: Ask, told: Any) -> None:
    (found,) = ask(told=told).values()
    assert (found.code, found.blocks) == ("origin.unsound", True)


@pytest.mark.qemu
@pytest.mark.parametrize(
    "lie", [{"cpu": "a b;c"}, {"machine_type": "pc\n"}, {"qemu": []}, {"disks": [{}] * 5000}]
)
def test_facts_that_cannot_be_a_machines_are_refused(ask: Ask, lie: dict[str, Any]) -> None:
    assert list(ask(**lie)) == ["origin.unsound"]


def test_what_is_told_comes_back_as_it_was() -> None:
    told = Told(
        guest_flags=("sse", "sse2"),
        disks=(ToldDisk(number=1, inode=7, backing=("base.qcow2",)),),
        networks={"br0": ("10.0.0.0/24",)},
        files={"/rom": 65536},
        clock_s=1.5,
    )
    assert read_told(json.loads(json.dumps(told.as_item()))) == told
    assert read_told({}) == Told()
    with pytest.raises(ValueError, match="no table"):
        read_told({KEY: []})


@pytest.mark.qemu
def test_a_machine_with_the_hosts_tpm_or_a_disk_in_its_arguments_stays(counter_world: Any) -> None:
    world = counter_world
    given = [*world.spec.settings["arguments"], "-tpmdev", "passthrough,id=t,path=/dev/tpm0"]
    given += ["-drive", "file=/data.raw,if=virtio"]
    spec = evolve(world.spec, settings={**world.spec.settings, "arguments": given})
    machine = world.run(world.driver().open(spec, world.new_home()))
    found = {obstacle.code for obstacle in world.run(machine.examine(MoveWish()))}
    assert found == {"tpm.passthrough", "disk.in-arguments"}
    shared = world.run(machine.examine(MoveWish(storage="shared")))
    assert {obstacle.code for obstacle in shared} == {"tpm.passthrough"}


# Processors.


@pytest.mark.parametrize(
    ("cpu", "model", "props"),
    [
        ("Haswell", "Haswell", {}),
        ("Haswell,-hle,+avx512f", "Haswell", {"hle": False, "avx512f": True}),
        ("max,pcid=off,level=0xd,enforce", "max", {"pcid": False, "level": 13}),
        ("EPYC,model_id=x,", "EPYC", {"model-id": "x"}),
    ],
)
def test_a_processor_setting_is_read_as_qemu_reads_it(
    cpu: str, model: str, props: dict[str, Any]
) -> None:
    assert split_model(cpu) == (model, props)


@pytest.mark.qemu
def test_the_smallest_change_is_a_flag_less_or_the_nearest_model(qemu_host: Host) -> None:
    known: Processors = processors(qemu_host.binary, "tcg")
    here, wanted = known.offered(), known.given("Haswell")
    assert wanted is not None
    assert known.wanted("no-such-model") is None
    both = here - {"avx2"}
    less = known.propose("Haswell", ["avx2"], both, wanted)
    assert (less.cpu, less.switched_off) == ("Haswell,avx2=off", True)
    assert known.given(less.cpu) == wanted - {"avx2"}
    nearest = known.propose("max", ["avx2"], both, here)
    given = known.given(nearest.cpu)
    assert given is not None
    assert given <= both
    assert all(len(known.given(other) or ()) <= len(given) for other in nearest.others)
    assert known.propose("max", ["sse2"], frozenset(), here).cpu == ""


# Networks.


def test_the_helpers_rules_are_read_as_it_reads_them(tmp_path: Path) -> None:
    rules, more = tmp_path / "bridge.conf", tmp_path / "more.conf"
    rules.write_text(f"# ours\nallow br0\ninclude {more}\ndeny br2\n")
    more.write_text(f"allow br2 # theirs\nallow br3\ninclude {rules}\n")
    allowed = [name for name in ("br0", "br1", "br2", "br3") if helper_allows(name, rules)]
    assert allowed == ["br0", "br3"]
    assert not helper_allows("br0", tmp_path / "none")


def test_names_that_are_paths_are_no_devices() -> None:
    assert not any(is_bridge(name) for name in ("", ".", "..", "../lo", "a/b", "x" * 20))
    assert subnets("../lo") == ()
    assert subnets("lo") == ("127.0.0.0/8",)


def test_a_port_that_is_taken_or_an_address_that_is_not_here_cannot_be_bound() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "in use" in why_not_bindable("tcp", "127.0.0.1", port)
    assert why_not_bindable("tcp", "127.0.0.1", port) == ""
    assert "no address 192.0.2.1" in why_not_bindable("udp", "192.0.2.1", port)
    assert why_not_bindable("tcp", "", 70000)
