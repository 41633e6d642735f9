"""Real nodes for tests: processes of ``novacron node start`` with an authority of their own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from attrs import define, field
from novacron_security_tls import Authority
from novacron_server import Client

NOVACRON = Path(sys.executable).parent / "novacron"
CHAOS = Path(__file__).parent / "chaos"
STARTUP_S = 60


def free_port() -> int:
    """A port below those that the system gives to outgoing connections, which could take it before
    the node listens."""
    for port in random.sample(range(20_000, 32_000), 1_000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@define(eq=False)
class RealNode:
    """One node's process; it can be killed and started again.

    Args:
        prefix: What the command line begins with (``ip netns exec …``).
    """

    name: str
    folder: Path
    address: str
    prefix: Sequence[str] = ()
    environment: dict[str, str] = field(factory=dict)
    process: subprocess.Popen[str] | None = None
    log: list[str] = field(factory=list)
    _client: Client | None = None
    _serving: threading.Event = field(factory=threading.Event)

    @property
    def state_dir(self) -> Path:
        return self.folder / self.name

    @property
    def config_path(self) -> Path:
        return self.folder / f"{self.name}.toml"

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.state_dir / "api.sock", timeout_s=60)
        return self._client

    def start(self) -> None:
        """Start the process and return when it serves."""
        self.begin()
        self.wait_serving()

    def begin(self) -> None:
        """Start the process; `wait_serving` returns when it serves."""
        environment = {**os.environ, "PYTHONPATH": str(CHAOS), **self.environment}
        self.process = subprocess.Popen(
            [*self.prefix, str(NOVACRON), "--config", str(self.config_path), "node", "start"],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._serving = threading.Event()
        reader = threading.Thread(
            target=self._read, args=(self.process, self._serving), daemon=True
        )
        reader.start()

    def wait_serving(self) -> None:
        assert self.process is not None
        if not self._serving.wait(STARTUP_S) or self.process.poll() is not None:
            raise AssertionError(f"node {self.name} did not start:\n{self.story()}")

    def _read(self, process: subprocess.Popen[str], serving: threading.Event) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line)
            if f"node {self.name} listens on" in line:
                serving.set()
        process.stderr.close()
        serving.set()

    def story(self) -> str:
        return "".join(self.log[-80:])

    def kill(self) -> None:
        """As ``kill -9``: the machines go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.wait_dead()

    def wait_dead(self) -> None:
        assert self.process is not None
        self.process.wait(timeout=60)
        self.drop_client()

    def drop_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=30)
        self.drop_client()


@define(eq=False)
class Cluster:
    """Two nodes, ``a`` and ``b``, that trust each other. Use it in a ``with`` statement.

    Args:
        resume_for_s: How long a broken link may stay broken before a move is given up.
    """

    folder: Path
    settings: str = ""
    resume_for_s: float = 5.0
    addresses: Mapping[str, str] = field(factory=dict)
    prefixes: Mapping[str, Sequence[str]] = field(factory=dict)
    nodes: dict[str, RealNode] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        authority = Authority.create(self.folder / "authority")
        addresses = dict(self.addresses) or {n: f"127.0.0.1:{free_port()}" for n in "ab"}
        for name, address in addresses.items():
            node = RealNode(name, self.folder, address, self.prefixes.get(name, ()))
            authority.issue(name, node.state_dir)
            others = "".join(
                f'[peers.{other}]\naddress = "{where}"\n'
                for other, where in addresses.items()
                if other != name
            )
            node.config_path.write_text(
                f'[node]\nname = "{name}"\nstate_dir = "{node.state_dir}"\n'
                f'listen = "{address}"\nresume_for_s = {self.resume_for_s}\n{others}\n'
                f'[machine.wasm]\nruns_log = "{self.runs_log}"\n{self.settings}'
            )
            self.nodes[name] = node

    @property
    def runs_log(self) -> Path:
        """Where the WebAssembly machines of both nodes note when they execute."""
        return self.folder / "runs.log"

    @property
    def a(self) -> RealNode:
        return self.nodes["a"]

    @property
    def b(self) -> RealNode:
        return self.nodes["b"]

    def __enter__(self) -> Cluster:
        for node in self.nodes.values():
            node.begin()
        try:
            for node in self.nodes.values():
                node.wait_serving()
        except BaseException:
            for node in self.nodes.values():
                node.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for node in self.nodes.values():
            if node.process is not None and node.process.poll() is not None:
                node.environment = {}
                node.start()
        for node in self.nodes.values():
            for machine in node.client.machines():
                operation = node.client.delete(machine["name"], force=True)
                node.client.wait(operation["id"])
            node.stop()
        if error is not None:
            for node in self.nodes.values():
                sys.stderr.write(f"--- node {node.name}\n{node.story()}\n")

    def create(self, name: str, *, memory_mib: int = 8, **settings: Any) -> None:
        """A running WebAssembly machine on ``a``."""
        operation = self.a.client.create(
            name, driver="wasm", memory_bytes=memory_mib << 20, settings=settings
        )
        done(self.a, operation)

    def novacron(self, node: str, *arguments: str) -> Any:
        """Run the command line against a node and give back the JSON that it printed."""
        command = [str(NOVACRON), "--config", str(self.nodes[node].config_path), "--json"]
        ran = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=120, check=True
        )
        return json.loads(ran.stdout)


def done(node: RealNode, operation: Mapping[str, Any]) -> dict[str, Any]:
    """Wait for an operation and require that it succeeded."""
    ended: dict[str, Any] = node.client.wait(operation["id"])
    assert ended["state"] == "succeeded", f"{ended['error']}\n{node.story()}"
    return ended


def move(source: RealNode, target: RealNode, machine: str) -> dict[str, Any]:
    """Move a machine and require that it succeeded."""
    return done(source, source.client.migrate(machine, target.name))


def assert_never_two_ran(runs_log: Path) -> int:
    """Check the stretches of execution that machines noted; returns how many there were.

    A stretch that never ended was cut off with its process, or is still going on: only the last
    one may be of that kind, for no test kills a machine's process.
    """
    events = [line.split(" ", 2) for line in runs_log.read_text().splitlines()]
    ordered = sorted((int(at), what) for what, at, _ in events)
    running = 0
    for at, what in ordered:
        running += 1 if what == "begin" else -1
        assert 0 <= running <= 1, f"{running} sides ran at {at} ns: {ordered}"
    return sum(what == "begin" for _, what in ordered)
