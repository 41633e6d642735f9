"""What was asked of a move is kept, or the move is given up early and the machine runs on."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster, assert_never_two_ran, done
from waiting import until

FILL_MIB = 16
SLOW = 200_000


def copying(cluster: Cluster, operation: str) -> bool:
    return cluster.a.client.operation(operation)["phase"] == "copy"


def runs_on_at_the_source(cluster: Cluster) -> bool:
    return [m["state"] for m in cluster.a.client.machines()] == [
        "running"
    ] and cluster.b.client.machines() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"max_bytes": 400_000}, "400000 may be"),
        ({"max_time_s": 1.5}, "may take 1.5"),
    ],
    ids=["bytes", "time"],
)
def test_a_move_that_costs_more_than_it_may_is_given_up_and_the_machine_runs_on(
    tmp_path: Path, wish: dict[str, float], why: str
) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.create("vm", memory_mib=32, guest="kv", fill_bytes=FILL_MIB << 20)
        move = cluster.a.client.migrate("vm", "b", rate_bytes_per_s=SLOW, **wish)
        ended = cluster.a.client.wait(move["id"])
        assert ended["state"] == "failed"
        assert why in ended["error"]["message"]
        assert "MiB are left" in ended["error"]["message"]
        assert "--max-" in ended["error"]["hint"]
        until(lambda: runs_on_at_the_source(cluster), 30)
        assert_never_two_ran(cluster.runs_log)


@pytest.mark.slow
def test_a_limit_that_is_lifted_on_the_way_lets_the_move_end(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.create("vm", memory_mib=32, guest="kv", fill_bytes=FILL_MIB << 20)
        move = cluster.a.client.migrate("vm", "b", rate_bytes_per_s=SLOW // 10)
        until(lambda: copying(cluster, move["id"]), 30)
        shown = cluster.novacron("a", "operation", "adjust", move["id"], "--rate", "none")
        assert shown["progress"]["limit_bytes_per_s"] == 0
        # At 20 kB/s it would have taken minutes.
        assert done(cluster.a, move)["result"]["node"] == "b"
        assert_never_two_ran(cluster.runs_log)
