"""The laws that every provider of this domain keeps, on a cluster of one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from novacron import NodeFacts
from novacron_consensus_raft import RaftRegister, RaftSection
from novacron_consensus_raft.contract import RaftContract


class TestRaftRegister(RaftContract):
    pass


def test_a_cluster_of_one_needs_no_channels(tmp_path: Path) -> None:
    async def run() -> None:
        register = RaftRegister(RaftSection(), NodeFacts(name="a", state_dir=tmp_path))
        await register.member.begin(["a"])
        assert await register.read("vm1") is None
        await register.close()

    asyncio.run(run())
