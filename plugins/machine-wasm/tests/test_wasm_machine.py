"""Machines in their own processes, moved between two homes: what is special to this driver."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import novacron_machine_wasm as plugin
import pytest
from novacron import (
    Conflict,
    MachineError,
    MachineSpec,
    MachineState,
    MoveLimits,
    NodeFacts,
    Outgoing,
    Refused,
)
from novacron_machine_wasm import KvClient, TableFull, read_runs, service_path
from novacron_machine_wasm import _wire as wire
from novacron_machine_wasm._driver import WasmDriver, WasmIncoming, WasmMachine, WasmOutgoing
from novacron_machine_wasm._settings import Settings
from novacron_testkit.contracts.support import short_folder

MIB = 1 << 20
DEADLINE_S = 30.0


class Site:
    """Two nodes' worth of homes; every machine opened here is stopped at the end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.opened: list[WasmMachine] = []

    async def open(self, node: str, limits: Settings | None = None, **changes: Any) -> WasmMachine:
        home = self.root / node
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        known: dict[str, Any] = {
            "name": "m1",
            "driver": "wasm",
            "memory_bytes": MIB,
            "settings": {"guest": "counter", "tick_ms": 5},
        }
        spec = MachineSpec(**{**known, **changes})
        driver = WasmDriver(limits or Settings(), NodeFacts(name=node, state_dir=self.root))
        machine = await driver.open(spec, home)
        assert isinstance(machine, WasmMachine)
        self.opened.append(machine)
        return machine


def with_site(work: Callable[[Site], Any]) -> Any:
    async def run() -> Any:
        with short_folder() as root:
            site = Site(root)
            try:
                return await asyncio.wait_for(work(site), 100)
            finally:
                for machine in site.opened:
                    with contextlib.suppress(MachineError):
                        await machine.stop()

    return asyncio.run(run())


def scribbler(root: Path) -> dict[str, Any]:
    """Settings of a guest that writes to every page of its memory in each step."""
    path = root / "scribbler.wat"
    path.write_text(
        """(module (memory (export "memory") 1)
        (global $n (export "n") (mut i32) (i32.const 0))
        (func (export "step") (local $at i32)
          (global.set $n (i32.add (global.get $n) (i32.const 1)))
          (loop $next
            (i32.store (local.get $at) (global.get $n))
            (local.set $at (i32.add (local.get $at) (i32.const 4096)))
            (br_if $next (i32.lt_u (local.get $at) (i32.shl (memory.size) (i32.const 16)))))))"""
    )
    return {"guest": str(path), "tick_ms": 1}


class Pump:
    """Carries the batches of one move and counts their bytes."""

    def __init__(self, outgoing: Outgoing, incoming: WasmIncoming | None) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        self.nbytes = 0
        self.task = asyncio.create_task(asyncio.to_thread(self._run))

    def _run(self) -> None:
        while (batch := self.outgoing.read()) is not None:
            self.nbytes += batch.nbytes
            if self.incoming is not None:
                self.incoming.write(batch)


async def begin(source: WasmMachine, destination: WasmMachine) -> Pump:
    incoming = await destination.receive(source.describe())
    assert isinstance(incoming, WasmIncoming)
    outgoing = await source.send(MoveLimits())
    assert isinstance(outgoing, WasmOutgoing)
    outgoing.peer_has(incoming.have())
    return Pump(outgoing, incoming)


async def move(source: WasmMachine, destination: WasmMachine) -> tuple[int, float]:
    """There, whole and running; the source is retired. Gives bytes sent and the pause."""
    pump = await begin(source, destination)
    assert pump.incoming is not None
    await asyncio.wait_for(pump.outgoing.converged(), DEADLINE_S)
    paused = time.monotonic()
    await pump.outgoing.switch_over()
    await asyncio.wait_for(pump.task, DEADLINE_S)
    await pump.incoming.finish()
    whole = time.monotonic()
    assert await source.digest() == await destination.digest()
    await destination.resume()
    await pump.outgoing.cancel()  # too late to change anything
    await source.retire()
    await source.retire()
    return pump.nbytes, whole - paused


async def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


async def until_state(machine: WasmMachine, state: MachineState) -> None:
    end = time.monotonic() + DEADLINE_S
    while await machine.state() is not state:
        assert time.monotonic() < end, f"it is {await machine.state()}, not {state}"
        await asyncio.sleep(0.01)


async def goes_on(machine: WasmMachine) -> None:
    end = time.monotonic() + DEADLINE_S
    ticks = await machine.ticks()
    while await machine.ticks() == ticks:
        assert time.monotonic() < end, "the guest does not go on"
        await asyncio.sleep(0.01)


class Writer:
    """A client that puts numbered keys without pause and remembers which were acknowledged;
    it goes to whichever of the sockets lets it in."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.acknowledged = 0
        self.closings = 0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _connect(self) -> KvClient | None:
        for path in self.paths:
            with contextlib.suppress(OSError):
                return KvClient(path, timeout_s=DEADLINE_S)
        return None

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                client = self._connect()
                if client is None:
                    self._stop.wait(0.01)
                    continue
                with client:
                    try:
                        while not self._stop.is_set():
                            client.put(b"w%d" % self.acknowledged, b"v%d" % self.acknowledged)
                            self.acknowledged += 1
                    except ConnectionError:
                        self.closings += 1
        except BaseException as error:
            self.failure = error

    def stop(self) -> int:
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        assert self.failure is None
        return self.acknowledged


def test_no_acknowledged_write_is_lost_over_two_moves_and_the_two_sides_never_run_at_once(capsys):
    async def work(site: Site) -> None:
        settings = {"guest": "kv", "tick_ms": 5, "fill_bytes": 12 * MIB}
        here = await site.open("a", memory_bytes=16 * MIB, settings=settings)
        there = await site.open("b", memory_bytes=16 * MIB, settings=settings)
        await here.start()
        writer = Writer([here.service(), there.service()])
        await until(lambda: writer.acknowledged > 50)
        first, first_pause = await move(here, there)
        before = writer.acknowledged
        await until(lambda: writer.acknowledged > before + 50)
        second, second_pause = await move(there, here)
        before = writer.acknowledged
        await until(lambda: writer.acknowledged > before + 50)
        acknowledged = writer.stop()
        assert writer.closings >= 2
        with KvClient(service_path(site.root / "a")) as client:
            for number in range(acknowledged):
                assert client.get(b"w%d" % number) == b"v%d" % number
            assert client.count() - 12 * MIB // 4096 in (acknowledged, acknowledged + 1)
        await here.stop()
        runs = sorted(
            [*read_runs(here.runs_log()), *read_runs(there.runs_log())],
            key=lambda run: run.begin_ns,
        )
        assert [run.machine for run in runs] == ["m1"] * 3
        for earlier, later in itertools.pairwise(runs):
            assert earlier.end_ns is not None
            assert earlier.end_ns < later.begin_ns
        figures = (
            f"{acknowledged} writes; there {first} bytes, pause {first_pause * 1e3:.0f} ms; "
            f"back {second} bytes, pause {second_pause * 1e3:.0f} ms"
        )
        with capsys.disabled():
            sys.stdout.write(f"\n  {figures}\n")

    with_site(work)


def test_the_counter_neither_skips_nor_repeats_and_what_was_there_before_is_not_sent_again():
    async def work(site: Site) -> None:
        settings = {"tick_ms": 5, "fill_bytes": 800_000}
        here, there = (
            await site.open("a", settings=settings),
            await site.open("b", settings=settings),
        )
        await here.start()
        await until(lambda: here.console_log().exists())
        text = b""
        sent = []
        for _ in range(2):
            await here.pause()
            ticks = await here.ticks()
            await asyncio.sleep(0.05)
            assert await here.ticks() == ticks
            await here.resume()
            sent.append((await move(here, there))[0])
            text += here.console_log().read_bytes()
            here.console_log().unlink()
            here, there = there, here
            await until(lambda machine=here: machine.console_log().exists())
        await here.pause()
        text += here.console_log().read_bytes()
        assert text == b"".join(b"tick %d\n" % n for n in range(1, await here.ticks() + 1))
        assert sent[0] > 800_000
        assert sent[1] < 400_000

    with_site(work)


def test_a_request_waits_while_the_machine_is_paused_and_is_answered_after_it():
    async def work(site: Site) -> None:
        machine = await site.open("a", settings={"guest": "kv"})
        await machine.start()
        with KvClient(machine.service(), timeout_s=DEADLINE_S) as client:
            client.put(b"a", b"1")
            await machine.pause()
            digest = await machine.digest()
            put = asyncio.create_task(asyncio.to_thread(client.put, b"b", b"2"))
            done, _ = await asyncio.wait({put}, timeout=0.2)
            assert not done
            assert await machine.digest() == digest
            await machine.resume()
            await asyncio.wait_for(put, DEADLINE_S)
            assert (client.get(b"b"), client.get(b"c"), client.count()) == (b"2", None, 2)
            assert (client.delete(b"b"), client.delete(b"b")) == (True, False)

    with_site(work)


def put_many(client: KvClient) -> None:
    for number in range(10_000):
        client.put(b"%d" % number, b"x" * 60_000)


def test_many_clients_are_served_and_a_hostile_one_is_hung_up_on():
    async def work(site: Site) -> None:
        machine = await site.open("a", settings={"guest": "kv"})
        await machine.start()

        def client(number: int) -> None:
            with KvClient(machine.service(), timeout_s=DEADLINE_S) as one:
                for step in range(20):
                    one.put(b"%d-%d" % (number, step), b"x")

        await asyncio.gather(*(asyncio.to_thread(client, number) for number in range(12)))
        for hostile in (b"\xff\xff\xff\xff", bytes(4), (65537).to_bytes(4, "little")):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(DEADLINE_S)
                sock.connect(str(machine.service()))
                sock.sendall(hostile)
                assert sock.recv(1) == b""
        with KvClient(machine.service()) as one:
            assert one.count() == 240
            with pytest.raises(ValueError, match="key"):
                one.put(b"", b"x")
            with pytest.raises(TableFull):
                put_many(one)
            assert one.get(b"0-0") == b"x"

    with_site(work)


def test_requests_are_served_over_tcp_when_a_port_is_given():
    async def work(site: Site) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        machine = await site.open("a", settings={"guest": "kv", "tcp_port": port})
        await machine.start()
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                client = await asyncio.to_thread(KvClient, ("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
        with client:
            client.put(b"a", b"1")
            assert client.get(b"a") == b"1"

    with_site(work)


NODE = """
import asyncio, sys
from pathlib import Path
from novacron import MachineSpec, MoveLimits, NodeFacts
from novacron_machine_wasm._driver import WasmDriver
from novacron_machine_wasm._settings import Settings

async def main(home, how):
    driver = WasmDriver(Settings(), NodeFacts(name="a", state_dir=home))
    spec = MachineSpec(name="m1", driver="wasm", memory_bytes=16 << 20,
                       settings={"guest": "counter", "tick_ms": 5, "fill_bytes": 12 << 20})
    machine = await driver.open(spec, home)
    if how == "starting":
        asyncio.create_task(machine.start())
        while machine.pid() is None:
            await asyncio.sleep(0.001)
    else:
        outgoing = await machine.send(MoveLimits())
        if how == "begun":
            await asyncio.to_thread(outgoing.read)
        if how == "switched":
            await outgoing.switch_over()
            while await asyncio.to_thread(outgoing.read) is not None:
                pass
    print("here", flush=True)
    await asyncio.sleep(60)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


@contextlib.contextmanager
def killed_node(home: Path, how: str) -> Iterator[None]:
    """A node's process that goes so far, and is killed at the end of the block."""
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, str(home), how], stdout=subprocess.PIPE, text=True
    )
    try:
        assert node.stdout is not None
        assert node.stdout.readline() == "here\n"
        yield
    finally:
        node.kill()
        node.wait(DEADLINE_S)
        assert node.stdout is not None
        node.stdout.close()


def test_a_node_killed_in_the_midst_of_anything_leaves_a_machine_that_goes_on():
    async def work(site: Site) -> None:
        settings = {"guest": "counter", "tick_ms": 5, "fill_bytes": 12 * MIB}
        machine = await site.open("a", memory_bytes=16 * MIB, settings=settings)
        for how, state in (
            ("starting", MachineState.RUNNING),
            ("connected", MachineState.RUNNING),
            ("begun", MachineState.RUNNING),
            ("switched", MachineState.PAUSED),
        ):
            with killed_node(site.root / "a", how):
                pass
            again = await site.open("a", memory_bytes=16 * MIB, settings=settings)
            assert await again.state() is state
            if state is MachineState.PAUSED:
                await again.resume()
            await goes_on(again)
        # And a new move is possible at once.
        there = await site.open("b", memory_bytes=16 * MIB, settings=settings)
        await move(machine, there)
        assert await there.state() is MachineState.RUNNING
        assert await machine.state() is MachineState.STOPPED

    with_site(work)


def test_a_guest_that_never_returns_ends_its_machine_with_the_reason():
    async def work(site: Site) -> None:
        path = site.root / "endless.wat"
        path.write_text(
            '(module (memory (export "memory") 1) (func (export "step") (loop (br 0))))'
        )
        settings = {"guest": str(path), "tick_ms": 1, "step_timeout_ms": 100}
        machine = await site.open("a", settings=settings)
        await machine.start()
        await until_state(machine, MachineState.LOST)
        with pytest.raises(Conflict, match="did not end within 100 ms"):
            await machine.pause()
        (run,) = read_runs(machine.runs_log())
        assert run.end_ns is not None
        await machine.stop()
        assert await machine.state() is MachineState.STOPPED

    with_site(work)


def test_a_killed_runner_is_lost_and_its_run_has_no_end():
    async def work(site: Site) -> None:
        machine = await site.open("a")
        await machine.start()
        pid = machine.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until_state(machine, MachineState.LOST)
        assert [run.end_ns for run in read_runs(machine.runs_log())] == [None]

    with_site(work)


def test_a_lost_machine_can_be_retired_and_a_runner_whose_home_is_gone_still_ends():
    async def work(site: Site) -> None:
        machine = await site.open("a")
        await machine.start()
        pid = machine.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until_state(machine, MachineState.LOST)
        await machine.retire()
        assert await machine.state() is MachineState.STOPPED
        await machine.start()
        pid = machine.pid()
        assert pid is not None
        handle = os.pidfd_open(pid)
        try:
            shutil.rmtree(site.root / "a")
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            assert await asyncio.to_thread(poll.poll, DEADLINE_S * 1000)
        finally:
            os.close(handle)

    with_site(work)


def test_a_guest_that_writes_faster_than_it_is_read_is_reported_and_can_be_forced_or_let_go():
    async def work(site: Site) -> None:
        settings = scribbler(site.root)
        source = await site.open("a", memory_bytes=4 * MIB, settings=settings)
        there = await site.open("b", memory_bytes=4 * MIB, settings=settings)
        await source.start()
        outgoing = await source.send(MoveLimits(max_downtime_ms=20, rate_bytes_per_s=40 * MIB))
        pump = Pump(outgoing, None)
        with pytest.raises(MachineError, match="does not come to an end") as caught:
            await asyncio.wait_for(outgoing.converged(), DEADLINE_S)
        assert "--max-downtime" in caught.value.hint
        assert await source.state() is MachineState.RUNNING
        assert outgoing.progress().dirty_bytes_per_s > 0
        await outgoing.cancel()
        with pytest.raises(MachineError, match="cancelled"):
            await asyncio.wait_for(pump.task, DEADLINE_S)
        assert await source.state() is MachineState.RUNNING
        assert not (site.root / "a" / wire.SHADOW).exists()
        # Forced: the pause is as long as it takes.
        forced = await begin(source, there)
        assert forced.incoming is not None
        await forced.outgoing.switch_over()
        await asyncio.wait_for(forced.task, DEADLINE_S)
        await forced.incoming.finish()
        assert await source.digest() == await there.digest()

    with_site(work)


def test_the_rate_limit_is_kept():
    async def work(site: Site) -> None:
        settings = {"guest": "counter", "fill_bytes": 4 * MIB - 65536}
        source = await site.open("a", memory_bytes=4 * MIB, settings=settings)
        await source.start()
        outgoing = await source.send(MoveLimits(rate_bytes_per_s=4 * MIB))
        began = time.monotonic()
        pump = Pump(outgoing, None)
        await asyncio.wait_for(outgoing.converged(), DEADLINE_S)
        # The first batches go at once and each of the others waits its turn.
        assert time.monotonic() - began > 0.7
        assert pump.nbytes > 3 * MIB
        await outgoing.cancel()
        with pytest.raises(MachineError):
            await pump.task

    with_site(work)


def test_a_machine_that_is_leaving_cannot_leave_twice_and_two_cannot_arrive_in_one():
    async def work(site: Site) -> None:
        source = await site.open("a")
        await source.start()
        outgoing = await source.send(MoveLimits())
        with pytest.raises(Conflict, match="leaving already"):
            await source.send(MoveLimits())
        await outgoing.cancel()
        await (await source.send(MoveLimits())).cancel()

    with_site(work)


def test_a_disk_without_room_refuses_the_move_and_the_machine_goes_on():
    async def work(site: Site) -> None:
        source = await site.open("a")
        await source.start()
        pid = source.pid()
        assert pid is not None
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
        with pytest.raises(MachineError, match="no room"):
            await source.send(MoveLimits())
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
        assert not (site.root / "a" / wire.SHADOW).exists()
        await goes_on(source)
        await (await source.send(MoveLimits())).cancel()

    with_site(work)


def test_a_home_too_deep_for_a_socket_gets_its_sockets_elsewhere(monkeypatch):
    async def work(site: Site) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(site.root))
        deep = "d" * 100
        machine = await site.open(deep, settings={"guest": "kv", "tick_ms": 5})
        await machine.start()
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        again = await site.open(deep, settings={"guest": "kv", "tick_ms": 5})
        assert await again.state() is MachineState.RUNNING
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(site.root))
        folder = machine.service().parent
        assert folder.stat().st_mode & 0o777 == 0o700
        with KvClient(machine.service()) as client:
            client.put(b"a", b"1")
        await machine.stop()
        assert not folder.exists()

    with_site(work)


def test_somebody_without_the_token_gets_nothing_but_a_closed_connection():
    async def work(site: Site) -> None:
        machine = await site.open("a")
        await machine.start()
        for hostile in (
            wire.pack_control(wire.Request(op="pause", token="0" * 32)),
            b"\xff\xff\xff\xff",
            wire.LENGTH.pack(5) + b"hello",
        ):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(DEADLINE_S)
                sock.connect(str(machine.console().with_name("control.sock")))
                sock.sendall(hostile)
                assert sock.recv(1) == b""
        assert await machine.state() is MachineState.RUNNING

    with_site(work)


def test_the_console_carries_bytes_both_ways():
    async def work(site: Site) -> None:
        path = site.root / "echo.wat"
        path.write_text(
            """(module
            (import "novacron" "console_read" (func $r (param i32 i32) (result i32)))
            (import "novacron" "console_write" (func $w (param i32 i32)))
            (memory (export "memory") 1)
            (func (export "step")
              (call $w (i32.const 0) (call $r (i32.const 0) (i32.const 100)))))"""
        )
        machine = await site.open("a", settings={"guest": str(path), "tick_ms": 2})
        await machine.start()
        reader, writer = await asyncio.open_unix_connection(machine.console())
        writer.write(b"hello, machine\n")
        answer = await asyncio.wait_for(reader.readuntil(b"\n"), DEADLINE_S)
        assert answer == b"hello, machine\n"
        writer.close()
        await writer.wait_closed()
        assert machine.console_log().read_bytes() == answer

    with_site(work)


def test_a_guest_whose_file_is_only_at_the_source_moves_with_its_module():
    async def work(site: Site) -> None:
        settings = scribbler(site.root)
        source = await site.open("a", settings=settings)
        there = await site.open("b", settings=settings)
        await source.start()
        (site.root / "scribbler.wat").unlink()
        await move(source, there)
        await goes_on(there)
        with pytest.raises(Conflict):
            await there.start()
        await there.stop()
        await there.start()  # from the module that came with it

    with_site(work)


def test_what_cannot_run_here_is_refused_with_the_cure():
    async def work(site: Site) -> None:
        machine = await site.open("b")
        sound = {
            "driver": "wasm",
            "format": 1,
            "memory_bytes": MIB,
            "guest": "0" * 64,
            "guest_bytes": 100,
        }
        for change, cure in (
            ({"format": 2}, "same version"),
            ({"driver": "qemu"}, "same version"),
            ({"memory_bytes": 2 * MIB}, "same memory_bytes"),
            ({"guest_bytes": 1 << 40}, "module may have"),
            ({"guest": "x"}, "module may have"),
        ):
            with pytest.raises(Refused) as caught:
                await machine.receive({**sound, **change})
            assert cure in caught.value.hint
        small = await site.open("c", Settings(memory_bytes_max=4 * MIB), memory_bytes=4 * MIB)
        assert small.describe()["memory_bytes"] == 4 * MIB
        assert list((site.root / "b").iterdir()) == []

    with_site(work)


def test_a_retired_machine_keeps_its_image_only_within_the_bound_and_stop_drops_it():
    async def work(site: Site) -> None:
        for bound, kept in ((MIB, True), (MIB - 1, False)):
            source = await site.open("a", Settings(base_bytes_max=bound))
            there = await site.open("b")
            await source.start()
            with pytest.raises(Conflict):
                await source.retire()
            await move(source, there)
            assert await source.state() is MachineState.STOPPED
            assert (site.root / "a" / wire.BASE).exists() is kept
            await there.stop()
            await source.stop()
            assert not (site.root / "a" / wire.BASE).exists()

    with_site(work)


def test_the_plugin_registers_its_driver_and_says_what_it_found():
    assert plugin.novacron_register_machine() == (WasmDriver,)
    findings = plugin.novacron_register_findings()
    assert [finding.subject for finding in findings] == ["wasmtime", "wasm page kernels"]
    assert plugin.NOVACRON_API == 1
