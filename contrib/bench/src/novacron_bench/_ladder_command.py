"""``novacron bench record`` and ``novacron bench ladder``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from novacron_bench._wan_command import ended_in_order, progress, shell_state

if TYPE_CHECKING:
    from novacron_bench._ladder import Rungs

COLUMNS: Final = ("trace", "MB in", "MB out", "ratio", "GB/s", "CPU s/GiB", "decode", "peak MiB")
RUNG_COLUMNS: Final = ("rung", "pages", "of pages", "MB in", "MB out", "CPU s")


@click.command("record")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--workload", "workloads", multiple=True, metavar="NAME[:MB/S]",
              help="Repeat it.  [default: the five guests]")  # fmt: skip
@click.option("--memory", type=click.IntRange(64, 1 << 20), default=1024, show_default=True,
              metavar="MIB")  # fmt: skip
@click.option("--rate", type=click.FloatRange(1, 10_000), default=100.0, show_default=True,
              metavar="MB/S", help="At which the guest leaves; it writes meanwhile.")  # fmt: skip
@click.option("--away", type=click.FloatRange(0, 86400), default=30.0, show_default=True,
              help="Seconds between the cold trace and the warm one.")  # fmt: skip
@click.option("--sibling/--no-sibling", default=True, show_default=True,
              help="Record another guest of the same image, too.")  # fmt: skip
@click.pass_context
def record(
    ctx: click.Context,
    out: Path,
    workloads: tuple[str, ...],
    memory: int,
    rate: float,
    away: float,
    sibling: bool,
) -> None:
    """Record what live guests send while they leave, to be replayed by `bench ladder`.

    Needs neither root nor a link. A trace has about the size of the guest's memory, compressed.
    """
    from novacron_bench import _known
    from novacron_bench._record import record as record_one

    state = shell_state(ctx)
    known = _known.workloads(state.manager)
    names = workloads or ("idle", "files", "kv", "compile", "thrash")
    chosen = [_known.pick_workload(text, known) for text in names]
    written: list[Path] = []
    with ended_in_order(), progress(state, len(chosen)) as step:
        for workload in chosen:
            step(workload.name)
            written += record_one(
                out,
                workload,
                known,
                memory_mib=memory,
                rate_bytes_per_s=int(rate * 1e6),
                away_s=away,
                sibling=sibling,
            )
    rows = [(path.name, f"{path.stat().st_size / 1e6:.0f} MB") for path in written]
    state.show([str(path) for path in written], str(out), ("trace", "size"), rows)


@click.command("ladder")
@click.argument("traces", nargs=-1, required=True,
                type=click.Path(path_type=Path, exists=True, dir_okay=False))  # fmt: skip
@click.option("--compression", default="hde", show_default=True, help="The provider.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="A setting of the compression.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(0.1, 100_000), default=25.0, show_default=True,
              metavar="MB/S", help="Of the link that the encoder is to believe in.")  # fmt: skip
@click.pass_context
def ladder(
    ctx: click.Context,
    traces: tuple[Path, ...],
    compression: str,
    settings: tuple[str, ...],
    rate: float,
) -> None:
    """Replay recorded traces (NAME.cold.trace) through a codec: bytes and time of every rung.

    NAME.warm.trace and NAME.sibling.trace beside a cold trace are replayed as the return of the
    machine, and as a move to where a sibling is. Every batch that comes out is compared.
    """
    from novacron import ConfigError

    from novacron_bench._ladder import replay

    state = shell_state(ctx)
    for path in traces:
        if not path.name.endswith(".cold.trace"):
            raise ConfigError(
                f"{path.name} is no cold trace",
                hint="name the NAME.cold.trace; those beside it are found",
            )
    found: list[Rungs] = []
    with progress(state, len(traces)) as step:
        for path in traces:
            step(path.name)
            found += replay(
                state.manager,
                [path],
                compression,
                dict(map(_setting, settings)),
                rate_bytes_per_s=rate * 1e6,
            )
    if state.json:
        state.print_json([one.to_json() for one in found])
        return
    state.table(f"{compression}, a link of {rate:g} MB/s", COLUMNS, map(_row, found))
    for one in found:
        if one.rungs:
            state.table(one.trace, RUNG_COLUMNS, _rung_rows(one))


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--set")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _row(one: Rungs) -> tuple[str, ...]:
    gib = one.raw_bytes / (1 << 30)
    return (
        one.trace,
        f"{one.raw_bytes / 1e6:.0f}",
        f"{(one.wire_bytes + one.have_bytes) / 1e6:.1f}",
        f"{one.ratio:.2f}",
        f"{one.raw_bytes / max(one.encode_s, 1e-9) / 1e9:.2f}",
        f"{one.encode_s / gib:.2f}",
        f"{one.decode_s / gib:.2f}",
        f"{one.peak_bytes >> 20}",
    )


def _rung_rows(one: Rungs) -> list[tuple[str, ...]]:
    pages = sum(values.get("pages", 0) for values in one.rungs.values()) or 1
    return [
        (
            name,
            f"{values.get('pages', 0):.0f}",
            f"{values.get('pages', 0) / pages:.1%}",
            f"{values.get('raw_bytes', 0) / 1e6:.1f}",
            f"{values.get('wire_bytes', 0) / 1e6:.2f}",
            f"{values.get('seconds', 0):.2f}",
        )
        for name, values in one.rungs.items()
    ]
