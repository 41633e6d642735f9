"""``novacron consensus explain``."""

from __future__ import annotations

from typing import cast

import click
from attrs import asdict
from novacron import ShellState

from novacron_consensus_acp._engines import engines
from novacron_consensus_acp._policy import (
    ROUND_TRIP_MS,
    Choice,
    Declared,
    Measured,
    Trust,
    choose,
)


@click.group()
def consensus() -> None:
    """What members agree by, and why."""


@consensus.command()
@click.option("--trust", type=click.Choice(["own", "mixed"]), default="own", show_default=True,
              help="Whose members they are: of one owner, or of several who may lie.")  # fmt: skip
@click.option("--members", type=click.IntRange(1, 64), default=3, show_default=True,
              help="How many.")  # fmt: skip
@click.option("--round-trip", type=click.FloatRange(min=0), metavar="MS",
              help="To the farthest member of a quorum.  [unknown]")  # fmt: skip
@click.option("--loss", type=click.FloatRange(0, 100), default=0.0, show_default=True,
              metavar="PERCENT", help="Questions without an answer.")  # fmt: skip
@click.option("--liars", type=click.IntRange(0), default=0, show_default=True,
              help="Members proved to have said two things.")  # fmt: skip
@click.option("--engine", default="raft", show_default=True, help="What it runs on now.")
@click.option("--place", type=click.Choice(list(ROUND_TRIP_MS)), default="site",
              show_default=True, help="How far members are now held to be.")  # fmt: skip
@click.pass_obj
def explain(
    state: ShellState,
    trust: str,
    members: int,
    round_trip: float | None,
    loss: float,
    liars: int,
    engine: str,
    place: str,
) -> None:
    """Say which protocol the adaptive log would choose under these conditions, and why.

    It asks no node: conditions are what you give.
    """
    offered = engines(state.manager)
    measured = Measured(
        members=members, round_trip_ms=round_trip, loss=loss / 100, equivocations=liars
    )
    declared = Declared(trust=cast(Trust, trust))
    present = Choice(engine=engine, place=place)
    right = choose(declared, measured, present, offered)
    if state.json:
        row = {"offered": sorted(offered), "switch": not right.same_as(present), **asdict(right)}
        state.print_json(row)
        return
    console = state.console
    console.print(f"[bold]{right.engine}[/bold] ({right.place}), {right.soft_state} for soft state")
    for reason in right.reasons:
        console.print(f"  {reason}")
    if not right.same_as(present):
        console.print(f"A switch from {present.engine} ({present.place}) would be wished for.")
