"""What the demo starts and ends: an authority, two nodes on this host, and the link between."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from attrs import define, field
from novacron import (
    ConfigError,
    Conflict,
    MachineError,
    NodeUnavailable,
    NotFound,
    NovacronError,
    OperationEvent,
)
from novacron_security_tls import Authority
from novacron_server import Client

from novacron_demo.wan import Wan, WanProcess

MACHINE: Final = "shop"
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
# A node says nothing for longer than this only if it hangs.
SILENCE_S: Final = 60.0
LOG_TAIL_LINES: Final = 8
# A few frames: less would have the sender wait for each.
WINDOW_BYTES_MIN: Final = 1 << 20
_MAIN: Final = "from novacron.shell import main; main()"


def _free_ports(count: int) -> list[int]:
    """Ports below those that the system gives to outgoing connections, which could take them
    between this look and the node's listening."""
    free: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1_000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            break
    return free


def _environment() -> dict[str, str]:
    """This process's own, without settings that are meant for another node."""
    return {key: value for key, value in os.environ.items() if not key.startswith("NOVACRON_")}


@define(eq=False)
class DemoNode:
    """A node in a process of its own."""

    name: str
    folder: Path
    port: int
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    client: Client = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.client = Client(self.state_dir / "api.sock")

    @property
    def state_dir(self) -> Path:
        return self.folder / self.name

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def config(self) -> Path:
        return self.folder / f"{self.name}.toml"

    def home(self, machine: str) -> Path:
        """The folder of a machine that is there."""
        return self.state_dir / "machines" / machine / "home"

    def write_config(self, other: str, link: WanProcess, runs_log: Path) -> None:
        address = link.address
        window = max(WINDOW_BYTES_MIN, 2 * link.wan.product_bytes)
        self.config.write_text(
            f'[node]\nname = "{self.name}"\nprofile = "standard"\n'
            f'state_dir = "{self.state_dir}"\nlisten = "127.0.0.1:{self.port}"\n'
            f"# Twice what the link holds; more would only wait, and lengthen the pause.\n"
            f"window_bytes = {window}\n\n"
            f"# Through the shaped link.\n"
            f'[peers.{other}]\naddress = "{address[0]}:{address[1]}"\n\n'
            f'[machine.wasm]\nruns_log = "{runs_log}"\n'
        )

    def start(self) -> None:
        """Start the process; `wait` until it serves."""
        # A group of its own: Ctrl-C is for the demo, which then ends the nodes in their order.
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, "--config", str(self.config), "node", "start"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                cwd=self.folder,
                process_group=0,
            )

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> None:
        """Return when the node serves. Raises NodeUnavailable with the end of its log."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.alive and time.monotonic() < deadline:
            try:
                self.client.node()
            except NodeUnavailable:
                # Nothing tells when a socket begins to be served, so this looks again.
                time.sleep(0.02)
            else:
                return
        how = "did not answer in time" if self.alive else "ended when it should have started"
        raise NodeUnavailable(f"node {self.name} {how}; its log ends with\n{self.tail()}")

    def tail(self) -> str:
        """The last lines of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return "\n".join(f"  {line[:200]}" for line in lines[-LOG_TAIL_LINES:])

    def events(self, operation: dict[str, Any]) -> Generator[OperationEvent, None, None]:
        """What an operation does, until it has ended."""
        yield from self.client.events(operation["id"], silence_s=SILENCE_S, reconnects=1)

    def finish(self, operation: dict[str, Any]) -> dict[str, Any]:
        """Wait for an operation. Raises MachineError unless it succeeded."""
        with contextlib.closing(self.events(operation)) as events:
            for _ in events:
                pass
        return self.result(operation)

    def result(self, operation: dict[str, Any]) -> dict[str, Any]:
        """An operation that has ended. Raises MachineError unless it succeeded."""
        ended = self.client.operation(operation["id"])
        if ended["state"] == "succeeded":
            return ended
        # The API tells an operation's failure as a problem document.
        error = ended["error"] or {}
        message = error.get("message") or error.get("detail") or ended["state"]
        raise MachineError(
            f"node {self.name}: {ended['kind']} {ended['machine']}: {message}",
            hint=str(error.get("hint") or ""),
            truth=str(error.get("truth") or ""),
        )

    def clear(self) -> None:
        """End what runs on the node, the machine too."""
        spec = self.state_dir / "machines" / MACHINE / "machine.json"
        if self._process is not None and not self.alive and spec.exists():
            # Its machine goes on without it; only a node knows how to end it.
            self.start()
            self.wait()
        if not self.alive:
            return
        for operation in self.client.operations(state="running"):
            # What can no longer be cancelled ends soon by itself.
            with contextlib.suppress(NovacronError):
                self.client.cancel(operation["id"])
            with contextlib.suppress(MachineError):
                self.finish(operation)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while machines := self.client.machines():
            try:
                for machine in machines:
                    self.finish(self.client.delete(machine["name"], force=True))
            except (Conflict, NotFound):
                # A move that was given up ends in its own time on the other node.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        self.client.close()
        if self._process is None:
            return
        if self.alive:
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Site:
    """Two nodes, ``a`` and ``b``, that trust each other and meet through a shaped link only.

    Use it in a ``with`` statement: at its end, nothing that was started runs any more, and the
    folder is gone unless it was to be kept.

    Args:
        keep: A folder to work in and to leave; else one is made and removed.
    """

    def __init__(self, wan: Wan, keep: Path | None = None) -> None:
        self.folder = _own_folder(keep)
        self._kept = keep is not None
        self._links: list[WanProcess] = []
        ports = _free_ports(2)
        self.a, self.b = (DemoNode(n, self.folder, p) for n, p in zip("ab", ports, strict=True))
        self.nodes = (self.a, self.b)
        self._wan = wan
        # What could not be ended, in words.
        self.leftovers: list[str] = []

    @property
    def runs_log(self) -> Path:
        """Where the machine's processes on both nodes note when they execute."""
        return self.folder / "runs.log"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException as error:
            self._end(error)
            raise
        return self

    def _start(self) -> None:
        authority = Authority.create(self.folder / "ca")
        for node, other in ((self.a, self.b), (self.b, self.a)):
            authority.issue(node.name, node.state_dir)
            # The side that a machine leaves calls, so each way of moving has a link of its own.
            link = WanProcess(self._wan, ("127.0.0.1", other.port))
            self._links.append(link)
            node.write_config(other.name, link, self.runs_log)
            node.start()
        for node in self.nodes:
            node.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        for node in self.nodes:
            try:
                node.clear()
            except NovacronError as failure:
                self.leftovers.append(f"node {node.name} could not end its machine: {failure}")
        for node in self.nodes:
            node.stop()
        for link in self._links:
            link.close()
        if isinstance(error, NovacronError):
            logs = ", ".join(str(node.log) for node in self.nodes)
            error.facts["logs"] = logs if self._kept else self._save_logs()
        if not self._kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _save_logs(self) -> str:
        """What the nodes said, where it outlives the folder; its path."""
        handle, path = tempfile.mkstemp(prefix="novacron-demo-", suffix=".log")
        with os.fdopen(handle, "wb") as saved:
            for node in self.nodes:
                saved.write(f"--- node {node.name}\n".encode())
                with contextlib.suppress(OSError):
                    saved.write(node.log.read_bytes())
        return path


def _own_folder(keep: Path | None) -> Path:
    if keep is None:
        # Sockets lie in it, and their paths must be short.
        root = tempfile.gettempdir()
        short = len(root) <= 40 or not os.access("/tmp", os.W_OK)
        return Path(tempfile.mkdtemp(prefix="nova-", dir=root if short else "/tmp"))
    keep = keep.absolute()
    if '"' in str(keep) or "\\" in str(keep):
        raise ConfigError(f"--keep {keep}: no quotes or backslashes", hint="choose another folder")
    try:
        keep.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise ConfigError(f"--keep {keep}: it is not empty", hint="choose another folder")
    except OSError as error:
        raise ConfigError(
            f"--keep {keep}: {error.strerror}", hint="choose another folder"
        ) from error
    return keep
