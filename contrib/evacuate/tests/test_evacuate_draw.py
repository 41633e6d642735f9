"""The plan as people see it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from click.testing import CliRunner
from novacron import ConfigError
from novacron.shell import ShellState
from novacron_evacuate import _draw as draw
from novacron_evacuate._command import evacuate, parse_seconds
from rich.console import Console


def move(machine: str, target: str, begin: float, copy: float, end: float) -> dict[str, Any]:
    return {
        "machine": machine,
        "target": target,
        "memory_bytes": 1 << 30,
        "wire_bytes": 500_000_000,
        "priority": 0,
        "begin_s": begin,
        "copy_s": copy,
        "end_s": end,
        "end_low_s": end * 0.9,
        "end_high_s": end * 1.25,
        "rate_bytes_per_s": 50_000_000,
    }


PLAN: dict[str, Any] = {
    "makespan_s": 80.0,
    "makespan_low_s": 72.0,
    "makespan_high_s": 100.0,
    "bound_s": 76.0,
    "bound_why": "the way to b",
    "wire_bytes": 1_500_000_000,
    "at_once": {"b": 2, "c": 1},
    "moves": [
        move("vm1", "b", 0, 10, 40),
        move("vm2", "c", 0, 10, 60),
        move("vm3", "b", 30, 40, 80),
    ],
    "links": [{"name": "the way to b", "targets": ["b"], "rate_bytes_per_s": 50_000_000}],
    "stranded": {"odd<1>": "b: no driver"},
    "chance": 0.75,
}


def shown(what: Any) -> str:
    console = Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


def test_the_picture_has_a_bar_per_machine_where_its_time_is() -> None:
    lines = shown(draw.gantt(PLAN, width=50)).splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["b", "vm1"], ["b", "vm3"], ["c", "vm2"]]
    bar = lines[0][lines[0].index("░") :].rstrip()
    assert (bar.count("░"), bar.count("█"), bar.count("·")) == (5, 15, 5)
    assert lines[3].split() == ["0", "50.0", "s", "1", "min", "40", "s"]


def test_the_summary_says_how_long_how_good_and_how_likely() -> None:
    assert draw.summary(PLAN)[:4] == [
        "3 machines, 1,500 MB on the wire, in 80.0 s (72.0 s to 1 min 40 s)",
        "no plan takes less than 76.0 s (the way to b decides); this one takes 1.05 times that",
        "the deadline is kept with a chance of 75%",
        "moves at once: 2 to b, 1 to c",
    ]
    text = shown(draw.picture(PLAN))
    assert "odd<1>: b: no driver" in text


def test_the_svg_is_sound_and_has_the_same_bars() -> None:
    root = ET.fromstring(draw.svg(PLAN | {"moves": [*PLAN["moves"]]}, "a <b> & c"))
    bars = [one for one in root if one.tag.endswith("rect")]
    assert len(bars) == 3 * len(PLAN["moves"])
    assert any((one.text or "") == "a <b> & c" for one in root)


def test_an_empty_plan_can_be_drawn() -> None:
    empty = PLAN | {"moves": [], "at_once": {}, "links": [], "stranded": {}}
    assert "0 machines" in shown(draw.picture(empty))
    ET.fromstring(draw.svg(empty, "nothing"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("45", 45), ("1.5min", 90)]
)
def test_a_deadline_is_written_as_people_do(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["soon", "0s", "-5m", "1d", "999999h"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="is no duration") as refused:
        parse_seconds(text)
    assert "15m" in refused.value.hint


def test_a_drawing_without_a_plan_is_refused() -> None:
    ran = CliRunner().invoke(evacuate, ["a", "--svg", "x.svg"], obj=ShellState())
    assert isinstance(ran.exception, ConfigError)
