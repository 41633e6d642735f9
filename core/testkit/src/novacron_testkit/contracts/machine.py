"""The laws of a machine and of its driver."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from attrs import evolve
from novacron import (
    BATCH_BYTES_MAX,
    Batch,
    ConfigError,
    Conflict,
    Incoming,
    Machine,
    MachineDriver,
    MachineError,
    MachineSpec,
    MachineState,
    MoveLimits,
    MoveWish,
    NovacronError,
    Obstacle,
    Outgoing,
    PeerProtocolError,
    Refused,
)

from novacron_testkit.contracts.support import Contract, short_folder

T = TypeVar("T")
S = MachineState


class Yard:
    """Two nodes' drivers and the machines that a test opened; all are stopped at its end."""

    def __init__(self, contract: MachineContract, root: Path) -> None:
        self._contract = contract
        self._root = root
        self._machines: list[Machine] = []

    def home(self, node: str, name: str = "m1") -> Path:
        home = self._root / node / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
        return home

    async def open(self, node: str = "source", name: str = "m1") -> Machine:
        """The machine of that name on that node, by a driver that was just made."""
        driver = self.driver(node)
        spec = self._contract.spec(name)
        driver.check(spec)
        machine = await driver.open(spec, self.home(node, name))
        self._machines.append(machine)
        return machine

    @property
    def folder(self) -> Path:
        """What both nodes keep."""
        return self._root

    def driver(self, node: str) -> MachineDriver:
        """The driver of that node, which was just made."""
        return self._contract.driver(self._root / node)

    async def close(self) -> None:
        for machine in reversed(self._machines):
            # Two handles may mean one process: what is gone already is no fault.
            with contextlib.suppress(MachineError):
                await machine.stop()


class Move:
    """One move under way, its batches pumped from thread to thread as a session does."""

    def __init__(self, outgoing: Outgoing, incoming: Incoming) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        self.batches = 0
        self.first = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.pumping = asyncio.create_task(asyncio.to_thread(self._pump))
        self.pumping.add_done_callback(_seen)

    def _pump(self) -> None:
        try:
            while (batch := self.outgoing.read()) is not None:
                assert batch.nbytes <= BATCH_BYTES_MAX, f"a batch of {batch.nbytes} bytes"
                # As it would arrive: packed, sent, unpacked.
                self.incoming.write(Batch.unpack(batch.pack()))
                self.batches += 1
                self._loop.call_soon_threadsafe(self.first.set)
        finally:
            self._loop.call_soon_threadsafe(self.first.set)


class MachineContract(Contract):
    """Subclass it, set ``provider`` and write `spec` and `heartbeat`; `kill` if you can.

    Attributes:
        deadline_s: How long a start, or a heartbeat, may take.
        still_s: How long a paused machine is watched.
    """

    deadline_s: ClassVar[float] = 30.0
    still_s: ClassVar[float] = 0.3

    def driver(self, tmp_path: Path) -> MachineDriver:
        """A driver for the node whose folder this is; the same folder is the same node."""
        tmp_path.mkdir(parents=True, exist_ok=True)
        driver: MachineDriver = self.make(tmp_path, "node")
        return driver

    def spec(self, name: str) -> MachineSpec:
        """A small machine whose guest makes progress by itself."""
        raise NotImplementedError("write spec(): a machine to test with")

    def heartbeat(self, machine: Machine) -> int | Awaitable[int]:
        """How far the guest has come: a number that grows while it runs, over its moves too.

        May be a coroutine; otherwise it is called in a worker thread. Must also answer while the
        machine is paused, on the node where it has run.
        """
        raise NotImplementedError("write heartbeat(): how far the guest has come")

    async def kill(self, machine: Machine) -> None:
        """End the machine's process from outside, as the system's OOM killer would."""
        pytest.skip("kill() is not written: LOST is not tested")

    def _run(self, work: Callable[[Yard], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            with short_folder() as root:
                yard = Yard(self, root)
                try:
                    return await asyncio.wait_for(work(yard), 4 * self.deadline_s)
                finally:
                    await yard.close()

        return asyncio.run(run())

    async def _beat(self, machine: Machine) -> int:
        if inspect.iscoroutinefunction(self.heartbeat):
            return int(await self.heartbeat(machine))
        beat = await asyncio.to_thread(self.heartbeat, machine)
        assert isinstance(beat, int)
        return beat

    async def _beats_past(self, machine: Machine, number: int) -> int:
        end = time.monotonic() + self.deadline_s
        while (beat := await self._beat(machine)) <= number:
            if time.monotonic() > end:
                pytest.fail(f"the guest came to {beat} and not past {number}: it does not run")
            await asyncio.sleep(0.02)
        return beat

    async def _running(self, yard: Yard, node: str = "source", name: str = "m1") -> Machine:
        machine = await yard.open(node, name)
        await machine.start()
        assert await machine.state() is S.RUNNING
        await self._beats_past(machine, 0)
        return machine

    async def _stands_still(self, machine: Machine) -> None:
        assert await machine.state() is S.PAUSED
        digest = await machine.digest()
        beat = await self._beat(machine)
        await asyncio.sleep(self.still_s)
        assert await self._beat(machine) == beat, "the guest went on while paused"
        assert await machine.digest() == digest, "memory changed while paused"
        assert await machine.state() is S.PAUSED

    async def _refuses(self, machine: Machine, *calls: str) -> None:
        before = await machine.state()
        for call in calls:
            try:
                if call == "send":
                    await machine.send(MoveLimits())
                elif call == "receive":
                    await machine.receive(_travelled(machine.describe()))
                else:
                    await getattr(machine, call)()
            except Conflict:
                assert await machine.state() is before, f"{call} changed the state"
            else:
                pytest.fail(f"{call} is allowed while {before}")

    async def _begin(self, source: Machine, destination: Machine) -> Move:
        incoming = await destination.receive(_travelled(source.describe()))
        return Move(await source.send(MoveLimits()), incoming)

    async def _finish(self, move: Move, *, force: bool = False) -> None:
        if not force:
            await asyncio.wait_for(move.outgoing.converged(), self.deadline_s)
        await asyncio.wait_for(move.outgoing.switch_over(), self.deadline_s)
        await asyncio.wait_for(move.pumping, self.deadline_s)
        await asyncio.wait_for(move.incoming.finish(), self.deadline_s)

    async def _moved(self, yard: Yard, *, force: bool = False) -> tuple[Machine, Machine]:
        """A machine that has moved: the source's and the destination's handle, both paused."""
        source = await self._running(yard)
        destination = await yard.open("destination")
        await self._finish(await self._begin(source, destination), force=force)
        return source, destination

    # Life.

    def test_a_new_machine_is_stopped_and_opening_starts_nothing(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            machine = await yard.open()
            assert await machine.state() is S.STOPPED
            assert machine.spec == self.spec("m1")

        self._run(work)

    def test_a_started_machine_runs(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            machine = await self._running(yard)
            await self._beats_past(machine, await self._beat(machine))

        self._run(work)

    def test_a_stopped_machine_refuses_what_needs_a_process(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            await self._refuses(await yard.open(), "pause", "resume", "digest", "send")

        self._run(work)

    def test_a_running_machine_refuses_start_resume_digest_and_receive(
        self, tmp_path: Path
    ) -> None:
        async def work(yard: Yard) -> None:
            machine = await self._running(yard)
            await self._refuses(machine, "start", "resume", "digest", "receive")
            await self._beats_past(machine, await self._beat(machine))

        self._run(work)

    def test_a_paused_machine_refuses_start_pause_and_receive(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            machine = await self._running(yard)
            await machine.pause()
            await self._refuses(machine, "start", "pause", "receive")
            await self._stands_still(machine)

        self._run(work)

    def test_a_receiving_machine_refuses_everything_but_stop(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            machine = await yard.open("destination")
            incoming = await machine.receive(_travelled(source.describe()))
            assert await machine.state() is S.RECEIVING
            await self._refuses(machine, "start", "pause", "resume", "digest", "send", "receive")
            await incoming.abandon()

        self._run(work)

    def test_a_lost_machine_says_so_refuses_and_can_be_started_again(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            machine = await self._running(yard)
            await self.kill(machine)
            end = time.monotonic() + self.deadline_s
            while await machine.state() is not S.LOST:
                assert time.monotonic() < end, "its process was killed and it is not lost"
                await asyncio.sleep(0.02)
            again = await yard.open()
            assert await again.state() is S.LOST
            await self._refuses(again, "pause", "resume", "digest", "send", "receive")
            await again.start()
            assert await again.state() is S.RUNNING

        self._run(work)

    def test_stop_ends_it_from_any_state_and_twice_is_once(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            machine = await yard.open()
            await machine.stop()
            await machine.start()
            origin = _travelled(machine.describe())
            await machine.stop()
            assert await machine.state() is S.STOPPED
            await machine.start()
            await machine.pause()
            await machine.stop()
            await machine.stop()
            assert await machine.state() is S.STOPPED
            await machine.receive(origin)
            await machine.stop()
            assert await machine.state() is S.STOPPED
            await machine.start()
            assert await machine.state() is S.RUNNING

        self._run(work)

    def test_pause_is_a_pause_and_a_second_resume_is_refused(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            machine = await self._running(yard)
            for _ in range(3):
                await machine.pause()
                await self._stands_still(machine)
                await machine.resume()
                assert await machine.state() is S.RUNNING
                with pytest.raises(Conflict):
                    await machine.resume()
                await self._beats_past(machine, await self._beat(machine))

        self._run(work)

    def test_the_digest_is_64_hex_digits_and_changes_as_the_guest_goes_on(
        self, tmp_path: Path
    ) -> None:
        async def work(yard: Yard) -> None:
            machine = await self._running(yard)
            await machine.pause()
            first = await machine.digest()
            assert len(first) == 64
            assert set(first) <= set("0123456789abcdef")
            beat = await self._beat(machine)
            await machine.resume()
            await self._beats_past(machine, beat)
            await machine.pause()
            assert await machine.digest() != first

        self._run(work)

    def test_a_node_that_restarts_finds_its_machine_again(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            beat = await self._beat(await self._running(yard))
            again = await yard.open()
            assert await again.state() is S.RUNNING
            await self._beats_past(again, beat)
            await again.pause()
            digest = await again.digest()
            third = await yard.open()
            assert await third.state() is S.PAUSED
            assert await third.digest() == digest
            await third.resume()
            await self._beats_past(third, await self._beat(third))

        self._run(work)

    def test_machines_of_one_node_do_not_touch_each_other(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            first = await self._running(yard, name="m1")
            second = await self._running(yard, name="m2")
            await first.pause()
            await self._beats_past(second, await self._beat(second))
            await self._stands_still(first)
            await second.stop()
            await self._stands_still(first)

        self._run(work)

    def test_a_setting_that_does_not_exist_is_named(self, tmp_path: Path) -> None:
        with short_folder() as root:
            driver = self.driver(root)
            spec = self.spec("m1")
            driver.check(spec)
            with pytest.raises(ConfigError, match="no-such-setting"):
                driver.check(evolve(spec, settings={**spec.settings, "no-such-setting": 1}))

    def test_the_console_is_a_socket_while_there_is_a_process(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            machine = await self._running(yard)
            _, writer = await asyncio.wait_for(
                asyncio.open_unix_connection(str(machine.console())), self.deadline_s
            )
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            assert isinstance(machine.console_log(), Path)

        self._run(work)

    # Moves.

    def test_a_running_machine_moves_and_its_memory_arrives_whole(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            destination = await yard.open("destination")
            move = await self._begin(source, destination)
            await self._finish(move)
            progress = move.outgoing.progress()
            assert progress.round >= 1
            assert progress.done_bytes > 0
            assert progress.total_bytes > 0
            assert await source.state() is S.PAUSED
            assert await destination.state() is S.PAUSED
            assert await source.digest() == await destination.digest()
            beat = await self._beat(source)
            await destination.resume()
            await source.stop()
            await self._beats_past(destination, beat)

        self._run(work)

    def test_a_switch_over_may_be_forced_before_the_copy_has_converged(
        self, tmp_path: Path
    ) -> None:
        async def work(yard: Yard) -> None:
            source, destination = await self._moved(yard, force=True)
            assert await source.digest() == await destination.digest()

        self._run(work)

    def test_the_guest_runs_on_while_it_is_copied(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            destination = await yard.open("destination")
            move = await self._begin(source, destination)
            await asyncio.wait_for(move.first.wait(), self.deadline_s)
            # The copy goes on until it is told to end, and so does the guest.
            await self._beats_past(source, await self._beat(source))
            assert await destination.state() is S.RECEIVING
            await self._finish(move)

        self._run(work)

    def test_the_destination_does_not_run_before_it_is_resumed(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            _, destination = await self._moved(yard)
            digest = await destination.digest()
            await asyncio.sleep(self.still_s)
            assert await destination.state() is S.PAUSED
            assert await destination.digest() == digest, "it ran before it was told to"
            await destination.resume()
            with pytest.raises(Conflict):
                await destination.resume()

        self._run(work)

    def test_the_source_stays_paused_and_can_be_resumed_until_it_is_told_otherwise(
        self, tmp_path: Path
    ) -> None:
        async def work(yard: Yard) -> None:
            source, destination = await self._moved(yard)
            await self._stands_still(source)
            await destination.stop()
            await self._stands_still(source)
            beat = await self._beat(source)
            await source.resume()
            await self._beats_past(source, beat)

        self._run(work)

    def test_a_paused_machine_moves_too(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            await source.pause()
            digest = await source.digest()
            destination = await yard.open("destination")
            await self._finish(await self._begin(source, destination))
            assert await source.digest() == digest
            assert await destination.digest() == digest

        self._run(work)

    def test_a_machine_moves_there_and_back_again(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            here = await self._running(yard)
            there = await yard.open("destination")
            for _ in range(2):
                await self._finish(await self._begin(here, there))
                assert await here.digest() == await there.digest()
                beat = await self._beat(here)
                await there.resume()
                await here.stop()
                await self._beats_past(there, beat)
                here, there = there, here

        self._run(work)

    # What is found before a move.

    def test_what_stands_in_the_way_is_told_with_its_cure_and_nothing_is_changed(
        self, tmp_path: Path
    ) -> None:
        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            driver = yard.driver("destination")
            here, there = getattr(source, "examine", None), getattr(driver, "examine", None)
            if here is None and there is None:
                pytest.skip("neither the machine nor its driver has examine(): moves are tried")
            before = _files(yard.folder)
            beat = await self._beat(source)
            for storage in ("", "copy", "shared"):
                found: list[Obstacle] = []
                if here is not None:
                    found += await asyncio.wait_for(
                        here(MoveWish(storage=storage)), self.deadline_s
                    )
                if there is not None:
                    origin = {**_travelled(source.describe()), "storage": storage}
                    found += await asyncio.wait_for(there(source.spec, origin), self.deadline_s)
                for obstacle in found:
                    check_obstacle(obstacle)
                blocking = [obstacle for obstacle in found if obstacle.blocks]
                assert not blocking, f"this machine can move, and yet: {blocking}"
            assert await source.state() is S.RUNNING
            await self._beats_past(source, beat)
            assert _files(yard.folder) == before, "looking has left files"
            # And what was found out on the way is no obstacle to the move itself.
            destination = await yard.open("destination")
            await self._finish(await self._begin(source, destination))
            assert await source.digest() == await destination.digest()

        self._run(work)

    def test_a_stranger_may_say_anything_of_a_machine_that_is_to_come(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            source, driver = await yard.open(), yard.driver("destination")
            examine = getattr(driver, "examine", None)
            if examine is None:
                pytest.skip("the driver has no examine(): moves are tried")
            if (leaving := getattr(source, "examine", None)) is not None:
                await leaving(MoveWish())
            before = _files(yard.folder)
            values: tuple[Any, ...] = (None, -1, 2**70, 1e400, "x" * 10_000, "\0", [], {"a": [1]})
            sound = dict(_travelled(source.describe()))
            origins: list[Any] = [{}, {"nonsense": 1}]
            origins += [{**sound, key: value} for key in sound for value in values]
            for key, inner in sound.items():
                if isinstance(inner, Mapping):  # what is told in tables is lied about, too
                    origins += [
                        {**sound, key: {**inner, name: value}} for name in inner for value in values
                    ]
            lies = [evolve(source.spec, settings={"no-such-setting": value}) for value in values]
            asked = [(source.spec, origin) for origin in origins]
            for spec, origin in [*asked, *((lie, sound) for lie in lies)]:
                try:
                    found = await asyncio.wait_for(examine(spec, origin), self.deadline_s)
                except NovacronError:
                    continue
                for obstacle in found:
                    check_obstacle(obstacle)
            assert _files(yard.folder) == before, "looking has left files"

        self._run(work)

    # Moves that fail.

    def test_a_move_cancelled_in_the_midst_leaves_the_machine_whole(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            destination = await yard.open("destination")
            move = await self._begin(source, destination)
            await asyncio.wait_for(move.first.wait(), self.deadline_s)
            await self._give_up(move)
            if await source.state() is S.PAUSED:
                await source.resume()
            await self._beats_past(source, await self._beat(source))
            # And the next try works at once.
            await self._finish(await self._begin(source, destination))
            assert await source.digest() == await destination.digest()

        self._run(work)

    def test_a_move_cancelled_before_its_first_batch_leaves_the_machine_whole(
        self, tmp_path: Path
    ) -> None:
        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            outgoing = await source.send(MoveLimits())
            await outgoing.cancel()
            await outgoing.cancel()
            with pytest.raises(MachineError):
                await asyncio.wait_for(asyncio.to_thread(outgoing.read), self.deadline_s)
            if await source.state() is S.PAUSED:
                await source.resume()
            await self._beats_past(source, await self._beat(source))

        self._run(work)

    def test_a_move_cancelled_after_the_switch_over_leaves_the_machine_whole(
        self, tmp_path: Path
    ) -> None:
        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            destination = await yard.open("destination")
            move = await self._begin(source, destination)
            await asyncio.wait_for(move.outgoing.converged(), self.deadline_s)
            await asyncio.wait_for(move.outgoing.switch_over(), self.deadline_s)
            await asyncio.wait_for(move.pumping, self.deadline_s)
            await move.outgoing.cancel()
            await move.incoming.abandon()
            if await source.state() is S.PAUSED:
                await source.resume()
            await self._beats_past(source, await self._beat(source))

        self._run(work)

    async def _give_up(self, move: Move) -> None:
        await asyncio.wait_for(move.outgoing.cancel(), self.deadline_s)
        await move.outgoing.cancel()
        # The read under way, or the next one, ends with MachineError.
        with pytest.raises(MachineError):
            await asyncio.wait_for(move.pumping, self.deadline_s)
        await asyncio.wait_for(move.incoming.abandon(), self.deadline_s)

    def test_an_abandoned_arrival_leaves_nothing_and_a_retry_works(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            destination = await yard.open("destination")
            home = yard.home("destination")
            before = _files(home)
            for batches in (0, 1):
                move = await self._begin(source, destination)
                if batches:
                    await asyncio.wait_for(move.first.wait(), self.deadline_s)
                await self._give_up(move)
                await move.incoming.abandon()
                assert await destination.state() is S.STOPPED
                assert _files(home) == before, "files of the move are left"
                if await source.state() is S.PAUSED:
                    await source.resume()
            await self._finish(await self._begin(source, destination))
            assert await source.digest() == await destination.digest()

        self._run(work)

    def test_an_arrival_may_be_abandoned_when_it_is_whole_but_not_resumed(
        self, tmp_path: Path
    ) -> None:
        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            destination = await yard.open("destination")
            home = yard.home("destination")
            before = _files(home)
            move = await self._begin(source, destination)
            await self._finish(move)
            await move.incoming.abandon()
            assert await destination.state() is S.STOPPED
            assert _files(home) == before, "files of the move are left"
            await self._stands_still(source)

        self._run(work)

    def test_finishing_before_everything_was_written_is_refused(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            destination = await yard.open("destination")
            incoming = await destination.receive(_travelled(source.describe()))
            with pytest.raises(MachineError):
                await asyncio.wait_for(incoming.finish(), self.deadline_s)
            await incoming.abandon()
            assert await destination.state() is S.STOPPED
            # One batch of many, or all but the last: either way something is missing.
            batches = await self._batches(source)
            incoming = await destination.receive(_travelled(source.describe()))
            try:
                for batch in batches[:-1]:
                    await asyncio.to_thread(incoming.write, batch)
                await asyncio.wait_for(incoming.finish(), self.deadline_s)
            except MachineError:
                pass
            else:
                pytest.fail("the last batch is missing, and the machine was loaded")
            await incoming.abandon()
            assert await destination.state() is S.STOPPED

        self._run(work)

    async def _batches(self, source: Machine) -> list[Batch]:
        """All batches of one move of a machine, which is paused by it."""
        outgoing = await source.send(MoveLimits())
        batches: list[Batch] = []

        def read() -> None:
            while (batch := outgoing.read()) is not None:
                batches.append(Batch.unpack(batch.pack()))

        reading = asyncio.create_task(asyncio.to_thread(read))
        reading.add_done_callback(_seen)
        await asyncio.wait_for(outgoing.switch_over(), self.deadline_s)
        await asyncio.wait_for(reading, self.deadline_s)
        return batches

    def test_hostile_batches_are_refused_and_leave_nothing(self, tmp_path: Path) -> None:
        async def work(yard: Yard) -> None:
            source = await self._running(yard)
            sound = await self._batches(source)
            destination = await yard.open("destination")
            home = yard.home("destination")
            before = _files(home)
            rng = random.Random(1)
            far = (2**64 - 4096).to_bytes(8, "little")
            hostile: list[list[Batch]] = [
                [Batch(layout=rng.randbytes(40))],
                [Batch(layout=rng.randbytes(100_000))],
                [Batch(layout=b"\xff" * 16, addresses=far, pages=bytes(4096))],
                [evolve(sound[0], layout=b"")],
                [evolve(sound[0], layout=bytes(sound[0].layout)[:-1])],
                [evolve(sound[0], layout=bytes(sound[0].layout) + b"\x00")],
                [evolve(sound[0], addresses=b"", pages=b"")],
                [Batch(addresses=far * 3, pages=bytes(3 * 4096))],
                [Batch(addresses=far, pages=b"\x01")],
                [Batch(addresses=bytes(8), pages=bytes(BATCH_BYTES_MAX - 8))],
                list(reversed(sound)),
                sound + sound,
            ]
            for _ in range(8):
                mutated = list(sound)
                at = rng.randrange(len(mutated))
                mutated[at] = _mutated(mutated[at], rng)
                hostile.append(mutated)
            for batches in hostile:
                incoming = await destination.receive(_travelled(source.describe()))
                try:
                    for batch in batches:
                        await asyncio.wait_for(
                            asyncio.to_thread(incoming.write, batch), self.deadline_s
                        )
                    await asyncio.wait_for(incoming.finish(), self.deadline_s)
                # Refused early or late, or taken: its digest tells, but nothing else may happen.
                except (PeerProtocolError, MachineError):
                    pass
                assert await destination.state() is not S.RUNNING
                await asyncio.wait_for(incoming.abandon(), self.deadline_s)
                assert await destination.state() is S.STOPPED
                assert _files(home) == before, "files of the move are left"
            # After all that a sound move still works.
            await self._finish(await self._begin(source, destination))
            assert await source.digest() == await destination.digest()

        self._run(work)

    def test_an_origin_that_says_nothing_sound_is_refused_or_taken_but_is_no_crash(
        self, tmp_path: Path
    ) -> None:
        async def work(yard: Yard) -> None:
            machine = await yard.open("destination")
            values: tuple[Any, ...] = (None, -1, 2**70, "x" * 10_000, [], {"a": [1]})
            source = await yard.open()
            keys = list(source.describe())
            origins = [{}, {"nonsense": 1}, *({key: value} for key in keys for value in values)]
            sound = dict(_travelled(source.describe()))
            origins += [{**sound, key: value} for key in keys for value in values]
            for origin in origins:
                try:
                    incoming = await machine.receive(origin)
                except (Refused, PeerProtocolError):
                    pass
                else:
                    await incoming.abandon()
                assert await machine.state() is S.STOPPED

        self._run(work)


def check_obstacle(obstacle: Obstacle) -> None:
    """Require of an obstacle what programs and people count on."""
    assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", obstacle.code), obstacle
    assert obstacle.what, f"{obstacle.code} does not say what was found"
    assert obstacle.cure or not obstacle.blocks, f"{obstacle.code} blocks and has no cure"
    assert obstacle.side in ("source", "target", "link"), obstacle
    plain = json.loads(json.dumps(dict(obstacle.facts), allow_nan=False))
    assert plain == dict(obstacle.facts), f"{obstacle.code}: facts that JSON cannot hold"


def _seen(task: asyncio.Task[None]) -> None:
    """Keep asyncio from reporting an error of its own when a test ends before it looks."""
    if not task.cancelled():
        task.exception()


def _travelled(origin: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `describe` said, as it arrives at the other node."""
    arrived: dict[str, Any] = json.loads(json.dumps(dict(origin)))
    return arrived


def _files(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


def _mutated(batch: Batch, rng: random.Random) -> Batch:
    parts = [bytearray(batch.layout), bytearray(batch.addresses)]
    filled = [part for part in parts if part]
    if filled:
        part = rng.choice(filled)
        for _ in range(rng.choice((1, 3))):
            part[rng.randrange(len(part))] = rng.randrange(256)
    return Batch(bytes(parts[0]), bytes(parts[1]), batch.pages)
