"""Placement by predicted end: what is planned counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from novacron import MachineSpec, NodeFacts, NodeReport, Refused
from novacron_placement_itp import ItpPlacement, ItpSettings
from novacron_placement_itp._placement import Claim

GIB = 1 << 30
MACHINE = MachineSpec(name="vm", driver="qemu", memory_bytes=GIB)
HERE = NodeFacts(name="here", state_dir=Path("/nonexistent"))


def report(name: str, rate: float | None, free: int = 8 * GIB) -> NodeReport:
    return NodeReport(
        node=name,
        free_memory_bytes=free,
        drivers=("qemu",),
        round_trip_ms=10.0,
        rate_bytes_per_s=rate,
    )


def placement(**settings: Any) -> ItpPlacement:
    return ItpPlacement(ItpSettings(**settings), HERE)


def test_the_node_where_it_would_run_first_wins_and_the_other_is_told_when() -> None:
    chosen = placement(move_s=1.0).choose(MACHINE, [report("slow", 10e6), report("fast", 100e6)])
    assert chosen.node == "fast"
    assert chosen.reason == "it would run there in about 11.7 s at 100.0 MB/s as measured"
    assert "108.4 s at 10.0 MB/s" in chosen.rejected["slow"]


def test_what_an_evacuation_has_planned_for_a_link_and_a_memory_counts() -> None:
    itp = placement(reserve_bytes=0)
    itp.planned = {"fast": Claim(memory_bytes=GIB, busy_s=200.0)}
    chosen = itp.choose(MACHINE, [report("slow", 10e6), report("fast", 100e6)])
    assert chosen.node == "slow"
    assert "behind 200 s that are planned" in chosen.rejected["fast"]
    itp.planned = {"fast": Claim(memory_bytes=8 * GIB, busy_s=1.0)}
    with pytest.raises(Refused, match="0 MiB of memory are free beside 8192 MiB planned"):
        itp.choose(MACHINE, [report("fast", 100e6)])
    itp.planned = {}
    assert itp.choose(MACHINE, [report("slow", 10e6), report("fast", 100e6)]).node == "fast"


def test_a_rate_that_was_never_measured_is_assumed() -> None:
    chosen = placement(rate_bytes_per_s=25e6, move_s=0.0).choose(MACHINE, [report("new", None)])
    assert chosen.reason == "it would run there in about 42.9 s at 25.0 MB/s as assumed"


def test_two_reports_of_one_node_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="same name"):
        placement().choose(MACHINE, [report("a", None), report("a", None)])
