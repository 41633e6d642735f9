"""NovaCron as a competitor: a node at each end of the link, and a move by its API."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import define, field, frozen
from novacron import (
    ConfigError,
    MachineError,
    NodeUnavailable,
    NovacronError,
)
from novacron_security_tls import Authority
from novacron_server import Client

from novacron_bench._competitor import Competitor, Contest, Moved
from novacron_bench._eta import EtaWatch
from novacron_bench._guest import Guest

PORT: Final = 7400
_MAIN: Final = "from novacron.shell import main; main()"
_START_S: Final = 60.0
_ALIVE_S: Final = 30.0
_SILENCE_S: Final = 60.0
_MACHINE: Final = "guest"
_SIBLING: Final = "sibling"


@define(eq=False)
class BenchNode:
    """A node in a process of its own, at one place of the link."""

    name: str
    contest: Contest
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    client: Client = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.client = Client(self.state_dir / "api.sock", timeout_s=_START_S)

    @property
    def state_dir(self) -> Path:
        return self.contest.folder / self.name

    @property
    def config(self) -> Path:
        return self.contest.folder / f"{self.name}.toml"

    def argv(self, *arguments: str) -> list[str]:
        """The command line of NovaCron for this node."""
        return [sys.executable, "-P", "-c", _MAIN, "--config", str(self.config), *arguments]

    def write_config(self, other: str, providers: Mapping[str, str], sections: str) -> None:
        network = self.contest.network
        use = "".join(f'{domain} = "{name}"\n' for domain, name in providers.items())
        self.config.write_text(
            f'[node]\nname = "{self.name}"\nstate_dir = "{self.state_dir}"\n'
            f'listen = "{_joined(network.address(self.name))}"\n\n'
            f'[peers.{other}]\naddress = "{_joined(network.address(other))}"\n\n'
            f"[use]\n{use}\n{sections}\n"
        )

    def start(self) -> None:
        self.process = self.contest.spawn(self.name, self.argv("node", "start"), f"{self.name}.log")

    def wait(self) -> None:
        """Return when the node serves. Raises NodeUnavailable with the end of its log."""
        deadline = time.monotonic() + _START_S
        while self.alive and time.monotonic() < deadline:
            try:
                self.client.node()
            except NodeUnavailable:
                time.sleep(0.02)  # nothing tells when a socket begins to be served
            else:
                return
        raise NodeUnavailable(f"node {self.name} did not start: {self.tail()}")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def tail(self) -> str:
        try:
            log = (self.contest.folder / f"{self.name}.log").read_text(errors="replace")
        except OSError:
            return "it has no log"
        return log[-600:].strip()

    def finish(
        self, operation: Mapping[str, Any], deadline_s: float, watch: EtaWatch | None = None
    ) -> dict[str, Any] | None:
        """The operation once it has ended; None if that has not come in time.

        Args:
            watch: Sees its events.

        Raises: MachineError unless it succeeded.
        """
        with contextlib.closing(
            self.client.events(operation["id"], silence_s=_SILENCE_S)  # type: ignore[type-var]
        ) as events:
            for event in events:
                if watch is not None:
                    watch.see(event)
                if time.monotonic() > deadline_s:
                    return None
        ended: dict[str, Any] = self.client.operation(operation["id"])
        if ended["state"] == "succeeded":
            return ended
        error = ended["error"] or {}
        said = error.get("message") or error.get("detail") or ended["state"]
        raise MachineError(f"{ended['kind']}: {said}", truth=str(error.get("truth") or ""))

    def do(self, operation: Mapping[str, Any], within_s: float = 300.0) -> dict[str, Any]:
        """The operation once it has succeeded. Raises MachineError."""
        ended = self.finish(operation, time.monotonic() + within_s)
        if ended is None:
            raise MachineError(f"{operation['kind']} did not end within {within_s:g} s")
        return ended

    def usage(self) -> dict[str, float]:
        """CPU seconds and the most resident memory of the node so far."""
        if self.process is None:
            return {}
        try:
            folder = Path(f"/proc/{self.process.pid}")
            times = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
            lines = (folder / "status").read_text().splitlines()
        except OSError:
            return {}
        peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
        return {
            "cpu_s": sum(map(int, times)) / os.sysconf("SC_CLK_TCK"),
            "peak_bytes": peak * 1024,
        }

    def clear(self) -> None:
        """End what runs there; what a dead node left running too."""
        if self.alive:
            with contextlib.suppress(NovacronError, OSError):
                for operation in self.client.operations(state="running"):
                    with contextlib.suppress(NovacronError):
                        self.client.cancel(operation["id"])
                        self.finish(operation, time.monotonic() + 20)
                for machine in self.client.machines():
                    with contextlib.suppress(NovacronError):
                        self.do(self.client.delete(machine["name"], force=True), 20)
        self.client.close()


def _joined(address: str) -> str:
    return f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"


def end_by_folder(folder: Path) -> None:
    """End every program whose command line names this folder: machines outlive their node."""
    marker = os.fsencode(folder) + b"/"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            descriptor = os.pidfd_open(int(entry.name))
        except OSError:
            continue
        try:
            if marker in (entry / "cmdline").read_bytes():
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except OSError:
            pass
        finally:
            os.close(descriptor)


@frozen(kw_only=True)
class Nova:
    """How the nodes are set up.

    Attributes:
        providers: By domain; what is left out is the standard choice.
        sections: Further TOML for both nodes.
        wishes: Of the move, as the API names them.
    """

    providers: Mapping[str, str] = field(factory=dict)
    sections: str = ""
    wishes: Mapping[str, Any] = field(factory=dict)

    def __call__(self, contest: Contest) -> Moved:
        nodes = start_nodes(contest, self.providers, self.sections)
        source, destination = nodes["a"], nodes["b"]
        first = 0
        if contest.scenario == "image":
            add_image(destination, contest.guest.disk.path)
        elif contest.scenario == "sibling":
            self._move_sibling(contest, source, destination)
            first = 2
        source.do(create(source, _MACHINE, contest.guest, contest.beats.path))
        pulse = contest.beats.pulse(first, _ALIVE_S)
        contest.settle(pulse)
        if contest.scenario == "return":
            self._go_there(contest, source, destination)
            pulse = contest.beats.pulse(first + 1, _ALIVE_S)
            until = time.monotonic() + contest.away_s
            pulse.wait(
                lambda: bool(pulse.beats) and pulse.beats[-1].at_s >= until, contest.away_s + 60
            )
            source, destination, first = destination, source, first + 1
        before = {node.name: node.usage() for node in (source, destination)}
        contest.begin_counting(source.name == "b")
        began_s = time.monotonic()
        operation = source.client.migrate(_MACHINE, destination.name, **dict(self.wishes))
        watch = EtaWatch()
        ended = source.finish(operation, began_s + contest.cutoff_s, watch)
        ended_s = time.monotonic()
        figures: dict[str, Any] = {"nodes": {}}
        for node in (source, destination):
            now, then = node.usage(), before[node.name]
            figures["nodes"][node.name] = {
                "cpu_s": round(now.get("cpu_s", 0) - then.get("cpu_s", 0), 2),
                "peak_bytes": now.get("peak_bytes", 0),
            }
        if ended is None:
            return Moved(
                outcome="cut off",
                reason=f"not done after {contest.cutoff_s:g} s",
                began_s=began_s,
                ended_s=ended_s,
                source=pulse,
                figures=figures,
            )
        figures |= ended.get("result") or {}
        figures["eta"] = watch.figures(ended_s)
        arrived = contest.beats.pulse(first + 1, _ALIVE_S)
        alive = arrived.wait(lambda: len(arrived.beats) > 5, _ALIVE_S)
        return Moved(
            outcome="moved" if alive else "failed",
            reason="" if alive else "the guest does not beat at its destination",
            began_s=began_s,
            ended_s=ended_s,
            source=pulse,
            destination=arrived,
            figures=figures,
        )

    def _go_there(self, contest: Contest, source: BenchNode, destination: BenchNode) -> None:
        operation = source.client.migrate(_MACHINE, destination.name, **dict(self.wishes))
        source.do(operation, contest.cutoff_s)

    def _move_sibling(self, contest: Contest, source: BenchNode, destination: BenchNode) -> None:
        """Move another guest of the same image; what stays of it is what the store keeps."""
        if contest.sibling is None:
            raise ConfigError("there is no sibling for this scenario")
        source.do(create(source, _SIBLING, contest.sibling, contest.beats.path))
        contest.settle(contest.beats.pulse(0, _ALIVE_S))
        source.do(source.client.migrate(_SIBLING, destination.name), contest.cutoff_s)
        contest.beats.pulse(1, _ALIVE_S)
        destination.do(destination.client.delete(_SIBLING, force=True))


def start_nodes(
    contest: Contest, providers: Mapping[str, str], sections: str
) -> dict[str, BenchNode]:
    """Two nodes that trust each other, serving. They are ended with the contest."""
    authority = Authority.create(contest.folder / "ca")
    nodes = {name: BenchNode(name, contest) for name in "ab"}
    # The last word, whatever else went wrong: nothing of this run may go on.
    contest.ending.callback(end_by_folder, contest.folder)
    for name, other in (("a", "b"), ("b", "a")):
        authority.issue(name, nodes[name].state_dir)
        nodes[name].write_config(other, providers, sections)
        nodes[name].start()
        contest.ending.callback(nodes[name].clear)
    for node in nodes.values():
        node.wait()
    return nodes


def create(node: BenchNode, name: str, guest: Guest, port: Path) -> dict[str, Any]:
    """Start a guest on a node; the operation."""
    return node.client.create(
        name,
        driver="qemu",
        memory_bytes=guest.memory_bytes,
        settings={
            "kernel": str(guest.kernel),
            "initrd": str(guest.initrd),
            "append": guest.append,
            "accel": "tcg",
            "disks": [
                {
                    "path": str(guest.disk.path),
                    "readonly": True,
                    "shared": True,
                    "cache": "writeback",
                }
            ],
            "arguments": list(guest.beating(port)),
        },
    )


def add_image(node: BenchNode, image: Path) -> None:
    """Let the node's store know an image. Raises ConfigError if it cannot."""
    ran = subprocess.run(
        node.argv("store", "add", str(image)), capture_output=True, text=True, timeout=300
    )
    if ran.returncode:
        raise ConfigError(
            f"`novacron store add` failed: {(ran.stderr or ran.stdout).strip()[-300:]}",
            hint="install novacron-compression-hde",
        )


def with_move(competitor: Competitor, **wishes: Any) -> Competitor:
    """The same competitor with wishes for the move (``max_downtime_ms=100``)."""
    assert isinstance(competitor.run, Nova)
    run = attrs.evolve(competitor.run, wishes={**competitor.run.wishes, **wishes})
    return attrs.evolve(competitor, run=run)


def nova_competitors() -> tuple[Competitor, ...]:
    """NovaCron with the providers that are worth comparing; always encrypted."""
    every = ("cold", "return", "sibling", "image")
    variants = (
        ("novacron", "AMST and HDE", {"transport": "amst", "compression": "hde"}, every),
        ("novacron-amst", "AMST and zstd", {"transport": "amst", "compression": "zstd"}, ()),
        ("novacron-hde", "one stream and HDE", {"transport": "tcp", "compression": "hde"}, every),
        ("novacron-tcp", "one stream and zstd", {"transport": "tcp", "compression": "zstd"}, ()),
    )
    return tuple(
        Competitor(
            name=name,
            title=f"NovaCron: {title}",
            run=Nova(providers={**providers, "security": "tls"}),
            encrypted=True,
            scenarios=scenarios or ("cold", "return"),
        )
        for name, title, providers, scenarios in variants
    )
