"""The forecasts' judge, on made data; and on the measured data where it is at hand."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from novacron import ConfigError, OperationEvent, ShellState
from novacron_bench._eta import EtaWatch, Told, eta_errors, eta_text
from novacron_bench._predict import predict, scores
from novacron_bench._predict_command import predict as command
from novacron_bench._predict_data import SETS, read_grid, read_traces, trace_folds


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the measured data, small, of links that wander."""
    chance = random.Random(1)
    data = tmp_path_factory.mktemp("bandwidth")
    names = {
        SETS[0]: [f"drive{drive}_{way}" for drive in range(4) for way in ("up", "down")],
        SETS[1]: [f"norway_bus_{trip}" for trip in range(8)],
        SETS[2]: [f"fcc_unit{unit}_1" for unit in range(8)],
    }
    for name, stems in names.items():
        (data / name).mkdir()
        for stem in stems:
            level, lines = 0.0, ["t_s,mbps"]
            for place in range(400 if name == SETS[0] else 50):
                level += chance.gauss(0, 0.1) - 0.02 * level
                lines.append(f"{place},{math.exp(1 + level):.3f}")
            (data / name / f"{stem}.csv").write_text("\n".join(lines))
    grid = data / "wan_region_grid"
    grid.mkdir()
    tiers, rtt = "PREMIUM,PREMIUM", ["date,src,dst,src_tier,dst_tier,min_rtt"]
    rows = ["date,src,dst,src_tier,dst_tier,received_gbps"]
    for one in range(5):
        for other in range(5):
            if one != other:
                ms = 10 + 20 * abs(one - other)
                rtt.append(f"2022-04-16,a:r{one},b:r{other},{tiers},{ms}")
                for date in ("2022-01-24", "2022-01-29", "2022-11-28"):
                    rows.append(f"{date},a:r{one},b:r{other},{tiers},{200 / ms:.3f}")
    (grid / "rtt_ms.csv").write_text("\n".join(rtt))
    (grid / "throughput.csv").write_text("\n".join(rows))
    return data


def test_every_set_and_horizon_is_judged_beside_every_baseline(made: Path) -> None:
    result = CliRunner().invoke(command, ["--data", str(made), "--json"], obj=ShellState())
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    lines = {(line["set"], line["steps"], line["method"]): line for line in report["lines"]}
    for name in SETS:
        for steps in (1, 5, 10):
            ours = lines[name, steps, "novacron"]
            assert 0.5 < ours["accuracy"] <= 1
            assert 0.75 < ours["covered"] <= 1
            assert {method for one, at, method in lines if (one, at) == (name, steps)} >= {
                "last value",
                "EWMA 0.2",
                "linear on 10 lags",
                "GBDT on 10 lags (quoted)",
            }
    assert lines["unseen pair", 0, "novacron"]["accuracy"] > 0.7
    assert lines["five days later", 0, "last measurement"]["accuracy"] == pytest.approx(1)
    assert report["state_bytes"] < 700
    assert report["update_us"] > 0


def test_scores_are_those_of_the_data_readme() -> None:
    accuracy, mape, nrmse = scores(np.array([1.0, 4.0, 0.0]), np.array([2.0, 2.0, 0.0]))
    assert accuracy == pytest.approx((0.5 + 0 + 1) / 3)
    assert mape == pytest.approx((0.5 + 1) / 2)
    assert nrmse == pytest.approx(math.sqrt(5 / 3) / (4 / 3))


def test_both_directions_of_a_drive_and_neighbouring_trips_share_a_fold() -> None:
    names = ["X_up", "X_down", *(f"norway_bus_{trip}" for trip in (1, 2, 9, 10))]
    up, down, *trips = trace_folds(names)
    assert up == down
    assert trips == sorted(trips)


def test_a_folder_that_is_not_the_data_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no traces") as refused:
        read_traces(tmp_path, SETS[0])
    assert "--data" in (refused.value.hint or "")
    (tmp_path / "wan_region_grid").mkdir()
    (tmp_path / "wan_region_grid" / "rtt_ms.csv").write_text("src,dst\n1,2\n")
    with pytest.raises(ConfigError, match="lacks the column"):
        read_grid(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    "NOVACRON_BANDWIDTH_DATA" not in os.environ,
    reason="the measured links are not part of this project; NOVACRON_BANDWIDTH_DATA names them",
)
def test_on_measured_links_the_best_baselines_are_beaten_and_bounds_hold() -> None:
    report = predict(Path(os.environ["NOVACRON_BANDWIDTH_DATA"]))
    for line in report.lines:
        if line.method == "novacron" and line.steps in (5, 10):
            assert line.accuracy > report.best(line.set, line.steps).accuracy
            assert line.covered is not None
            assert 0.87 <= line.covered <= 0.93


def test_the_eta_is_judged_at_quarters_of_the_copys_time() -> None:
    watch = EtaWatch()
    watch._began_s = 100.0
    watch.told = [
        Told(101.0, 50.0, 20.0, 60.0),
        Told(110.0, 33.0, 25.0, 40.0),
        Told(119.0, 10.0, 5.0, 15.0),
        Told(130.0, 9.0, 5.0, 20.0),
    ]
    found = watch.figures(140.0)
    assert found["25"] == {"foreseen_s": 33.0, "left_s": 30.0, "error": 0.1, "covered": True}
    assert found["50"]["covered"] is False
    assert found["75"]["error"] == 0.1
    errors = eta_errors([{"eta": found}, {}, {"eta": {"25": {"error": 0.3}}}])
    assert errors["25"] == [0.1, 0.3]
    assert eta_text(errors) == "20/52/10 %"
    assert eta_text({"25": [], "50": [], "75": []}) == ""


def test_events_without_progress_say_nothing_of_the_time() -> None:
    watch = EtaWatch()
    for kind, data in (
        ("phase", {"phase": "copy"}),
        ("progress", {"done_bytes": 0, "eta_s": 3.0}),
        ("progress", {"done_bytes": 10, "eta_s": None}),
    ):
        watch.see(OperationEvent(sequence=1, operation="o", kind=kind, data=data))
    assert watch.told == []
