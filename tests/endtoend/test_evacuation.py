"""A node is evacuated: by a plan, through failures, and each machine ends in exactly one place."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cluster import NOVACRON, Cluster, RealNode, assert_never_two_ran, free_port
from waiting import until

pytestmark = pytest.mark.xdist_group("host")
SETTINGS = """
[operation.evacuate]
sites = { east = ["a", "b"] }
reserve_bytes = 0
prepare_s = 0.5
finish_s = 0.2
replan_s = 1.0
target_patience_s = 1.5
"""
NAMES = ("vm1", "vm2", "vm3")


def three_nodes(folder: Path) -> Cluster:
    """``a``, ``b`` and ``c``; ``a`` and ``b`` are the site ``east``."""
    addresses = {name: f"127.0.0.1:{free_port()}" for name in "abc"}
    return Cluster(folder, settings=SETTINGS, addresses=addresses, resume_for_s=2.0)


def killed_at(node: RealNode, place: str) -> None:
    """Have a node kill itself, once, when one of its sessions enters a phase."""
    done = node.folder / f"{node.name}.struck"
    node.environment = {"NOVACRON_CHAOS": place, "NOVACRON_CHAOS_DONE": str(done)}


def homes(cluster: Cluster) -> dict[str, list[tuple[str, str]]]:
    """Where each machine is, and in which state, on all nodes that answer."""
    found: dict[str, list[tuple[str, str]]] = {}
    for node in cluster.nodes.values():
        for machine in node.client.machines():
            found.setdefault(machine["name"], []).append((node.name, machine["state"]))
    return found


def begin(node: RealNode, **wish: Any) -> dict[str, Any]:
    return node.client.begin("evacuate", node.name, wish)


def evacuate(node: RealNode, *arguments: str) -> Any:
    """Run the command; the JSON that it printed."""
    command = [str(NOVACRON), "--config", str(node.config_path), "evacuate", "--json"]
    ran = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_a_node_is_planned_asked_by_another_one_and_emptied_as_the_plan_has_said(
    tmp_path: Path,
) -> None:
    cluster = three_nodes(tmp_path)
    cluster.a.environment = {"NOVACRON_OPERATION__EVACUATE__MOVES_MAX": "1"}
    with cluster:
        for name in NAMES:
            cluster.create(name, fill_bytes=1 << 20)
        plan = evacuate(cluster.b, "a", "--plan")["plan"]
        assert {move["machine"] for move in plan["moves"]} == set(NAMES)
        assert {move["target"] for move in plan["moves"]} <= {"b", "c"}
        assert 0 < plan["bound_s"] <= plan["makespan_s"]
        assert homes(cluster) == {name: [("a", "running")] for name in NAMES}
        # c is of another site and was not allowed.
        refused = cluster.nodes["c"].client.wait(begin(cluster.nodes["c"], place="a")["id"])
        assert refused["state"] == "failed"
        assert "c may not ask a to evacuate itself" in refused["error"]["message"]
        late = cluster.a.client.wait(begin(cluster.a, deadline_s=0.1)["id"])
        assert "it cannot be done in 0 s" in late["error"]["message"]
        # A wish to cancel reaches the node that was asked: what is under way ends, no more begins.
        cancelled = cancelled_while_moving(cluster.b, begin(cluster.b, place="a", to=["c"]))
        assert cancelled["state"] == "cancelled", cancelled
        gone = set(cancelled["error"]["facts"]["moved"])
        assert set(cancelled["error"]["facts"]["stayed"]) == set(NAMES) - gone != set()
        assert homes(cluster) == {
            name: [("c" if name in gone else "a", "running")] for name in NAMES
        }
        moved = evacuate(cluster.b, "east")["moved"]
        assert moved == dict.fromkeys(set(NAMES) - gone, "c")
        assert homes(cluster) == {name: [("c", "running")] for name in NAMES}
        assert_never_two_ran_at_once(cluster)


@pytest.mark.slow
def test_a_target_dies_and_the_node_itself_is_restarted_and_all_machines_run_in_one_place(
    tmp_path: Path,
) -> None:
    cluster = three_nodes(tmp_path)
    killed_at(cluster.b, "destination:verify")
    killed_at(cluster.a, "source:run")
    with cluster:
        for name in NAMES:
            cluster.create(name, fill_bytes=1 << 20)
        operation = begin(cluster.a)
        cluster.a.wait_dead()
        cluster.a.environment = {}
        cluster.a.start()
        ended = cluster.a.client.wait(operation["id"])
        assert ended["state"] == "succeeded", f"{ended['error']}\n{cluster.a.story()}"
        assert (tmp_path / "b.struck").exists()
        cluster.b.wait_dead()
        cluster.b.environment = {}
        cluster.b.start()
        placed = until(lambda: settled(cluster), 60, lambda: homes(cluster))
        assert placed is not None
        assert {name: where for name, (where, _) in placed.items()} == ended["result"]["moved"]
        assert {state for _, state in placed.values()} == {"running"}
        assert_never_two_ran_at_once(cluster)


def cancelled_while_moving(node: RealNode, operation: dict[str, Any]) -> dict[str, Any]:
    """Cancel an evacuation of ``a`` once one of its machines moves; how it ended."""
    asked = False
    for event in node.client.events(operation["id"]):
        nodes = event.data.get("nodes") or {}
        if not asked and nodes.get("a", {}).get("moving"):
            asked = True
            node.client.cancel(operation["id"])
    ended: dict[str, Any] = node.client.operation(operation["id"])
    return ended


def settled(cluster: Cluster) -> dict[str, tuple[str, str]] | None:
    """The one place of each machine, once no node has a session or a leftover of another."""
    if any(node.client.node()["sessions"] for node in cluster.nodes.values()):
        return None
    found = homes(cluster)
    if any(len(places) != 1 for places in found.values()) or set(found) != set(NAMES):
        return None
    return {name: places[0] for name, places in found.items()}


def assert_never_two_ran_at_once(cluster: Cluster) -> None:
    """For each machine by itself."""
    lines = cluster.runs_log.read_text().splitlines(keepends=True)
    for name in NAMES:
        own = cluster.folder / f"{name}.log"
        own.write_text("".join(line for line in lines if line.split()[2] == name))
        assert_never_two_ran(own)
