"""``novacron bench gossip``."""

from __future__ import annotations

import time
from typing import Any, Final

import click
from novacron import ShellState

KNOWN_PERIODS: Final = 10.0
FALSE_DEAD: Final = 1e-5
JUDGED: Final = 1_000


@click.group("bench")
def bench() -> None:
    """Measure what NovaCron's parts cost on this host."""


def _sizes(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    try:
        sizes = [int(part) for part in value.split(",") if part.strip()]
    except ValueError:
        sizes = []
    if not sizes or not all(3 <= size <= 20_000 for size in sizes):
        raise click.BadParameter(f"{value!r}: sizes are 3 to 20000, as in 10,100,1000")
    return sizes


@bench.command("gossip")
@click.option(
    "--members", "sizes", default="10,100,1000", callback=_sizes, help="Sizes, as 10,1000."
)
@click.option("--failures", type=click.IntRange(1), default=20, help="Members killed, per size.")
@click.option(
    "--node-periods", type=click.IntRange(1), default=100_000, help="Rest before that, per size."
)
@click.option("--loss", type=click.FloatRange(0, 90), default=1.0, help="Datagrams lost, percent.")
@click.option("--seed", type=int, default=1)
@click.option("--processes", type=click.IntRange(3, 200), help="Real processes on loopback, too.")
@click.pass_context
def gossip(
    ctx: click.Context,
    sizes: list[int],
    failures: int,
    node_periods: int,
    loss: float,
    seed: int,
    processes: int | None,
) -> None:
    """Simulate clusters of members: how soon a failure is known, who is wronged, what it costs.

    A thousand members take about a minute and ten thousand several, with the core that nodes run.
    """
    from novacron_consensus_gossip import _crowd

    state = ctx.find_object(ShellState) or ShellState()
    rows: list[dict[str, Any]] = []
    for size in sizes:
        begun = time.monotonic()
        figures = _crowd.measure(
            size,
            seed=seed,
            failures=min(failures, max(1, size // 3)),
            rest_periods=max(10, node_periods // size),
            weather=_crowd.Weather(loss=loss / 100),
        )
        rows.append(_row(figures) | {"seconds": round(time.monotonic() - begun, 1)})
        if not state.json:
            click.echo(_line(rows[-1]))
    result: dict[str, Any] = {"loss_percent": loss, "seed": seed, "sizes": rows}
    if processes is not None:
        result["processes"] = _processes(processes, quiet=state.json)
    judged = [row for row in rows if row["members"] == JUDGED]
    if judged:
        result["targets"] = _targets(judged[0])
    if state.json:
        state.print_json(result)
    elif judged:
        click.echo("; ".join(f"{what}: {told}" for what, told in result["targets"].items()))


def _row(figures: Any) -> dict[str, Any]:
    known = [one for one in figures.known_periods if one is not None]
    known.sort()
    return {
        "members": figures.members,
        "failures": len(figures.known_periods),
        "unknown": len(figures.known_periods) - len(known),
        "known_p50": round(known[len(known) // 2], 2) if known else None,
        "known_max": round(known[-1], 2) if known else None,
        "node_periods": figures.node_periods,
        "false_dead": figures.false_dead,
        "false_held": figures.false_held,
        "messages": round(figures.messages, 2),
        "bytes": round(figures.bytes_sent),
        "messages_in_failure": round(figures.messages_in_failure, 2),
    }


def _line(row: dict[str, Any]) -> str:
    unknown = f", {row['unknown']} NOT KNOWN" if row["unknown"] else ""
    return (
        f"{row['members']:6} members: known everywhere after {row['known_p50']} periods (p50), "
        f"{row['known_max']} (worst of {row['failures']}){unknown}; {row['false_dead']} wronged in "
        f"{row['node_periods']:,} node-periods; per member and period {row['messages']} messages, "
        f"{row['bytes']} bytes at rest, {row['messages_in_failure']} messages in a failure; "
        f"{row['seconds']} s"
    )


def _targets(row: dict[str, Any]) -> dict[str, str]:
    soon = not row["unknown"] and row["known_max"] is not None and row["known_max"] < KNOWN_PERIODS
    rate = row["false_dead"] / row["node_periods"]
    enough = row["node_periods"] * FALSE_DEAD >= 1
    right = rate < FALSE_DEAD
    told = "met" if right and enough else "missed" if not right else "met so far; rest longer"
    return {
        f"known in under {KNOWN_PERIODS:.0f} periods": "met" if soon else "missed",
        "wronged less than once in 100,000 node-periods": told,
    }


def _processes(count: int, *, quiet: bool) -> dict[str, Any]:
    from attrs import asdict

    from novacron_consensus_gossip import _processes as real

    known = real.measure(count)
    if not quiet:
        click.echo(
            f"{count} processes on loopback: all knew all after {known.joined_s:.1f} s; a killed "
            f"one was dead for the first after {known.first_s:.2f} s, for all after "
            f"{known.last_s:.2f} s ({known.periods:.1f} periods); {known.wrong} wronged"
        )
    return asdict(known) | {"periods": known.periods}
