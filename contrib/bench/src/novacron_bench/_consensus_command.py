"""``novacron bench consensus``."""

from __future__ import annotations

import click
from novacron import ShellState

from novacron_bench._wan_command import ended_in_order, shell_state

LATENCY_TIMES = 1.5
THROUGHPUT_PART = 0.5
RECOVERY_MS = 2000.0
WAN_TIMES = 1.2
WAN_BFT_TIMES = 3.2


@click.command("consensus")
@click.option("--nodes", "sizes", multiple=True, type=click.IntRange(1, 7), help="[default: 3, 5]")
@click.option("--seconds", type=click.FloatRange(1, 600), default=5.0, show_default=True)
@click.option("--clients", type=click.IntRange(1, 1024), default=64, show_default=True)
@click.option("--processes", type=click.IntRange(1, 64), default=4, show_default=True,
              help="Over which the clients are spread.")  # fmt: skip
@click.option("--kills", type=click.IntRange(0, 1000), default=20, show_default=True,
              help="How often the leader is killed.")  # fmt: skip
@click.option("--etcd/--no-etcd", default=True, help="Measure a real etcd beside it.")
@click.option(
    "--wan", is_flag=True, help="Five regions in a lab instead, 80 to 200 ms; needs root."
)
@click.option("--bft", is_flag=True,
              help="Four members that do not trust each other, instead of raft.")  # fmt: skip
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
    wan: bool,
    bft: bool,
    folder: str,
) -> None:
    """Raft of our own beside a real etcd: puts that are on the disks of a majority, over TLS.

    Every cluster runs alone on this host, one after the other, its members and its clients as
    processes. Both stores get the same values from the same kind of Python clients, which take
    their part of the processors; so compare the columns, and not with figures of other hosts. A
    recovery is the time from `kill -9` of the leader to the first put that is answered; both
    stores have an election timeout of 1,000 ms.

    With --bft a put is a new record of ownership, agreed on by four members' signed votes, and the
    client is the member that leads: only members use such a register.
    """
    import tempfile
    from pathlib import Path

    from novacron_bench._consensus import run, sync_ms

    state = shell_state(ctx)
    if wan:
        _wan(state, seconds, folder, bft)
        return
    if bft:
        _bft(state, seconds, folder)
        return
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


def _wan(state: ShellState, seconds: float, folder: str, bft: bool) -> None:
    import tempfile
    from pathlib import Path

    from novacron_bench._consensus_wan import run, run_bft

    with ended_in_order(), tempfile.TemporaryDirectory(dir=folder or None) as name:
        found = (run_bft if bft else run)(Path(name), seconds=seconds)
    if state.json:
        state.print_json(found.to_json())
        return
    rows = [
        ("the leader's region", found.leader),
        ("round trip to its quorum", f"{found.quorum_ms} ms"),
        ("put, 1 client beside it, median", f"{found.one['p50_ms']:.1f} ms"),
        ("put, 99th percentile", f"{found.one['p99_ms']:.1f} ms"),
        ("median, in round trips", f"{found.ratio:.2f}"),
        ("puts that failed", found.one["errors"]),
    ]
    title = "bft, 4 regions, 80 to 160 ms" if bft else "raft, 5 regions, 80 to 200 ms"
    state.table(title, ("", ""), rows)
    times = WAN_BFT_TIMES if bft else WAN_TIMES
    met = "met" if found.ratio <= times else "missed"
    state.console.print(f"at most {times} round trips: {met}", markup=False)


def _bft(state: ShellState, seconds: float, folder: str) -> None:
    import tempfile
    from pathlib import Path

    from novacron_bench._bft import bft
    from novacron_bench._consensus import sync_ms

    with ended_in_order(), tempfile.TemporaryDirectory(dir=folder or None) as name:
        disk_ms = sync_ms(Path(name))
        with bft(Path(name) / "bft") as made:
            found = made.put(made.leader(), seconds)
    if state.json:
        state.print_json({"sync_p50_ms": disk_ms, "bft": found})
        return
    rows = [
        ("put, 1 client, median", f"{found['p50_ms']:.2f} ms"),
        ("put, 1 client, 99th percentile", f"{found['p99_ms']:.2f} ms"),
        ("puts", f"{found['puts_per_s']:,.0f} /s"),
        ("puts that failed", found["errors"]),
    ]
    state.table(
        f"bft, 4 members on one host; one write and its sync: {disk_ms:.2f} ms", ("", ""), rows
    )
