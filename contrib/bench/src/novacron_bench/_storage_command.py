"""``novacron bench storage``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click

from novacron_bench._wan_command import ended_in_order, progress, shell_state

COLUMNS: Final = ("move", "s", "pause ms", "state MiB", "wire MiB", "BLAKE3 of memory and disk")
_STEPS: Final = 5


@click.command("storage")
@click.option("--link", default="1gbit,10ms", show_default=True, metavar="RATE,RTT,LOSS")
@click.option("--size", type=click.IntRange(64, 1 << 22), default=20 << 10, show_default=True,
              metavar="MIB", help="The disk, as the guest sees it.")  # fmt: skip
@click.option("--content", type=click.IntRange(1, 1 << 20), default=2 << 10, show_default=True,
              metavar="MIB", help="Of it is not zero.")  # fmt: skip
@click.option("--memory", type=click.IntRange(128, 1 << 20), default=256, show_default=True,
              metavar="MIB")  # fmt: skip
@click.option("--transport", default="amst", show_default=True)
@click.option("--compression", default="hde", show_default=True)
@click.option("--cutoff", type=click.FloatRange(1, 86400), default=900.0, show_default=True,
              help="Seconds that a move may take.")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path, dir_okay=False),
              help="Write what came of it there as a JSON line, too.")  # fmt: skip
@click.pass_context
def storage(
    ctx: click.Context,
    link: str,
    size: int,
    content: int,
    memory: int,
    transport: str,
    compression: str,
    cutoff: float,
    results: Path | None,
) -> None:
    """Move a running guest with a sparse qcow2 disk there and back, and compare what arrived.

    A guest or a disk that is not whole makes the exit code 1.
    """
    from novacron import InternalError

    from novacron_bench._storage import StorageSetup, run_storage

    state = shell_state(ctx)
    setup = StorageSetup(
        link=link,
        size_bytes=size << 20,
        content_bytes=content << 20,
        memory_bytes=memory << 20,
        providers={"transport": transport, "compression": compression, "security": "tls"},
        cutoff_s=cutoff,
    )
    with ended_in_order(), progress(state, _STEPS) as step:
        result = run_storage(setup, step)
    if results is not None:
        with results.open("a") as file:
            file.write(json.dumps(result.to_json(), default=str) + "\n")
    if state.json:
        state.print_json(result.to_json())
    else:
        rows = [
            (
                move.name,
                f"{move.seconds:.1f}",
                f"{move.pause_ms:.0f}",
                f"{move.raw_bytes / 2**20:.1f}",
                f"{move.wire_bytes / 2**20:.1f}",
                move.digest[:16],
            )
            for move in result.moves
        ]
        title = f"{link}, disk {size} MiB with {content} MiB of content, memory {memory} MiB"
        state.table(f"{title}; load {result.load:.1f}", COLUMNS, rows)
        state.console.print(
            f"the two disks in the end: {'identical' if result.identical else 'DIFFERENT'}; "
            f"the guest finds what it wrote: {'yes' if result.guest_whole else 'NO'}"
        )
    if not result.held:
        raise InternalError("the disk or the guest is not whole", hint="report it with the output")
