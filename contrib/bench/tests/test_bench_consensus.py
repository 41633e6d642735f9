"""`novacron bench consensus` and `nemesis`: real processes, briefly; and that a lie is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from novacron import NovacronError
from novacron_bench._consensus import measure, raft, sync_ms
from novacron_bench._consensus_load import percentile
from novacron_bench._consensus_wan import quorum_ms, run_bft
from novacron_bench._consensus_wan import run as run_wan
from novacron_bench._nemesis import judged, operation, run


@pytest.mark.slow
def test_a_cluster_is_measured_and_recovers_from_the_loss_of_its_leader(tmp_path: Path) -> None:
    with raft(tmp_path / "raft", 3, election_ms=500) as store:
        found = measure(store, seconds=1, clients=8, processes=2, kills=1)
    said = found.to_json()
    assert said["one"]["puts"] > 0
    assert said["one"]["errors"] == said["many"]["errors"] == 0
    assert said["many"]["puts_per_s"] > said["one"]["puts_per_s"]
    assert 0 < said["recovery_p50_ms"] == said["recovery_p99_ms"]


@pytest.mark.slow
def test_what_clients_saw_of_a_broken_cluster_is_linearizable(tmp_path: Path) -> None:
    found = run(tmp_path, size=3, seconds=10, seed=1, tell=lambda text: None)
    assert found.held, found.violation or found.unread
    assert found.operations > 0
    assert sum(found.faults.values()) > 0


def test_a_stale_read_is_a_violation_and_a_write_in_doubt_is_none() -> None:
    put = '["a", ["put", "k", "new"], 1, 2, true]'
    stale = '["b", ["get", "k"], 3, 4, null]'
    unsure = '["a", ["put", "k", "new"], 1, null, null]'
    lie = judged([operation(put), operation(stale)], 0, 1.0, (), {})
    assert not lie.held
    assert "not linearizable" in lie.violation
    assert judged([operation(unsure), operation(stale)], 0, 1.0, (), {}).held
    assert not judged([], 0, 1.0, ("k",), {}).held


def test_over_five_regions_the_second_nearest_member_decides() -> None:
    assert [quorum_ms(region) for region in "abcde"] == [120, 90, 100, 110, 150]


@pytest.mark.slow
@pytest.mark.netns
def test_a_commit_over_a_wan_costs_about_one_round_trip(tmp_path: Path) -> None:
    try:
        found = run_wan(tmp_path, seconds=3)
    except NovacronError as error:
        pytest.skip(f"no lab can be made here: {error}")
    assert found.one["errors"] == 0
    assert 1 <= found.ratio < 2


def test_a_percentile_is_the_nearest_rank() -> None:
    assert percentile([], 50) == 0
    assert percentile([1, 2, 3, 4], 50) == 3
    assert percentile(list(range(100)), 99) == 99


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    assert sync_ms(tmp_path, 3) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.netns
def test_a_commit_among_members_that_may_lie_costs_about_two_round_trips(tmp_path: Path) -> None:
    try:
        found = run_bft(tmp_path, seconds=3)
    except NovacronError as error:
        pytest.skip(f"no lab can be made here: {error}")
    assert found.one["errors"] == 0
    assert 2 <= found.ratio < 4
