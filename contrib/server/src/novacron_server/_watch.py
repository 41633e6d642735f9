"""Watching an operation: a live view on a terminal, lines elsewhere, nothing under --json."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field
from novacron import OperationEvent
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from novacron_server._client import Client
from novacron_server._problems import from_problem
from novacron_server._units import show_rate, show_seconds, show_size

if TYPE_CHECKING:
    from novacron import ShellState

Json = dict[str, Any]
_TOLD_AT_THE_END: Final = ("round", "done_bytes", "wire_bytes", "downtime_ms")


def title(operation: Mapping[str, Any]) -> str:
    """What an operation does, in a few words."""
    target = operation["parameters"].get("target")
    to = f" to {target}" if target else ""
    return f"{operation['kind']} {operation['machine']}{to}"


def figures(progress: Mapping[str, Any]) -> list[str]:
    """The progress figures that are known, for people."""
    shown: list[str] = []

    def add(name: str, words: Any) -> None:
        value = progress.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            shown.append(words(value))

    add("round", lambda value: f"round {value}")
    add("done_bytes", lambda value: f"{show_size(value)} read")
    add("wire_bytes", lambda value: f"{show_size(value)} on the wire")
    add("remaining_bytes", lambda value: f"{show_size(value)} to go" if value else "nothing to go")
    add("rate_bytes_per_s", show_rate)
    add("dirty_bytes_per_s", lambda value: f"{show_size(value)}/s written" if value else "idle")
    add("eta_s", lambda value: f"{show_seconds(value)} left")
    add("downtime_ms", lambda value: f"down {value:.0f} ms")
    return shown


def fraction(progress: Mapping[str, Any]) -> float | None:
    """How much of the known work is done; it falls when the guest writes more."""
    done, left = progress.get("done_bytes"), progress.get("remaining_bytes")
    if not isinstance(done, int | float) or not isinstance(left, int | float) or done + left <= 0:
        return None
    return done / (done + left)


@define
class View:
    """The live picture of one operation."""

    title: str
    phase: str = "requested"
    progress: Json = field(factory=dict)
    message: str = ""
    _spinner: Spinner = field(factory=lambda: Spinner("dots"), init=False)

    def take(self, event: OperationEvent) -> None:
        if event.kind == "phase":
            self.phase = str(event.data.get("phase", ""))
        elif event.kind == "progress":
            self.progress = dict(event.data)
        elif event.kind == "message":
            self.message = str(event.data.get("text", ""))

    def __rich__(self) -> RenderableType:
        part = fraction(self.progress)
        line = Table.grid(padding=(0, 1))
        bar: RenderableType = ProgressBar(total=1.0, completed=part or 0.0, width=30)
        percent = "" if part is None else f"{part * 100:.0f} %"
        line.add_row(
            self._spinner, Text(self.title, style="bold"), Text(self.phase, "cyan"), bar, percent
        )
        below = [Text("  " + " · ".join(figures(self.progress)), style="dim")]
        if self.message:
            below.append(Text("  " + self.message, style="yellow"))
        return Group(line, *below)


@contextlib.contextmanager
def _live(state: ShellState, view: View) -> Iterator[Any]:
    with Live(view, console=state.console, refresh_per_second=8, transient=True):
        yield view.take


def watch(state: ShellState, client: Client, operation: Mapping[str, Any]) -> Json:
    """Show what an operation does until it has ended; the operation as it is then."""
    view = View(title=title(operation))
    with contextlib.ExitStack() as stack:
        if state.json:
            show: Any = view.take
        elif state.console.is_terminal:
            show = stack.enter_context(_live(state, view))
        else:
            show = _lines(state)
        for event in client.events(operation["id"]):
            show(event)
    return client.operation(operation["id"])


def _lines(state: ShellState) -> Any:
    """For a log file: a line per phase and message; figures only at a phase's end."""
    view = View(title="")

    def show(event: OperationEvent) -> None:
        known = figures(view.progress)
        if event.kind == "phase" and known:
            state.console.print(escape(f"  {', '.join(known)}"), soft_wrap=True)
            view.progress = {}
        view.take(event)
        if event.kind == "phase":
            state.console.print(escape(view.phase), soft_wrap=True)
        elif event.kind == "message":
            state.console.print(escape(view.message), soft_wrap=True)

    return show


def duration_s(operation: Mapping[str, Any]) -> float | None:
    """How long an ended operation took."""
    try:
        ended = datetime.fromisoformat(operation["ended"])
        return (ended - datetime.fromisoformat(operation["began"])).total_seconds()
    except (TypeError, ValueError):
        return None


def conclude(state: ShellState, operation: Mapping[str, Any]) -> None:
    """Print how an operation ended. Raises the error that it ended with, if it did."""
    if operation["error"]:
        error = from_problem(operation["error"])
        error.facts.setdefault("operation", operation["id"])
        raise error
    if state.json:
        state.print_json(operation)
        return
    seconds = duration_s(operation)
    took = f" in {show_seconds(seconds)}" if seconds is not None else ""
    last = {name: operation["progress"].get(name) for name in _TOLD_AT_THE_END}
    shown = figures(last)
    more = f" ({', '.join(shown)})" if shown else ""
    text = f"{title(operation)}: {operation['state']}{took}{more}"
    state.console.print(escape(text), soft_wrap=True)
