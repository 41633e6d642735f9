"""Shared state on real nodes: processes that are killed, stopped, damaged, and come back."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, RealNode, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SETTINGS = """
[service.state]
enabled = true
members = { a = "eu", b = "us", c = "ap" }
log = "raft"
round_trip_ms = 20
probe_ms = 100
"""


def ask(node: RealNode, timeout_s: float = 40, **request: Any) -> dict[str, Any]:
    """What the node's socket for state answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(str(node.state_dir / "service-state" / "state.sock"))
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile("rb") as lines:
            answer: dict[str, Any] = json.loads(lines.readline())
            return answer


def write(node: RealNode, key: str, value: Any, level: str = "eventual", **more: Any) -> Any:
    change = {"name": key, "kind": "lww", "operation": "set", "values": [value]}
    return ask(node, do="write", level=level, timeout_s=30, **change, **more)


def read(node: RealNode, key: str, level: str = "eventual", **more: Any) -> Any:
    answer = ask(node, do="read", name=key, kind="lww", level=level, timeout_s=30, **more)
    return answer["kinds"]["lww"]["value"] if "kinds" in answer else answer


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[str, RealNode]]:
    addresses = {name: f"127.0.0.1:{free_port()}" for name in "abc"}
    with Cluster(tmp_path, settings=SETTINGS, addresses=addresses) as cluster:
        yield cluster.nodes


def test_no_acknowledged_write_is_lost_when_nodes_are_killed_and_stopped(
    nodes: dict[str, RealNode],
) -> None:
    a, b, c = nodes.values()
    for level in ("eventual", "quorum", "strong"):
        assert "error" not in write(a, f"key-{level}", 1, level), level
    assert read(b, "key-quorum", "quorum") == 1
    assert read(c, "key-strong", "strong") == 1
    # Killed in the midst of writes: what was acknowledged is there when it is back.
    done = 0
    for n in range(200):
        if n == 150:
            a.kill()
            break
        if "error" not in write(a, "counted", n):
            done = n
    assert write(b, "other", 7, "quorum").get("level") == "quorum"
    a.start()
    assert read(a, "counted") == done
    token = write(b, "mine", 8, "local")["token"]
    assert read(a, "mine", "local", token=token) == 8
    # One that stands still holds nobody up, and finds everything when it goes on.
    assert c.process is not None
    os.kill(c.process.pid, signal.SIGSTOP)
    try:
        assert write(a, "while", 9, "strong").get("level") == "strong"
        refused = read(a, "while", max_staleness_s=0.01)
        assert refused["error"]["facts"]["reason"] == "stale"
    finally:
        os.kill(c.process.pid, signal.SIGCONT)
    assert read(c, "while", "strong") == 9


def test_a_damaged_journal_is_refused_and_moved_aside_it_comes_back_from_the_others(
    nodes: dict[str, RealNode],
) -> None:
    a, b, _ = nodes.values()
    for n in range(20):
        write(a, f"k{n}", n, "quorum")
    a.kill()
    journal = a.state_dir / "service-state" / "journal"
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    a.begin()
    assert a.process is not None
    assert a.process.wait(60) != 0
    a._serving.wait(60)  # everything that it said has been read
    assert "damaged, and it was safe" in " ".join(a.story().split())
    journal.rename(journal.with_name("damaged"))
    a.start()
    token = write(b, "after", 1, "local")["token"]
    assert base64.b64decode(token)
    assert read(a, "after", "local", token=token) == 1
    assert [read(a, f"k{n}") for n in range(20)] == list(range(20))
