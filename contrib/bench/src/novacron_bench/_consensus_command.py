"""``novacron bench consensus``."""

from __future__ import annotations

import click

from novacron_bench._wan_command import ended_in_order, shell_state

LATENCY_TIMES = 1.5
THROUGHPUT_PART = 0.5
RECOVERY_MS = 2000.0


@click.command("consensus")
@click.option("--nodes", "sizes", multiple=True, type=click.IntRange(1, 7), help="[default: 3, 5]")
@click.option("--seconds", type=click.FloatRange(1, 600), default=5.0, show_default=True)
@click.option("--clients", type=click.IntRange(1, 1024), default=64, show_default=True)
@click.option("--processes", type=click.IntRange(1, 64), default=4, show_default=True,
              help="Over which the clients are spread.")  # fmt: skip
@click.option("--kills", type=click.IntRange(0, 1000), default=20, show_default=True,
              help="How often the leader is killed.")  # fmt: skip
@click.option("--etcd/--no-etcd", default=True, help="Measure a real etcd beside it.")
@click.option("--folder", type=click.Path(file_okay=False), default="",
              help="Where the clusters keep their data; the disk that is measured.")  # fmt: skip
@click.pass_context
def consensus(
    ctx: click.Context,
    sizes: tuple[int, ...],
    seconds: float,
    clients: int,
    processes: int,
    kills: int,
    etcd: bool,
    folder: str,
) -> None:
    """Raft of our own beside a real etcd: puts that are on the disks of a majority, over TLS.

    Every cluster runs alone on this host, one after the other, its members and its clients as
    processes. Both stores get the same values from the same kind of Python clients, which take
    their part of the processors; so compare the columns, and not with figures of other hosts. A
    recovery is the time from `kill -9` of the leader to the first put that is answered; both
    stores have an election timeout of 1,000 ms.
    """
    import tempfile
    from pathlib import Path

    from novacron_bench._consensus import run, sync_ms

    state = shell_state(ctx)
    with ended_in_order(), tempfile.TemporaryDirectory(dir=folder or None) as name:
        disk_ms = sync_ms(Path(name))
        found = run(
            Path(name),
            sizes=list(sizes) or [3, 5],
            seconds=seconds,
            clients=clients,
            processes=processes,
            kills=kills,
            with_etcd=etcd,
            tell=lambda text: state.err.print(text, markup=False),
        )
    said = [one.to_json() for one in found]
    if state.json:
        state.print_json({"sync_p50_ms": disk_ms, "stores": said})
        return
    rows = [
        ("put, 1 client, median", *(f"{one['one']['p50_ms']:.2f} ms" for one in said)),
        ("put, 1 client, 99th percentile", *(f"{one['one']['p99_ms']:.2f} ms" for one in said)),
        (f"puts, {clients} clients", *(f"{one['many']['puts_per_s']:,.0f} /s" for one in said)),
        (f"put, {clients} clients, median", *(f"{one['many']['p50_ms']:.1f} ms" for one in said)),
        ("puts that failed", *(one["one"]["errors"] + one["many"]["errors"] for one in said)),
    ]
    if kills:
        rows += [
            ("recovery, median", *(f"{one['recovery_p50_ms']:.0f} ms" for one in said)),
            ("recovery, 99th percentile", *(f"{one['recovery_p99_ms']:.0f} ms" for one in said)),
        ]
    title = f"one write and its sync on this disk: {disk_ms:.2f} ms, median"
    state.table(title, ("", *(one["label"] for one in said)), rows)
    if etcd:
        ours, theirs = said[0], said[-1]
        wanted = [
            ("put, median", ours["one"]["p50_ms"], LATENCY_TIMES * theirs["one"]["p50_ms"]),
            ("put, p99", ours["one"]["p99_ms"], LATENCY_TIMES * theirs["one"]["p99_ms"]),
            (
                "throughput",
                THROUGHPUT_PART * theirs["many"]["puts_per_s"],
                ours["many"]["puts_per_s"],
            ),
        ]
        if kills:
            wanted.append(("recovery, p99", ours["recovery_p99_ms"], RECOVERY_MS))
        for label, low, high in wanted:
            state.console.print(f"{label}: {'met' if low <= high else 'missed'}", markup=False)
