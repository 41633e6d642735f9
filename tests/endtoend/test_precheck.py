"""Everything that would refuse a move is planted, found by its code in the plan, and cured by what
the plan says.

Two nodes on two hosts: each has a network, a folder and an /etc/qemu of its own. The target is the
poorer one. Its QEMU lacks the newest machine type and its processors have no AVX2; to that end it
is called by a script that leaves them out of what the real one says of itself.
"""

from __future__ import annotations

import json
import shlex
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import define, field, frozen
from cluster import NOVACRON, Cluster, RealNode, done
from namespaces import TwoHosts, ip
from novacron import NotFound, Refused
from novacron_machine_qemu._host import Host
from waiting import until

MIB: Final = 1 << 20
QEMU: Final = "qemu-system-x86_64"
ROOM: Final = 96 * MIB
# Whom QEMU's bridge helper may serve; Debian's packages do not make the folder.
RULES: Final = Path("/etc/qemu")

# What the target's QEMU says of itself, less what an older one on an older processor has not.
POORER = f"""#!/bin/bash
case "$*" in
  *"-machine help"*) {QEMU} "$@" | grep -v NEWEST ;;
  *"-qmp stdio"*) exec {QEMU} "$@" -global max-x86_64-cpu.avx2=off ;;
  *) exec -a "$0" {QEMU} "$@" ;;
esac
"""

# What is another folder on each host, and the bridges that machines may join. The target has a file
# system of its own for disks, and keeps the state of emulated TPMs for itself.
HOST: Final = """
mount -t tmpfs none /etc/qemu && mount -t tmpfs none "$1"
for bridge in $2; do echo "allow $bridge" >>/etc/qemu/bridge.conf; done
test -z "$3" || { mount -t tmpfs -o size=$4 none "$3" && mount -t tmpfs none /var/lib; }
shift 4
exec "$@"
"""


AGAINST_A_MODE: Final = """
[[compliance.local.refuse]]
reason = "the line to them is monitored"
hint = "say --mode internet"
mode = "datacenter"
"""


def halting_rom() -> bytes:
    """A guest that takes no time: it halts at its first instruction."""
    rom = bytearray(b"\xff" * 65536)
    rom[0xFFF0:0xFFF4] = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp to the hlt
    return bytes(rom)


def writing_rom() -> bytes:
    """A guest that writes to each page between 1 and 16 MiB, over and over."""
    rom = bytearray(b"\xff" * 65536)
    table, code, flat = 0xFE00, 0xFE40, 0xFE80  # offsets in the ROM, which ends at 4 GiB
    flat_segment = b"\xff\xff\x00\x00\x00{}\xcf\x00"  # 4 GiB from 0
    rom[table : table + 8] = bytes(8)
    rom[table + 8 : table + 16] = flat_segment.replace(b"{}", b"\x9a")  # code
    rom[table + 16 : table + 24] = flat_segment.replace(b"{}", b"\x92")  # data
    rom[table + 24 : table + 30] = struct.pack("<HI", 23, 0xFFFF0000 + table)
    real = b"\xfa\x2e\x66\x0f\x01\x16" + struct.pack("<H", table + 24)  # cli; lgdt
    real += b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0"  # set the first bit of cr0
    real += b"\x66\xea" + struct.pack("<IH", 0xFFFF0000 + flat, 8)  # far jump
    rom[code : code + len(real)] = real
    loop = b"\x66\xb8\x10\x00\x8e\xd8"  # mov ax,16; mov ds,ax
    loop += b"\xbf\x00\x00\x10\x00"  # mov edi,1 MiB
    loop += b"\xff\x07\x81\xc7\x00\x10\x00\x00"  # inc dword [edi]; add edi,4096
    loop += b"\x81\xff\x00\x00\x00\x01\x72\xf0\xeb\xe9"  # until 16 MiB; and again
    rom[flat : flat + len(loop)] = loop
    rom[0xFFF0:0xFFF3] = b"\xe9" + struct.pack("<H", (code - 0xFFF3) & 0xFFFF)
    return bytes(rom)


@define(eq=False)
class World:
    """The two hosts.

    Attributes:
        files: Where the relative paths of a node's machines begin, by node.
        local: A path that is another folder on each host.
    """

    folder: Path
    hosts: TwoHosts
    cluster: Cluster
    newest: str
    older: str
    files: dict[str, Path]
    local: Path
    count: int = 0

    @property
    def a(self) -> RealNode:
        return self.cluster.a

    @property
    def b(self) -> RealNode:
        return self.cluster.b

    def on(self, side: str, *command: str) -> str:
        """Run a command on one of the hosts."""
        process = self.cluster.nodes[side].process
        assert process is not None
        entered = ["nsenter", "--target", str(process.pid), "--mount", "--net", "--", *command]
        ran = subprocess.run(entered, capture_output=True, text=True, timeout=30)
        assert ran.returncode == 0, f"{shlex.join(command)}: {ran.stderr}"
        return ran.stdout

    def seen_by(self, side: str, path: Path | str) -> Path:
        """A path of one of the hosts, as this process finds it."""
        process = self.cluster.nodes[side].process
        assert process is not None
        return Path(f"/proc/{process.pid}/root{path}")

    def write(self, side: str, path: Path, content: bytes) -> None:
        there = self.seen_by(side, path)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(content)

    def copy_to_target(self, path: str) -> None:
        """What a cure means by: copy it from the source to this path."""
        below = Path(path)
        for side in "ab":  # a relative path begins elsewhere on each node
            with suppress(ValueError):
                below = self.files["a"] / below.relative_to(self.files[side])
        self.write("b", Path(path), self.seen_by("a", below).read_bytes())

    def machine(self, name: str, settings: Mapping[str, Any], memory_bytes: int = 16 * MIB) -> None:
        """A running machine at the source."""
        made = self.a.client.create(
            name, driver="qemu", memory_bytes=memory_bytes, settings=settings
        )
        done(self.a, made)

    def neighbour(self, name: str, settings: Mapping[str, Any]) -> None:
        """A machine at the target that was never started."""
        made = self.b.client.create(
            name, driver="qemu", memory_bytes=16 * MIB, settings=settings, start=False
        )
        done(self.b, made)

    def delete(self, node: RealNode, name: str) -> None:
        done(node, node.client.delete(name, force=True))

    def settings(self, *arguments: str, **own: Any) -> dict[str, Any]:
        """A machine that could move, and what is planted."""
        bios = ["-bios", str(self.folder / "halt.rom")]
        plain: dict[str, Any] = {"machine_type": self.older, "accel": "tcg"}
        return {**plain, **own, "arguments": [*bios, *arguments]}


@frozen(kw_only=True)
class Case:
    """A machine with something in its way, and how the cure is applied.

    Attributes:
        settings, wish, target: Of the machine and of its move.
        memory_bytes: Of the machine.
        then: What happens to it once it runs.
    """

    settings: Mapping[str, Any]
    wish: Mapping[str, Any] = field(factory=dict)
    target: str = "b"
    memory_bytes: int = 16 * MIB
    then: Callable[[], object] | None = None


Obstacle = Mapping[str, Any]
# What the cure makes of the case; None if it changes something outside of it.
Cured = Case | None
Plant = Callable[[World, str], tuple[Case, Callable[[Obstacle], Cured]]]
PLANTS: list[Any] = []


def plant(code: str) -> Callable[[Plant], Plant]:
    def add(make: Plant) -> Plant:
        PLANTS.append(pytest.param(code, make, id=f"{code}-{make.__name__}"))
        return make

    return add


# Ways to apply a cure that hold for many.


def sets(case: Case) -> Callable[[Obstacle], Cured]:
    """Set the setting that the plan names to the value that it names."""

    def cure(obstacle: Obstacle) -> Cured:
        facts = obstacle["facts"]
        assert facts["value"]
        return Case(settings={**case.settings, facts["setting"]: facts["value"]}, wish=case.wish)

    return cure


def says(case: Case) -> Callable[[Obstacle], Cured]:
    """Say with the move what the plan says."""

    def cure(obstacle: Obstacle) -> Cured:
        facts = obstacle["facts"]
        wish = {**case.wish, facts["option"]: facts["value"]}
        return Case(settings=case.settings, wish=wish, target=case.target)

    return cure


def runs(world: World) -> Callable[[Obstacle], Cured]:
    """Run the plan's command on the target."""

    def cure(obstacle: Obstacle) -> Cured:
        world.on("b", *obstacle["facts"]["run"])
        return None

    return cure


def copies(world: World) -> Callable[[Obstacle], Cured]:
    """Copy the file that the plan names."""

    def cure(obstacle: Obstacle) -> Cured:
        world.copy_to_target(obstacle["facts"]["path"])
        return None

    return cure


# Processors, machine types, memory.


@plant("cpu.feature-missing")
def a_model_with_avx2(world: World, name: str) -> Any:
    case = Case(settings=world.settings(cpu="Haswell"))
    return case, sets(case)


@plant("cpu.feature-missing")
def all_that_the_source_has(world: World, name: str) -> Any:
    case = Case(settings=world.settings(cpu="max"))
    return case, sets(case)


@plant("machine-type.missing")
def a_newer_machine_type(world: World, name: str) -> Any:
    case = Case(settings=world.settings(machine_type=world.newest))
    return case, sets(case)


@plant("memory.too-little")
def more_memory_than_there_is(world: World, name: str) -> Any:
    with Path("/proc/meminfo").open() as told:
        total = next(int(line.split()[1]) * 1024 for line in told if line.startswith("MemTotal"))
    case = Case(settings=world.settings(), memory_bytes=(total // MIB + 1024) * MIB)

    def cure(obstacle: Obstacle) -> Cured:
        less = obstacle["facts"]["free_bytes"] // (4 * MIB) * MIB
        return Case(settings=case.settings, memory_bytes=less)

    return case, cure


# Networks.


@plant("network.missing")
def a_bridge_that_the_target_has_not(world: World, name: str) -> Any:
    ip("-n", world.hosts.names["a"], "link", "add", "bridge0", "type", "bridge")
    network = ("-netdev", "bridge,id=n,br=bridge0", "-device", "virtio-net-pci,netdev=n")
    return Case(settings=world.settings(*network)), runs(world)


@plant("network.not-allowed")
def a_bridge_that_machines_may_not_join(world: World, name: str) -> Any:
    for side in "ab":
        ip("-n", world.hosts.names[side], "link", "add", "bridge1", "type", "bridge")
    network = ("-netdev", "bridge,id=n,br=bridge1", "-device", "virtio-net-pci,netdev=n")

    def cure(obstacle: Obstacle) -> Cured:
        rules = world.seen_by("b", obstacle["facts"]["path"])
        rules.write_text(rules.read_text() + obstacle["facts"]["line"] + "\n")
        return None

    return Case(settings=world.settings(*network)), cure


@plant("network.mac-taken")
def a_neighbour_with_the_same_hardware_address(world: World, name: str) -> Any:
    network = ("-netdev", "socket,id=n,mcast=239.7.7.7:7777,localaddr=127.0.0.1")
    card = (*network, "-device", "virtio-net-pci,netdev=n,mac=52:54:00:ab:cd:ef")
    world.neighbour("neighbour", world.settings(*card))

    def cure(obstacle: Obstacle) -> Cured:
        facts = obstacle["facts"]
        other = [word.replace(facts["mac"], facts["free"]) for word in card]
        return Case(settings=world.settings(*other))

    return Case(settings=world.settings(*card)), cure


@plant("network.port-taken")
def a_port_that_somebody_has_at_the_target(world: World, name: str) -> Any:
    port = world.b.address.rpartition(":")[2]

    def network(number: object) -> tuple[str, ...]:
        return ("-nic", f"user,model=virtio-net-pci,hostfwd=tcp::{number}-:22")

    def cure(obstacle: Obstacle) -> Cured:
        assert obstacle["facts"]["port"] == int(port)
        return Case(settings=world.settings(*network(int(port) + 1)))

    return Case(settings=world.settings(*network(port))), cure


# Disks, media and files.


def raw_disk(world: World, path: str, content: bytes = bytes(MIB)) -> dict[str, Any]:
    world.write("a", world.files["a"] / path, content)
    return {"path": path, "cache": "writeback"}


@plant("disk.stays")
def a_disk_that_nobody_said_goes_along(world: World, name: str) -> Any:
    case = Case(settings=world.settings(disks=[raw_disk(world, f"{name}.raw")]))
    return case, says(case)


@plant("disk.no-room")
def a_disk_larger_than_the_targets_room(world: World, name: str) -> Any:
    disk = raw_disk(world, f"{name}.raw", b"x" * (24 * MIB))
    ballast = world.files["b"] / "ballast"
    world.write("b", ballast, b"x" * (20 * MIB))

    def cure(obstacle: Obstacle) -> Cured:
        facts = obstacle["facts"]
        assert facts["needed_bytes"] - facts["free_bytes"] <= 20 * MIB
        assert ballast.parent == Path(facts["path"])
        world.seen_by("b", ballast).unlink()
        return None

    return Case(settings=world.settings(disks=[disk]), wish={"storage": "copy"}), cure


@plant("disk.exists")
def a_file_where_the_disk_would_come(world: World, name: str) -> Any:
    disk = raw_disk(world, f"{name}.raw")
    world.write("b", world.files["b"] / f"{name}.raw", b"somebody's")
    return Case(settings=world.settings(disks=[disk]), wish={"storage": "copy"}), runs(world)


@plant("disk.no-folder")
def a_folder_that_the_target_has_not(world: World, name: str) -> Any:
    disk = raw_disk(world, f"{name}/disk.raw")
    return Case(settings=world.settings(disks=[disk]), wish={"storage": "copy"}), runs(world)


def mounts(world: World, name: str) -> Callable[[Obstacle], Cured]:
    """Let the target have the very folder that the source has."""

    def cure(obstacle: Obstacle) -> Cured:
        there = Path(obstacle["facts"]["path"]).parent
        world.on("b", "mkdir", "-p", str(there))
        world.on("b", "mount", "--bind", str(world.files["a"] / name), str(there))
        return None

    return cure


@plant("disk.not-reachable")
def shared_storage_that_is_not_mounted(world: World, name: str) -> Any:
    disk = raw_disk(world, f"{name}/disk.raw")
    return Case(settings=world.settings(disks=[disk]), wish={"storage": "shared"}), mounts(
        world, name
    )


@plant("disk.not-shared")
def a_copy_in_place_of_the_shared_disk(world: World, name: str) -> Any:
    disk = {**raw_disk(world, f"{name}/disk.raw"), "shared": True}
    world.write("b", world.files["b"] / name / "disk.raw", bytes(MIB))
    return Case(settings=world.settings(disks=[disk])), mounts(world, name)


@plant("disk.backing-missing")
def an_image_below_that_the_target_has_not(world: World, name: str) -> Any:
    base, folder = world.local / "base.qcow2", world.files["a"] / name
    world.on("a", "mkdir", "-p", str(folder))
    world.on("a", "qemu-img", "create", "-q", "-f", "qcow2", str(base), "1M")
    top = folder / "top.qcow2"
    over = ("-b", str(base), "-F", "qcow2", str(top))
    world.on("a", "qemu-img", "create", "-q", "-f", "qcow2", *over)
    world.on("b", "mkdir", "-p", str(world.files["b"] / name))
    world.on("b", "mount", "--bind", str(folder), str(world.files["b"] / name))
    disk = {"path": f"{name}/top.qcow2", "format": "qcow2", "cache": "writeback", "shared": True}
    return Case(settings=world.settings(disks=[disk])), copies(world)


@plant("media.missing")
def a_cd_that_is_not_at_the_target(world: World, name: str) -> Any:
    cd = world.local / f"{name}.iso"
    world.write("a", cd, bytes(64 << 10))
    return Case(settings=world.settings("-cdrom", str(cd))), copies(world)


@plant("media.different")
def another_cd_of_the_same_name(world: World, name: str) -> Any:
    cd = world.local / f"{name}.iso"
    world.write("a", cd, bytes(64 << 10))
    world.write("b", cd, bytes(32 << 10))
    return Case(settings=world.settings("-cdrom", str(cd))), copies(world)


@plant("file.missing")
def a_kernel_that_is_not_at_the_target(world: World, name: str) -> Any:
    world.write("a", world.files["a"] / f"{name}.kernel", bytes(8192))
    return Case(settings=world.settings(kernel=f"{name}.kernel")), copies(world)


@plant("file.different")
def another_kernel_of_the_same_name(world: World, name: str) -> Any:
    world.write("a", world.files["a"] / f"{name}.kernel", bytes(8192))
    world.write("b", world.files["b"] / f"{name}.kernel", bytes(8191) + b"x")
    return Case(settings=world.settings(kernel=f"{name}.kernel")), copies(world)


# Devices.


@plant("device.passthrough")
def a_usb_device_of_the_source(world: World, name: str) -> Any:
    usb = ("-device", "qemu-xhci", "-device", "usb-host,vendorid=0x1234,productid=0x5678")
    case = Case(settings=world.settings(*usb))
    return case, sets(case)


@plant("machine.not-migratable")
def a_device_whose_state_cannot_leave(world: World, name: str) -> Any:
    memory = ("-object", "memory-backend-ram,id=shm,size=1M,share=on")

    def with_device(master: str) -> Case:
        return Case(
            settings=world.settings(*memory, "-device", f"ivshmem-plain,memdev=shm{master}")
        )

    def cure(obstacle: Obstacle) -> Cured:
        assert "ivshmem" in obstacle["what"]
        return with_device(",master=on")

    return with_device(""), cure


@plant("tpm.emulator-missing")
def an_emulated_tpm_without_its_emulator(world: World, name: str) -> Any:
    path, states = world.local / "tpm", world.folder / "tpm-states"
    states.mkdir()
    emulator = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={states}"]
    emulator += ["--ctrl", f"type=unixio,path={path}", "--daemon"]
    try:
        subprocess.run(["swtpm", "--version"], capture_output=True, timeout=20)
    except FileNotFoundError:
        pytest.skip("there is no swtpm: run scripts/debian-packages")
    world.on("a", *emulator)
    tpm = ("-chardev", f"socket,id=t,path={path}", "-tpmdev", "emulator,id=tpm0,chardev=t")
    return Case(settings=world.settings(*tpm, "-device", "tpm-tis,tpmdev=tpm0")), runs(world)


# The machine, the policy and the link.


@plant("machine.exists")
def a_machine_of_that_name_at_the_target(world: World, name: str) -> Any:
    world.neighbour(name, world.settings())

    def cure(obstacle: Obstacle) -> Cured:
        world.delete(world.b, name)
        return None

    return Case(settings=world.settings()), cure


@plant("machine.not-running")
def a_machine_that_was_stopped(world: World, name: str) -> Any:
    def cure(obstacle: Obstacle) -> Cured:
        assert f"novacron machine start {name}" in obstacle["cure"]
        done(world.a, world.a.client.start(name))
        return None

    def stop() -> None:
        done(world.a, world.a.client.stop(name))

    return Case(settings=world.settings(), then=stop), cure


@plant("machine.moving")
def a_move_that_is_under_way(world: World, name: str) -> Any:
    def cure(obstacle: Obstacle) -> Cured:
        assert "cancel it" in obstacle["cure"]
        (move,) = world.a.client.operations(machine=name, state="running")
        world.a.client.cancel(move["id"])
        world.a.client.wait(move["id"])
        return None

    def move_slowly() -> None:
        move = world.a.client.migrate(name, "b", rate_bytes_per_s=10)
        until(lambda: world.a.client.operation(move["id"])["phase"] == "copy", 20, str)

    return Case(settings=world.settings(), then=move_slowly), cure


@plant("policy.compliance-local")
def a_rule_against_the_mode(world: World, name: str) -> Any:
    case = Case(settings=world.settings(), wish={"mode": "datacenter"})

    def cure(obstacle: Obstacle) -> Cured:
        assert obstacle["cure"] == "say --mode internet"
        return Case(settings=case.settings, wish={"mode": "internet"})

    return case, cure


@plant("link.too-far")
def a_pause_that_no_link_allows(world: World, name: str) -> Any:
    case = Case(settings=world.settings(), wish={"max_downtime_ms": 5})
    return case, says(case)


@plant("link.transport")
def a_target_that_does_not_answer(world: World, name: str) -> Any:
    def cure(obstacle: Obstacle) -> Cured:
        world.cluster.nodes["c"].start()
        return None

    return Case(settings=world.settings(), target="c"), cure


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    try:
        types = Host(QEMU).machine_types
    except NotFound as missing:
        pytest.skip(f"{missing}; {missing.hint}")
    q35 = [name for name in types if name.startswith("pc-q35-") and name.count(".") == 1]
    newest, older = sorted(q35, key=lambda name: [int(n) for n in name[7:].split(".")])[:-3:-1]
    hosts = TwoHosts()
    with ExitStack() as stack:
        # A short path: sockets lie in it.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp")))
        if not RULES.exists():
            RULES.mkdir()
            stack.callback(RULES.rmdir)
        stack.enter_context(hosts)
        stack.callback(lambda: end_all(hosts))
        local = folder / "local"
        files = {side: folder / f"{side}-files" for side in "ab"}
        for made in (local, *files.values()):
            made.mkdir()
        (folder / "halt.rom").write_bytes(halting_rom())
        poorer = folder / "qemu"
        poorer.write_text(POORER.replace("NEWEST", newest.removeprefix("pc-q35-")))
        poorer.chmod(0o755)
        enter = {side: (*hosts.prefixes[side], "sh", "-ec", HOST, "sh") for side in "ab"}
        prefixes = {
            "a": (*enter["a"], str(local), "bridge0 bridge1", "", ""),
            "b": (*enter["b"], str(local), "bridge0", str(files["b"]), str(ROOM)),
            "c": hosts.prefixes["b"],
        }
        ports = {"a": ("a", 7400), "b": ("b", 7401), "c": ("b", 7402)}
        addresses = {name: f"{hosts.addresses[on]}:{port}" for name, (on, port) in ports.items()}
        cluster = Cluster(folder, addresses=addresses, prefixes=prefixes)
        for side, settings in (
            ("a", f'[machine.qemu]\nfiles = "{files["a"]}"\n{AGAINST_A_MODE}'),
            ("b", f'[machine.qemu]\nfiles = "{files["b"]}"\nbinary = "{poorer}"\n'),
        ):
            with cluster.nodes[side].config_path.open("a") as config:
                config.write(settings)
        for side in "ab":
            cluster.nodes[side].begin()
            stack.callback(cluster.nodes[side].stop)
        stack.callback(cluster.nodes["c"].stop)
        for side in "ab":
            cluster.nodes[side].wait_serving()
        yield World(
            folder=folder,
            hosts=hosts,
            cluster=cluster,
            newest=newest,
            older=older,
            files=files,
            local=local,
        )


def end_all(hosts: TwoHosts) -> None:
    """End what was started on the two hosts and outlives its node: machines and emulators."""
    for name in hosts.names.values():
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        for pid in listed.stdout.split():
            subprocess.run(["kill", "-KILL", pid], capture_output=True)


def blocking(plan: Mapping[str, Any]) -> list[Obstacle]:
    return [obstacle for obstacle in plan["obstacles"] if obstacle["blocks"]]


@pytest.mark.qemu
@pytest.mark.netns
@pytest.mark.slow
@pytest.mark.parametrize(("code", "make"), PLANTS)
def test_what_is_in_the_way_is_named_and_its_cure_works(
    code: str, make: Plant, world: World
) -> None:
    world.count += 1
    name = f"vm{world.count}"
    case, cure = make(world, name)
    world.machine(name, case.settings, memory_bytes=case.memory_bytes)
    if case.then is not None:
        case.then()
    plan = world.a.client.plan(name, case.target, **case.wish)
    found = blocking(plan)
    assert [obstacle["code"] for obstacle in found] == [code], found
    assert plan["blocked"]
    assert found[0]["what"]
    assert found[0]["cure"]

    cured = cure(found[0])
    if cured is not None and (cured.settings, cured.memory_bytes) != (
        case.settings,
        case.memory_bytes,
    ):
        world.delete(world.a, name)
        world.machine(name, cured.settings, memory_bytes=cured.memory_bytes)
    after = cured or case
    plan = world.a.client.plan(name, case.target, **after.wish)
    assert blocking(plan) == []
    assert not plan["blocked"]
    world.delete(world.a, name)


@pytest.mark.qemu
@pytest.mark.netns
@pytest.mark.slow
def test_all_obstacles_are_named_at_once_a_real_move_refuses_for_them_and_goes_when_cured(
    world: World,
) -> None:
    disk = raw_disk(world, "many.raw")
    cd = world.local / "many.iso"
    world.write("a", cd, bytes(2048))
    settings = world.settings(
        "-cdrom", str(cd), cpu="Haswell", machine_type=world.newest, disks=[disk]
    )
    world.machine("many", settings)
    codes = {"cpu.feature-missing", "machine-type.missing", "media.missing", "disk.stays"}
    exported = world.folder / "plan.json"
    command = [str(NOVACRON), "--config", str(world.a.config_path), "migrate", "many", "b"]
    shown = subprocess.run(
        [*command, "--plan", "--export", str(exported)], capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == Refused.exit_code, shown.stderr
    plan = json.loads(exported.read_text())
    assert {obstacle["code"] for obstacle in blocking(plan)} == codes
    for obstacle in blocking(plan):
        node = plan[obstacle["side"]]
        assert f"✗ {obstacle['code']} ({obstacle['side']} {node})" in shown.stdout
        assert obstacle["cure"] in shown.stdout

    refused = world.a.client.wait(world.a.client.migrate("many", "b")["id"])
    assert (refused["state"], refused["error"]["code"]) == ("failed", "refused")
    named = {obstacle["code"] for obstacle in refused["error"]["facts"]["obstacles"]}
    assert named == codes
    assert world.a.client.machine("many")["state"] == "running"
    assert [m["name"] for m in world.b.client.machines() if m["name"] == "many"] == []

    values = {
        obstacle["facts"]["setting"]: obstacle["facts"]["value"]
        for obstacle in blocking(plan)
        if "setting" in obstacle["facts"]
    }
    world.delete(world.a, "many")
    world.machine("many", {**settings, **values})
    world.copy_to_target(str(cd))
    done(world.a, world.a.client.migrate("many", "b", storage="copy"))
    until(lambda: world.b.client.machine("many")["state"] == "running", 20, str)
    facts = world.b.client.machine("many")["facts"]
    assert (facts["machine_type"], facts["cpu"]) == (values["machine_type"], values["cpu"])
    world.delete(world.b, "many")


@pytest.mark.qemu
@pytest.mark.netns
@pytest.mark.slow
def test_a_guest_that_writes_faster_than_its_link_carries_is_worth_knowing(world: World) -> None:
    rom = world.folder / "writing.rom"
    rom.write_bytes(writing_rom())
    settings = {"accel": "tcg", "machine_type": world.older, "arguments": ["-bios", str(rom)]}
    world.machine("writer", settings)
    plan = world.a.client.plan("writer", "b", rate_bytes_per_s=1_000_000)
    (found,) = plan["obstacles"]
    assert (found["code"], found["blocks"], plan["blocked"]) == ("link.too-slow", False, False)
    assert found["facts"]["dirty_bytes_per_s"] > 10_000_000
    wish = {found["facts"]["option"]: found["facts"]["value"]}
    plan = world.a.client.plan("writer", "b", rate_bytes_per_s=1_000_000, **wish)
    assert plan["obstacles"] == []
    # What counts is the memory that was written to, and not all that it was given.
    used = world.a.client.machine("writer")["facts"]["resident_bytes"]
    assert 15 * MIB <= used <= 16 * MIB
    low, median, high = plan["estimate"]["bytes"]
    assert 0 <= low <= median <= high
    world.delete(world.a, "writer")
