"""The service and its hooks, on the operations of a node: what is asked, counted and told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import novacron_flags_openfeature
import pytest
from attrs import define, field
from novacron import (
    ConfigError,
    MachineSpec,
    MigrationFailed,
    MoveContext,
    MoveFacts,
    NodeFacts,
    Operation,
    OperationRequest,
    Operations,
    PluginManager,
    PluginSource,
)
from novacron_flags_openfeature import FlagsService, FlagsSettings

FLAG = "provider.compression"
HAVE = ["acme", "hde"]
REQUEST = OperationRequest(kind="migrate", machine="vm", subject="local:me")
FLAGS = {
    "flags": {FLAG: {"state": "ENABLED", "variants": {"new": "acme"}, "defaultVariant": "new"}}
}


class ListLog:
    """An operation log in memory; the durable one has tests of its own."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, Mapping[str, Any]]] = []

    async def append(self, operation: str, event: str, detail: Mapping[str, Any]) -> None:
        self.entries.append((operation, event, detail))


@define
class Host:
    """What of a node the service uses: its operations and its sessions."""

    folder: Path
    connected: bool = True
    log: ListLog = field(factory=ListLog)
    facts: NodeFacts = field(init=False)
    manager: PluginManager = field(init=False)
    operations: Operations = field(init=False)
    sessions: dict[str, Any] = field(factory=dict)
    moves: int = 0

    def __attrs_post_init__(self) -> None:
        self.facts = NodeFacts(name="a", state_dir=self.folder)
        source = PluginSource(
            name="flags-openfeature",
            distribution="novacron-flags-openfeature",
            version="0",
            plugin=novacron_flags_openfeature,
        )
        self.manager = PluginManager.load(sources=[source], strict=True)
        self.operations = Operations(
            folder=self.folder / "operations",
            facts=self.facts,
            manager=self.manager,
            log=self.log,  # type: ignore[arg-type]
        )
        self.operations.load()

    def settings(self, **more: Any) -> FlagsSettings:
        path = self.folder / "flags.json"
        path.write_text(json.dumps(FLAGS))
        named: dict[str, Any] = {"enabled": True, "file": str(path)}
        return FlagsSettings(**named | more)

    def choose(self) -> Any:
        move = MoveContext(machine="vm", tenant="", source="a", target="b", mode="internet")
        return self.manager.choose(
            "novacron_choose_provider",
            domain="compression",
            chosen="hde",
            available=HAVE,
            move=move,
            node=self.facts,
        )

    async def move(self, *, fails: bool, again: bool = True) -> Operation:
        """An operation as the kernel's are: it ends its session, and then says what that means."""
        self.moves += 1
        session = f"mig-{self.moves}"

        async def work(operation: Operation) -> dict[str, Any]:
            codec = self.choose() or "hde"
            operation.progress |= {"session": session}
            link = SimpleNamespace(connected=self.connected)
            self.sessions[session] = SimpleNamespace(link=link)
            spec = MachineSpec(name="vm", driver="wasm", memory_bytes=1)
            facts = MoveFacts(
                machine=spec, target="b", mode="internet", codec=codec, session=session
            )
            self.manager.notify(
                "novacron_on_move_end",
                move=facts,
                moved=not fails,
                reason="a frame is not sound" if fails else "",
                downtime_ms=1.0,
                node=self.facts,
            )
            del self.sessions[session]
            if fails:
                raise MigrationFailed("it did not move", session=session, again=again)
            return {}

        operation = await self.operations.begin(REQUEST, work)
        await operation.wait()
        return operation


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def test_choose_provider_and_on_move_end_roll_back_what_fails_and_tell_it(tmp_path: Path) -> None:
    async def test() -> None:
        host = Host(tmp_path)
        service = FlagsService(host.settings(), host)  # type: ignore[arg-type]
        await service.start()
        await host.move(fails=False)
        assert host.choose() == "acme"
        ended = [await host.move(fails=True) for _ in range(3)]
        assert host.choose() is None
        told = [
            event.data["flag"]
            async for event in ended[-1].events()
            if event.kind == "message" and "flag" in event.data
        ]
        assert [(one["flag"], one["value"], one["by"]) for one in told] == [
            (FLAG, "acme", "node a")
        ]
        await service.stop()
        noted = [entry for entry in host.log.entries if entry[1] == "flag-rolled-back"]
        assert [(operation, detail["value"]) for operation, _, detail in noted] == [
            (ended[-1].id, "acme")
        ]

    run(test)


@pytest.mark.parametrize(("again", "connected"), [(False, True), (True, False)])
def test_what_is_not_the_codecs_fault_is_not_counted(
    tmp_path: Path, again: bool, connected: bool
) -> None:
    async def test() -> None:
        host = Host(tmp_path, connected=connected)
        service = FlagsService(host.settings(), host)  # type: ignore[arg-type]
        await service.start()
        for _ in range(5):
            await host.move(fails=True, again=again)
        assert host.choose() == "acme"
        assert service.rollout.budget.known() == []
        await service.stop()

    run(test)


def test_while_the_service_does_not_run_nothing_is_chosen(tmp_path: Path) -> None:
    async def test() -> None:
        host = Host(tmp_path)
        assert host.choose() is None
        await host.move(fails=True)
        service = FlagsService(host.settings(), host)  # type: ignore[arg-type]
        await service.start()
        assert host.choose() == "acme"
        await service.stop()
        assert host.choose() is None
        await service.stop()

    run(test)


def test_a_node_whose_provider_cannot_be_had_does_not_start(tmp_path: Path) -> None:
    async def test() -> None:
        host = Host(tmp_path)
        settings = host.settings(file="", provider="no.such.module:Class")
        service = FlagsService(settings, host)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"no.such.module:Class"):
            await service.start()
        assert host.choose() is None
        await service.stop()

    run(test)
