"""Real QEMU machines: what the contract promises, tried on a guest that counts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from novacron import (
    Batch,
    ConfigError,
    Conflict,
    MachineError,
    MachineSpec,
    MachineState,
    MoveLimits,
    NovacronError,
    Refused,
)
from novacron_machine_qemu import QemuMachine, Settings
from novacron_machine_qemu._leave import Leaving
from novacron_qemu.counter import read_counter
from novacron_qemu.stream import StreamSplitter

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(180)]

SLOW = MoveLimits(max_downtime_ms=1, rate_bytes_per_s=1 << 20)
ANSWER_S = 30.0
READER = Path(__file__).with_name("reader_that_dies.py")

# conftest.py is no module to import from; its World is what the fixture gives.
World = Any


def process_of(machine: QemuMachine) -> int:
    record = json.loads((machine.console_log().parent / "run.json").read_text())
    return int(record["pid"])


def left_in(machine: QemuMachine) -> list[str]:
    return sorted(path.name for path in machine.console_log().parent.iterdir())


def said_after(line: bytes, wanted: bytes, machine: QemuMachine) -> bytes:
    """Type a line; what the guest prints until it has printed something."""
    heard = b""
    deadline = time.monotonic() + ANSWER_S
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(ANSWER_S)
        console.connect(str(machine.console()))
        console.sendall(line)
        while wanted not in heard:
            piece = console.recv(65536)
            assert piece, f"the console was closed after {heard[-500:]!r}"
            heard += piece
            # The guest counts meanwhile: without this a lost answer is waited for for ever.
            assert time.monotonic() < deadline, f"no {wanted!r} in {heard[-500:]!r}"
    return heard


def drain(outgoing: Leaving) -> None:
    while outgoing.read() is not None:
        pass


def test_not_one_instruction_is_executed_while_paused(world: World) -> None:
    world.run(world.here.pause())
    counted = world.ticks()
    digest = world.run(world.here.digest())
    again = world.run(world.here.digest())
    assert (again, world.ticks(), world.state()) == (digest, counted, MachineState.PAUSED)
    world.run(world.here.resume())
    world.wait_for_ticks()
    world.run(world.here.pause())
    assert world.run(world.here.digest()) != digest
    world.run(world.here.resume())


def test_what_the_state_does_not_allow_is_refused_and_changes_nothing(world: World) -> None:
    for forbidden in (world.here.resume, world.here.start, world.here.digest):
        with pytest.raises(Conflict):
            world.run(forbidden())
    with pytest.raises(Conflict):
        world.run(world.here.receive(world.here.describe()))
    world.run(world.here.pause())
    with pytest.raises(Conflict):
        world.run(world.here.pause())
    world.run(world.here.resume())
    with pytest.raises(Conflict):
        world.run(world.here.resume())
    world.wait_for_ticks()


def test_three_moves_there_and_back_lose_no_tick_and_no_byte(world: World) -> None:
    for _ in range(6):
        world.wait_for_ticks()
        target = world.elsewhere()
        world.run(world.copy(target))
        assert (world.state(), world.state(target)) == (MachineState.PAUSED, MachineState.PAUSED)
        assert world.run(world.here.digest()) == world.run(target.digest())
        world.run(target.resume())
        world.moved_to(target)
    world.wait_for_ticks()
    assert world.counted_exactly()


def test_a_move_can_be_forced_while_the_guest_outruns_it(world: World) -> None:
    async def force(outgoing: Leaving) -> None:
        await outgoing.switch_over()
        assert await world.here.state() is MachineState.PAUSED

    target = world.elsewhere()
    world.run(world.copy(target, MoveLimits(max_downtime_ms=1, rate_bytes_per_s=20 << 20), force))
    assert world.run(world.here.digest()) == world.run(target.digest())
    world.run(target.resume())
    world.moved_to(target)
    world.wait_for_ticks()
    assert world.counted_exactly()


def test_cancelling_a_copy_leaves_the_machine_running(world: World) -> None:
    async def begin_and_cancel() -> None:
        outgoing = await world.here.send(SLOW)
        reading = asyncio.create_task(asyncio.to_thread(drain, outgoing))
        await asyncio.to_thread(outgoing.progress)
        await outgoing.cancel()
        await outgoing.cancel()
        with pytest.raises(MachineError):
            await reading
        with pytest.raises(MachineError):
            await asyncio.to_thread(outgoing.read)
        with pytest.raises(MachineError):
            await outgoing.switch_over()

    world.run(begin_and_cancel())
    assert world.state() is MachineState.RUNNING
    world.wait_for_ticks()
    assert world.counted_exactly()


def test_cancelling_a_converged_move_gives_the_machine_back(world: World) -> None:
    async def converge_and_cancel() -> None:
        outgoing = await world.here.send(MoveLimits(max_downtime_ms=300))
        reading = asyncio.create_task(asyncio.to_thread(drain, outgoing))
        await outgoing.converged()
        assert await world.here.state() is MachineState.PAUSED
        await outgoing.cancel()
        with pytest.raises(MachineError):
            await reading

    world.run(converge_and_cancel())
    if world.state() is MachineState.PAUSED:
        world.run(world.here.resume())
    world.wait_for_ticks()
    assert world.counted_exactly()


def test_a_machine_that_left_whole_stays_paused_until_it_is_rolled_back(world: World) -> None:
    target = world.elsewhere()
    outgoing, incoming = world.run(world.copy(target))
    world.run(outgoing.cancel())
    assert (world.state(), world.state(target)) == (MachineState.PAUSED, MachineState.PAUSED)
    with pytest.raises(Conflict):
        world.run(world.here.send(MoveLimits()))
    world.run(incoming.abandon())
    world.run(incoming.abandon())
    assert (world.state(target), left_in(target)) == (MachineState.STOPPED, [])
    world.run(world.here.resume())
    world.wait_for_ticks()
    assert world.counted_exactly()
    world.run(world.copy(target))
    world.run(target.resume())
    world.moved_to(target)
    world.wait_for_ticks()
    assert world.counted_exactly()


def test_a_machine_that_runs_is_not_abandoned(world: World) -> None:
    target = world.elsewhere()
    _, incoming = world.run(world.copy(target))
    world.run(target.resume())
    with pytest.raises(Conflict):
        world.run(incoming.abandon())
    world.moved_to(target)
    world.wait_for_ticks()
    assert world.counted_exactly()


def test_a_copy_that_does_not_converge_is_given_up_and_the_guest_runs(
    counter_world: World,
) -> None:
    # At 256 KiB/s and 1 ms less than a page may be left, and this guest writes all the time.
    limits = MoveLimits(max_downtime_ms=1, rate_bytes_per_s=256 << 10)
    home = counter_world.here.console_log().parent
    machine = counter_world.open(home, Settings(max_rounds=3))

    async def try_to_move() -> None:
        outgoing = await machine.send(limits)
        reading = asyncio.create_task(asyncio.to_thread(drain, outgoing))
        try:
            with pytest.raises(MachineError, match="faster than it leaves"):
                await outgoing.converged()
            assert await machine.state() is MachineState.RUNNING
        finally:
            await outgoing.cancel()
        with pytest.raises(MachineError):
            await reading

    counter_world.run(machine.start())
    counter_world.run(try_to_move())
    assert counter_world.state(machine) is MachineState.RUNNING
    before = read_counter(machine.console_log())
    counter_world.wait(lambda: read_counter(machine.console_log()) > before, "the guest goes on")


@pytest.mark.parametrize("phase", ["copying", "converged", "switched"])
def test_the_machine_goes_on_when_the_node_that_reads_it_is_killed(
    world: World, phase: str, tmp_path: Path
) -> None:
    home = world.here.console_log().parent
    spec = {"name": world.spec.name, "memory_bytes": world.spec.memory_bytes}
    order = {**spec, "settings": world.spec.settings, "home": str(home), "phase": phase}
    reader = subprocess.Popen(
        [sys.executable, str(READER), json.dumps(order)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == f"{phase}\n"
    finally:
        reader.kill()
        reader.communicate()
    machine = world.open(home)
    if phase == "copying":
        assert world.state(machine) is MachineState.RUNNING
    elif world.state(machine) is MachineState.PAUSED:
        world.run(machine.resume())
    assert world.state(machine) is MachineState.RUNNING
    world.wait_for_ticks()
    assert world.counted_exactly()
    world.here = machine
    target = world.elsewhere()
    world.run(world.copy(target))
    assert world.run(world.here.digest()) == world.run(target.digest())
    world.run(target.resume())
    world.moved_to(target)


def test_a_node_that_restarts_finds_its_machines_as_they_are(world: World) -> None:
    again = world.open(world.here.console_log().parent)
    assert world.state(again) is MachineState.RUNNING
    world.run(again.pause())
    assert world.state() is MachineState.PAUSED
    assert again.describe() == world.here.describe()
    world.run(again.resume())
    target = world.elsewhere()
    world.run(target.receive(world.here.describe()))
    adopted = world.open(target.console_log().parent)
    assert world.state(adopted) is MachineState.RECEIVING
    for forbidden in (adopted.resume, adopted.pause, adopted.start, adopted.digest):
        with pytest.raises(Conflict):
            world.run(forbidden())
    world.run(adopted.stop())
    assert world.state(target) is MachineState.STOPPED


def test_the_console_answers(world: World) -> None:
    assert b"echo: hello" in said_after(b"hello\n", b"echo: hello", world.here)
    assert world.counted_exactly()


@pytest.mark.parametrize(
    "change",
    [
        {"driver": "wasm"},
        {"memory_bytes": 64 << 20},
        {"memory_bytes": "lots"},
        {"cpus": 2},
        {"machine_type": "pc-q35-99.0"},
        {"accel": "auto"},
        {"accel": "hvf"},
        {"cpu": "host", "processor_flags": ["sees-the-future"]},
        {"files": {"kernel": "0" * 64}},
        {"files": {"firmware": "0" * 64}},
        {"qemu": "new"},
        {"qemu": None},
    ],
    ids=str,
)
def test_an_origin_that_could_not_run_here_is_refused_with_a_cure(
    world: World, change: dict[str, Any]
) -> None:
    target = world.elsewhere()
    with pytest.raises(Refused) as refusal:
        world.run(target.receive({**world.here.describe(), **change}))
    assert refusal.value.hint
    assert left_in(target) == []


@pytest.mark.parametrize("cut", [0, 1, 5, 40])
def test_a_stream_that_is_cut_never_becomes_a_machine(world: World, cut: int) -> None:
    async def cut_short() -> None:
        incoming = await target.receive(world.here.describe())
        outgoing = await world.here.send(MoveLimits(max_downtime_ms=300))
        for _ in range(cut):
            batch = await asyncio.to_thread(outgoing.read)
            assert batch is not None
            await asyncio.to_thread(incoming.write, batch)
        await outgoing.cancel()
        with pytest.raises(MachineError) as error:
            await incoming.finish()
        assert error.value.hint
        await incoming.abandon()

    target = world.elsewhere()
    world.run(cut_short())
    assert (world.state(target), left_in(target)) == (MachineState.STOPPED, [])
    assert world.state() is MachineState.RUNNING


def test_a_stream_that_is_none_is_refused(world: World) -> None:
    async def send_rubbish() -> None:
        incoming = await target.receive(world.here.describe())
        splitter = StreamSplitter()
        batches = splitter.feed(b"rubbish" * 500_000) + splitter.end()

        async def send() -> None:
            for batch in batches:
                await asyncio.to_thread(incoming.write, batch)
            await incoming.finish()

        with pytest.raises(MachineError):
            await send()
        await incoming.abandon()

    target = world.elsewhere()
    world.run(send_rubbish())
    assert left_in(target) == []


def test_a_batch_that_no_splitter_makes_is_the_peers_fault(world: World) -> None:
    async def send_nonsense() -> None:
        incoming = await target.receive(world.here.describe())
        with pytest.raises(NovacronError) as error:
            incoming.write(Batch(layout=b"\xff" * 99, addresses=b"\x00" * 8, pages=b"\x01" * 4096))
        assert error.value.code == "peer-protocol"
        await incoming.abandon()

    target = world.elsewhere()
    world.run(send_nonsense())
    assert left_in(target) == []


def test_a_machine_whose_process_died_is_lost_and_starts_again(counter_world: World) -> None:
    machine = counter_world.here
    assert counter_world.state() is MachineState.STOPPED
    counter_world.run(machine.stop())
    counter_world.run(machine.start())
    pid = process_of(machine)
    process = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    counter_world.wait(lambda: counter_world.state() is MachineState.LOST, "the machine is lost")
    os.close(process)
    with pytest.raises(Conflict):
        counter_world.run(machine.receive(machine.describe()))
    counter_world.run(machine.start())
    assert counter_world.state() is MachineState.RUNNING
    counter_world.run(machine.stop())
    assert counter_world.state() is MachineState.STOPPED
    assert left_in(machine) == ["console.log", "qemu.log"]


def test_another_process_with_the_same_id_is_not_taken_for_the_machine(
    counter_world: World,
) -> None:
    machine = counter_world.here
    counter_world.run(machine.start())
    record_file = machine.console_log().parent / "run.json"
    record = json.loads(record_file.read_text())
    genuine = record["pid"]
    record_file.write_text(json.dumps({**record, "pid": os.getpid()}))
    assert counter_world.state() is MachineState.LOST
    # A node that was killed before it could note the process finds it by its arguments.
    record_file.write_text(json.dumps({**record, "pid": None}))
    assert counter_world.state() is MachineState.RUNNING
    counter_world.run(machine.stop())
    # Where nobody collects the dead, a zombie may be left of it; elsewhere it is collected now.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        assert Path(f"/proc/{genuine}/cmdline").read_bytes() == b""


def test_the_answers_that_a_killed_node_left_open_are_not_taken_for_ours(
    counter_world: World,
) -> None:
    machine = counter_world.here
    counter_world.run(machine.start())
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as killed, killed.makefile("rwb") as lines:
            killed.settimeout(ANSWER_S)
            killed.connect(str(machine.console().with_name("qmp.sock")))
            assert b"QMP" in lines.readline()
            lines.write(b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}\n')
            lines.flush()
            assert b"return" in lines.readline()
            # With the ids that the library gives to the first questions of every client.
            for number in range(3):
                lines.write(b'{"execute": "qom-list-types", "id": "__qmp#%05d"}\n' % number)
            lines.flush()
        assert counter_world.state() is MachineState.RUNNING


def test_a_record_that_is_damaged_is_said_and_nothing_is_started(counter_world: World) -> None:
    record_file = counter_world.here.console_log().parent / "run.json"
    record_file.write_text("{")
    with pytest.raises(MachineError) as error:
        counter_world.run(counter_world.here.start())
    assert str(record_file) in error.value.message
    record_file.unlink()


def test_a_guest_that_switches_itself_off_is_stopped_and_not_lost(idle_world: World) -> None:
    idle_world.run(idle_world.here.start())
    idle_world.wait_for_ticks()
    said_after(b"poweroff\n", b"echo: poweroff", idle_world.here)
    idle_world.wait(lambda: idle_world.state() is MachineState.STOPPED, "it is stopped")
    assert left_in(idle_world.here) == ["console.log", "qemu.log"]


def test_a_home_with_a_long_path_has_its_sockets_elsewhere(
    counter_world: World, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path / ("long" * 30) / "home"
    home.mkdir(parents=True, mode=0o700)
    runtime = tmp_path_factory.mktemp("rt")
    machine = counter_world.open(home, Settings(runtime_dir=str(runtime)))
    counter_world.run(machine.start())
    try:
        assert machine.console().is_relative_to(runtime)
        assert machine.console().parent.stat().st_mode & 0o777 == 0o700
        again = counter_world.open(home, Settings(runtime_dir=str(runtime)))
        assert counter_world.state(again) is MachineState.RUNNING
    finally:
        counter_world.run(machine.stop())
    assert list(runtime.iterdir()) == []


def test_qemu_says_itself_what_it_does_not_like(counter_world: World) -> None:
    spec = MachineSpec(
        name="odd",
        driver="qemu",
        memory_bytes=32 << 20,
        settings={"arguments": ["-bogus"], "accel": "tcg"},
    )
    machine = counter_world.run(counter_world.driver().open(spec, counter_world.new_home()))
    with pytest.raises(MachineError, match="bogus"):
        counter_world.run(machine.start())
    assert counter_world.state(machine) is MachineState.STOPPED


def test_a_machine_with_a_disk_of_its_own_does_not_leave_it_behind(counter_world: World) -> None:
    image = counter_world.new_home() / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    disk = {"path": str(image), "cache": "writeback"}
    for shared in (False, True):
        settings = {**counter_world.spec.settings, "disks": [{**disk, "shared": shared}]}
        spec = MachineSpec(name="d", driver="qemu", memory_bytes=16 << 20, settings=settings)
        machine = counter_world.run(counter_world.driver().open(spec, counter_world.new_home()))
        counter_world.run(machine.start())
        try:
            if not shared:
                with pytest.raises(Refused) as refusal:
                    counter_world.run(machine.send(MoveLimits()))
                assert "shared = true" in refusal.value.hint
            else:
                counter_world.run(counter_world.run(machine.send(SLOW)).cancel())
        finally:
            counter_world.run(machine.stop())


def test_arguments_can_come_from_a_file(counter_world: World) -> None:
    home = counter_world.new_home()
    (home / "more.args").write_text("# a device more\n-device 'virtio-rng-pci'\n")
    settings = {"arguments_file": "more.args", "accel": "tcg"}
    spec = MachineSpec(name="f", driver="qemu", memory_bytes=32 << 20, settings=settings)
    driver = counter_world.driver(Settings(files=str(home)))
    driver.check(spec)
    machine = counter_world.run(driver.open(spec, home))
    counter_world.run(machine.start())
    assert counter_world.state(machine) is MachineState.RUNNING
    counter_world.run(machine.stop())


def test_files_that_are_not_there_are_named(counter_world: World) -> None:
    settings = {"kernel": __file__, "initrd": "/nowhere/initrd"}
    spec = MachineSpec(name="m", driver="qemu", memory_bytes=32 << 20, settings=settings)
    with pytest.raises(ConfigError, match="initrd is /nowhere/initrd"):
        counter_world.driver().check(spec)
