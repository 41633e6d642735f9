"""Faults in the middle of a move: what becomes of the guest, and what is sent twice."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import define, field, frozen
from novacron import MachineError, NovacronError

from novacron_bench._beats import Beats, Pulse, pause_s
from novacron_bench._competitor import BUFFERS, Contest
from novacron_bench._guest import Guest
from novacron_bench._network import LinkFigures, Network
from novacron_bench._nova import PORT, BenchNode, create, start_nodes

_LOOK_S: Final = 0.02
_MACHINE: Final = "guest"
_DOWN_S: Final = 2.0
_SLOW_S: Final = 20.0
_ALIVE_S: Final = 60.0


@define(eq=False)
class Scene:
    """A move under way, as a fault sees it.

    Attributes:
        source, destination: The nodes.
        outage_s: How long an outage lasts.
        done: Says whether the move has ended.
    """

    contest: Contest
    source: BenchNode
    destination: BenchNode
    outage_s: float
    done: Callable[[], bool]

    def outage(self) -> None:
        """The link is gone for a while, without a word to anybody."""
        self.contest.network.outage(self.outage_s)

    def kill(self, node: BenchNode) -> None:
        """``kill -9`` a node, and start it again a little later; its machines go on."""
        assert node.process is not None
        node.process.kill()
        node.process.wait()
        node.client.close()
        time.sleep(_DOWN_S)
        node.start()
        node.wait()

    def break_streams(self) -> None:
        """Reset the move's connections, one by one, until it is over."""
        broken: set[str] = set()
        while not self.done():
            for port in _connections(self.contest.network):
                if port not in broken:
                    broken.add(port)
                    _reset(self.contest.network, port)
                    break
            time.sleep(1.0)

    def slow_down(self) -> None:
        """A tenth of the rate for a while."""
        network = self.contest.network
        rate = network.figures.rate_bit_per_s
        network.set_rate(rate / 10)
        until = time.monotonic() + _SLOW_S
        while time.monotonic() < until and not self.done():
            time.sleep(_LOOK_S)
        network.set_rate(rate)


def _connections(network: Network) -> list[str]:
    """The ports at the source of the connections to the destination's node."""
    argv = ["ss", "-tnH", "state", "established", f"( dport = :{PORT} )"]
    ran = subprocess.run(network.command("a", argv), capture_output=True, text=True, timeout=20)
    return [line.split()[2].rpartition(":")[2] for line in ran.stdout.splitlines() if line.split()]


def _reset(network: Network, port: str) -> None:
    argv = ["ss", "-K", f"( sport = :{port} and dport = :{PORT} )"]
    subprocess.run(network.command("a", argv), capture_output=True, timeout=20)


@frozen(kw_only=True)
class Fault:
    """What happens to a move, and when.

    Attributes:
        name: As the command line names it.
        title: For people.
        at: When that part of the memory was sent; 1.0: as soon as the guest is paused; None: never.
        strike: Does it.
    """

    name: str
    title: str
    at: float | None
    strike: Callable[[Scene], None]


FAULTS: Final = (
    Fault(name="none", title="nothing", at=None, strike=lambda scene: None),
    Fault(name="outage-10", title="outage at 10 %", at=0.1, strike=Scene.outage),
    Fault(name="outage-50", title="outage at 50 %", at=0.5, strike=Scene.outage),
    Fault(name="outage-90", title="outage at 90 %", at=0.9, strike=Scene.outage),
    Fault(name="outage-pause", title="outage in the pause", at=1.0, strike=Scene.outage),
    Fault(name="streams", title="streams reset one by one", at=0.1, strike=Scene.break_streams),
    Fault(
        name="kill-source",
        title="source node killed at 50 %",
        at=0.5,
        strike=lambda scene: scene.kill(scene.source),
    ),
    Fault(
        name="kill-destination",
        title="destination node killed at 50 %",
        at=0.5,
        strike=lambda scene: scene.kill(scene.destination),
    ),
    Fault(name="slow", title="a tenth of the rate from 30 %", at=0.3, strike=Scene.slow_down),
)


@frozen(kw_only=True)
class Survived:
    """How a move with a fault went.

    Attributes:
        outcome: ``moved``; ``rolled back``: the guest goes on at the source, the reason says why;
            ``lost``: it runs nowhere, or its memory is not whole.
        struck: Whether the fault came before the move had ended.
        seconds: Until the move was over.
        pause_s: That the guest felt, if it moved.
        sent_bytes: That entered the link towards the destination.
        twice_bytes: Of frames that the link sent again; what TCP itself resends is not in it.
        anew: Whether the copy was begun anew.
    """

    link: str
    fault: str
    outcome: str
    reason: str = ""
    struck: bool = False
    seconds: float = 0.0
    pause_s: float | None = None
    sent_bytes: int = 0
    twice_bytes: int = 0
    anew: bool = False
    intact: bool | None = None
    figures: Mapping[str, Any] = field(factory=dict)

    @property
    def twice_share(self) -> float:
        return self.twice_bytes / max(self.sent_bytes, 1)

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(self) | {"twice_share": round(self.twice_share, 5)}


def survive(
    figures: LinkFigures,
    guest: Guest,
    faults: Sequence[Fault],
    *,
    providers: Mapping[str, str],
    outage_s: float,
    cutoff_s: float,
    keep: Path | None = None,
) -> Iterator[Survived]:
    """Move a fresh guest once for each fault. A failure is a result with its reason."""
    for fault in faults:
        place = Path(tempfile.mkdtemp(prefix="nvb-", dir="/tmp"))
        try:
            with (
                Network(figures, name=f"nvb{os.getpid() % 1_000_000}") as network,
                Beats(place / "beat") as beats,
                ExitStack() as ending,
            ):
                network.set_tcp("bbr", *BUFFERS["system"])
                contest = Contest(
                    folder=place, network=network, guest=guest, beats=beats,
                    cutoff_s=cutoff_s, ending=ending,
                )  # fmt: skip
                yield _once(contest, fault, providers, outage_s)
        except (NovacronError, OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "message", "") or str(error)
            yield Survived(link=str(figures), fault=fault.name, outcome="failed", reason=said)
        finally:
            if keep is not None:
                kept = keep / f"{figures}-{fault.name}-{random.randrange(1 << 16):04x}"
                shutil.copytree(
                    place, kept, ignore=shutil.ignore_patterns("*.sock", "beat", "store")
                )
            shutil.rmtree(place, ignore_errors=True)


def _once(
    contest: Contest, fault: Fault, providers: Mapping[str, str], outage_s: float
) -> Survived:
    nodes = start_nodes(contest, providers, "")
    source, destination = nodes["a"], nodes["b"]
    source.do(create(source, _MACHINE, contest.guest, contest.beats.path))
    pulse = contest.beats.pulse(0, _ALIVE_S)
    contest.settle(pulse)
    before = contest.network.wire()
    began_s = time.monotonic()
    source.client.migrate(_MACHINE, "b")
    deadline_s = began_s + contest.cutoff_s
    scene = Scene(contest, source, destination, outage_s, lambda: _latest(source)[1])
    struck = _await(source, fault.at, deadline_s)
    if struck:
        fault.strike(scene)
    while not scene.done() and time.monotonic() < deadline_s:
        time.sleep(_LOOK_S)
    ended_s = time.monotonic()
    operation, over = _latest(source)
    wire = contest.network.wire() - before
    result = operation.get("result") or {}
    error = operation.get("error") or {}
    outcome, felt_s, intact = _fate(contest, source, destination, pulse)
    reason = str(error.get("message") or error.get("detail") or "")
    if not over:
        reason = f"not over after {contest.cutoff_s:g} s"
    return Survived(
        link=str(contest.network.figures),
        fault=fault.name,
        outcome=outcome,
        reason=reason,
        struck=struck,
        seconds=ended_s - began_s,
        pause_s=felt_s,
        sent_bytes=wire.there,
        twice_bytes=int((result or operation.get("progress") or {}).get("resent_bytes") or 0),
        anew=len(_moves(source)) > 1 or contest.beats.count() > 2,
        intact=intact,
        figures=result,
    )  # fmt: skip


def _moves(node: BenchNode) -> list[dict[str, Any]]:
    found = node.client.operations(machine=_MACHINE)
    return [operation for operation in found if operation["kind"] == "migrate"]


def _latest(node: BenchNode) -> tuple[dict[str, Any], bool]:
    """The newest move that the node knows, and whether it is over; no answer is not over."""
    with suppress(NovacronError):
        moves = _moves(node)
        if moves:
            newest = max(moves, key=lambda operation: str(operation["id"]))
            # A node that was killed marks the move so, and takes it up again.
            return newest, newest["state"] not in ("running", "interrupted")
    return {}, False


def _await(node: BenchNode, at: float | None, deadline_s: float) -> bool:
    """Wait for the moment of a fault; whether it came before the end of the move."""
    if at is None:
        return False
    while time.monotonic() < deadline_s:
        operation, over = _latest(node)
        if over:
            return False
        progress = operation.get("progress") or {}
        if operation.get("phase") in ("pause", "verify", "PAUSE", "VERIFY"):
            return True
        total = progress.get("total_bytes") or 0
        if at < 1.0 and total and progress.get("done_bytes", 0) / total >= at:
            return True
        time.sleep(_LOOK_S)
    return False


def _fate(
    contest: Contest, source: BenchNode, destination: BenchNode, pulse: Pulse
) -> tuple[str, float | None, bool | None]:
    """Where the guest lives: the outcome, the pause that it felt, whether it is whole."""
    arrived = None
    if _runs(destination) and contest.beats.count() > 1:
        arrived = contest.beats.pulse(contest.beats.count() - 1, _ALIVE_S)
    elif not _runs(source):
        return "lost", None, None
    living = arrived or pulse
    seen = len(living.beats)
    if not living.wait(lambda: len(living.beats) > seen + 5, _ALIVE_S):
        return "lost", None, None
    try:
        check = living.check(120.0)
    except MachineError:
        return "lost", None, None
    intact = check.sum == contest.guest.disk.sum and check.errors == 0
    if not intact:
        return "lost", None, False
    if arrived is None:
        return "rolled back", None, True
    return "moved", pause_s(pulse.beats, arrived.beats), True


def _runs(node: BenchNode) -> bool:
    with suppress(NovacronError):
        return any(
            machine["name"] == _MACHINE and machine["state"] == "running"
            for machine in node.client.machines()
        )
    return False
