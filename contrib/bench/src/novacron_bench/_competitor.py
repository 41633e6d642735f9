"""What takes part in the benchmark: anything that can move the benchmark's guest over a link.

A competitor is described by a frozen value, which hooks may add to; `Contest` is what one run gives
it, and `Moved` is what it gives back.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Protocol

from attrs import define, field, frozen, validators

from novacron_bench._beats import Beats, Pulse
from novacron_bench._guest import Guest
from novacron_bench._network import Network

READY_S: Final = 180.0
SCENARIOS: Final = ("cold", "return", "sibling", "image")
CONGESTION: Final = ("bbr", "cubic", "reno")
# The largest TCP buffers: what Linux has by itself, and what holds any of the links.
BUFFERS: Final = {"system": (6 << 20, 4 << 20), "large": (64 << 20, 64 << 20)}


@frozen(kw_only=True)
class Moved:
    """How a move went.

    Attributes:
        outcome: ``moved``, ``cut off`` (it took longer than it may) or ``failed``.
        reason: Why not, in words.
        began_s, ended_s: By the monotonic clock: the command, and when the mover called it done.
        source, destination: The guest's beats at both places.
        figures: What the mover itself says, JSON-like.
    """

    outcome: str = field(validator=validators.in_(("moved", "cut off", "failed")))
    reason: str = ""
    began_s: float
    ended_s: float
    source: Pulse
    destination: Pulse | None = None
    figures: Mapping[str, Any] = field(factory=dict)


@define(kw_only=True, eq=False)
class Contest:
    """One run's surroundings.

    Attributes:
        folder: A fresh one, with a short path, for sockets and logs.
        network: The link that is up; ``a`` is the source, ``b`` the destination.
        guest: What moves.
        beats: Where every QEMU's guest beats.
        cutoff_s: How long a move may take.
        settle_s: For how long the guest works before it moves.
        scenario: ``cold``; or what the destination has of the guest before the move that counts:
            ``return`` (it was there, and worked elsewhere for ``away_s``), ``sibling`` (a guest of
            the same image was moved there), ``image`` (the image was added to its store).
        sibling: The other guest, for the scenario of that name.
        ending: Ends what was started, in any case.
        begin_counting: To be called just before the move that counts; with True if it goes from
            ``b`` to ``a``.
    """

    folder: Path
    network: Network
    guest: Guest
    beats: Beats
    cutoff_s: float = 300.0
    settle_s: float = 2.0
    scenario: str = "cold"
    away_s: float = 60.0
    sibling: Guest | None = None
    ending: ExitStack = field(factory=ExitStack)
    begin_counting: Callable[[bool], None] = lambda backwards: None

    def spawn(self, side: str, argv: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        """Start a program at a place; it is ended with the run."""
        path = self.folder / log
        with path.open("ab") as out:
            # A group of its own: Ctrl-C is for the bench, which ends what it started in order.
            process = subprocess.Popen(
                self.network.command(side, argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                process_group=0,
            )
        self.ending.callback(end, process)
        return process

    def settle(self, pulse: Pulse) -> None:
        """Wait until the guest is ready and has worked for a while. Raises MachineError."""
        from novacron import MachineError

        if not pulse.wait(pulse.ready.is_set, READY_S):
            raise MachineError("the guest was not ready in time; see its console.log")
        until = time.monotonic() + self.settle_s
        pulse.wait(lambda: bool(pulse.beats) and pulse.beats[-1].at_s >= until, self.settle_s + 60)


class Run(Protocol):
    """Start the guest at ``a``, move it to ``b``, and say how that went.

    Whatever it starts is ended by ``contest.ending``. An exception becomes a row with its reason.
    """

    def __call__(self, contest: Contest) -> Moved: ...


@frozen(kw_only=True)
class Competitor:
    """One way to move a guest.

    Attributes:
        name: As the command line names it.
        title: For people.
        run: Does it.
        encrypted: Whether the guest's memory crosses the link encrypted.
        stock: Whether it is unmodified QEMU alone, which others are compared with.
        scenarios: Those that make a difference to it.
    """

    name: str = field(validator=validators.matches_re(r"[a-z][a-z0-9.-]{0,40}"))
    title: str
    run: Run
    encrypted: bool = False
    stock: bool = False
    scenarios: tuple[str, ...] = ("cold",)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program that was started here, by its id."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
