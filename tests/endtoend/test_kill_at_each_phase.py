"""`kill -9` of either node at each phase: one side at most runs the machine, then exactly one, and
the move that was asked for is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster, RealNode, assert_never_two_ran, move
from novacron_dwcp.handover import DESTINATION_MOVES, SOURCE_MOVES, Phase
from waiting import until

BEGUN = frozenset({Phase.KEPT, Phase.FENCED, Phase.ROLLBACK})
PLACES = [
    f"{role}:{phase.value}"
    for role, moves in (("source", SOURCE_MOVES), ("destination", DESTINATION_MOVES))
    for phase in sorted({phase for after in moves.values() for phase in after} - BEGUN)
]


def running_nodes(cluster: Cluster, machine: str) -> list[str]:
    return [
        node.name
        for node in cluster.nodes.values()
        for found in node.client.machines()
        if found["name"] == machine and found["state"] == "running"
    ]


def until_exactly_one_has_it(cluster: Cluster, machine: str) -> RealNode:
    """Wait until one node runs the machine, owns it, and neither has a session or leftovers."""

    def seen() -> list[tuple[RealNode, str, bool, str]]:
        return [
            (node, found["state"], found["owner"] == node.name, found["note"])
            for node in cluster.nodes.values()
            for found in node.client.machines()
            if found["name"] == machine
        ]

    def settled() -> RealNode | None:
        if any(node.client.node()["sessions"] for node in cluster.nodes.values()):
            return None
        has_it = seen()
        if len(has_it) == 1 and has_it[0][1:] == ("running", True, ""):
            return has_it[0][0]
        return None

    holder = until(settled, 60, seen)
    assert holder is not None
    return holder


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_after_kill_9_exactly_one_side_runs_and_the_move_goes_on_to_its_end(
    tmp_path: Path, place: str
) -> None:
    role = place.split(":")[0]
    cluster = Cluster(tmp_path, resume_for_s=30.0)
    victim = cluster.a if role == "source" else cluster.b
    victim.environment = {
        "NOVACRON_CHAOS": place,
        "NOVACRON_CHAOS_DONE": str(tmp_path / "struck"),
    }
    with cluster:
        cluster.create("vm", guest="counter", tick_ms=10)
        operation = cluster.a.client.migrate("vm", "b")
        victim.wait_dead()
        assert (tmp_path / "struck").exists()
        victim.start()
        ended = cluster.a.client.wait(operation["id"])
        assert ended["state"] == "succeeded", ended
        assert until_exactly_one_has_it(cluster, "vm") is cluster.b
        assert running_nodes(cluster, "vm") == ["b"]
        move(cluster.b, cluster.a, "vm")
        until_exactly_one_has_it(cluster, "vm")
        assert_never_two_ran(cluster.runs_log)
