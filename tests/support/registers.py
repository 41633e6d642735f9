"""Registers of ownership on several nodes of one process, over real channels and real files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Generic, TypeVar

from attrs import define, field
from novacron import Fenced, NodeFacts, Ownership, OwnershipRegister
from real_channels import ChannelNode

R = TypeVar("R", bound=OwnershipRegister)
T = TypeVar("T")
# More than any of these tests takes; one that hangs says so.
LIMIT_S = 60


def owned(epoch: int, owner: str = "a", machine: str = "vm1") -> Ownership:
    return Ownership(machine=machine, owner=owner, epoch=epoch)


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(LIMIT_S):
            return await work()

    return asyncio.run(limited())


@define(eq=False)
class Registers(Generic[R]):
    """Nodes that can be stopped and started again, each with its register.

    Args:
        folder: Where the nodes, which are enrolled already, have their state folders.
        make: A register of some settings.
        section: The settings of all of them.
        leader_of: Whom a register's member takes for the leader; None while it knows none.
    """

    folder: Path
    make: Callable[[dict[str, Any], NodeFacts], R]
    section: dict[str, Any]
    leader_of: Callable[[R], str | None]
    addresses: dict[str, str] = field(factory=dict)
    nodes: dict[str, ChannelNode] = field(factory=dict)
    registers: dict[str, R] = field(factory=dict)

    def start(self, name: str, **changes: Any) -> R:
        self.nodes[name] = node = ChannelNode(name, self.folder, self.addresses)
        try:
            register = self.make({**self.section, **changes}, node.facts)
        except BaseException:
            self.nodes.pop(name).close()
            raise
        self.registers[name] = register
        return register

    async def stop(self, name: str) -> None:
        await self.registers.pop(name).close()
        self.nodes.pop(name).close()

    async def close(self) -> None:
        for name in list(self.registers):
            await self.stop(name)
        for node in self.nodes.values():
            node.close()

    async def leader(self) -> str:
        """Who leads, once a member knows."""
        while True:
            for register in self.registers.values():
                leader = self.leader_of(register)
                if leader in self.registers:
                    return str(leader)
            await asyncio.sleep(0.01)


async def assert_all_read_alike_and_one_rival_wins(made: Registers[R]) -> None:
    """What one node writes every node reads; of all that write over it at once, one succeeds."""
    registers = made.registers
    await registers["a"].advance(owned(1), expected_epoch=0)
    for register in registers.values():
        assert await register.read("vm1") == owned(1)
        assert list(await register.owned_by("a")) == [owned(1)]
    results = await asyncio.gather(
        *(
            register.advance(owned(2, name), expected_epoch=1)
            for name, register in registers.items()
        ),
        return_exceptions=True,
    )
    assert results.count(None) == 1
    assert sum(isinstance(one, Fenced) for one in results) == len(registers) - 1
    records = [await register.read("vm1") for register in registers.values()]
    assert records.count(records[0]) == len(registers)


async def assert_it_goes_on_without_its_leader(made: Registers[R]) -> None:
    """Three times the leader is stopped, the others write, and it finds back."""
    for epoch in range(1, 4):
        leader = await made.leader()
        await made.stop(leader)
        rest = next(iter(made.registers.values()))
        await rest.advance(owned(epoch), expected_epoch=epoch - 1)
        register = made.start(leader)
        assert await register.read("vm1") == owned(epoch)
