"""``novacron bench raw``."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import click

from novacron_bench._wan_command import ended_in_order, progress, shell_state

if TYPE_CHECKING:
    from novacron_bench._raw import Carried

LINKS: Final = ("metro", "country", "continent", "ocean")
COLUMNS: Final = (
    *("carrier", "Mbit/s", "of rate", "steady", "wire", "resent", "twice"),
    *("streams", "rtt ms"),
)


@click.command("raw")
@click.option("--link", "links", multiple=True, metavar="RATE,RTT,LOSS",
              help="As in `bench wan`.  [default: metro, country, continent, ocean]")  # fmt: skip
@click.option(
    "--carrier",
    "carriers",
    multiple=True,
    metavar="TRANSPORT[:CC]",
    help="A transport and its congestion control. Repeat it.  "
    "[default: amst:bbr, amst:cubic, tcp:cubic]",
)
@click.option("--seconds", type=click.FloatRange(2, 3600), default=15.0, show_default=True)
@click.option("--runs", type=click.IntRange(1, 100), default=1, show_default=True)
@click.option("--kill-every", type=click.FloatRange(0, 3600), default=0.0, metavar="SECONDS",
              help="Break one stream as often.")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the measurements there as JSON lines, too.")  # fmt: skip
@click.pass_context
def raw(
    ctx: click.Context,
    links: tuple[str, ...],
    carriers: tuple[str, ...],
    seconds: float,
    runs: int,
    kill_every: float,
    results: Path | None,
) -> None:
    """Measure what a link carries of bytes that nothing can shrink, encrypted.

    Goodput is what the other side has taken, from the first byte offered on; "steady" leaves the
    first quarter out. On a link of 1500-byte packets 96.5 % of the rate can be payload.
    """
    import json

    from novacron_bench._network import LinkFigures
    from novacron_bench._raw import Carrier, carry

    state = shell_state(ctx)
    figures = [LinkFigures.parse(text) for text in links or LINKS]
    chosen = [Carrier.parse(t) for t in carriers or ("amst:bbr", "amst:cubic", "tcp:cubic")]
    found: list[Carried] = []
    total = len(figures) * len(chosen) * runs
    with ended_in_order(), progress(state, total) as step:
        step("measuring")
        for one in carry(figures, chosen, seconds=seconds, runs=runs, kill_every_s=kill_every):
            found.append(one)
            step(f"{one.link} {one.carrier}")
            if results is not None:
                with results.open("a") as file:
                    file.write(json.dumps(one.to_json()) + "\n")
    if state.json:
        state.print_json([one.to_json() for one in found])
        return
    for link in dict.fromkeys(one.link for one in found):
        alike = [one for one in found if one.link == link]
        names = dict.fromkeys(one.carrier for one in alike)
        rows = [_row([one for one in alike if one.carrier == name]) for name in names]
        state.table(link, COLUMNS, rows)
    for one in found:
        if one.reason:
            state.console.print(f"{one.link} {one.carrier}: {one.reason}", markup=False)


def _row(runs: list[Carried]) -> tuple[str, ...]:
    good = [one for one in runs if not one.reason]
    if not good:
        return (runs[0].carrier, "failed", *[""] * (len(COLUMNS) - 2))
    one = sorted(good, key=lambda run: run.goodput_bit_per_s)[len(good) // 2]
    return (
        one.carrier,
        f"{median(run.goodput_bit_per_s for run in good) / 1e6:.1f}",
        "" if one.share is None else f"{one.share:.1%}",
        "" if one.steady_share is None else f"{one.steady_share:.1%}",
        f"+{one.overhead:.1%}",
        f"{one.resent:.2%}",
        f"{one.frames_resent_bytes / max(one.payload_bytes, 1):.2%}",
        str(one.streams) + (f", {one.killed} killed" if one.killed else ""),
        f"{one.rtt_ms:.0f}/{one.floor_ms:.0f}",
    )
