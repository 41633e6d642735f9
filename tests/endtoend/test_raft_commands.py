"""`novacron cluster` against processes of `novacron node start`."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from attrs import define, field
from click.testing import CliRunner, Result
from novacron import NovacronError, ShellState
from novacron_consensus_raft._cluster import cluster
from novacron_consensus_raft._control import ControlSettings
from novacron_server import Client
from real_channels import enrol

NOVACRON = Path(sys.executable).parent / "novacron"


def free_port() -> int:
    """A port below those that the system gives to outgoing connections."""
    for port in random.Random().sample(range(20_000, 32_000), 1_000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def drain(stream: IO[str]) -> None:
    with stream:
        stream.read()


@define(eq=False)
class Nodes:
    """Node processes that trust each other."""

    folder: Path
    addresses: Mapping[str, str]
    processes: dict[str, subprocess.Popen[str]] = field(factory=dict)

    def configure(self) -> None:
        for name, address in self.addresses.items():
            others = "".join(
                f'[peers.{other}]\naddress = "{where}"\n'
                for other, where in self.addresses.items()
                if other != name
            )
            (self.folder / f"{name}.toml").write_text(
                f'[node]\nname = "{name}"\nstate_dir = "{self.folder / name}"\n'
                f'listen = "{address}"\n{others}'
                '[modes.internet]\nconsensus = "raft"\n'
                "[consensus.raft]\nheartbeat_ms = 50\nelection_ms = 500\ntimeout_s = 20\n"
                'members = ["a", "b", "c"]\n'
            )

    def start(self, name: str) -> None:
        process = subprocess.Popen(
            [str(NOVACRON), "--config", str(self.folder / f"{name}.toml"), "node", "start"],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self.processes[name] = process
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if f"node {name} listens on" in line:
                # What it says later must not fill the pipe.
                threading.Thread(target=drain, args=(process.stderr,), daemon=True).start()
                return
        raise AssertionError(f"node {name} did not start: {''.join(said)}")

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def run(self, name: str, *arguments: str) -> Result:
        """The command line in this process; starting one for each would take most of the time."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NOVACRON_CONFIG", str(self.folder / f"{name}.toml"))
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
    enrol(folder, names)
    made = Nodes(folder, {name: f"127.0.0.1:{free_port()}" for name in names})
    made.configure()
    try:
        yield made
    finally:
        for name in list(made.processes):
            made.kill(name)


@pytest.mark.slow
def test_a_cluster_is_begun_looked_at_changed_saved_and_restored(tmp_path: Path) -> None:
    with nodes(tmp_path, "a", "b", "c", "d") as made:
        refused = made.refused("a", "status")
        assert refused.exit_code == 14
        assert "node start" in refused.hint
        for name in made.addresses:
            made.start(name)
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
        made.kill("d")
        made.cluster("a", "leave", "--member", "d")
        assert [one["name"] for one in made.cluster("b", "members")] == ["a", "b", "c"]

        backup = tmp_path / "backup"
        assert made.cluster("c", "snapshot", str(backup))["path"] == str(backup)
        assert made.refused("c", "snapshot", str(backup)).exit_code == 1
        assert made.refused("c", "restore", str(backup)).exit_code == 4
        (tmp_path / "d" / "consensus-raft" / "log").rename(tmp_path / "old-log")
        made.start("d")
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
        for name in made.addresses:
            made.start(name)
        for name in made.addresses:
            made.cluster(name, "init")
        # The node that is to be lost leads, and has no part in the moves.
        made.cluster("a", "transfer", "c")
        api = {name: Client(tmp_path / name / "api.sock", timeout_s=60) for name in "ab"}

        def done(name: str, operation: Mapping[str, Any]) -> None:
            ended = api[name].wait(operation["id"])
            assert ended["state"] == "succeeded", ended["error"]

        done("a", api["a"].create("vm1", driver="wasm", memory_bytes=8 << 20))
        done("a", api["a"].migrate("vm1", "b"))
        assert api["b"].machine("vm1")["owner"] == "b"
        made.kill("c")
        done("b", api["b"].migrate("vm1", "a"))
        moved = api["a"].machine("vm1")
        assert (moved["owner"], moved["state"], moved["epoch"]) == ("a", "running", 3)
        done("a", api["a"].delete("vm1", force=True))
        for client in api.values():
            client.close()


def test_the_service_is_on_unless_it_is_switched_off() -> None:
    assert ControlSettings().enabled
