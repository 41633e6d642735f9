"""What stands in the way of a machine's move is named with its cure, before it begins."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections import namedtuple
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from novacron import MachineSpec, MoveWish, NodeFacts, Obstacle
from novacron_machine_wasm import _driver as driver
from novacron_machine_wasm._settings import Settings

SPEC = MachineSpec(name="vm", driver="wasm", memory_bytes=1 << 20, settings={"guest": "counter"})
SOUND = {
    "driver": "wasm",
    "format": driver.FORMAT,
    "memory_bytes": 1 << 20,
    "guest": "0" * 64,
    "guest_bytes": 5000,
}
Usage = namedtuple("Usage", "total used free")


def coming(
    folder: Path, spec: MachineSpec = SPEC, settings: Settings | None = None, **lies: Any
) -> list[Obstacle]:
    node = NodeFacts(name="here", state_dir=folder)
    made = driver.WasmDriver(settings or Settings(), node)
    return list(asyncio.run(made.examine(spec, {**SOUND, **lies})))


def codes(found: list[Obstacle]) -> list[str]:
    assert all(obstacle.cure for obstacle in found)
    return [obstacle.code for obstacle in found]


def test_nothing_stands_in_the_way_of_a_sound_machine(tmp_path: Path) -> None:
    assert coming(tmp_path) == []


@pytest.mark.parametrize(
    "lies", [{"driver": "qemu"}, {"format": 0}, {"memory_bytes": 2 << 20}, {"guest_bytes": "x"}]
)
def test_a_machine_that_its_source_describes_unsoundly_cannot_come(
    tmp_path: Path, lies: dict[str, Any]
) -> None:
    assert codes(coming(tmp_path, **lies)) == ["origin.unsound"]


def test_a_machine_larger_than_this_node_allows_is_told_by_its_setting(tmp_path: Path) -> None:
    (found,) = coming(tmp_path, settings=Settings(memory_bytes_max=65536))
    assert (found.code, found.facts) == ("settings.refused", {"setting": "memory_bytes"})
    assert "memory_bytes_max" in found.cure


def test_a_port_that_somebody_has_is_worth_knowing(tmp_path: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        spec = evolve(SPEC, settings={"guest": "counter", "tcp_port": port})
        (found,) = coming(tmp_path, spec)
    assert (found.code, found.blocks, found.facts) == ("network.port-taken", False, {"port": port})
    assert coming(tmp_path, spec) == []


def test_a_full_disk_is_named_on_either_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 30, 1 << 30, 1 << 20))
    (there,) = coming(tmp_path)
    node = NodeFacts(name="here", state_dir=tmp_path)

    async def leaving() -> list[Obstacle]:
        machine: Any = await driver.WasmDriver(Settings(), node).open(SPEC, tmp_path)
        return list(await machine.examine(MoveWish()))

    (here,) = asyncio.run(leaving())
    assert (there.code, there.side) == ("disk.no-room", "target")
    assert (here.code, here.side) == ("disk.no-room", "source")
    assert here.facts["needed_bytes"] - here.facts["free_bytes"] == 16 << 20
