"""`novacron cluster` against processes of `novacron node start`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cluster import NOVACRON, done, free_port, move
from cluster import Cluster as Processes
from novacron import NovacronError, ShellState
from novacron_consensus_raft._cluster import cluster
from novacron_consensus_raft._control import ControlSettings

SETTINGS = """
[modes.internet]
consensus = "raft"
[consensus.raft]
heartbeat_ms = 50
election_ms = 500
timeout_s = 20
members = ["a", "b", "c"]
"""


class Nodes(Processes):
    """Nodes that are started and killed one by one, and asked by the command line."""

    def run(self, name: str, *arguments: str) -> Result:
        """The command line in this process; starting one for each would take most of the time."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NOVACRON_CONFIG", str(self.nodes[name].config_path))
            state = ShellState(json=True)
            return CliRunner().invoke(cluster, list(arguments), obj=state)

    def cluster(self, name: str, *arguments: str) -> Any:
        ran = self.run(name, *arguments)
        assert ran.exit_code == 0, (ran.output, ran.exception)
        return json.loads(ran.stdout)

    def refused(self, name: str, *arguments: str) -> NovacronError:
        error = self.run(name, *arguments).exception
        assert isinstance(error, NovacronError), error
        return error


@contextmanager
def nodes(folder: Path, *names: str) -> Iterator[Nodes]:
    made = Nodes(folder, SETTINGS, addresses={name: f"127.0.0.1:{free_port()}" for name in names})
    try:
        yield made
    finally:
        for node in made.nodes.values():
            if node.process is not None:
                node.kill()


@pytest.mark.slow
def test_a_cluster_is_begun_looked_at_changed_saved_and_restored(tmp_path: Path) -> None:
    with nodes(tmp_path, "a", "b", "c", "d") as made:
        refused = made.refused("a", "status")
        assert refused.exit_code == 14
        assert "node start" in refused.hint
        for node in made.nodes.values():
            node.start()
        assert made.cluster("a", "status")["role"] == "none"
        for name in "abc":
            assert made.cluster(name, "init")["members"] == ["a", "b", "c"]
        again = made.refused("a", "init")
        assert again.exit_code == 4
        assert "already" in again.message

        made.cluster("d", "join", "--via", "a", "--address", made.addresses["d"])
        listed = made.cluster("d", "members")
        assert [(one["name"], one["votes"]) for one in listed] == [(n, True) for n in "abcd"]
        assert made.cluster("b", "transfer", "d") == {"leader": "d"}
        assert made.cluster("d", "status")["role"] == "leader"
        made.nodes["d"].kill()
        made.cluster("a", "leave", "--member", "d")
        assert [one["name"] for one in made.cluster("b", "members")] == ["a", "b", "c"]

        backup = tmp_path / "backup"
        assert made.cluster("c", "snapshot", str(backup))["path"] == str(backup)
        assert made.refused("c", "snapshot", str(backup)).exit_code == 1
        assert made.refused("c", "restore", str(backup)).exit_code == 4
        (tmp_path / "d" / "consensus-raft" / "log").rename(tmp_path / "old-log")
        made.nodes["d"].start()
        assert made.cluster("d", "restore", str(backup))["cluster"] == "novacron"
        assert [one["name"] for one in made.cluster("d", "members")] == ["d"]

        assert made.cluster("c", "leave")["member"] == "c"
        assert made.cluster("c", "status")["role"] == "none"
        table = subprocess.run(
            [str(NOVACRON), "--config", str(tmp_path / "a.toml"), "cluster", "members"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "leads" in table.stdout


@pytest.mark.slow
def test_machines_move_by_the_cluster_and_go_on_moving_without_its_leader(tmp_path: Path) -> None:
    with nodes(tmp_path, "a", "b", "c") as made:
        for node in made.nodes.values():
            node.start()
        for name in made.addresses:
            made.cluster(name, "init")
        # The node that is to be lost leads, and has no part in the moves.
        made.cluster("a", "transfer", "c")
        a, b = made.nodes["a"], made.nodes["b"]
        done(a, a.client.create("vm1", driver="wasm", memory_bytes=8 << 20))
        move(a, b, "vm1")
        assert b.client.machine("vm1")["owner"] == "b"
        made.nodes["c"].kill()
        move(b, a, "vm1")
        moved = a.client.machine("vm1")
        assert (moved["owner"], moved["state"], moved["epoch"]) == ("a", "running", 3)
        done(a, a.client.delete("vm1", force=True))


def test_the_service_is_on_unless_it_is_switched_off() -> None:
    assert ControlSettings().enabled
