"""``novacron bench switch``."""

from __future__ import annotations

import click

from novacron_bench._wan_command import ended_in_order, shell_state


@click.command("switch")
@click.option("--link", default="metro", show_default=True, metavar="RATE,RTT,LOSS")
@click.option(
    "--mode",
    "modes",
    multiple=True,
    metavar="TRANSPORT+COMPRESSION",
    help="What is taken in turn. Repeat it.  [default: tcp+zstd and amst+hde]",
)
@click.option("--switches", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.option("--every", type=click.FloatRange(0.05, 60), default=1.0, show_default=True,
              metavar="SECONDS")  # fmt: skip
@click.pass_context
def switch(
    ctx: click.Context, link: str, modes: tuple[str, ...], switches: int, every: float
) -> None:
    """Switch transport and compression of a running copy, again and again.

    The pause of a switch is the longest time without a batch at the destination in the half period
    after it, less the same in the half period before it, percentile by percentile. The exit
    code is 1 if a batch is lost, or comes out of order or changed.
    """
    from novacron import ConfigError, InternalError

    from novacron_bench._network import LinkFigures
    from novacron_bench._switch import switch as switch_all

    state = shell_state(ctx)
    pairs = []
    for text in modes or ("tcp+zstd", "amst+hde"):
        transport, plus, compression = text.partition("+")
        if not plus:
            raise ConfigError(f"{text!r:.60} is no mode", hint="write it like amst+hde")
        pairs.append((transport, compression))
    with ended_in_order():
        found = switch_all(LinkFigures.parse(link), pairs, switches=switches, every_s=every)
    said = found.to_json()
    if state.json:
        state.print_json(said)
    else:
        rows = [
            ("switches", found.switches),
            ("pause, median", f"{said['pause_median_ms']:.1f} ms"),
            ("pause, 99th percentile", f"{said['pause_p99_ms']:.1f} ms"),
            ("the call itself, median", f"{said['call_median_ms']:.2f} ms"),
            ("longest gap after a switch, median", f"{said['gap_median_ms']:.1f} ms"),
            ("longest gap before it, median", f"{said['calm_median_ms']:.1f} ms"),
            ("batches", found.batches),
            ("every batch arrived as it was", "yes" if found.whole else "no"),
            ("sent again", f"{found.resent_bytes / 1e6:.2f} MB"),
        ]
        state.table(f"{link}: {' and '.join(modes or ('tcp+zstd', 'amst+hde'))}", ("", ""), rows)
    if not found.whole:
        raise InternalError("a switch lost or changed a batch", hint="report it with this output")
