"""The evacuation of a real node: three nodes in namespaces, two links of unequal rate."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen
from novacron import MachineError, NodeUnavailable, NovacronError
from novacron_security_tls import Authority
from novacron_server import Client

from novacron_bench._network import LinkFigures

PORT: Final = 7400
START_S: Final = 90.0
_MAIN: Final = "from novacron.shell import main; main()"
SIDES: Final = ("a", "b", "c")
Json = dict[str, Any]


@frozen(kw_only=True)
class RealSetup:
    """What is evacuated, and over what.

    Attributes:
        links: From ``a`` to ``b`` and to ``c``, as `LinkFigures.parse` reads them.
        machines: WebAssembly machines on ``a``.
        fill_mib: Of each one's memory that is filled; five eighths of it are words.
    """

    links: tuple[str, str]
    machines: int = 6
    fill_mib: int = 24

    def names(self, way: str) -> list[str]:
        """Of the machines; each way has its own, as a machine that moved stays its new owner's."""
        return [f"{way.split()[0]}-{number}" for number in range(1, self.machines + 1)]

    def fill_bytes(self, number: int) -> int:
        """Machines are not alike: from half to one and a half of what was asked."""
        part = 0.5 + number / max(self.machines - 1, 1)
        return int(self.fill_mib * part) << 20


@define(eq=False)
class _Node:
    name: str
    folder: Path
    prefix: Sequence[str]
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    client: Client = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.client = Client(self.state_dir / "api.sock", timeout_s=60)

    @property
    def state_dir(self) -> Path:
        return self.folder / self.name

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("NOVACRON_")}
        config = str(self.folder / f"{self.name}.toml")
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-c", _MAIN, "--config", config, "node", "start"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    def wait(self) -> None:
        """Until it serves. Raises NodeUnavailable with the end of its log."""
        deadline = time.monotonic() + START_S
        while self.process is not None and self.process.poll() is None:
            try:
                self.client.node()
                return
            except NodeUnavailable:
                if time.monotonic() > deadline:
                    break
                # Nothing tells when a socket begins to be served, so this looks again.
                time.sleep(0.05)
        log = (self.folder / f"{self.name}.log").read_text(errors="replace")[-2000:]
        raise NodeUnavailable(f"node {self.name} did not start; its log ends with\n{log}")

    def finish(self, operation: Json) -> Json:
        """An operation once it has ended well. Raises MachineError else."""
        ended = self.client.wait(operation["id"])
        if ended["state"] != "succeeded":
            raise MachineError(f"{ended['kind']} of {ended['machine']}: {ended['error']}")
        return ended

    def stop(self) -> None:
        self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def _site(setup: RealSetup) -> Iterator[tuple[dict[str, _Node], Any]]:
    """Three nodes and the lab between them; nothing is left of them afterwards."""
    from novacron_lab import Lab, LinkSpec

    def spec(text: str) -> LinkSpec:
        figures = LinkFigures.parse(text)
        return LinkSpec.wan(
            rate_mbit=figures.rate_bit_per_s / 1e6,
            rtt_ms=figures.rtt_ms,
            loss_percent=figures.loss_percent,
        )

    folder = Path(tempfile.mkdtemp(prefix="nve-", dir="/tmp"))
    links = {("a", "b"): spec(setup.links[0]), ("a", "c"): spec(setup.links[1])}
    lab = Lab.up(f"evac-{os.getpid()}", SIDES, links, congestion_control="bbr")
    nodes: dict[str, _Node] = {}
    try:
        authority = Authority.create(folder / "authority")
        addresses = {side: f"{lab.site(side).address}:{PORT}" for side in SIDES}
        for side in SIDES:
            node = nodes[side] = _Node(side, folder, lab.command(side, []))
            authority.issue(side, node.state_dir)
            (folder / f"{side}.toml").write_text(_config(node, addresses, setup))
            node.start()
        for node in nodes.values():
            node.wait()
        yield nodes, lab
    finally:
        for node in nodes.values():
            with contextlib.suppress(NovacronError):
                for machine in node.client.machines():
                    node.finish(node.client.delete(machine["name"], force=True))
            node.stop()
        lab.down(end_processes=True)
        shutil.rmtree(folder, ignore_errors=True)


def _config(node: _Node, addresses: dict[str, str], setup: RealSetup) -> str:
    peers = "".join(
        f'[peers.{other}]\naddress = "{address}"\n'
        for other, address in addresses.items()
        if other != node.name
    )
    ways = ", ".join(
        f"{side} = {LinkFigures.parse(text).rate_bit_per_s / 8 * 0.9:.0f}"
        for side, text in zip("bc", setup.links, strict=True)
    )
    return (
        f'[node]\nname = "{node.name}"\nstate_dir = "{node.state_dir}"\n'
        f'listen = "{addresses[node.name]}"\n{peers}\n'
        # A machine that left leaves no image behind: each way sends all there is to send.
        f"[machine.wasm]\nbase_bytes_max = 0\n"
        f"[operation.evacuate]\nlinks = {{ {ways} }}\nwire_part = 0.75\nreserve_bytes = 0\n"
    )


def run_real(setup: RealSetup, *, tell: Callable[[str], None]) -> Json:
    """Evacuate the same machines by each way; seconds, bytes and where they went."""
    found: Json = {}
    # Whoever ends it gets his host back as it was.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with _site(setup) as (nodes, lab):
        a = nodes["a"]
        ways: dict[str, Callable[[list[str]], object]] = {
            "one by one": lambda names: [a.finish(a.client.migrate(name, "b")) for name in names],
            "all at once": lambda names: [
                a.finish(operation)
                for operation in [
                    a.client.migrate(name, target)
                    for name, target in zip(names, _by_rate(setup), strict=True)
                ]
            ],
            "evacuate": lambda names: a.finish(a.client.begin("evacuate", "a", {})),
        }
        for way, run in ways.items():
            names = setup.names(way)
            for number, name in enumerate(names):
                a.finish(
                    a.client.create(
                        name,
                        driver="wasm",
                        memory_bytes=(setup.fill_bytes(number) + (8 << 20)) // 65536 * 65536,
                        settings={"guest": "kv", "fill_bytes": setup.fill_bytes(number)},
                    )
                )
            before = _sent(lab)
            began, at = time.monotonic(), time.time()
            run(names)
            seconds = time.monotonic() - began
            after = _sent(lab)
            there = {side: len(nodes[side].client.machines()) for side in "bc"}
            if sum(there.values()) != setup.machines or a.client.machines():
                raise MachineError(f"{way}: {there} arrived, of {setup.machines}")
            found[way] = {
                "seconds": seconds,
                "wire_bytes": sum(after) - sum(before),
                "moved": [there["b"], there["c"]],
                "moves": _moves(a.client, names, at),
            }
            tell(f"{way}: {seconds:.1f} s, {there['b']} to b and {there['c']} to c")
            for side in "bc":
                node = nodes[side]
                for machine in node.client.machines():
                    node.finish(node.client.delete(machine["name"], force=True))
    rates = [LinkFigures.parse(text).rate_bit_per_s / 8 for text in setup.links]
    fewest = min(one["wire_bytes"] for one in found.values())
    found["bound_seconds"] = fewest / sum(rates)
    found["load"], found["cores"] = os.getloadavg()[0], os.cpu_count()
    return found


def _by_rate(setup: RealSetup) -> list[str]:
    """The target of each machine, as the links' rates are: what somebody would do who knows
    them."""
    rates = [LinkFigures.parse(text).rate_bit_per_s for text in setup.links]
    load, where = [0.0, 0.0], [""] * setup.machines
    for number in sorted(range(setup.machines), key=setup.fill_bytes, reverse=True):
        ends = [(load[n] + setup.fill_bytes(number)) / rates[n] for n in (0, 1)]
        best = ends.index(min(ends))
        load[best] += setup.fill_bytes(number)
        where[number] = "bc"[best]
    return where


def _moves(client: Client, names: Sequence[str], at: float) -> list[Json]:
    """When each machine moved, in seconds after the beginning."""
    return [
        {
            "machine": move["machine"],
            "target": move["parameters"]["target"],
            "state": move["state"],
            "begin_s": round(datetime.fromisoformat(move["began"]).timestamp() - at, 2),
            "end_s": round(datetime.fromisoformat(move["ended"]).timestamp() - at, 2),
        }
        for move in client.operations()
        if move["kind"] == "migrate" and move["machine"] in names
    ]


def _sent(lab: Any) -> list[int]:
    stats = lab.stats()
    return [stats["a>b"].in_bytes, stats["a>c"].in_bytes]
