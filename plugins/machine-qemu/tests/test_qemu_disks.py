"""Disks that go along with their machine: content, what stays behind, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from novacron import (
    MachineError,
    MachineSpec,
    MachineState,
    MoveLimits,
    NodeFacts,
    NovacronError,
    Refused,
)
from novacron_machine_qemu import GuestOptions, QemuDriver, QemuMachine, Settings, build_guest
from novacron_machine_qemu._arrive import Arriving
from novacron_machine_qemu._disk_files import note_of
from novacron_machine_qemu._host import Host
from novacron_machine_qemu._landing import Disk
from novacron_machine_qemu._leave import Leaving
from novacron_machine_qemu.guest import APPEND
from novacron_qemu.counter import counter_rom

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(180)]

T = TypeVar("T")
MIB = 1 << 20
MIRROR = Path(__file__).with_name("mirror_that_dies.py")
COPY = MoveLimits(storage="copy")


def write_at(image: Path, *places: tuple[int, int, int]) -> None:
    """Fill parts of a qcow2 image: which byte, where, and how many of them."""
    commands = [f"write -P {value} {offset} {length}" for value, offset, length in places]
    argv = ["qemu-io", "-f", "qcow2", *[part for c in commands for part in ("-c", c)], str(image)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=60)


def make(image: Path, size: int, *, format: str = "qcow2") -> None:
    argv = ["qemu-img", "create", "-q", "-f", format, str(image), str(size)]
    subprocess.run(argv, check=True, timeout=60)


def same(one: Path, other: Path, format: str = "qcow2") -> bool:
    argv = ["qemu-img", "compare", "-U", "-f", format, "-F", format, str(one), str(other)]
    return subprocess.run(argv, stdout=subprocess.DEVNULL, timeout=60).returncode == 0


class Sites:
    """Two nodes' ends of a move, with a folder of files each."""

    def __init__(self, folder: Path, spec: MachineSpec, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        self._folder = folder
        self._settings = settings
        self.spec = spec
        self.files = {name: folder / name / "files" for name in "ab"}
        for files in self.files.values():
            files.mkdir(parents=True)
        self.machines: dict[str, QemuMachine] = {}
        self.sent_bytes = 0
        self.reopen("a")
        self.reopen("b")

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(what, 60)

        return self._runner.run(bounded())

    def reopen(self, name: str) -> QemuMachine:
        """The machine as a node that has just started sees it."""
        home = self._folder / name / "home"
        home.mkdir(mode=0o700, exist_ok=True)
        settings = Settings(files=str(self.files[name]), **self._settings)
        facts = NodeFacts(name=name, state_dir=self._folder / name)
        self.machines[name] = self.run(QemuDriver(settings, facts).open(self.spec, home))
        return self.machines[name]

    @property
    def a(self) -> QemuMachine:
        return self.machines["a"]

    @property
    def b(self) -> QemuMachine:
        return self.machines["b"]

    async def begin(self, source: str, target: str, storage: str) -> tuple[Leaving, Arriving]:
        origin = {**self.machines[source].describe(), "storage": storage}
        incoming = await self.machines[target].receive(json.loads(json.dumps(origin)))
        try:
            outgoing = await self.machines[source].send(MoveLimits(storage=storage))
            try:
                outgoing.peer_has(incoming.have())
            except BaseException:
                await outgoing.cancel()
                raise
        except BaseException:
            await incoming.abandon()
            raise
        return outgoing, incoming

    async def copy(self, source: str, target: str, storage: str = "copy") -> None:
        """To where both are paused and have the same digest."""
        outgoing, incoming = await self.begin(source, target, storage)
        pumping = asyncio.create_task(asyncio.to_thread(self._pump, outgoing, incoming))
        try:
            await asyncio.wait(
                [pumping, asyncio.create_task(outgoing.converged())],
                return_when=asyncio.FIRST_COMPLETED,
            )
            if pumping.done():
                await pumping
            await outgoing.switch_over()
            await pumping
            digest = await self.machines[source].digest()
            await incoming.finish()
            assert await self.machines[target].digest() == digest
        except BaseException:
            await outgoing.cancel()
            await incoming.abandon()
            raise

    def _pump(self, outgoing: Leaving, incoming: Arriving) -> None:
        self.sent_bytes = 0
        while (batch := outgoing.read()) is not None:
            self.sent_bytes += batch.nbytes
            incoming.write(batch)

    def move(self, source: str, target: str, storage: str = "copy") -> int:
        """A whole move; returns the bytes of state that were sent."""
        self.run(self.copy(source, target, storage))
        self.run(self.machines[target].resume())
        self.run(self.machines[source].retire())
        self.reopen(source)
        return self.sent_bytes

    def jobs(self, name: str = "a") -> list[Any]:
        async def ask() -> list[Any]:
            monitor = self.machines[name]._monitor
            nodes = await monitor.execute("query-named-block-nodes")
            jobs: list[Any] = await monitor.execute("query-block-jobs")
            return jobs + [n for n in nodes if "leaving" in n.get("node-name", "")]

        return self.run(ask())

    def qmp(self, name: str, command: str, **arguments: Any) -> Any:
        return self.run(self.machines[name]._monitor.execute(command, arguments))

    def left(self, name: str) -> list[str]:
        return sorted(path.name for path in self.files[name].iterdir())

    def close(self) -> None:
        for machine in self.machines.values():
            self.run(machine.stop())
        self._runner.close()


def rom_spec(folder: Path, *disks: dict[str, Any]) -> MachineSpec:
    rom = folder / "counter.rom"
    rom.write_bytes(counter_rom())
    settings = {"arguments": ["-bios", str(rom)], "accel": "tcg", "disks": list(disks)}
    return MachineSpec(name="m", driver="qemu", memory_bytes=16 << 20, settings=settings)


@pytest.fixture
def sites(tmp_path: Path, qemu_host: Host) -> Iterator[Sites]:
    """A machine with a sparse qcow2 disk of 256 MiB that holds 8 MiB; it is not started."""
    assert qemu_host.version
    spec = rom_spec(tmp_path, {"path": "disk.qcow2", "format": "qcow2"})
    made = Sites(tmp_path, spec)
    disk = made.files["a"] / "disk.qcow2"
    make(disk, 256 * MIB)
    write_at(disk, (7, 0, 4 * MIB), (8, 200 * MIB, 4 * MIB - 512))
    try:
        yield made
    finally:
        made.close()


def test_a_disk_goes_along_and_back_and_the_way_back_costs_the_difference(sites: Sites) -> None:
    sites.run(sites.a.start())
    first = sites.move("a", "b")
    assert 8 * MIB - 512 <= first < 9 * MIB
    assert same(sites.files["a"] / "disk.qcow2", sites.files["b"] / "disk.qcow2")
    assert (sites.left("a"), sites.left("b")) == (
        ["disk.qcow2", "disk.qcow2.novacron"],
        ["disk.qcow2"],
    )
    # The guest is a ROM that leaves its disk alone; while it stands still we write in its place.
    sites.run(sites.b.stop())
    write_at(sites.files["b"] / "disk.qcow2", (9, 100 * MIB, MIB), (0, 0, MIB), (1, 3 * MIB, 512))
    sites.run(sites.b.start())
    second = sites.move("b", "a")
    assert MIB <= second < MIB + MIB // 2
    assert same(sites.files["a"] / "disk.qcow2", sites.files["b"] / "disk.qcow2")
    assert sites.jobs() == []


def test_two_raw_disks_arrive_whole(tmp_path: Path, qemu_host: Host) -> None:
    sites = Sites(tmp_path, rom_spec(tmp_path, {"path": "one.raw"}, {"path": "two.raw"}))
    contents = {"one.raw": os.urandom(5 * MIB + 4096), "two.raw": bytes(MIB) + b"two " * 1024}
    try:
        for name, content in contents.items():
            (sites.files["a"] / name).write_bytes(content)
        sites.run(sites.a.start())
        sites.move("a", "b")
        for name, content in contents.items():
            assert (sites.files["b"] / name).read_bytes() == content
    finally:
        sites.close()


def test_disks_that_qemu_would_not_take_are_refused_with_the_cure(
    tmp_path: Path, qemu_host: Host
) -> None:
    disks: list[dict[str, Any]] = [{"path": "one.raw"}, {"path": "two.raw", "readonly": True}]
    sites = Sites(tmp_path, rom_spec(tmp_path, *disks))
    try:
        (sites.files["a"] / "one.raw").write_bytes(bytes(MIB + 512))
        (sites.files["a"] / "two.raw").write_bytes(bytes(MIB))
        sites.run(sites.a.start())
        with pytest.raises(Refused, match="no whole pages") as refused:
            sites.move("a", "b")
        assert "qemu-img resize" in refused.value.hint
        with pytest.raises(Refused, match="read-only") as refused:
            sites.run(sites.a.send(COPY))
        assert "shared = true" in refused.value.hint
    finally:
        sites.close()


def test_the_source_is_as_it_was_after_a_move_that_was_given_up(sites: Sites) -> None:
    async def begin_and_give_up() -> None:
        outgoing, incoming = await sites.begin("a", "b", "copy")
        batch = await asyncio.to_thread(outgoing.read)
        assert batch is not None
        await asyncio.to_thread(incoming.write, batch)
        await outgoing.cancel()
        await incoming.abandon()
        with pytest.raises(MachineError):
            await asyncio.to_thread(outgoing.read)

    sites.run(sites.a.start())
    sites.run(begin_and_give_up())
    assert sites.run(sites.a.state()) is MachineState.RUNNING
    assert (sites.jobs(), sites.left("b")) == ([], [])
    sites.move("a", "b")


def test_a_forced_pause_takes_the_disks_along(sites: Sites) -> None:
    async def force() -> None:
        outgoing, incoming = await sites.begin("a", "b", "copy")
        pumping = asyncio.create_task(asyncio.to_thread(sites._pump, outgoing, incoming))
        await outgoing.switch_over()
        await pumping
        digest = await sites.a.digest()
        await incoming.finish()
        assert await sites.b.digest() == digest

    sites.run(sites.a.start())
    sites.run(force())
    assert same(sites.files["a"] / "disk.qcow2", sites.files["b"] / "disk.qcow2")


def test_a_node_that_is_killed_at_the_destination_leaves_nothing(sites: Sites) -> None:
    async def begin() -> Leaving:
        outgoing, incoming = await sites.begin("a", "b", "copy")
        batch = await asyncio.to_thread(outgoing.read)
        assert batch is not None
        await asyncio.to_thread(incoming.write, batch)
        return outgoing

    sites.run(sites.a.start())
    outgoing = sites.run(begin())
    sites.run(outgoing.cancel())
    sites.run(sites.reopen("b").discard())
    assert (sites.run(sites.b.state()), sites.left("b")) == (MachineState.STOPPED, [])
    sites.move("a", "b")


def test_a_node_that_is_killed_at_the_source_begins_anew(sites: Sites) -> None:
    sites.run(sites.a.start())
    home = sites.a.console_log().parent
    command = [sys.executable, str(MIRROR), str(home), str(sites.files["a"])]
    spec = {"name": sites.spec.name, "settings": dict(sites.spec.settings)}
    # It ends as soon as the first blocks have come, QEMU being in the middle of writing more.
    died = subprocess.run(
        [*command, json.dumps(spec)], timeout=60, capture_output=True, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    sites.reopen("a")
    assert sites.run(sites.a.state()) is MachineState.RUNNING
    sites.move("a", "b")
    assert same(sites.files["a"] / "disk.qcow2", sites.files["b"] / "disk.qcow2")


def test_a_file_that_the_machine_did_not_leave_is_not_written_over(sites: Sites) -> None:
    sites.run(sites.a.start())
    strange = sites.files["b"] / "disk.qcow2"
    make(strange, 256 * MIB)
    before = strange.read_bytes()
    with pytest.raises(Refused, match="did not leave it here") as refused:
        sites.move("a", "b")
    assert "move it away" in refused.value.hint
    assert (strange.read_bytes(), sites.left("b")) == (before, ["disk.qcow2"])
    strange.unlink()
    sites.move("a", "b")
    # What it left is its own, until somebody touches it.
    left = sites.files["a"] / "disk.qcow2"
    os.utime(left, ns=(1, 1))
    with pytest.raises(Refused, match="did not leave it here"):
        sites.move("b", "a")
    assert left.exists()


def test_a_base_with_a_byte_that_differs_is_found_out_by_its_digest(sites: Sites) -> None:
    sites.run(sites.a.start())
    sites.move("a", "b")
    left = sites.files["a"] / "disk.qcow2"
    status = left.stat()
    data = bytearray(left.read_bytes())
    data[data.index(b"\7" * 4096) + 100] ^= 1
    with left.open("r+b") as file:
        file.write(data)
    os.utime(left, ns=(status.st_atime_ns, status.st_mtime_ns))  # nothing shows from outside
    assert not same(left, sites.files["b"] / "disk.qcow2")
    assert 64 << 10 <= sites.move("b", "a") < 512 << 10
    assert same(left, sites.files["b"] / "disk.qcow2")


def test_what_a_retry_after_a_partial_return_sends_is_right(sites: Sites) -> None:
    sites.run(sites.a.start())
    sites.move("a", "b")
    sites.run(sites.b.stop())
    write_at(sites.files["b"] / "disk.qcow2", (5, 0, 4 * MIB))
    sites.run(sites.b.start())

    async def begin_and_give_up() -> None:
        outgoing, incoming = await sites.begin("b", "a", "copy")
        for _ in range(2):
            batch = await asyncio.to_thread(outgoing.read)
            assert batch is not None
            await asyncio.to_thread(incoming.write, batch)
        await outgoing.cancel()
        await incoming.abandon()

    sites.run(begin_and_give_up())
    assert sites.left("a") == ["disk.qcow2", "disk.qcow2.novacron"]
    assert sites.move("b", "a") < 4 * MIB
    assert same(sites.files["a"] / "disk.qcow2", sites.files["b"] / "disk.qcow2")


def test_what_stays_behind_is_removed_if_the_settings_say_so(
    tmp_path: Path, qemu_host: Host
) -> None:
    spec = rom_spec(tmp_path, {"path": "disk.raw"})
    sites = Sites(tmp_path, spec, keep_disks=False)
    try:
        (sites.files["a"] / "disk.raw").write_bytes(b"x" * MIB)
        sites.run(sites.a.start())
        sites.move("a", "b")
        assert (sites.left("a"), sites.left("b")) == ([], ["disk.raw"])
    finally:
        sites.close()


def test_without_a_word_on_its_disks_a_machine_stays(sites: Sites) -> None:
    sites.run(sites.a.start())
    with pytest.raises(Refused, match="would leave behind") as refused:
        sites.run(sites.a.send(MoveLimits()))
    assert "--with-storage" in refused.value.hint


def test_a_disk_that_changes_its_size_is_refused_and_the_retry_goes_through(sites: Sites) -> None:
    sites.run(sites.a.start())

    async def resized_between() -> None:
        origin = {**sites.a.describe(), "storage": "copy"}
        incoming = await sites.b.receive(origin)
        await sites.a._monitor.execute(
            "block_resize", {"node-name": "novacron-disk0", "size": 300 * MIB}
        )
        outgoing = await sites.a.send(COPY)
        try:
            outgoing.peer_has(incoming.have())
        finally:
            await outgoing.cancel()
            await incoming.abandon()

    with pytest.raises(Refused, match="changed its size"):
        sites.run(resized_between())
    assert (sites.jobs(), sites.left("b")) == ([], [])

    async def resized_meanwhile() -> None:
        outgoing, incoming = await sites.begin("a", "b", "copy")
        batch = await asyncio.to_thread(outgoing.read)
        for command, arguments in (
            ("block_resize", {"node-name": "novacron-disk0", "size": 400 * MIB}),
            (
                "blockdev-snapshot-sync",
                {"node-name": "novacron-disk0", "snapshot-file": str(sites.files["a"] / "s")},
            ),
        ):
            with pytest.raises(MachineError):  # QEMU itself does not let anybody
                await sites.a._monitor.execute(command, arguments)
        assert batch is not None
        incoming.write(batch)
        pumping = asyncio.create_task(asyncio.to_thread(sites._pump, outgoing, incoming))
        await outgoing.converged()
        await outgoing.switch_over()
        await pumping
        digest = await sites.a.digest()
        await incoming.finish()
        assert await sites.b.digest() == digest

    sites.run(resized_meanwhile())


def test_a_machine_with_a_snapshot_is_refused_with_the_cure(sites: Sites) -> None:
    sites.run(sites.a.start())
    overlay = sites.files["a"] / "snapshot.qcow2"
    sites.qmp(
        "a",
        "blockdev-snapshot-sync",
        **{"device": "virtio0", "snapshot-file": str(overlay), "format": "qcow2"},
    )
    with pytest.raises(Refused, match="a snapshot was taken") as refused:
        sites.move("a", "b")
    assert "block-commit" in refused.value.hint
    assert sites.left("b") == []


def test_a_disk_over_a_base_image_arrives_flat(tmp_path: Path, qemu_host: Host) -> None:
    sites = Sites(tmp_path, rom_spec(tmp_path, {"path": "disk.qcow2", "format": "qcow2"}))
    base, disk = sites.files["a"] / "base.qcow2", sites.files["a"] / "disk.qcow2"
    try:
        make(base, 64 * MIB)
        write_at(base, (3, 0, 4 * MIB))
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2"]
        subprocess.run([*argv, str(disk)], check=True, cwd=sites.files["a"])
        write_at(disk, (4, MIB, MIB))
        sites.run(sites.a.start())
        sites.move("a", "b")
        assert sites.left("b") == ["disk.qcow2"]
        assert same(disk, sites.files["b"] / "disk.qcow2")
        # What lies over an image of others is no base to write to: it is made anew.
        sites.move("b", "a")
        assert same(disk, sites.files["b"] / "disk.qcow2")
    finally:
        sites.close()


def test_a_damaged_image_is_refused_with_the_cure(sites: Sites) -> None:
    sites.run(sites.a.start())
    with (sites.files["a"] / "disk.qcow2").open("r+b") as file:
        file.write(b"junk")
    with pytest.raises(Refused, match="nothing sound of its disk") as refused:
        sites.move("a", "b")
    assert "qemu-img check" in refused.value.hint
    assert sites.left("b") == []


def test_a_disk_without_room_is_refused_before_anything_is_made(sites: Sites) -> None:
    sites.run(sites.a.start())
    origin = {**sites.a.describe(), "storage": "copy"}
    disk = {**origin["disks"][0], "size_bytes": 8 << 40, "content_bytes": 8 << 40}
    with pytest.raises(Refused, match="bytes free") as refused:
        sites.run(sites.b.receive({**origin, "disks": [disk]}))
    assert refused.value.hint.startswith("free ")
    assert sites.left("b") == []


def test_a_target_that_fills_up_fails_the_move_and_the_retry_goes_through(
    sites: Sites, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a small file system needs root")
    mounted = sites.files["b"]
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(mounted)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this host lets nobody mount a tmpfs")
    try:
        sites.run(sites.a.start())

        async def fill_up() -> None:
            outgoing, incoming = await sites.begin("a", "b", "copy")
            (mounted / "ballast").write_bytes(b"x" * (78 * MIB))
            try:
                with pytest.raises(MachineError, match="disk 0 cannot be written"):
                    await asyncio.to_thread(sites._pump, outgoing, incoming)
            finally:
                await outgoing.cancel()
                await incoming.abandon()

        sites.run(fill_up())
        assert sites.run(sites.a.state()) is MachineState.RUNNING
        assert (sites.jobs(), sites.left("b")) == ([], ["ballast"])
        (mounted / "ballast").unlink()
        sites.move("a", "b")
    finally:
        sites.run(sites.b.stop())
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def test_shared_disks_must_be_the_very_same(sites: Sites, tmp_path: Path) -> None:
    sites.run(sites.a.start())
    with pytest.raises(NovacronError, match="there is no disk"):
        sites.move("a", "b", "shared")
    # A copy looks the same and is another one.
    copy = sites.files["b"] / "disk.qcow2"
    copy.write_bytes((sites.files["a"] / "disk.qcow2").read_bytes())
    with pytest.raises(Refused, match="is not the one that the target finds") as refused:
        sites.move("a", "b", "shared")
    assert "mount the same storage" in refused.value.hint
    assert sites.left("b") == ["disk.qcow2"]
    copy.unlink()
    sites.files["b"].rmdir()
    sites.files["b"].symlink_to(sites.files["a"])
    assert sites.move("a", "b", "shared") < MIB
    assert sites.left("a") == ["disk.qcow2"]


def test_a_server_that_does_not_speak_nbd_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def answer() -> None:
            stream, _ = listener.accept()
            with stream:
                stream.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(MachineError, match="does not serve disk 3"):
            Disk(path, 3)
        thread.join()


def test_a_peer_that_breaks_the_rules_of_nbd_fails_the_move_and_nothing_else(
    sites: Sites,
) -> None:
    async def break_it() -> None:
        outgoing, incoming = await sites.begin("a", "b", "copy")
        assert outgoing._disks is not None
        served = outgoing._disks._served[0]
        pumping = asyncio.create_task(asyncio.to_thread(sites._pump, outgoing, incoming))
        assert served._stream is not None
        served._stream.sendall(b"garbage in between")  # QEMU's side hears what is no answer
        with pytest.raises(MachineError):
            await outgoing.converged()
        with pytest.raises(MachineError):
            await pumping
        await outgoing.cancel()
        await incoming.abandon()

    sites.run(sites.a.start())
    sites.run(break_it())
    assert sites.run(sites.a.state()) is MachineState.RUNNING
    assert (sites.jobs(), sites.left("b")) == ([], [])
    sites.move("a", "b")


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory, qemu_host: Host) -> dict[str, Any]:
    assert qemu_host.version
    options = GuestOptions(tick_s=0.02, disk=True, dirty_period_s=0.02)
    try:
        kernel, initrd = build_guest(tmp_path_factory.mktemp("guest"), options)
    except NovacronError as error:
        pytest.skip(f"{error}; {error.hint}")
    return {"kernel": str(kernel), "initrd": str(initrd), "append": APPEND, "accel": "tcg"}


def test_a_guest_that_writes_to_its_disk_finds_on_it_what_it_wrote_before_the_move(
    tmp_path: Path, guest: dict[str, Any]
) -> None:
    settings = {**guest, "disks": [{"path": "disk.qcow2", "format": "qcow2"}]}
    spec = MachineSpec(name="guest", driver="qemu", memory_bytes=96 << 20, settings=settings)
    sites = Sites(tmp_path, spec)
    logs: list[bytes] = []

    def said(name: str) -> str:
        here = sites.machines[name].console_log()
        return (b"".join(logs) + (here.read_bytes() if here.exists() else b"")).decode()

    def wait_for_writes(name: str, more: int) -> None:
        wanted, deadline = said(name).count("wrote ") + more, time.monotonic() + 60
        while said(name).count("wrote ") < wanted:
            assert time.monotonic() < deadline, said(name)[-500:]
            time.sleep(0.02)

    try:
        disk = sites.files["a"] / "disk.qcow2"
        make(disk, 64 * MIB)
        write_at(disk, (7, 32 * MIB, 8 * MIB))
        sites.run(sites.a.start())
        wait_for_writes("a", 9)
        for source, target in (("a", "b"), ("b", "a")):
            sites.run(sites.copy(source, target))
            assert same(sites.files["a"] / "disk.qcow2", sites.files["b"] / "disk.qcow2")
            logs.append(sites.machines[source].console_log().read_bytes())
            sites.run(sites.machines[target].resume())
            sites.run(sites.machines[source].retire())
            sites.reopen(source)
            wait_for_writes(target, 9)
        heard = said("a")
        assert "disk wrong" not in heard
        wrote = [int(n) for n in re.findall(r"wrote (\d+)", heard)]
        assert wrote == list(range(1, len(wrote) + 1))
        assert not note_of(sites.files["a"] / "disk.qcow2").exists()
    finally:
        sites.close()
