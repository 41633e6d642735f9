"""What was rolled back: written once, read by all, in whatever order, and never lost."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import shutil
from pathlib import Path

import pytest
from novacron import ConfigError
from novacron_flags_openfeature import _decisions
from novacron_flags_openfeature._decisions import Decisions

FLAG = "provider.compression"


def roll_back(decisions: Decisions, value: str = "acme") -> str:
    return decisions.roll_back(FLAG, "new", value, "it failed", f"node {decisions.node}").id


def refused(folder: Path, node: str = "reader") -> set[str]:
    decisions = Decisions(folder, node)
    decisions.refresh()
    assert decisions.doubt == ""
    return {value for _, value in decisions.refused()}


def test_nothing_is_refused_where_nothing_was_written(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == set()


def test_what_one_node_rolls_back_all_refuse_until_somebody_restores_it(tmp_path: Path) -> None:
    a, b = Decisions(tmp_path, "a"), Decisions(tmp_path, "b")
    roll_back(a)
    assert refused(tmp_path) == {"acme"}
    lifted = b.restore(FLAG, "acme", "somebody")
    assert [one.by for one in lifted] == ["node a"]
    assert refused(tmp_path) == set()
    a.refresh()
    assert a.refused() == {}
    assert a.restored_at()[FLAG, "acme"] > 0
    assert b.restore(FLAG, "acme", "somebody") == []


def test_two_nodes_that_roll_back_the_same_are_both_lifted_and_a_later_one_stands(
    tmp_path: Path,
) -> None:
    a, b = Decisions(tmp_path, "a"), Decisions(tmp_path, "b")
    roll_back(a)
    roll_back(b)
    assert len(a.restore(FLAG, "acme", "somebody")) == 2
    assert refused(tmp_path) == set()
    roll_back(b)
    assert refused(tmp_path) == {"acme"}


def test_files_say_the_same_in_whatever_order_they_come(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    nodes = {name: Decisions(whole, name) for name in "abc"}
    roll_back(nodes["a"])
    roll_back(nodes["b"], "zstd")
    nodes["c"].restore(FLAG, "acme", "somebody")
    for order in itertools.permutations("abc"):
        copied = tmp_path / "".join(order)
        copied.mkdir()
        reader = Decisions(copied, "reader")
        for name in order:
            shutil.copy(whole / f"{name}.json", copied)
            reader.refresh()
        assert {value for _, value in reader.refused()} == {"zstd"}


def test_a_restore_is_kept_as_long_as_anybody_says_what_it_lifts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_decisions, "LIFTED_KEPT", 4)
    a, b = Decisions(tmp_path, "a"), Decisions(tmp_path, "b")
    roll_back(a)
    b.restore(FLAG, "acme", "somebody")
    for _ in range(9):
        roll_back(b, "zstd")
        b.restore(FLAG, "zstd", "somebody")
    assert refused(tmp_path) == set()
    written = json.loads((tmp_path / "b.json").read_text())
    assert len(written["rolled_back"]) == 4 + 1
    assert len(written["restored"]) == 4 + 2


def _roll_back_some(folder: Path, values: list[str]) -> None:
    decisions = Decisions(folder, "a")
    for value in values:
        decisions.roll_back(FLAG, "new", value, "why", "somebody")


def test_the_node_and_the_command_line_write_one_file_without_losing_anything(
    tmp_path: Path,
) -> None:
    processes = multiprocessing.get_context("fork")
    parts = [[f"{part}-{number}" for number in range(8)] for part in "xyz"]
    writers = [processes.Process(target=_roll_back_some, args=(tmp_path, part)) for part in parts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert refused(tmp_path) == {value for part in parts for value in part}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"rolled_back": 1}', '{"colour": []}'])
def test_a_file_that_was_never_read_whole_is_doubt(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "b.json").write_text(damage)
    decisions = Decisions(tmp_path, "a")
    decisions.refresh()
    decisions.refresh()
    assert "b.json" in decisions.doubt
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 1
    (tmp_path / "b.json").unlink()
    decisions.refresh()
    assert decisions.doubt == ""


def test_what_a_file_said_before_it_was_damaged_stands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer, reader = Decisions(tmp_path, "b"), Decisions(tmp_path, "a")
    roll_back(writer)
    reader.refresh()
    (tmp_path / "b.json").write_text("{")
    reader.refresh()
    assert {value for _, value in reader.refused()} == {"acme"}
    assert reader.doubt == ""
    assert "what it said before stands" in caplog.text


def test_a_damaged_file_of_ours_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        roll_back(Decisions(tmp_path, "a"))
    assert (tmp_path / "a.json").read_text() == "{"
