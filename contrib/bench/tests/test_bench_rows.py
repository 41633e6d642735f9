"""Rows, their statistics, and the tables and charts that are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from novacron import ConfigError
from novacron_bench._plot import write_plots
from novacron_bench._rows import (
    Row,
    append_row,
    best_stock,
    read_rows,
    summarise,
    times_faster,
    times_fewer,
)
from novacron_bench._table import COLUMNS, RATIO_COLUMNS, tables


def row(entry: str, seconds: float, run: int = 1, **more: Any) -> Row:
    given: dict[str, Any] = {
        "link": "200mbit,80ms,0.5%",
        "workload": "writer",
        "outcome": "moved",
        "stock": not entry.startswith("novacron"),
        "there_bytes": 300_000_000,
        "pause_s": 0.5,
        "intact": True,
        **more,
    }
    return Row(entry=entry, seconds=seconds, run=run, **given)


def test_rows_come_back_from_their_file_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    rows = [row("default/bbr", 53.0, figures={"ram": {"normal": 7}}), row("novacron/bbr", 10.0)]
    for one in rows:
        append_row(path, one)
    assert read_rows(path) == rows


def test_a_last_row_that_a_crash_cut_off_is_left_out_and_written_over_by_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.jsonl"
    append_row(path, row("default/bbr", 53.0))
    with path.open("a") as file:
        file.write('{"link": "200mb')
    assert len(read_rows(path)) == 1


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"what": 1}\n')
    append_row(path, row("default/bbr", 53.0))
    with pytest.raises(ConfigError, match="line 1"):
        read_rows(path)


def test_there_is_nothing_in_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none") == []


def test_the_median_least_and_most_are_of_the_runs_that_moved() -> None:
    seconds = (12.0, 10.0, 30.0)
    (one,) = summarise(row("multifd/bbr", s, run=n) for n, s in enumerate(seconds))
    assert one.seconds is not None
    assert (one.seconds.median, one.seconds.least, one.seconds.most) == (12.0, 10.0, 30.0)
    assert (one.runs, one.good, one.cut) == (3, 3, 0)


def test_an_entry_that_is_mostly_cut_off_takes_at_least_that_long() -> None:
    cut = [row("default/cubic", 300.0, n, outcome="cut off", pause_s=None) for n in range(3)]
    own = row("novacron/bbr", 10.0)
    slow, fast = summarise([*cut, own])
    assert slow.seconds is not None
    assert slow.seconds.at_least
    assert times_faster(fast, slow) == "≥ 30.00"
    assert times_faster(slow, fast) == ""


def test_a_guest_that_arrived_with_other_memory_counts_as_not_moved() -> None:
    (one,) = summarise([row("default/bbr", 50.0, intact=False)])
    assert one.good == 0
    assert one.reasons == ("arrived, but not whole",)


def test_a_guest_whose_work_went_back_in_time_counts_as_not_moved() -> None:
    (one,) = summarise([row("default/bbr", 50.0, writes_lost=True)])
    assert one.reasons == ("arrived, but back in time",)


def test_the_best_of_stock_is_the_fastest_that_always_moved_in_the_clear() -> None:
    summaries = summarise(
        [
            row("default/bbr", 50.0),
            row("multifd-zstd/bbr", 13.0),
            row("multifd-zstd-tls/bbr", 12.0, encrypted=True),
            row("xbzrle/bbr", 9.0),
            row("xbzrle/bbr", 0.0, run=2, outcome="failed", reason="it died"),
            row("novacron/bbr", 8.0, encrypted=True, there_bytes=100_000_000),
        ]
    )
    best, encrypted = best_stock(summaries), best_stock(summaries, encrypted=True)
    assert best is not None
    assert encrypted is not None
    assert (best.entry, encrypted.entry) == ("multifd-zstd/bbr", "multifd-zstd-tls/bbr")
    assert times_fewer(summaries[-1], best) == "3.00"


def test_tables_compare_with_stock_of_the_same_congestion_control() -> None:
    summaries = summarise(
        [
            row("default/cubic", 300.0, outcome="cut off"),
            row("default/bbr", 50.0),
            row("multifd-zstd/cubic", 100.0),
            row("multifd-zstd/bbr", 12.0),
            row("novacron/bbr", 8.0),
            row("compress/bbr", 0.0, outcome="failed", reason="QEMU has it no more"),
        ]
    )
    ((title, measured, ratios, notes),) = list(tables(summaries))
    assert title == "200mbit,80ms,0.5%, writer"
    assert all(len(line) == len(COLUMNS) for line in measured)
    assert all(len(line) == len(RATIO_COLUMNS) for line in ratios)
    assert ratios[-1] == ("novacron/bbr", "≥ 37.50", "6.25", "1.50", "", "1.00")
    assert notes[-1] == "compress/bbr: QEMU has it no more"


def test_charts_are_sound_svg_with_a_bar_for_each_entry(tmp_path: Path) -> None:
    summaries = summarise([row("default/bbr", 50.0), row("novacron/bbr", 8.0)])
    written = write_plots(tmp_path / "plots", summaries)
    assert sorted(path.name.rpartition("-")[2] for path in written) == [
        "pause.svg",
        "seconds.svg",
        "there.svg",
    ]
    for path in written:
        drawn = ElementTree.fromstring(path.read_text())
        assert len(drawn.findall("{http://www.w3.org/2000/svg}rect")) == 3
