"""``novacron bench evacuate``: many machines leave, by three ways."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from novacron_bench._evacuate_real import RealSetup

OURS: Final = "evacuate"


@click.command()
@click.option("--simulated", is_flag=True, help="In the simulated site, over many seeds.")
@click.option("--real", is_flag=True, help="Three nodes in namespaces (needs root).")
@click.option("--seeds", type=click.IntRange(1, 10_000), default=30, help="Simulated sites.")
@click.option("--machines", type=click.IntRange(1, 500), help="40 simulated, 6 real.")
@click.option("--links", default="80mbit,20ms 40mbit,20ms", help="Of the real run, two of them.")
@click.option("--fill", default=24, type=click.IntRange(1, 2000), help="MiB in each real machine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evacuate(
    simulated: bool,
    real: bool,
    seeds: int,
    machines: int | None,
    links: str,
    fill: int,
    as_json: bool,
) -> None:
    """Empty a node of its machines one by one, all at once, and by plan, beside the lower bound."""
    if not simulated and not real:
        raise click.UsageError("say --simulated, --real, or both")
    found: dict[str, Any] = {}
    if simulated:
        found["simulated"] = _simulated(seeds, machines or 40, quiet=as_json)
    if real:
        from novacron_bench._evacuate_real import RealSetup

        first, second = _two(links)
        setup = RealSetup(links=(first, second), machines=machines or 6, fill_mib=fill)
        found["real"] = _real(setup, quiet=as_json)
    if as_json:
        click.echo(json.dumps(found, indent=2))


def _two(links: str) -> tuple[str, str]:
    parts = links.split()
    if len(parts) != 2:
        raise click.BadParameter("name two links, with a space between", param_hint="--links")
    return parts[0], parts[1]


# Simulated.


def _settings(machines: int) -> dict[str, Any]:
    """Sites of several kinds: what there is to win differs between them."""
    from novacron_placement_itp import Setting

    return {
        "many machines of some 0.5 GB, 1 Gbit/s": Setting(machines=machines),
        "the same, known and steady": Setting(machines=machines, error=0.0, wobble=0.0),
        "the same, memory nearly too little": Setting(machines=machines, memory_spare=1.1),
        "machines of some 4 GB": Setting(machines=machines, wire_median_bytes=4e9),
        "links that change a lot": Setting(machines=machines, wobble=0.3, error=0.3),
    }


def _simulated(seeds: int, machines: int, *, quiet: bool) -> dict[str, Any]:
    from novacron_placement_itp import WAYS, bound_of_truth, draw

    found: dict[str, Any] = {}
    for title, setting in _settings(machines).items():
        rows: list[dict[str, float]] = []
        for seed in range(seeds):
            instance = draw(seed, setting)
            bound = bound_of_truth(instance).seconds
            row = {"bound": bound}
            for way, run in WAYS.items():
                ended = run(instance)
                row[way] = ended.seconds
                row[f"{way} bytes"] = ended.wire_bytes
                row[f"{way} stayed"] = machines - len(ended.moved)
            rows.append(row)
        found[title] = _compared(rows, [*WAYS])
        if not quiet:
            _show(f"{title} ({seeds} seeds, {machines} machines, two links)", found[title])
    return found


def _compared(rows: Sequence[Mapping[str, float]], ways: Sequence[str]) -> dict[str, Any]:
    compared: dict[str, Any] = {}
    for way in ways:
        over_bound = [row[way] / row["bound"] for row in rows]
        longer = [row[way] / row[OURS] for row in rows]
        compared[way] = {
            "seconds": median(row[way] for row in rows),
            "over_bound": [median(over_bound), max(over_bound)],
            "of_ours": [median(longer), min(longer)],
            "gigabytes": median(row[f"{way} bytes"] for row in rows) / 1e9,
            "stayed": max(row[f"{way} stayed"] for row in rows),
        }
    compared["bound_seconds"] = median(row["bound"] for row in rows)
    return compared


def _show(title: str, found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("")
    for column in ("seconds", "of the bound", "of ours", "GB sent"):
        table.add_column(column, justify="right")
    for way, one in found.items():
        if not isinstance(one, dict):
            continue
        note = f" ({one['stayed']:.0f} stayed in one)" if one["stayed"] else ""
        table.add_row(
            way + note,
            f"{one['seconds']:,.0f}",
            "{:.3f}, {:.3f}".format(*one["over_bound"]),
            "" if way == OURS else "{:.2f}, {:.2f}".format(*one["of_ours"]),
            f"{one['gigabytes']:,.1f}",
        )
    table.add_row("lower bound", f"{found['bound_seconds']:,.0f}", "", "", "")
    console = Console()
    console.print(table)
    console.print("of the bound: median and worst; of ours: median and least; else medians\n")


# Real.


def _real(setup: RealSetup, *, quiet: bool) -> dict[str, Any]:
    from novacron_bench._evacuate_real import run_real

    found = run_real(setup, tell=lambda text: None if quiet else click.echo(text))
    if not quiet:
        _show_real(setup, found)
    return found


def _show_real(setup: RealSetup, found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = f"{setup.machines} machines of {setup.fill_mib} MiB, links {' and '.join(setup.links)}"
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("")
    for column in ("seconds", "of the bound", "of ours", "MB over the links", "to b, to c"):
        table.add_column(column, justify="right")
    ours = found[OURS]["seconds"]
    for way, one in found.items():
        if not isinstance(one, dict):
            continue
        table.add_row(
            way,
            f"{one['seconds']:.1f}",
            f"{one['seconds'] / found['bound_seconds']:.2f}",
            "" if way == OURS else f"{one['seconds'] / ours:.2f}",
            f"{one['wire_bytes'] / 1e6:.1f}",
            "{}, {}".format(*one["moved"]),
        )
    table.add_row("lower bound", f"{found['bound_seconds']:.1f}", "", "", "", "")
    console.print(table)
    console.print(
        "The bound: the fewest bytes that any of the three sent, over both links at their full "
        f"rate; load average {found['load']:.1f} on {found['cores']} cores."
    )
