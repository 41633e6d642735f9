"""The service on real channels: TLS over TCP between three nodes, with raft for strong requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from novacron import ConfigError, PluginManager
from novacron_consensus_state import Level, StateService, StateSettings
from real_channels import channel_nodes

MEMBERS = {"a": "eu", "b": "us", "c": "ap"}


def service(node: Any, **settings: Any) -> StateService:
    given = {"members": MEMBERS, "probe_ms": 100, **settings}
    around: Any = SimpleNamespace(facts=node.facts, manager=PluginManager.load())
    return StateService(StateSettings(**given), around)


@pytest.mark.slow
def test_three_nodes_share_state_at_every_level(tmp_path: Path) -> None:
    async def run(nodes: dict[str, Any]) -> None:
        made = {name: service(node, log="raft", round_trip_ms=20) for name, node in nodes.items()}
        for one in made.values():
            await one.start()
        try:
            for n, level in enumerate(Level):
                writer, reader = made["abc"[n % 3]].driver, made["abc"[(n + 1) % 3]].driver
                wrote = await writer.write("k", "lww", "set", [n], level=level, timeout_s=20)
                token = wrote.token if level in (Level.EVENTUAL, Level.LOCAL) else b""
                read_at = Level.LOCAL if level is Level.EVENTUAL else level
                read = await reader.read("k", "lww", level=read_at, token=token, timeout_s=20)
                assert read.value == n, level
            assert (await made["b"].driver.read("k", "lww", level=Level.STRONG)).version == 1
        finally:
            for one in made.values():
                await one.stop()

    with channel_nodes(tmp_path, "a", "b", "c") as nodes:
        asyncio.run(run(nodes))


def test_a_configuration_that_cannot_work_is_refused_with_a_hint(tmp_path: Path) -> None:
    with channel_nodes(tmp_path, "a") as nodes:
        node = nodes["a"]
        with pytest.raises(ConfigError, match="does not name this node"):
            service(node, members={"x": "eu"})
        with pytest.raises(ConfigError, match="the replicated log 'paxos'") as caught:
            service(node, log="paxos")
        assert "raft" in caught.value.hint
        with pytest.raises(ConfigError, match="'z' is not in members"):
            service(node, log="raft", log_members=["z"])
