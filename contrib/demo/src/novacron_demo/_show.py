"""How the demo shows itself: live on a terminal, in lines elsewhere, not at all under --json."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field
from novacron import OperationEvent
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from novacron_demo._demo import Move, Report

# What the phases of a hand-over mean to somebody who sees them for the first time.
PHASES: Final[Mapping[str, str]] = {
    "plan": "what the move takes is worked out",
    "prepare": "the other node makes room",
    "copy": "memory is copied while the machine runs",
    "pause": "the machine stands still; the last changes follow",
    "verify": "the other node compares what it has",
    "commit": "the ownership is recorded",
    "run": "the machine goes on there",
    "release": "the node that it left lets go",
    "moved": "it has moved",
}
_RATE_WINDOW_S: Final = 1.0
_PLAIN: Final = str.maketrans({"→": ">", "·": "-", "✓": "+", "✗": "!", "…": "."})


def show_size(count: float) -> str:
    """Bytes for people: ``31.9 MiB``."""
    for unit in ("B", "KiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} MiB"


def show_rate(bytes_per_s: float) -> str:
    """A rate for people, in the bits that links are sold by."""
    return f"{bytes_per_s * 8 / 1e6:.1f} Mbit/s"


@define
class Progress:
    """What is known of a move while it goes on."""

    source: str
    target: str
    writes: Callable[[], int] = lambda: 0
    what: str = "writes acknowledged"
    phase: str = "requested"
    figures: dict[str, Any] = field(factory=dict)
    message: str = ""
    _sent: deque[tuple[float, int]] = field(factory=deque, init=False)
    _spinner: Spinner = field(factory=lambda: Spinner("dots"), init=False)

    def take(self, event: OperationEvent) -> None:
        if event.kind == "phase":
            self.phase = str(event.data.get("phase", ""))
        elif event.kind == "progress":
            self.figures = dict(event.data)
            now = time.monotonic()
            self._sent.append((now, int(self.figures.get("wire_bytes", 0))))
            while len(self._sent) > 2 and now - self._sent[0][0] > _RATE_WINDOW_S:
                self._sent.popleft()
        elif event.kind == "message":
            self.message = str(event.data.get("text", ""))

    @property
    def wire_rate(self) -> float:
        """Bytes per second on the wire, over the last second."""
        if len(self._sent) < 2:
            return 0.0
        (began, before), (ended, after) = self._sent[0], self._sent[-1]
        return (after - before) / max(ended - began, 1e-3)

    @property
    def part(self) -> float | None:
        """How much of the known work is done; it falls when the guest writes more."""
        done, left = self.figures.get("done_bytes", 0), self.figures.get("remaining_bytes", 0)
        if not done + left:
            return None
        return float(done / (done + left))

    def words(self) -> str:
        """The figures that are known."""
        known = self.figures
        shown: list[str] = []
        if "round" in known:
            shown.append(f"round {known['round']}")
        if "raw_bytes" in known:
            shown.append(f"{show_size(known['raw_bytes'])} of memory")
            shown.append(f"{show_size(known['wire_bytes'])} on the wire")
        if self.wire_rate > 1000:
            shown.append(show_rate(self.wire_rate))
        if known.get("remaining_bytes") and known.get("eta_s") is not None:
            shown.append(f"{known['eta_s']:.1f} s left")
        if known.get("downtime_ms"):
            shown.append(f"paused {known['downtime_ms']:.0f} ms")
        return " · ".join(shown)

    def __rich__(self) -> RenderableType:
        line = Table.grid(padding=(0, 1))
        part = self.part
        line.add_row(
            self._spinner,
            Text(f"{self.source} → {self.target}", "bold"),
            ProgressBar(total=1.0, completed=part or 0.0, width=28),
            Text("    " if part is None else f"{part * 100:3.0f} %"),
            Text(self.phase, "cyan"),
        )
        below = [
            Text("  " + PHASES.get(self.phase, ""), "cyan"),
            Text("  " + self.words(), "dim"),
            Text(f"  {self.writes():,} {self.what}", "dim"),
        ]
        if self.message:
            below.append(Text("  " + self.message, "yellow"))
        return Group(line, *below)


class Screen:
    """Says what happens. This one keeps still: for --json."""

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Something that takes a moment; `done` says what came of it."""
        yield

    def title(self, text: str) -> None:
        """What is about to be seen."""

    def done(self, text: str) -> None:
        """Something has been done."""

    @contextlib.contextmanager
    def move(self, progress: Progress) -> Iterator[Callable[[OperationEvent], None]]:
        """A move: gives what takes its events."""
        yield progress.take

    def moved(self, move: Move) -> None:
        """A move has ended."""

    def report(self, report: Report) -> None:
        """The end of it all."""


class Paper(Screen):
    """Lines, for a file or a pipe; and what a terminal gets beyond its live display."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._ascii = console.options.ascii_only

    def _print(self, text: Text | str, style: str = "") -> None:
        words = Text(text, style) if isinstance(text, str) else text
        if self._ascii:
            words.plain = words.plain.translate(_PLAIN)
        self._console.print(words, highlight=False, soft_wrap=not self._console.is_terminal)

    def title(self, text: str) -> None:
        self._print(text, "bold")

    def done(self, text: str) -> None:
        self._print(Text.assemble(("✓ ", "green"), text))

    @contextlib.contextmanager
    def move(self, progress: Progress) -> Iterator[Callable[[OperationEvent], None]]:
        self._print(f"  {progress.source} → {progress.target}")

        def take(event: OperationEvent) -> None:
            if event.kind == "phase" and progress.figures:
                if words := progress.words():
                    self._print(f"    {words}")
                progress.figures = {}
            progress.take(event)
            if event.kind == "phase" and progress.phase != "moved":
                self._print(f"  {progress.phase}: {PHASES.get(progress.phase, '')}")
            elif event.kind == "message":
                self._print(f"    {progress.message}")

        yield take

    def moved(self, move: Move) -> None:
        self.done(
            f"{move.source} → {move.target} in {move.seconds:.1f} s: "
            f"{show_size(move.wire_bytes)} on the wire, paused {move.downtime_ms:.0f} ms"
        )

    def report(self, report: Report) -> None:
        self._print("")
        if self._ascii:
            self._console.print(table(report, ">"), highlight=False)
        else:
            self._console.print(table(report, "→"), highlight=False)
        for line in report.remarks:
            self._print(line, "dim")
        self._print("")
        for line in report.evidence:
            self.done(line)
        for line in report.faults:
            self._print(Text.assemble(("✗ ", "bold red"), line))
        verdict = "The proof holds." if report.holds else "The proof does not hold."
        self._print(
            f"{verdict} {report.seconds:.1f} s in all.",
            "bold green" if report.holds else "bold red",
        )


class Stage(Paper):
    """A terminal."""

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        with self._console.status(text):
            yield

    @contextlib.contextmanager
    def move(self, progress: Progress) -> Iterator[Callable[[OperationEvent], None]]:
        with Live(progress, console=self._console, refresh_per_second=8, transient=True):
            yield progress.take


def screen(console: Console, *, json: bool) -> Screen:
    """What fits the console."""
    if json:
        return Screen()
    return Stage(console) if console.is_terminal else Paper(console)


def table(report: Report, arrow: str = "→") -> Table:
    """The moves, side by side."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    shown.add_column("Move")
    for name in ("Took", "Rounds", "Memory sent", "On the wire", "Pause", "Longest gap"):
        shown.add_column(name, justify="right")
    for move in report.moves:
        shown.add_row(
            f"{move.source} {arrow} {move.target}",
            f"{move.seconds:.1f} s",
            str(move.rounds),
            show_size(move.raw_bytes),
            show_size(move.wire_bytes),
            f"{move.downtime_ms:.0f} ms",
            f"{move.gap_ms:.0f} ms",
        )
    return shown
