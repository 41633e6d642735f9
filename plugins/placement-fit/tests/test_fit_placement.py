"""The rule of placement by fit: what rejects, what wins, and what is said about it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from novacron import Choice, MachineSpec, NodeFacts, NodeReport, Refused
from novacron_placement_fit import FitPlacement, FitSettings

GIB = 1 << 30
MACHINE = MachineSpec(name="vm1", driver="qemu", memory_bytes=GIB)
HERE = NodeFacts(name="here", state_dir=Path("/nonexistent"))


def placement(**settings: Any) -> FitPlacement:
    return FitPlacement(FitSettings(**settings), HERE)


def node(name: str, **facts: Any) -> NodeReport:
    known: dict[str, Any] = {
        "free_memory_bytes": 4 * GIB,
        "drivers": ("qemu", "wasm"),
        "round_trip_ms": 10.0,
        "rate_bytes_per_s": 100e6,
    }
    return NodeReport(node=name, **known | facts)


def test_the_faster_link_wins_and_the_other_is_told_how_much_slower_it_is() -> None:
    slow, fast = node("slow", rate_bytes_per_s=20e6), node("fast", rate_bytes_per_s=200e6)
    assert placement().choose(MACHINE, [slow, fast]) == Choice(
        node="fast",
        reason="1,024 MiB would take about 5.4 s at 200.0 MB/s as measured; "
        "4,096 MiB are free there",
        rejected={"slow": "would take about 53.7 s at 20.0 MB/s as measured; fast takes 5.4 s"},
    )


def test_a_node_without_the_driver_or_the_memory_is_rejected_with_its_reason() -> None:
    chosen = placement().choose(
        MACHINE,
        [
            node("bare", drivers=("wasm",), rate_bytes_per_s=1e9),
            node("small", free_memory_bytes=GIB + 1, rate_bytes_per_s=1e9),
            node("fits"),
        ],
    )
    assert chosen.node == "fits"
    assert chosen.rejected == {
        "bare": "has no machine driver 'qemu' (it has: wasm)",
        "small": "1,024 MiB of memory are free; the machine needs 1,024 MiB and 256 MiB "
        "must stay free",
    }


def test_the_reserve_is_counted_to_the_byte() -> None:
    exact = node("exact", free_memory_bytes=GIB + 1000)
    assert placement(reserve_bytes=1000).choose(MACHINE, [exact]).node == "exact"
    with pytest.raises(Refused):
        placement(reserve_bytes=1001).choose(MACHINE, [exact])


def test_an_unknown_rate_is_a_window_per_round_trip_up_to_the_stated_most() -> None:
    near = node("near", rate_bytes_per_s=None, round_trip_ms=1.0)
    far = node("far", rate_bytes_per_s=None, round_trip_ms=100.0)
    chosen = placement().choose(MACHINE, [far, near])
    assert chosen.node == "near"
    assert "125.0 MB/s as assumed from 1 ms" in chosen.reason
    assert "41.9 MB/s as assumed from 100 ms" in chosen.rejected["far"]
    same_host = node("same-host", rate_bytes_per_s=None, round_trip_ms=0.0)
    assert placement().choose(MACHINE, [same_host]).node == "same-host"


@pytest.mark.parametrize("rate", [0.0, 5e-324, -1.0, math.nan, math.inf])
def test_a_rate_that_cannot_be_counts_as_unknown(rate: float) -> None:
    assert "as assumed" in placement().choose(MACHINE, [node("a", rate_bytes_per_s=rate)]).reason


@pytest.mark.parametrize("round_trip", [-1.0, math.nan, math.inf])
def test_a_round_trip_that_cannot_be_rejects_its_node(round_trip: float) -> None:
    with pytest.raises(Refused, match="cannot be"):
        placement().choose(MACHINE, [node("a", round_trip_ms=round_trip)])


def test_equal_times_go_to_more_free_memory_and_then_to_the_first_name() -> None:
    some, more = node("some"), node("z-more", free_memory_bytes=8 * GIB)
    chosen = placement().choose(MACHINE, [some, more])
    assert chosen.node == "z-more"
    assert chosen.rejected == {"some": "as near as z-more, but 4,096 MiB are free, not 8,192 MiB"}
    chosen = placement().choose(MACHINE, [node("b"), node("a")])
    assert chosen.node == "a"
    assert chosen.rejected == {"b": "as good as a, whose name sorts first"}


def test_if_none_will_do_each_one_is_told_why() -> None:
    candidates = [node("b", drivers=()), node("a", free_memory_bytes=0)]
    with pytest.raises(Refused) as caught:
        placement().choose(MACHINE, candidates)
    assert set(caught.value.facts["rejected"]) == {"a", "b"}
    assert "a: 0 MiB" in str(caught.value)
    assert "b: has no machine driver 'qemu' (it has: none)" in str(caught.value)
    assert caught.value.hint
    with pytest.raises(Refused, match="no node to move"):
        placement().choose(MACHINE, [])


def test_two_reports_of_one_node_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="same name"):
        placement().choose(MACHINE, [node("a"), node("a")])


def test_the_order_of_the_candidates_changes_nothing() -> None:
    candidates = [
        node("a", drivers=()),
        node("b", rate_bytes_per_s=None),
        node("c"),
        node("d", free_memory_bytes=3 * GIB),
    ]
    choices = {
        repr(placement().choose(MACHINE, order)) for order in itertools.permutations(candidates)
    }
    assert len(choices) == 1


@given(
    st.lists(
        st.builds(
            NodeReport,
            node=st.text("abcdef", min_size=1, max_size=3),
            free_memory_bytes=st.integers(0, 4 * GIB),
            drivers=st.sampled_from([(), ("qemu",), ("wasm",), ("qemu", "wasm")]),
            round_trip_ms=st.floats(0, 1000),
            rate_bytes_per_s=st.none() | st.floats(1, 1e10),
        ),
        max_size=6,
        unique_by=lambda report: report.node,
    )
)
@example([NodeReport(node="a", free_memory_bytes=2 * GIB, drivers=("qemu",), round_trip_ms=5e-324)])
def test_every_candidate_is_either_chosen_or_rejected_with_a_reason(
    candidates: list[NodeReport],
) -> None:
    fits = {
        r.node
        for r in candidates
        if "qemu" in r.drivers and r.free_memory_bytes >= GIB + FitSettings().reserve_bytes
    }
    if not fits:
        with pytest.raises(Refused) as caught:
            placement().choose(MACHINE, candidates)
        assert set(caught.value.facts["rejected"]) == {report.node for report in candidates}
        return
    chosen = placement().choose(MACHINE, candidates)
    assert chosen.node in fits
    assert set(chosen.rejected) == {report.node for report in candidates} - {chosen.node}
    assert all(chosen.rejected.values())


@pytest.mark.parametrize(
    "settings",
    [{"reserve_bytes": -1}, {"assumed_window_bytes": 0}, {"assumed_rate_max_bytes_per_s": 0}],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        FitSettings(**settings)
