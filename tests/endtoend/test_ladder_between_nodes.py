"""The codec ``hde`` between real nodes: what one machine brought, the next one need not bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, move

LADDER = '[modes.internet]\ncompression = "hde"\n'
FILL_BYTES = 4 << 20


def pages(moved: dict[str, Any], rung: str) -> int:
    """How many pages took a rung, as the operation shows it."""
    rows = moved["progress"]["rungs"]["hde"]
    return int(rows[rung]["pages"]) if rung in rows else 0


@pytest.mark.slow
def test_a_machine_whose_sibling_is_there_is_referred_to(tmp_path: Path) -> None:
    with Cluster(tmp_path, LADDER) as cluster:
        for name in ("web-1", "web-2"):
            cluster.create(name, memory_mib=32, guest="kv", fill_bytes=FILL_BYTES)
        first = move(cluster.a, cluster.b, "web-1")
        assert pages(first, "literal") > 1000
        second = move(cluster.a, cluster.b, "web-2")
        assert pages(second, "reference") > 300
        for node in "ab":
            kept = cluster.novacron(node, "store", "list")
            assert {entry["kind"] for entry in kept} == {"checkpoint"}
            assert {entry["machine"] for entry in kept} == {"web-1", "web-2"}


@pytest.mark.slow
def test_a_node_that_was_killed_while_it_received_holds_what_had_come(tmp_path: Path) -> None:
    with Cluster(tmp_path, LADDER, resume_for_s=1.0) as cluster:
        cluster.create("web", memory_mib=32, guest="kv", fill_bytes=FILL_BYTES)
        operation = cluster.a.client.migrate("web", "b", rate_bytes_per_s=1 << 20)
        # What has come is on the disk before the source shows that it was sent.
        for event in cluster.a.client.events(operation["id"]):
            if event.kind == "progress" and event.data.get("raw_bytes", 0) > 2 << 20:
                break
        cluster.b.kill()
        cluster.a.client.cancel(operation["id"])
        cluster.a.client.wait(operation["id"])
        cluster.b.start()
        (left,) = cluster.novacron("b", "store", "list")
        assert left["kind"] == "partial"
        again = move(cluster.a, cluster.b, "web")
        assert pages(again, "reference") > 100
        (kept,) = cluster.novacron("b", "store", "list")
        assert kept["kind"] == "checkpoint"
