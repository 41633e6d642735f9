"""The fakes keep the contracts that they are fakes of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from novacron import NodeFacts, TransportError
from novacron_testkit import (
    ConsensusContract,
    FakeWire,
    MemoryDisk,
    MemoryRegister,
    MemoryRegisterSettings,
    MemoryTransport,
    TransportContract,
)


class TestMemoryTransport(TransportContract):
    provider = MemoryTransport


class TestMemoryRegister(ConsensusContract):
    provider = MemoryRegister

    def make(self, tmp_path: Path, name: str = "a") -> Any:
        # One disk per folder, so that a register outlives its reopening.
        if not hasattr(self, "disks"):
            self.disks: dict[Path, MemoryDisk] = {}
        disk = self.disks.setdefault(tmp_path, MemoryDisk())
        return MemoryRegister(
            MemoryRegisterSettings(disk=disk), NodeFacts(name=name, state_dir=tmp_path)
        )


def test_a_flipped_bit_arrives_flipped_and_nothing_else_changes() -> None:
    wire = FakeWire()
    wire.to_right.flip_at = 4
    wire.left.send([b"abc", b"def"])
    room = bytearray(10)
    assert wire.right.receive_into(memoryview(room)) == 6
    assert room[:6] == b"abcddf"


def test_a_cut_lane_delivers_what_was_before_and_then_fails_on_both_ends() -> None:
    wire = FakeWire()
    wire.to_right.cut_after = 4
    with pytest.raises(TransportError):
        wire.left.send([b"abcdef"])
    room = bytearray(10)
    assert wire.right.receive_into(memoryview(room)) == 4
    with pytest.raises(TransportError):
        wire.right.receive_into(memoryview(room))


def test_an_early_end_is_seen_by_the_receiver_alone() -> None:
    wire = FakeWire()
    wire.to_right.end_after = 2
    wire.left.send([b"abcdef"])
    wire.left.send([b"more"])
    room = bytearray(10)
    assert wire.right.receive_into(memoryview(room)) == 2
    assert wire.right.receive_into(memoryview(room)) == 0
    assert wire.to_right.sent == 10
