"""``novacron bench predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from novacron_bench._wan_command import shell_state

if TYPE_CHECKING:
    from novacron_bench._predict import Line


@click.command("predict")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="The folder of measured links, with the folders mahimahi_cellular and so on.",
)
@click.option("--refit", "refitted", is_flag=True,
              help="Instead, print the constants that all of the data gives.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def predict(ctx: click.Context, data: Path, refitted: bool, as_json: bool) -> None:
    """Judge the forecasts of links on measured ones, cross-validated, beside plain baselines."""
    import attrs

    from novacron_bench._predict import predict as judge
    from novacron_bench._predict import refit

    state = shell_state(ctx)
    if refitted:
        fits = refit(data)
        state.print_json({str(steps): attrs.asdict(one) for steps, one in fits.items()})
        return
    report = judge(data)
    if as_json or state.json:
        state.print_json(report.to_json())
        return
    for name, steps in dict.fromkeys((line.set, line.steps) for line in report.lines):
        lines = [line for line in report.lines if (line.set, line.steps) == (name, steps)]
        title = f"{name}, {steps} step{'s' if steps > 1 else ''} ahead" if steps else name
        columns = ("method", "accuracy", "MAPE", "NRMSE", "90 % covers", "width")
        state.table(title, columns, [_row(line) for line in lines])
    state.console.print(
        f"{report.state_bytes} bytes of state per link, {report.update_us:.0f} µs of CPU per "
        f"update with its forecasts ({report.samples} samples)",
        markup=False,
        highlight=False,
    )


def _row(line: Line) -> tuple[str, ...]:
    return (
        line.method,
        f"{line.accuracy:.3f}",
        f"{line.mape:.3f}",
        f"{line.nrmse:.3f}",
        "" if line.covered is None else f"{line.covered:.1%}",
        "" if line.width is None else f"{line.width:.2f}",
    )
