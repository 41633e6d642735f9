"""A broken link is a pause: cut at any moment, a move goes on; cut for good, the source runs on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, assert_never_two_ran, free_port, move
from novacron_demo.wan import Wan, WanLink

FILL_MIB = 24
WAN = Wan.parse("40mbit,20ms")


@pytest.fixture
def link() -> Iterator[WanLink]:
    """The way from ``a`` to ``b``, to be cut."""
    with WanLink(WAN, ("127.0.0.1", free_port())) as made:
        yield made


def cluster_over(folder: Path, link: WanLink) -> Cluster:
    """``b`` listens behind the link, where ``a`` reaches it."""
    host, port = link.target
    cluster = Cluster(folder, addresses={"a": f"127.0.0.1:{free_port()}", "b": f"{host}:{port}"})
    text = cluster.a.config_path.read_text()
    through = f"{link.address[0]}:{link.address[1]}"
    cluster.a.config_path.write_text(text.replace(f'"{host}:{port}"', f'"{through}"'))
    return cluster


@pytest.mark.slow
def test_a_link_that_is_cut_again_and_again_only_delays_the_move(
    tmp_path: Path, link: WanLink
) -> None:
    with cluster_over(tmp_path, link) as cluster:
        cluster.create("vm", memory_mib=64, guest="kv", fill_bytes=FILL_MIB << 20)
        operation = cluster.a.client.migrate("vm", "b")
        over = threading.Event()

        def cut_repeatedly() -> None:
            while not over.wait(0.4):
                link.cut()

        cutter = threading.Thread(target=cut_repeatedly)
        cutter.start()
        try:
            ended = cluster.a.client.wait(operation["id"])
        finally:
            over.set()
            cutter.join()
        assert ended["state"] == "succeeded", f"{ended['error']}\n{cluster.a.story()}"
        assert [m["state"] for m in cluster.b.client.machines()] == ["running"]
        assert cluster.a.client.machines() == []
        assert_never_two_ran(cluster.runs_log)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["copy", "pause", "verify", "commit", "run"])
def test_a_link_cut_at_a_phase_is_mended_and_the_move_goes_on(
    tmp_path: Path, link: WanLink, phase: str
) -> None:
    with cluster_over(tmp_path, link) as cluster:
        cluster.create("vm", guest="counter", tick_ms=10)
        operation = cluster.a.client.migrate("vm", "b")
        entered = [phase_of(event) for event in cut_at(cluster, link, operation["id"], phase)]
        ended = cluster.a.client.wait(operation["id"])
        assert phase in entered
        assert ended["state"] == "succeeded", f"{ended['error']}\n{cluster.a.story()}"
        assert_never_two_ran(cluster.runs_log)


def phase_of(event: object) -> str:
    return str(getattr(event, "data", {}).get("phase", ""))


def cut_at(cluster: Cluster, link: WanLink, operation: str, phase: str) -> Iterator[object]:
    for event in cluster.a.client.events(operation):
        if phase_of(event) == phase:
            link.cut()
        yield event


@pytest.mark.slow
def test_a_link_that_stays_broken_leaves_the_machine_running_at_the_source_and_a_retry_works(
    tmp_path: Path, link: WanLink
) -> None:
    with cluster_over(tmp_path, link) as cluster:
        cluster.create("vm", memory_mib=64, guest="kv", fill_bytes=FILL_MIB << 20)
        operation = cluster.a.client.migrate("vm", "b")
        for event in cluster.a.client.events(operation["id"]):
            if phase_of(event) == "copy":
                link.down()
        ended = cluster.a.client.operation(operation["id"])
        assert ended["state"] == "failed"
        assert "was resumed there" in ended["error"]["truth"]
        assert [m["state"] for m in cluster.a.client.machines()] == ["running"]
        link.up()
        move(cluster.a, cluster.b, "vm")
        assert_never_two_ran(cluster.runs_log)
