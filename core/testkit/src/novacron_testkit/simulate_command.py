"""``novacron simulate``. What it does is imported when it is run."""

from __future__ import annotations

import sys

import click
from novacron import ShellState


@click.command()
@click.argument("protocol", required=False)
@click.option("--seeds", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(0), help="Run this one only, and show its trace.")
@click.option("--mutants", is_flag=True, help="Find the bugs that were planted on purpose.")
@click.pass_context
def simulate(
    ctx: click.Context, protocol: str | None, seeds: int, seed: int | None, mutants: bool
) -> None:
    """Simulate PROTOCOL with many seeds, and show the first failure."""
    from novacron_testkit import simulation
    from novacron_testkit.mutants import find
    from novacron_testkit.simulator import explore

    state = ctx.find_object(ShellState) or ShellState()
    if protocol is None:
        known = simulation.simulations(state.manager)
        state.show(known, "simulations", ("name", "where"), known.items())
        return
    chosen = simulation.load(simulation.pick(state.manager, protocol))
    if mutants:
        found = find(chosen.mutants, chosen.scenario, chosen.mutant_seeds)
        rows = [(one.mutant.name, one.seed, one.why) for one in found]
        state.show(rows, "mutants", ("mutant", "found by seed", "because"), rows)
        sys.exit(any(one.seed is None for one in found))
    try:
        first = 0 if seed is None else seed
        explore(chosen.scenario, seeds if seed is None else 1, first_seed=first)
    except AssertionError as failure:
        click.echo(str(failure))
        sys.exit(1)
    click.echo(f"{chosen.name}: {seeds if seed is None else 1} seeds, nothing found")
