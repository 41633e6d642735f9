"""A fleet is upgraded node by node: releases with different versions of the protocol get along."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster, assert_never_two_ran, done, move
from novacron_dwcp.link import OLDEST, VERSION


def held_at(cluster: Cluster, name: str, version: int) -> None:
    """Have a node speak no newer version; it takes effect with its next start.

    A node that is held at version 2 refuses others as the release did that had no newer one.
    """
    path = cluster.nodes[name].config_path
    lines = [line for line in path.read_text().splitlines() if not line.startswith("protocol =")]
    lines.insert(lines.index("[node]") + 1, f"protocol = {version}")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_a_machine_moves_at_every_step_of_a_rolling_upgrade(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for name in "ab":
        held_at(cluster, name, OLDEST)
    with cluster:
        cluster.create("vm", guest="kv")
        assert spoken(move(cluster.a, cluster.b, "vm")) == OLDEST
        for name in "ba":
            node = cluster.nodes[name]
            node.stop()
            held_at(cluster, name, VERSION)
            node.start()
            newest = VERSION if name == "a" else OLDEST
            assert spoken(move(cluster.b, cluster.a, "vm")) == newest
            assert spoken(move(cluster.a, cluster.b, "vm")) == newest
        plan = cluster.b.client.plan("vm", "a")
        assert plan["providers"]["protocol"] == str(VERSION)
        assert plan["obstacles"] == []
        assert_never_two_ran(cluster.runs_log)


@pytest.mark.slow
def test_a_peer_of_the_older_version_is_told_apart_in_the_plan(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    held_at(cluster, "b", OLDEST)
    with cluster:
        cluster.create("vm", guest="kv")
        (found,) = cluster.a.client.plan("vm", "b")["obstacles"]
        assert (found["code"], found["blocks"]) == ("protocol.too-old", False)
        (found,) = cluster.a.client.plan("vm", "b", storage="copy")["obstacles"]
        assert (found["code"], found["blocks"]) == ("protocol.too-old", True)
        done(cluster.a, cluster.a.client.migrate("vm", "b"))


def spoken(moved: dict[str, object]) -> int:
    result = moved["result"]
    assert isinstance(result, dict)
    return int(result["providers"]["protocol"])
