"""The comparison of ways to empty a node."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from novacron_bench._commands import bench
from novacron_bench._evacuate_command import _compared
from novacron_bench._evacuate_real import RealSetup, _by_rate


def test_ways_are_compared_by_median_and_worst_over_the_bound() -> None:
    rows = [
        {
            "bound": 100.0,
            "one by one": 300.0,
            "evacuate": ours,
            **{f"{way} bytes": 2e9 for way in ("one by one", "evacuate")},
            **{f"{way} stayed": 0 for way in ("one by one", "evacuate")},
        }
        for ours in (100.0, 110.0, 150.0)
    ]
    found = _compared(rows, ["one by one", "evacuate"])
    assert found["evacuate"]["over_bound"] == [1.1, 1.5]
    assert found["one by one"]["of_ours"] == pytest.approx([300 / 110, 2.0])
    assert found["bound_seconds"] == 100.0


def test_a_small_simulated_site_is_compared_as_json() -> None:
    ran = CliRunner().invoke(
        bench, ["evacuate", "--simulated", "--seeds", "1", "--machines", "3", "--json"]
    )
    assert ran.exit_code == 0, ran.output
    for found in json.loads(ran.output)["simulated"].values():
        least = [found[way]["over_bound"][0] for way in ("one by one", "all at once", "evacuate")]
        assert all(one >= 1 for one in least)


def test_somebody_who_knows_the_links_spreads_machines_by_their_rates() -> None:
    setup = RealSetup(links=("20mbit,20ms", "10mbit,20ms"), machines=6, fill_mib=24)
    where = _by_rate(setup)
    sizes = [setup.fill_bytes(number) for number in range(6)]
    to_b = sum(size for size, target in zip(sizes, where, strict=True) if target == "b")
    assert to_b / sum(sizes) == pytest.approx(2 / 3, abs=0.1)


def test_it_wants_to_know_which_and_two_links() -> None:
    assert CliRunner().invoke(bench, ["evacuate"]).exit_code == 2
    assert CliRunner().invoke(bench, ["evacuate", "--real", "--links", "lan"]).exit_code == 2
