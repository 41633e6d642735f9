"""What a node reads of the register is final, whatever is still on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from novacron_agreement import ownership
from novacron_agreement.machine import CLIENTS_MAX, OVERTAKEN
from novacron_agreement.ownership import OwnershipMachine, Record
from novacron_agreement.registrar import RegisterRefused, Registrar

HERE = Record("m1", "alpha", 1)
THERE = Record("m1", "beta", 2, "s-1")


@define
class Log:
    """A register whose answers can be held back, and with them what was asked."""

    machine: OwnershipMachine = field(factory=OwnershipMachine)
    late: list[bytes] = field(factory=list)
    holds: bool = False

    async def propose(self, command: bytes) -> bytes:
        if self.holds:
            self.late.append(command)
            raise ConnectionError("no answer came")
        return self.machine.apply(1, command)

    def deliver(self) -> None:
        """What was under way arrives now."""
        for command in self.late:
            self.machine.apply(2, command)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def node(log: Log, tmp_path: Path) -> Callable[[], Registrar]:
    """Each call is another life of the node."""
    return lambda: Registrar("alpha", tmp_path, log.propose, 5.0)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def ask_in_vain(log: Log, registrar: Registrar) -> None:
    log.holds = True
    with pytest.raises(ConnectionError):
        await registrar.advance(THERE, 1)
    log.holds = False


def test_a_change_that_arrives_after_a_read_is_refused(
    log: Log, node: Callable[[], Registrar]
) -> None:
    async def work() -> None:
        registrar = node()
        assert (await registrar.advance(HERE, 0)).done
        await ask_in_vain(log, registrar)
        assert (await registrar.read("m1")).present == HERE
        log.deliver()
        assert log.machine.read("m1") == HERE

    run(work())


def test_so_is_one_of_an_earlier_life_of_the_node(log: Log, node: Callable[[], Registrar]) -> None:
    async def work() -> None:
        former = node()
        await former.advance(HERE, 0)
        await ask_in_vain(log, former)
        await node().settle()
        log.deliver()
        assert log.machine.read("m1") == HERE

    run(work())


def test_so_is_one_of_a_life_whose_number_was_lost(
    log: Log, node: Callable[[], Registrar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        former = node()
        await former.advance(HERE, 0)
        await ask_in_vain(log, former)
        (tmp_path / "life").write_text("what the disk made of it")
        monkeypatch.setattr("novacron_agreement.registrar.time.time", lambda: 4e9)
        assert (await node().read("m1")).present == HERE
        log.deliver()
        assert log.machine.read("m1") == HERE

    run(work())


def test_a_life_that_seems_older_than_the_last_is_told_so(
    log: Log, node: Callable[[], Registrar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        await node().advance(HERE, 0)
        (tmp_path / "life").unlink()
        monkeypatch.setattr("novacron_agreement.registrar.time.time", lambda: 1000.0)
        with pytest.raises(RegisterRefused, match=OVERTAKEN):
            await node().advance(THERE, 1)

    run(work())


def test_a_node_that_the_register_has_forgotten_introduces_itself_again(
    log: Log, node: Callable[[], Registrar]
) -> None:
    async def work() -> None:
        registrar = node()
        await registrar.advance(HERE, 0)
        await ask_in_vain(log, registrar)
        for number in range(CLIENTS_MAX):
            log.machine.apply(1, ownership.forget("", epoch=0, client=f"c{number}", number=1))
        assert (await registrar.read("m1")).present == HERE
        log.deliver()
        assert log.machine.read("m1") == HERE

    run(work())


def test_requests_wait_for_those_before_them_and_no_longer_than_they_may(
    log: Log, tmp_path: Path
) -> None:
    async def work() -> None:
        asked = asyncio.Event()
        answer = asyncio.Event()

        async def slow(command: bytes) -> bytes:
            asked.set()
            await answer.wait()
            return await log.propose(command)

        registrar = Registrar("alpha", tmp_path, slow, 0.01)
        first = asyncio.create_task(registrar.advance(HERE, 0))
        await asked.wait()
        with pytest.raises(TimeoutError):
            await registrar.advance(THERE, 1)
        answer.set()
        assert (await first).done
        assert (await registrar.read("m1")).present == HERE

    run(work())
