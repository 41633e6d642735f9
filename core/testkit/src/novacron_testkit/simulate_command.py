"""``novacron simulate``. What it does is imported when it is run: this module is loaded by all of
``novacron``'s commands."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from novacron import ConfigError, ShellState

if TYPE_CHECKING:
    from rich.progress import Progress

    from novacron_testkit.mutants import Mutant
    from novacron_testkit.seeds import Tally
    from novacron_testkit.shrinking import Shrunk
    from novacron_testkit.simulation import Simulation


class _Faults(click.ParamType[tuple[str, ...]]):
    name = "faults"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = () if value == "none" else tuple(str(value).split(","))
        for name in names:
            if not re.fullmatch(r"[\w-]+:\d+", name):
                self.fail(f"{name!r} is no fault; write crash:0,loss:3 or none", param, ctx)
        return names


@click.command()
@click.argument("protocol", required=False)
@click.option("--seeds", type=click.IntRange(1), default=1000, show_default=True,
              help="How many seeds to run.")  # fmt: skip
@click.option("--first-seed", type=click.IntRange(0), default=0, show_default=True,
              help="The first of them.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0.1), help="Begin no seed after that time.")
@click.option("--jobs", type=click.IntRange(1), help="Processes.  [default: one per core]")
@click.option("--mutants", is_flag=True, help="Look for the bugs that were planted on purpose.")
@click.option("--mutant", "mutant_name", metavar="NAME",
              help="Run the core with this one; the beginning of its name will do.")  # fmt: skip
@click.option("--shrink/--no-shrink", default=True, show_default=True,
              help="Make a failure small.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="Replay this one, and show its trace.")
@click.option("--only", type=_Faults(), metavar="KIND:N,…",
              help="Replay: these faults alone; the numbers count each kind.")  # fmt: skip
@click.option("--faults-ms", type=click.IntRange(0), help="Replay: no faults after that time.")
@click.option("--nodes", type=click.IntRange(1), help="Replay: so many nodes at most.")
@click.option("--trace", "trace_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Write a failure's whole trace there.")  # fmt: skip
@click.pass_context
def simulate(
    ctx: click.Context,
    protocol: str | None,
    seeds: int,
    first_seed: int,
    seconds: float | None,
    jobs: int | None,
    mutants: bool,
    mutant_name: str | None,
    shrink: bool,
    seed: int | None,
    only: tuple[str, ...] | None,
    faults_ms: int | None,
    nodes: int | None,
    trace_file: Path | None,
) -> None:
    """Simulate PROTOCOL with many seeds; without a protocol, list what can be simulated.

    Each seed is one run, always the same. The first that breaks a law is shown with its seed, made
    small, and can be replayed. Ends with 1 if a law was broken or a mutant was not found.
    """
    from novacron_testkit import simulation
    from novacron_testkit.shrinking import Settings

    state = ctx.find_object(ShellState) or ShellState()
    if protocol is None:
        known = simulation.simulations(state.manager)
        state.show(known, "simulations", ("name", "where"), known.items())
        return
    target = simulation.pick(state.manager, protocol)
    chosen = simulation.load(target)
    workers = jobs or len(os.sched_getaffinity(0))
    if mutants:
        sys.exit(_mutants(state, chosen, target, workers))
    if seed is not None:
        settings = Settings(seed=seed, only=only, faults_ms=faults_ms, nodes=nodes)
        mutant = _mutant(chosen, mutant_name) if mutant_name else None
        sys.exit(_replay(state, chosen, settings, mutant, trace_file))
    if (only, faults_ms, nodes) != (None, None, None):
        raise ConfigError(
            "--only, --faults-ms and --nodes replay one seed", hint="say which: --seed N"
        )
    if mutant_name:
        mutant = _mutant(chosen, mutant_name)
        sys.exit(_run_mutant(state, chosen, mutant, seeds, first_seed, shrink, trace_file))
    tally = _run(state, chosen, target, first_seed, seeds, workers, seconds)
    failure = None
    if tally.failed is not None:
        settings = Settings(seed=tally.failed[0])
        failure = _shrunk(chosen, settings, None, shrink)
    _say(state, chosen, tally, failure, None, trace_file)
    sys.exit(tally.failed is not None)


def _mutant(chosen: Simulation, name: str) -> Mutant:
    fitting = [one for one in chosen.mutants if one.name.startswith(name)]
    exact = [one for one in fitting if one.name == name]
    if len(exact or fitting) != 1:
        names = ", ".join(repr(one.name) for one in fitting or chosen.mutants) or "it has none"
        raise ConfigError(
            f"{name!r:.60} names {len(fitting)} mutants of {chosen.name}, not one",
            hint=f"take one of: {names}",
        )
    return (exact or fitting)[0]


def _scenario(chosen: Simulation, mutant: Mutant | None) -> Any:
    core = None if mutant is None else mutant.load()
    return lambda seed, trace: chosen.run(seed, trace, core)


def _shrunk(chosen: Simulation, settings: Any, mutant: Mutant | None, small: bool) -> Shrunk | None:
    from novacron_testkit.shrinking import shrink

    return shrink(_scenario(chosen, mutant), settings, seconds=20.0 if small else 0.0)


@contextmanager
def _progress(state: ShellState, title: str, total: int) -> Iterator[tuple[Progress, Any]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    quiet = state.json or not state.err.is_terminal
    with Progress(*columns, console=state.err, disable=quiet, transient=True) as progress:
        yield progress, progress.add_task(title, total=total, note="")


def _run(
    state: ShellState,
    chosen: Simulation,
    target: str,
    first: int,
    seeds: int,
    jobs: int,
    seconds: float | None,
) -> Tally:
    from novacron_testkit.seeds import run_seeds

    with _progress(state, chosen.name, seeds) as (progress, task):

        def report(tally: Tally) -> None:
            note = f"{tally.runs_per_s:,.0f} seeds/s, {tally.hours_per_s:,.2f} h/s"
            progress.update(task, completed=tally.runs, note=note)

        return run_seeds(
            target, first=first, seeds=seeds, jobs=jobs, seconds=seconds, report=report
        )


def _run_mutant(
    state: ShellState,
    chosen: Simulation,
    mutant: Mutant,
    seeds: int,
    first: int,
    small: bool,
    trace_file: Path | None,
) -> int:
    from novacron_testkit.mutants import find_one
    from novacron_testkit.shrinking import Settings

    found = find_one(mutant, chosen.scenario, range(first, first + seeds))
    if found.seed is None:
        state.show(
            {"protocol": chosen.name, "mutant": mutant.name, "seeds": seeds, "failure": None},
            "",
            ("protocol", "mutant", "not found within"),
            [(chosen.name, mutant.name, f"{seeds} seeds")],
        )
        return 0
    failure = _shrunk(chosen, Settings(seed=found.seed), mutant, small)
    _say(state, chosen, None, failure, mutant, trace_file)
    return 1


def _replay(
    state: ShellState,
    chosen: Simulation,
    settings: Any,
    mutant: Mutant | None,
    trace_file: Path | None,
) -> int:
    failure = _shrunk(chosen, settings, mutant, small=False)
    if failure is None:
        text = f"{chosen.name}: seed {settings.seed} breaks no law"
        if state.json:
            state.print_json({"protocol": chosen.name, "seed": settings.seed, "failure": None})
        else:
            click.echo(text)
        return 0
    _say(state, chosen, None, failure, mutant, trace_file)
    return 1


def _mutants(state: ShellState, chosen: Simulation, target: str, jobs: int) -> int:
    from novacron_testkit.seeds import Found, run_mutants

    with _progress(state, f"{chosen.name}: mutants", len(chosen.mutants)) as (progress, task):

        def report(found: Found) -> None:
            progress.update(task, advance=1, note=found.name[:40])

        found = run_mutants(target, seeds=chosen.mutant_seeds, jobs=jobs, report=report)
    missed = [one for one in found if one.seed is None]
    value = {
        "protocol": chosen.name,
        "seeds": chosen.mutant_seeds,
        "mutants": [{"name": one.name, "seed": one.seed, "why": one.why} for one in found],
        "missed": [one.name for one in missed],
    }
    rows = [
        (one.name, "NOT FOUND" if one.seed is None else one.seed, one.why[:120]) for one in found
    ]
    state.show(value, f"bugs planted in {chosen.name}", ("mutant", "seed", "because"), rows)
    if not state.json:
        click.echo(
            f"{len(found) - len(missed)} of {len(found)} found within {chosen.mutant_seeds} seeds"
        )
    return int(bool(missed))


def _say(
    state: ShellState,
    chosen: Simulation,
    tally: Tally | None,
    failure: Shrunk | None,
    mutant: Mutant | None,
    trace_file: Path | None,
) -> None:
    flags = failure.settings.flags() if failure else []
    extra = ["--mutant", mutant.name] if mutant else []
    again = shlex.join(["novacron", "simulate", chosen.name, *extra, *flags])
    if failure is not None and trace_file is not None:
        trace_file.write_text("\n".join(failure.story.trace) + "\n", encoding="utf-8")
    if state.json:
        state.print_json(_json(chosen, tally, failure, again))
        return
    if tally is not None:
        outcome = "nothing found" if tally.failed is None else f"seed {tally.failed[0]} fails"
        click.echo(
            f"{chosen.name}: {tally.runs:,} seeds, {outcome}; {tally.seconds:,.1f} s, "
            f"{tally.runs_per_s:,.1f} seeds/s, {tally.hours:,.2f} simulated hours, "
            f"{tally.hours_per_s:,.3f} simulated hours/s"
        )
        if tally.failed is not None and failure is None:
            click.echo(
                f"seed={tally.failed[0]} {tally.failed[1]}\nrun again it does NOT fail: the "
                "scenario depends on more than its seed"
            )
    if failure is None:
        return
    click.echo(failure.story.text(tail=80))
    if failure.runs > 1:
        click.echo(
            f"shrunk from {failure.of_faults} faults to {failure.faults} in {failure.runs} runs"
        )
    click.echo(f"replay: {again}")


def _json(
    chosen: Simulation, tally: Tally | None, failure: Shrunk | None, again: str
) -> dict[str, Any]:
    value: dict[str, Any] = {"protocol": chosen.name}
    if tally is not None:
        value |= {
            "seeds": tally.runs,
            "seconds": tally.seconds,
            "seeds_per_s": tally.runs_per_s,
            "simulated_hours": tally.hours,
            "simulated_hours_per_s": tally.hours_per_s,
            "events": tally.events,
            "failed": None if tally.failed is None else list(tally.failed),
        }
    value["failure"] = None
    if failure is not None:
        story = failure.story
        value["failure"] = {
            "seed": story.seed,
            "commit": story.commit,
            "error": story.error,
            "doubt": story.doubt,
            "faults": failure.faults,
            "of_faults": failure.of_faults,
            "replay": again,
            "trace": list(story.trace),
        }
    return value
