"""``novacron bench wan`` and ``novacron bench list``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from novacron import ShellState

LINKS: Final = ("metro", "country", "continent")
ENTRIES: Final = (
    *("default:cubic", "default", "xbzrle", "multifd", "multifd-zstd", "multifd-zstd3"),
    *("auto-converge", "postcopy", "default-tls", "multifd-zstd-tls", "novacron"),
)


def shell_state(ctx: click.Context) -> ShellState:
    from novacron import ShellState

    return ctx.ensure_object(ShellState)


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Whoever asks this process to end gets what Ctrl-C gets: everything started is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        # Once: a second signal must not break off the ending of things, which is bounded.
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command("wan")
@click.option(
    "--link",
    "links",
    multiple=True,
    metavar="RATE,RTT,LOSS",
    help="A link, such as 200mbit,80ms,0.5%, or lan, metro, country, continent, ocean, veth. "
    "Repeat it.  [default: metro, country, continent]",
)
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="NAME[:MB/S]",
    help="What the guest does; `novacron bench list` names them. Repeat it.  [default: writer:2]",
)
@click.option(
    "--entry",
    "entries",
    multiple=True,
    metavar="NAME[:CC[:BUFFERS]]",
    help="Who takes part, with TCP's congestion control (bbr, cubic, reno) and buffers (system, "
    "large). Repeat it.  [default: stock QEMU in all variants, and NovaCron]",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice(("cold", "return", "sibling", "image")),
    help="What the destination has before. Repeat it.  [default: cold]",
)
@click.option("--away", type=click.FloatRange(0, 86400), default=60.0, show_default=True,
              help="In the scenario return, seconds that the guest works elsewhere.")  # fmt: skip
@click.option("--runs", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option("--memory", type=click.IntRange(64, 1 << 20), default=1024, show_default=True,
              metavar="MIB", help="The guest's memory.")  # fmt: skip
@click.option("--cutoff", type=click.FloatRange(1, 86400), default=300.0, show_default=True,
              help="Seconds that a move may take.")  # fmt: skip
@click.option("--check/--no-check", default=True, show_default=True,
              help="Have the guest look at all of its memory after it arrived.")  # fmt: skip
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file of JSON lines, one per run. Runs that it has are not repeated: a benchmark that "
    "was interrupted goes on.",
)
@click.option("--plot", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write charts (SVG) there.")  # fmt: skip
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Keep the logs of every run there.")  # fmt: skip
@click.option("--show", is_flag=True, help="Run nothing; show what the file of results has.")
@click.pass_context
def wan(
    ctx: click.Context,
    links: tuple[str, ...],
    workloads: tuple[str, ...],
    entries: tuple[str, ...],
    scenarios: tuple[str, ...],
    away: float,
    runs: int,
    memory: int,
    cutoff: float,
    check: bool,
    results: Path | None,
    plot: Path | None,
    keep: Path | None,
    show: bool,
) -> None:
    """Move a guest over long links: stock QEMU in its variants and NovaCron, in turn.

    Needs root for the network namespaces. Everything that is started is ended, on Ctrl-C too.
    """
    from novacron import ConfigError

    from novacron_bench import _known
    from novacron_bench._network import LinkFigures
    from novacron_bench._race import Entry, Race
    from novacron_bench._rows import append_row, read_rows

    state = shell_state(ctx)
    rows = read_rows(results) if results is not None else []
    if not show:
        all_workloads = _known.workloads(state.manager)
        all_competitors = _known.competitors(state.manager)
        race = Race(
            links=[LinkFigures.parse(text) for text in links or LINKS],
            workloads=[
                _known.pick_workload(text, all_workloads) for text in workloads or ("writer:2",)
            ],
            entries=[Entry.parse(text, all_competitors) for text in entries or ENTRIES],
            all_workloads=all_workloads,
            scenarios=scenarios or ("cold",),
            away_s=away,
            runs=runs,
            memory_mib=memory,
            cutoff_s=cutoff,
            check=check,
            keep=keep,
        )
        done = {row.key for row in rows if row.memory_mib == memory and row.outcome != "failed"}
        if not (left := [key for key in race.plan() if key not in done]) and not rows:
            raise ConfigError("there is nothing to run", hint="name another --scenario or --entry")
        with ended_in_order(), progress(state, len(left)) as step:
            for row in race.rows(done, lambda key: step(" ".join(map(str, key)))):
                rows.append(row)
                if results is not None:
                    append_row(results, row)
                told(state, row)
    elif results is None:
        raise ConfigError("--show needs --results", hint="name the file of an earlier run")
    report(state, rows, plot)


def told(state: ShellState, row: Any) -> None:
    """A line about one run, on standard error."""
    pause = "" if row.pause_s is None else f", pause {row.pause_s * 1e3:.0f} ms"
    said = f"{row.seconds:.2f} s{pause}, {row.there_bytes / 1e6:.0f} MB" if row.good else row.reason
    state.err.print(
        f"{row.link} {row.workload} {row.entry} {row.scenario} {row.run}: {row.outcome}, {said}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def progress(state: ShellState, total: int) -> Iterator[Any]:
    """A bar on standard error where that is a terminal; gives a function that begins a step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=state.err,
        disable=not state.err.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task("starting", total=total)
        begun = 0

        def step(text: str) -> None:
            nonlocal begun
            bar.update(task, description=text, completed=begun)
            begun += 1

        yield step


def report(state: ShellState, rows: list[Any], plot: Path | None) -> None:
    """Table and charts, or JSON."""
    import attrs

    from novacron_bench._plot import write_plots
    from novacron_bench._rows import summarise
    from novacron_bench._table import COLUMNS, RATIO_COLUMNS, tables

    summaries = summarise(rows)
    written = write_plots(plot, summaries) if plot is not None else []
    if state.json:
        state.print_json(
            {
                "rows": [attrs.asdict(row) for row in rows],
                "summaries": [attrs.asdict(one) for one in summaries],
                "plots": list(map(str, written)),
            }
        )
        return
    for title, measured, ratios, notes in tables(summaries):
        state.table(title, COLUMNS, measured)
        if ratios:
            state.table("times faster than stock QEMU", RATIO_COLUMNS, ratios)
        for note in notes:
            state.console.print(note, markup=False, highlight=False, soft_wrap=True)
    for path in written:
        state.console.print(f"chart: {path}", markup=False, highlight=False, soft_wrap=True)


@click.command("list")
@click.pass_context
def list_known(ctx: click.Context) -> None:
    """Name the workloads, the competitors and the links that are known."""
    from novacron_bench import _known
    from novacron_bench._network import PRESETS

    state = shell_state(ctx)
    rows = [("workload", one.name, one.title) for one in _known.workloads(state.manager)]
    rows += [("competitor", one.name, one.title) for one in _known.competitors(state.manager)]
    rows += [("link", name, text) for name, text in PRESETS.items()]
    value = [{"kind": kind, "name": name, "title": title} for kind, name, title in rows]
    state.show(value, "", ("kind", "name", "title"), rows)
