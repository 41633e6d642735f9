"""What this plugin is held to, on a cluster of one; tests and ``novacron plugins check`` run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from novacron import NodeFacts
from novacron_testkit.contracts import ConsensusContract

from novacron_consensus_raft._provider import RaftRegister
from novacron_consensus_raft._toml import RaftSection


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


class RaftContract(ConsensusContract):
    provider = RaftRegister

    def make(self, tmp_path: Path, name: str = "a") -> Any:
        state = tmp_path / name
        state.mkdir(mode=0o700, exist_ok=True)
        return Alone(RaftSection(timeout_s=3), NodeFacts(name=name, state_dir=state))
