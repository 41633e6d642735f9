"""``novacron bench resume``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from novacron_bench._wan_command import ended_in_order, progress, shell_state

if TYPE_CHECKING:
    from novacron_bench._resume import Survived

COLUMNS: Final = ("fault", "outcome", "s", "pause ms", "MB there", "twice", "anew", "whole")


@click.command("resume")
@click.option("--link", default="country", show_default=True, metavar="RATE,RTT,LOSS")
@click.option("--fault", "faults", multiple=True, help="Repeat it.  [default: all]")
@click.option("--outage", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True,
              metavar="SECONDS", help="How long the outages last.")  # fmt: skip
@click.option("--workload", default="writer:2", show_default=True, metavar="NAME[:MB/S]")
@click.option("--memory", type=click.IntRange(64, 1 << 20), default=1024, show_default=True,
              metavar="MIB")  # fmt: skip
@click.option("--transport", default="amst", show_default=True)
@click.option("--compression", default="hde", show_default=True)
@click.option("--cutoff", type=click.FloatRange(1, 86400), default=600.0, show_default=True,
              help="Seconds that a move may take.")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the outcomes there as JSON lines, too.")  # fmt: skip
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Keep the logs of every run there.")  # fmt: skip
@click.pass_context
def resume(
    ctx: click.Context,
    link: str,
    faults: tuple[str, ...],
    outage: float,
    workload: str,
    memory: int,
    transport: str,
    compression: str,
    cutoff: float,
    results: Path | None,
    keep: Path | None,
) -> None:
    """Break the link, the streams or a node in the middle of a move, and see what becomes of it.

    A guest that is lost makes the exit code 1: it must move, or go on where it was with a reason.
    """
    from novacron import ConfigError, InternalError

    from novacron_bench import _known
    from novacron_bench._guest import build_guest
    from novacron_bench._network import LinkFigures
    from novacron_bench._resume import FAULTS, survive

    state = shell_state(ctx)
    known = {fault.name: fault for fault in FAULTS}
    for name in faults:
        if name not in known:
            raise ConfigError(f"there is no fault {name!r:.40}", hint=f"take {', '.join(known)}")
    chosen = [known[name] for name in faults] or list(FAULTS)
    workloads = _known.workloads(state.manager)
    found: list[Survived] = []
    with (
        tempfile.TemporaryDirectory(prefix="nvb-") as folder,
        ended_in_order(),
        progress(state, len(chosen)) as step,
    ):
        guest = build_guest(
            Path(folder),
            _known.pick_workload(workload, workloads),
            workloads,
            memory_bytes=memory << 20,
        )
        step("measuring")
        for one in survive(
            LinkFigures.parse(link),
            guest,
            chosen,
            providers={"transport": transport, "compression": compression, "security": "tls"},
            outage_s=outage,
            cutoff_s=cutoff,
            keep=keep,
        ):
            found.append(one)
            step(one.fault)
            if results is not None:
                with results.open("a") as file:
                    file.write(json.dumps(one.to_json(), default=str) + "\n")
    if state.json:
        state.print_json([one.to_json() for one in found])
    else:
        state.table(f"{link}, {workload}, {transport} and {compression}", COLUMNS, map(_row, found))
        for one in found:
            if one.reason:
                state.console.print(f"{one.fault}: {one.reason}", markup=False)
    lost = [one.fault for one in found if one.outcome in ("lost", "failed")]
    if lost:
        raise InternalError(
            f"the guest did not survive: {', '.join(lost)}",
            hint="run it again with --keep DIR, and report it with the logs in there",
        )


def _row(one: Survived) -> tuple[str, ...]:
    known = {True: "yes", False: "no", None: ""}
    return (
        one.fault,
        one.outcome + ("" if one.struck or one.fault == "none" else " (before the fault)"),
        f"{one.seconds:.1f}",
        "" if one.pause_s is None else f"{one.pause_s * 1e3:.0f}",
        f"{one.sent_bytes / 1e6:.0f}",
        f"{one.twice_share:.2%}",
        known[one.anew],
        known[one.intact],
    )
