"""The laws that every provider of this domain keeps, on a cluster of one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from novacron import NodeFacts
from novacron_consensus_raft import RaftRegister, RaftSection
from novacron_testkit.contracts import ConsensusContract


class Alone(RaftRegister):
    """A register that begins its cluster when it is used first."""

    async def read(self, machine: str) -> Any:
        await self._begin()
        return await super().read(machine)

    async def advance(self, record: Any, *, expected_epoch: int | None) -> None:
        await self._begin()
        await super().advance(record, expected_epoch=expected_epoch)

    async def _begin(self) -> None:
        if self.member.driver is None and not self._closed:
            await self.member.begin([self.member.name])


class TestRaftRegister(ConsensusContract):
    provider = RaftRegister

    def make(self, tmp_path: Path, name: str = "a") -> Any:
        state = tmp_path / name
        state.mkdir(mode=0o700, exist_ok=True)
        return Alone(RaftSection(timeout_s=3), NodeFacts(name=name, state_dir=state))


def test_a_cluster_of_one_needs_no_channels(tmp_path: Path) -> None:
    async def run() -> None:
        register = RaftRegister(RaftSection(), NodeFacts(name="a", state_dir=tmp_path))
        await register.member.begin(["a"])
        assert await register.read("vm1") is None
        await register.close()

    asyncio.run(run())
