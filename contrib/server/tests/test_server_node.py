"""The real node in a process of its own, with a real machine, used as an operator would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from novacron import Conflict, NodeUnavailable, NotFound
from novacron_server import Client
from novacron_server import _models as models
from novacron_server._console import open_console

for needed in (
    "novacron_machine_wasm",
    "novacron_security_tls",
    "novacron_consensus_sqlite",
    "novacron_compliance_local",
    "novacron_transport_tcp",
):
    pytest.importorskip(needed)

NOVACRON = (sys.executable, "-c", "from novacron.shell import main; main()")
DEADLINE_S = 60


class Site:
    """A node's configuration, and the commands of somebody who uses it."""

    def __init__(self, folder: Path) -> None:
        self.state_dir = folder / "state"
        self.config = folder / "novacron.toml"
        self.config.write_text(
            f'[node]\nname = "alpha"\nstate_dir = "{self.state_dir}"\nlisten = "127.0.0.1:0"\n'
        )
        authority = str(folder / "authority")
        self.type("trust", "init", "--dir", authority)
        self.type("trust", "issue", "alpha", "--dir", authority, "--state", str(self.state_dir))
        self.process: subprocess.Popen[str] | None = None

    def type(self, *words: str) -> str:
        done = subprocess.run(
            [*NOVACRON, "--config", str(self.config), *words],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        self.process = subprocess.Popen(
            [*NOVACRON, "--config", str(self.config), "node", "start"],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if " listens on " in line:
                return
        raise AssertionError("".join(lines))

    def client(self) -> Client:
        return Client(self.state_dir / "api.sock", timeout_s=DEADLINE_S)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.start()
    yield site
    with site.client() as client:
        try:
            for machine in client.machines():
                client.wait(client.delete(machine["name"], force=True)["id"])
            client.stop_node()
        except NodeUnavailable:
            pass
    assert site.process is not None
    assert site.process.stderr is not None
    site.process.wait(DEADLINE_S)
    site.process.stderr.close()


@pytest.mark.slow
def test_a_real_machine_is_made_used_and_found_again_by_the_next_node(site: Site) -> None:
    with site.client() as client:
        made = client.wait(client.create("vm", driver="wasm", memory_bytes=4 << 20)["id"])
        assert made["state"] == "succeeded"
        # What the node tells is what the API promises: nothing is lost on the way.
        described = client.machine("vm")
        assert set(described) == {field.name for field in msgspec.structs.fields(models.Machine)}
        assert (described["state"], described["owner"], described["epoch"]) == (
            "running",
            "alpha",
            1,
        )
        status = client.node()
        assert set(status) == {field.name for field in msgspec.structs.fields(models.NodeStatus)}
        assert (status["node"], status["machines"]) == ("alpha", 1)
        assert "server" in status["plugins"]
        with pytest.raises(Conflict):
            client.create("vm", driver="wasm", memory_bytes=1 << 20)
        with pytest.raises(NotFound):
            client.plan("vm", "beta")
        paused = client.wait(client.pause("vm")["id"])
        assert paused["state"] == "succeeded"
        failed = client.wait(client.pause("vm")["id"])
        assert failed["error"]["code"] == "conflict"

        client.wait(client.resume("vm")["id"])
        with open_console(client, "vm") as link:
            printed = link.recv(timeout=DEADLINE_S)
        assert isinstance(printed, bytes)
        assert b"tick" in printed
        assert b"tick" in client.console_log("vm")

    # The node ends and its machine does not; the next node finds it, and what was done.
    assert json.loads(site.type("node", "stop", "--json"))["stopped"] is True
    assert site.process is not None
    assert site.process.wait(DEADLINE_S) == 0
    assert site.process.stderr is not None
    site.process.stderr.close()
    assert not (site.state_dir / "api.sock").exists()
    site.start()
    with site.client() as client:
        assert client.machine("vm")["state"] == "running"
        kinds = [operation["kind"] for operation in client.operations(state="succeeded")]
        assert kinds == ["create", "pause", "resume"]
        subjects = {operation["subject"] for operation in client.operations()}
        assert len(subjects) == 1
        assert subjects.pop().startswith("local:")
    assert (site.state_dir / "api.sock").stat().st_uid == os.getuid()
