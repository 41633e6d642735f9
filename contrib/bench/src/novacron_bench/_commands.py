"""``novacron bench``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from novacron_bench._attestation_command import attestation
from novacron_bench._consensus_command import consensus
from novacron_bench._evacuate_command import evacuate
from novacron_bench._ladder_command import ladder, record
from novacron_bench._nemesis_command import nemesis
from novacron_bench._predict_command import predict
from novacron_bench._raw_command import raw
from novacron_bench._resume_command import resume
from novacron_bench._storage_command import storage
from novacron_bench._switch_command import switch
from novacron_bench._threats_command import threats
from novacron_bench._wan_command import list_known, wan

if TYPE_CHECKING:
    from novacron_bench._relay import RelayResult, WayResult

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
TARGET_BYTES_PER_S: Final = 600e6
TARGET_MEMORY_BYTES: Final = 300 << 20


class _Size(click.ParamType[int]):
    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)\s*(?:([kmg])i?)?b?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size; say 512MiB or 1GiB", param, ctx)
        return int(match[1]) * _UNITS[match[2] or ""]


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--set")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


@click.group()
def bench() -> None:
    """Measure what NovaCron's parts cost on this host, and how it fares over a WAN."""


bench.add_command(wan)
bench.add_command(consensus)
bench.add_command(nemesis)
bench.add_command(evacuate)
bench.add_command(raw)
bench.add_command(switch)
bench.add_command(resume)
bench.add_command(storage)
bench.add_command(record)
bench.add_command(ladder)
bench.add_command(list_known)
bench.add_command(predict)
bench.add_command(threats)
bench.add_command(attestation)


@bench.command()
@click.option("--memory", type=_Size(), default="1GiB", help="Memory of the guest.")
@click.option("--zero-percent", type=click.FloatRange(0, 100), default=21.0, help="Zero pages.")
@click.option(
    "--stream",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A stream that a real guest wrote, instead of a made one.",
)
@click.option("--runs", type=click.IntRange(1, 100), default=1, help="Take the median of so many.")
@click.option("--compression", default="zstd", help="The compression provider.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the compression."
)
@click.option("--transport", default="tcp", help="The transport provider.")
@click.option("--security", default="tls", help="The security provider.")
@click.option("--window", type=_Size(), default="16MiB", help="The link's window.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def relay(
    memory: int,
    zero_percent: float,
    stream: Path | None,
    runs: int,
    compression: str,
    settings: tuple[str, ...],
    transport: str,
    security: str,
    window: int,
    as_json: bool,
) -> None:
    """Send a guest's migration stream through both halves of the relay, and plainly."""
    from novacron_bench._relay import RelaySetup, run_relay

    result = run_relay(
        RelaySetup(
            memory_bytes=memory,
            zero_percent=zero_percent,
            stream=stream,
            runs=runs,
            compression=compression,
            settings=dict(map(_setting, settings)),
            transport=transport,
            security=security,
            window_bytes=window,
        )
    )
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2))
    else:
        _show(result)


def _show(result: RelayResult) -> None:
    from rich.console import Console
    from rich.table import Table

    image = result.image
    console = Console()
    console.print(
        f"{image.guest_bytes / 2**20:,.0f} MiB of guest memory, {image.zero_percent:.0f} % zero "
        f"pages, {image.stream_bytes / 2**20:,.0f} MiB of stream; {result.cores} cores, page "
        f"kernels in {result.pages}"
    )
    table = Table(show_edge=False)
    for column in ("", "plain forwarding", "relay"):
        table.add_column(column, justify="right" if column else "left")
    for (label, plain), (_, relayed) in zip(_rows(result.plain), _rows(result.relay), strict=True):
        table.add_row(label, plain, relayed)
    console.print(table)
    way = result.relay
    peak = max(way.source_peak_bytes, way.destination_peak_bytes)
    fast, small = way.guest_bytes_per_s >= TARGET_BYTES_PER_S, peak < TARGET_MEMORY_BYTES
    console.print(
        f"the relay keeps {result.ratio:.0%} of the plain rate; "
        f"target {TARGET_BYTES_PER_S / 1e6:.0f} MB/s: {_met(fast)}; "
        f"target below {TARGET_MEMORY_BYTES >> 20} MiB per node: {_met(small)}"
    )


def _rows(way: WayResult) -> list[tuple[str, str]]:
    return [
        ("guest memory", f"{way.guest_bytes_per_s / 1e9:.2f} GB/s"),
        ("stream", f"{way.stream_bytes_per_s / 1e9:.2f} GB/s"),
        ("time", f"{way.seconds:.2f} s"),
        ("on the wire", f"{way.wire_bytes / 2**20:,.0f} MiB"),
        ("CPU per GiB of guest", f"{way.cpu_s_per_gib:.2f} s"),
        ("CPU, source", f"{way.source_cpu_s:.2f} s"),
        ("CPU, destination", f"{way.destination_cpu_s:.2f} s"),
        ("CPU, feeding and checking", f"{way.bench_cpu_s:.2f} s"),
        ("CPU, others on this host", f"{way.others_cpu_s:.2f} s"),
        ("peak memory, source", f"{way.source_peak_bytes / 2**20:.0f} MiB"),
        ("peak memory, destination", f"{way.destination_peak_bytes / 2**20:.0f} MiB"),
    ]


def _met(held: bool) -> str:
    return "met" if held else "missed"
