"""``novacron bench state``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attrs import asdict
from novacron import ConfigError, ShellState

if TYPE_CHECKING:
    from novacron_consensus_state._member import LogFactory


def _log(shell: ShellState, round_trip_ms: int) -> Callable[[str], LogFactory] | None:
    """Raft, if it is installed, for the figures of the level strong."""
    from novacron_consensus_state._figures import REGIONS
    from novacron_consensus_state._logs import log_factory, log_named

    try:
        engine = log_named(shell.manager, "raft")
    except ConfigError:
        return None
    names = [f"{region}0" for region in REGIONS]
    return lambda name: log_factory(engine, name, names, "bench", round_trip_ms)


@click.group("bench")
def bench() -> None:
    """Measure what NovaCron's parts cost on this host, and how it fares over a WAN."""


@bench.command("state")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--delay",
    "delays_ms",
    type=(click.IntRange(1), click.IntRange(1)),
    default=(80, 200),
    show_default=True,
    help="The least and the most one-way delay between two regions, ms.",
)
@click.option(
    "--loss", type=click.FloatRange(0, 50), default=0.5, show_default=True, help="Percent."
)
@click.option("--writes", type=click.IntRange(1), default=2_000, show_default=True)
@click.option("--minutes", type=click.IntRange(1), default=10, show_default=True, help="Cut off.")
@click.option("--keys", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--check", is_flag=True, help="End with 1 if a goal is missed.")
@click.pass_obj
def state(
    shell: ShellState,
    seed: int,
    delays_ms: tuple[int, int],
    loss: float,
    writes: int,
    minutes: int,
    keys: int,
    check: bool,
) -> None:
    """Measure shared state: 5 regions over a simulated wide area, and its cost on this host."""
    from novacron_consensus_state import _figures

    share = loss / 100
    log = _log(shell, 2 * delays_ms[1])
    found = [
        *_figures.propagation(seed, delays_ms, share, 1, writes),
        *_figures.propagation(seed, delays_ms, share, 3, writes // 2),
        *_figures.partition(seed, delays_ms, share, minutes, small_history=False),
        *_figures.partition(seed, delays_ms, share, minutes, small_history=True),
        *_figures.levels(seed, delays_ms, 40, log),
        *_figures.delta_share(keys),
        *_figures.memory(keys),
    ]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        found += _figures.costs(Path(folder), 2_000)
    if shell.json:
        shell.print_json([asdict(figure) for figure in found])
    else:
        told = {None: "", True: "met", False: "MISSED"}
        rows = [(one.what, one.value, one.goal, told[one.met]) for one in found]
        shell.table("state", ("what", "value", "goal", ""), rows)
    if check and any(one.met is False for one in found):
        sys.exit(1)
